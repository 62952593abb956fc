"""The backward of a kernel against autograd of its reference.

The derived one; where one is attached, that: it need not be a derivative of what the kernel
computes. What it is to be the reference says, with ``detach`` where values and gradients part.

    |gradient - autograd| <= (c eps(f32) + roundings eps(operands) / 2) terms + half an ulp

with ``terms`` by perturbation as for outputs (tkpy/testing/model.py): inputs, cotangents, and every
intermediate result of the reference and of its backward pass are moved by a random amount. A
gradient counts with the sum of all that it is made of, however much of that cancels. A backward
rounds about twice as often as its forward, so that ``c`` and ``roundings`` are doubled.

Where the reference has no finite gradient, nothing is asked of the kernel. Where an output has
overflowed in its own type (fp16), a gradient need not be a number: backwards read what the forward
has stored, as PyTorch's own do, and inf * 0 is none. What is a number is held all the same.

Of a backward alone, whatever the reference says: it is linear in the gradients of the outputs.
Rounding is symmetric, so their negative gives the negative to the last bit; and the gradients that
two disjoint parts of them give add up to what the whole gives, within the bounds of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from tkpy.backward import Backward
from tkpy.backward_plan import Compiled, Tensor, entry_of, program_of
from tkpy.errors import TkError
from tkpy.execution import launcher
from tkpy.signature import TORCH_NAMES
from tkpy.testing.model import compare, conditioning, same_bits
from tkpy.testing.plan import Example
from tkpy.testing.run import ReferenceRaised, Runner, _double, _in_parts


class Poisoned(Backward):
    """A backward that holds NaN in every dead element of every tile."""

    def _load(self, key, how, device) -> Compiled:
        segments = dict(how[4])
        entry = entry_of(self.derive(key, *how[:3], poison=True, joint=how[3], segments=segments))
        programs = [program_of(p) for p in entry["programs"]]
        saved = tuple(Tensor(**t) for t in entry["saved"])
        launches = tuple(launcher(p.source, p.name, device) for p in programs)
        return Compiled(programs[0], saved, tuple(programs[1:]), launches)


@dataclass
class BackwardRunner(Runner):
    """Runs the gradients of examples of one plan, of all inputs that can have one."""

    kinds: Sequence[str] = ("integers", "normal", "big", "tiny", "mixed")
    poisons: Poisoned | None = field(default=None)
    overflowed: bool = field(default=False)  # an output of the last run is not finite

    def run(self, example: Example) -> None:
        """Raises Failed if a gradient of ``example`` is not as it must be."""
        example = self._smooth(example)
        arguments = self.plan.arguments(example)
        kernel = self.plan.kernel
        call = kernel.binder.bind((), dict(arguments))
        wrt = kernel.backward.inputs(call)
        given = kernel.backward.outputs(call)
        attached = kernel.attached
        if attached is not None and attached.through is not None:
            given = [n for n in given if n in attached.through]
        if not wrt or not given:
            return
        cotangents = self._cotangents(example, call, given)
        run = (
            self._gradients(kernel.backward, example, arguments, wrt)
            if attached is None
            else self._attached(example, arguments, wrt, call)
        )
        got, again = run(cotangents), run(cotangents)
        for n in wrt:
            if not same_bits(got[n], again[n]):
                raise self._fail(example, f"the gradient of {n} differs between two runs")
        expected = self._answer(example, cotangents, wrt)
        self._agree(example, expected, got)
        self._linear(example, expected, cotangents, got, run)
        if example.setting.poison and attached is None:
            self.poisons = self.poisons or Poisoned(kernel, kernel.backward.constants)
            self.poisons.joint = kernel.backward.joint
            self.poisons.carries = kernel.backward.carries
            poisoned = self._gradients(self.poisons, example, arguments, wrt)(cotangents)
            # Not the same bits: what is overwritten in between is not fused with what follows.
            self._agree(example, expected, poisoned, "with NaN in dead elements ")

    def _smooth(self, example: Example) -> Example:
        """``example`` with values at which the kernel has one derivative."""
        recipes = {
            n: r
            if r.kind in self.kinds
            else replace(r, kind=self.kinds[len(r.kind) % len(self.kinds)])
            for n, r in example.recipes.items()
        }
        return replace(example, recipes=recipes)

    def _cotangents(self, example: Example, call, given: list[str]) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(sum(example.sizes.values()))
        out = {}
        for p in call.wanted:
            if p.name in given:
                dtype = self.plan.dtype_of(p.spec, example.setting)
                shape = call.shapes[p.name]
                made = torch.randn(
                    shape,
                    generator=g,
                    dtype=torch.complex64 if dtype.is_complex else torch.float32,
                )
                out[p.name] = made.to(getattr(torch, TORCH_NAMES[dtype.name]))
        return out

    def _gradients(self, backward, example, arguments, wrt) -> Callable:
        """From cotangents by name to gradients by name; one run of the forward serves all."""
        try:
            outs, saved = backward.forward(arguments, wrt)
            call = self.plan.kernel.binder.bind((), dict(arguments))
        except Exception as e:
            raise self._fail(example, f"{type(e).__name__}: {e}") from e
        self.overflowed = any(_inexact(o) and not bool(o.isfinite().all()) for o in outs)

        def run(cotangents: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            cts = [cotangents.get(p.name) for p in call.wanted]
            try:
                return backward.gradients(arguments, outs, saved, cts, wrt)
            except Exception as e:
                raise self._fail(example, f"{type(e).__name__}: {e}") from e

        return run

    def _attached(self, example, arguments, wrt, call) -> Callable:
        """As ``_gradients``, of a backward written by hand, through autograd as its callers."""
        leaves = {n: arguments[n].detach().requires_grad_() for n in wrt}
        try:
            with torch.enable_grad():
                outs = self.plan.kernel(**{**arguments, **leaves})
        except Exception as e:
            raise self._fail(example, f"{type(e).__name__}: {e}") from e
        outs = outs if isinstance(outs, tuple) else (outs,)
        self.overflowed = any(_inexact(o) and not bool(o.isfinite().all()) for o in outs)
        made = {p.name: o for p, o in zip(call.wanted, outs, strict=True) if o.requires_grad}

        def run(cotangents: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            names = [n for n in made if n in cotangents]
            try:
                found = torch.autograd.grad(
                    [made[n] for n in names],
                    list(leaves.values()),
                    [cotangents[n] for n in names],
                    retain_graph=True,
                    allow_unused=True,
                )
            except Exception as e:
                raise self._fail(example, f"{type(e).__name__}: {e}") from e
            return {
                n: torch.zeros_like(leaves[n]) if g is None else g
                for n, g in zip(wrt, found, strict=True)
            }

        return run

    def _answer(self, example, cotangents, wrt) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """``_expected``; empty where the reference has no answer for an empty input."""
        inputs = {n: t for n, (t, _) in self.plan.inputs(example).items()}
        try:
            return self._expected(example, inputs, cotangents, wrt)
        except ReferenceRaised as e:
            if 0 in example.sizes.values():
                return {}
            raise self._fail(example, f"autograd of the reference raised {e}") from e

    def _agree(self, example, expected, got, how="", what="") -> None:
        for n, (want, bound) in expected.items():
            out = _in_parts(got[n])
            told = want.isfinite() & bound.isfinite()
            if self.overflowed:
                told &= out.isfinite()
            quiet = torch.where(told, out.double(), 0.0).to(out.dtype)
            verdict = compare(quiet, torch.where(told, want, 0.0), torch.where(told, bound, 1.0))
            self.worst = max(self.worst, verdict.ratio)
            if not verdict.ok:
                raise self._wrong(example, f"{how}the gradient of {n}{what}", verdict)

    def _linear(self, example, expected, cotangents, got, run) -> None:
        """The backward is linear in ``cotangents``, of which ``got`` are the gradients."""
        minus = run({n: -g for n, g in cotangents.items()})
        for n in expected:
            a, b = _in_parts(got[n]), -_in_parts(minus[n])
            if not bool(((a == b) | (a.isnan() & b.isnan())).all()):
                raise self._fail(
                    example,
                    f"the gradient of {n} is not linear in those of the outputs: their negative "
                    f"does not give its negative ({self._where(a, b)})",
                )
        half = {n: _half(g) for n, g in cotangents.items()}
        one = run(half)
        two = run({n: g - half[n] for n, g in cotangents.items()})
        sums = {
            n: ((_in_parts(one[n]).double() + _in_parts(two[n]).double()), 3 * bound)
            for n, (_, bound) in expected.items()
        }
        self._agree(example, sums, got, what=", against the sum of those of two parts")

    def _expected(self, example, inputs, cotangents, wrt):
        """For each input its gradient in fp64, and how far off a kernel may be."""
        scalars = {
            n: float(torch.tensor(v, dtype=torch.float32)) if isinstance(v, float) else v
            for n, v in example.scalars.items()
        }
        fixed = {**inputs, **scalars, **dict(example.setting.constants)}
        moving = [n for n, t in inputs.items() if t is not None and _inexact(t)]
        values = [_in_parts(inputs[n]).double() for n in moving]
        names = [p.name for p in self._returned()]
        told = [n for n in names if n in cotangents]
        values += [_in_parts(cotangents[n]).double() for n in told]

        def ask(what: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            args = {n: t.clone() if isinstance(t, torch.Tensor) else t for n, t in fixed.items()}
            leaves = {}
            with torch.enable_grad():
                for n, x in zip(moving, what, strict=False):
                    leaves[n] = x.detach().clone().requires_grad_()
                    pair = inputs[n].is_complex()
                    args[n] = torch.view_as_complex(leaves[n]) if pair else leaves[n] * 1.0
                made = dict(zip(names, self._ask(self.reference, args), strict=True))
                pairs = [
                    (_double(made[n]), g)
                    for n, g in zip(told, what[len(moving) :], strict=True)
                    if made[n].requires_grad
                ]
                if not pairs:
                    return [torch.zeros_like(leaves[n]) for n in wrt]
                grads = torch.autograd.grad(
                    [o for o, _ in pairs],
                    [leaves[n] for n in wrt],
                    [g.reshape(o.shape) for o, g in pairs],
                    allow_unused=True,
                )
            return [
                torch.zeros_like(leaves[n]) if g is None else g
                for n, g in zip(wrt, grads, strict=True)
            ]

        try:
            plain = ask(values)
        except TkError:
            raise
        except RuntimeError as e:
            raise ReferenceRaised(str(e)) from e
        terms = conditioning(ask, values, plain, seed=1)
        tensors = [t for t in inputs.values() if t is not None] + list(cotangents.values())
        model = replace(self.model, c=2 * self.model.c, roundings=2 * max(self.model.roundings, 1))
        out = {}
        for n, want, t in zip(wrt, plain, terms, strict=True):
            dtype = torch.float32 if inputs[n].is_complex() else inputs[n].dtype
            # A saturated function (1 - tanh^2) is rounded by the reference too, in fp64.
            slack = 2.0**-40 * float(t.max()) if t.numel() else 0.0
            out[n] = (want, model.bound(want, t, dtype, tensors) + slack)
        return out


def _half(g: torch.Tensor) -> torch.Tensor:
    """``g`` with every other element zero, and so exactly a part of it."""
    kept = torch.arange(g.numel(), device=g.device).view(g.shape) % 2 == 0
    return torch.where(kept, g, torch.zeros((), dtype=g.dtype))


def _inexact(t: torch.Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()
