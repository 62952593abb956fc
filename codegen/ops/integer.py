"""Arithmetic of 32- and 64-bit integers beyond the elementwise table: shifts and high products.

All arithmetic wraps as in two's complement. A shift takes its count from a number, a scalar or a
tile; a count that is known must lie within the width. One that only the running kernel knows is
defined as if bits left the word one by one: at the width and beyond, and below zero, ``<<`` gives
0, and ``>>`` gives 0, or -1 for a negative number of a signed type.
"""

from __future__ import annotations

import numpy as np

from codegen.expr import as_int
from codegen.ir import Function, Op, Type, Value, index
from codegen.ops.base import ATOM, LOWEST, IRError, OpDef, Text, says
from codegen.ops.elementwise import broadcast_types, common_dtype

#: How Python writes them.
SIGNS = {"shl": "<<", "shr": ">>"}


def _infer(fn: Function, op: Op) -> list[Type]:
    dtype = common_dtype(op.operands)
    if dtype.kind != "int" or dtype.bits < 32 or dtype == index:
        wide = "u32" if dtype.triton.startswith("u") else "i32"
        raise IRError(
            f"{SIGNS.get(op.kind, op.kind)} takes tiles of 32- or 64-bit integers, and "
            f"{says(op.operands[0], 'its operand')}",
            f"tk.cast(x, tk.{wide})",
        )
    return [Type(dtype, *broadcast_types(op.operands))]


def _infer_shift(fn: Function, op: Op) -> list[Type]:
    (out,) = _infer(fn, op)
    count = known(op.operands[1])
    if count is not None and not 0 <= count < out.dtype.bits:
        raise IRError(
            f"a shift by {count} of {out.describe()}: the count must be 0 to {out.dtype.bits - 1}"
        )
    return [out]


def known(value: Value) -> int | None:
    """The number that ``value`` is known to be everywhere."""
    if value.op is None:
        return None
    if value.op.kind in ("const", "full"):
        return int(value.op.attrs["value"])  # type: ignore[call-overload]
    return as_int(value.op.attrs["expr"]) if value.op.kind == "index" else None


def _spread(e, op: Op, value: Value) -> str:
    """An operand, subscripted to broadcast over the result."""
    if op.result.type.rank == 2 and value.type.rank == 1:
        return e.ref(value, ATOM) + ("[:, None]" if value.type.orient == "col" else "[None, :]")
    return e.ref(value, LOWEST)


def _typed(e, op: Op, value: Value) -> str:
    """An operand as a tensor of the result's type: a number or a scalar may be of another."""
    dtype = op.result.type.dtype
    if value.op is not None and value.op.kind == "const":
        return f"tl.full((), {e.ref(value, LOWEST)}, {e.dtype(dtype)})"
    if not value.type.rank and op.result.type.rank:
        return f"{e.ref(value, ATOM)}.to({e.dtype(dtype)})"
    return _spread(e, op, value)


def _emit_shift(e, op: Op) -> Text:
    x, count = op.operands
    text, number = _typed(e, op, x), known(count)
    if number is not None:
        return f"(({text}) {SIGNS[op.kind]} {number})", ATOM
    e.helper(op.kind)
    return f"{op.kind}({text}, {_spread(e, op, count)}, {op.result.type.dtype.bits})", ATOM


def _emit_mulhi(e, op: Op) -> Text:
    signed = not op.result.type.dtype.triton.startswith("u")
    word = "mulhi" if signed else "tl.umulhi"
    e.helper(word)
    a, b = (_typed(e, op, v) for v in op.operands)
    return f"{word}({a}, {b})", ATOM


def _shl(x, n):
    bits = 8 * x.dtype.itemsize
    inside = (n >= 0) & (n < bits)
    return np.where(inside, x << np.where(inside, n, 0).astype(x.dtype), x.dtype.type(0))


def _shr(x, n):
    bits = 8 * x.dtype.itemsize
    inside = (n >= 0) & (n < bits)
    gone = np.where(x < 0, -1, 0).astype(x.dtype)
    return np.where(inside, x >> np.where(inside, n, 0).astype(x.dtype), gone)


def _mulhi(a, b):
    bits = 8 * a.dtype.itemsize
    return ((a.astype(object) * b.astype(object)) >> bits).astype(a.dtype)


SHL = OpDef("shl", _infer_shift, _emit_shift, _shl, elementwise=True)
SHR = OpDef("shr", _infer_shift, _emit_shift, _shr, elementwise=True)
MULHI = OpDef("mulhi", _infer, _emit_mulhi, _mulhi, elementwise=True)
ROWS = [SHL, SHR, MULHI]
