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

A reference that does not come with ``terms`` gets them derived, by perturbation: every input and
every intermediate result of the reference is moved by a random amount, relative to itself and
Cauchy-distributed. An output then moves by an amount that is Cauchy-distributed too, and its
scale is exactly the sum, over all those numbers x, of |d out / d x| * |x| (P. Indyk, "Stable
distributions, pseudorandom generators, embeddings and data stream computation", 2000). For a sum of
products that is the sum of |terms|; it also counts how badly conditioned the answer is (a large
score under an exponential, a difference of two nearly equal numbers). A quantile over several
directions estimates it. Intermediates are reached through torch's dispatcher, as Monte Carlo
arithmetic does with the processor's (D. S. Parker, 1997); a reference that leaves torch has only
its inputs moved.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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

    def bound(self, expected, terms, dtype: torch.dtype, inputs: Sequence[torch.Tensor]):
        """Largest allowed |out - expected|, elementwise, in float64.

        terms: the sum of |terms|, the author's or that of ``conditioning``; nowhere less than
        |expected| counts. dtype: the output's. inputs: the tensors that the kernel was given.
        """
        floats = [t for t in inputs if t.is_floating_point()]
        short = {t.dtype for t in floats if t.element_size() == 2}
        operand_eps = max([torch.finfo(d).eps for d in short], default=0.0)
        lost = torch.finfo(torch.float32).smallest_normal
        if self.roundings and short:
            lost += 64 * max(torch.finfo(d).smallest_normal * torch.finfo(d).eps for d in short)
        lost *= max([1.0, *(_largest(t) for t in floats)])
        size = expected.abs().nan_to_num(0.0, posinf=0.0)
        terms = torch.maximum(terms.nan_to_num(0.0, posinf=0.0), size)
        slack = (self.c * EPS32 + self.roundings * operand_eps / 2) * terms
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


class _Noise:
    """Cauchy-distributed numbers, cut from one long row of them: fresh ones cost too much."""

    row: torch.Tensor | None = None

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        if _Noise.row is None:
            drawn = np.random.default_rng(0).standard_cauchy(2**17)
            _Noise.row = torch.from_numpy(drawn.clip(-_CLIP, _CLIP) * _STEP)

    def move(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` with every finite element moved, relative to itself.

        A complex number moves by its modulus in either part: what is rounded in the real part of
        a b is Re a Re b and Im a Im b, of which the difference may be small.
        """
        if x.is_complex():
            size = x.abs()
            return x + torch.complex(self.move(size) - size, self.move(size) - size)
        row = _Noise.row
        assert row is not None
        count = x.numel()
        if count > row.numel() // 2:
            row = row.repeat(-(-2 * count // row.numel()))
        first = self.rng.randrange(row.numel() - count)
        moved = torch.addcmul(x, x, row[first : first + count].view(x.shape))
        return torch.where(x.isinf(), x, moved)  # -inf less some of it is no number


class _MoveResults(TorchDispatchMode):
    """Moves the result of every arithmetic operation on float64 and complex128 tensors."""

    def __init__(self, noise: _Noise):
        super().__init__()
        self.noise = noise

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (
            isinstance(out, torch.Tensor)
            and out.dtype in (torch.float64, torch.complex128)
            and func.overloadpacket.__name__ not in _EXACT
            and not any(r.alias_info for r in func._schema.returns)
            and any(isinstance(a, torch.Tensor) for a in args)
        ):
            return self.noise.move(out)
        return out


#: Operations that move numbers or choose among them, without rounding.
_EXACT = frozenset(
    """
    clone copy cat stack index gather where masked_fill repeat flip roll neg abs _to_copy max min
    amax amin maximum minimum clamp relu sign index_select constant_pad_nd masked_select tril triu
    index_put scatter slice_scatter select_scatter sort floor ceil round trunc zeros_like ones_like
    full_like nan_to_num complex conj_physical _conj_physical
    """.split()  # noqa: SIM905
)


def conditioning(
    evaluate: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    inputs: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    seed: int,
) -> list[torch.Tensor]:
    """For each output element an estimate, rather too large, of sum |d out / d x| * |x|.

    ``evaluate`` maps float64 inputs to outputs; ``outputs`` is its value at ``inputs``. Where a
    derivative is infinite or not a number the estimate is |out|.
    """
    noise = _Noise(seed)
    changes: list[list[torch.Tensor]] = [[] for _ in outputs]
    for _ in range(_DIRECTIONS):
        moved = [noise.move(x) for x in inputs]
        with _MoveResults(noise):
            made = evaluate(moved)
        for k, (new, old) in enumerate(zip(made, outputs, strict=True)):
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
    alternatives: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
) -> Verdict:
    """Holds ``out`` against ``expected`` (float64) elementwise.

    NaN equals only an expected NaN, an infinity only the same infinity; an expected number
    beyond what the dtype can hold must come as infinity. Without ``bound`` (integers, bool)
    values must be equal. ``alternatives``: pairs (values, where) of what is as good there.
    """
    if out.numel() == 0:
        return Verdict()
    if bound is None:
        ratio = torch.where(out == expected.to(out.dtype), 0.0, math.inf).double()
    else:
        ratio = _ratio(out, expected, bound)
        for values, where in alternatives:
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
