"""Recorded calls like earlier ones, without PyTorch's dispatcher and without a second look.

The first calls of a likeness go to the operator. Later ones are a ``torch.autograd.Function`` that
allocates and launches what the operator was found to launch, forward and backward. Whatever a
backward finds different from what was recorded, it leaves to the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.autograd.function import _SingleLevelFunction

from tkpy import memory
from tkpy.operator import schema

if TYPE_CHECKING:
    from tkpy.backward_plan import Tensor
    from tkpy.kernel import Kernel
    from tkpy.replay import Plan, Replay

_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_Make = tuple[str, Callable[..., torch.Tensor], list[int], torch.dtype]


@dataclass(slots=True)
class Step:
    """One program of a backward: what is allocated for it, its arguments in order, and what of
    all that was allocated nobody reads any more."""

    made: list[_Make]
    launch: Callable[..., None]
    arguments: list[str]
    done: list[str]


@dataclass(slots=True)
class Result:
    """The gradient of one input: dimensions of partial sums to add, None for zeros."""

    name: str
    parts: int | None
    like: _Make


@dataclass(slots=True)
class Recall:
    """How the recorded calls of one likeness run: a ``Plan`` of the forward, and the backward."""

    kernel: Kernel
    plan: Plan
    joint: bool | None
    carries: int | str | None
    constants: dict[str, object]
    outputs: list[str]
    whole: list[str]  # outputs of integers
    inputs: list[str]  # all tensors of the call
    kept: list[str]  # what the backward reads besides them
    likes: list[tuple]  # shape, strides, type and device of both
    cotangents: list[_Make]
    steps: list[Step]
    results: list[Result]
    alone: tuple = ()

    def values(self, args: tuple, kwargs: dict[str, object]) -> dict[str, object]:
        return self.plan.values(args, kwargs)

    def holds(self, values: dict[str, object]) -> bool:
        backward = self.kernel.backward
        if (self.joint, self.carries, self.constants) != (
            backward.joint,
            backward.carries,
            backward.constants,
        ):
            return False
        return self.plan.holds(values)

    def run(self, values: dict[str, object]):
        tensors = [values[n] for n in self.inputs]
        return _Recalled.apply(self, values, *tensors)  # type: ignore[attr-defined]

    def gradients(self, values: dict, grads: tuple) -> dict[str, torch.Tensor]:
        """As ``tkpy.backward.Backward.gradients``; ``values`` are tensors and scalars by name."""
        device = self.plan.device
        for (name, make, shape, dtype), g in zip(self.cotangents, grads, strict=True):
            values[name] = make(shape, dtype, device) if g is None else g.contiguous()
        for step in self.steps:
            for name, make, shape, dtype in step.made:
                values[name] = make(shape, dtype, device)
            step.launch(*[values[n] for n in step.arguments])
            for name in step.done:
                del values[name]
        found = {}
        for r in self.results:
            name, make, shape, dtype = r.like
            if r.parts is None:  # nothing that has a cotangent depends on it
                found[r.name] = make(shape, dtype, device)
            else:
                g = values.pop(name)
                found[r.name] = memory.added_up(g, r.parts, dtype) if r.parts else g.to(dtype)
        return found

    def as_recorded(self, saved: tuple, grads: tuple) -> bool:
        """Whether a backward meets the tensors that the forward saw, and nobody looks on."""
        return (
            not torch.is_grad_enabled()
            and _transforms() is None
            and not _modes()
            and [_like(t) for t in saved] == self.likes
            and all(g is None or (type(g) is torch.Tensor and not g.is_neg()) for g in grads)
        )

    def otherwise(self, values: dict, grads: tuple) -> Mapping[str, torch.Tensor | None]:
        """The gradients by the backward operator."""
        operator = self.kernel.operator
        assert operator.pullback is not None
        pull, device = operator.pullback, self.plan.device
        given = {
            s.name: True if s.parameter is None and s.name in self.outputs else values.get(s.name)
            for s in pull.forward.slots
        }
        for s in pull.forward.slots:
            if given[s.name] is None and s.name in self.plan.known:
                given[s.name] = self.plan.known[s.name]
            if given[s.name] is None and s.default is not schema.REQUIRED:
                given[s.name] = s.default
        made = {n: (shape, dtype) for n, _, shape, dtype in self.plan.made}
        results = {
            n: values[n]
            if n in values
            else torch.empty(made[n][0], dtype=made[n][1], device=device)
            for n in self.outputs
        }
        saved = [values[n] for n in made if n not in self.outputs]
        by_name = dict(zip(self.outputs, grads, strict=True))
        cotangents = tuple(by_name.get(n) for n in pull.forward.returns)
        return pull(given, results, cotangents, {r.name for r in self.results}, saved)


class _Recalled(_SingleLevelFunction):
    @staticmethod
    def forward(ctx, recall, values, *tensors):
        plan = recall.plan
        for name, make, shape, dtype in plan.made:
            values[name] = make(shape, dtype, plan.device)
        plan.launch(*[values[n] for n in plan.arguments])
        ctx.save_for_backward(*tensors, *[values[n] for n in recall.kept])
        ctx.recall = recall
        ctx.others = {n: v for n, v in values.items() if not isinstance(v, torch.Tensor)}
        ctx.set_materialize_grads(False)
        out = tuple(values[n] for n in recall.outputs)
        if recall.whole:
            ctx.mark_non_differentiable(*(values[n] for n in recall.whole))
        return out[0] if len(out) == 1 else out

    @staticmethod
    def backward(ctx, *grads):
        recall, saved = ctx.recall, ctx.saved_tensors
        values = dict(ctx.others)
        values.update(zip((*recall.inputs, *recall.kept), saved, strict=True))
        if recall.as_recorded(saved, grads):
            found = recall.gradients(values, grads)
        else:
            found = recall.otherwise(values, grads)
        return None, None, *[found.get(n) for n in recall.inputs]


def remember(kernel: Kernel, replay: Replay, key: tuple, args: tuple, kwargs: dict) -> None:
    """Have later calls like this one, which was recorded, recalled; from the third on.

    Making a plan costs as much as a call, and shapes that come once are not worth it.
    """
    if key not in replay.plans:
        replay.remember(key, None)
        return
    if kernel.attached is not None or kernel.operator.changed or not torch.is_grad_enabled():
        return
    backward = kernel.backward
    with torch.no_grad():
        call = kernel.binder.bind(args, kwargs)
        if any(p.name in call.tensors for p in kernel.signature.outputs):
            return
        given = {**dict(zip((p.name for p in kernel.binder.positional), args, strict=False))}
        given.update(kwargs)
        differentiable = backward.inputs(call)
        needs = [n for n in differentiable if call.tensors[n].requires_grad]
        if not needs or any(t.is_complex() for t in call.tensors.values()):
            return
        floats = backward.outputs(call)
        compiled, call = backward.compiled(call, tuple(sorted(needs)), tuple(floats))
        assert kernel.operator.pullback is not None
        place = kernel.operator.pullback.forward.index
        inputs = sorted(call.tensors, key=place.__getitem__)  # as the operator saves them
        kernel._allocate(call)
        plan = replay.plan(args, kwargs, call, compiled.launches[0], kernel._zeroed(call))
    outputs = list(plan.outputs)
    saved = [(t.name, *t.how(call.sizes)) for t in compiled.saved]
    plan.made = plan.made + saved
    plan.arguments = [t.name for t in compiled.forward.tensors] + list(compiled.forward.scalars)
    plan.defaults = {n: v for n, v in call.scalars.items() if n not in given}
    cotangents = [
        (f"d_{n}", memory.zeros, call.shapes[n], call.tensors[n].dtype)
        if n in floats
        else (f"d_{n}", memory.empty, [0], torch.uint8)
        for n in outputs
    ]
    read = {t.name for program in compiled.programs for t in program.tensors}
    known = {*inputs, *outputs, *(n for n, *_ in saved), *(n for n, *_ in cotangents)}
    steps: list[Step] = []
    made: dict[str, Tensor] = {}
    for program, launch, done in zip(
        compiled.programs, compiled.launches[1:], compiled.done, strict=True
    ):
        new = [(t.name, *t.how(call.sizes)) for t in program.tensors if t.name not in known]
        known |= {n for n, *_ in new}
        made |= {t.name: t for t in program.tensors}
        steps.append(
            Step(new, launch, [*(t.name for t in program.tensors), *program.scalars], done)
        )
    kept = [n for n in outputs if n in read] + [n for n, *_ in saved]
    layouts = {n: call.tensors[n] for n in (*inputs, *outputs)}
    likes = [_like(layouts[n]) for n in inputs]
    likes += [
        _like(layouts[n]) if n in layouts else _like(_empty(n, saved, call.device)) for n in kept
    ]
    results = [
        Result(
            n,
            made[f"d_{n}"].parts if f"d_{n}" in made else None,
            (f"d_{n}", memory.zeros, list(call.tensors[n].shape), call.tensors[n].dtype),
        )
        for n in needs
    ]
    whole = [n for n in outputs if n not in floats]
    recall = Recall(
        kernel, plan, backward.joint, backward.carries, dict(backward.constants), outputs, whole,
        inputs, kept, likes, cotangents, steps, results,
    )  # fmt: skip
    replay.remember(key, recall)


def _empty(name: str, saved: list[_Make], device: torch.device) -> torch.Tensor:
    _, make, shape, dtype = next(s for s in saved if s[0] == name)
    return make(shape, dtype, device)


def _like(t: torch.Tensor) -> tuple:
    return type(t), t.shape, t.stride(), t.dtype, t.device, t.is_neg()
