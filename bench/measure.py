"""Timing that survives a noisy machine: rivals take turns, and medians of turns are compared."""

from __future__ import annotations

import ctypes
import statistics
import threading
import time
from collections.abc import Callable


def turns(fns: dict[str, Callable[[], object]], rounds: int = 15, budget: float = 3.0) -> dict:
    """Median milliseconds of each function; all of them run in every round."""
    times: dict[str, list[float]] = {k: [] for k in fns}
    for fn in fns.values():
        fn()
    began = time.perf_counter()
    for _ in range(rounds):
        for name, fn in fns.items():
            start = time.perf_counter()
            fn()
            times[name].append((time.perf_counter() - start) * 1e3)
        if time.perf_counter() - began > budget and len(next(iter(times.values()))) >= 3:
            break
    return {k: statistics.median(v) for k, v in times.items()}


_FMA = """
declare {t} @llvm.fma.v{n}f32({t}, {t}, {t})
define void @peak(i64 %n, ptr %out) #0 {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %j, %loop ]
{phis}
{body}
  %j = add i64 %i, 1
  %c = icmp slt i64 %j, %n
  br i1 %c, label %loop, label %end
end:
{stores}
  ret void
}}
attributes #0 = {{ "prefer-vector-width"="512" "min-legal-vector-width"="512"
                   "target-features"="{flags}" }}
"""


def fma_peak(threads: int) -> Callable[[], float]:
    """A function that measures the fp32 FMA rate of ``threads`` cores, in GFLOP/s."""
    from codegen.cpu.toolchain import Library, features, optimise

    f = features()
    n, chains, steps = f.width, 12, 4
    t = f"<{n} x float>"
    phis, body, stores = [], [], []
    for c in range(chains):
        phis.append(
            f"  %a{c} = phi {t} [ splat (float {c + 1}.0), %entry ], [ %r{c}_{steps - 1}, %loop ]"
        )
        stores.append(f"  %p{c} = getelementptr float, ptr %out, i64 {c * n}")
        stores.append(f"  store {t} %r{c}_{steps - 1}, ptr %p{c}, align 4")
    for s in range(steps):
        for c in range(chains):
            x = f"%a{c}" if s == 0 else f"%r{c}_{s - 1}"
            body.append(
                f"  %r{c}_{s} = call {t} @llvm.fma.v{n}f32("
                f"{t} splat (float 0.75), {t} {x}, {t} splat (float 1.25))"
            )
    text = _FMA.format(
        t=t,
        n=n,
        phis="\n".join(phis),
        body="\n".join(body),
        stores="\n".join(stores),
        flags=f.flags,
    )
    library = Library(optimise(text, f)[2])
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(library.address("peak"))
    call.library = library
    out = [ctypes.create_string_buffer(chains * n * 4) for _ in range(threads)]
    count = 300_000

    def measure() -> float:
        workers = [threading.Thread(target=call, args=(count, o)) for o in out]
        start = time.perf_counter()
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        return threads * count * chains * steps * n * 2 / (time.perf_counter() - start) / 1e9

    return measure
