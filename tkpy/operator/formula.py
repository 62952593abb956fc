"""How a kernel's gradients are computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tkpy.errors import CallError

if TYPE_CHECKING:
    from tkpy.kernel import Kernel

Tensors = Mapping[str, torch.Tensor | None]
Forward = tuple[Mapping[str, torch.Tensor], Sequence[torch.Tensor], Collection[str]]


@dataclass(frozen=True)
class Formula:
    """A backward.

    gradients: ``gradients(arguments, outputs, cotangents, needs)`` gives a gradient for every name
        in ``needs``, a set of names of tensors. ``arguments``: inputs, scalars and constants by
        name, and True for optional outputs that the call asks for. ``outputs``: what the forward
        computed, None for what it did not. ``cotangents``: the gradients with respect to the
        outputs, None for zero. Of a tensor that the kernel changes in place ``arguments`` has the
        old value, ``outputs`` and ``cotangents`` are about the new one.
    keeps: outputs that ``gradients`` reads; optional ones are computed for it, wanted or not. None:
        those that the call computes.
    through: outputs that gradients may come from, None for all.
    forward: if given, ``forward(arguments, needs)`` runs the kernel where autograd records it, and
        gives its outputs by name, a sequence of tensors for ``gradients``, whose fifth argument
        that is (None where the kernel ran without it, as it does under a transform), and a set in
        which the names of those outputs are that ``gradients`` reads.
    kept: goes with ``forward``: ``kept(arguments, needs)`` gives tensors without data like those
        that it keeps, or None where that is not known before a run.
    """

    gradients: Callable[..., Mapping[str, torch.Tensor | None]]
    keeps: Collection[str] | None = None
    through: Collection[str] | None = None
    forward: Callable[..., Forward] | None = None
    kept: Callable[..., Sequence[torch.Tensor] | None] | None = None


def formula_of(kernel: Kernel) -> Formula | None:
    """The backward that was attached to the kernel, else the derived one.

    None for kernels that change tensors in place: what these held is gone when a backward runs.
    """
    if kernel.attached is not None:
        return kernel.attached
    if kernel.operator.changed:
        return None
    derived = kernel.backward

    def forward(arguments, needs):
        outputs, kept, reads = derived.forward_and_reads(arguments, sorted(needs))
        return dict(zip(_wanted(kernel, arguments), outputs, strict=True)), kept, reads

    def back(arguments, outputs, cotangents, needs, kept):
        wanted = _wanted(kernel, arguments)
        results, given = [outputs[n] for n in wanted], [cotangents[n] for n in wanted]
        return derived.gradients(arguments, results, kept, given, sorted(needs))

    def kept(arguments, needs):
        return derived.kept(arguments, sorted(needs))

    return Formula(back, forward=forward, kept=kept)


def _wanted(kernel: Kernel, arguments: Mapping[str, object]) -> list[str]:
    return [n for n, optional in kernel.operator.outputs if not optional or arguments.get(n)]


def gradients(
    kernel: Kernel,
    formula: Formula,
    arguments: Mapping[str, object],
    outputs: Tensors,
    cotangents: Tensors,
    needs: set[str],
    kept: Sequence[torch.Tensor] | None,
) -> dict[str, torch.Tensor]:
    """What ``formula`` gives, each of the shape and type of its input, in memory of its own.

    Raises CallError for a cotangent that the formula does not take, and for what it does not give.
    """
    for name, grad in cotangents.items():
        if grad is not None and formula.through is not None and name not in formula.through:
            raise CallError(
                f"{kernel.name}: a gradient comes from {name}, and the attached backward takes "
                f"none of it\n  fix: {name}.detach(), or name {name} in attach_backward(through=)"
            )
    more = () if formula.forward is None else (kept,)
    given = formula.gradients(arguments, outputs, cotangents, set(needs), *more)
    if not isinstance(given, Mapping):
        raise CallError(
            f"{kernel.name}: the attached backward gives a {type(given).__name__}\n"
            "  fix: a dict from names of inputs to gradients"
        )
    out: dict[str, torch.Tensor] = {}
    taken = {
        t.untyped_storage().data_ptr()
        for values in (arguments, outputs, cotangents)
        for t in values.values()
        if isinstance(t, torch.Tensor) and t.numel()
    }
    for name in sorted(needs):
        of = arguments[name]
        assert isinstance(of, torch.Tensor)
        if name not in given:
            raise CallError(f"{kernel.name}: the attached backward gives no gradient of {name}")
        grad = given[name]
        if grad is None:
            grad = torch.zeros_like(of, memory_format=torch.contiguous_format)
        if grad.shape != of.shape:
            raise CallError(
                f"{kernel.name}: the attached backward gives a gradient of shape "
                f"{tuple(grad.shape)} for {name} of shape {tuple(of.shape)}"
            )
        grad = grad.to(of.dtype).contiguous()
        if grad.numel() and grad.untyped_storage().data_ptr() in taken:
            grad = grad.clone(memory_format=torch.contiguous_format)
        if grad.numel():
            taken.add(grad.untyped_storage().data_ptr())
        out[name] = grad
    return out
