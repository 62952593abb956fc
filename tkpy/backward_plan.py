"""A derived backward as data: its programs, the tensors that they take, and what either hold."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from codegen.expr import text
from codegen.ir import Param
from tkpy import memory
from tkpy.carries import facts
from tkpy.lower import Differentiated
from tkpy.signature import TORCH_NAMES


@dataclass(frozen=True)
class Tensor:
    """A tensor that a program takes: how large, of what, and what it must hold before."""

    name: str
    role: str
    dtype: str
    dims: str  # Python source of a tuple of the named sizes
    zeroed: bool = False
    pair: bool = False
    parts: int = 0  # leading dimensions over which partial sums are added

    def make(self, sizes: Mapping[str, int], device: torch.device) -> torch.Tensor:
        make, shape, dtype = self.how(sizes)
        return make(shape, dtype, device)

    def how(
        self, sizes: Mapping[str, int]
    ) -> tuple[Callable[..., torch.Tensor], list[int], torch.dtype]:
        """What ``make`` calls: the function, the shape and the type."""
        known = all(isinstance(n, int) for n in sizes.values())
        least, most = (min, max) if known else (_least, _most)
        shape = eval(self.dims, {"min": least, "max": most}, dict(sizes))
        dtype = getattr(torch, TORCH_NAMES[self.dtype])
        if self.pair:
            shape, dtype = shape[:-1], torch.complex64
        return memory.zeros if self.zeroed else memory.empty, list(shape), dtype


def _least(*numbers):
    """``min`` of numbers that may be symbols."""
    return functools.reduce(torch.sym_min, numbers)


def _most(*numbers):
    return functools.reduce(torch.sym_max, numbers)


@dataclass(frozen=True)
class Program:
    """One compiled program, its parameters in order, and the names of its scalars."""

    source: str
    name: str
    tensors: tuple[Tensor, ...]
    scalars: tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """A backward: the forward that saves, what it saves, and the programs."""

    forward: Program
    saved: tuple[Tensor, ...]
    programs: tuple[Program, ...]
    launches: tuple[Callable[..., None], ...]  # of the forward, then of the programs

    @functools.cached_property
    def reads(self) -> frozenset[str]:
        """The names of all that the programs take."""
        return frozenset(t.name for p in self.programs for t in p.tensors)

    @functools.cached_property
    def done(self) -> list[list[str]]:
        """For each of the programs the scratch memory that no later one reads."""
        last = {
            t.name: k
            for k, p in enumerate(self.programs)
            for t in p.tensors
            if t.role != "in" and not t.name.startswith("d_")
        }
        for k, p in enumerate(self.programs):
            last.update({t.name: k for t in p.tensors if t.name in last})
        return [[n for n, at in last.items() if at == k] for k in range(len(self.programs))]


def more_sums(entry: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Bytes of the partial sums that a joint backward has and others have not."""
    made = {t["name"]: Tensor(**t) for p in entry["programs"] for t in p["tensors"]}
    more = 0
    for t in (made[f"d_{n}"] for n in entry["guests"]):
        _, shape, dtype = t.how(sizes)
        several, one = math.prod(shape[: t.parts]), math.prod(shape[t.parts :])
        more += max(several - 1, 0) * one * dtype.itemsize
    return more


def entry_of(made: Differentiated) -> dict:
    gradients = made.derivation.gradients
    zeroed = {f"d_{g.name}" for g in gradients.values() if g.zeroed}
    parts = {f"d_{g.name}": g.parts for g in gradients.values()}

    def tensor(p: Param) -> dict:
        dims = "(" + "".join(f"{text(d)}, " for d in p.dims) + ")"
        return {
            "name": p.name,
            "role": p.role,
            "dtype": p.dtype.name,
            "dims": dims,
            "zeroed": p.name in zeroed or p.zeroed,
            "pair": p.pair,
            "parts": parts.get(p.name, 0),
        }

    programs = [
        {
            "source": lowered.source,
            "name": lowered.fn.name,
            "tensors": [tensor(p) for p in lowered.fn.params if p.role != "scalar"],
            "scalars": [p.name for p in lowered.fn.params if p.role == "scalar"],
        }
        for lowered in (made.forward, *made.pieces)
    ]
    return {
        "programs": programs,
        "saved": [tensor(p) for p in made.derivation.saved],
        "taped": facts(made.derivation.taped),
        "guests": [n for p in made.derivation.pieces for n in p.guests],
    }


def program_of(entry: dict) -> Program:
    tensors = tuple(Tensor(**t) for t in entry["tensors"])
    return Program(entry["source"], entry["name"], tensors, tuple(entry["scalars"]))


def vast(entry: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    """Whether an offset into some tensor of the programs needs over 32 bits."""
    dims = tuple(dict.fromkeys(t["dims"] for p in entry["programs"] for t in p["tensors"]))
    return _most_numbers(dims, tuple(sizes.items())) >= 2**31


@functools.lru_cache(1024)
def _most_numbers(dims: tuple[str, ...], sizes: tuple[tuple[str, int], ...]) -> int:
    """Numbers of the largest tensor."""
    names = {"min": min, "max": max}
    return max((math.prod(eval(d, dict(names), dict(sizes))) for d in dims), default=0)


__all__ = ["Compiled", "Program", "Tensor", "entry_of", "more_sums", "program_of", "vast"]
