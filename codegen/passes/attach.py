"""``detach`` says something to whoever differentiates a kernel; to a machine it says nothing."""

from __future__ import annotations

from codegen.ir import Function, Region, Value
from codegen.rewrite import replace_uses


def drop_detached(fn: Function) -> None:
    mapping: dict[Value, Value] = {}
    _visit(fn.body, mapping)
    replace_uses(fn.body, mapping)


def _visit(region: Region, mapping: dict[Value, Value]) -> None:
    kept = []
    for op in region.ops:
        if op.kind == "detach":
            mapping[op.result] = op.operands[0]
            op.operands[0].hint = op.operands[0].hint or op.result.hint
        else:
            kept.append(op)
        for inner in op.regions:
            _visit(inner, mapping)
    region.ops = kept
