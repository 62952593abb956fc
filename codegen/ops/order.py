"""Order statistics of tiles: how often each number occurs, and the largest of every row.

The largest are found over *rank keys*: 64 bits in which the upper half orders the values and the
lower one the positions, a smaller position higher, so that no two elements tie. Zero is below
every key and stands for no element.
"""

from __future__ import annotations

import numpy as np

from codegen.ir import Axis, Function, Op, Type, i32, u64
from codegen.ops.base import ATOM, LOWEST, IRError, Need, OpDef, Text, says
from codegen.ops.elementwise import broadcast_types

# -- histogram ---------------------------------------------------------------------------------


def _infer_histogram(fn: Function, op: Op) -> list[Type]:
    x = op.operands[0]
    if not x.type.rank or x.type.dtype.kind != "int" or x.type.dtype.bits < 32:
        raise IRError(f"{says(x, 'the operand')}: histograms count 32- or 64-bit integers")
    return [Type(i32, (op.attrs["bins"],))]


def _emit_histogram(e, op: Op) -> Text:
    e.helper("count_bins")
    (bins,) = op.attrs["bins"].factors
    number = min([bins.side, *(int(b) for b in bins.bounds)])
    return f"count_bins({e.ref(op.operands[0], LOWEST)}, {number}, {bins.block})", ATOM


def _numpy_histogram(op: Op, x):
    (bins,) = op.attrs["bins"].factors
    number = min([bins.side, *(int(b) for b in bins.bounds)])
    inside = x[(x >= 0) & (x < number)]
    return np.bincount(inside.astype(np.int64), minlength=number).astype(np.int32)


def _outside(op: Op) -> list[Need]:
    # A number that is no bin: -1, or for unsigned types the largest.
    dtype, rank = op.operands[0].type.dtype, op.operands[0].type.rank
    low, high = dtype.limits
    return [Need(0, -1 if low < 0 else high, tuple(range(rank)))]


HISTOGRAM = OpDef("histogram", _infer_histogram, _emit_histogram, _numpy_histogram, _outside)

# -- rank keys ---------------------------------------------------------------------------------

#: What a slot without an element holds, and the least value that an element can have.
LEAST = {"f32": float("-inf"), "i32": -(2**31)}


def _infer_key(fn: Function, op: Op) -> list[Type]:
    values, positions = op.operands
    if values.type.dtype.name not in LEAST or positions.type.dtype != i32:
        raise IRError(
            f"{says(values, 'the values')} and {says(positions, 'the positions')}: "
            "keys are made of f32 or i32 values and i32 positions"
        )
    if positions.type.rank == 1 and positions.type.orient != "row":
        raise IRError(f"{says(positions, 'the positions')}: one position a column")
    return [Type(u64, *broadcast_types(op.operands))]


def _emit_key(e, op: Op) -> Text:
    e.helper("rank_key")
    values, positions = op.operands
    text = e.ref(positions, ATOM) + ("[None, :]" if positions.type.rank == 1 else "")
    return f"rank_key({e.ref(values, LOWEST)}, {text})", ATOM


def _numpy_key(op: Op, values, positions):
    if positions.ndim == 1:
        positions = positions[None, :]
    rows = min(len(values), len(positions)) if len(positions) > 1 else len(values)
    cols = min(values.shape[1], positions.shape[1])
    values, positions = values[:rows, :cols], positions[:rows, :cols]
    if values.dtype.kind == "f":
        x = np.asarray(values + 0.0, np.float32)  # -0 is 0
        bits = x.view(np.uint32)
        high = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(0x80000000))
        high = np.where(np.isnan(x), np.uint32(0xFFFFFFFF), high)
    else:
        high = np.asarray(values).astype(np.uint32) ^ np.uint32(0x80000000)
    low = ~np.asarray(positions).astype(np.uint32)
    return high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)


RANK_KEY = OpDef("rank_key", _infer_key, _emit_key, _numpy_key)


def _infer_unkey(fn: Function, op: Op) -> list[Type]:
    return [op.operands[0].type.like(dtype=op.attrs["dtype"])]


def _emit_unkey(e, op: Op) -> Text:
    word = "key_position" if op.attrs["part"] == "position" else f"key_{op.attrs['dtype']}"
    e.helper(word)
    return f"{word}({e.ref(op.operands[0], LOWEST)})", ATOM


def _numpy_unkey(op: Op, key):
    if op.attrs["part"] == "position":
        return (~key.astype(np.uint32)).view(np.int32)
    high = (key >> np.uint64(32)).astype(np.uint32)
    if op.attrs["dtype"] == i32:
        return (high ^ np.uint32(0x80000000)).view(np.int32)
    bits = np.where(high >> 31 == 1, high & np.uint32(0x7FFFFFFF), ~high).astype(np.uint32)
    out = np.where(high == 0xFFFFFFFF, np.uint32(0x7FC00000), bits).view(np.float32)
    return np.where(high == 0, -np.inf, out)


#: The value or the position that a key was made of.
UNKEY = OpDef("unkey", _infer_unkey, _emit_unkey, _numpy_unkey)

# -- the largest of every row --------------------------------------------------------------------


def _infer_largest(fn: Function, op: Op) -> list[Type]:
    rows = op.operands[0].type.axes[0]
    for v in op.operands:
        if v.type.rank != 2 or not all(a.simple for a in v.type.axes):
            raise IRError(f"{says(v, 'the operand')}: takes a tile without flattened axes")
        if not rows.same_shape(v.type.axes[0]):
            raise IRError(f"{says(op.operands[0], 'one')} and {says(v, 'the other')}: rows differ")
        rows = rows.meet(v.type.axes[0])
    return [Type(u64, (rows, op.attrs["k"]))]


def _emit_largest(e, op: Op) -> Text:
    axis: Axis = op.attrs["k"]
    (slots,) = axis.factors
    number = min([slots.side, *(int(b) for b in slots.bounds)])
    texts = [e.ref(v, LOWEST) for v in op.operands]
    word = "largest" if len(texts) == 1 else "largest_of_both"
    e.helper(word)
    return f"{word}({', '.join(texts)}, {number}, {slots.block})", ATOM


def _numpy_largest(op: Op, *keys):
    (slots,) = op.attrs["k"].factors
    number = min([slots.side, *(int(b) for b in slots.bounds)])
    rows = min(len(k) for k in keys)
    every = np.concatenate([k[:rows] for k in keys], 1)
    every = np.pad(every, ((0, 0), (0, number)))
    return np.sort(every, axis=1)[:, ::-1][:, :number]


#: Of one or two tiles of keys the ``k`` largest of every row, in falling order; zeros fill up.
LARGEST = OpDef(
    "largest",
    _infer_largest,
    _emit_largest,
    _numpy_largest,
    lambda op: [Need(n, 0, (1,)) for n in range(len(op.operands))],
)
ROWS = [HISTOGRAM, RANK_KEY, UNKEY, LARGEST]
