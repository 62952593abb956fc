"""libdevice functions on bits, integers and mixed types, and those that few kernels name.

Each takes the builder and ``Val``s and gives a ``Val``; ``lookup`` finds one by its NVIDIA symbol.
Functions without a form in the C library are put together from fp64, rounded once to fp32.
Arithmetic that rounds up, down or to zero is left out: a CPU keeps its rounding in a register
that belongs to everybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from codegen.cpu.emit import INT_BITS, LLVM, Emit, Val, const, ll, mangle
from codegen.cpu.lower.elementwise import TABLE, libm, vector

Fn = Callable[..., Val]
FUNCTIONS: dict[str, Fn] = {}


def _name(*names: str):
    def register(fn: Fn) -> Fn:
        for n in names:
            FUNCTIONS[n] = fn
        return fn

    return register


# -- integers --------------------------------------------------------------------------------


def _count(e: Emit, name: str, v: Val) -> Val:
    """ctlz or cttz, which are defined for zero, as i32."""
    v = vector(e, v)
    n = 0 if v.uniform else v.n
    t = ll(v.ty, n)
    args = [(t, e.operand(v, n)), ("i1", "false")]
    out = e.wrap(v.ty, e.intrinsic(f"llvm.{name}.{mangle(v.ty, n)}", t, args), n)
    return out if v.ty == "i32" else e.cast("trunc", out, "i32")


@_name("clz", "clzll")
def _clz(e, v):
    return _count(e, "ctlz", v)


@_name("popc", "popcll")
def _popc(e, v):
    out = e.call("llvm.ctpop", v.ty, vector(e, v))
    return out if v.ty == "i32" else e.cast("trunc", out, "i32")


@_name("ffs", "ffsll")
def _ffs(e, v):
    """The place of the lowest bit, from 1; 0 for 0."""
    v = vector(e, v)
    none = e.op("icmp eq", v.ty, v, const(v.ty, 0), out="i1")
    return e.select(none, const("i32", 0), e.add(_count(e, "cttz", v), const("i32", 1)))


@_name("brev", "brevll")
def _brev(e, v):
    return e.call("llvm.bitreverse", v.ty, vector(e, v))


@_name("abs", "llabs")
def _abs(e, v):
    return TABLE["math.absi"][0](e, None, v)


def _wide(e: Emit, signed: bool, *vals: Val) -> list[Val]:
    return [e.extend(vector(e, v), "i64", signed) for v in vals]


def _mean(signed: bool, up: int) -> Fn:
    def fn(e, a, b):
        a, b = _wide(e, signed, a, b)
        total = e.op("add", "i64", e.op("add", "i64", a, b), const("i64", up))
        return e.cast("trunc", e.op("ashr", "i64", total, const("i64", 1)), "i32")

    return fn


for _n, _s, _u in (("hadd", 1, 0), ("uhadd", 0, 0), ("rhadd", 1, 1), ("urhadd", 0, 1)):
    FUNCTIONS[_n] = _mean(bool(_s), _u)


def _sad(signed: bool) -> Fn:
    def fn(e, a, b, c):
        x, y = (vector(e, v) for v in (a, b))
        pick = "s" if signed else "u"
        size = e.sub(e.call(f"llvm.{pick}max", "i32", x, y), e.call(f"llvm.{pick}min", "i32", x, y))
        return e.add(size, c)

    return fn


FUNCTIONS |= {"sad": _sad(True), "usad": _sad(False)}


def _mul24(signed: bool) -> Fn:
    def fn(e, a, b):
        shift = const("i32", 8)
        parts = [e.op("ashr" if signed else "lshr", "i32", e.op("shl", "i32", vector(e, v), shift),
                      shift) for v in (a, b)]  # fmt: skip
        return e.op("mul", "i32", *parts)

    return fn


FUNCTIONS |= {"mul24": _mul24(True), "umul24": _mul24(False)}


@_name("umulhi", "umul64hi")
def _umulhi(e, a, b):
    return TABLE["tt.mulhiui"][0](e, None, a, b)


@_name("mulhi", "mul64hi")
def _mulhi(e, a, b):
    """The unsigned high half, less the other operand for each that is negative."""
    a, b = vector(e, a), vector(e, b)
    out, zero = _umulhi(e, a, b), const(a.ty, 0)
    for x, y in ((a, b), (b, a)):
        negative = e.op("icmp slt", a.ty, x, zero, out="i1")
        out = e.op("sub", a.ty, out, e.select(negative, y, zero))
    return out


@_name("byte_perm")
def _byte_perm(e, a, b, s):
    """Four of eight bytes, each chosen by three bits of a nibble."""
    low, high = _wide(e, False, a, b)
    both = e.op("or", "i64", low, e.op("shl", "i64", high, const("i64", 32)))
    (s,) = _wide(e, False, s)
    out = const("i64", 0)
    for k in range(4):
        nibble = e.op("lshr", "i64", s, const("i64", 4 * k))
        place = e.op("shl", "i64", e.op("and", "i64", nibble, const("i64", 7)), const("i64", 3))
        byte = e.op("and", "i64", e.op("lshr", "i64", both, place), const("i64", 255))
        out = e.op("or", "i64", out, e.op("shl", "i64", byte, const("i64", 8 * k)))
    return e.cast("trunc", out, "i32")


# -- conversions -------------------------------------------------------------------------------

_ROUND = {"rn": "roundeven", "rz": "trunc", "rd": "floor", "ru": "ceil"}
_INTS = {"int": ("i32", "s"), "uint": ("i32", "u"), "ll": ("i64", "s"), "ull": ("i64", "u")}


def _to_int(rounding: str, ty: str, sign: str) -> Fn:
    def fn(e, v):
        v = e.call(f"llvm.{rounding}", v.ty, v)
        n = 0 if v.uniform else v.n
        name = f"llvm.fpto{sign}i.sat.{mangle(ty, n)}.{mangle(v.ty, n)}"
        return e.wrap(ty, e.intrinsic(name, ll(ty, n), [(ll(v.ty, n), e.operand(v, n))]), n)

    return fn


def _from_int(ty: str, sign: str) -> Fn:
    return lambda e, v: e.cast(f"{sign}itofp", vector(e, v), ty)


for _k, (_ty, _s) in _INTS.items():
    for _src in ("float", "double"):
        for _mode, _how in _ROUND.items():
            FUNCTIONS[f"{_src}2{_k}_{_mode}"] = _to_int(_how, _ty, _s)
    FUNCTIONS[f"{_k}2float_rn"] = _from_int("f32", _s)
    FUNCTIONS[f"{_k}2double_rn"] = _from_int("f64", _s)
FUNCTIONS |= {
    "double2float_rn": lambda e, v: e.cast("fptrunc", v, "f32"),
    "llrint": _to_int("roundeven", "i64", "s"), "llrintf": _to_int("roundeven", "i64", "s"),
    "llround": _to_int("round", "i64", "s"), "llroundf": _to_int("round", "i64", "s"),
}  # fmt: skip


def _same_bits(ty: str) -> Fn:
    return lambda e, v: e.cast("bitcast", vector(e, v), ty)


for _pair, _ty in (("int float", "f32"), ("uint float", "f32"), ("float int", "i32"),
                   ("float uint", "i32"), ("longlong double", "f64"),
                   ("double longlong", "i64")):  # fmt: skip
    FUNCTIONS["_as_".join(_pair.split())] = _same_bits(_ty)


@_name("hiloint2double")
def _hilo(e, high, low):
    (h,), (l_,) = _wide(e, False, high), _wide(e, False, low)
    bits = e.op("or", "i64", e.op("shl", "i64", h, const("i64", 32)), l_)
    return e.cast("bitcast", bits, "f64")


@_name("double2loint")
def _loint(e, v):
    return e.cast("trunc", e.cast("bitcast", v, "i64"), "i32")


@_name("double2hiint")
def _hiint(e, v):
    return e.cast(
        "trunc", e.op("lshr", "i64", e.cast("bitcast", v, "i64"), const("i64", 32)), "i32"
    )


# -- floats --------------------------------------------------------------------------------------


def _in_double(fn: Fn) -> Fn:
    """A function of floats evaluated in fp64, and rounded once if its operands are fp32."""

    def run(e, *vals):
        single = vals[0].ty == "f32"
        wide = [e.cast("fpext", v, "f64") if v.ty == "f32" else v for v in vals]
        out = fn(e, *wide)
        return e.cast("fptrunc", out, "f32") if single else out

    return run


def _d(x: float) -> Val:
    return const("f64", x)


def _float(names: str, fn: Fn) -> None:
    for n in names.split():
        FUNCTIONS[n] = FUNCTIONS[n + "f"] = _in_double(fn)


def _norm(e, *xs):
    out = xs[0]
    for x in xs[1:]:
        out = libm(e, "hypot", out, x)
    return out


def _inverse(fn: Fn) -> Fn:
    return lambda e, *xs: e.op("fdiv", "f64", _d(1.0), fn(e, *xs))


_float("norm3d norm4d", _norm)
_float("rnorm3d rnorm4d rhypot", _inverse(_norm))
_float("rcbrt", _inverse(lambda e, x: libm(e, "cbrt", x)))


def _pi_times(shift: float) -> Fn:
    """sin(pi x) or cos(pi x): x is brought into [-1/4, 1/4] exactly, so that zeros are zeros."""

    def fn(e, x):
        # n quarters of a turn: x = n / 2 + r, and r is exact
        n = e.call("llvm.rint", "f64", e.op("fmul", "f64", x, _d(2.0)))
        r = e.op("fsub", "f64", x, e.op("fmul", "f64", n, _d(0.5)))
        angle = e.op("fmul", "f64", r, _d(math.pi))
        s, c = libm(e, "sin", angle), libm(e, "cos", angle)
        # n modulo 4, which is exact as well
        four = e.call("llvm.floor", "f64", e.op("fmul", "f64", n, _d(0.25)))
        k = e.op("fsub", "f64", n, e.op("fmul", "f64", four, _d(4.0)))
        k = _to_int("trunc", "i32", "s")(e, k)
        k = e.op("add", "i32", k, const("i32", int(shift)))
        odd = e.op(
            "icmp ne", "i32", e.op("and", "i32", k, const("i32", 1)), const("i32", 0), out="i1"
        )
        y = e.select(odd, c, s)
        flip = e.op(
            "icmp ne", "i32", e.op("and", "i32", k, const("i32", 2)), const("i32", 0), out="i1"
        )
        y = e.select(flip, e.op("fneg", "f64", y), y)
        finite = e.op("fcmp olt", "f64", e.call("llvm.fabs", "f64", x), _d(math.inf), out="i1")
        return e.select(finite, y, _d(math.nan))

    return fn


_float("sinpi", _pi_times(0))
_float("cospi", _pi_times(1))
_float("normcdf", lambda e, x: e.op("fmul", "f64", _d(0.5), libm(
    e, "erfc", e.op("fmul", "f64", x, _d(-math.sqrt(0.5))))))  # fmt: skip


def _each(e: Emit, symbol: str, out: str, *vals: Val) -> Val:
    """A C library function of mixed types, lane by lane."""
    types = [LLVM[v.ty] for v in vals]
    fn = e.declare(f"declare {LLVM[out]} @{symbol}({', '.join(types)})")
    n = e.widths(vals)
    lanes = []
    held = [e.operand(vector(e, v), n) for v in vals]
    for k in range(max(n, 1)):
        parts = [e.raw(f"extractelement {ll(v.ty, n)} {x}, i64 {k}") if n else x
                 for v, x in zip(vals, held, strict=True)]  # fmt: skip
        args = ", ".join(f"{t} {p}" for t, p in zip(types, parts, strict=True))
        lanes.append(e.raw(f"call {LLVM[out]} {fn}({args})"))
    if not n:
        return e.wrap(out, lanes[0], 0)
    acc = "poison"
    for k, lane in enumerate(lanes):
        acc = e.raw(f"insertelement {ll(out, n)} {acc}, {LLVM[out]} {lane}, i64 {k}")
    return e.wrap(out, acc, n)


def _scale(e, x, n):
    return _each(e, "ldexpf" if x.ty == "f32" else "ldexp", x.ty, x, n)


def _power(e, x, n):
    return _in_double(lambda e, x: libm(e, "pow", x, e.cast("sitofp", vector(e, n), "f64")))(e, x)


def _bessel(name: str) -> Fn:
    """jn, yn: the order comes first."""

    def fn(e, n, x):
        wide = e.cast("fpext", x, "f64") if x.ty == "f32" else x
        out = _each(e, name, "f64", n, wide)
        return e.cast("fptrunc", out, "f32") if x.ty == "f32" else out

    return fn


for _n, _fn in (("ldexp", _scale), ("scalbn", _scale), ("powi", _power), ("jn", _bessel("jn")),
                ("yn", _bessel("yn"))):  # fmt: skip
    FUNCTIONS[_n] = FUNCTIONS[_n + "f"] = _fn
FUNCTIONS["powif"] = _power
FUNCTIONS["ilogb"] = lambda e, x: _each(e, "ilogb", "i32", x)
FUNCTIONS["ilogbf"] = lambda e, x: _each(e, "ilogbf", "i32", x)


def lookup(symbol: str, elem: str) -> Fn | None:
    """What computes a symbol whose first operand is of a type, if it is one of these."""
    name = symbol.removeprefix("__nv_")
    if name == "abs" and elem not in INT_BITS:
        return None
    return FUNCTIONS.get(name)
