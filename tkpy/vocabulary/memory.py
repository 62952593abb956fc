"""Loads and stores. Ragged edges need no care: what lies outside a tensor is dead."""

from __future__ import annotations

import math

import sympy

from codegen.expr import Expr, Max, Min
from codegen.ir import DType, Value, i32, i64
from codegen.ops.base import IRError, says
from codegen.rewrite import build
from tkpy.builder import At, current, what
from tkpy.vocabulary.create import naive
from tkpy.vocabulary.index import tensor
from tkpy.vocabulary.maps import cast
from tkpy.vocabulary.verb import verb

__all__ = [
    "gather_rows", "load", "prefetch", "scatter_add_rows", "scatter_rows", "store", "store_add",
    "store_max", "store_min",
]  # fmt: skip

POLICIES = ("normal", "evict_first", "evict_last")


def _place(t, coord, shape, axis, until, sides=None, policy=None, exact=False) -> dict:
    """Attributes of an access: see ``codegen.ops.memory``."""
    b = current()
    hint = _policy(policy)
    coord = coord if isinstance(coord, tuple) else (coord,)
    rank = len(t.shape)
    if len(coord) != rank:
        raise IRError(
            f"{t.name} has {rank} dimensions ({_dims(t)}) and {len(coord)} coordinates were given"
        )
    widths = [len(s) if isinstance(s, tuple) else 1 for s in shape]
    if sum(widths) > rank:
        raise IRError(f"{t.name} has {rank} dimensions, too few for a tile of rank {len(shape)}")
    which = _tile_dims(t, widths, axis)
    flat_sides = [s if isinstance(s, tuple) else (s,) for s in shape]
    found = [[b.side(s, exact or sides is not None) for s in group] for group in flat_sides]
    numbers = sides or tuple(tuple(side for side, _ in group) for group in found)
    # A named side that is not a multiple of 16 has an end of its own, inside the rounded tile.
    own = (
        {}
        if sides
        else {
            d: bounds[0]
            for dims, group in zip(which, found, strict=True)
            for d, (_, bounds) in zip(dims, group, strict=True)
            if bounds
        }
    )
    start: list[Expr] = []
    side_of = {
        d: n for dims, ns in zip(which, numbers, strict=True) for d, n in zip(dims, ns, strict=True)
    }
    for d, c in enumerate(coord):
        if isinstance(c, At):
            start.append(b.norm(c.element))
        else:
            e = b.index(c, f"coordinate {d} of {t.name}")
            if d in own and e != 0:
                raise IRError(
                    f"coordinate {d} of {t.name} counts tiles, and a tile of {own[d]} is not a "
                    "multiple of 16",
                    f"give it in elements: tk.at({e} * {own[d]})",
                )
            start.append(sympy.expand(e * side_of.get(d, 1)))
    limits = [
        start[dims[0]] + own[dims[0]] if len(dims) == 1 and dims[0] in own else None
        for dims in which
    ]
    if until is not None:
        if not which:
            raise IRError("until= bounds the first axis of a tile; a scalar has none")
        until = b.index(until, "until")
        limits[0] = until if limits[0] is None else Min(limits[0], until)
    return {
        "param": t.name,
        "start": tuple(start),
        "tile": tuple(which),
        "sides": tuple(numbers),
        "limit": tuple(limits),
        "checks": tuple((True, True) for _ in coord),
        **hint,
    } | _half(t, start)


def _half(t, start: list[Expr]) -> dict:
    """What an access to one part of a complex tensor says of the dimension that holds both."""
    if not t.param.pair:
        return {}
    checks = (*((True, True) for _ in start), (False, False))
    return {"start": (*start, sympy.Integer(t.part)), "checks": checks}


def _policy(policy: object) -> dict:
    word = policy.lower() if isinstance(policy, str) else policy
    if word is not None and word not in POLICIES:
        names = ", ".join(map(repr, POLICIES))
        raise IRError(f"cache policy {policy!r} is none of {names}")
    return {} if word in (None, "normal") else {"policy": word}


def _dims(t) -> str:
    return " ".join(str(d) for d in t.shape)


def _tile_dims(t, widths: list[int], axis) -> list[tuple[int, ...]]:
    """Which tensor dimensions each tile axis covers: the last ones, or rows from ``axis``."""
    rank = len(t.shape)
    if not widths:
        return []
    if axis is None:
        firsts = [rank - sum(widths[k:]) for k in range(len(widths))]
    else:
        firsts = list(axis) if isinstance(axis, tuple) else [axis, -1][: len(widths)]
        if len(firsts) != len(widths):
            raise IRError(
                f"axis={axis} names {len(firsts)} axes of {t.name}, and the tile has {len(widths)}",
                "axis=(rows, columns) for a tile, axis=d for a vector",
            )
        for f in firsts:
            if not isinstance(f, int) or isinstance(f, bool) or not -rank <= f < rank:
                raise IRError(f"{t.name} has {rank} dimensions ({_dims(t)}) and no axis {f!r}")
        if not isinstance(axis, tuple) and len(widths) == 2:  # columns end with the tensor
            firsts[1] = rank - widths[1]
        firsts = [f % rank for f in firsts]
    out = [tuple(range(f, f + w)) for f, w in zip(firsts, widths, strict=True)]
    if any(dims[-1] >= rank for dims in out):
        raise IRError(f"axis={axis} of {t.name}: too few dimensions follow it for that side")
    if len(out) == 2 and set(out[0]) & set(out[1]):
        raise IRError(f"axis {firsts[0]} of {t.name} is its column axis already")
    return out


@verb
def load(
    t,
    coord,
    shape=(),
    *,
    axis: int | tuple[int, int] | None = None,
    until=None,
    dtype: DType | None = None,
    policy: str | None = None,
    layout: str | None = None,
):
    """A tile of tensor ``t`` at ``coord``; a vector for one side, a scalar for none.

    Coordinates of the tile's own axes count tiles, of the others elements; ``tk.at(e)`` counts
    elements everywhere. The tile covers the last dimensions, or rows along ``axis`` and columns
    along the last, or ``axis=(rows, columns)``. A side may be a tuple: then several dimensions
    are flattened into one axis. ``until`` (in elements) ends the first axis before the tensor
    does. An integer scalar can be used in coordinates, ranges and masks.

    Hints that change no number: ``policy`` "evict_first" or "evict_last" tells a GPU's cache how
    soon the data may go (a CPU takes no notice); ``layout`` as in ``tk.zeros``, with "naive" for
    a vector of any length, whose coordinate counts vectors of that length.
    """
    b, t = current(), tensor(t)
    if t.param.role == "out":
        raise IRError(
            f"{t.name} is an output and holds nothing yet", "declare it tk.InOut to read it"
        )
    shape = shape if isinstance(shape, tuple) else (shape,)
    if len(shape) > 2:
        raise IRError(f"a tile has at most two sides, not {len(shape)}")
    exact = naive(layout, len(shape))
    op = b.emit("load", attrs=_place(t, coord, shape, axis, until, policy=policy, exact=exact))
    value = op.result
    if not shape and t.dtype in (i32, i64):
        low, high = _value_range(t, op.attrs["start"])
        name = b.targets[0] if len(b.targets) == 1 else t.name
        value.symbol = b.new_symbol(name, low, high)
        return value.symbol
    return value if dtype is None else cast.lower(value, dtype)


def _value_range(t, start) -> tuple[Expr | None, Expr | None]:
    """What the preconditions say of a number loaded from ``t``."""
    b = current()
    if t.param.role != "in":
        return None, None  # the kernel may have written something else
    low, high = b.conditions.get(t.name, (None, None))
    facts = b.fn.facts
    inside = all(
        facts.nonnegative(s) and facts.less_equal(s + 1, n)
        for s, n in zip(start, t.shape, strict=True)
    )
    if not inside:  # what lies outside the tensor reads as zero, whatever its elements are
        low = low if low is None else Min(low, 0)
        high = high if high is None else Max(high, 0)
    return low, high


def _store(kind: str, t, x, coord, axis, until, policy=None) -> None:
    b, t = current(), tensor(t)
    if not isinstance(x, Value):
        x = b.value(x, t.dtype)
    b.stored.add(t.name)
    sides = tuple(tuple(f.side for f in a.factors) for a in x.type.axes)
    shape = tuple(s if len(s) > 1 else s[0] for s in sides)
    if not t.dtype.is_float and x.type.dtype.is_float:
        raise IRError(
            f"{says(x, 'the value')} and {t.name} holds {t.dtype}",
            f"round it as you mean it: tk.cast(x, tk.{t.dtype})",
        )
    if x.type.rank == 0:
        b.emit(kind, [x], _place(t, coord, (), None, None, policy=policy))
        return
    b.emit(kind, [x], _place(t, coord, shape, axis, until, sides, policy))


@verb
def store(
    t,
    x,
    coord,
    *,
    axis: int | tuple[int, int] | None = None,
    until=None,
    policy: str | None = None,
):
    """Writes the live elements of ``x`` that lie inside ``t``, converted to its dtype.

    ``axis``, ``until`` and ``policy`` as for ``tk.load``.
    """
    _store("store", t, x, coord, axis, until, policy)


@verb
def store_add(t, x, coord, *, axis: int | tuple[int, int] | None = None, until=None):
    """Adds ``x`` to ``t`` atomically (f32, i32, i64).

    The order of additions is not fixed: sums of f32 may differ in their last bits from run to
    run, sums of integers do not.
    """
    _store("store_add", t, x, coord, axis, until)


def _store_extreme(kind: str, t, x, coord, axis, until) -> None:
    t = tensor(t)
    x = x if isinstance(x, Value) else current().value(x, t.dtype)
    if x.type.dtype.is_float:
        # What an atomic makes of a NaN depends on its sign: here it changes nothing.
        b, none = current(), math.inf if kind == "store_min" else -math.inf
        x = b.map("where", b.map("ne", x, x), none, x)
    _store(kind, t, x, coord, axis, until)


@verb
def store_min(t, x, coord, *, axis: int | tuple[int, int] | None = None, until=None):
    """Replaces elements of ``t`` by those of ``x`` that are smaller, atomically (f32, i32, i64).

    ``t`` is a tk.InOut. The result does not depend on the order. A NaN in ``x`` is ignored, one
    in ``t`` stays or goes.
    """
    _store_extreme("store_min", t, x, coord, axis, until)


@verb
def store_max(t, x, coord, *, axis: int | tuple[int, int] | None = None, until=None):
    """Replaces elements of ``t`` by those of ``x`` that are larger; see ``tk.store_min``."""
    _store_extreme("store_max", t, x, coord, axis, until)


@verb
def prefetch(t, coord, shape=(), *, axis: int | tuple[int, int] | None = None, policy=None):
    """Says that the tile at ``coord`` will be loaded soon. Checked like a load; does nothing.

    Triton has no such instruction on any target: on GPUs its own pipeline fetches the tiles of a
    loop ahead (``num_stages``), on CPUs the hardware does.
    """
    b, t = current(), tensor(t)
    shape = shape if isinstance(shape, tuple) else (shape,)
    if len(shape) > 2:
        raise IRError(f"a tile has at most two sides, not {len(shape)}")
    build(b.fn, "load", [], _place(t, coord, shape, axis, None, policy=policy))


def _rows_place(t, coord, cols, row_axis: int) -> dict:
    b = current()
    coord = tuple(0 if c is None else c for c in (coord if isinstance(coord, tuple) else (coord,)))
    if len(t.shape) < 2:
        raise IRError(f"{t.name} has one dimension; rows are chosen from two or more")
    attrs = _place(t, coord, (cols,), None, None)
    d = row_axis % len(t.shape)
    if d in attrs["tile"][0]:
        raise IRError(f"axis {row_axis} of {t.name} is its column axis")
    start = list(attrs["start"])
    start[d] = sympy.Integer(0)
    checks = list(attrs["checks"])
    checks[d] = (False, False)
    del b
    return {**attrs, "start": tuple(start), "checks": tuple(checks), "row_dim": d}


@verb
def gather_rows(t, rows, coord, cols, *, axis: int = -2):
    """The tile whose i-th row is row ``rows[i]`` of ``t`` along ``axis``, ``cols`` columns wide.

    ``coord`` has an entry a dimension; the one of ``axis`` is ignored (None reads well). A row
    outside the tensor reads as zeros.
    """
    b, t = current(), tensor(t)
    if not isinstance(rows, Value):
        raise IRError(f"rows are chosen by an integer vector, not {what(rows)}")
    return b.op("gather_rows", [rows], _rows_place(t, coord, cols, axis))


def _scatter(kind: str, t, x, rows, coord, axis: int) -> None:
    b, t = current(), tensor(t)
    if not isinstance(x, Value) or x.type.rank != 2:
        raise IRError(f"{what(x)} is not a tile")
    b.stored.add(t.name)
    cols = tuple(f.side for f in x.type.axes[1].factors)
    attrs = _rows_place(t, coord, cols if len(cols) > 1 else cols[0], axis)
    b.emit(kind, [x, rows], attrs)


@verb
def scatter_rows(t, x, rows, coord, *, axis: int = -2):
    """Writes the i-th row of ``x`` to row ``rows[i]`` of ``t``; rows must differ."""
    _scatter("scatter_rows", t, x, rows, coord, axis)


@verb
def scatter_add_rows(t, x, rows, coord, *, axis: int = -2):
    """Adds the i-th row of ``x`` to row ``rows[i]`` of ``t`` atomically (f32)."""
    _scatter("scatter_add_rows", t, x, rows, coord, axis)
