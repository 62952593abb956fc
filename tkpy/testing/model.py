"""When is an output right: the error model, and the comparison that applies it.

    |out - ref| <= (c * eps(f32) + roundings * eps(operands) / 2) * terms
                   + half an ulp of the output + what underflow can take away

``terms`` is, for each output element, the sum of the absolute values of what is added up to
give it. Arithmetic is in fp32, so every term carries a few fp32 roundings (``c``); where operands
are 16 bit wide a kernel may also round what it made of them back to 16 bits before it multiplies
again (attention's probabilities), so a term may carry ``roundings`` of those.

Underflow: numbers below the smallest normal one of fp32 are not told apart, nor what 64 terms
lose that are below the smallest subnormal of fp16 when a kernel rounds them to fp16 operands;
both in units of the largest input.

A reference that does not come with ``terms`` gets them derived: sum over inputs of
|d out / d in| * |in|, which for a sum of products is exactly the sum of |terms|, and which also
counts how badly conditioned the answer is (a large score under an exponential). A sum of
absolute values over all inputs is estimated from a few evaluations of the reference: perturb
every input at once by a random amount, relative to itself and Cauchy-distributed; the change of
an output is then Cauchy-distributed with exactly that sum as its scale (P. Indyk, "Stable
distributions, pseudorandom generators, embeddings and data stream computation", 2000), and a
quantile over several directions estimates it.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

EPS32 = torch.finfo(torch.float32).eps
_DIRECTIONS = 10
_QUANTILE = 7  # of 0..9 in order: errs upwards, by 2.4 in the middle
_STEP = 2.0**-34
_CLIP = 2.0**10


@dataclass(frozen=True)
class Model:
    """The constants of the error model; see the module's text."""

    c: float = 8.0
    roundings: float = 2.0

    def bound(self, expected, terms, derived, dtype: torch.dtype, inputs: Sequence[torch.Tensor]):
        """Largest allowed |out - expected|, elementwise, in float64.

        terms: the author's sum of |terms|, or None. derived: the estimate of ``conditioning``.
        dtype: the output's. inputs: the tensors that the kernel was given.
        """
        floats = [t for t in inputs if t.is_floating_point()]
        short = {t.dtype for t in floats if t.element_size() == 2}
        operand_eps = max([torch.finfo(d).eps for d in short], default=0.0)
        lost = torch.finfo(torch.float32).smallest_normal
        if self.roundings and short:
            lost += 64 * max(torch.finfo(d).smallest_normal * torch.finfo(d).eps for d in short)
        lost *= max([1.0, *(_largest(t) for t in floats)])
        size = expected.abs().nan_to_num(0.0, posinf=0.0)
        at32 = torch.maximum(derived.nan_to_num(0.0, posinf=0.0), size)
        at16 = at32 if terms is None else torch.maximum(terms.nan_to_num(0.0, posinf=0.0), size)
        slack = self.c * EPS32 * torch.maximum(at32, at16) + self.roundings * operand_eps / 2 * at16
        info = torch.finfo(dtype)
        return slack + half_ulp(size + slack, dtype) + info.smallest_normal * info.eps + lost


def _largest(t: torch.Tensor) -> float:
    finite = t[t.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def half_ulp(size: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Half the distance between neighbouring numbers of ``dtype`` at ``size`` >= 0."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(size.clamp(min=info.smallest_normal, max=info.max))[1] - 1
    return torch.exp2(exponent.double()) * (info.eps / 2)


@functools.cache
def _cauchy() -> torch.Tensor:
    """Cauchy-distributed numbers to cut directions from; drawing fresh ones costs too much."""
    drawn = np.random.default_rng(0).standard_cauchy(2**16)
    return torch.from_numpy(drawn.clip(-_CLIP, _CLIP))


def conditioning(
    evaluate: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    inputs: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    seed: int,
) -> list[torch.Tensor]:
    """For each output element an estimate, rather too large, of sum |d out / d in| * |in|.

    ``evaluate`` maps float64 inputs to outputs; ``outputs`` is its value at ``inputs``. Where a
    derivative is infinite or not a number the estimate is |out|.
    """
    noise = _cauchy()
    rng = random.Random(seed)
    changes: list[list[torch.Tensor]] = [[] for _ in outputs]
    for _ in range(_DIRECTIONS):
        moved = []
        for x in inputs:
            first = rng.randrange(noise.numel())
            r = noise.roll(-first)[: x.numel()] if x.numel() <= noise.numel() else None
            if r is None:
                r = noise.repeat(-(-x.numel() // noise.numel()))[: x.numel()]
            r = r.reshape(x.shape)
            moved.append(torch.where(x.isfinite(), x * (1 + _STEP * r), x))
        for k, (new, old) in enumerate(zip(evaluate(moved), outputs, strict=True)):
            changes[k].append((new - old).abs() / _STEP)
    out = []
    for rows, value in zip(changes, outputs, strict=True):
        change = torch.stack(rows).nan_to_num(0.0, posinf=0.0)
        estimate = change.sort(dim=0).values[_QUANTILE]
        out.append(torch.maximum(estimate, value.abs().nan_to_num(0.0, posinf=0.0)))
    return out


@dataclass
class Verdict:
    """The worst element: ``ratio`` is |out - expected| / bound, infinite where no bound helps."""

    ratio: float = 0.0
    index: tuple[int, ...] = ()
    got: object = None
    expected: object = None
    bound: float = 0.0

    @property
    def ok(self) -> bool:
        return self.ratio <= 1.0


def compare(
    out: torch.Tensor,
    expected: torch.Tensor,
    bound: torch.Tensor | None = None,
    alternative: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Verdict:
    """Holds ``out`` against ``expected`` (float64) elementwise.

    NaN equals only an expected NaN, an infinity only the same infinity; an expected number
    beyond what the dtype can hold must come as infinity. Without ``bound`` (integers, bool)
    values must be equal. ``alternative`` is (values, where): what is as good there.
    """
    if out.numel() == 0:
        return Verdict()
    if bound is None:
        ratio = torch.where(out == expected.to(out.dtype), 0.0, math.inf).double()
    else:
        ratio = _ratio(out, expected, bound)
        if alternative is not None:
            values, where = alternative
            other = _ratio(out, values, bound)
            ratio = torch.where(where & (other < ratio), other, ratio)
    worst = int(ratio.reshape(-1).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), out.shape))
    limit = 0.0 if bound is None else float(bound[index])
    return Verdict(float(ratio[index]), index, out[index].item(), expected[index].item(), limit)


def _ratio(out: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    info = torch.finfo(out.dtype)
    limit = info.max * (1 + info.eps / 4)  # from here on a number rounds to infinity
    got = out.double()
    error = (got - expected).abs() / bound
    error = torch.where(got == expected, 0.0, error)
    # An infinity is right for a number that, moved by the bound, rounds to it.
    overflow = got.isinf() & (expected.abs() + bound >= limit) & (got.sign() == expected.sign())
    error = torch.where(overflow, 0.0, error)
    error = torch.where(expected.isnan() != got.isnan(), math.inf, error)
    error = torch.where(expected.isnan() & got.isnan(), 0.0, error)
    error = torch.where(expected.isinf() & (got != expected), math.inf, error)
    return torch.where(error.isnan(), math.inf, error)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit: NaN equals NaN, 0 does not equal -0."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(kind) if a.dim() else a.reshape(1).view(kind),
        b.contiguous().view(kind) if b.dim() else b.reshape(1).view(kind),
    )
