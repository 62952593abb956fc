"""Operators under ``torch.vmap``.

A kernel whose tensors begin with a dimension such that every program reads and writes at one place
of it computes the same for one batch as for many: the mapped dimension becomes a part of that one,
and the kernel runs once. This is proved from the tile IR. Any other kernel runs once a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from codegen.expr import Symbol
from codegen.ir import Function, walk_values
from tkpy.call import Call
from tkpy.errors import CallError
from tkpy.operator import schema
from tkpy.operator.schema import Schema

if TYPE_CHECKING:
    from tkpy.kernel import Kernel
    from tkpy.operator.call import Operator

#: Accesses that give the place along every dimension of the tensor.
_PLACED = ("load", "store", "store_add", "store_min", "store_max")


def rule(op: torch._ops.OpOverload, form: Schema, operator: Operator) -> Callable:
    """The vmap rule of an operator that changes nothing; see ``torch.library.register_vmap``."""

    def over(info, in_dims, *args, **kwargs):
        values = form.values(args, kwargs)
        dims = _dims(form, in_dims)
        results, places = mapped(op, form, operator, info.batch_size, values, dims)
        if len(form.returns) == 1:
            return results[0], places[0]
        return tuple(results), tuple(places)

    return over


def in_place_rule(
    op: torch._ops.OpOverload, form: Schema, functional: Schema, operator: Operator
) -> Callable:
    """The vmap rule of the operator that writes; ``op`` is the one that does not."""

    def over(info, in_dims, *args, **kwargs):
        values = form.values(args, kwargs)
        dims = _dims(form, in_dims)
        given = {n for n, _ in operator.outputs if values[n] is not None}
        asked = {n: values[n] for n in functional.index if n in values}
        for name, optional in operator.outputs:
            if optional:
                asked[name] = name in given or values[schema.wanted(name)]
        known = {n: d for n, d in dims.items() if n not in given}
        results, places = mapped(op, functional, operator, info.batch_size, asked, known)
        out, out_dims = [], []
        for name, result, place in zip(functional.returns, results, places, strict=True):
            target = values.get(name)
            if name in given or name in operator.changed:
                if target is not None:
                    _write(operator.kernel, name, target, dims.get(name), result, place)
                result, place = result.new_empty(0, dtype=torch.uint8), None
            if name in form.returns:
                out.append(result)
                out_dims.append(place)
        return (out[0], out_dims[0]) if len(out) == 1 else (tuple(out), tuple(out_dims))

    return over


def mapped(
    op: torch._ops.OpOverload,
    form: Schema,
    operator: Operator,
    count: int,
    values: dict[str, object],
    dims: Mapping[str, int],
) -> tuple[list[torch.Tensor], list[int | None]]:
    """Results of ``op`` for every slice along ``dims`` of the tensors that have one, and the
    dimension along which they are stacked, None for what is the same for all."""
    values = dict(values)
    for name, d in dims.items():
        values[name] = values[name].movedim(d, 0)  # type: ignore[attr-defined]
    if count == 0:
        empty = {n: _without_data(v, n in dims) for n, v in values.items()}
        like = next(v for v in values.values() if isinstance(v, torch.Tensor))
        results = [
            torch.empty((0, *t.shape), dtype=t.dtype, device=like.device)
            for t in _call(op, form, empty)
        ]
        return results, [0] * len(results)
    leading = _leading(operator, form, values, dims)
    if leading is not None:
        return _folded(op, form, count, values, dims, leading)
    slices = [
        _call(op, form, {n: v[k] if n in dims else v for n, v in values.items()})  # type: ignore[index]
        for k in range(count)
    ]
    return [torch.stack(parts) for parts in zip(*slices, strict=True)], [0] * len(form.returns)


def _folded(op, form: Schema, count: int, values: dict, dims, leading: set[str]):
    """One call with the mapped dimension in front of every dimension of ``leading`` tensors."""
    inner = None
    for name, v in values.items():
        if not isinstance(v, torch.Tensor) or form.about(name) not in leading:
            continue
        whole = v if name in dims else v.unsqueeze(0).expand(count, *v.shape)
        inner = whole.shape[1]
        values[name] = whole.reshape(count * inner, *whole.shape[2:])
    results: list[torch.Tensor] = []
    places: list[int | None] = []
    for result in _call(op, form, values):
        if result.dtype is torch.uint8 and result.shape == (0,):
            results.append(result)
            places.append(None)
        else:
            results.append(result.unflatten(0, (count, inner)))
            places.append(0)
    return results, places


def _leading(operator: Operator, form: Schema, values: dict, dims) -> set[str] | None:
    """The tensors whose first dimension is a batch, if the mapped ones are all among them, and so
    is every gradient that is wanted."""
    kernel = operator.kernel
    if values.get(schema.RAN):  # what the forward kept is not of the folded shape
        return None
    first = {
        p.spec.dims[0] if p.spec.dims else None
        for p in kernel.signature.tensors
        if p.name in {form.about(n) for n in dims}
    }
    if len(first) != 1 or not isinstance(size := first.pop(), Symbol):
        return None
    arguments = {
        n: (v[0] if n in dims else v) if isinstance(v, torch.Tensor) else v
        for n, v in values.items()
        if n in operator.kernel.binder.names and v is not None
    }
    tensors = proved(kernel, size, kernel.binder.bind_without_data(arguments))
    if tensors is None:
        return None
    wanted = values.get(schema.WANTED)
    if wanted is not None:
        gradients = {n for n, w in zip(form.returns, wanted, strict=True) if w}
        if not gradients <= tensors:
            return None
    return tensors


def proved(kernel: Kernel, size: Symbol, call: Call) -> set[str] | None:
    """The names of the tensors that begin with the dimension ``size``, if every program of the
    kernel reads and writes at one place of it and nothing else depends on it; else None."""
    group = (size, repr(call.constants), frozenset(call.present), repr(sorted(call.dtypes.items())))
    if group not in kernel.batches:
        kernel.batches[group] = _prove(kernel, size, call)
    return kernel.batches[group]


class _Enough(Exception):
    pass


def _prove(kernel: Kernel, size: Symbol, call: Call) -> set[str] | None:
    if any(size.name in c.names for c in kernel.signature.conditions):
        return None
    found: list[Function] = []

    def watch(stage: str, fn: Function) -> None:
        found.append(fn)
        raise _Enough

    key = replace(kernel.key_of(call), machine="", described=False)
    try:
        kernel.lower(key, watch=watch, split=True)
    except _Enough:
        return batched(found[0], size)
    return None


def batched(fn: Function, size: Symbol) -> set[str] | None:
    """``proved`` of tile IR."""
    tensors = {p.name for p in fn.params if p.dims and p.dims[0] == size}
    elsewhere = [d for p in fn.params for d in (p.dims[1:] if p.name in tensors else p.dims)]
    elsewhere += [count for _, count in fn.grid if count != size]
    places = [s for s, count in fn.grid if count == size]
    if len(places) != 1 or any(size in d.free_symbols for d in elsewhere):
        return None
    (place,) = places
    ours = {place, size}
    if any(p.role == "out" and p.name not in tensors for p in fn.params):
        return None
    for value in walk_values(fn.body):
        if ours & value.type.free_symbols():
            return None
    for op in fn.body.walk():
        name = op.attrs.get("param")
        attrs = dict(op.attrs)
        if name in tensors:
            if op.kind not in _PLACED or attrs["start"][0] != place or 0 in _flat(attrs["tile"]):
                return None
            attrs["start"] = attrs["start"][1:]
        if any(isinstance(v, dict) for v in attrs.values()):
            return None
        if ours & replace(op, attrs=attrs).attr_symbols():
            return None
    return tensors


def _flat(tile) -> set[int]:
    return {d for which in tile for d in which}


def _dims(form: Schema, in_dims) -> dict[str, int]:
    return {n: d for n, d in zip(form.index, in_dims, strict=False) if isinstance(d, int)}


def _call(op, form: Schema, values: dict) -> tuple:
    place, named = form.ordered(values)
    results = op(*place, **named)
    return (results,) if isinstance(results, torch.Tensor) else tuple(results)


def _without_data(value, sliced: bool):
    if not isinstance(value, torch.Tensor):
        return value
    shape = value.shape[1:] if sliced else value.shape
    return torch.empty(shape, dtype=value.dtype, device="meta")


def _write(kernel: Kernel, name: str, target, dim: int | None, result, place) -> None:
    if place is None:
        target.copy_(result if dim is None else result.unsqueeze(dim).expand(target.shape))
    elif dim is None:
        raise CallError(
            f"{kernel.name}: vmap has many values for {name}, which is written in place and is "
            f"not mapped\n  fix: map over {name} too"
        )
    else:
        target.copy_(result.movedim(place, dim))
