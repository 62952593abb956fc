"""Neutral elements: what an operation reads from dead elements is made to not matter.

The table says which operand of which operation must hold what in its dead elements (zero along
the inner axis of a product, -inf under a maximum). Here that is made true at the least cost:
nothing where no element can be dead, a load's own fill where a load provides the value, and a
select otherwise.
"""

from __future__ import annotations

import math

import numpy as np

from codegen.ir import Axis, Function, Op, Region, Value
from codegen.ops import TABLE
from codegen.ops.memory import reads_zero
from codegen.rewrite import build

#: What is known of the dead elements of values: a number that all of them hold.
Fills = dict[Value, float]


def neutralise(fn: Function, trust: bool = True) -> None:
    """Insert what is needed; without ``trust`` nothing is assumed about dead elements."""
    _visit(fn, fn.body, {}, trust)


def _visit(fn: Function, region: Region, fills: Fills, trust: bool) -> None:
    out: list[Op] = []
    done: dict[tuple[Value, float, tuple[int, ...]], Value] = {}
    for op in region.ops:
        for need in TABLE[op.kind].neutral(op):
            value = op.operands[need.operand]
            if all(value.type.axes[a].full for a in need.axes):
                continue
            if trust and _holds(value, need.value, fills):
                continue
            key = (value, need.value, need.axes)
            if key not in done:
                attrs = {"value": need.value, "alive": False, "axes": need.axes}
                fill = build(fn, "fill_dead", [value], attrs, loc=op.loc)
                out.append(fill)
                done[key] = fill.result
            op.operands[need.operand] = done[key]
        if trust:
            _learn(op, fills)
        for inner in op.regions:
            _visit(fn, inner, fills, trust)
        out.append(op)
    region.ops = out


def _holds(value: Value, wanted: float, fills: Fills) -> bool:
    op = value.op
    if op is not None and op.kind == "load" and op.attrs.get("other") is None:
        # Nobody asked anything of this load's dead elements yet: let it fill them.
        if wanted != 0.0 and (reads_zero(op) or op.attrs.get("described")):
            return False
        op.attrs["other"] = wanted
        fills[value] = wanted
        return True
    return value in fills and _same(fills[value], wanted)


def _same(a: float, b: float) -> bool:
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def _learn(op: Op, fills: Fills) -> None:
    """What the dead elements of ``op``'s result are known to hold."""
    definition = TABLE[op.kind]
    if op.kind == "full" and isinstance(op.attrs["value"], float):
        fills[op.result] = op.attrs["value"]
    elif op.kind == "gather_rows":
        fills[op.result] = 0.0
    elif op.kind == "fill_dead" and not op.attrs["alive"]:
        if all(a.full or k in op.attrs["axes"] for k, a in enumerate(op.result.type.axes)):
            fills[op.result] = float(op.attrs["value"])
    elif op.kind in ("cast", "transpose") and op.operands[0] in fills:
        value = fills[op.operands[0]]
        dtype = op.result.type.dtype
        if value in ((0.0,) if dtype.is_fp8 else (0.0, math.inf, -math.inf)) and dtype.is_float:
            fills[op.result] = value
    elif definition.elementwise and definition.numpy is not None and op.kind != "where":
        _learn_map(op, definition.numpy, fills)


def _learn_map(op: Op, meaning, fills: Fills) -> None:
    result = op.result.type
    if not result.dtype.is_float or not result.axes:
        return
    numbers = []
    for v in op.operands:
        if v.op is not None and v.op.kind in ("const", "full"):
            value = v.op.attrs["value"]
        elif v in fills and v.type.rank == result.rank and _same_dead(v.type.axes, result.axes):
            value = fills[v]
        else:
            return
        numbers.append(float(value))
    with np.errstate(all="ignore"):
        fills[op.result] = float(meaning(*map(np.float32, numbers)))


def _same_dead(a: tuple[Axis, ...], b: tuple[Axis, ...]) -> bool:
    return a == b
