"""One example: run the kernel every way it can be run, and hold each against what it must give."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tkpy.call import Call
from tkpy.errors import TkError
from tkpy.execution import executor, interpreted, launcher, strict
from tkpy.kernel import Kernel
from tkpy.signature import TORCH_NAMES
from tkpy.testing.data import laid_out, storage_bytes
from tkpy.testing.model import Model, Verdict, compare, conditioning, same_bits
from tkpy.testing.plan import Example, Plan, Setting, _shape
from tkpy.testing.report import describe, reproduction

_GROUPS = 6  # of special elements whose influence is told apart


class Failed(Exception):
    """A counterexample. ``text`` says what is wrong and how to see it."""

    def __init__(self, text: str, ratio: float = float("inf")):
        self.text, self.ratio = text, ratio
        super().__init__(text)


class ReferenceRaised(Exception):
    """The reference itself failed on an example."""


@dataclass
class Runner:
    """Runs examples of one plan. ``worst`` is the largest error / bound seen so far."""

    plan: Plan
    reference: Callable
    terms: Callable | None
    model: Model
    worst: float = 0.0
    poisoned: dict[object, Callable] = field(default_factory=dict)
    zeroed: dict[Setting, frozenset[str]] = field(default_factory=dict)

    def run(self, example: Example) -> None:
        """Raises Failed if anything about ``example`` is not as it must be."""
        inputs = {n: t for n, (t, _) in self.plan.inputs(example).items()}
        before = {n: storage_bytes(t) for n, t in inputs.items() if t is not None}
        given = self._outputs(example)
        first = self._guarded(example, inputs, given)
        for p in self.plan.signature.inputs:
            t = inputs[p.name]
            if p.spec.role != "in" or t is None:
                continue
            if not torch.equal(storage_bytes(t), before[p.name]):
                raise self._fail(example, f"the kernel changed its input {p.name}")
        self._values(example, inputs, first)
        self._again(example, first)
        if example.setting.poison:
            with strict():
                self._poisoned(example)
            with interpreted():
                inputs = {n: t for n, (t, _) in self.plan.inputs(example).items()}
                self._values(
                    example, inputs, self._guarded(example, inputs, self._outputs(example))
                )

    # -- the five executions ---------------------------------------------------------------

    def _outputs(self, example: Example, fill: bool = True) -> dict[str, torch.Tensor]:
        """Preallocated outputs, filled with what no kernel writes, inside guarded memory."""
        out = {}
        zeroed = self._zeroed(example)
        for p in self.plan.signature.outputs:
            if self.plan.given(example.setting, p):
                dtype = getattr(
                    torch, TORCH_NAMES[self.plan.dtype_of(p.spec, example.setting).name]
                )
                real = dtype.is_floating_point or dtype.is_complex
                blank = float("nan") if real else 85
                blank = 0 if p.name in zeroed else blank
                values = torch.full(_shape(p.spec, example.sizes), blank, dtype=dtype)
                out[p.name] = laid_out(values, "padded" if example.guard else "offset")
        return out

    def _zeroed(self, example: Example) -> frozenset[str]:
        """Outputs that the kernel only adds to, so that they start from zero."""
        if example.setting not in self.zeroed:
            try:
                key = self.plan.key_of(example)
                self.zeroed[example.setting] = self.plan.kernel._store.zeroed(key)
            except Exception:
                return frozenset()  # the call will raise the same, and be reported
        return self.zeroed[example.setting]

    def _guarded(self, example, inputs, outputs) -> dict[str, torch.Tensor]:
        """Runs into preallocated outputs. Returns outputs and final values of InOut tensors."""
        writable = dict(outputs)
        for p in self.plan.signature.inputs:
            if p.spec.role == "inout" and inputs[p.name] is not None:
                recipe = example.recipes.get(p.name)
                writable[p.name] = laid_out(inputs[p.name], recipe.layout if recipe else "offset")
        kept = {n: storage_bytes(t) for n, t in writable.items()}
        self._call(example, self.plan.kernel, {**inputs, **writable})
        for name, t in writable.items():
            memory = kept[name]
            view = torch.tensor([], dtype=t.dtype).set_(
                memory.untyped_storage(), t.storage_offset(), t.shape, t.stride()
            )
            view.copy_(t)
            if not torch.equal(memory, storage_bytes(t)):
                layout = "padded" if example.guard else "offset"
                raise self._fail(
                    example,
                    f"the kernel wrote outside of {name}, a {tuple(t.shape)} view with strides "
                    f"{t.stride()} into a larger buffer",
                    outputs=[
                        f"{n} = laid_out(torch.full({tuple(o.shape)}, 0, dtype={o.dtype}), "
                        f'"{layout}")'
                        for n, o in outputs.items()
                    ],
                    tail=[
                        f"print(torch.tensor([], dtype={name}.dtype)"
                        f".set_({name}.untyped_storage()))  # NaN (3) outside of the view"
                    ],
                )
        return writable

    def _again(self, example: Example, first: dict[str, torch.Tensor]) -> None:
        """A second run on fresh memory gives the same bits."""
        inputs = {n: t for n, (t, _) in self.plan.inputs(example).items()}
        wanted = [p for p in self.plan.signature.outputs if p.name in first]
        extra = {p.name: True for p in wanted if p.spec.optional}
        got = self._call(example, self.plan.kernel, {**inputs, **extra})
        got = got if isinstance(got, tuple) else (got,)
        second = dict(zip([p.name for p in wanted], got, strict=False))
        second |= {n: inputs[n] for n in first if n in inputs}
        for name, t in first.items():
            if second[name].dtype != t.dtype or not same_bits(second[name], t):
                raise self._fail(
                    example,
                    f"{name} differs between two runs on the same input "
                    f"({self._where(t, second[name])})",
                    tail=[f"print({name})  # twice"],
                )

    def _poisoned(self, example: Example) -> None:
        """With NaN in every dead element of every tile the same bits come out."""
        inputs = {n: t for n, (t, _) in self.plan.inputs(example).items()}
        first = self._guarded(example, inputs, self._outputs(example))
        inputs = {n: t for n, (t, _) in self.plan.inputs(example).items()}
        outputs = self._outputs(example)
        self._call(example, self._poisoned_kernel, {**inputs, **outputs})
        for name, t in first.items():
            other = outputs.get(name, inputs.get(name))
            if not same_bits(other, t):
                raise self._fail(
                    example,
                    f"dead elements reach {name}: with NaN in them it changes "
                    f"({self._where(t, other)})",
                    how="poisoned({name})",
                    tail=[f"print({name})"],
                )

    def _poisoned_kernel(self, **args: object) -> None:
        run_poisoned(self.plan.kernel, self.poisoned, args)

    def _call(self, example: Example, kernel: Callable, args: dict[str, object]):
        args = {**args, **example.scalars, **dict(example.setting.constants)}
        try:
            return kernel(**args)
        except Exception as e:
            raise self._fail(example, f"{type(e).__name__}: {e}") from e

    # -- against the reference -------------------------------------------------------------

    def _values(self, example: Example, inputs, got: dict[str, torch.Tensor]) -> None:
        try:
            expected = self.expect(example, inputs, list(got))
        except ReferenceRaised as e:
            if 0 in example.sizes.values():
                return  # the reference has no answer for an empty input
            raise self._fail(example, f"the reference raised {e}") from e
        for name, (want, bound, spare) in expected.items():
            out = _in_parts(got[name])
            if out.shape != want.shape:
                raise self._fail(
                    example,
                    f"{name} has shape {tuple(out.shape)}, the reference's {tuple(want.shape)}",
                )
            if bound is None and spare is not None:
                out, spare = torch.where(spare, want.to(out.dtype), out), ()
            verdict = compare(out, want, bound, spare or ())
            self.worst = max(self.worst, verdict.ratio)
            if not verdict.ok:
                raise self._wrong(example, name, verdict)

    def expect(self, example: Example, inputs, names: list[str]):
        """For each output: expected values, bound (None: exact), and what is as good where.

        Of an integer output: where the author's terms are infinite, so that rounding decides.
        """
        pairs = {n for n, t in inputs.items() if t is not None and t.is_complex()}
        inputs = {n: _in_parts(t) if n in pairs else t for n, t in inputs.items()}
        doubles = {
            n: t.double() if t is not None and t.is_floating_point() else t
            for n, t in inputs.items()
        }
        scalars = {
            n: float(torch.tensor(v, dtype=torch.float32)) if isinstance(v, float) else v
            for n, v in example.scalars.items()
        }
        moving = [n for n, t in doubles.items() if t is not None and t.is_floating_point()]
        moving += [n for n, v in scalars.items() if isinstance(v, float)]
        fixed = {**doubles, **scalars, **dict(example.setting.constants)}
        values = [torch.as_tensor(fixed[n], dtype=torch.float64) for n in moving]

        def ask(fn: Callable, what: list[torch.Tensor]) -> list[torch.Tensor | None]:
            args = dict(fixed)
            for n, x in zip(moving, what, strict=True):
                args[n] = x.item() if n in scalars else x.clone()
                if n in pairs:
                    args[n] = torch.view_as_complex(x.contiguous())
            args = {n: t.clone() if isinstance(t, torch.Tensor) else t for n, t in args.items()}
            return self._ask(fn, args)

        plain = ask(self.reference, values)
        wanted = [k for k, p in enumerate(self._returned()) if p.name in names]
        outputs = [plain[k] for k in wanted]
        terms = self._terms(ask, values, wanted, outputs)
        spare = self._spare(ask, values, wanted, outputs)
        given = [t for t in inputs.values() if t is not None]
        out = {}
        for position, k in enumerate(wanted):
            p = self._returned()[k]
            dtype = self.plan.dtype_of(p.spec, example.setting)
            want = outputs[position]
            if not dtype.inexact:
                untold = terms[position].isinf() if self.terms else None
                out[p.name] = (want, None, untold)
                continue
            torch_dtype = getattr(torch, TORCH_NAMES["f32" if dtype.is_complex else dtype.name])
            bound = self.model.bound(_double(want), terms[position], torch_dtype, given)
            out[p.name] = (_double(want), bound, spare[position] if spare else [])
        return out

    def _terms(self, ask, values, wanted: list[int], outputs) -> list[torch.Tensor]:
        """The sum of |terms| of each wanted output: the author's, or derived."""
        if self.terms:
            made = ask(self.terms, values)
            return [_double(made[k]) for k in wanted]
        plain = [_double(t) for t in outputs]
        if not any(t.is_floating_point() for t in outputs):
            return plain
        return conditioning(
            lambda moved: [
                _double(t) for t in map(ask(self.reference, list(moved)).__getitem__, wanted)
            ],
            values,
            plain,
            seed=1,
        )

    def _spare(self, ask, values, wanted, outputs):
        """Where inputs are infinite or NaN: what else the outputs may be, as (values, where).

        The reference does not say what comes out in two cases. An output may not depend on some
        of those elements, which is seen by putting two different numbers there: the reference may
        still say NaN (0 * inf under a mask), the kernel what it says with a number in their place.
        And fp64's range may decide (1e-200 * inf is inf, in fp32 it is NaN): what the reference
        says in fp32 is as good.
        """
        odd = [(k, int(i)) for k, v in enumerate(values) for i in _odd(v)]
        if not odd:
            return []

        def at(filled: list[torch.Tensor]) -> list[torch.Tensor]:
            made = ask(self.reference, filled)
            return [_double(made[k]) for k in wanted]

        def with_numbers(places: list[tuple[int, int]], number: float) -> list[torch.Tensor]:
            filled = [v.clone(memory_format=torch.contiguous_format) for v in values]
            for k, i in places:
                filled[k].view(-1)[i] = number
            return filled

        # Elements are taken one by one, in groups where there are too many of them.
        groups = [odd[k::_GROUPS] for k in range(min(len(odd), _GROUPS))]
        plain = with_numbers(odd, 0.5)
        a = at(plain)
        codes = [torch.zeros(x.shape, dtype=torch.int64) for x in a]
        for bit, group in enumerate(groups):
            moved = [v.clone() for v in plain]
            for k, i in group:
                moved[k].view(-1)[i] = -1.25
            for code, x, y in zip(codes, a, at(moved), strict=True):
                code += (x != y).long() << bit
        spare: list[list] = [[] for _ in a]
        for code in sorted({int(c) for t in codes for c in t.unique()}):
            gone = [e for bit, g in enumerate(groups) if not code >> bit & 1 for e in g]
            for out, x, c in zip(spare, at(with_numbers(gone, 0.5)), codes, strict=True):
                out.append((x, c == code))
        try:
            short = at([v.float() for v in values])
        except ReferenceRaised:
            short = [_double(t) for t in outputs]
        for out, z, t in zip(spare, short, outputs, strict=True):
            out.append((z, ~z.isfinite() & ~_double(t).isfinite()))
        return spare

    def _returned(self):
        signature = self.plan.signature
        return [*signature.outputs, *(p for p in signature.inputs if p.spec.role == "inout")]

    def _ask(self, fn: Callable, args: dict[str, object]) -> list[torch.Tensor | None]:
        try:
            made = fn(**accepted(fn, args, self.plan.kernel))
        except TkError:
            raise
        except Exception as e:
            raise ReferenceRaised(f"{type(e).__name__}: {e}") from e
        made = list(made) if isinstance(made, tuple | list) else [made]
        names = [p.name for p in self._returned()]
        if len(made) != len(names):
            raise TkError(
                f"{getattr(fn, '__name__', 'the reference')} of {self.plan.kernel.name} returned "
                f"{len(made)} tensors; it returns {', '.join(names)}, whether asked for or not"
            )
        return [_in_parts(t) if isinstance(t, torch.Tensor) else t for t in made]

    # -- failures --------------------------------------------------------------------------

    def _wrong(self, example: Example, name: str, v: Verdict) -> Failed:
        where = f"{name}[{', '.join(map(str, v.index))}]" if v.index else name
        factor = f", {v.ratio:.3g} times that" if v.ratio < float("inf") else ""
        within = f" within {v.bound:.3g}" if v.bound else ""
        said = f"{where} is {v.got:.7g}, expected {v.expected:.7g}{within}{factor}"
        return self._fail(
            example,
            said,
            tail=[f"print({where})  # {v.got:.7g}, expected {v.expected:.7g}{within}"],
            ratio=v.ratio,
        )

    def _where(self, a: torch.Tensor, b: torch.Tensor) -> str:
        differ = (a != b) & ~((a != a) & (b != b))
        if not bool(differ.any()):
            return "in the bits of a zero or a NaN"
        index = tuple(int(i) for i in differ.nonzero()[0])
        return f"at {list(index)}: {a[index].item():.7g} and {b[index].item():.7g}"

    def _fail(self, example: Example, said: str, ratio: float = float("inf"), **how) -> Failed:
        tail = how.pop("tail", [])
        program = reproduction(self.plan, example, tail, **how)
        indented = "\n".join(f"    {line}" for line in program.splitlines())
        return Failed(
            f"{self.plan.kernel.name}: {said}\n  with {describe(self.plan, example)}\n"
            f"  reproduce:\n\n{indented}\n",
            ratio,
        )


def accepted(fn: Callable, args: dict[str, object], kernel: Kernel) -> dict[str, object]:
    """Those of ``args`` that ``fn`` names. A reference need not take tile sizes."""
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return args
    unknown = [p.name for p in parameters if p.name not in args and p.default is p.empty]
    if unknown:
        raise TkError(
            f"the reference of {kernel.name} takes {', '.join(unknown)}, which the kernel has not"
        )
    return {p.name: args[p.name] for p in parameters if p.name in args}


def run_poisoned(kernel: Kernel, cache: dict, args: dict[str, object]) -> Call:
    """Runs the variant of ``kernel`` that holds NaN in every dead element."""
    call = kernel.binder.bind((), args)
    key = kernel.key_of(call)
    kernel._allocate(call)
    slot = (key, executor(call.device))
    if slot not in cache:
        source = kernel.lower(key, poison=True).source
        cache[slot] = launcher(source, kernel.name, call.device)
    tensors = [call.tensors[p.name] for p in kernel.signature.tensors if p.name in call.tensors]
    scalars = [call.scalars[p.name] for p in kernel.signature.scalars if p.name in call.scalars]
    cache[slot](*tensors, *scalars)
    return call


def poisoned(kernel: Kernel) -> Callable:
    """``kernel`` with NaN in every dead element of every tile; called like it."""
    cache: dict = {}

    def run(**args: object):
        call = run_poisoned(kernel, cache, args)
        outputs = tuple(call.tensors[p.name] for p in call.wanted)
        return outputs[0] if len(outputs) == 1 else (outputs or None)

    return run


def _in_parts(t: torch.Tensor) -> torch.Tensor:
    """A complex tensor as a real one with a last dimension of two; others as they are."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def _odd(t: torch.Tensor) -> list[int]:
    """Flat positions of infinities and NaN."""
    return (~t.reshape(-1).isfinite()).nonzero()[:, 0].tolist()


def _double(t) -> torch.Tensor:
    return torch.as_tensor(t).double()
