"""Conversions between float formats; the narrow ones are integers of their bits.

Rounding is to nearest, ties to even, unless a kernel asks for truncation. Results are the same on
every feature set: the hardware's own conversion is used only where it agrees on every input.
"""

from __future__ import annotations

from codegen.cpu.emit import Emit, Val, const

# format: (exponent bits, mantissa bits, bias, has infinity)
FORMATS = {"f16": (5, 10, 15, True), "bf16": (8, 7, 127, True),
           "f8E5M2": (5, 2, 15, True), "f8E4M3FN": (4, 3, 7, False)}  # fmt: skip


def _i(value: int) -> Val:
    return const("i32", value)


def widen(e: Emit, v: Val) -> Val:
    """Any narrow float -> f32, exactly."""
    if v.ty in ("f32", "f64"):
        return v
    if v.kind == "c":
        return const("f32", v.x) if isinstance(v.x, float) else _widen_bits(e, v)
    if v.ty == "f16" and e.features.has("f16c"):
        h = _half(e, v)
        n = v.n
        t = f"<{n} x half>" if n else "half"
        f = f"<{n} x float>" if n else "float"
        return e.wrap("f32", e.raw(f"fpext {t} {h} to {f}"), n)
    return _widen_bits(e, v)


def _half(e: Emit, v: Val) -> str:
    n = v.n
    src, dst = (f"<{n} x i16>", f"<{n} x half>") if n else ("i16", "half")
    return e.raw(f"bitcast {src} {e.operand(v, n)} to {dst}")


def _widen_bits(e: Emit, v: Val) -> Val:
    exp, man, bias, has_inf = FORMATS[v.ty]
    raw = Val("i16" if v.ty in ("f16", "bf16") else "i8", v.kind, v.x, n=v.n)
    if raw.kind == "c" and isinstance(raw.x, float):
        raw = const("f32", raw.x)
    bits = e.extend(raw, "i32", signed=False)
    total = 1 + exp + man
    if v.ty == "bf16":
        return e.cast("bitcast", e.op("shl", "i32", bits, _i(16)), "f32")
    sign = e.op("shl", "i32", e.op("and", "i32", bits, _i(1 << (total - 1))), _i(32 - total))
    mag = e.op("and", "i32", bits, _i((1 << (total - 1)) - 1))
    # The exponent is rebased by a multiplication, which also normalises subnormals.
    wide = e.cast("bitcast", e.op("shl", "i32", mag, _i(23 - man)), "f32")
    scaled = e.op("fmul", "f32", wide, const("f32", 2.0 ** (127 - bias)))
    out = e.cast("bitcast", scaled, "i32")
    top = ((1 << exp) - 1) << man
    if has_inf:
        special = e.op("or", "i32", e.op("shl", "i32", mag, _i(23 - man)), _i(0x7F800000))
        out = e.select(e.op("icmp uge", "i32", mag, _i(top)), special, out)
    else:
        out = e.select(e.op("icmp eq", "i32", mag, _i(top | ((1 << man) - 1))), _i(0x7FC00000), out)
    return e.cast("bitcast", e.op("or", "i32", out, sign), "f32")


def narrow(e: Emit, v: Val, ty: str, rounding: str = "rtne") -> Val:
    """f32 -> a narrow float."""
    if ty == "f32":
        return v
    if v.kind == "c" and ty in ("f16", "bf16") and rounding == "rtne":
        return Val(ty, "c", v.x)
    if ty == "f16" and e.features.has("f16c") and rounding == "rtne":
        n = v.n if not v.uniform else 0
        t, h, i = (
            (f"<{n} x float>", f"<{n} x half>", f"<{n} x i16>") if n else ("float", "half", "i16")
        )
        half = e.raw(f"fptrunc {t} {e.operand(v, n)} to {h}")
        return e.wrap(ty, e.raw(f"bitcast {h} {half} to {i}"), n)
    if ty == "bf16" and v.n == 16 and rounding == "rtne" and e.features.has("avx512bf16"):
        return e.wrap(ty, _native_bf16(e, v), 16)
    exp, man, bias, has_inf = FORMATS[ty]
    bits = (
        e.cast("bitcast", v, "i32")
        if v.kind != "c"
        else e.cast("bitcast", e.op("fadd", "f32", v, const("f32", -0.0)), "i32")
    )
    drop = 23 - man
    if ty == "bf16":
        nan = e.op("fcmp uno", "f32", v, v, out="i1")
        quiet = e.op("or", "i32", e.op("lshr", "i32", bits, _i(16)), _i(0x40))
        if rounding == "rtz":
            out = e.op("lshr", "i32", bits, _i(16))
        else:
            lsb = e.op("and", "i32", e.op("lshr", "i32", bits, _i(16)), _i(1))
            up = e.op("add", "i32", e.op("add", "i32", bits, _i(0x7FFF)), lsb)
            out = e.op("lshr", "i32", up, _i(16))
        out = e.cast("trunc", e.select(nan, quiet, out), "i16")
        return Val(ty, out.kind, out.x, n=out.n)
    total = 1 + exp + man
    mag = e.op("and", "i32", bits, _i(0x7FFFFFFF))
    sign = e.op("and", "i32", e.op("lshr", "i32", bits, _i(32 - total)), _i(1 << (total - 1)))
    # Normal results: rebase the exponent as an integer, round on the bits that fall away.
    rebased = e.op("sub", "i32", mag, _i((127 - bias) << 23))
    if rounding == "rtne":
        lsb = e.op("and", "i32", e.op("lshr", "i32", mag, _i(drop)), _i(1))
        rebased = e.op("add", "i32", e.op("add", "i32", rebased, _i((1 << (drop - 1)) - 1)), lsb)
    normal = e.op("lshr", "i32", rebased, _i(drop))
    # Subnormal results: adding a constant makes the adder round at the format's last place.
    least = 1 - bias - man  # exponent of the smallest subnormal
    magic = const("f32", 2.0 ** (least + 23))
    absv = e.cast("bitcast", mag, "f32")
    if rounding == "rtz":
        scaled = e.op("fmul", "f32", absv, const("f32", 2.0**-least))
        tiny = e.cast("fptosi", e.select(e.op("icmp slt", "i32", mag, _i((128 - bias) << 23)),
                                         scaled, const("f32", 0.0)), "i32")  # fmt: skip
    else:
        tiny = e.op(
            "sub",
            "i32",
            e.cast("bitcast", e.op("fadd", "f32", absv, magic), "i32"),
            e.cast("bitcast", e.op("fadd", "f32", magic, const("f32", -0.0)), "i32"),
        )
    out = e.select(e.op("icmp slt", "i32", mag, _i((128 - bias) << 23)), tiny, normal)
    top = ((1 << exp) - 1) << man
    if has_inf:
        limit = top if rounding == "rtne" else top - 1
        over = e.op("icmp sgt", "i32", out, _i(limit))
        out = e.select(over, _i(limit), out)
        out = e.select(e.op("icmp sge", "i32", mag, _i(0x7F800000)), _i(top), out)
        nan = _i(top | (1 << (man - 1)))
    else:  # no infinity: what is too large saturates, as the hardware conversions do
        limit = (top | ((1 << man) - 1)) - 1
        over = e.op("icmp sgt", "i32", out, _i(limit))
        big = e.op("icmp sgt", "i32", mag, _i((127 + bias + 2) << 23))
        out = e.select(over, _i(limit), e.select(big, _i(limit), out))
        nan = _i(top | ((1 << man) - 1))
    out = e.select(e.op("icmp sgt", "i32", mag, _i(0x7F800000)), nan, out)
    out = e.cast("trunc", e.op("or", "i32", out, sign), "i16" if total == 16 else "i8")
    return Val(ty, out.kind, out.x, n=out.n)


_NATIVE_BF16 = """
define internal <16 x i16> @narrow.bf16(<16 x float> %x) alwaysinline {
  %tiny = call <16 x i1> @llvm.x86.avx512.fpclass.ps.512(<16 x float> %x, i32 32)
  %word = bitcast <16 x i1> %tiny to i16
  %none = icmp eq i16 %word, 0
  %near = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %fast = bitcast <16 x bfloat> %near to <16 x i16>
  br i1 %none, label %done, label %subnormal, !prof !{!"branch_weights", i32 2000, i32 1}
subnormal:
  %bits = bitcast <16 x float> %x to <16 x i32>
  %high = lshr <16 x i32> %bits, splat (i32 16)
  %odd = and <16 x i32> %high, splat (i32 1)
  %half = add <16 x i32> %bits, splat (i32 32767)
  %up = add <16 x i32> %half, %odd
  %kept = lshr <16 x i32> %up, splat (i32 16)
  %slow = trunc <16 x i32> %kept to <16 x i16>
  %both = select <16 x i1> %tiny, <16 x i16> %slow, <16 x i16> %fast
  br label %done
done:
  %out = phi <16 x i16> [ %fast, %0 ], [ %both, %subnormal ]
  ret <16 x i16> %out
}"""


def _native_bf16(e: Emit, v: Val) -> str:
    """The host's conversion, and our own for subnormal numbers, which it takes to be zero."""
    e.declare("declare <16 x i1> @llvm.x86.avx512.fpclass.ps.512(<16 x float>, i32)")
    e.declare("declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)")
    e.globals["@narrow.bf16"] = _NATIVE_BF16
    return e.raw(f"call <16 x i16> @narrow.bf16(<16 x float> {e.operand(v, 16)})")


def host_bf16(e: Emit, parts: list[Val]) -> Val:
    """One or two vectors of f32 -> bf16 by the host's instruction, subnormal numbers as zero.

    For what goes into a product of the host's only: that takes them to be zero as well. Two at a
    time take as long as one.
    """
    if parts[0].n != 16:
        return narrow(e, parts[0], "bf16")
    n, t = 16 * len(parts), "<16 x float>"
    name = "cvtneps2bf16" if len(parts) == 1 else "cvtne2ps2bf16"
    args = [(t, e.operand(v, 16)) for v in reversed(parts)]
    out = e.intrinsic(f"llvm.x86.avx512bf16.{name}.512", f"<{n} x bfloat>", args)
    return e.wrap("bf16", e.raw(f"bitcast <{n} x bfloat> {out} to <{n} x i16>"), n)


def convert(e: Emit, v: Val, ty: str, rounding: str = "rtne") -> Val:
    """Any float -> any float. f64 goes to a narrow format by one rounding through odd f32."""
    if v.ty == ty:
        return v
    if v.kind == "c" and isinstance(v.x, float) and ty in ("f32", "f64"):
        return const(ty, v.x)
    if v.ty == "f64" and ty == "f32":
        return e.cast("fptrunc", v, "f32")
    if v.ty == "f64":
        return narrow(e, _round_to_odd(e, v), ty, rounding)
    wide = widen(e, v)
    if ty == "f64":
        return e.cast("fpext", wide, "f64") if wide.kind != "c" else const("f64", wide.x)
    return narrow(e, wide, ty, rounding)


def _round_to_odd(e: Emit, v: Val) -> Val:
    """f64 -> f32 such that a second rounding gives what one rounding would have given."""
    near = e.cast("fptrunc", v, "f32")
    back = e.cast("fpext", near, "f64")
    bits = e.cast("bitcast", near, "i32")
    inexact = e.op("fcmp one", "f64", back, v, out="i1")
    even = e.op("icmp eq", "i32", e.op("and", "i32", bits, _i(1)), _i(0), out="i1")
    positive = e.op("icmp sge", "i32", bits, _i(0), out="i1")
    above = e.op("fcmp ogt", "f64", back, v, out="i1")
    # Towards the exact value: its odd neighbour lies one step down or up in magnitude. That of an
    # infinity that fp64 did not have is the largest number.
    down = e.op("icmp eq", "i1", above, positive, out="i1")
    step = e.select(down, _i(-1), _i(1))
    fix = e.op("and", "i1", inexact, even)
    return e.cast("bitcast", e.op("add", "i32", bits, e.select(fix, step, _i(0))), "f32")
