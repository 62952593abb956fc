"""Calls like earlier ones: what was found out about a call holds for every call of its likeness.

The *likeness* of a call is all that decides how it runs: which arguments are given, the shapes,
strides, element types and devices of tensors, which of them autograd looks at, compile-time
constants, and the executor. What it leaves out is the data of tensors, the addresses they lie at
and the values of scalars, so the rest of a call's checks, which look at those, are made every time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from tkpy import memory
from tkpy.call import LARGE, Binder, Call, holds
from tkpy.execution import executor
from tkpy.signature import Condition, ConstSpec, Parameter, ScalarSpec, TensorSpec

#: Shapes may differ in every call of a long run: when so many are remembered, all are forgotten.
MOST = 4096

_TENSOR, _FLOAT, _INT, _CONSTANT, _OTHER = range(5)


@dataclass(slots=True)
class Plan:
    """How the calls of one likeness run."""

    launch: Callable[..., None]
    arguments: list[str]  # the launcher's: tensors, then scalars
    names: list[str]  # those that positional arguments are for
    defaults: dict[str, object]  # scalars that were not given
    floats: list[str]  # scalars that an integer may be given for
    conditions: list[Condition]  # those about data and scalars; the others have been found to hold
    known: dict[str, object]  # sizes and constants, which conditions may name too
    alone: list[str]  # tensors given that may share memory with no other one
    cleared: list[str]  # outputs given that start from zero
    made: list[tuple[str, Callable[..., torch.Tensor], list[int], torch.dtype]]
    outputs: list[str]
    device: torch.device
    described: list[str] = field(default_factory=list)  # addresses must be multiples of 16

    def values(self, args: tuple, kwargs: dict[str, object]) -> dict[str, object]:
        """The arguments of a call by name."""
        out = dict(self.defaults)
        out.update(zip(self.names, args, strict=False))
        out.update(kwargs)
        for name in self.floats:
            out[name] = float(out[name])  # type: ignore[arg-type]
        return out

    def holds(self, values: dict[str, object]) -> bool:
        """Whether the preconditions, and what was compiled for, hold of this call's data."""
        if any(values[n].data_ptr() % 16 for n in self.described):  # type: ignore[attr-defined]
            return False
        if not self.conditions:
            return True
        scope = {**self.known, **values}
        return all(holds(c, scope) for c in self.conditions)

    def run(self, values: dict[str, object]):
        """Allocate, launch, and give what the call returns."""
        for name in self.cleared:
            values[name].zero_()  # type: ignore[attr-defined]
        for name, make, shape, dtype in self.made:
            values[name] = make(shape, dtype, self.device)
        self.launch(*[values[name] for name in self.arguments])
        if len(self.outputs) == 1:
            return values[self.outputs[0]]
        return tuple(values[name] for name in self.outputs) or None


class Replay:
    """The plans of one kernel."""

    def __init__(self, binder: Binder):
        self.plans: dict[tuple, Plan] = {}
        self.binder = binder
        self.kinds = {name: _kind(p) for name, p in binder.names.items()}
        self.pairs = {name: (name, kind) for name, kind in self.kinds.items()}
        self.positional = [self.pairs[p.name] for p in binder.positional]
        self.limits = {
            name: p.spec.dtype.limits
            for name, p in binder.names.items()
            if self.kinds[name] == _INT
        }

    def find(self, args: tuple, kwargs: dict[str, object]) -> tuple[tuple | None, Plan | None]:
        """A call's likeness and its plan; no likeness for a call that is looked at in full.

        Raises TkError as ``tkpy.execution.executor`` does.
        """
        key = self.likeness(args, kwargs)
        try:
            return key, self.plans.get(key)  # type: ignore[arg-type]
        except TypeError:  # a constant of a type that none has
            return None, None

    def likeness(self, args: tuple, kwargs: dict[str, object]) -> tuple | None:
        """What a call's plan is found by, or None."""
        if len(args) > len(self.positional):
            return None
        given: Iterable = zip(self.positional, args, strict=False)
        if kwargs:
            if not kwargs.keys() <= self.pairs.keys():
                return None
            pairs = [self.pairs[name] for name in kwargs]
            given = itertools.chain(given, zip(pairs, kwargs.values(), strict=True))
        parts: list[object] = [len(args), *kwargs]
        device = None
        recording = torch.is_grad_enabled()
        for (name, kind), value in given:
            of = type(value)
            if kind == _TENSOR and (of is torch.Tensor or of is torch.nn.Parameter):
                if value.layout is not torch.strided or value.is_neg() or value.is_meta:
                    return None
                if recording and value.requires_grad:
                    parts.append(name)
                if device is None:
                    device = value.device
                    parts.append(executor(device))
                parts += value.shape, value.stride(), value.dtype, value.device
            elif kind == _FLOAT and (of is float or of is int):
                parts.append(float)
            elif kind == _INT and of is int:
                low, high = self.limits[name]
                if not low <= value <= high:
                    return None
                parts.append(-LARGE < value < LARGE)
            elif kind == _CONSTANT or value is None or of is bool:
                # 1 == 1.0 == True and 0.0 == -0.0, and what they compile to differs.
                parts += of, repr(value) if of is float else value
            else:
                return None
        return tuple(parts) if device is not None else None

    def remember(self, key: tuple, plan) -> None:
        """``find`` gives ``plan``, anything with ``values``, ``holds``, ``alone`` and ``run``."""
        if len(self.plans) >= MOST:
            self.plans.clear()
        self.plans[key] = plan

    def plan(
        self,
        args: tuple,
        kwargs: dict[str, object],
        call: Call,
        launch: Callable[..., None],
        zeroed: frozenset[str],
        described: bool = False,
    ) -> Plan:
        """How ``call``, whose outputs are allocated, runs."""
        signature = self.binder.signature
        tensors = [p.name for p in signature.tensors if p.name in call.tensors]
        scalars = [p.name for p in signature.scalars if p.name in call.scalars]
        names = [name for name, _ in self.positional[: len(args)]]
        given = {**dict(zip(names, args, strict=True)), **kwargs}
        wanted = [p.name for p in call.wanted]
        taken = [n for n in tensors if isinstance(given.get(n), torch.Tensor)]
        moving = {*taken, *scalars}
        known = {**call.sizes, **call.constants}
        known_names = {*known, *call.tensors, *call.scalars}
        return Plan(
            launch=launch,
            arguments=tensors + scalars,
            names=names,
            defaults={n: call.scalars[n] for n in scalars if n not in given},
            floats=[n for n in scalars if n in given and self.kinds[n] == _FLOAT],
            conditions=[
                c for c in signature.conditions if c.names & moving and c.names <= known_names
            ],
            known=known,
            alone=[
                p.name
                for p in signature.tensors
                if p.name in taken and p.spec.role in ("out", "inout")
            ],
            cleared=[n for n in wanted if n in taken and n in zeroed],
            made=[
                (
                    n,
                    memory.zeros if n in zeroed else memory.empty,
                    list(call.shapes[n]),
                    call.tensors[n].dtype,
                )
                for n in wanted
                if n not in taken
            ],
            outputs=wanted,
            device=call.device,
            described=taken if described else [],
        )


def _kind(p: Parameter) -> int:
    if isinstance(p.spec, TensorSpec):
        return _TENSOR
    if isinstance(p.spec, ConstSpec):
        return _CONSTANT
    assert isinstance(p.spec, ScalarSpec)
    if not p.spec.dtype.is_float:
        return _INT
    return _FLOAT if p.spec.dtype.bits > 16 else _OTHER  # short ones are rounded in full view
