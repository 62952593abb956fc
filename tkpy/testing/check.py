"""``check``: a kernel against its reference, on inputs that its signature describes."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import hypothesis
import hypothesis.configuration
import torch
from hypothesis import HealthCheck, Phase, Verbosity

from codegen.module import cache_dir
from tkpy.errors import TkError
from tkpy.kernel import Kernel
from tkpy.testing.backward import BackwardRunner
from tkpy.testing.model import Model
from tkpy.testing.plan import Example, Plan
from tkpy.testing.refusals import check_refusals
from tkpy.testing.run import Failed, Runner
from tkpy.testing.strategies import Choices, bytes_for, example

_SHRINK_SECONDS, _SHRINK_RUNS = 10.0, 150


@dataclass(frozen=True)
class CheckResult:
    """What ``check`` found.

    Attributes:
        name: the kernel's.
        examples: how many were run.
        worst_error: the largest |out - ref| / bound; at most 1 in a kernel that is right.
        ok: whether everything held.
        failure: None, or what went wrong and a program that shows it.
    """

    name: str
    examples: int
    worst_error: float
    ok: bool
    failure: str | None = None

    def raise_if_failed(self) -> None:
        """Raises AssertionError with ``failure``."""
        if not self.ok:
            raise AssertionError(self.failure)


class _Search:
    """Runs examples for hypothesis; knows the failures, so that shrinking can be cut short."""

    def __init__(self, runner: Runner, total: int, progress: Callable[[int, int], None] | None):
        self.runner, self.total, self.progress = runner, total, progress
        self.done = self.shrinks = 0
        self.failures: dict[str, Failed] = {}
        self.failing: dict[bytes, Failed] = {}
        self.last: Failed | None = None
        self.since = 0.0

    def __call__(self, raw: bytes) -> None:
        failed = self.failing.get(raw)
        if failed is None and not self._spent():
            failed = self._run(example(self.runner.plan, Choices(raw)))
        # Always the same exception from the same line: to hypothesis they are one failure.
        if failed is not None:
            self.last = self.failing[raw] = failed
            raise Failed(failed.text, failed.ratio)

    def _spent(self) -> bool:
        """Whether enough was done to make a failure smaller: the rest of the calls counts as right.

        Hypothesis goes on for a while, so these calls have to be cheap.
        """
        late = time.monotonic() - self.since > _SHRINK_SECONDS
        return bool(self.failures) and (late or self.shrinks >= _SHRINK_RUNS)

    def _run(self, example: Example) -> Failed | None:
        text = repr(example)
        if text in self.failures:
            return self.failures[text]
        if self.failures:
            self.shrinks += 1
        else:
            self.done += 1
        try:
            self.runner.run(example)
        except Failed as e:
            self.since = self.since or time.monotonic()
            self.failures[text] = e
            return e
        if not self.failures and self.progress:
            self.progress(self.done, self.total)
        return None


def check(
    kernel: Kernel,
    reference: Callable | None = None,
    *,
    examples: int = 50,
    seed: int = 0,
    terms: Callable | None = None,
    sizes: Mapping[str, object] | None = None,
    dtypes: Iterable[object] | None = None,
    poison: bool = True,
    progress: Callable[[int, int], None] | None = None,
    constants: Mapping[str, Iterable[object]] | None = None,
    special: bool | Iterable[str] | None = None,
    roundings: float | None = None,
    c: float | None = None,
    backward: bool = False,
    kinds: Iterable[str] | None = None,
) -> CheckResult:
    """Checks ``kernel`` on ``examples`` inputs drawn from its signature.

    For each: the outputs agree with the reference (tkpy/testing/model.py has the bound); a second
    run gives the same bits; inputs and the memory around outputs are untouched; and in some, NaN
    in every dead element of every tile changes nothing. Then every call that the signature
    excludes must be refused. Nothing is raised for a kernel that is wrong: see the result.

    Args:
        reference: takes the kernel's inputs, scalars and constants by name (those it names), floats
            as float64, None for what is optional and absent; returns every output of the
            signature, optional ones too, then the final value of every InOut tensor.
            Default: what ``@kernel.reference`` registered, with its options.
        seed: the same seed runs the same examples.
        terms: like ``reference``, but returns for each output the elementwise sum of |terms|.
            Derived from the reference where it is not given. Integer outputs must be equal, but
            where their terms are infinite: there rounding decides (which of two is nearest).
        sizes: bounds of named dimensions and integer scalars: ``{"D": (1, 128), "G": [1, 2]}``.
        dtypes: torch dtypes of type variables; default float32, bfloat16 and float16.
        poison: also run variants with NaN in dead elements.
        progress: called with (examples done, examples in all).
        constants: values of compile-time parameters; default: all choices of a Literal, both
            booleans, the default of anything else.
        special: whether inputs may hold infinities and NaN, or the names of those that may.
        roundings: how often a term may be rounded to a 16-bit operand type; default 2. A
            kernel that keeps everything in fp32 between load and store says 0.
        c: fp32 roundings that a term may carry; default 8.
        backward: check the gradients that the kernel derives instead of its outputs, against
            autograd of the reference (tkpy/testing/backward.py).
        kinds: of values that gradients are checked at; those at which the kernel has a derivative.

    Raises:
        TkError: if there is no reference, or it does not fit the kernel, or no input satisfies
            the preconditions.
    """
    options = dict(kernel.reference_options)
    fn = reference or kernel.reference_fn
    if fn is None:
        raise TkError(
            f"check of {kernel.name}: there is no reference\n  fix: pass one, or register it with "
            f"@{kernel.name}.reference"
        )
    given = {
        "terms": terms, "sizes": sizes, "dtypes": dtypes, "constants": constants,
        "special": special, "roundings": roundings, "c": c, "kinds": kinds,
    }  # fmt: skip
    unknown = set(options) - set(given)
    if unknown:
        raise TkError(f"@{kernel.name}.reference: unknown options {', '.join(sorted(unknown))}")
    options |= {k: v for k, v in given.items() if v is not None}
    plan = Plan(
        kernel,
        examples,
        seed,
        sizes=options.get("sizes"),
        dtypes=options.get("dtypes"),
        constants=options.get("constants"),
        special=False if backward else options.get("special", True),
        poison=poison,
    )
    model = Model(options.get("c", Model.c), options.get("roundings", Model.roundings))
    runner: Runner = (
        BackwardRunner(plan, fn, None, model)
        if backward
        else Runner(plan, fn, options.get("terms"), model)
    )
    if isinstance(runner, BackwardRunner) and options.get("kinds"):
        runner.kinds = tuple(options["kinds"])  # type: ignore[arg-type]
    search = _Search(runner, examples, progress)
    with _one_thread():
        failure = _explore(search, plan, examples, seed)
        if failure is None and not backward:
            failure = check_refusals(plan)
    ratio = runner.worst if failure is None else failure.ratio
    return CheckResult(
        kernel.name, search.done, ratio, failure is None, failure.text if failure else None
    )


@contextmanager
def _one_thread():
    """Examples are small: threads of torch cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _storage():
    """Hypothesis keeps notes in a folder: ours, not a new one wherever the user happens to be."""
    name = "__hypothesis_home_directory"
    before = vars(hypothesis.configuration).get(name)
    if before is None and not os.environ.get("HYPOTHESIS_STORAGE_DIRECTORY"):
        hypothesis.configuration.set_hypothesis_home_dir(cache_dir() / "hypothesis")
    try:
        yield
    finally:
        hypothesis.configuration.set_hypothesis_home_dir(before)


def _explore(search: _Search, plan: Plan, count: int, seed: int) -> Failed | None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if _SHRINK_RUNS else (Phase.generate,),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    @hypothesis.given(bytes_for(plan))
    def run(raw: bytes) -> None:
        search(raw)

    try:
        with _storage(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    except Failed as e:
        return e
    except hypothesis.errors.FlakyFailure:
        return search.last
    return None
