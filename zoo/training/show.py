"""What people see of a run: a bar on a terminal, a line now and then elsewhere, and tables."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from zoo.training.log import Report
from zoo.training.system import Row


class Bar(Report):
    """A bar with loss and rate. The loss shown is smoothed over some ten rows."""

    def __init__(self, console: Console, name: str):
        self.console, self.name = console, name
        self._loss: float | None = None
        self._at = (0.0, 0)
        self._step = 0
        self._told = 0.0

    def started(self, title: str, step: int, steps: int) -> None:
        self._at, self._step = (time.monotonic(), step), step
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=4,
        )
        self.task = self.progress.add_task(self.name, total=steps, completed=step, facts="")
        self.progress.start()

    def logged(self, row: Row) -> None:
        loss = row["loss"]
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss

    def stepped(self, step: int) -> None:
        self._step = step
        now = time.monotonic()
        if now - self._told >= 0.25:
            self._told = now
            self.progress.update(self.task, completed=step, facts=self.facts())

    def facts(self) -> str:
        began, first = self._at
        steps = self._step - first
        each = (time.monotonic() - began) / steps * 1e3 if steps else 0.0
        loss = "" if self._loss is None else f"loss {self._loss:.4f}, "
        return f"{loss}{each:.1f} ms a step"

    def evaluated(self, step: int, rows: list[Row]) -> None:
        if rows:
            self.console.print(f"[dim]step {step}:[/] {line(rows)}", highlight=False)

    def said(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def ended(self) -> None:
        self.progress.update(self.task, completed=self._step)
        self.progress.stop()


class Lines(Bar):
    """A line every ten seconds, for logs and pipes."""

    every = 10.0

    def started(self, title: str, step: int, steps: int) -> None:
        self._at, self._step, self._steps = (time.monotonic(), step), step, steps
        self._told = time.monotonic()

    def stepped(self, step: int) -> None:
        self._step = step
        if time.monotonic() - self._told >= self.every:
            self._told = time.monotonic()
            self.said(f"{self.name}: step {step} of {self._steps}, {self.facts()}")

    def ended(self) -> None:
        pass


def line(rows: Sequence[Row]) -> str:
    """Rows in a line, for the middle of a run: the labels of each and its first number."""
    parts = []
    for row in rows:
        labels = " ".join(str(v) for v in row.values() if not isinstance(v, float))
        first = next(((k, v) for k, v in row.items() if isinstance(v, float)), None)
        parts.append(labels if first is None else f"{labels} {first[0]} {first[1]:.4g}".strip())
    return ", ".join(parts)


def table(rows: Sequence[Row], title: str = "") -> Table:
    """Rows as a table, a column a name; numbers to four digits."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        right = all(isinstance(row.get(name, 0), int | float) for row in rows)
        out.add_column(name, justify="right" if right else "left")
    for row in rows:
        out.add_row(*(Text(_shown(row.get(name, ""))) for name in names))
    return out


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def means(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Over runs whose rows have the same labels: the mean of every float, else nothing."""
    if len({len(rows) for rows in runs}) != 1:
        return []
    out = []
    for same in zip(*runs, strict=True):
        labels = [{k: v for k, v in row.items() if not isinstance(v, float)} for row in same]
        floats = [{k: v for k, v in row.items() if isinstance(v, float)} for row in same]
        if any(a != labels[0] for a in labels) or any(f.keys() != floats[0].keys() for f in floats):
            return []
        out.append(
            {
                k: sum(f[k] for f in floats) / len(floats) if k in floats[0] else same[0][k]
                for k in same[0]
            }
        )
    return out
