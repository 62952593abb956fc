"""Operations that derivatives need: what undoes a subtile and a row-wise outer product.

Also ``detach``, which states that the answer does not depend on a value, and ``barrier``, after
which a program sees all that it has stored.
"""

from __future__ import annotations

import numpy as np

from codegen.expr import as_int
from codegen.ir import Axis, Function, Op, Type
from codegen.ops.base import ATOM, LOWEST, IRError, Need, OpDef, Text, says

# -- row-wise inner product --------------------------------------------------------------------


def _infer_inner(fn: Function, op: Op) -> list[Type]:
    """[n, i j] and [n, j] -> [n, i] for side 0; [n, i j] and [n, i] -> [n, j] for side 1."""
    a, b = op.operands
    factors = a.type.axes[1].factors if a.type.rank == 2 else ()
    if b.type.rank != 2 or len(factors) < 2 or a.type.dtype != b.type.dtype:
        raise IRError(
            f"{says(a, 'the first')} and {says(b, 'the second')} have no row-wise product"
        )
    n, side = len(b.type.axes[1].factors), op.attrs["side"]
    mine, other = (factors[:-n], factors[-n:]) if side == 0 else (factors[n:], factors[:n])
    if not mine or not Axis(other).same_shape(b.type.axes[1]):
        raise IRError(f"{says(a, 'the first')} does not hold {says(b, 'the second')} as a factor")
    rows = a.type.axes[0].meet(b.type.axes[0])
    return [Type(a.type.dtype, (rows, Axis(tuple(mine))))]


def _inner_blocks(op: Op) -> tuple[int, int, int]:
    """Block sizes (rows, of the result, of what is summed)."""
    out, b = op.result.type, op.operands[1].type
    return out.block[0], out.block[1], b.block[1]


def _emit_inner(e, op: Op) -> Text:
    rows, mine, other = _inner_blocks(op)
    a, b = (e.ref(v, ATOM) for v in op.operands)
    if op.attrs["side"] == 0:
        return f"tl.sum(tl.reshape({a}, ({rows}, {mine}, {other})) * {b}[:, None, :], axis=2)", ATOM
    return f"tl.sum(tl.reshape({a}, ({rows}, {other}, {mine})) * {b}[:, :, None], axis=1)", ATOM


def _numpy_inner(op: Op, a, b):
    n, b = min(len(a), len(b)), np.asarray(b)
    a = np.asarray(a)[:n]
    if op.attrs["side"] == 0:
        return np.einsum("nij,nj->ni", a.reshape(n, -1, b.shape[1]), b[:n])
    return np.einsum("nij,ni->nj", a.reshape(n, b.shape[1], -1), b[:n])


ROW_INNER = OpDef(
    "row_inner",
    _infer_inner,
    _emit_inner,
    _numpy_inner,
    lambda op: [Need(0, 0.0, (1,)), Need(1, 0.0, (1,))],
)


# -- a tile in its place within zeros ----------------------------------------------------------


def _infer_place(fn: Function, op: Op) -> list[Type]:
    source, axis, like = op.operands[0], op.attrs["axis"], op.attrs["like"]
    if not (source.type.axes[axis].simple and like.simple):
        raise IRError(f"{says(source, 'the operand')}: a flattened axis has no subtiles")
    axes = [*source.type.axes]
    axes[axis] = like
    return [source.type.like(axes=tuple(axes))]


def _emit_place(e, op: Op) -> Text:
    source, axis, start = op.operands[0], op.attrs["axis"], op.attrs["start"]
    rank = source.type.rank
    old, new = source.type.block[axis], op.result.type.block[axis]
    half, text = as_int(start), e.ref(source, LOWEST)
    side = source.type.axes[axis].factors[0]
    if rank == 2 and new == 2 * old and half in (0, old) and side.full:
        zeros = f"tl.zeros({e.shape(source.type)}, {e.dtype(source.type.dtype)})"
        pair = f"tl.join({text}, {zeros})" if half == 0 else f"tl.join({zeros}, {text})"
        rows, cols = op.result.type.block
        order = "(2, 0, 1)" if axis == 0 else "(0, 2, 1)"
        return f"tl.reshape(tl.permute({pair}, {order}), ({rows}, {cols}))", ATOM
    spread = "" if rank == 1 else ("[:, None]" if axis == 0 else "[None, :]")
    shape = list(op.result.type.block)
    position = f"tl.arange(0, {new}) - {e.index(start, 5)}"
    where = f"tl.minimum(tl.maximum({position}, 0), {old - 1}){spread}"
    if rank == 2:
        where = f"tl.broadcast_to({where}, {tuple(shape)})"
    live = e.index(side.live, 5)
    inside = f"((({position}) >= 0) & (({position}) < {live})){spread}"
    zero = e.literal(0, source.type.dtype)
    return f"tl.where({inside}, tl.gather({text}, {where}, {axis}), {zero})", ATOM


PLACE = OpDef("place", _infer_place, _emit_place)


# -- statements --------------------------------------------------------------------------------

DETACH = OpDef(
    "detach",
    lambda fn, op: [op.operands[0].type],
    lambda e, op: (e.ref(op.operands[0], LOWEST), e.strength(op.operands[0])),
    lambda op, x: x,
)

BARRIER = OpDef(
    "barrier", lambda fn, op: [], lambda e, op: e.line("tl.debug_barrier()", op.loc), pure=False
)
ROWS = [ROW_INNER, PLACE, DETACH, BARRIER]
