"""Matrix multiply-accumulate: ``d = op(a) op(b) + c`` with op the identity or the transpose."""

from __future__ import annotations

import numpy as np

from codegen.ir import Axis, Function, Op, Type, f32, i8, i32
from codegen.ops.base import ATOM, LOWEST, IRError, Need, OpDef, Text, says


def _parts(op: Op) -> tuple[Axis, Axis, Axis, Axis]:
    """(rows of d, inner of a, inner of b, columns of d)."""
    a, b = op.operands[:2]
    m, ka = (a.type.axes[1], a.type.axes[0]) if op.attrs["ta"] else a.type.axes
    kb, n = (b.type.axes[1], b.type.axes[0]) if op.attrs["tb"] else b.type.axes
    return m, ka, kb, n


def _verb(ta: bool, tb: bool) -> str:
    return f"mma_A{'t' if ta else ''}B{'t' if tb else ''}"


def _infer(fn: Function, op: Op) -> list[Type]:
    a, b = op.operands[:2]
    for v, place in ((a, "the left operand"), (b, "the right operand")):
        if v.type.rank != 2:
            raise IRError(f"{says(v, place)}, not a tile", "matrix products take two tiles")
    if a.type.dtype != b.type.dtype:
        small = min(a, b, key=lambda v: v.type.dtype.bits)
        raise IRError(
            f"{says(a, 'the left operand')} and {says(b, 'the right operand')}: "
            "the element types differ",
            f"convert one of them, for example with tk.cast(x, tk.{small.type.dtype})",
        )
    if not a.type.dtype.is_float and a.type.dtype != i8:
        raise IRError(f"{says(a, 'the left operand')}: products take floats or i8")
    m, ka, kb, n = _parts(op)
    if not ka.same_shape(kb):
        others = [
            _verb(ta, tb)
            for ta in (False, True)
            for tb in (False, True)
            if (ta, tb) != (op.attrs["ta"], op.attrs["tb"])
            and a.type.axes[0 if ta else 1].same_shape(b.type.axes[1 if tb else 0])
        ]
        raise IRError(
            f"{says(a, 'the left operand')} and {says(b, 'the right operand')}: "
            f"the inner sizes {ka.side} and {kb.side} differ",
            f"did you mean {' or '.join(others)}?" if others else "",
        )
    if a.type.dtype.bits == 8 and ka.block < 32:
        raise IRError(
            f"{says(a, 'the left operand')} and {says(b, 'the right operand')}: the inner size of "
            f"8-bit products is at least 32, and this is {ka.side}",
            "load tiles of 32 along it; ThunderKittens' 8-bit tiles are 16x32 too",
        )
    acc = i32 if a.type.dtype == i8 else f32
    if len(op.operands) == 3:
        c = op.operands[2]
        if c.type.rank != 2 or c.type.shape != (m.side, n.side) or c.type.dtype != acc:
            raise IRError(
                f"{says(c, 'the accumulator')}, the product is {m.side}x{n.side} {acc}",
                f"start it with tk.zeros({m.side}, {n.side}"
                + (", dtype=tk.i32)" if acc == i32 else ")"),
            )
        m, n = m.meet(c.type.axes[0]), n.meet(c.type.axes[1])
    return [Type(acc, (m, n))]


def _neutral(op: Op) -> list[Need]:
    # Both operands: a dead NaN times a dead zero is a NaN.
    a_inner, b_inner = (0 if op.attrs["ta"] else 1), (1 if op.attrs["tb"] else 0)
    return [Need(0, 0.0, (a_inner,)), Need(1, 0.0, (b_inner,))]


def _emit(e, op: Op) -> Text:
    parts = []
    for v, transposed in zip(op.operands[:2], (op.attrs["ta"], op.attrs["tb"]), strict=True):
        parts.append(f"tl.trans({e.ref(v, LOWEST)})" if transposed else e.ref(v, LOWEST))
    if len(op.operands) == 3:
        parts.append(e.ref(op.operands[2], LOWEST))
    if op.operands[0].type.dtype == f32:
        parts.append(f'input_precision="{op.attrs["precision"]}"')
    if op.operands[0].type.dtype.is_fp8:
        # Hopper's tensor cores keep 14 bits of a sum: only 32 products, the fewest that Triton
        # gives to wgmma, are summed so, and those sums in fp32.
        parts.append("max_num_imprecise_acc=32")
    if op.result.type.dtype == i32:
        parts.append("out_dtype=tl.int32")
    return f"tl.dot({', '.join(parts)})", ATOM


def exact(op: Op) -> bool:
    """True for a product of exact fp32, which no matrix instruction computes."""
    return op.kind == "mma" and op.operands[0].type.dtype == f32 and op.attrs["precision"] == "ieee"


def _numpy(op: Op, a, b, c=None):
    product = (a.T if op.attrs["ta"] else a) @ (b.T if op.attrs["tb"] else b)
    return product if c is None else np.asarray(c) + product


MMA = OpDef("mma", _infer, _emit, _numpy, _neutral)
