"""Loops, branches and the yields that close their regions; the printer writes them."""

from __future__ import annotations

from codegen.ir import Function, Op, Type
from codegen.ops.base import IRError, OpDef


def _infer_for(fn: Function, op: Op) -> list[Type]:
    body = op.regions[0]
    carried = [v.type for v in body.args]
    for value, want in zip(op.operands, carried, strict=True):
        _agree(value.type, want, "the initial value")
    for value, want in zip(body.terminator.operands, carried, strict=True):
        _agree(value.type, want, "the value carried round the loop")
    return carried


def _infer_if(fn: Function, op: Op) -> list[Type]:
    one, two = (r.terminator.operands for r in op.regions)
    out = []
    for a, b in zip(one, two, strict=True):
        _agree(a.type.like(axes=b.type.axes), b.type, "the other branch")
        axes = tuple(x.meet(y) for x, y in zip(a.type.axes, b.type.axes, strict=True))
        out.append(b.type.like(axes=axes))
    return out


def _agree(got: Type, want: Type, who: str) -> None:
    """Equal but for live extents; ``want`` may have more dead elements, never fewer."""
    same = got.like(axes=()) == want.like(axes=()) and got.shape == want.shape
    if not same or any(a.meet(b) != b for a, b in zip(got.axes, want.axes, strict=True)):
        raise IRError(f"{who} is {got}, not {want}")


FOR = OpDef("for", _infer_for, lambda e, op: e.loop(op), pure=False)
IF = OpDef("if", _infer_if, lambda e, op: e.branch(op), pure=False)
YIELD = OpDef("yield", lambda fn, op: [], lambda e, op: None, pure=False)
