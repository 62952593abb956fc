"""The loss as a curve of dots that grows while a model trains."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from zoo.training.log import Report
from zoo.training.show import line
from zoo.training.system import Row

#: The bit of each dot of a braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def means(points: Sequence[tuple[float, float]], parts: int) -> list[float | None]:
    """The mean of y in each of ``parts`` equal parts of x; None where there are no points.

    points: (x, y) with x rising; those whose y is not finite are left out.
    """
    found: list[list[float]] = [[] for _ in range(parts)]
    first = points[0][0] if points else 0.0
    span = (points[-1][0] - first if points else 0.0) or 1.0
    for x, y in points:
        if math.isfinite(y):
            found[min(int((x - first) / span * parts), parts - 1)].append(y)
    return [sum(ys) / len(ys) if ys else None for ys in found]


def plot(values: Sequence[float | None], height: int) -> list[str]:
    """``height`` lines of braille characters, two values each, from the least to the largest.

    What is None is bridged.
    """
    cells = [[0] * math.ceil(len(values) / 2) for _ in range(height)]
    known = [(k, v) for k, v in enumerate(values) if v is not None]
    if known:
        low, high = min(v for _, v in known), max(v for _, v in known)
        span = (high - low) or 1.0  # its reciprocal may be infinite
        level = [(k, round((high - v) / span * (4 * height - 1))) for k, v in known]
        for (k, a), (after, b) in zip(level, [*level[1:], level[-1]], strict=True):
            steps = max(after - k, abs(b - a), 1)
            for s in range(steps + 1):
                x, y = k + (after - k) * s // steps, a + round((b - a) * s / steps)
                cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ["".join(chr(0x2800 + c) for c in row) for row in cells]


class Curve(Report):
    """A curve with its scale, drawn again and again on a terminal and at the end elsewhere.

    seconds: how long the run may take, if time is what ends it.
    """

    def __init__(self, console: Console, name: str, seconds: float | None = None, height: int = 9):
        self.console, self.name, self.seconds, self.height = console, name, seconds, height
        self.points: list[tuple[float, float]] = []
        self._step, self._steps, self._first = 0, 0, 0
        self._live: Live | None = None

    def started(self, title: str, step: int, steps: int) -> None:
        self._began = self._now = time.monotonic()
        self._step, self._first, self._steps = step, step, steps
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self.picture, console=self.console, transient=True,
                refresh_per_second=4,
            )  # fmt: skip
            self._live.start()

    def logged(self, row: Row) -> None:
        self.points.append((row["step"], row["loss"]))

    def stepped(self, step: int) -> None:
        self._step, self._now = step, time.monotonic()

    def evaluated(self, step: int, rows: list[Row]) -> None:
        if self._live is not None and step < self._steps and rows:
            self.console.print(f"[dim]step {step}:[/] {line(rows)}", highlight=False)

    def said(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def ended(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self.console.print(self.picture())

    def picture(self) -> Group:
        """The curve, its scale at the left, and what has been done below."""
        width = max(20, min(72, self.console.width - 12))
        values = means(self.points, 2 * width)
        known = [v for v in values if v is not None]
        labels = [""] * self.height
        if known:
            labels[0], labels[-1] = f"{max(known):.3f}", f"{min(known):.3f}"
        out = [
            Text.assemble((f"{label:>8} ", "dim"), (dots, "cyan"))
            for label, dots in zip(labels, plot(values, self.height), strict=True)
        ]
        took = self._now - self._began
        steps = self._step - self._first
        each = f", {took / steps * 1e3:.0f} ms a step" if steps else ""
        loss = f"loss {self.points[-1][1]:.3f}, " if self.points else ""
        of = f" of {self.seconds:.0f}" if self.seconds is not None else ""
        facts = f"{self.name}: {loss}step {self._step} of {self._steps}{each}, {took:.0f}{of} s"
        return Group(*out, Text(facts))
