"""Shape: transpose, subtile, concat, broadcast, row-wise outer products, and changes of type."""

from __future__ import annotations

import numpy as np

from codegen.expr import as_int
from codegen.ir import Axis, Factor, Function, Op, Type, factor
from codegen.ops.base import ATOM, LOWEST, IRError, OpDef, Text, no_fp8, says

# -- transpose ---------------------------------------------------------------------------------


def _infer_transpose(fn: Function, op: Op) -> list[Type]:
    source = op.operands[0]
    if source.type.rank != 2:
        raise IRError(f"{says(source, 'the operand')}: only tiles have a transpose")
    return [Type(source.type.dtype, source.type.axes[::-1])]


TRANSPOSE = OpDef(
    "transpose",
    _infer_transpose,
    lambda e, op: (f"tl.trans({e.ref(op.operands[0], LOWEST)})", ATOM),
    lambda op, x: x.T,
)


# -- subtile -----------------------------------------------------------------------------------


def _infer_subtile(fn: Function, op: Op) -> list[Type]:
    source, axis = op.operands[0], op.attrs["axis"]
    start, side = op.attrs["start"], op.attrs["side"]
    old = source.type.axes[axis]
    if not old.simple:
        raise IRError(f"{says(source, 'the operand')}: a flattened axis has no subtiles")
    first = as_int(start)
    if first is not None and not 0 <= first <= old.side - side:
        raise IRError(
            f"{says(source, 'the operand')}: elements {first} to {first + side} of axis {axis} "
            f"lie outside its {old.side}"
        )
    bounds = [b - start for b in old.factors[0].bounds]
    if first is None:
        if not fn.facts.nonnegative(start):
            raise IRError(
                f"{says(source, 'the operand')}: a subtile from {start} on may begin before it",
                "start it at max(0, ...), or state a precondition",
            )
        if not fn.facts.less_equal(start + side, old.side):
            bounds.append(old.side - start)  # what lies beyond the tile is dead
    new = factor(side, bounds)
    axes = [*source.type.axes]
    axes[axis] = Axis((new,))
    return [source.type.like(axes=tuple(axes))]


def _emit_subtile(e, op: Op) -> Text:
    source, axis, start = op.operands[0], op.attrs["axis"], op.attrs["start"]
    old, new = source.type.block[axis], op.result.type.block[axis]
    half = as_int(start)
    if source.type.rank == 2 and old == 2 * new and half in (0, new):
        # A half splits off without moving data between threads where the layout allows.
        rows, cols = source.type.block
        shape = (2, new, cols) if axis == 0 else (rows, 2, new)
        order = (1, 2, 0) if axis == 0 else (0, 2, 1)
        return (
            f"tl.split(tl.permute(tl.reshape({e.ref(source, LOWEST)}, {shape}), {order}))"
            f"[{half // new}]",
            ATOM,
        )
    # Positions past the source's block belong to dead elements: any valid position will do.
    where = f"tl.minimum({e.index(start, 5)} + tl.arange(0, {new}), {old - 1})"
    if source.type.rank == 1:
        return f"tl.gather({e.ref(source, LOWEST)}, {where}, 0)", ATOM
    wanted = list(source.type.block)
    wanted[axis] = new
    spread = "[:, None]" if axis == 0 else "[None, :]"
    index = f"tl.broadcast_to({where}{spread}, {tuple(wanted)})"
    return f"tl.gather({e.ref(source, LOWEST)}, {index}, {axis})", ATOM


def _numpy_subtile(op: Op, x, start: int):
    index = [slice(None)] * x.ndim
    index[op.attrs["axis"]] = slice(start, start + op.attrs["side"])
    return x[tuple(index)]


SUBTILE = OpDef("subtile", _infer_subtile, _emit_subtile, _numpy_subtile)


# -- concat ------------------------------------------------------------------------------------


def _infer_concat(fn: Function, op: Op) -> list[Type]:
    a, b = op.operands
    axis = op.attrs["axis"]
    if a.type.rank != b.type.rank or a.type.dtype != b.type.dtype:
        raise IRError(f"{says(a, 'the first')} and {says(b, 'the second')} do not join")
    axes = []
    for k, (x, y) in enumerate(zip(a.type.axes, b.type.axes, strict=True)):
        if k != axis:
            if not x.same_shape(y):
                raise IRError(
                    f"{says(a, 'the first')} and {says(b, 'the second')} differ across axis {axis}"
                )
            axes.append(x.meet(y))
            continue
        if not (x.simple and y.simple):
            raise IRError("a flattened axis does not concatenate")
        x0, y0 = x.factors[0], y.factors[0]
        ragged = x0.bounds or y0.bounds
        axes.append(Axis((factor(x.side + y.side, [x0.live + y0.live] if ragged else []),)))
    return [a.type.like(axes=tuple(axes))]


def _emit_concat(e, op: Op) -> Text:
    a, b = op.operands
    axis = op.attrs["axis"]
    fa = a.type.axes[axis].factors[0]
    block = op.result.type.block[axis]
    if a.type.rank == 2 and axis == 1 and a.type.block == b.type.block and fa.full:
        rows, cols = a.type.block
        pair = f"tl.join({e.ref(a, LOWEST)}, {e.ref(b, LOWEST)})"
        return f"tl.reshape(tl.permute({pair}, (0, 2, 1)), ({rows}, {2 * cols}))", ATOM
    live = e.index(fa.live, 5)
    pos = f"tl.arange(0, {block})"
    spread = "" if a.type.rank == 1 else ("[:, None]" if axis == 0 else "[None, :]")
    parts = []
    for v, shift in ((a, ""), (b, f" - {live}")):
        limit = v.type.block[axis] - 1
        where = f"tl.minimum(tl.maximum({pos}{shift}, 0), {limit}){spread}"
        if v.type.rank == 2:
            shape = list(v.type.block)
            shape[axis] = block
            where = f"tl.broadcast_to({where}, {tuple(shape)})"
        parts.append(f"tl.gather({e.ref(v, LOWEST)}, {where}, {axis})")
    return f"tl.where(({pos} < {live}){spread}, {parts[0]}, {parts[1]})", ATOM


CONCAT = OpDef(
    "concat",
    _infer_concat,
    _emit_concat,
    lambda op, a, b: np.concatenate([a, b], axis=op.attrs["axis"]),
)


# -- broadcast ---------------------------------------------------------------------------------


def _infer_broadcast(fn: Function, op: Op) -> list[Type]:
    v, other = op.operands[0], op.attrs["across"]
    if v.type.rank != 1:
        raise IRError(f"{says(v, 'the operand')}: only vectors broadcast to tiles")
    rows, cols = (v.type.axes[0], other) if op.attrs["orient"] == "col" else (other, v.type.axes[0])
    return [Type(v.type.dtype, (rows, cols))]


def _emit_broadcast(e, op: Op) -> Text:
    spread = "[:, None]" if op.attrs["orient"] == "col" else "[None, :]"
    return (
        f"tl.broadcast_to({e.ref(op.operands[0], ATOM)}{spread}, {e.shape(op.result.type)})",
        ATOM,
    )


BROADCAST = OpDef("broadcast", _infer_broadcast, _emit_broadcast)


# -- row-wise outer product --------------------------------------------------------------------


def _infer_row_outer(fn: Function, op: Op) -> list[Type]:
    a, b = op.operands
    no_fp8(op)
    if a.type.rank != 2 or b.type.rank != 2 or not a.type.axes[0].same_shape(b.type.axes[0]):
        raise IRError(
            f"{says(a, 'the first')} and {says(b, 'the second')}: a row-wise outer product takes "
            "two tiles with equally many rows"
        )
    if a.type.dtype != b.type.dtype:
        raise IRError(f"{says(a, 'the first')} and {says(b, 'the second')}: dtypes differ")
    rows = a.type.axes[0].meet(b.type.axes[0])
    cols = Axis((*a.type.axes[1].factors, *b.type.axes[1].factors))
    return [Type(a.type.dtype, (rows, cols))]


def _emit_row_outer(e, op: Op) -> Text:
    a, b = op.operands
    widen = ".to(tl.float32)" if a.type.dtype.bits == 16 else ""
    back = f".to({e.dtype(a.type.dtype)})" if widen else ""
    product = f"{e.ref(a, ATOM)}{widen}[:, :, None] * {e.ref(b, ATOM)}{widen}[:, None, :]"
    return f"tl.reshape({product}, {e.shape(op.result.type)}){back}", ATOM


ROW_OUTER = OpDef(
    "row_outer",
    _infer_row_outer,
    _emit_row_outer,
    lambda op, a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), -1),
)


# -- what only the type sees -------------------------------------------------------------------


def _infer_retype(fn: Function, op: Op) -> list[Type]:
    v = op.operands[0]
    axes = tuple(a.meet(b) for a, b in zip(v.type.axes, op.attrs["axes"], strict=True))
    return [v.type.like(axes=axes, orient=op.attrs["orient"])]


RETYPE = OpDef(
    "retype",
    _infer_retype,
    lambda e, op: (e.ref(op.operands[0], LOWEST), e.strength(op.operands[0])),
)


# -- dead elements -----------------------------------------------------------------------------


def _infer_fill_dead(fn: Function, op: Op) -> list[Type]:
    v = op.operands[0]
    if not op.attrs["alive"]:
        return [v.type]
    axes = tuple(
        Axis(tuple(Factor(f.side) if f.side == f.block else factor(f.side) for f in a.factors))
        if k in op.attrs["axes"]
        else a
        for k, a in enumerate(v.type.axes)
    )
    return [v.type.like(axes=axes)]


def _emit_fill_dead(e, op: Op) -> Text:
    v = op.operands[0]
    if op.attrs.get("covered"):
        return e.ref(v, LOWEST), e.strength(v)
    value = e.literal(op.attrs["value"], v.type.dtype)
    mask = e.live_mask(v.type, op.attrs["axes"])
    return f"tl.where({mask}, {e.ref(v, LOWEST)}, {value})", ATOM


# ``alive``: the author asked for it, and what was dead now counts. Otherwise the compiler put
# it there, and the extent stays what it was. ``covered``: a mask over it fills the same elements.
FILL_DEAD = OpDef("fill_dead", _infer_fill_dead, _emit_fill_dead)
