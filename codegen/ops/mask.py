"""Masks at global offsets: keep an element where a relation of its coordinates holds.

``pred`` is a boolean expression of ``_r`` and ``_c``, the element's row and column *within the
tile*, and of index symbols: ``causal`` at offsets is ``_c + col <= _r + row``. With ``live`` it
also does the work of the fill of dead elements under it, along those axes (see ``passes/masks``).
"""

from __future__ import annotations

from codegen.expr import sym
from codegen.ir import Function, Op, Type
from codegen.ops.base import ATOM, LOWEST, IRError, OpDef, Text, says

ROW, COL = sym("_r"), sym("_c")


def _infer(fn: Function, op: Op) -> list[Type]:
    v = op.operands[0]
    if v.type.rank != 2:
        raise IRError(f"{says(v, 'the operand')}: masks apply to tiles")
    if not all(a.simple for a in v.type.axes):
        raise IRError(f"{says(v, 'the operand')}: a flattened axis has no coordinates to mask by")
    return [v.type]


def _emit(e, op: Op) -> Text:
    v = op.operands[0]
    fill = e.literal(op.attrs["value"], v.type.dtype)
    mask = e.relation(op.attrs["pred"], v.type)
    if "live" in op.attrs and v.op is not None:
        source = v.op.operands[0].type
        mask = f"({mask}) & {e.live_mask(source, op.attrs['live'])}"
    return f"tl.where({mask}, {e.ref(v, LOWEST)}, {fill})", ATOM


KEEP = OpDef("keep", _infer, _emit)
