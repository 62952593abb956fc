"""``kernel.tune(...)`` and ``tk.tuned(kernel)``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from triton.errors import TritonError

from codegen.cost import RunTime
from codegen.cpu.ttir import Unsupported
from tkpy.call import Call
from tkpy.errors import TkError
from tkpy.kernel import Kernel
from tkpy.pipeline.device import Device, device
from tkpy.signature import TensorSpec
from tkpy.tune.candidates import Choice, candidates, knobs
from tkpy.tune.memory import Memory

#: Candidates that are measured, and turns that each of them gets.
KEEP, ROUNDS = 5, 7
#: Seconds that modelling may take; candidates beyond are left out, the nearest come first.
PATIENCE = 10.0

Timer = Callable[[Choice, Callable[[], object]], float]


@dataclass(frozen=True)
class Row:
    """A candidate: its predicted and its measured seconds, or why it fell out."""

    choice: Choice
    predicted: float
    measured: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Tuned:
    """What :func:`tune` found.

    Attributes:
        kernel: its name.
        choice: the best candidate.
        rows: all candidates that were modelled, the best predicted first.
        path: where it is remembered, or None.
        remembered: it was there before, so that nothing was measured.
    """

    kernel: str
    choice: Choice
    rows: tuple[Row, ...] = ()
    path: Path | None = None
    remembered: bool = False

    @property
    def measured(self) -> tuple[Row, ...]:
        """Rows that were measured, the fastest first."""
        done = [r for r in self.rows if r.measured is not None]
        return tuple(sorted(done, key=lambda r: r.measured or 0.0))


def tune(
    kernel: Kernel,
    *args: object,
    candidates_of: Mapping[str, Sequence[int]] | None = None,
    keep: int = KEEP,
    again: bool = False,
    on: str | None = None,
    timer: Timer | None = None,
    folder: Path | None = None,
    **kwargs: object,
) -> Tuned:
    """Chooses a kernel's tile sizes (and on a GPU its warps and stages) for a call like this one.

    Candidates are ranked by the cost model, the best ``keep`` and the defaults are run on the
    arguments, and the fastest is remembered for this machine. Outputs that are given, and tensors
    that the kernel changes, are copied first: the arguments stay as they are.

    Args:
        args, kwargs: of a call. Tile sizes among them are not tuned.
        candidates_of: values to try, by name; None: powers of two around the defaults.
        again: choose anew, even if a choice is remembered.
        on: a device to choose for by simulation only (see ``tkpy timeline``); nothing is run.
        timer: seconds of a candidate, from its choice and a function that runs it once; None: the
            least of a few runs by the clock, in turns.
        folder: of the remembered choices; None: in tkpy's cache.

    Raises TkError where nothing is left open, or where every candidate fails; CallError for a
    call that the signature does not allow.
    """
    call = kernel.binder.bind(args, kwargs)
    gpu = (on is not None and on != "cpu") or call.device.type != "cpu"
    found = candidates(kernel, kwargs, candidates_of, gpu)
    memory = Memory(kernel, folder)
    path = memory.path(call, frozenset(kwargs), on)
    names = set(knobs(kernel, kwargs))
    if not again:
        known = memory.recall(path, names)
        if known is not None:
            return Tuned(kernel.name, known, (), path, True)
    target = device(on or ("h100" if gpu else "cpu"))
    rows = _ranked(kernel, args, kwargs, found, target, gpu)
    if on is None:
        rows = _measured(kernel, call, args, kwargs, rows, keep, timer)
    best = _best(kernel, rows)
    memory.remember(path, best.choice, best.measured)
    return Tuned(kernel.name, best.choice, tuple(rows), path)


def tuned(kernel: Kernel, folder: Path | None = None) -> TunedKernel:
    """The kernel with the tile sizes that :func:`tune` remembered for calls like each call.

    Where nothing is remembered the defaults are used; nothing is ever measured by a call.
    """
    return TunedKernel(kernel, folder)


class TunedKernel:
    """See :func:`tuned`. Called like the kernel."""

    def __init__(self, kernel: Kernel, folder: Path | None = None):
        self.kernel, self.memory = kernel, Memory(kernel, folder)
        self._known: dict[Path | None, Choice] = {}

    def __repr__(self) -> str:
        return f"<tk.tuned {self.kernel.name}>"

    def choice(self, *args: object, **kwargs: object) -> Choice:
        """What is remembered for such a call; {} if nothing is."""
        call = self.kernel.binder.bind(args, kwargs)
        path = self.memory.path(call, frozenset(kwargs))
        if path not in self._known:
            found = self.memory.recall(path, set(knobs(self.kernel, kwargs)))
            self._known[path] = found or {}
        return self._known[path]

    def tune(self, *args: object, **kwargs) -> Tuned:
        """As ``kernel.tune``; later calls of this object use it."""
        self._known.clear()
        return tune(self.kernel, *args, folder=self.memory._folder, **kwargs)

    def __call__(self, *args: object, **kwargs: object):
        choice = self.choice(*args, **kwargs)
        chosen, sizes = with_launch(self.kernel, choice)
        return chosen(*args, **{**sizes, **kwargs})


_LAUNCHED: dict[tuple[int, int, int], Kernel] = {}


def with_launch(kernel: Kernel, choice: Choice) -> tuple[Kernel, Choice]:
    """The kernel with the warps and stages of a choice, and what is left of the choice."""
    warps = choice.get("num_warps", kernel.num_warps)
    stages = choice.get("num_stages", kernel.num_stages)
    rest = {n: v for n, v in choice.items() if n not in ("num_warps", "num_stages")}
    if (warps, stages) == (kernel.num_warps, kernel.num_stages):
        return kernel, rest
    key = (id(kernel), warps, stages)
    if key not in _LAUNCHED:
        made = Kernel(
            kernel.fn, kernel.where, warps, stages, kernel.template, kernel.autocast, kernel.gpu
        )
        made.backward.gpu = kernel.backward.gpu
        made.attached = kernel.attached
        _LAUNCHED[key] = made
    return _LAUNCHED[key], rest


# Ranking


def _ranked(kernel, args, kwargs, found: list[Choice], target: Device, gpu: bool) -> list[Row]:
    began = time.monotonic()
    rows: list[Row] = []
    for choice in found:
        if rows and time.monotonic() - began > PATIENCE:
            break
        try:
            rows.append(Row(choice, _predicted(kernel, args, kwargs, choice, target, gpu)))
        except RunTime:  # how often a loop runs is known at run time only: measured, not ranked
            rows.append(Row(choice, float("inf")))
        except TkError as e:
            rows.append(Row(choice, float("inf"), failed=str(e).partition("\n")[0]))
    return sorted(rows, key=lambda r: r.predicted)


def _predicted(kernel, args, kwargs, choice: Choice, target: Device, gpu: bool) -> float:
    from tkpy.pipeline.of_kernel import estimate, front_end_of, plan_of
    from tkpy.pipeline.predict import cpu_seconds

    chosen, sizes = with_launch(kernel, choice)
    call = chosen.binder.bind(args, {**kwargs, **sizes})
    fn, amounts = front_end_of(chosen, chosen.key_of(call))
    if gpu:
        return estimate(plan_of(chosen, fn, amounts, target, call.sizes), target).seconds
    return cpu_seconds(fn, amounts, call.sizes, target)


# Measuring


def _measured(kernel, call: Call, args, kwargs, rows: list[Row], keep: int, timer) -> list[Row]:
    """The best predicted rows, and the defaults, measured; the others as they are."""
    default = {**knobs(kernel, kwargs)}
    few = [r for r in rows if not r.failed][: max(1, keep)]
    few += [r for r in rows if r.choice == default and r not in few and not r.failed]
    runs: dict[int, Callable[[], object]] = {}
    failed: dict[int, str] = {}
    for i, row in enumerate(few):
        run = _runner(kernel, args, kwargs, row.choice)
        try:
            run()
            runs[i] = run
        except (TkError, TritonError, Unsupported, RuntimeError) as e:
            failed[i] = str(e).partition("\n")[0] or type(e).__name__
    times: dict[int, list[float]] = {i: [] for i in runs}
    for _ in range(1 if timer else ROUNDS):
        for i, run in runs.items():
            times[i].append((timer or _by_clock)(few[i].choice, run))
    done = {
        id(row): replace(
            row, measured=min(times[i]) if i in times else None, failed=failed.get(i, "")
        )
        for i, row in enumerate(few)
    }
    return [done.get(id(r), r) for r in rows]


def _by_clock(choice: Choice, run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _runner(kernel: Kernel, args, kwargs, choice: Choice) -> Callable[[], object]:
    """Runs a candidate on the arguments, with copies of what it would change."""
    chosen, sizes = with_launch(kernel, choice)
    written = {
        p.name
        for p in kernel.signature.parameters
        if isinstance(p.spec, TensorSpec) and p.spec.role in ("out", "inout")
    }
    names = [p.name for p in kernel.signature.parameters]

    def copied(name: str, value: object) -> object:
        return value.clone() if name in written and isinstance(value, torch.Tensor) else value

    own = [copied(n, v) for n, v in zip(names, args, strict=False)]
    more = {n: copied(n, v) for n, v in kwargs.items()}
    return lambda: chosen(*own, **{**more, **sizes})


def _best(kernel: Kernel, rows: list[Row]) -> Row:
    done = [r for r in rows if r.measured is not None]
    if done:
        return min(done, key=lambda r: r.measured or 0.0)
    modelled = [r for r in rows if not r.failed]
    if not modelled:
        why = next((r.failed for r in rows), "there is none")
        raise TkError(f"{kernel.name}: no candidate runs: {why}")
    return modelled[0]
