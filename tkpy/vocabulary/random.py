"""Random numbers that belong to elements, not to programs: the same for every tiling and grid."""

from __future__ import annotations

import sympy

from codegen.expr import Expr
from codegen.ir import Op, Value, i32, i64
from codegen.ops.base import IRError, says
from codegen.ops.memory import access_axes
from codegen.ops.random import WORDS
from tkpy.builder import current, what
from tkpy.vocabulary.index import tensor
from tkpy.vocabulary.maps import cast
from tkpy.vocabulary.memory import _place
from tkpy.vocabulary.verb import verb

__all__ = ["dropout", "offsets", "philox", "rand", "randint", "randn"]


@verb
def offsets(t, coord, shape, *, axis: int | tuple[int, int] | None = None):
    """The numbers (i64) of elements of ``t``, counted row by row from 0 whatever its strides.

    ``coord``, ``shape`` and ``axis`` as in ``tk.load``: element (r, c) of an (M, N) tensor has
    number ``r * N + c``. What ``tk.rand`` and its kin are keyed by.
    """
    b, t = current(), tensor(t)
    shape = shape if isinstance(shape, tuple) else (shape,)
    if not 1 <= len(shape) <= 2 or any(isinstance(s, tuple) for s in shape):
        raise IRError(f"offsets are a tile or a vector of plain sides, not of shape {shape!r}")
    place = _place(t, coord, shape, axis, None)
    axes = access_axes(b.fn, Op("load", attrs=place))
    orients = ("col", "row") if len(shape) == 2 else (None,)
    along = {dims[0]: (a, o) for dims, a, o in zip(place["tile"], axes, orients, strict=True)}
    number = b.op("const", attrs={"value": 0, "dtype": i64})
    for d, (start, size) in enumerate(zip(place["start"], t.shape, strict=True)):
        # Horner's rule in 64 bits: the number may be large where no offset in memory is.
        number = b.map("mul", number, _long(size)) if d else number
        if d in along:
            a, o = along[d]
            attrs = {"dtype": i32, "axes": (a,), "start": sympy.Integer(0), "orient": o}
            lanes = b.op("cast", [b.op("iota", attrs=attrs)], {"dtype": i64})
            number = b.map("add", b.map("add", number, _long(start)), lanes)
        else:
            number = b.map("add", number, _long(start))
    return number


def _long(e: Expr) -> Value:
    b = current()
    value = b.value(e, i64)
    return value if value.type.dtype == i64 else b.op("cast", [value], {"dtype": i64})


def _random(seed, offset, form: str) -> Value:
    b = current()
    if not isinstance(offset, Value):
        raise IRError(
            f"offsets are a tile or vector of integers, not {what(offset)}",
            "tk.offsets(x, coord, shape=...) numbers the elements of a tensor",
        )
    if isinstance(seed, float):
        raise IRError(f"a seed is an integer, not {seed}")
    if isinstance(seed, int) and not -(2**63) <= seed < 2**63:
        raise IRError(f"the seed {seed} has more than 64 bits")
    return b.op("random", [b.value(seed, i64), offset], {"form": form})


@verb
def philox(seed, offset):
    """The four words (u32) of Philox-4x32-10 for every offset.

    ``seed``: an integer, the key's 64 bits. ``offset``: a tile or vector of i32, u32, i64 or u64,
    the counter's lower 64 bits (an i32 is read as a u32); ``tk.offsets`` makes them.
    """
    return tuple(_random(seed, offset, form) for form in WORDS)


@verb
def rand(seed, offset):
    """Uniform f32 numbers in [0, 1), one an offset: those of ``triton.language.rand``.

    Keyed by (seed, offset) as ``tk.philox``; a different seed gives an independent stream.
    """
    return _random(seed, offset, "uniform")


@verb
def randn(seed, offset):
    """Normal f32 numbers (mean 0, deviation 1) by Box and Muller, as ``triton.language.randn``."""
    return _random(seed, offset, "normal")


@verb
def randint(seed, offset, low, high):
    """Integers (i32) from ``low`` up to but without ``high``, numbers known at compile time.

    Each is as probable as the others to within (high - low) / 2**32.
    """
    b = current()
    first, last = b.element(low, i32, "low"), b.element(high, i64, "high")
    if not first < last <= 2**31:
        raise IRError(f"randint from {first} to {last}: low < high <= 2**31")
    word = _random(seed, offset, WORDS[0])
    pick = cast.lower(b.map("mulhi", word, int(last - first)), i32)
    return b.map("add", pick, first)


@verb
def dropout(x, p, seed, offset):
    """``x / (1 - p)`` where a uniform number is at least ``p``, else 0 (also where x is NaN).

    ``p``: the probability of a zero, a number in [0, 1] or an f32 scalar. The numbers are
    ``tk.rand(seed, offset)``: a backward pass finds the same zeros from the same two.
    """
    b = current()
    if not isinstance(x, Value) or not x.type.dtype.is_float:
        raise IRError(f"dropout takes a tile of floats, not {what(x)}")
    if isinstance(offset, Value) and offset.type.shape != x.type.shape:
        raise IRError(f"{says(x, 'the tile')} and {says(offset, 'the offset')}: shapes differ")
    if isinstance(p, int | float):
        if not 0 <= p <= 1:
            raise IRError(f"dropout with probability {p}: it is a number from 0 to 1")
        scale: object = 1 / (1 - p) if p < 1 else 0.0
        p = float(p)
    else:
        scale = b.map("div", 1.0, b.map("sub", 1.0, p))
    keep = b.map("ge", _random(seed, offset, "uniform"), p)
    return b.map("where", keep, b.map("mul", x, scale), 0.0)
