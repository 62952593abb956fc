"""``tkpy check``: kernels against their references, on inputs nobody chose by hand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tkpy.cli.app import NotFound
from tkpy.cli.find import Found, find, registered
from tkpy.cli.options import AsJson
from tkpy.cli.output import console, print_json
from tkpy.errors import TkError

if TYPE_CHECKING:
    from tkpy.testing import CheckResult


@dataclass(frozen=True)
class Checked:
    """What one kernel's check found, and how long it took (seconds)."""

    result: CheckResult
    seconds: float

    def facts(self) -> dict[str, object]:
        """The fields of ``--json``: worst_error is null where it is not a finite number."""
        r = self.result
        out: dict[str, object] = {
            "name": r.name,
            "examples": r.examples,
            "worst_error": r.worst_error if math.isfinite(r.worst_error) else None,
            "ok": r.ok,
        }
        return out if r.ok else out | {"failure": r.failure}


def check(
    kernel: Annotated[
        str | None,
        typer.Argument(
            metavar="KERNEL", help="A name, or path/to/file.py:kernel; all kernels if absent."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Inputs to draw for each kernel.")] = 50,
    seed: Annotated[int, typer.Option(help="The same seed draws the same inputs.")] = 0,
    backward: Annotated[
        bool, typer.Option("--backward", help="Check derived gradients instead of outputs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hold kernels against their references; exit status 1 if one is wrong.

    Inputs are drawn from the signature: odd sizes, every dtype, strides, special values. The
    worst error is given as a fraction of what rounding explains, so 1 is the limit. A failing
    input is made small and printed as a program that reproduces it.
    """
    chosen = [find(kernel)] if kernel else list(registered().values())
    if not chosen:
        raise NotFound("no kernels are registered\n  your own: tkpy check path/to/file.py:kernel")
    if backward and not kernel:
        chosen = [f for f in chosen if differentiated(f)]
    done = run_checks(chosen, examples, seed, backward)
    if as_json:
        print_json([c.facts() for c in done])
    else:
        print_results(done)
    if not all(c.result.ok for c in done):
        raise typer.Exit(1)


def differentiated(found: Found) -> bool:
    """Whether a kernel has a derived backward; of all kernels those are checked that have."""
    changed = found.kernel.operator.changed
    if changed:
        said = f"{found.name} is left out: it changes {', '.join(changed)} in place"
        Console(stderr=True).print(said, soft_wrap=True)
    return not changed


def run_checks(
    chosen: list[Found], examples: int, seed: int, backward: bool = False
) -> list[Checked]:
    """Check each kernel, with progress on standard error where that is a terminal.

    Raises TkError if the test extra is not installed. A kernel that cannot be checked (no
    reference, not legal) is one that failed.
    """
    try:
        from tkpy.testing import CheckResult
        from tkpy.testing import check as check_kernel
    except ImportError as e:
        raise TkError(str(e)) from None
    done = []
    with _progress() as progress:
        for found in chosen:
            task = progress.add_task(found.name, total=examples)
            started = time.perf_counter()
            try:
                result = check_kernel(
                    found.kernel,
                    examples=examples,
                    seed=seed,
                    progress=_step(progress, task),
                    backward=backward,
                )
            except TkError as e:
                result = CheckResult(found.name, 0, math.nan, False, str(e))
            done.append(Checked(result, time.perf_counter() - started))
    return done


def _progress() -> Progress:
    errors = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=errors,
        disable=not errors.is_terminal,
    )


def _step(progress: Progress, task) -> Callable[[int, int], None]:
    return lambda done, total: progress.update(task, completed=done, total=total)


def print_results(done: list[Checked], on: Console | None = None) -> None:
    """A table of all kernels, then what went wrong in each that failed."""
    on = on or console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kernel", style="bold")
    table.add_column("examples", justify="right")
    table.add_column("worst error", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for c in done:
        verdict = "[green]ok[/]" if c.result.ok else "[red]FAILED[/]"
        worst = f"{c.result.worst_error:.3g}" if math.isfinite(c.result.worst_error) else "-"
        table.add_row(c.result.name, str(c.result.examples), worst, f"{c.seconds:.1f}", verdict)
    on.print(table)
    for c in done:
        if not c.result.ok:
            on.print(f"[bold red]{c.result.name} failed[/]")
            on.print(c.result.failure, markup=False, soft_wrap=True)
