"""Loops of one trip become straight code; loops of none disappear.

    total = 0                               total = 0
    for j in range(1):                ->    x = load a[0]
        x = load a[j]                       total = total + sum(x)
        total = total + sum(x)

A kernel that walks a row tile by tile is then, for a row that fits one tile, the kernel that holds
the row: its second loop reads what the first has loaded.
"""

from __future__ import annotations

from codegen.expr import Expr, Symbol, as_int
from codegen.ir import Function, Op, Region, Value, loop_parts
from codegen.rewrite import reinfer, replace_uses, substitute, substitute_type


def inline_single_trips(fn: Function) -> None:
    mapping: dict[Value, Value] = {}
    _visit(fn.body, mapping)
    if mapping:
        replace_uses(fn.body, mapping)
        reinfer(fn)


def _visit(region: Region, mapping: dict[Value, Value]) -> None:
    out: list[Op] = []
    for op in region.ops:
        for inner in op.regions:
            _visit(inner, mapping)
        out += _unrolled(op, mapping) if op.kind == "for" else [op]
    region.ops = out


def _unrolled(op: Op, mapping: dict[Value, Value]) -> list[Op]:
    index, start, stop = loop_parts(op)
    trips = as_int(stop - start)
    body = op.regions[0]
    if trips is None or trips > 1 or any(v.symbol is not None for v in (*body.args, *op.results)):
        return [op]
    if trips < 1:
        mapping.update(zip(op.results, op.operands, strict=True))
        return []
    _settle(body, {index: start})
    mapping.update(zip(body.args, op.operands, strict=True))
    for result, value in zip(op.results, body.terminator.operands, strict=True):
        mapping[result] = value
        value.hint = value.hint or result.hint
    return body.ops[:-1]


def _settle(body: Region, known: dict[Symbol, Expr]) -> None:
    """The loop's index is ``known`` in every expression of its body."""
    for op in body.walk():
        op.attrs = {k: substitute(v, known) for k, v in op.attrs.items()}
        for v in (*op.results, *(a for r in op.regions for a in r.args)):
            v.type = substitute_type(v.type, known)
