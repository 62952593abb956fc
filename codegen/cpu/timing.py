"""Wall-clock timing for autotuners, where a kernel that was timed already is not timed again.

Configurations often differ only in what a GPU looks at (warps, stages, registers). Here they
compile to one object, so the launch that a trial begins with tells whether its time is known: the
same code, grid and arguments on as many threads.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from codegen.cpu import launch

_KEEP = 1024
_known: OrderedDict[tuple, list[float]] = OrderedDict()


def _is_trial(fn) -> bool:
    """Does an autotuner ask? Only its function does nothing but launch one kernel."""
    return getattr(fn, "__qualname__", "").startswith("Autotuner._bench.")


def _times(fn, warmup: float, rep: float) -> list[float]:
    """Milliseconds of each of several runs, the first of which has happened."""
    start = time.perf_counter()
    fn()
    once = max((time.perf_counter() - start) * 1e3, 1e-3)
    for _i in range(int(warmup / once)):
        fn()
    out = []
    for _i in range(max(3, min(1000, int(rep / once)))):
        start = time.perf_counter()
        fn()
        out.append((time.perf_counter() - start) * 1e3)
    return sorted(out)


def benchmark(fn, warmup=25, rep=100, quantiles=None, return_mode="mean", **_):
    """``triton.testing.do_bench`` for a device without events: wall-clock times in ms.

    Shorter than on a GPU: there are no clocks to warm up, and an autotuner asks for dozens.
    """
    warmup, rep = min(warmup, 3), min(rep, 15)
    with launch.watch() as seen:
        fn()
    key = (launch.num_threads(), rep, *seen)
    times = _known.get(key) if seen and _is_trial(fn) else None
    if times is None:
        times = _times(fn, warmup, rep)
        if seen and _is_trial(fn):
            _known[key] = times
            if len(_known) > _KEEP:
                _known.popitem(last=False)
    if quantiles is not None:
        out = [times[min(len(times) - 1, int(q * len(times)))] for q in quantiles]
        return out[0] if len(out) == 1 else out
    if return_mode == "all":
        return times
    pick = {"min": times[0], "max": times[-1], "median": times[len(times) // 2]}
    return pick.get(return_mode, sum(times) / len(times))
