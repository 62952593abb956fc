"""The zoo's kernels on the CPU backend against their rivals: ``python -m bench cpu``.

``limit_fraction`` is the share of a limit measured in the same rounds: a loop of multiply-adds of
that dtype for matrix work, a copy that moves as many bytes for row-wise work.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass

import torch

from bench.measure import Compared, turns
from bench.peak import peak
from bench.work import Work, work


@dataclass
class Row(Compared):
    """Beside a limit; the interpreter's milliseconds are of one run."""

    limit_fraction: float


def _interpreted(w: Work) -> float:
    """Milliseconds of one run in Triton's interpreter."""
    os.environ["TKPY_EXECUTOR"] = "interpreter"
    try:
        start = time.perf_counter()
        w.ours()
        return (time.perf_counter() - start) * 1e3
    finally:
        os.environ["TKPY_EXECUTOR"] = "native"


def measure(name: str, w: Work, threads: int, interpreter: bool) -> list[Row]:
    """One row for each rival, all from the same rounds."""
    w.ours()
    for rival in w.rivals.values():
        rival()
    try:
        w.agree()
    except AssertionError as e:
        raise AssertionError(f"{name}: {e}") from None
    rates: list[float] = []
    fns = {"ours": w.ours, **w.rivals}
    if w.flops:
        limit = peak(w.dtype, threads)
        fns["limit"] = lambda: rates.append(limit())
    else:
        source = torch.randn(int(w.moved / 8))
        target = torch.empty_like(source)
        fns["limit"] = lambda: target.copy_(source)
    t = turns(fns, warm=not w.slow, budget=20.0 if w.slow else 4.0)
    # The best round: whatever else the machine does only lowers a rate.
    limit_ms = w.flops / max(rates) / 1e6 if w.flops else t["limit"]
    if interpreter and w.interpret:
        t["interpreter"] = _interpreted(w)
    return [Row(name, t["ours"], rival, ms, ms / t["ours"], limit_ms / t["ours"])
            for rival, ms in t.items() if rival not in ("ours", "limit")]  # fmt: skip


def run(only: str, threads: int, interpreter: bool) -> list[dict]:
    """Measure, print and give the rows whose work's name contains ``only``."""
    os.environ["TKPY_EXECUTOR"] = "native"
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    os.environ["TKPY_NUM_THREADS"] = str(threads)
    rows = []
    print(f"{'work':28}{'ours ms':>10}{'rival ms':>11}  {'rival':14}{'ratio':>7}{'of limit':>10}")
    for name, make in work().items():
        if only not in name:
            continue
        for row in measure(name, make(), threads, interpreter):
            rows.append(asdict(row))
            print(f"{name:28}{row.ours_ms:10.3f}{row.rival_ms:11.3f}  {row.rival:14}"
                  f"{row.ratio:7.2f}{row.limit_fraction:10.2f}", flush=True)  # fmt: skip
    return rows
