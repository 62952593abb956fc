"""From a kernel's signature to the schemas of its operators.

A kernel has up to four operators. Of

    attention(q: Global, k: Global, v: Global, o: Out, lse: Out | None = None, scale: f32 | None)

the *functional* one is ``attention(Tensor q, Tensor k, Tensor v, float? scale=None, *, bool
lse=False) -> (Tensor o, Tensor lse)``. Optional outputs are asked for by a flag of their name, and
an empty tensor takes the place of those that are not. Tensors that the kernel changes in place are
inputs here, and what they become comes after the outputs. The *in-place* one, ``attention_``, is
for kernels that write into tensors they are given, and the *backward* one for those with gradients.
The *keeping* one is the functional one where a graph is recorded: it also returns a list of what
its backward reads.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from tkpy.signature import REQUIRED, ConstSpec, DType, Parameter, ScalarSpec, Signature, TensorSpec

_TYPES = {bool: "bool", int: "int", float: "float", str: "str"}


@dataclass(frozen=True)
class Slot:
    """One argument of an operator.

    default: what is assumed of a call that leaves it out. about: the kernel's tensor that a result
    or gradient belongs to; the name itself for the kernel's own arguments.
    """

    name: str
    text: str
    default: object = REQUIRED
    keyword_only: bool = False
    parameter: Parameter | None = None
    about: str = ""


@dataclass(frozen=True)
class Schema:
    """The arguments of an operator and what it returns."""

    slots: tuple[Slot, ...]
    returns: tuple[str, ...]
    mutated: tuple[str, ...] = ()
    keeps: bool = False  # a list of tensors is returned besides

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Places of the arguments."""
        return {s.name: k for k, s in enumerate(self.slots)}

    @property
    def text(self) -> str:
        """As PyTorch writes it, without the operator's name."""
        positional = [s.text for s in self.slots if not s.keyword_only]
        named = [s.text for s in self.slots if s.keyword_only]
        arguments = positional + (["*", *named] if named else [])
        returns = ["Tensor"] * len(self.returns) + ["Tensor[]"] * self.keeps
        given = returns[0] if len(returns) == 1 else f"({', '.join(returns)})"
        return f"({', '.join(arguments)}) -> {given}"

    def values(self, args: tuple, kwargs: Mapping[str, object]) -> dict[str, object]:
        """Arguments by name; the dispatcher leaves out those that are equal to their defaults."""
        out = dict(zip(self.index, args, strict=False))
        for slot in self.slots[len(args) :]:
            out[slot.name] = kwargs.get(slot.name, slot.default)
        return out

    def about(self, name: str) -> str:
        """The kernel's tensor that an argument is about."""
        return self.slots[self.index[name]].about or name

    def ordered(self, values: dict[str, object]) -> tuple[list, dict[str, object]]:
        """The reverse of ``values``: arguments that go by place, and those that go by name."""
        place = [values[s.name] for s in self.slots if not s.keyword_only]
        return place, {s.name: values[s.name] for s in self.slots if s.keyword_only}


def functional(signature: Signature) -> Schema:
    """Of the operator that changes nothing."""
    slots = _inputs(signature)
    slots += [_flag(p.name) for p in signature.outputs if p.spec.optional]
    changed = tuple(p.name for p in signature.tensors if p.spec.role == "inout")
    return Schema(tuple(slots), tuple(p.name for p in signature.outputs) + changed)


def keeping(signature: Signature) -> Schema:
    """Of the functional operator that also returns what the derived backward reads.

    It is told for which differentiable inputs a gradient will be wanted.
    """
    forward = functional(signature)
    slots = [Slot(s.name, _plain(s), REQUIRED, False, s.parameter) for s in forward.slots]
    slots.append(Slot(WANTED, f"bool[] {WANTED}"))
    return Schema(tuple(slots), forward.returns, keeps=True)


def in_place(signature: Signature) -> Schema:
    """Of the operator that writes into what it is given.

    Outputs may be given too, under their names. ``NAME__wanted`` asks for optional ones that are
    not given. It returns the outputs, with an empty tensor for those given or not wanted.
    """
    memory = (f"(a{k}!)" for k in itertools.count())
    slots = _inputs(signature, memory)
    for p in signature.outputs:
        slots.append(Slot(p.name, f"Tensor{next(memory)}? {p.name}=None", None, False, p))
    slots += [_flag(wanted(p.name)) for p in signature.outputs if p.spec.optional]
    mutated = tuple(p.name for p in signature.tensors if p.spec.role != "in")
    slots.sort(key=lambda s: s.keyword_only)
    return Schema(tuple(slots), tuple(p.name for p in signature.outputs), mutated)


def backward(signature: Signature, differentiable: Iterable[str]) -> Schema:
    """Of the operator that gives gradients.

    It takes what the functional operator takes, its results (None where they were not computed or
    are not needed), gradients with respect to these (None where they are zero), for every
    differentiable input whether its gradient is wanted, and what the forward kept besides, if it
    did. It returns one tensor for each differentiable input, empty where it is not wanted.
    """
    forward = functional(signature)
    slots = [Slot(s.name, _plain(s), REQUIRED, False, s.parameter) for s in forward.slots]
    for called in (result, cotangent):
        slots += [Slot(called(n), f"Tensor? {called(n)}", about=n) for n in forward.returns]
    slots += [Slot(WANTED, f"bool[] {WANTED}"), Slot(KEPT, f"Tensor[] {KEPT}")]
    slots.append(Slot(RAN, f"bool {RAN}"))
    return Schema(tuple(slots), tuple(differentiable))


#: The backward operator's flags, one a differentiable input.
WANTED = "gradients__wanted"
#: What the forward kept for the backward besides its results, and whether it did.
KEPT, RAN = "forward__kept", "forward__ran"


def wanted(output: str) -> str:
    """The in-place operator's flag for an optional output that is not given."""
    return f"{output}__wanted"


def result(output: str) -> str:
    """The backward operator's name for what the forward computed."""
    return f"{output}__result"


def cotangent(output: str) -> str:
    """The backward operator's name for the gradient with respect to an output."""
    return f"{output}__cotangent"


def differentiable(signature: Signature) -> tuple[str, ...]:
    """The inputs that a gradient exists for: tensors of real or complex numbers."""
    return tuple(
        p.name
        for p in signature.inputs
        if not isinstance(p.spec.dtype, DType) or p.spec.dtype.inexact
    )


def _inputs(signature: Signature, memory: Iterator[str] | None = None) -> list[Slot]:
    """Slots of all but the outputs. PyTorch wants required ones first, and tensors by place.

    ``memory``: what marks tensors as written, if those that are changed in place are.
    """
    place: list[Slot] = []
    named: list[Slot] = []
    for p in signature.parameters:
        if not (isinstance(p.spec, TensorSpec) and p.spec.role == "out"):
            slot = _slot(p, memory)
            (named if slot.keyword_only else place).append(slot)
    return sorted(place, key=lambda s: s.default is not REQUIRED) + named


def _slot(p: Parameter, memory: Iterator[str] | None) -> Slot:
    if isinstance(p.spec, TensorSpec):
        type_ = f"Tensor{next(memory)}" if memory and p.spec.role == "inout" else "Tensor"
        optional, by_place = p.spec.optional, True
    elif isinstance(p.spec, ScalarSpec):
        type_ = "float" if p.spec.dtype.is_float else "SymInt"
        optional, by_place = p.spec.optional, not p.keyword_only
    else:
        assert isinstance(p.spec, ConstSpec)
        type_ = _TYPES[p.spec.type]
        optional, by_place = p.spec.optional or p.default is None, not p.keyword_only
    text = f"{type_}{'?' if optional else ''} {p.name}"
    if p.default is REQUIRED:
        return Slot(p.name, text, REQUIRED, not by_place, p)
    default = None if p.by_device else _literal(p.default)
    if default is None or (p.default is None and not optional):
        # PyTorch has no word for it: None stands for "as the signature says".
        return Slot(p.name, f"{type_}? {p.name}=None", None, not by_place, p)
    return Slot(p.name, f"{text}={default}", p.default, not by_place, p)


def _flag(name: str) -> Slot:
    return Slot(name, f"bool {name}=False", False, True)


def _plain(slot: Slot) -> str:
    """The slot's text without its default."""
    return slot.text.split("=")[0]


def _literal(value: object) -> str | None:
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return f'"{value}"' if re.fullmatch(r"[\w .:+-]*", value) else None
    return None


def arguments(form: Schema, args: tuple, kwargs: Mapping[str, object]) -> dict[str, object]:
    """An operator's arguments as the kernel's: without what it assumes by itself."""
    out = {}
    for name, value in form.values(args, kwargs).items():
        p = form.slots[form.index[name]].parameter
        if p is None:  # asks for an optional output
            if value is not False:
                out[name] = value
        elif isinstance(p.spec, TensorSpec) and p.spec.role == "out":
            if value is not None:
                out[name] = value
        elif value is None and p.by_device:  # left open
            continue
        else:  # None may stand for a default that schemas have no word for
            out[name] = p.default if value is None and p.default is not REQUIRED else value
    return out


def nothing(values: Mapping[str, object]) -> torch.Tensor:
    """What stands for an output that is not wanted."""
    device = next(v for v in values.values() if isinstance(v, torch.Tensor)).device
    return torch.empty(0, dtype=torch.uint8, device=device)
