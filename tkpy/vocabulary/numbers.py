"""Rounding, clamping, quantising, high products, and the question whether a NaN is there."""

from __future__ import annotations

from codegen.ir import Value, f32, i32
from codegen.ops.base import IRError, says
from tkpy.builder import current, what
from tkpy.vocabulary.maps import cast
from tkpy.vocabulary.verb import Verb, verb

__all__ = ["ceil", "clamp", "fake_quantize", "floor", "hasnan", "mulhi", "round", "trunc"]


def _unary(name: str, doc: str) -> Verb:
    def lower(x):
        return current().map(name, x)

    lower.__name__, lower.__doc__ = name, doc
    return verb(lower)


floor = _unary("floor", "The largest integer not above x, as a float. NaN stays NaN.")
ceil = _unary("ceil", "The smallest integer not below x, as a float.")
trunc = _unary("trunc", "x without its fraction, as a float.")
round = _unary(
    "round",
    "The integer nearest to x, as a float; of two the even one (PyTorch's torch.round). "
    "Zeros keep their sign.",
)


@verb
def mulhi(a, b):
    """The high half of the product of two integers: ``a * b >> width`` in exact arithmetic.

    ``a``, ``b``: tiles, vectors or numbers of one of i32, u32, i64, u64. The low half is ``a * b``.
    """
    return current().map("mulhi", a, b)


@verb
def clamp(x, low=None, high=None):
    """``x`` within ``low`` .. ``high`` (numbers, scalars, vectors or tiles), as torch.clamp.

    Floats and integers. NaN stays NaN, and where ``low > high`` the result is ``high``.
    """
    b = current()
    if low is None and high is None:
        raise IRError("tk.clamp with no bound", "tk.clamp(x, low, high); either may be None")
    if low is not None:
        x = b.map("where", b.map("lt", x, low), low, x)
    if high is not None:
        x = b.map("where", b.map("gt", x, high), high, x)
    return x


@verb
def fake_quantize(x, scale, zero_point, qmin: int, qmax: int):
    """``x`` rounded to the grid of a quantised type: torch.fake_quantize_per_tensor_affine.

    ``(clamp(round(x * (1 / scale)) + zero_point, qmin, qmax) - zero_point) * scale`` in fp32,
    rounding half to even, the reciprocal rounded once: the same bits as PyTorch's for a finite x
    with ``|x / scale| < 2**31``. Beyond, and for infinities, where PyTorch's conversion to an
    integer is undefined, x is clamped; NaN stays NaN.

    Args:
        x: a tile or vector of floats; 16-bit ones are computed in fp32 and rounded once.
        scale, zero_point: numbers, scalars or vectors (per row with tk.col_vec, per column
            otherwise); a zero point may be of integers.
        qmin, qmax: the ends of the quantised type, such as -128 and 127; numbers known when the
            kernel compiles.
    """
    b = current()
    if not isinstance(x, Value) or not x.type.dtype.is_float:
        raise IRError(f"fake_quantize takes a tile of floats, not {what(x)}")
    low, high = (b.element(q, i32, name) for q, name in ((qmin, "qmin"), (qmax, "qmax")))
    if low >= high:
        raise IRError(f"fake_quantize from {low} to {high}: qmin must be below qmax")
    fixed = scale if isinstance(scale, int | float) else None
    if fixed is not None and not 0 < fixed < float("inf"):
        raise IRError(f"fake_quantize with scale {fixed}: it must be positive and finite")
    dtype = x.type.dtype
    wide = x if dtype == f32 else cast.lower(x, f32)
    scale = _single(scale)
    zero_point = _single(zero_point)
    steps = b.map("mul", wide, b.map("div_rn", 1.0, scale))
    level = b.map("add", b.map("round", steps), zero_point)
    level = clamp.lower(level, float(low), float(high))
    out = b.map("mul", b.map("sub", level, zero_point), scale)
    return out if dtype == f32 else cast.lower(out, dtype)


def _single(x) -> object:
    """A number, or a scalar or vector in fp32."""
    b = current()
    if isinstance(x, int | float):
        return float(x)
    v = b.value(x)
    return v if v.type.dtype == f32 else b.op("cast", [v], {"dtype": f32})


@verb
def hasnan(x):
    """True (a bool scalar) if a live element of the tile or vector ``x`` is NaN."""
    b = current()
    if not isinstance(x, Value) or not x.type.rank:
        raise IRError(f"hasnan takes a tile or a vector, not {what(x)}")
    if not x.type.dtype.is_float:
        raise IRError(f"{says(x, 'the operand')}: only floats have a NaN")
    found = b.op("cast", [b.map("ne", x, x)], {"dtype": i32})
    while found.type.rank:
        found = b.op("reduce", [found], {"op": "max", "axis": found.type.rank - 1})
    return b.map("gt", found, 0)
