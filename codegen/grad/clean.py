"""Dropping what a derived program makes and nobody reads, which is most of it."""

from __future__ import annotations

from codegen.ir import Function, Op, Region
from codegen.passes.cse import share_common
from codegen.passes.dce import drop_dead
from codegen.passes.fold import fold


def clean(fn: Function) -> None:
    """Folds, shares, and drops what nobody reads; a tape that nobody reads is not written."""
    fold(fn)
    share_common(fn)
    before = -1
    while before != (now := sum(1 for _ in fn.body.walk())):
        before = now
        drop_dead(fn)
        # What is added to in memory is read by that.
        adding = ("load", "store_add", "gather_rows", "scatter_add_rows")
        read = {op.attrs["param"] for op in fn.body.walk() if op.kind in adding}
        dead = {p.name for p in fn.params if p.role == "inout" and p.name not in read}
        _remove(fn.body, lambda op, dead=dead: op.kind == "store" and op.attrs["param"] in dead)
        if not any(p.role == "inout" and p.name in read for p in fn.params):
            _remove(fn.body, lambda op: op.kind == "barrier")
        _remove(fn.body, _idle)
        fn.params = [p for p in fn.params if p.name not in dead]


def _idle(op: Op) -> bool:
    return op.kind == "for" and not op.results and len(op.regions[0].ops) == 1


def _remove(region: Region, unwanted) -> None:
    region.ops = [op for op in region.ops if not unwanted(op)]
    for op in region.ops:
        for inner in op.regions:
            _remove(inner, unwanted)


__all__ = ["clean"]
