"""Masks. Rows and columns count from global offsets, so one mask serves every tile of a grid."""

from __future__ import annotations

import math

import sympy

from codegen.ir import Value
from codegen.ops.base import IRError
from codegen.ops.mask import COL, ROW
from tkpy.builder import current, what
from tkpy.vocabulary.verb import verb

__all__ = [
    "causal", "left_fill", "lower_fill", "make_causal", "make_causal_t", "right_fill", "tril",
    "triu", "upper_fill", "upper_right_fill",
]  # fmt: skip


def _keep(x, pred, value):
    b = current()
    if not isinstance(x, Value):
        raise IRError(f"{what(x)} is not a tile")
    number = b.element(value, x.type.dtype, "fill", f"say which {x.type.dtype}: fill=0")
    return b.op("keep", [x], {"pred": b.norm(pred), "value": number})


def _at(row, col):
    b = current()
    return ROW + b.index(row), COL + b.index(col)


@verb
def causal(x, row=0, col=0, fill=-math.inf):
    """Keeps where column <= row, counted from the global offsets ``row``, ``col``; else ``fill``.

    For scores of queries ``row..`` and keys ``col..``; the default fill is that of a softmax.
    """
    r, c = _at(row, col)
    return _keep(x, sympy.Le(c, r), fill)


@verb
def tril(x, diagonal=0, row=0, col=0, fill=0.0):
    """Keeps where column <= row + diagonal (global offsets ``row``, ``col``)."""
    r, c = _at(row, col)
    return _keep(x, sympy.Le(c, r + current().index(diagonal)), fill)


@verb
def triu(x, diagonal=0, row=0, col=0, fill=0.0):
    """Keeps where column >= row + diagonal (global offsets ``row``, ``col``)."""
    r, c = _at(row, col)
    return _keep(x, sympy.Ge(c, r + current().index(diagonal)), fill)


@verb
def make_causal(x, fill=0.0):
    """Keeps where column <= row within the tile (ThunderKittens' make_causal)."""
    return _keep(x, sympy.Le(COL, ROW), fill)


@verb
def make_causal_t(x, fill=0.0):
    """Keeps where column >= row within the tile."""
    return _keep(x, sympy.Ge(COL, ROW), fill)


@verb
def right_fill(x, col_idx, fill=0.0, *, col=0):
    """Keeps where column < col_idx (columns count from ``col``)."""
    return _keep(x, sympy.Lt(_at(0, col)[1], current().index(col_idx)), fill)


@verb
def left_fill(x, col_idx, fill=0.0, *, col=0):
    """Keeps where column >= col_idx."""
    return _keep(x, sympy.Ge(_at(0, col)[1], current().index(col_idx)), fill)


@verb
def upper_fill(x, row_idx, fill=0.0, *, row=0):
    """Keeps where row >= row_idx."""
    return _keep(x, sympy.Ge(_at(row, 0)[0], current().index(row_idx)), fill)


@verb
def lower_fill(x, row_idx, fill=0.0, *, row=0):
    """Keeps where row < row_idx."""
    return _keep(x, sympy.Lt(_at(row, 0)[0], current().index(row_idx)), fill)


@verb
def upper_right_fill(x, row_idx, col_idx, fill=0.0, *, row=0, col=0):
    """Fills where row < row_idx and column >= col_idx."""
    b = current()
    r, c = _at(row, col)
    pred = sympy.Or(sympy.Ge(r, b.index(row_idx)), sympy.Lt(c, b.index(col_idx)))
    return _keep(x, pred, fill)
