"""Vector elementary functions in fp32, at most 2 ulp (tanh, erf: 4), for any lane count.

Everything is straight-line arithmetic so that it can be evaluated wherever an element is needed.
fp64 goes to LLVM's intrinsics, which become calls of the C library lane by lane.
"""

from __future__ import annotations

import struct

from codegen.cpu.emit import Emit, Val, const

_ROUND = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer, kept in the low mantissa bits


def _f(x: float) -> Val:
    return const("f32", x)


def _i(x: int) -> Val:
    return const("i32", x)


def fma(e: Emit, a: Val, b: Val, c: Val) -> Val:
    """a * b + c, in one rounding where the host has it and otherwise in two."""
    if e.features.has("fma"):
        return e.call("llvm.fma", a.ty if a.kind != "c" else b.ty, a, b, c)
    return e.op("fadd", c.ty, e.op("fmul", c.ty, a, b), c)


def poly(e: Emit, x: Val, coefficients) -> Val:
    """Horner, highest power first."""
    acc = _f(coefficients[0])
    for c in coefficients[1:]:
        acc = fma(e, acc, x, _f(c))
    return acc


def _bits(e: Emit, v: Val) -> Val:
    return e.cast("bitcast", v, "i32")


def _float(e: Emit, v: Val) -> Val:
    return e.cast("bitcast", v, "f32")


def clamp(e: Emit, x: Val, low: float, high: float) -> Val:
    """Into [low, high]; a NaN stays a NaN."""
    x = e.select(e.op("fcmp olt", "f32", x, _f(low), out="i1"), _f(low), x)
    return e.select(e.op("fcmp ogt", "f32", x, _f(high), out="i1"), _f(high), x)


def _scale(e: Emit, x: Val, k: Val) -> Val:
    """x * 2**k in two steps, so that results may be subnormal or overflow."""
    half = e.op("ashr", "i32", k, _i(1))
    rest = e.op("sub", "i32", k, half)
    for part in (half, rest):
        power = _float(e, e.op("shl", "i32", e.op("add", "i32", part, _i(127)), _i(23)))
        x = e.op("fmul", "f32", x, power)
    return x


def _round(e: Emit, x: Val) -> tuple[Val, Val]:
    """The nearest integer as float and as i32."""
    shifted = e.op("fadd", "f32", x, _f(_ROUND))
    k = e.op("sub", "i32", _bits(e, shifted), _i(0x4B400000))
    return e.op("fsub", "f32", shifted, _f(_ROUND)), k


def _exp_reduced(e: Emit, r: Val) -> Val:
    """exp on [-ln2/2, ln2/2]."""
    p = poly(e, r, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
                    1.6666665459e-1, 5.0000001201e-1))  # fmt: skip
    return e.op("fadd", "f32", fma(e, p, e.op("fmul", "f32", r, r), r), _f(1.0))


def _power_of_two(e: Emit, mantissa: Val, rounded: Val, k: Val) -> Val:
    """mantissa * 2**k with k an integer in both forms."""
    if e.features.has("avx512f") and mantissa.n == 16:
        t = "<16 x float>"
        return e.wrap("f32", e.intrinsic(
            "llvm.x86.avx512.mask.scalef.ps.512", t,
            [(t, e.operand(mantissa, 16)), (t, e.operand(rounded, 16)), (t, "zeroinitializer"),
             ("i16", "-1"), ("i32", "4")]), 16)  # fmt: skip
    return _scale(e, mantissa, k)


def _sixteenths(e: Emit, x: Val, scale: float) -> tuple[Val, Val]:
    """x * scale to the nearest sixteenth, and two to the power of its part after the point.

    Its last bits after adding a constant choose one of sixteen values, which are one register.
    """
    magic = _f(1.5 * 2.0**19)
    shifted = fma(e, x, _f(scale), magic) if scale != 1 else e.op("fadd", "f32", x, magic)
    values = [struct.unpack("<f", struct.pack("<f", 2.0 ** (k / 16)))[0] for k in range(16)]
    table = ", ".join(f"float {e.literal('f32', v)}" for v in values)
    power = e.intrinsic("llvm.x86.avx512.permvar.sf.512", "<16 x float>",
                        [("<16 x float>", f"<{table}>"),
                         ("<16 x i32>", e.operand(_bits(e, shifted), 16))])  # fmt: skip
    return e.op("fsub", "f32", shifted, magic), e.wrap("f32", power, 16)


def _near_one(e: Emit, x: Val, coefficients, power: Val, n: Val, on: Val) -> Val:
    """power * (1 + x * polynomial(x)) * 2**floor(n), or zero where not ``on``."""
    p = e.op("fmul", "f32", poly(e, x, coefficients), x)
    t = "<16 x float>"
    mask = e.raw(f"bitcast <16 x i1> {e.operand(on, 16)} to i16")
    return e.wrap("f32", e.intrinsic(
        "llvm.x86.avx512.mask.scalef.ps.512", t,
        [(t, e.operand(fma(e, power, p, power), 16)), (t, e.operand(n, 16)),
         (t, "zeroinitializer"), ("i16", mask), ("i32", "4")]), 16)  # fmt: skip


def _full_width(e: Emit, x: Val) -> bool:
    return e.features.has("avx512f") and x.kind == "v" and x.n == 16


def _bounded(e: Emit, x: Val, low: float, high: float) -> tuple[Val, Val]:
    """x but for what is larger than ``high``, and where it is not smaller than ``low``.

    What is smaller is masked off: a processor takes two hundred cycles to scale it down to zero,
    and masked scores are minus infinity.
    """
    on = e.op("fcmp uge", "f32", x, _f(low), out="i1")
    return e.select(e.op("fcmp ogt", "f32", x, _f(high), out="i1"), _f(high), x), on


def exp(e: Emit, x: Val) -> Val:
    if _full_width(e, x):
        x, on = _bounded(e, x, -104.0, 89.0)
        n, power = _sixteenths(e, x, 1.44269504088896341)
        r = fma(e, n, _f(-0.693147182464599609375), x)
        r = fma(e, n, _f(1.9046542121259335e-9), r)
        return _near_one(e, r, (0.1666696, 0.50000977, 1.0), power, n, on)
    x = clamp(e, x, -104.0, 89.0)
    n, k = _round(e, e.op("fmul", "f32", x, _f(1.44269504088896341)))
    r = fma(e, n, _f(-0.693359375), x)
    r = fma(e, n, _f(2.12194440e-4), r)
    return _power_of_two(e, _exp_reduced(e, r), n, k)


def exp2(e: Emit, x: Val) -> Val:
    if _full_width(e, x) and e.features.has("avx512dq"):
        return _exp2_by_parts(e, x)
    if _full_width(e, x):
        x, on = _bounded(e, x, -151.0, 129.0)
        n, power = _sixteenths(e, x, 1.0)
        r = e.op("fsub", "f32", x, n)
        return _near_one(e, r, (0.05550541, 0.24023356, 0.69314718), power, n, on)
    x = clamp(e, x, -151.0, 129.0)
    n, k = _round(e, x)
    f = e.op("fsub", "f32", x, n)
    p = poly(e, f, (1.5353362e-4, 1.3398874e-3, 9.6184373e-3, 5.5503324e-2,
                    2.4022648e-1, 6.9314720e-1, 1.0))  # fmt: skip
    return _power_of_two(e, p, n, k)


_DOWN = 9  # for vreduceps: what is above the integer below, no exceptions


def _exp2_by_parts(e: Emit, x: Val) -> Val:
    """2**(x - floor(x)) by a polynomial, scaled by 2**floor(x): one instruction takes x apart, and
    one puts it together, infinities included. Far below zero see ``_bounded``."""
    t, v = "<16 x float>", e.operand(x, 16)
    part = e.intrinsic("llvm.x86.avx512.mask.reduce.ps.512", t,
                       [(t, v), ("i32", str(_DOWN)), (t, "zeroinitializer"), ("i16", "-1"),
                        ("i32", "8")])  # fmt: skip
    p = poly(e, e.wrap("f32", part, 16),
             (2.161310549126938e-4, 1.2467794585973024e-3, 9.675456210970879e-3,
              5.5485278367996216e-2, 2.402293086051941e-1, 6.931470632553101e-1, 1.0))  # fmt: skip
    on = e.op("fcmp uge", "f32", x, _f(-151.0), out="i1")
    mask = e.raw(f"bitcast <16 x i1> {e.operand(on, 16)} to i16")
    return e.wrap("f32", e.intrinsic(
        "llvm.x86.avx512.mask.scalef.ps.512", t,
        [(t, e.operand(p, 16)), (t, v), (t, "zeroinitializer"), ("i16", mask),
         ("i32", "4")]), 16)  # fmt: skip


def _log_parts(e: Emit, x: Val) -> tuple[Val, Val, Val]:
    """x = 2**k * (1 + m), 1 + m in [sqrt(1/2), sqrt(2)); gives k as float, m, log(1+m) - m."""
    small = e.op("fcmp olt", "f32", x, _f(1.17549435e-38), out="i1")
    x = e.select(small, e.op("fmul", "f32", x, _f(8388608.0)), x)
    bits = _bits(e, x)
    shifted = e.op("sub", "i32", bits, _i(0x3F3504F3))  # bits of sqrt(1/2)
    k = e.op("ashr", "i32", shifted, _i(23))
    mant = e.op("sub", "i32", bits, e.op("shl", "i32", k, _i(23)))
    kf = e.cast("sitofp", k, "f32")
    kf = e.op("fadd", "f32", kf, e.select(small, _f(-23.0), _f(0.0)))
    m = e.op("fsub", "f32", _float(e, mant), _f(1.0))
    p = poly(e, m, (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1,
                    1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1,
                    3.3333331174e-1))  # fmt: skip
    z = e.op("fmul", "f32", m, m)
    rest = e.op("fmul", "f32", e.op("fmul", "f32", p, m), z)
    return kf, m, fma(e, z, _f(-0.5), rest)


def _log_edges(e: Emit, x: Val, y: Val) -> Val:
    inf = float("inf")
    y = e.select(e.op("fcmp oeq", "f32", x, _f(inf), out="i1"), _f(inf), y)
    y = e.select(e.op("fcmp oeq", "f32", x, _f(0.0), out="i1"), _f(-inf), y)
    return e.select(
        e.op("fcmp uge", "f32", x, _f(0.0), out="i1"),
        e.select(e.op("fcmp uno", "f32", x, x, out="i1"), x, y),
        _f(float("nan")),
    )


def log(e: Emit, x: Val) -> Val:
    k, m, rest = _log_parts(e, x)
    y = fma(e, k, _f(-2.12194440e-4), rest)
    y = fma(e, k, _f(0.693359375), e.op("fadd", "f32", m, y))
    return _log_edges(e, x, y)


def log2(e: Emit, x: Val) -> Val:
    k, m, rest = _log_parts(e, x)
    # log2(e) = 1.4375 + 5.1950408889634e-3 with the first part exact in few bits
    low = fma(e, e.op("fadd", "f32", m, rest), _f(5.1950408889634e-3),
              e.op("fmul", "f32", rest, _f(1.4375)))  # fmt: skip
    y = e.op("fadd", "f32", k, fma(e, m, _f(1.4375), low))
    return _log_edges(e, x, y)


def tanh(e: Emit, x: Val) -> Val:
    ax = e.call("llvm.fabs", "f32", x)
    z = e.op("fmul", "f32", x, x)
    p = poly(e, z, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
                    -3.33332819422e-1))  # fmt: skip
    small = fma(e, e.op("fmul", "f32", p, z), x, x)
    t = exp(e, e.op("fmul", "f32", ax, _f(2.0)))
    big = e.op(
        "fsub", "f32", _f(1.0), e.op("fdiv", "f32", _f(2.0), e.op("fadd", "f32", t, _f(1.0)))
    )
    y = e.select(e.op("fcmp ult", "f32", ax, _f(0.625), out="i1"), small, big)
    return e.call("llvm.copysign", "f32", y, x)  # of a zero as well


def erf(e: Emit, x: Val) -> Val:
    t = e.call("llvm.fabs", "f32", x)
    s = e.op("fmul", "f32", x, x)
    r = fma(e, _f(-1.72853470e-5), t, _f(3.83197126e-4))
    u = fma(e, _f(-3.88396438e-3), t, _f(2.42546219e-2))
    r = fma(e, r, s, u)
    for c in (-1.06777877e-1, -6.34846687e-1, -1.28717512e-1):
        r = fma(e, r, t, _f(c))
    r = fma(e, r, t, e.op("fneg", "f32", t))
    big = e.op("fsub", "f32", _f(1.0), exp(e, r))
    big = e.select(e.op("fcmp ogt", "f32", t, _f(4.0), out="i1"), _f(1.0), big)
    big = e.call("llvm.copysign", "f32", big, x)
    p = poly(e, s, (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1,
                    1.28379166e-1))  # fmt: skip
    small = fma(e, p, x, x)
    return e.select(e.op("fcmp ogt", "f32", t, _f(0.927734375), out="i1"), big, small)


def _trig(e: Emit, x: Val, shift: int) -> Val:
    """sin (shift 0) or cos (shift 1): reduction by pi/2 in double, polynomials in single."""
    n = x.n if not x.uniform else 0
    wide = e.cast("fpext", x, "f64")
    q = e.op("fmul", "f64", wide, const("f64", 0.6366197723675814))
    q = e.call("llvm.rint", "f64", q)
    if e.features.has("fma"):
        limit, parts = 1e9, (1.5707963267948966, 6.123233995736766e-17)
    else:  # products exact for 20-bit multiples: the first part of pi/2 has 33 bits
        limit, parts = 2.0**20, (1.57079632673412561417, 6.07710050650619224932e-11)
    r = wide
    for part in parts:
        r = fma(e, q, const("f64", -part), r)
    near = e.op("fcmp olt", "f64", e.call("llvm.fabs", "f64", q), const("f64", limit), out="i1")
    k = e.cast("fptosi", e.select(near, q, const("f64", 0.0)), "i32")
    r = e.cast("fptrunc", e.select(near, r, const("f64", 0.0)), "f32")
    k = e.op("add", "i32", k, _i(shift))
    z = e.op("fmul", "f32", r, r)
    s = poly(e, z, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1))
    s = fma(e, e.op("fmul", "f32", s, z), r, r)
    c = poly(e, z, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2))
    c = fma(e, e.op("fmul", "f32", c, z), z, fma(e, z, _f(-0.5), _f(1.0)))
    odd = e.op("icmp ne", "i32", e.op("and", "i32", k, _i(1)), _i(0), out="i1")
    y = e.select(odd, c, s)
    flip = e.op("shl", "i32", e.op("and", "i32", k, _i(2)), _i(30))
    y = _float(e, e.op("xor", "i32", _bits(e, y), flip))
    if not shift:  # the sign of a zero was lost on the way
        y = e.select(e.op("fcmp oeq", "f32", x, _f(0.0), out="i1"), x, y)
    # Beyond the limit (and for infinities, NaN) the C library, behind a test per vector.
    name = "cosf" if shift else "sinf"
    return far_lanes(e, name, near, x, y, n)


def far_lanes(e: Emit, name: str, near: Val, x: Val, y: Val, n: int) -> Val:
    """y where ``near``, else the C library's function of x, in an outlined loop over lanes."""
    lanes = max(n, 1)
    helper = f"far.{name}.{lanes}"
    v, m = f"<{lanes} x float>", f"<{lanes} x i1>"
    if helper not in e.globals:
        e.declare(f"declare float @{name}(float)")
        e.globals[helper] = f"""
define internal {v} @{helper}({m} %near, {v} %x, {v} %y) noinline {{
entry:
  br label %loop
loop:
  %i = phi i32 [ 0, %entry ], [ %next, %join ]
  %acc = phi {v} [ %y, %entry ], [ %out, %join ]
  %ok = extractelement {m} %near, i32 %i
  br i1 %ok, label %join, label %far
far:
  %xi = extractelement {v} %x, i32 %i
  %yi = call float @{name}(float %xi)
  %set = insertelement {v} %acc, float %yi, i32 %i
  br label %join
join:
  %out = phi {v} [ %acc, %loop ], [ %set, %far ]
  %next = add i32 %i, 1
  %done = icmp eq i32 %next, {lanes}
  br i1 %done, label %end, label %loop
end:
  ret {v} %out
}}
define internal {v} @{helper}.test({m} %near, {v} %x, {v} %y) alwaysinline {{
  %all = call i1 @llvm.vector.reduce.and.v{lanes}i1({m} %near)
  br i1 %all, label %fast, label %slow
fast:
  ret {v} %y
slow:
  %z = call {v} @{helper}({m} %near, {v} %x, {v} %y)
  ret {v} %z
}}"""
        e.declare(f"declare i1 @llvm.vector.reduce.and.v{lanes}i1({m})")
    if n:
        args = f"{m} {e.operand(near, n)}, {v} {e.operand(x, n)}, {v} {e.operand(y, n)}"
        return e.wrap("f32", e.raw(f"call {v} @{helper}.test({args})"), n)
    parts = []
    for val, ty, vt in ((near, "i1", m), (x, "float", v), (y, "float", v)):
        one = e.raw(f"insertelement {vt} poison, {ty} {e.operand(val)}, i64 0")
        parts.append(f"{vt} {one}")
    out = e.raw(f"call {v} @{helper}.test({', '.join(parts)})")
    return e.wrap("f32", e.raw(f"extractelement {v} {out}, i64 0"), 0)


def sin(e: Emit, x: Val) -> Val:
    return _trig(e, x, 0)


def cos(e: Emit, x: Val) -> Val:
    return _trig(e, x, 1)


def rsqrt(e: Emit, x: Val) -> Val:
    return e.op("fdiv", x.ty, const(x.ty, 1.0), e.call("llvm.sqrt", x.ty, x))


FUNCTIONS = {"exp": exp, "exp2": exp2, "log": log, "log2": log2, "tanh": tanh, "erf": erf,
             "sin": sin, "cos": cos}  # fmt: skip
