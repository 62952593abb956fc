"""Which values a gradient can flow through: floats that depend on what is differentiated."""

from __future__ import annotations

from collections.abc import Container

from codegen.ir import Function, Region, Value
from codegen.ops import TABLE

#: Their results do not change with their operands, or change in steps.
CONSTANT = frozenset(
    ["detach", "floor", "ceil", "round", "trunc", "argreduce", "iota", "const", "full", "index"]
)

#: Integers that stand for floats: what is made of them again depends on the floats.
KEYS = frozenset(["rank_key", "largest"])


def active_values(fn: Function, wrt: Container[str]) -> set[Value]:
    """The values of ``fn`` through which its outputs depend on the tensors named in ``wrt``."""
    active: set[Value] = set()
    before = -1
    while before < len(active):  # carries feed back
        before = len(active)
        _visit(fn.body, wrt, active)
    return active


def _visit(region: Region, wrt: Container[str], active: set[Value]) -> None:
    for op in region.ops:
        if op.kind == "for":
            body = op.regions[0]
            for k, (init, arg) in enumerate(zip(op.operands, body.args, strict=True)):
                if {init, body.terminator.operands[k]} & active:
                    active |= {arg, op.results[k]}
        if not TABLE[op.kind].isolated:
            for inner in op.regions:
                _visit(inner, wrt, active)
        if op.kind == "if":
            for one, two, result in zip(
                *(r.terminator.operands for r in op.regions), op.results, strict=True
            ):
                if {one, two} & active:
                    active.add(result)
        if op.kind in CONSTANT or op.kind in ("for", "if"):
            continue
        moves = op.kind in ("load", "gather_rows") and op.attrs["param"] in wrt
        if moves or set(op.operands) & active:
            through = op.kind in KEYS
            active |= {v for v in op.results if through or v.type.dtype.is_float}
