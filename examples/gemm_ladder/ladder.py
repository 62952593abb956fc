"""What the steps share: a check against PyTorch, times on this CPU, a simulated H100."""

from __future__ import annotations

import importlib
import statistics
import time

import torch

STEPS = tuple(range(1, 9))
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16}


def kernel(step: int):
    """The kernel ``gemm`` of a step."""
    return importlib.import_module(f"step{step}").gemm


def dtype_of(gemm) -> torch.dtype:
    """The element type that a step multiplies."""
    return TORCH[gemm.signature.parameter("a").spec.dtype.name]


def operands(gemm, m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((m, k), (k, n))
    return tuple(torch.randn(*s, generator=g).to(dtype_of(gemm)) for s in shapes)  # type: ignore


def check(gemm, m: int, n: int, k: int) -> float:
    """The largest error, as a share of what rounding may cause; AssertionError above 1."""
    a, b = operands(gemm, m, n, k)
    eps = torch.finfo(a.dtype).eps
    error = (gemm(a, b).double() - a.double() @ b.double()).abs()
    # Sums of k products in fp32, then one rounding to the result's type.
    bound = 1e-6 * (a.double().abs() @ b.double().abs()) + eps * (a.double() @ b.double()).abs()
    worst = float((error / bound).max())
    assert worst <= 1, f"off by {worst:.1f} times what rounding may cause"
    return worst


def turns(fns: list, rounds: int = 5) -> list[float]:
    """Median milliseconds of each function; they take turns, so that noise hits them alike."""
    times: list[list[float]] = [[] for _ in fns]
    for fn in fns:
        fn()  # compiles
    for _ in range(rounds):
        for fn, mine in zip(fns, times, strict=True):
            start = time.perf_counter()
            fn()
            mine.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(t) for t in times]


def on_this_cpu(gemm, n: int, **sizes: int):
    """A function that multiplies n x n by n x n, here."""
    a, b = operands(gemm, n, n, n)
    c = torch.empty(n, n, dtype=a.dtype)
    return lambda: gemm(a, b, c=c, **sizes)


def on_an_h100(gemm, n: int):
    """Simulated: (seconds, share of the peak of its type, what binds) of an n x n x n product."""
    from tkpy.ahead import Setting
    from tkpy.pipeline.device import device
    from tkpy.pipeline.of_kernel import estimate, plan

    machine, sizes = device("h100"), {"M": n, "N": n, "K": n}
    planned = plan(gemm, machine, sizes, Setting("bf16", sizes))
    result = estimate(planned, machine)
    peak = machine.products(planned.dtype) / machine.share
    return result.seconds, result.flops / peak, result.timeline.binding


def show(gemm) -> None:
    """What a step prints when it is run: that it is right, and how fast it is here."""
    n = 512
    worst = check(gemm, n, n, n)
    (ms,) = turns([on_this_cpu(gemm, n)], 20)
    print(f"{n} x {n} x {n}: right (error {worst:.2f} of what rounding may cause), "
          f"{ms:.2f} ms, {2 * n**3 / ms / 1e6:.0f} GFLOP/s on this CPU")  # fmt: skip
