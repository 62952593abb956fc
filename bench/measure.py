"""Timing that survives a noisy machine: rivals take turns, and medians of turns are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

# Seconds between two calls: threads of a library that just ran go on turning for some milliseconds,
# on the processors that the next one needs.
PAUSE = 0.03


@dataclass
class Compared:
    """A row of most benches: one piece of work beside one rival, medians of turns.

    ratio: the rival's time over ours. Benches add what else they measure.
    """

    work: str
    ours_ms: float
    rival: str
    rival_ms: float
    ratio: float


def turns(
    fns: dict[str, Callable[[], object]], rounds: int = 15, budget: float = 3.0, warm: bool = True
) -> dict[str, float]:
    """Median milliseconds of each function; all of them run in every round.

    At least three rounds, then more until ``rounds`` or ``budget`` seconds are used up; ``warm``
    runs everything once before.
    """
    times: dict[str, list[float]] = {k: [] for k in fns}
    for fn in fns.values() if warm else ():
        fn()
    began = time.perf_counter()
    for _ in range(rounds):
        for name, fn in fns.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            fn()
            times[name].append((time.perf_counter() - start) * 1e3)
        if time.perf_counter() - began > budget and len(next(iter(times.values()))) >= 3:
            break
    return {k: statistics.median(v) for k, v in times.items()}
