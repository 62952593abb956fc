"""Tiles and vectors from nothing."""

from __future__ import annotations

import math

from codegen.expr import Expr, as_int
from codegen.ir import Axis, DType, Value, f32, i32
from codegen.ops.base import IRError
from tkpy.builder import current, known_dtype
from tkpy.vocabulary.verb import verb

__all__ = ["full", "iota", "neg_infty", "one", "ones", "pos_infty", "zero", "zeros"]


def _axes(shape: tuple, layout: str | None) -> tuple[Axis, ...]:
    if len(shape) == 1 and isinstance(shape[0], list):
        shape = tuple(shape[0])
    if not 1 <= len(shape) <= 2:
        raise IRError(f"a tile has two sides and a vector one, not {len(shape)}")
    exact = naive(layout, len(shape))
    return tuple(current().axis(s, exact) for s in shape)


LAYOUTS = {2: ("row", "col"), 1: ("align", "ortho", "naive")}


def naive(layout: str | None, rank: int) -> bool:
    """Whether a layout annotation is that of a vector of any length; refuses unknown ones."""
    if layout is None:
        return False
    if layout not in LAYOUTS.get(rank, ()):
        known = " or ".join(repr(n) for n in LAYOUTS.get(rank, ())) or "none"
        kind = {2: "tile", 1: "vector"}.get(rank, "scalar")
        raise IRError(f"layout {layout!r}: a {kind}'s layout is {known}", "leave it out")
    return layout == "naive"


def _filled(shape: tuple, value: object, dtype: DType, layout: str | None = None) -> Value:
    axes, b = _axes(shape, layout), current()
    known_dtype(dtype)
    if isinstance(value, Expr) and as_int(b.norm(value)) is None:
        value = b.value(value)
    if isinstance(value, Value):
        return b.op("splat", [value], {"dtype": dtype, "axes": axes})
    number = b.element(value, dtype, "the value of every element")
    return b.op("full", attrs={"value": number, "dtype": dtype, "axes": axes})


@verb
def zeros(*shape, dtype: DType = f32, layout: str | None = None):
    """A tile (two sides) or vector (one side) of zeros.

    ``layout`` is ThunderKittens' annotation: "row" or "col" of a tile, "align", "ortho" or
    "naive" of a vector. The compiler lays tiles out itself; "naive" allows a vector of any length.
    """
    return _filled(shape, 0, dtype, layout)


@verb
def ones(*shape, dtype: DType = f32, layout: str | None = None):
    """A tile or vector of ones."""
    return _filled(shape, 1, dtype, layout)


@verb
def pos_infty(*shape, dtype: DType = f32, layout: str | None = None):
    """A tile or vector of +inf."""
    return _filled(shape, math.inf, dtype, layout)


@verb
def neg_infty(*shape, dtype: DType = f32, layout: str | None = None):
    """A tile or vector of -inf; the start of a running maximum."""
    return _filled(shape, -math.inf, dtype, layout)


@verb
def full(shape, value, dtype: DType = f32):
    """A tile or vector with ``value`` (a number or a scalar) everywhere."""
    return _filled(shape if isinstance(shape, tuple) else (shape,), value, dtype)


@verb
def iota(side, start=0, *, orient: str | None = None):
    """The i32 vector ``start, start + 1, ...``; ``orient`` "col" counts rows, "row" columns."""
    b = current()
    attrs = {"dtype": i32, "axes": (b.axis(side),), "start": b.index(start), "orient": orient}
    return b.op("iota", attrs=attrs)


#: ThunderKittens' names.
zero, one = zeros, ones
