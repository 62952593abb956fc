"""Element-wise ops: one table from the op's name to (what it computes, is it heavy).

A function gets the builder, the op and one ``Val`` per operand, and gives the result's ``Val``;
it serves scalars and vectors alike.
"""

from __future__ import annotations

from codegen.cpu import floats, mathlib
from codegen.cpu.emit import FLOATS, INT_BITS, NARROW_FLOATS, Emit, Val, const
from codegen.cpu.ttir import BYTES, Op

TABLE: dict[str, tuple] = {}


def _op(*names: str, heavy: bool = False):
    def register(fn):
        for name in names:
            TABLE[name] = (fn, heavy)
        return fn

    return register


def _elem(op: Op) -> str:
    return op.result_types[0].elem


# -- integers ------------------------------------------------------------------------------

TABLE["arith.addi"] = (
    lambda e, op, a, b: e.add(a, b) if a.ty != "i1" else _int(e, "xor", a, b),
    False,
)
TABLE["arith.subi"] = (
    lambda e, op, a, b: e.sub(a, b) if a.ty != "i1" else _int(e, "xor", a, b),
    False,
)
TABLE["arith.muli"] = (
    lambda e, op, a, b: e.mul(a, b) if a.ty != "i1" else _int(e, "and", a, b),
    False,
)


def _int(e: Emit, name: str, a: Val, b: Val) -> Val:
    return e.op(name, a.ty, a, b)


def _fold(name: str, a: int, b: int, bits: int) -> int | None:
    mask = (1 << bits) - 1
    if name == "and":
        return a & b
    if name == "or":
        return a | b
    if name == "xor":
        return a ^ b
    if name == "shl" and 0 <= b < bits:
        return a << b
    if name == "lshr" and 0 <= b < bits:
        return (a & mask) >> b
    if name == "ashr" and 0 <= b < bits:
        return a >> b
    return None


def _bitwise(name: str):
    def fn(e: Emit, op: Op, a: Val, b: Val) -> Val:
        if a.kind == "c" and b.kind == "c":
            folded = _fold(name, a.x, b.x, INT_BITS[a.ty])
            if folded is not None:
                return const(a.ty, folded)
        if name == "and" and a.ty == "i1":
            for x, y in ((a, b), (b, a)):
                if x.kind == "c":
                    return y if x.x else x
        if name in ("shl", "lshr", "ashr"):  # a shift by the width or more is poison in LLVM
            bits = INT_BITS[a.ty]
            if b.kind != "c":
                big = e.op("icmp uge", b.ty, b, const(b.ty, bits), out="i1")
                safe = e.op("and", b.ty, b, const(b.ty, bits - 1))
                r = e.op(name, a.ty, a, safe)
                fill = (
                    e.op("ashr", a.ty, a, const(a.ty, bits - 1))
                    if name == "ashr"
                    else const(a.ty, 0)
                )
                return e.select(big, fill, r)
        return e.op(name, a.ty, a, b)

    return fn


for _name, _ins in {"andi": "and", "ori": "or", "xori": "xor", "shli": "shl", "shrui": "lshr",
                    "shrsi": "ashr"}.items():  # fmt: skip
    TABLE["arith." + _name] = (_bitwise(_ins), False)


def _divide(name: str):
    """Division that cannot trap: by zero (a lane that is masked off later) it divides by one."""

    def fn(e: Emit, op: Op, a: Val, b: Val) -> Val:
        if b.kind == "c" and b.x not in (0, -1):
            if a.kind == "c":
                bits = (1 << INT_BITS[a.ty]) - 1
                x, y = (a.x, b.x) if name[0] == "s" else (a.x & bits, b.x & bits)
                q = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
                return const(a.ty, q if name.endswith("div") else x - q * y)
            return e.op(name, a.ty, a, b)
        one = const(a.ty, 1)
        bad = e.op("icmp eq", a.ty, b, const(a.ty, 0), out="i1")
        if name[0] == "s":
            low = const(a.ty, -(1 << (INT_BITS[a.ty] - 1)))
            wraps = e.op("and", "i1", e.op("icmp eq", a.ty, b, const(a.ty, -1), out="i1"),
                         e.op("icmp eq", a.ty, a, low, out="i1"))  # fmt: skip
            bad = e.op("or", "i1", bad, wraps)
        return e.op(name, a.ty, a, e.select(bad, one, b))

    return fn


for _name, _ins in {"divsi": "sdiv", "divui": "udiv", "remsi": "srem", "remui": "urem"}.items():
    TABLE["arith." + _name] = (_divide(_ins), False)


@_op("arith.ceildivsi")
def _ceildiv(e, op, a, b):
    q = _divide("sdiv")(e, op, a, b)
    r = e.sub(a, e.mul(q, b))
    up = e.op("and", "i1", e.op("icmp ne", a.ty, r, const(a.ty, 0), out="i1"),
              e.op("icmp eq", "i1", e.op("icmp slt", a.ty, r, const(a.ty, 0), out="i1"),
                   e.op("icmp slt", a.ty, b, const(a.ty, 0), out="i1"), out="i1"))  # fmt: skip
    return e.select(up, e.add(q, const(a.ty, 1)), q)


@_op("arith.floordivsi")
def _floordiv(e, op, a, b):
    q = _divide("sdiv")(e, op, a, b)
    r = e.sub(a, e.mul(q, b))
    down = e.op("and", "i1", e.op("icmp ne", a.ty, r, const(a.ty, 0), out="i1"),
                e.op("icmp ne", "i1", e.op("icmp slt", a.ty, r, const(a.ty, 0), out="i1"),
                     e.op("icmp slt", a.ty, b, const(a.ty, 0), out="i1"), out="i1"))  # fmt: skip
    return e.select(down, e.add(q, const(a.ty, -1)), q)


for _name, _ins in {"maxsi": "smax", "minsi": "smin", "maxui": "umax", "minui": "umin"}.items():

    def _minmax(e, op, a, b, ins=_ins):
        if a.kind == "c" and b.kind == "c" and ins[0] == "s":
            return const(a.ty, max(a.x, b.x) if ins == "smax" else min(a.x, b.x))
        return e.call(f"llvm.{ins}", a.ty, a, b)

    TABLE["arith." + _name] = (_minmax, False)

_ORDER = {"eq": "eq", "ne": "ne", "slt": "lt", "sle": "le", "sgt": "gt", "sge": "ge"}


@_op("arith.cmpi")
def _cmpi(e, op, a, b):
    kind = op.words[0]
    if a.kind == "c" and b.kind == "c" and kind in _ORDER:
        x, y = a.x, b.x
        return const("i1", {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y,
                            "ge": x >= y}[_ORDER[kind]])  # fmt: skip
    return e.op(f"icmp {kind}", a.ty, a, b, out="i1")


@_op("arith.extsi", "arith.index_cast", "arith.extui", "arith.index_castui")
def _extend(e, op, a):
    ty = _elem(op)
    signed = op.name in ("arith.extsi", "arith.index_cast")
    if INT_BITS[a.ty] > INT_BITS[ty]:
        return _trunc(e, op, a)
    if INT_BITS[a.ty] == INT_BITS[ty]:
        return a if a.ty == ty else Val(ty, a.kind, a.x, n=a.n, base=a.base, stride=a.stride)
    return e.extend(a, ty, (signed and a.ty != "i1") or op.name == "arith.extsi")


@_op("arith.trunci")
def _trunc(e, op, a):
    ty = _elem(op)
    if a.kind == "c":
        return const(ty, a.x)
    if a.kind == "a" and a.exact is None:
        return Val(ty, "a", n=a.n, base=_trunc(e, op, a.base), stride=_trunc(e, op, a.stride))
    return e.cast("trunc", a, ty) if a.kind != "a" else e.cast("trunc", vector(e, a), ty)


def vector(e: Emit, v: Val) -> Val:
    """The vector that a ramp stands for."""
    return e.wrap(v.ty, e.operand(v, v.n), v.n) if v.kind == "a" else v


@_op("tt.mulhiui")
def _mulhi(e, op, a, b):
    wide = "i64" if a.ty == "i32" else "i128"
    bits = INT_BITS[a.ty]
    if wide == "i64":
        x, y = (e.extend(vector(e, v), "i64", signed=False) for v in (a, b))
        high = e.op("lshr", "i64", e.op("mul", "i64", x, y), const("i64", bits))
        return e.cast("trunc", high, a.ty)
    return _mulhi64(e, a, b)


def _mulhi64(e: Emit, a: Val, b: Val) -> Val:
    """The high half of a 64x64 product from four 32x32 products."""
    low, s32 = const("i64", 0xFFFFFFFF), const("i64", 32)
    a, b = vector(e, a), vector(e, b)
    a0, a1 = e.op("and", "i64", a, low), e.op("lshr", "i64", a, s32)
    b0, b1 = e.op("and", "i64", b, low), e.op("lshr", "i64", b, s32)
    mul, add = (lambda x, y: e.op("mul", "i64", x, y)), (lambda x, y: e.op("add", "i64", x, y))
    mid = add(mul(a1, b0), e.op("lshr", "i64", mul(a0, b0), s32))
    mid2 = add(mul(a0, b1), e.op("and", "i64", mid, low))
    return add(add(mul(a1, b1), e.op("lshr", "i64", mid, s32)), e.op("lshr", "i64", mid2, s32))


@_op("arith.select")
def _select(e, op, c, a, b):
    return e.select(c, a, b)


@_op("math.absi")
def _absi(e, op, a):
    neg = e.sub(const(a.ty, 0), a)
    return e.select(e.op("icmp slt", a.ty, a, const(a.ty, 0), out="i1"), neg, a)


@_op("math.ctpop", "math.ctlz", "math.cttz")
def _count(e, op, a):
    name = "llvm." + op.name[5:]
    if name == "llvm.ctpop":
        return e.call(name, a.ty, a)
    from codegen.cpu.emit import ll, mangle

    n = a.n if not a.uniform else 0
    t = ll(a.ty, n)
    args = [(t, e.operand(a, n)), ("i1", "false")]
    return e.wrap(a.ty, e.intrinsic(f"{name}.{mangle(a.ty, n)}", t, args), n)


# -- floats --------------------------------------------------------------------------------


def _float_op(body):
    """Arithmetic on narrow floats happens in f32 and is rounded once per op."""

    def fn(e: Emit, op: Op, *vals: Val) -> Val:
        ty = vals[0].ty
        if ty in NARROW_FLOATS:
            return floats.narrow(e, body(e, op, *[floats.widen(e, v) for v in vals]), ty)
        return body(e, op, *vals)

    return fn


def _instruction(name: str, fuses: bool = False):
    def body(e: Emit, op: Op, *vals: Val) -> Val:
        return e.op(f"{name} {e.contract}" if fuses else name, vals[0].ty, *vals)

    return _float_op(body)


for _name in ("addf", "mulf"):
    TABLE["arith." + _name] = (_instruction("f" + _name[:3], fuses=True), False)
# Not fused with a product: where x y - m cancels, rounding x y is all that is left, and whether
# LLVM fuses hangs on what else reads the product. A backward that makes exp(x y - m) again must
# find what its forward found.
TABLE["arith.subf"] = (_instruction("fsub"), False)
for _name in ("arith.divf", "tt.precise_divf"):
    TABLE[_name] = (_instruction("fdiv"), True)
TABLE["arith.negf"] = (_instruction("fneg"), False)
TABLE["arith.remf"] = (_instruction("frem"), True)


def _intrinsic(name: str):
    return _float_op(lambda e, op, *vals: e.call(name, vals[0].ty, *vals))


for _name, _ins, _heavy in (
    ("math.absf", "fabs", False), ("math.sqrt", "sqrt", True), ("tt.precise_sqrt", "sqrt", True),
    ("math.floor", "floor", False), ("math.ceil", "ceil", False), ("math.trunc", "trunc", False),
    ("math.roundeven", "roundeven", False), ("math.copysign", "copysign", False),
    ("arith.maximumf", "maximum", False), ("arith.minimumf", "minimum", False),
    ("math.round", "round", True),
):  # fmt: skip
    TABLE[_name] = (_intrinsic("llvm." + _ins), _heavy)


def _num(name: str, pick: str):
    """maxnum, minnum: the number where the other is NaN. Compare and two selects vectorise well."""

    def body(e: Emit, op: Op, a: Val, b: Val) -> Val:
        best = e.select(e.op(f"fcmp {pick}", a.ty, a, b, out="i1"), a, b)
        return e.select(e.op("fcmp uno", b.ty, b, b, out="i1"), a, best)

    return _float_op(body)


TABLE["arith.maxnumf"] = (_num("maxnum", "ogt"), False)
TABLE["arith.minnumf"] = (_num("minnum", "olt"), False)


@_op("math.fma")
@_float_op
def _fma(e, op, a, b, c):
    return e.call("llvm.fma", a.ty, a, b, c)


@_op("tt.clampf")
@_float_op
def _clamp(e, op, x, low, high):
    if "all" in op.words + list(op.attrs.values()):
        return e.call("llvm.minimum", x.ty, e.call("llvm.maximum", x.ty, x, low), high)
    return _num("", "olt")(e, op, _num("", "ogt")(e, op, x, low), high)


def _elementary(name: str):
    fn = mathlib.FUNCTIONS[name]

    def body(e: Emit, op: Op, x: Val) -> Val:
        return e.call(f"llvm.{name}", "f64", x) if x.ty == "f64" else fn(e, x)

    return _float_op(body)


for _name in ("exp", "exp2", "log", "log2", "sin", "cos", "tanh"):
    TABLE["math." + _name] = (_elementary(_name), True)


@_op("math.erf", heavy=True)
@_float_op
def _erf(e, op, x):
    return libm(e, "erf", x) if x.ty == "f64" else mathlib.erf(e, x)


@_op("math.rsqrt", heavy=True)
@_float_op
def _rsqrt(e, op, x):
    return mathlib.rsqrt(e, x)


def libm(e: Emit, name: str, *vals: Val) -> Val:
    """A C library function, lane by lane."""
    from codegen.cpu.emit import LLVM, ll

    ty = vals[0].ty
    t = LLVM[ty]
    symbol = name + ("f" if ty == "f32" else "")
    fn = e.declare(f"declare {t} @{symbol}({', '.join([t] * len(vals))})")
    n = e.widths(vals)
    if not n:
        return e.wrap(
            ty, e.raw(f"call {t} {fn}({', '.join(f'{t} {e.operand(v)}' for v in vals)})"), 0
        )
    vs = [e.operand(v, n) for v in vals]
    acc = "poison"
    for k in range(n):
        args = [e.raw(f"extractelement {ll(ty, n)} {v}, i64 {k}") for v in vs]
        one = e.raw(f"call {t} {fn}({', '.join(f'{t} {a}' for a in args)})")
        acc = e.raw(f"insertelement {ll(ty, n)} {acc}, {t} {one}, i64 {k}")
    return e.wrap(ty, acc, n)


_ALWAYS = {"false": False, "true": True}


@_op("arith.cmpf")
def _cmpf(e, op, a, b):
    kind = op.words[0]
    if kind in _ALWAYS:
        return const("i1", _ALWAYS[kind])
    ty = a.ty if a.ty == "f64" else "f32"
    return e.op(f"fcmp {kind}", ty, floats.widen(e, a), floats.widen(e, b), out="i1")


@_op("arith.extf", "arith.truncf", "tt.fp_to_fp")
def _convert(e, op, a):
    rounding = op.attrs.get("rounding", "") + " ".join(op.words)
    return floats.convert(e, a, _elem(op), "rtz" if "rtz" in rounding else "rtne")


@_op("arith.sitofp", "arith.uitofp")
def _from_int(e, op, a):
    ty = _elem(op)
    ins = op.name[6:]
    if a.kind == "c":
        value = a.x if ins[0] == "s" else a.x & ((1 << INT_BITS[a.ty]) - 1)
        if abs(value) < 1 << 11:
            return floats.convert(e, const("f32", float(value)), ty)
    a = vector(e, a)
    if ty in ("f32", "f64"):
        return e.cast(ins, a, ty)
    if INT_BITS[a.ty] > 24:  # through f64 and one rounding
        return floats.convert(e, e.cast(ins, a, "f64"), ty)
    return floats.narrow(e, e.cast(ins, a, "f32"), ty)


@_op("arith.fptosi", "arith.fptoui")
def _to_int(e, op, a):
    """Saturating, so that an out-of-range lane is defined and the same everywhere."""
    from codegen.cpu.emit import ll, mangle

    ty = _elem(op)
    wide = floats.widen(e, a)
    n = wide.n if not wide.uniform else 0
    name = f"llvm.{op.name[6:]}.sat.{mangle(ty, n)}.{mangle(wide.ty, n)}"
    return e.wrap(ty, e.intrinsic(name, ll(ty, n), [(ll(wide.ty, n), e.operand(wide, n))]), n)


# -- pointers and bits ---------------------------------------------------------------------


@_op("tt.addptr")
def _addptr(e, op, ptr, count):
    return e.offset(ptr, count, BYTES.get(op.result_types[0].pointee, 1))


@_op("tt.int_to_ptr", "tt.ptr_to_int", "tt.bitcast", "arith.bitcast")
def _bitcast(e, op, a):
    ty = _elem(op)
    from codegen.cpu.emit import LLVM

    if ty == a.ty:
        return a
    if ty == "ptr":
        return e.cast("inttoptr", vector(e, e.extend(a, "i64")), ty)
    if a.ty == "ptr":
        return e.cast("ptrtoint", vector(e, a), ty)
    a = vector(e, a)
    if a.kind == "c" and a.ty in FLOATS:
        a = (
            e.op("fadd", a.ty, a, const(a.ty, -0.0))
            if a.ty in ("f32", "f64")
            else Val(LLVM[a.ty], "c", int(e.literal(a.ty, a.x)))
        )
    if LLVM[ty] == LLVM[a.ty]:
        return Val(ty, a.kind, a.x, n=a.n)
    return e.cast("bitcast", a, ty)
