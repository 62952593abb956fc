"""Values from nothing: constants, counters, and run-time integers and conditions as values."""

from __future__ import annotations

import numpy as np

from codegen.ir import Function, Op, Type, bool_, f32, i32
from codegen.ops.base import ADD, ATOM, LOWEST, OpDef, Text
from codegen.ops.convert import converted


def _literal(e, value: object) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _emit_const(e, op: Op) -> Text:
    value = op.attrs["value"]
    # A float in exponent form reads best as Python writes it; a sign binds like a unary minus.
    return _literal(e, value), ATOM if not str(value).startswith("-") else LOWEST


def _full_type(fn: Function, op: Op) -> list[Type]:
    return [Type(op.attrs["dtype"], op.attrs["axes"], op.attrs.get("orient"))]


def _emit_full(e, op: Op) -> Text:
    value = op.attrs["value"]
    shape, dtype = e.shape(op.result.type), e.dtype(op.attrs["dtype"])
    if op.attrs["dtype"].is_fp8:  # Triton has no constants of 8-bit floats
        wide = f"tl.full({shape}, {_literal(e, value)}, tl.float32)"
        return converted(e, wide, f32, op.attrs["dtype"]), ATOM
    if value == 0 and not isinstance(value, bool):
        return f"tl.zeros({shape}, {dtype})", ATOM
    return f"tl.full({shape}, {_literal(e, value)}, {dtype})", ATOM


def _emit_splat(e, op: Op) -> Text:
    value = e.ref(op.operands[0], LOWEST)
    if op.attrs["dtype"].is_fp8:
        wide = f"tl.full({e.shape(op.result.type)}, {value}, tl.float32)"
        return converted(e, wide, f32, op.attrs["dtype"]), ATOM
    return f"tl.full({e.shape(op.result.type)}, {value}, {e.dtype(op.attrs['dtype'])})", ATOM


def _emit_iota(e, op: Op) -> Text:
    # A fresh vector of positions; loads share theirs through the printer, authors name theirs.
    start = op.attrs["start"]
    block = op.attrs["axes"][0].block
    text = f"tl.arange(0, {block})"
    if start == 0:
        return text, ATOM
    text = f"{e.index(start, ADD)} + {text}"
    return (f"({text}).to(tl.int32)", ATOM) if e.long else (text, ADD)


def _index_type(fn: Function, op: Op) -> list[Type]:
    return [Type(op.attrs.get("dtype", i32))]


CONST = OpDef("const", lambda fn, op: [Type(op.attrs["dtype"])], _emit_const)
FULL = OpDef("full", _full_type, _emit_full)
SPLAT = OpDef("splat", _full_type, _emit_splat)
IOTA = OpDef("iota", _full_type, _emit_iota)
INDEX = OpDef("index", _index_type, lambda e, op: (e.index(op.attrs["expr"]), LOWEST))
ARGUMENT = OpDef(
    "argument",
    lambda fn, op: [Type(fn.param(op.attrs["param"]).dtype)],
    lambda e, op: (op.attrs["param"], ATOM),
)
COND = OpDef(
    "cond", lambda fn, op: [Type(bool_)], lambda e, op: (e.index(op.attrs["expr"], LOWEST), LOWEST)
)
