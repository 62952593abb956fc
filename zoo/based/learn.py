"""The zoo's part of ``tkpy demo`` that trains: a small BASED learns to recall, in seconds."""

from __future__ import annotations

from rich.console import Console

from zoo.training import runs
from zoo.training.curve import Curve
from zoo.training.log import Report
from zoo.training.show import table

PRESET = "mqar-small"
#: The time decides when it ends, so the rate neither rises nor falls.
_SETTINGS = ("train.schedule=constant", "train.warmup=0")
_ONCE = ("train.steps=1", "train.warmup=0", "data.train=[[64,16,64]]", "data.test=[[64,16,1]]")


def learn(console: Console, seconds: float) -> runs.Result:
    """Train the preset ``mqar-small`` for ``seconds`` and print its loss as it falls.

    What compiling the kernels takes, the first time, comes on top. Nothing is kept.
    """
    console.print(
        "A small BASED learns to recall: it reads pairs of a key and a value, then keys again, and "
        "is asked for their values. Forward and backward are kernels of the zoo. The loss:"
    )
    with console.status("compiling"):
        runs.train("based", PRESET, settings=_ONCE, report=Report())
    report = Curve(console, f"based {PRESET}", seconds)
    result = runs.train("based", PRESET, settings=_SETTINGS, seconds=seconds, report=report)
    if result.signal is not None:
        raise KeyboardInterrupt
    console.print(table(result.rows))
    console.print(
        f"[dim]all {result.steps:,} steps: make demo-train; docs/training.md[/]", soft_wrap=True
    )
    return result
