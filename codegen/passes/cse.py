"""Common subexpressions: equal pure operations whose first occurrence dominates the second."""

from __future__ import annotations

from codegen.expr import Boolean, Expr, spelled
from codegen.ir import Function, Op, Region, Value
from codegen.ops import TABLE
from codegen.rewrite import replace_uses


def share_common(fn: Function) -> None:
    mapping: dict[Value, Value] = {}
    _visit(fn, fn.body, {}, mapping)
    replace_uses(fn.body, mapping)


def _visit(fn: Function, region: Region, seen: dict, mapping: dict[Value, Value]) -> None:
    seen = dict(seen)
    kept: list[Op] = []
    for op in region.ops:
        op.operands = [mapping.get(v, v) for v in op.operands]
        for inner in op.regions:
            _visit(fn, inner, {} if TABLE[op.kind].isolated else seen, mapping)
        key = _key(fn, op)
        if key is not None and key in seen:
            first = seen[key]
            mapping.update(zip(op.results, first.results, strict=True))
            if op.result.hint and not first.result.hint:
                first.result.hint = op.result.hint
            continue
        if key is not None:
            seen[key] = op
        kept.append(op)
    region.ops = kept


def _key(fn: Function, op: Op) -> object | None:
    if not TABLE[op.kind].pure or op.regions or not op.results:
        return None
    if op.result.symbol is not None:
        return None
    if op.kind in ("load", "gather_rows") and fn.param(op.attrs["param"]).role != "in":
        return None  # a store in between may have changed it
    # True == 1 == 1.0 in Python, so an attribute is told apart by its type as well.
    attrs = tuple(sorted((k, type(v).__name__, _spelled(v)) for k, v in op.attrs.items()))
    return (op.kind, tuple(map(id, op.operands)), attrs, op.result.type)


def _spelled(value: object) -> object:
    if isinstance(value, tuple | list):
        return tuple(map(_spelled, value))
    return spelled(value) if isinstance(value, Expr | Boolean) else repr(value)
