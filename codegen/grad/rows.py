"""Adding rows into a table where an index vector tells their places, in a fixed order.

One program adds a tile of rows at a time. Rows of a tile that go to the same place are added up
first, by a product with the matrix that tells which are alike, and the first of them is written: no
two writes meet, and the order of every sum is fixed.
"""

from __future__ import annotations

import sympy

from codegen.expr import Expr, FloorDiv, Max
from codegen.grad.emit import Emit
from codegen.ir import Axis, Function, Op, Type, Value, i32, i64


def add_rows(emit: Emit, scatter: Op) -> None:
    """``scatter``, an addition of rows, becomes a write of sums; what makes them goes to ``emit``.

    Attributes of ``scatter`` are kept; it has the operands (tile, rows).
    """
    tile, rows = scatter.operands
    if rows.type.dtype.name.startswith("u"):  # of these every number may be a row's
        rows = emit.value("cast", rows, dtype=i64)
    axis = rows.type.axes[0]
    alike = _pairs(emit, "eq", rows, axis)
    count = emit.value("iota", dtype=i32, axes=(axis,), start=sympy.Integer(0), orient=None)
    earlier = emit.map("where", emit.map("and", alike, _pairs(emit, "gt", count, axis)), 1.0, 0.0)
    first = emit.map("eq", emit.value("reduce", earlier, op="max", axis=1), 0.0)
    alike = emit.map("where", alike, 1.0, 0.0)
    total = emit.value("mma", alike, tile, ta=False, tb=False, precision="ieee")
    there = emit.op("gather_rows", [rows], dict(scatter.attrs)).result
    total = emit.map("add", there, emit.shaped(total, there.type))
    places = emit.value("where", _like(emit, first, rows), rows, _nowhere(emit, rows))
    scatter.kind, scatter.operands = "scatter_rows", [total, places]


def copies(fn: Function, scatter: Op, programs: Expr) -> Expr:
    """How many tables hold as many rows as ``programs`` programs add: parts are to be no larger."""
    table = fn.param(scatter.attrs["param"]).dims[scatter.attrs["row_dim"]]
    return FloorDiv(programs * scatter.operands[1].type.axes[0].side, Max(table, 1))


def _pairs(emit: Emit, kind: str, v: Value, axis: Axis) -> Value:
    """``v[i] kind v[j]`` for every row i and column j."""
    square = Type(v.type.dtype, (axis, axis))
    down, across = (
        emit.spread(emit.value("retype", v, axes=(axis,), orient=orient), square)
        for orient in ("col", "row")
    )
    return emit.value(kind, down, across)


def _like(emit: Emit, v: Value, other: Value) -> Value:
    return emit.value("retype", v, axes=other.type.axes, orient=other.type.orient)


def _nowhere(emit: Emit, rows: Value) -> Value:
    """An index that no table has, for every row."""
    return emit.full(rows.type, -1)


__all__ = ["add_rows", "copies"]
