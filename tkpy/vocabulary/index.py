"""Where things lie: the grid, ranges of tiles, dimensions, coordinates in elements."""

from __future__ import annotations

import sympy

from codegen.expr import FloorDiv, Max, Min, as_int
from codegen.expr import cdiv as _cdiv
from codegen.ops.base import IRError
from tkpy.builder import At, TensorRef, TileRange, current
from tkpy.errors import NeedStatic
from tkpy.vocabulary.verb import verb

__all__ = ["at", "causal_limit", "cdiv", "dim", "grid", "range", "static"]


@verb
def grid(*counts):
    """Declares one to three grid dimensions and returns this program's position in each.

    ``b, h, i = tk.grid("B", "H", tk.cdiv("N", 64))``; counts are expressions of the signature's
    dimensions and constants.
    """
    b = current()
    if b.fn.grid:
        raise IRError("a kernel has one tk.grid")
    if not 1 <= len(counts) <= 3:
        raise IRError(f"a grid has one to three dimensions, not {len(counts)}")
    if len(b.regions) != 1:
        raise IRError("tk.grid stands at the top of the kernel, outside loops and branches")
    names = b.targets if len(b.targets) == len(counts) else []
    out = []
    allowed = set(b.fn.dims) | {
        sympy.Symbol(p.name, integer=True)
        for p in b.fn.params
        if p.role == "scalar" and not p.dtype.is_float
    }
    for k, count in enumerate(counts):
        e = b.index(count, "a grid size")
        if e.free_symbols - allowed:
            raise IRError(f"a grid size depends on dimensions only, and {e} does not")
        s = b.new_symbol(names[k] if names else f"pid_{k}", sympy.Integer(0), e - 1)
        b.fn.grid.append((s, e))
        out.append(s)
    return out[0] if len(out) == 1 else tuple(out)


@verb
def cdiv(a, b):
    """ceil(a / b): how many tiles of ``b`` cover ``a``; names of dimensions are allowed."""
    c = current()
    divisor = c.index(b)
    if (as_int(divisor) or 1) <= 0 or as_int(divisor) == 0:
        raise IRError(f"tk.cdiv by {divisor}: the divisor must be positive")
    return _cdiv(c.index(a), divisor)


@verb
def dim(name: str):
    """The size of a named dimension, or of an expression of such names, as a run-time integer."""
    return current().index(name)


@verb
def static(name: str):
    """The size of a named dimension as a compile-time integer; each size compiles anew."""
    e = current().index(name)
    if e.free_symbols:
        raise NeedStatic({s.name for s in e.free_symbols})
    return int(e)


@verb
def at(element):
    """A coordinate in elements: ``tk.load(x, (b, tk.at(start), 0), ...)``."""
    return At(current().index(element))


@verb
def range(start, stop=None, *, until=None):
    """Tile indices from ``start`` (0) to ``stop``, or to ``until`` if that is smaller.

    The loop stays a loop in the kernel. Python's own ``range`` over constants is unrolled.
    """
    b = current()
    if stop is None:
        start, stop = 0, start
    start, stop = b.index(start), b.index(stop)
    if until is not None:
        stop = Min(stop, b.index(until))
    return TileRange(start, stop)


@verb
def causal_limit(i, rows, cols, offset=0):
    """How many tiles of ``cols`` keys the ``i``-th tile of ``rows`` queries can see.

    ``offset`` is the position of the first query among the keys, 0 if both start together.
    """
    b = current()
    last = (b.index(i) + 1) * b.index(rows) + b.index(offset)
    if as_int(b.index(offset)) is None:
        last = Max(last, 0)
    return FloorDiv(last + b.index(cols) - 1, sympy.sympify(b.index(cols)))


def tensor(x: object) -> TensorRef:
    if not isinstance(x, TensorRef):
        raise IRError(f"{x!r} is not a tensor of the signature")
    return x
