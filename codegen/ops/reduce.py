"""Reductions, positions of extremes, and scans, over live elements only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from codegen.ir import Axis, Function, Op, Type, i32
from codegen.ops.base import ATOM, LOWEST, IRError, Need, OpDef, Text, no_fp8, says

#        name: (neutral element, Triton function, numpy function)
KINDS: dict[str, tuple[float, str, Callable]] = {
    "sum": (0.0, "tl.sum", np.sum),
    "max": (float("-inf"), "tl.max", np.fmax.reduce),
    "min": (float("inf"), "tl.min", np.fmin.reduce),
    "prod": (1.0, "product", np.prod),
}


def _neutral_value(op: Op, name: str) -> float:
    value = KINDS[name][0]
    dtype = op.operands[0].type.dtype
    if dtype.is_float or np.isfinite(value):
        return value
    # An int, for no float is the largest i64.
    return dtype.limits[0 if value < 0 else 1]


def _reduced(op: Op) -> tuple[tuple[Axis, ...], str | None]:
    source, axis = op.operands[0].type, op.attrs["axis"]
    axes = tuple(a for k, a in enumerate(source.axes) if k != axis)
    orient = None if source.rank == 1 else ("col" if axis == 1 else "row")
    return axes, orient


def _infer(fn: Function, op: Op) -> list[Type]:
    source = op.operands[0]
    no_fp8(op)
    if source.type.rank == 0:
        raise IRError(f"{says(source, 'the operand')}: there is nothing to reduce")
    if source.type.dtype.kind == "bool":
        raise IRError(
            f"{says(source, 'the operand')}: reductions take numbers",
            "tk.cast(x, tk.i32) first",
        )
    axes, orient = _reduced(op)
    if op.kind == "argreduce" and not source.type.axes[op.attrs["axis"]].simple:
        raise IRError(
            f"{says(source, 'the operand')}: positions along a flattened axis have no meaning "
            "where it is ragged",
            "load the tile without flattening",
        )
    dtype = i32 if op.kind == "argreduce" else source.type.dtype
    return [Type(dtype, axes, orient)]


def _needs(op: Op) -> list[Need]:
    return [Need(0, _neutral_value(op, op.attrs["op"]), (op.attrs["axis"],))]


def _operand(e, op: Op, strength: int) -> tuple[str, str]:
    """Operand text and the cast back: 16-bit floats are reduced in fp32 and rounded once.

    Triton reduces integers of less than 32 bits in 32.
    """
    source = op.operands[0]
    if source.type.dtype.kind == "int" and source.type.dtype.bits < 32:
        return e.ref(source, strength), f".to({e.dtype(source.type.dtype)})"
    if source.type.dtype.is_float and source.type.dtype.bits == 16:
        return f"{e.ref(source, ATOM)}.to(tl.float32)", f".to({e.dtype(source.type.dtype)})"
    return e.ref(source, strength), ""


def _emit_reduce(e, op: Op) -> Text:
    text, back = _operand(e, op, LOWEST)
    word = KINDS[op.attrs["op"]][1]
    e.helper(word)
    return f"{word}({text}, axis={op.attrs['axis']}){back}", ATOM


def _emit_arg(e, op: Op) -> Text:
    text, _ = _operand(e, op, LOWEST)
    word = {"max": "tl.argmax", "min": "tl.argmin"}[op.attrs["op"]]
    return f"{word}({text}, axis={op.attrs['axis']})", ATOM


def _numpy_reduce(op: Op, x):
    function = KINDS[op.attrs["op"]][2]
    if x.shape[op.attrs["axis"]] == 0:
        shape = tuple(n for k, n in enumerate(x.shape) if k != op.attrs["axis"])
        return np.full(shape, _neutral_value(op, op.attrs["op"]), x.dtype)
    return function(x, axis=op.attrs["axis"])


def _numpy_arg(op: Op, x):
    if x.shape[op.attrs["axis"]] == 0:
        return np.zeros(tuple(n for k, n in enumerate(x.shape) if k != op.attrs["axis"]), np.int32)
    function: Callable = np.argmax if op.attrs["op"] == "max" else np.argmin
    return function(x, axis=op.attrs["axis"]).astype(np.int32)


def _infer_scan(fn: Function, op: Op) -> list[Type]:
    source = op.operands[0]
    no_fp8(op)
    if source.type.rank == 0 or source.type.dtype.kind == "bool":
        raise IRError(f"{says(source, 'the operand')}: scans take a tile or vector of numbers")
    return [source.type]


def _scan_needs(op: Op) -> list[Need]:
    # Forward scans meet dead elements last and need nothing; reverse ones meet them first, and
    # in a flattened axis they lie between live ones.
    simple = op.operands[0].type.axes[op.attrs["axis"]].simple
    return [] if simple and not op.attrs["reverse"] else _needs(op)


def _emit_scan(e, op: Op) -> Text:
    text, back = _operand(e, op, LOWEST)
    word = {"sum": "tl.cumsum", "prod": "tl.cumprod"}[op.attrs["op"]]
    tail = ", reverse=True" if op.attrs["reverse"] else ""
    return f"{word}({text}, axis={op.attrs['axis']}{tail}){back}", ATOM


def _numpy_scan(op: Op, x):
    function: Callable = np.cumsum if op.attrs["op"] == "sum" else np.cumprod
    axis = op.attrs["axis"]
    if op.attrs["reverse"]:
        return np.flip(function(np.flip(x, axis), axis=axis), axis)
    return function(x, axis=axis)


REDUCE = OpDef("reduce", _infer, _emit_reduce, _numpy_reduce, _needs)
ARGREDUCE = OpDef("argreduce", _infer, _emit_arg, _numpy_arg, _needs)
SCAN = OpDef("scan", _infer_scan, _emit_scan, _numpy_scan, _scan_needs)
