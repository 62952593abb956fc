"""Reverse-mode gradients of operators, as kernels for PyTorch's Autograd dispatch key.

``torch.library.register_autograd`` would do, were it not that its formulas do not work inside of
``torch.func.grad``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from tkpy.errors import CallError
from tkpy.operator import schema
from tkpy.operator.formula import formula_of
from tkpy.operator.schema import Schema, arguments, nothing

if TYPE_CHECKING:
    from tkpy.operator.call import Operator

_transforms = torch._C._functorch.peek_interpreter_stack
_BEFORE = 3  # arguments of a recorded call that are none of the operator's


@dataclass(frozen=True)
class Pullback:
    """The backward operator ``op`` of schema ``form``, for the functional one of ``forward``."""

    op: torch._ops.OpOverload
    form: Schema
    forward: Schema

    def __call__(
        self,
        values: dict[str, object],
        results: dict[str, torch.Tensor],
        grads: tuple[torch.Tensor | None, ...],
        needs: set[str],
        kept: list[torch.Tensor] | None,
    ) -> dict[str, torch.Tensor]:
        """Gradients by name, of inputs that are in ``needs``.

        values: the functional operator's arguments. results: what it gave, those that are known.
        grads: with respect to all it gave. kept: what the forward kept besides, None if nothing.
        """
        values = dict(values)
        for n, grad in zip(self.forward.returns, grads, strict=True):
            values[schema.result(n)], values[schema.cotangent(n)] = results.get(n), grad
        values[schema.WANTED] = [n in needs for n in self.form.returns]
        values[schema.KEPT], values[schema.RAN] = kept or [], kept is not None
        place, _ = self.form.ordered(values)
        return dict(zip(self.form.returns, _tuple(self.op(*place)), strict=True))


@dataclass(frozen=True)
class Keeping:
    """The operator that returns a list of what its backward reads, after the results."""

    op: torch._ops.OpOverload
    form: Schema


def recorded(op: torch._ops.OpOverload, form: Schema, operator: Operator) -> Callable:
    """The autograd kernel of the functional operator; ``operator.pullback`` gives gradients.

    Where a graph is recorded ``operator.keeping`` runs, and what it keeps is part of the graph.
    """
    kernel = operator.kernel
    optional = {n for n, may in operator.outputs if may}

    def _told(formula, values: dict, needs: set[str]) -> bool:
        """Whether it is known before a run what the forward keeps."""
        if operator.keeping is None or formula.kept is None or _transforms() is not None:
            return False
        return formula.kept(arguments(form, (), values), needs) is not None

    def _computed(results: dict, asked: dict) -> dict[str, torch.Tensor]:
        """The results without what stands for those that nobody asked for."""
        return {n: t for n, t in results.items() if n not in optional or asked[n]}

    class Recorded(_SingleLevelFunction):
        @staticmethod
        def forward(ctx, keyset, formula, needs, *flat):
            values = dict(zip(form.index, flat, strict=True))
            kept: list[torch.Tensor] | None = None
            keeps = formula.keeps
            if formula.forward is not None and _plain(values):
                # What is saved is what ``recall`` saves: checkpoints hold one against the other.
                computed, kept, keeps = formula.forward(arguments(form, (), values), needs)
            elif _told(formula, values, needs):
                asked = {**values, schema.WANTED: [n in needs for n in operator.differentiable]}
                *results, kept = _below(operator.keeping.op, keyset, operator.keeping.form, asked)
                computed = _computed(dict(zip(form.returns, results, strict=True)), values)
            else:
                asked = {**values, **dict.fromkeys(optional & {*(formula.keeps or ())}, True)}
                results = _tuple(_below(op, keyset, form, asked))
                computed = _computed(dict(zip(form.returns, results, strict=True)), asked)
            tensors = {n: v for n, v in values.items() if isinstance(v, torch.Tensor)}
            saved = {n: t for n, t in computed.items() if keeps is None or n in keeps}
            ctx.save_for_backward(*tensors.values(), *saved.values(), *(kept or ()))
            ctx.names = tuple(tensors), tuple(saved)
            ctx.others = {n: v for n, v in values.items() if n not in tensors}
            ctx.needs = needs if kept is not None else None
            ctx.set_materialize_grads(False)
            shown = _computed(computed, values)
            out = tuple(shown[n] if n in shown else nothing(tensors) for n in form.returns)
            whole = [t for t in out if not (t.is_floating_point() or t.is_complex())]
            ctx.mark_non_differentiable(*whole)
            return out

        @staticmethod
        def backward(ctx, *grads):
            tensors, kept = ctx.names
            saved = iter(ctx.saved_tensors)
            values = {**ctx.others, **{n: next(saved) for n in tensors}}
            results = {n: next(saved) for n in kept}
            places = {n: k for k, n in enumerate(form.index)}
            asked = {n for n in form.index if ctx.needs_input_grad[places[n] + _BEFORE]}
            # What the forward kept is for the gradients that were wanted then.
            needs, kept = (asked, None) if ctx.needs is None else (ctx.needs, list(saved))
            assert operator.pullback is not None
            found = operator.pullback(values, results, grads, needs, kept)
            return (None,) * _BEFORE + tuple(found[n] if n in asked else None for n in form.index)

    def rule(keyset, *args, **kwargs):
        values = form.values(args, kwargs)
        _no_tangents(kernel, values)
        needs = _requiring(values)
        if not needs:
            return _below(op, keyset, form, values)
        formula = formula_of(kernel)
        if formula is None:
            raise CallError(
                f"{kernel.name}: {', '.join(sorted(operator.changed))} is changed in place, so "
                f"that no backward is derived, and {min(needs)} requires grad\n"
                "  fix: attach one, @kernel.attach_backward, or call it under torch.no_grad()"
            )
        with _single_level():
            out = Recorded.apply(keyset, formula, needs, *[values[n] for n in form.index])
        return out[0] if len(form.returns) == 1 else out

    return rule


def once(op: torch._ops.OpOverload, form: Schema, operator: Operator) -> Callable:
    """The autograd kernel of the backward operator: its own derivative is refused."""

    class Once(_SingleLevelFunction):
        @staticmethod
        def forward(ctx, keyset, *flat):
            return _tuple(_below(op, keyset, form, dict(zip(form.index, flat, strict=True))))

        @staticmethod
        def backward(ctx, *grads):
            raise CallError(
                f"{operator.kernel.name}: there is no second derivative\n"
                "  fix: leave create_graph out, or write this part in plain PyTorch"
            )

    def rule(keyset, *args, **kwargs):
        values = form.values(args, kwargs)
        _no_tangents(operator.kernel, values)
        if not _requiring(values):
            return _below(op, keyset, form, values)
        with _single_level():
            out = Once.apply(keyset, *[values[n] for n in form.index])
        return out[0] if len(form.returns) == 1 else out

    return rule


def _below(op: torch._ops.OpOverload, keyset, form: Schema, values: dict[str, object]):
    """What the operator gives where autograd does not look.

    The outer transforms of ``torch.func`` are below too, and some of them record.
    """
    place, named = form.ordered(values)
    keys = keyset & torch._C._after_autograd_keyset
    with contextlib.ExitStack() as stack:
        if _transforms() is not None:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(forward_ad._set_fwd_grad_enabled(True))
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        return op.redispatch(keys, *place, **named)


def _single_level():
    """Functions of ours see one level of ``torch.func`` at a time, as those in C++ do."""
    if _transforms() is None:
        return contextlib.nullcontext()
    from torch._functorch.utils import enable_single_level_autograd_function

    return enable_single_level_autograd_function()


def _requiring(values: dict[str, object]) -> set[str]:
    if not torch.is_grad_enabled():
        return set()
    return {n for n, v in values.items() if isinstance(v, torch.Tensor) and v.requires_grad}


def _plain(values: dict[str, object]) -> bool:
    """Whether all tensors are plain ones that nobody transforms or traces."""
    return (
        _transforms() is None
        and not torch._C._len_torch_dispatch_stack()
        and all(
            type(v).__torch_dispatch__ is torch.Tensor.__torch_dispatch__ and not v.is_meta
            for v in values.values()
            if isinstance(v, torch.Tensor)
        )
    )


def _no_tangents(kernel, values: dict[str, object]) -> None:
    if forward_ad._current_level < 0:
        return
    for name, v in values.items():
        if isinstance(v, torch.Tensor) and forward_ad.unpack_dual(v).tangent is not None:
            raise CallError(
                f"{kernel.name}: {name} carries a tangent, and kernels have no forward-mode "
                "derivative\n  fix: torch.func.vjp and torch.func.grad work in reverse mode"
            )


def _tuple(results) -> tuple:
    return (results,) if isinstance(results, torch.Tensor) else tuple(results or ())
