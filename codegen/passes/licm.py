"""Loop-invariant motion: pure operations that depend on nothing in a loop move before it."""

from __future__ import annotations

from codegen.ir import Function, Op, Region, Value, loop_parts, walk_values
from codegen.ops import TABLE


def hoist_invariant(fn: Function) -> None:
    """Innermost loops first, so that an operation may climb through several."""
    _visit(fn, fn.body)


def _visit(fn: Function, region: Region) -> None:
    out: list[Op] = []
    for op in region.ops:
        for inner in op.regions:
            _visit(fn, inner)
        if op.kind == "for":
            out += _hoist(fn, op)
        out.append(op)
    region.ops = out


def _hoist(fn: Function, loop: Op) -> list[Op]:
    body = loop.regions[0]
    inside: set[Value] = set(walk_values(body))
    symbols = {loop_parts(loop)[0]} | {v.symbol for v in inside if v.symbol is not None}
    written = {
        o.attrs["param"] for o in body.walk() if not TABLE[o.kind].pure and "param" in o.attrs
    }
    moved, kept = [], []
    for op in body.ops:
        invariant = (
            TABLE[op.kind].pure
            and not op.regions
            and op.kind != "const"  # a literal reads best where it is used
            and not (set(op.operands) & inside)
            and not (op.attr_symbols() & symbols)
            and not any(v.type.free_symbols() & symbols for v in op.results)
            and op.attrs.get("param") not in written
        )
        if invariant:
            moved.append(op)
            inside -= set(op.results)
            symbols -= {v.symbol for v in op.results if v.symbol is not None}
        else:
            kept.append(op)
    body.ops = kept
    # A literal operand must move along with what uses it.
    for op in list(moved):
        for v in op.operands:
            if v.op is not None and v.op.kind == "const" and v.op in body.ops:
                body.ops.remove(v.op)
                moved.insert(moved.index(op), v.op)
    return moved
