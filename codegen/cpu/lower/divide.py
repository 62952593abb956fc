"""Vectors divided by one number (a row by its sum): the reciprocal once, then multiplications.

The divider takes as long over 16 lanes as some thirty multiplications. With r = 1 / b correctly
rounded, q0 = a r and q1 = q0 + r (a - b q0), q1 is one of the two floats next to a / b; then
a - b q1 is exact, and q1 + r (a - b q1) is a / b correctly rounded (Markstein, "Computation of
elementary functions on the IBM RISC System/6000 processor", 1990). Where a remainder could be
subnormal, something overflow, or an operand is zero, infinite or NaN, the vector is divided as
ever: that is seen from b and q0.
"""

from __future__ import annotations

from codegen.cpu.emit import Emit, Val, const, ll
from codegen.cpu.lower.tensor import Map, Reindex, Tensor

_LEAST, _MOST = 2.0**-50, 2.0**100
_BITS_LEAST, _BITS_MOST = (127 - 50) << 23, (127 + 100) << 23  # of the same


def applies(features, a: Tensor, b: Tensor) -> bool:
    """fp32, a divisor that is broadcast and no constant, and vectors that are slow to divide."""
    if features.width < 16 or not features.has("fma") or a.type.elem != "f32":
        return False
    return b.constant() is None and any(
        n > 1 and b.stride(axis) == 0 for axis, n in enumerate(b.shape)
    )


def reciprocal(b: Tensor) -> Tensor:
    """1 / b, or NaN where b is out of range; evaluated where b is, outside of the lanes' loop."""
    if isinstance(b, Reindex):
        return Reindex(b.type, reciprocal(b.src), b.index, b.strides)
    return Map(b.type, "reciprocal", _reciprocal, [b], True)


def _reciprocal(e: Emit, b: Val) -> Val:
    size = e.call("llvm.fabs", "f32", b)
    inside = e.op("and", "i1", e.op("fcmp oge", "f32", size, const("f32", _LEAST), out="i1"),
                  e.op("fcmp ole", "f32", size, const("f32", _MOST), out="i1"))  # fmt: skip
    r = e.op("fdiv", "f32", const("f32", 1.0), b)
    return e.select(inside, r, const("f32", float("nan")))


def divide(e: Emit, a: Val, b: Val, r: Val) -> Val:
    """a / b for lanes of ``a`` and one ``b``; anything else by the instruction."""
    n = a.n
    if a.uniform or not b.uniform or n < 16:
        return e.op("fdiv", "f32", a, b)
    name = f"@divide.{n}"
    e.globals[name] = _text(e, name, n)
    t = ll("f32", n)
    return e.wrap("f32", e.raw(f"call {t} {name}({t} {e.operand(a, n)}, {t} {e.operand(b, n)}, "
                               f"{t} {e.operand(r, n)})"), n)  # fmt: skip


def _text(e: Emit, name: str, n: int) -> str:
    t, i = ll("f32", n), ll("i32", n)
    fma = e.declare(f"declare {t} @llvm.fma.v{n}f32({t}, {t}, {t})")
    return f"""define internal {t} {name}({t} %a, {t} %b, {t} %r) alwaysinline #0 {{
  %q0 = fmul {t} %a, %r
  %n0 = fneg {t} %q0
  %e0 = call {t} {fma}({t} %n0, {t} %b, {t} %a)
  %q1 = call {t} {fma}({t} %e0, {t} %r, {t} %q0)
  %n1 = fneg {t} %q1
  %e1 = call {t} {fma}({t} %n1, {t} %b, {t} %a)
  %q2 = call {t} {fma}({t} %e1, {t} %r, {t} %q1)
  %bits = bitcast {t} %q0 to {i}
  %size = and {i} %bits, splat (i32 2147483647)
  %above = sub {i} %size, splat (i32 {_BITS_LEAST})
  %inside = icmp ult {i} %above, splat (i32 {_BITS_MOST - _BITS_LEAST})
  %lanes = bitcast <{n} x i1> %inside to i{n}
  %all = icmp eq i{n} %lanes, -1
  br i1 %all, label %done, label %slow
slow:
  %d = fdiv {t} %a, %b
  br label %done
done:
  %q = phi {t} [ %q2, %0 ], [ %d, %slow ]
  ret {t} %q
}}"""
