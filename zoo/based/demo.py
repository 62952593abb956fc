"""The zoo's part of ``tkpy demo``: a BASED stack reads a text, at once and byte by byte."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from tkpy import TkError
from zoo.based.config import BasedConfig
from zoo.based.model import Based, State

#: Small enough that a slow machine reads a page of text in seconds.
TINY = BasedConfig(("conv", "linear", "window"), 32, 2, 8, 16, 64)


@dataclass(frozen=True)
class Reading:
    """What reading a text showed. Times in seconds, differences of logits, sizes in bytes.

    given, read: bytes of the text, and how many the time allowed.
    start: bytes read one by one from an empty state; end: those read so from a prefill's state.
    """

    given: int
    read: int
    start: int
    end: int
    prefill_seconds: float
    byte_seconds: float
    difference_start: float
    difference_end: float
    largest_logit: float
    state_bytes: int
    cache_bytes: int

    @property
    def difference(self) -> float:
        """The larger of the two; NaN if either is."""
        return float(torch.tensor([self.difference_start, self.difference_end]).max())

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference: 1e-4 of the largest logit, in fp32."""
        return self.difference <= 1e-4 * max(self.largest_logit, 1.0)


@torch.no_grad()
def read(model: Based, text: bytes, seconds: float, console: Console | None = None) -> Reading:
    """Run ``model`` over as much of ``text`` as ``seconds`` allow.

    A quarter of the time goes to single bytes from an empty state, another to single bytes after
    a prefill, and what is left to the two prefills. Raises ValueError for an empty text.
    """
    if not text:
        raise ValueError("the text is empty")
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()[None]
    for size in (1, 2):  # one call of each kind, so that no compiling is timed
        model(tokens[:, :size], state=model.start(1))
    with _progress(console) as progress:
        deadline = time.perf_counter() + seconds
        singles, _, byte_seconds = _bytewise(progress, model, tokens, model.start(1), seconds / 4)
        count = _affordable(model, tokens, deadline - seconds / 4)
        task = progress.add_task(f"prefill of {count} bytes", total=None)
        began = time.perf_counter()
        state = model.start(1)
        logits = model(tokens[:, :count], state=state)
        prefill_seconds = time.perf_counter() - began
        progress.update(task, total=1, completed=1)
        singles = singles[:, :count]
        last = min(singles.shape[1], count // 2)
        tail = logits[:, :0]
        if last:
            state = model.start(1)
            model(tokens[:, : count - last], state=state)
            rest = tokens[:, count - last : count]
            tail, state, _ = _bytewise(progress, model, rest, state, seconds / 4)
    at = count - last
    return Reading(
        given=len(text),
        read=count,
        start=singles.shape[1],
        end=tail.shape[1],
        prefill_seconds=prefill_seconds,
        byte_seconds=byte_seconds,
        difference_start=_difference(singles, logits[:, : singles.shape[1]]),
        difference_end=_difference(tail, logits[:, at : at + tail.shape[1]]),
        largest_logit=float(logits.abs().max()),
        state_bytes=state.bytes,
        cache_bytes=cache_bytes(model.config, count),
    )


def _bytewise(
    progress: Progress, model: Based, tokens: Tensor, state: State, seconds: float
) -> tuple[Tensor, State, float]:
    """Logits of single bytes until the time is up, at least one; the state; seconds a byte."""
    out: list[Tensor] = []
    task = progress.add_task("byte by byte", total=tokens.shape[1])
    took = []
    began = time.perf_counter()
    for k in range(tokens.shape[1]):
        before = time.perf_counter()
        logits = model(tokens[:, k : k + 1], state=state)
        took.append(time.perf_counter() - before)
        out.append(logits)
        progress.advance(task)
        if time.perf_counter() - began + took[-1] > seconds:
            break
    progress.update(task, total=len(out))
    return torch.cat(out, 1), state, sorted(took)[len(took) // 2]


def _affordable(model: Based, tokens: Tensor, deadline: float) -> int:
    """How many bytes two prefills can read until ``deadline``, from the time that some take."""
    for size in _trials(tokens.shape[1]):
        began = time.perf_counter()
        model(tokens[:, :size], state=model.start(1))
        now = time.perf_counter()
        each = (now - began) / size
        if deadline - now < 16 * (now - began):
            break
    return max(1, min(tokens.shape[1], int(0.9 * (deadline - now) / (2 * each))))


def _trials(length: int) -> Iterator[int]:
    size = 64
    while size < length:
        yield size
        size *= 8
    yield length


def cache_bytes(c: BasedConfig, length: int) -> int:
    """What a softmax model of this width and depth would keep in fp32: every key and value."""
    return 2 * 4 * c.width * len(c.layers) * length


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=console is None or not console.is_terminal,
    )


def demo(console: Console, text: bytes, seconds: float) -> None:
    """Read ``text`` for about ``seconds`` and print what was found.

    Raises TkError if reading at once and reading byte by byte do not agree.
    """
    torch.manual_seed(0)
    model = Based(TINY)
    c = TINY
    console.print(
        f"BASED over bytes, random weights: layers {', '.join(c.layers)}; width {c.width}, "
        f"{c.heads} heads, {c.features} features, a window of {c.window} keys; fp32. Mixers, "
        "norms and gates are kernels of the zoo."
    )
    reading = read(model, text, seconds, console)
    print_reading(console, reading)
    if not reading.agrees:
        raise TkError(f"at once and byte by byte disagree: logits differ by {reading.difference}")


def print_reading(console: Console, r: Reading) -> None:
    """A table of what was read, how well the two ways agree, and what they keep and cost."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="cyan")
    table.add_column()
    table.add_row("text", f"{r.read:,} of {r.given:,} bytes, as many as the time allowed")
    table.add_row("at once", f"{r.prefill_seconds:.2f} s, {_each(r.prefill_seconds / r.read)}")
    table.add_row("byte by byte", f"the first {r.start:,}: {_each(r.byte_seconds)}")
    if r.end:
        table.add_row("handed over", f"the last {r.end:,} byte by byte, after the rest at once")
    table.add_row(
        "largest difference",
        f"{r.difference:.1e} of logits up to {r.largest_logit:.1f}",
    )
    ratio = r.cache_bytes / r.state_bytes
    word = f"{ratio:.1f} times as many" if ratio >= 1 else f"{ratio:.2f} of it"
    table.add_row("state", f"{r.state_bytes:,} bytes, whatever the length")
    table.add_row("softmax KV cache", f"{r.cache_bytes:,} bytes at this length, {word}")
    console.print(table)


def _each(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms a byte"
