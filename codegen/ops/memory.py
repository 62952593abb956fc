"""Global memory: loads, stores and atomic adds of tiles, of rows by index, and of scalars.

Attributes of an access, one entry a tensor dimension unless said otherwise:
    param   the tensor's parameter name
    start   element coordinates of the tile's first element
    tile    for each tile axis, the tensor dimensions flattened into it
    sides   for each tile axis, the sides of those dimensions' factors
    limit   for each tile axis, an element coordinate at which the tile ends, or None
    checks  (low, high): whether the coordinate can lie below 0, at or beyond the size; what the
            ``bounds`` pass proves impossible costs nothing
    other   what a load puts into dead elements, or None where nothing depends on it
    described  true where a tensor descriptor moves the tile; else absent
    policy  "evict_first" or "evict_last", a hint to the cache of a load or store; else absent

Elements before the start of a tensor read as zero and are never written; elements at or beyond
its end are dead. A whole tile that a coordinate of another dimension puts outside reads as zero.
"""

from __future__ import annotations

from codegen.ir import Axis, Function, Op, Type, factor, i32, i64, index
from codegen.ops.base import ATOM, IRError, OpDef, Text, says
from codegen.ops.convert import converted, number


def access_axes(fn: Function, op: Op) -> tuple[Axis, ...]:
    """The axes, with live extents, of the tile that ``op`` accesses."""
    dims = fn.param(op.attrs["param"]).dims
    axes = []
    for which, sides, limit in zip(
        op.attrs["tile"], op.attrs["sides"], op.attrs["limit"], strict=True
    ):
        factors = []
        for d, side in zip(which, sides, strict=True):
            start = op.attrs["start"][d]
            bounds = [dims[d] - start] if op.attrs["checks"][d][1] else []
            if limit is not None:
                bounds.append(limit - start)
            factors.append(factor(side, bounds))
        axes.append(Axis(tuple(factors)))
    return tuple(axes)


def _infer_load(fn: Function, op: Op) -> list[Type]:
    param = fn.param(op.attrs["param"])
    if not op.attrs["tile"]:
        dtype = param.dtype
        return [Type(index if dtype in (i32, i64) else dtype)]
    return [Type(param.dtype, access_axes(fn, op), op.attrs.get("orient"))]


def reads_zero(op: Op) -> bool:
    """True if live elements of a load may lie outside the tensor: these are zero."""
    tiled = {d for which in op.attrs["tile"] for d in which}
    checks = enumerate(op.attrs["checks"])
    return any(low or (high and d not in tiled) for d, (low, high) in checks)


def _emit_load(e, op: Op) -> Text:
    if op.attrs.get("described"):
        name, at = e.described(op, op.result.type)
        return f"{name}.load([{at}])", ATOM
    pointer, mask = e.access(op, op.attrs["tile"], op.result.type)
    other = op.attrs.get("other")
    parts = [pointer]
    if mask:
        parts.append(f"mask={mask}")
        if other is None and reads_zero(op):
            other = 0
        if other is not None:
            parts.append(f"other={e.literal(other, op.result.type.dtype)}")
    return f"tl.load({', '.join(parts)}{_policy(op)})", ATOM


def _policy(op: Op) -> str:
    policy = op.attrs.get("policy")
    return f', eviction_policy="{policy}"' if policy else ""


def _check_store(fn: Function, op: Op) -> None:
    value, param = op.operands[0], fn.param(op.attrs["param"])
    if param.role == "in":
        raise IRError(
            f"{param.name} is an input and is not written",
            "declare it tk.Out[...] or tk.InOut[...] in the signature",
        )
    axes = access_axes(fn, op)
    shape = tuple(a.side for a in axes)
    if value.type.rank and shape != value.type.shape:
        raise IRError(f"{says(value, 'the value')}, the place in {param.name} is {shape}")


def _infer_store(fn: Function, op: Op) -> list[Type]:
    _check_store(fn, op)
    return []


def _emit_store(e, op: Op) -> None:
    value, param = op.operands[0], e.fn.param(op.attrs["param"])
    text = e.ref(value, 0)
    if op.attrs.get("described"):
        name, at = e.described(op, value.type)
        if value.type.dtype != param.dtype:
            text = converted(e, e.ref(value, ATOM), value.type.dtype, param.dtype)
        e.line(f"{name}.store([{at}], {text})", op.loc)
        return
    pointer, mask = e.access(op, op.attrs["tile"], value.type)
    if value.op is not None and value.op.kind == "const":
        text = number(e, text, param.dtype)
    elif value.type.dtype != param.dtype:
        # Triton casts on store too; the interpreter is exact only where the cast is spelt out.
        text = converted(e, e.ref(value, ATOM), value.type.dtype, param.dtype)
    word = ATOMICS.get(op.kind, "tl.store")
    tail = ', sem="relaxed"' if op.kind in ATOMICS else _policy(op)
    e.line(f"{word}({pointer}, {text}{f', mask={mask}' if mask else ''}{tail})", op.loc)


#: The stores that combine with what is there, and Triton's words for them.
ATOMICS = {"store_add": "tl.atomic_add", "store_min": "tl.atomic_min", "store_max": "tl.atomic_max"}


def _infer_store_atomic(fn: Function, op: Op) -> list[Type]:
    _check_store(fn, op)
    param = fn.param(op.attrs["param"])
    _check_atomic(param, op.kind.removeprefix("store_"))
    if op.kind != "store_add" and param.role == "out":
        raise IRError(
            f"{param.name} is an output and holds nothing to take the {op.kind[6:]}imum with",
            f"declare it tk.InOut: the caller says what {param.name} starts from",
        )
    return []


def _check_atomic(param, word: str = "add") -> None:
    if param.dtype.name not in ("f32", "i32", "i64"):
        raise IRError(
            f"atomic {word} needs f32, i32 or i64, and {param.name} is {param.dtype}",
            f'declare {param.name} as tk.Out["...", tk.f32] and cast afterwards',
        )


def _infer_gather(fn: Function, op: Op) -> list[Type]:
    rows = op.operands[0]
    _check_rows(rows)
    param = fn.param(op.attrs["param"])
    return [Type(param.dtype, (rows.type.axes[0], *access_axes(fn, op)))]


def _check_rows(rows) -> None:
    if rows.type.rank != 1 or rows.type.dtype.kind != "int":
        raise IRError(
            f"rows are chosen by an integer vector: {says(rows, 'the index')}",
            "load the indices with tk.load(idx, (i,), shape=(rows,))",
        )


def _emit_gather(e, op: Op) -> Text:
    pointer, mask = e.access_rows(op, op.operands[0], op.result.type)
    return f"tl.load({pointer}, mask={mask}, other={e.literal(0, op.result.type.dtype)})", ATOM


def _infer_scatter(fn: Function, op: Op) -> list[Type]:
    value, rows = op.operands
    _check_rows(rows)
    param = fn.param(op.attrs["param"])
    if op.kind == "scatter_add_rows":
        _check_atomic(param)
    if param.role == "in":
        raise IRError(f"{param.name} is an input and is not written", "declare it tk.Out or InOut")
    if value.type.shape[0] != rows.type.shape[0]:
        raise IRError(f"{says(value, 'the tile')} but {says(rows, 'the index')}")
    return []


def _emit_scatter(e, op: Op) -> None:
    value, rows = op.operands
    param = e.fn.param(op.attrs["param"])
    pointer, mask = e.access_rows(op, rows, value.type)
    text = e.ref(value, 0)
    if value.type.dtype != param.dtype:
        text = converted(e, e.ref(value, ATOM), value.type.dtype, param.dtype)
    if op.kind == "scatter_add_rows":
        e.line(f'tl.atomic_add({pointer}, {text}, mask={mask}, sem="relaxed")', op.loc)
    else:
        e.line(f"tl.store({pointer}, {text}, mask={mask})", op.loc)


LOAD = OpDef("load", _infer_load, _emit_load)
STORE = OpDef("store", _infer_store, _emit_store, pure=False)
STORE_ADD, STORE_MIN, STORE_MAX = (
    OpDef(kind, _infer_store_atomic, _emit_store, pure=False) for kind in ATOMICS
)
GATHER = OpDef("gather_rows", _infer_gather, _emit_gather)
SCATTER = OpDef("scatter_rows", _infer_scatter, _emit_scatter, pure=False)
SCATTER_ADD = OpDef("scatter_add_rows", _infer_scatter, _emit_scatter, pure=False)
