"""Conversions between element types. Floats round to nearest, ties to even.

The 8-bit floats follow PyTorch (2.13) on every target: what is too large for e5m2 (from 61440 on)
becomes infinite; e4m3 has no infinity, and what is too large for it, an infinity too, becomes 448.
The sign stays, a NaN's too. 16-bit floats and integers go through fp32.
"""

from __future__ import annotations

from codegen.ir import DType, Function, Op, Type, f32
from codegen.ops.base import ATOM, LOWEST, OpDef, Text


def converted(e, text: str, source: DType, target: DType) -> str:
    """``text``, an atom of type ``source``, as ``target``."""
    if source == target:
        return text
    if target.is_fp8:
        e.helper(f"to_{target}")
        wide = text if source == f32 else f"{text}.to(tl.float32)"
        return f"to_{target}({wide})"
    if source.is_fp8 and target != f32:
        return f"{text}.to(tl.float32).to({e.dtype(target)})"
    return f"{text}.to({e.dtype(target)})"


def number(e, text: str, dtype: DType) -> str:
    """A number of Python's, which has no ``.to``, as a scalar of ``dtype``."""
    if dtype.is_fp8:
        return converted(e, f"tl.full((), {text}, tl.float32)", f32, dtype)
    return f"tl.full((), {text}, {e.dtype(dtype)})"


def _infer(fn: Function, op: Op) -> list[Type]:
    return [op.operands[0].type.like(dtype=op.attrs["dtype"])]


def _emit(e, op: Op) -> Text:
    source, target = op.operands[0], op.attrs["dtype"]
    if source.op is not None and source.op.kind == "const":
        return number(e, e.ref(source, LOWEST), target), ATOM
    return converted(e, e.ref(source, ATOM), source.type.dtype, target), ATOM


CAST = OpDef("cast", _infer, _emit, None, elementwise=True)
