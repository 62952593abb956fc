"""Telling PyTorch about a kernel's operators: what they are, do, give without data, and under vmap.

Below autograd an operator is the kernel's own call, on any device: the kernel says which it runs
on. Without data (fake and meta tensors) it is what the signature says of shapes and types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch

from tkpy.operator import autograd, batch, schema
from tkpy.operator.formula import formula_of, gradients
from tkpy.operator.names import NAMESPACE
from tkpy.operator.schema import Schema, arguments, nothing
from tkpy.signature import TORCH_NAMES, DType

if TYPE_CHECKING:
    from tkpy.call import Call
    from tkpy.kernel import Kernel
    from tkpy.operator.call import Operator

_libraries: list[torch.library.Library] = []  # an operator is gone when its library is


def register(operator: Operator, name: str) -> None:
    """Registers the operators of ``operator`` under ``name`` and names made from it."""
    signature = operator.kernel.signature
    forward = schema.functional(signature)
    back = None
    if operator.differentiable:
        back = schema.backward(signature, operator.differentiable)
        _define(f"{name}_backward", back, _Backward(operator, forward, back), operator)
        op = _overload(f"{name}_backward")
        _library().impl(op._opname, autograd.once(op, back, operator), "Autograd", with_keyset=True)
        if not operator.changed:
            form = _define_keeping(f"{name}_keeping", operator, forward)
            operator.keeping = autograd.Keeping(_overload(f"{name}_keeping"), form)
    _define(name, forward, _Functional(operator, forward), operator)
    op, backward = _overload(name), _overload(f"{name}_backward") if back else None
    if backward is not None and back is not None:
        operator.pullback = autograd.Pullback(backward, back, forward)
    rule = autograd.recorded(op, forward, operator)
    _library().impl(op._opname, rule, "Autograd", with_keyset=True)
    if signature.outputs or operator.changed:
        _define_in_place(f"{name}_", operator, op, forward)


def _library() -> torch.library.Library:
    if not _libraries:
        _libraries.append(torch.library.Library(NAMESPACE, "FRAGMENT"))
    return _libraries[0]


def _overload(name: str) -> torch._ops.OpOverload:
    return getattr(getattr(torch.ops, NAMESPACE), name).default


class _Runs:
    """What operators that run the kernel share: subclasses read arguments and order results."""

    kernel: Kernel

    def _arguments(self, args: tuple, kwargs: dict) -> dict[str, object]:
        raise NotImplementedError

    def _given(self, values: dict[str, object], results: dict[str, torch.Tensor]):
        raise NotImplementedError

    def run(self, *args, **kwargs):
        values = self._arguments(args, kwargs)
        with torch.no_grad():
            results = self.kernel.run((), values)
        wanted = [p.name for p in self.kernel.signature.outputs if _is_wanted(p, values)]
        return self._given(values, named(wanted, results))

    def fake(self, *args, **kwargs):
        values = self._arguments(args, kwargs)
        call = self.kernel.binder.bind_without_data(values)
        return self._given(values, _outputs(self.kernel, call))


class _Functional(_Runs):
    """The operator that changes nothing."""

    def __init__(self, operator: Operator, form: Schema):
        self.kernel, self.form, self.changed = operator.kernel, form, operator.changed
        self.optional = {n for n, optional in operator.outputs if optional}

    def _arguments(self, args: tuple, kwargs: dict) -> dict[str, object]:
        values = arguments(self.form, args, kwargs)
        for name in self.changed:
            old = values.get(name)
            if isinstance(old, torch.Tensor):
                values[name] = old.clone()
        return values

    def _given(self, values: dict[str, object], results: dict[str, torch.Tensor]):
        known = {**{n: values.get(n) for n in self.changed}, **results}
        out = [nothing(values) if known.get(n) is None else known[n] for n in self.form.returns]
        return out[0] if len(out) == 1 else tuple(out)


class _Keeping:
    """The operator that also returns what the derived backward reads."""

    def __init__(self, operator: Operator, forward: Schema, form: Schema):
        self.kernel, self.forward, self.form = operator.kernel, forward, form
        self.differentiable = operator.differentiable

    def _asked(self, args: tuple, kwargs: dict):
        values = self.form.values(args, kwargs)
        wanted = cast("list[bool]", values[schema.WANTED])
        needs = {n for n, w in zip(self.differentiable, wanted, strict=True) if w}
        formula = formula_of(self.kernel)
        assert formula is not None, "only derived backwards keep"
        return formula, arguments(self.forward, (), values), needs

    def run(self, *args, **kwargs):
        formula, values, needs = self._asked(args, kwargs)
        with torch.no_grad():
            results, kept, _ = formula.forward(values, needs)
        return (*self._results(values, results), list(kept))

    def fake(self, *args, **kwargs):
        formula, values, needs = self._asked(args, kwargs)
        call = self.kernel.binder.bind_without_data(values)
        kept = formula.kept(values, needs)
        return (*self._results(values, _outputs(self.kernel, call)), kept)

    def _results(self, values, results) -> list[torch.Tensor]:
        return [results[n] if n in results else nothing(values) for n in self.form.returns]


class _InPlace(_Runs):
    """The operator that writes into what it is given."""

    def __init__(self, operator: Operator, form: Schema):
        self.kernel, self.form = operator.kernel, form

    def _arguments(self, args: tuple, kwargs: dict) -> dict[str, object]:
        values = arguments(self.form, args, kwargs)
        for name in self.form.returns:
            flag = values.pop(schema.wanted(name), False)
            if flag and name not in values:
                values[name] = True
        return values

    def _given(self, values: dict[str, object], results: dict[str, torch.Tensor]):
        out = [
            results[n]
            if n in results and not isinstance(values.get(n), torch.Tensor)
            else nothing(values)
            for n in self.form.returns
        ]
        return out[0] if len(out) == 1 else tuple(out)


class _Backward:
    """The operator that gives gradients."""

    def __init__(self, operator: Operator, forward: Schema, form: Schema):
        self.kernel, self.forward, self.form = operator.kernel, forward, form

    def run(self, *args, **kwargs):
        values = self.form.values(args, kwargs)
        given = arguments(self.forward, (), values)
        outputs = {n: values[schema.result(n)] for n in self.forward.returns}
        cotangents = {n: values[schema.cotangent(n)] for n in self.forward.returns}
        needs = {n for n, w in zip(self.form.returns, values[schema.WANTED], strict=True) if w}
        kept = values[schema.KEPT] if values[schema.RAN] else None
        formula = formula_of(self.kernel)
        assert formula is not None, "the forward has refused it"
        device = next(v for v in given.values() if isinstance(v, torch.Tensor)).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            found = gradients(self.kernel, formula, given, outputs, cotangents, needs, kept)
        out = [found[n] if n in found else nothing(given) for n in self.form.returns]
        return out[0] if len(out) == 1 else tuple(out)

    def fake(self, *args, **kwargs):
        values = self.form.values(args, kwargs)
        out = [
            values[n].new_empty(values[n].shape) if w else nothing(values)
            for n, w in zip(self.form.returns, values[schema.WANTED], strict=True)
        ]
        return out[0] if len(out) == 1 else tuple(out)


def _define(name: str, form: Schema, body, operator: Operator) -> None:
    library = _library()
    library.define(name + form.text, tags=())
    library.impl(name, body.run, "CompositeExplicitAutograd")
    full = f"{NAMESPACE}::{name}"
    torch.library.register_fake(full, body.fake, lib=library)
    rule = batch.rule(_overload(name), form, operator)
    torch.library.register_vmap(full, rule, lib=library)


def _define_keeping(name: str, operator: Operator, forward: Schema) -> Schema:
    form = schema.keeping(operator.kernel.signature)
    body = _Keeping(operator, forward, form)
    library = _library()
    library.define(name + form.text, tags=())
    library.impl(name, body.run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", body.fake, lib=library)
    return form


def _define_in_place(name: str, operator: Operator, functional, forward: Schema) -> None:
    form = schema.in_place(operator.kernel.signature)
    body = _InPlace(operator, form)
    made = torch.library.custom_op(
        f"{NAMESPACE}::{name}", mutates_args=form.mutated, schema=form.text
    )(body.run)
    made.register_fake(body.fake)
    made.register_vmap(batch.in_place_rule(functional, form, forward, operator))
    _kept.append(made)


_kept: list[Callable] = []


def _is_wanted(p, values: dict[str, object]) -> bool:
    return not p.spec.optional or values.get(p.name) not in (None, False)


def named(names: list[str], results) -> dict[str, torch.Tensor]:
    """What a kernel returned by name."""
    if len(names) == 1:
        return {names[0]: results}
    return dict(zip(names, results or (), strict=True))


def _outputs(kernel, call: Call) -> dict[str, torch.Tensor]:
    """The outputs of a call on tensors without data."""
    out = {}
    for p in call.wanted:
        if p.name not in call.tensors:
            dtype = p.spec.dtype if isinstance(p.spec.dtype, DType) else kernel._variable(p, call)
            kind = getattr(torch, TORCH_NAMES[dtype.name])
            out[p.name] = torch.empty(call.shapes[p.name], dtype=kind, device=call.device)
    return out
