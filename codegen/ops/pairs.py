"""Products of every two columns of a tile, each pair once, and what undoes them in a derivative."""

from __future__ import annotations

import numpy as np

from codegen.expr import as_int
from codegen.ir import Axis, Function, Op, Type, factor, round_up
from codegen.ops.base import ATOM, LOWEST, IRError, OpDef, Text, says


def _columns(op: Op, k: int) -> int:
    """How many columns of operand ``k`` live."""
    x = op.operands[k]
    if not x.type.dtype.is_float:
        raise IRError(f"{says(x, 'the operand')}: pairs are made of floats")
    live = as_int(x.type.axes[1].factors[0].live) if x.type.rank == 2 else None
    if live is None or not x.type.axes[1].simple or x.type.dtype.bits < 16:
        raise IRError(
            f"{says(x, 'the operand')}: pairs are made of the columns of a tile of floats of 16 "
            "bits or more, as many as are known at compile time",
            "name its second side after a dimension of the signature",
        )
    return live


def turns_of(f: int) -> int:
    """By how many columns, at most, the second of a pair is further on, around the end."""
    return max(1, f // 2)


def _infer(fn: Function, op: Op) -> list[Type]:
    f = _columns(op, 0)
    x = op.operands[0].type
    n = turns_of(f) * f
    return [x.like(axes=(x.axes[0], Axis((factor(round_up(n), [n]),))))]


def _emit(e, op: Op) -> Text:
    x = op.operands[0]
    e.helper("row_pairs")
    wide = ".to(tl.float32)" if x.type.dtype.bits == 16 else ""
    back = f".to({e.dtype(x.type.dtype)})" if wide else ""
    text = e.ref(x, ATOM if wide else LOWEST) + wide
    return f"row_pairs({text}, {_columns(op, 0)}, {op.result.type.block[1]}){back}", ATOM


def _places(f: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first column, second column, whether it counts) of every pair."""
    at = np.arange(turns_of(f) * f)
    return at % f, (at % f + at // f + 1) % f, at < f * (f - 1) // 2


def _numpy(op: Op, x):
    x = np.asarray(x)
    first, second, counts = _places(x.shape[1])
    return np.where(counts, x[:, first] * x[:, second], 0)


def _infer_back(fn: Function, op: Op) -> list[Type]:
    g, x = op.operands
    f = _columns(op, 1)
    if g.type.rank != 2 or g.type.shape[1] != round_up(turns_of(f) * f):
        raise IRError(f"{says(g, 'the first')} holds no pairs of {says(x, 'the second')}")
    return [x.type.like(axes=(g.type.axes[0].meet(x.type.axes[0]), x.type.axes[1]))]


def _emit_back(e, op: Op) -> Text:
    g, x = op.operands
    e.helper("row_unpair")
    f = _columns(op, 1)
    turns = turns_of(f)
    block = 1 << (turns - 1).bit_length()
    return f"row_unpair({e.ref(g, LOWEST)}, {e.ref(x, LOWEST)}, {f}, {turns}, {block})", ATOM


def _numpy_back(op: Op, g, x):
    n = min(len(g), len(x))
    g, x = np.asarray(g)[:n], np.asarray(x)[:n]
    first, second, counts = _places(x.shape[1])
    g, out = np.where(counts, g, 0), np.zeros_like(x)
    for k, (i, j) in enumerate(zip(first, second, strict=True)):
        out[:, i] += g[:, k] * x[:, j]
        out[:, j] += g[:, k] * x[:, i]
    return out


ROWS = [
    OpDef("row_pairs", _infer, _emit, _numpy),
    OpDef("row_unpair", _infer_back, _emit_back, _numpy_back),
]
