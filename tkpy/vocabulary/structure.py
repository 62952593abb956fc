"""Shape: transpose, subtile, concat, row-wise outer products, and what dead elements hold."""

from __future__ import annotations

from codegen.expr import as_int
from codegen.ir import Value
from codegen.ops.base import IRError, says
from tkpy.builder import At, current, what
from tkpy.vocabulary.create import naive
from tkpy.vocabulary.verb import verb

__all__ = ["concat", "fill_dead", "row_outer", "row_pairs", "subtile", "swap_layout", "transpose"]


@verb
def transpose(x):
    """The CxR tile of an RxC one."""
    return current().op("transpose", [x])


@verb
def swap_layout(x, layout: str | None = None):
    """``x`` itself: layouts are the compiler's. ``layout`` is checked as in ``tk.zeros``."""
    if not isinstance(x, Value) or not x.type.rank:
        raise IRError(f"{what(x)} has no layout")
    naive(layout, x.type.rank)
    return x


@verb
def subtile(x, shape, coord):
    """The part of ``x`` of ``shape`` at ``coord``, in tiles of that shape (``tk.at`` for elements).

    ``tk.subtile(x, (16, 64), (2, 0))`` is rows 32 to 47 and columns 0 to 63.
    """
    b = current()
    if not isinstance(x, Value) or x.type.rank == 0:
        raise IRError(f"{x!r} has no subtiles")
    shape = shape if isinstance(shape, tuple) else (shape,)
    coord = coord if isinstance(coord, tuple) else (coord,)
    if len(shape) != x.type.rank or len(coord) != x.type.rank:
        raise IRError(f"{says(x, 'the operand')}: give {x.type.rank} sides and coordinates")
    for axis, (s, c) in enumerate(zip(shape, coord, strict=True)):
        side, _ = b.side(s)
        start = b.index(c.element if isinstance(c, At) else b.index(c) * side)
        x = part(x, axis, start, side)
    return x


def part(x: Value, axis: int, start, side: int) -> Value:
    if as_int(start) == 0 and side == x.type.shape[axis]:
        return x
    return current().op("subtile", [x], {"axis": axis, "start": start, "side": side})


@verb
def concat(a, b, axis: int = -1):
    """``a`` and then ``b`` along ``axis``: their live elements, without a gap."""
    if not isinstance(a, Value) or not isinstance(b, Value):
        raise IRError("concat takes two tiles or two vectors")
    if not -a.type.rank <= axis < a.type.rank:
        raise IRError(f"{says(a, 'the first')} has no axis {axis}")
    return current().op("concat", [a, b], {"axis": axis % a.type.rank})


@verb
def row_outer(a, b):
    """Row by row the outer product, flattened: RxA and RxB give Rx(A*B), a's index slow."""
    return current().op("row_outer", [a, b])


@verb
def row_pairs(x):
    """The products of every two columns, each pair once: of F columns x[i] x[(i + d) mod F].

    R x F gives R x (F // 2 * F), d from 1 to F // 2 slow. If F is even the last half of d = F / 2
    would come a second time and is zero. ``mma_ABt(row_pairs(a), row_pairs(b))`` is half of what
    the square of ``mma_ABt(a, b)`` has beyond that of ``a * a`` and ``b * b``: of all F^2 products
    in ``row_outer`` this is what symmetry leaves.

    Raises: CompileError unless ``x`` is a tile of floats of at least 16 bits, and F is known.
    """
    if not isinstance(x, Value):
        raise IRError(f"{what(x)} is no tile")
    return current().op("row_pairs", [x])


@verb
def fill_dead(x, value, *, axis: int | None = None):
    """``x`` with ``value`` in its dead elements, which thereby become live.

    With ``axis`` only those are filled that lie past the live extent of that axis (0: rows).
    """
    if not isinstance(x, Value) or not x.type.rank:
        raise IRError(f"{what(x)} has no dead elements")
    number = current().element(value, x.type.dtype, "what dead elements count as")
    axes = tuple(range(x.type.rank))
    if axis is not None:
        if axis not in (*axes, *(a - x.type.rank for a in axes)):
            raise IRError(f"{what(x)} has no axis {axis}")
        axes = (axis % x.type.rank,)
    attrs = {"value": number, "alive": True, "axes": axes}
    return current().op("fill_dead", [x], attrs)
