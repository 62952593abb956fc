"""Reverse-mode gradients of operators, as kernels for PyTorch's Autograd dispatch key.

``torch.library.register_autograd`` would do, were it not that its formulas do not work inside of
``torch.func.grad``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from tkpy.errors import CallError
from tkpy.operator import schema
from tkpy.operator.formula import formula_of
from tkpy.operator.schema import Schema

if TYPE_CHECKING:
    from tkpy.operator.call import Operator

_transforms = torch._C._functorch.peek_interpreter_stack


def recorded(
    op: torch._ops.OpOverload,
    form: Schema,
    backward_op: torch._ops.OpOverload | None,
    backward_form: Schema | None,
    operator: Operator,
) -> Callable:
    """The autograd kernel of the functional operator: ``backward_op`` gives its gradients."""
    kernel = operator.kernel

    class Recorded(_SingleLevelFunction):
        @staticmethod
        def forward(ctx, keyset, formula, *flat):
            values = dict(zip(form.index, flat, strict=True))
            asked = dict(values)
            for name in formula.keeps or ():
                if name in asked and name not in operator.differentiable:
                    asked[name] = True  # the flag of an optional output
            results = _tuple(_below(op, keyset, form, asked))
            results = dict(zip(form.returns, results, strict=True))
            kept = _computed(results, asked, operator)
            if formula.keeps is not None:
                kept = {n: t for n, t in kept.items() if n in formula.keeps}
            tensors = {n: v for n, v in values.items() if isinstance(v, torch.Tensor)}
            ctx.save_for_backward(*tensors.values(), *kept.values())
            ctx.tensors, ctx.kept = tuple(tensors), tuple(kept)
            ctx.others = {n: v for n, v in values.items() if n not in tensors}
            ctx.set_materialize_grads(False)
            shown = _computed(results, values, operator)
            given = {
                n: t if n in shown else t.new_empty(0, dtype=torch.uint8)
                for n, t in results.items()
            }
            whole = [t for t in given.values() if not (t.is_floating_point() or t.is_complex())]
            ctx.mark_non_differentiable(*whole)
            return tuple(given.values())

        @staticmethod
        def backward(ctx, *grads):
            saved = ctx.saved_tensors
            count = len(ctx.tensors)
            values = {**ctx.others, **dict(zip(ctx.tensors, saved[:count], strict=True))}
            kept = dict(zip(ctx.kept, saved[count:], strict=True))
            for n, grad in zip(form.returns, grads, strict=True):
                values[schema.result(n)], values[schema.cotangent(n)] = kept.get(n), grad
            places = {n: k + 2 for n, k in form.index.items()}
            needed = [ctx.needs_input_grad[places[n]] for n in backward_form.returns]
            values[schema.WANTED] = needed
            place, _ = backward_form.ordered(values)
            found = dict(zip(backward_form.returns, _tuple(backward_op(*place)), strict=True))
            wanted = {n for n, w in zip(backward_form.returns, needed, strict=True) if w}
            return None, None, *(found[n] if n in wanted else None for n in form.index)

    def rule(keyset, *args, **kwargs):
        values = form.values(args, kwargs)
        _no_tangents(kernel, values)
        needs = _requiring(values)
        if not needs:
            return _below(op, keyset, form, values)
        formula = formula_of(kernel)
        if formula is None:
            raise CallError(
                f"{kernel.name}: {min(needs)} requires grad, and this kernel has no backward\n"
                "  fix: call it under torch.no_grad(), or pass it detached"
            )
        if formula.check is not None:
            formula.check(_inputs(values, operator), needs)
        with _single_level():
            out = Recorded.apply(keyset, formula, *[values[n] for n in form.index])
        return out[0] if len(form.returns) == 1 else out

    return rule


def once(op: torch._ops.OpOverload, form: Schema, operator: Operator) -> Callable:
    """The autograd kernel of the backward operator: its own derivative is refused."""

    class Once(_SingleLevelFunction):
        @staticmethod
        def forward(ctx, keyset, values, *flat):
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
            out = Once.apply(keyset, None, *[values[n] for n in form.index])
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


def _computed(
    results: dict[str, torch.Tensor], asked: dict[str, object], operator: Operator
) -> dict[str, torch.Tensor]:
    """The results without what stands for those that were not computed."""
    optional = {n for n, may in operator.outputs if may}
    return {n: t for n, t in results.items() if n not in optional or asked[n]}


def _requiring(values: dict[str, object]) -> set[str]:
    if not torch.is_grad_enabled():
        return set()
    return {n for n, v in values.items() if isinstance(v, torch.Tensor) and v.requires_grad}


def _inputs(values: dict[str, object], operator: Operator) -> dict[str, object]:
    outputs = {n for n, _ in operator.outputs}
    return {n: v for n, v in values.items() if n not in outputs}


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
