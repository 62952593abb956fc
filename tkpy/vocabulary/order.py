"""How often numbers occur, and the k largest of every row, over a loop of tiles."""

from __future__ import annotations

import sympy

from codegen.ir import Axis, DType, Value, axis, f32, i32, round_up
from codegen.ops.base import IRError, says
from codegen.ops.order import LEAST
from tkpy.builder import current, known_dtype, what
from tkpy.errors import NeedStatic
from tkpy.vocabulary.maps import cast
from tkpy.vocabulary.verb import verb

__all__ = ["histogram", "topk", "topk_merge", "topk_start"]

#: A row's k largest are found in k rounds; more of them call for a sort.
LARGEST_K = 128
#: What can be ordered. Other integers are cast to i32 first.
TYPES = ("f32", "bf16", "f16", "i32")


def _count(x: object, name: str) -> Axis:
    """An axis of exactly ``x`` elements, its side rounded up to 16."""
    b = current()
    e = b.index(x, name)
    if e.free_symbols:
        names = {s.name for s in e.free_symbols}
        if names <= {s.name for s in b.fn.dims}:
            raise NeedStatic(names)
        raise IRError(f"{name} must be known at compile time, and {e} is not")
    n = int(e)
    if n < 1:
        raise IRError(f"{name} is {n}, not a positive number")
    return axis(round_up(n), *([sympy.Integer(n)] if n % 16 else []))


@verb
def histogram(x, bins):
    """How many live elements of ``x`` are 0, 1, ... up to ``bins - 1``: an i32 vector.

    ``x``: a tile or vector of integers; what lies outside 0 .. bins - 1 is not counted. ``bins``
    is a number or a dimension of the signature.
    """
    b = current()
    if not isinstance(x, Value) or not x.type.rank or x.type.dtype.kind != "int":
        raise IRError(f"histogram takes a tile or vector of integers, not {what(x)}")
    if x.type.dtype.bits < 32:
        x = cast.lower(x, i32)
    return b.op("histogram", [x], {"bins": _count(bins, "the number of bins")})


def _slots(k) -> Axis:
    slots = _count(k, "k")
    if slots.side > LARGEST_K:
        raise IRError(f"k is {slots.factors[0].live}, more than {LARGEST_K}")
    return slots


def _dtype(dtype: DType) -> DType:
    if dtype.name not in TYPES:
        raise IRError(
            f"topk orders {', '.join(TYPES)}, not {dtype}",
            "tk.cast(x, tk.f32)" if dtype.is_float else "tk.cast(x, tk.i32)",
        )
    return dtype


def _keys(x: Value, positions: Value) -> Value:
    wide = x if x.type.dtype in (f32, i32) else cast.lower(x, f32)
    return current().op("rank_key", [wide, positions])


def _tile_keys(x: object, first) -> Value:
    b = current()
    if not isinstance(x, Value) or x.type.rank != 2:
        raise IRError(f"topk takes a tile, not {what(x)}")
    _dtype(x.type.dtype)
    attrs = {"dtype": i32, "axes": x.type.axes[1:], "start": b.index(first, "first")}
    return _keys(x, b.op("iota", attrs={**attrs, "orient": "row"}))


def _parts(keys: Value, dtype: DType) -> tuple[Value, Value]:
    b = current()
    wide = i32 if dtype == i32 else f32
    values = b.op("unkey", [keys], {"part": "value", "dtype": wide})
    positions = b.op("unkey", [keys], {"part": "position", "dtype": i32})
    return values if dtype == wide else cast.lower(values, dtype), positions


@verb
def topk(x, k, first=0):
    """The ``k`` largest of every row of the tile ``x``, in falling order, and where they stand.

    Of equal values the one with the smallest position comes first. NaN counts as largest, as in
    PyTorch; 0 and -0 are equal and come back as 0. A row with fewer than ``k`` live elements is
    filled up with -inf (i32: the least number) at position -1.

    Args:
        x: a tile of f32, bf16, f16 or i32.
        k: how many, up to 128; a number or a dimension of the signature.
        first: the position of the tile's first column, an integer below 2**31.

    Returns:
        Values of x's dtype and positions (i32), tiles of x's rows and ``k`` columns.
    """
    keys = _tile_keys(x, first)
    return _parts(current().op("largest", [keys], {"k": _slots(k)}), x.type.dtype)


@verb
def topk_start(rows, k, dtype: DType = f32):
    """Values and positions of ``tk.topk`` of nothing: what ``tk.topk_merge`` starts from."""
    b = current()
    known_dtype(dtype)
    axes = (b.axis(rows), _slots(k))
    least = LEAST["i32"] if _dtype(dtype) == i32 else LEAST["f32"]
    return (
        b.op("full", attrs={"value": least, "dtype": dtype, "axes": axes}),
        b.op("full", attrs={"value": -1, "dtype": i32, "axes": axes}),
    )


@verb
def topk_merge(values, positions, x, first):
    """The k largest of every row among those found so far and those of the tile ``x``.

    ``best, at = tk.topk_merge(best, at, x, j * cols)`` in a loop over tiles gives what ``tk.topk``
    of the whole row would, whatever the tiles and their order; rules and dtypes are its.

    Args:
        values, positions: from ``tk.topk_start``, ``tk.topk`` or this verb.
        x: a tile with as many rows. first: the position of its first column; no position may
            come twice.
    """
    for v, dtype in ((values, None), (positions, i32)):
        if not isinstance(v, Value) or v.type.rank != 2 or dtype not in (None, v.type.dtype):
            raise IRError(f"{what(v)} is no state of topk", "best, at = tk.topk_start(rows, k)")
    new = _tile_keys(x, first)
    if x.type.dtype != values.type.dtype:
        raise IRError(
            f"{says(values, 'the values')} and {says(x, 'the tile')}: element types differ",
            f"tk.topk_start(rows, k, dtype=tk.{x.type.dtype})",
        )
    keys = _keys(values, positions)
    attrs = {"k": values.type.axes[1]}
    return _parts(current().op("largest", [keys, new], attrs), values.type.dtype)
