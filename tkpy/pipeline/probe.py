"""What this CPU does, by kernels that are nothing but one kind of work."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

import tkpy as tk
from tkpy.pipeline.device import Device

CHAIN = 16  # multiply-adds a probe does to each element that it moves
FEW = 4  # exponentials and divisions, which take longer than the way between them


@tk.kernel
def arithmetic(x: tk.Global["M 1024"], y: tk.Out["M 1024"], *, rows: int = 16):
    i = tk.grid(tk.cdiv("M", rows))
    t = tk.load(x, (i, 0), (rows, 1024))
    a = t
    for _ in range(CHAIN):
        a = a * t + t
    tk.store(y, a, (i, 0))


@tk.kernel
def special(x: tk.Global["M 1024"], y: tk.Out["M 1024"], *, rows: int = 16):
    i = tk.grid(tk.cdiv("M", rows))
    t = tk.load(x, (i, 0), (rows, 1024))
    for _ in range(FEW):
        t = tk.exp(t)
    tk.store(y, t, (i, 0))


@tk.kernel
def division(x: tk.Global["M 1024"], y: tk.Out["M 1024"], *, rows: int = 16):
    i = tk.grid(tk.cdiv("M", rows))
    t = tk.load(x, (i, 0), (rows, 1024))
    a = t
    for _ in range(FEW):
        a = t / a
    tk.store(y, a, (i, 0))


@tk.kernel
def again(x: tk.Global["64 1024"], y: tk.Out["M 1024"], *, rows: int = 16):
    i = tk.grid(tk.cdiv("M", rows))
    total = tk.zeros(rows, 1024)
    for k in range(4):
        total += tk.load(x, (k, 0), (rows, 1024))
    tk.store(y, total, (i, 0))


@tk.kernel
def moved(x: tk.Global["M 1024"], y: tk.Out["M 1024"], *, rows: int = 16):
    i = tk.grid(tk.cdiv("M", rows))
    tk.store(y, tk.load(x, (i, 0), (rows, 1024)), (i, 0))


@tk.kernel
def product(
    a: tk.Global["M K"], b: tk.Global["K N"], c: tk.Out["M N"], *, rows: int = 512,
    cols: int = 512, depth: int = 512,
):  # fmt: skip
    i, j = tk.grid(tk.cdiv("M", rows), tk.cdiv("N", cols))
    acc = tk.zeros(rows, cols)
    for k in tk.range(tk.cdiv("K", depth)):
        acc += tk.load(a, (i, k), (rows, depth)) @ tk.load(b, (k, j), (depth, cols))
    tk.store(c, acc, (i, j))


def seconds(run: Callable[[], object], rounds: int = 7) -> float:
    """The least of a few runs, after one that compiles."""
    run()
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _beyond(run: Callable[[], object], base: Callable[[], object]) -> float:
    """Seconds that ``run`` takes beyond ``base``; asked again where a busy machine says none."""
    took = 0.0
    for _ in range(10):
        least, took = seconds(base), seconds(run)
        if took > least:
            return took - least
    return took


@functools.cache
def this_cpu() -> Device:
    """This processor with the CPU backend: what a kernel gets here, so ``share`` is 1.

    Products of 2048^3, chains of multiply-adds, exponentials and divisions on what the cache
    holds, sums over the same 256 KiB again and again, and a copy of 64 MiB, by the default threads.
    A few seconds.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    matrix = {}
    n = 2048
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = normal(n, n).to(dtype), normal(n, n).to(dtype)
        c = torch.empty_like(a)
        matrix[name] = 2.0 * n**3 / seconds(lambda a=a, b=b, c=c: product(a, b, c=c))
    x = normal(512, 1024).div_(1e4)
    y = torch.empty_like(x)
    count = float(x.numel())
    adds = 2 * CHAIN * count / _beyond(lambda: arithmetic(x, y=y), lambda: moved(x, y=y))
    x.sub_(3.0)
    exps = FEW * count / _beyond(lambda: special(x, y=y), lambda: moved(x, y=y))
    quotients = FEW * count / _beyond(lambda: division(x, y=y), lambda: moved(x, y=y))
    hot = normal(64, 1024)
    # Each tile is read, and the sum read and written.
    bytes_ = 3 * 4.0 * hot.numel() * x.shape[0] / 16 + 4 * count
    near = bytes_ / seconds(lambda: again(hot, y=y))
    big = torch.empty(1 << 14, 1024).normal_(generator=generator)
    far = 8.0 * big.numel() / seconds(lambda to=torch.empty_like(big): moved(big, y=to), 3)
    tiny = normal(1, 1024)
    launch = seconds(lambda to=torch.empty_like(tiny): moved(tiny, y=to), 30)
    return Device(
        "cpu", "this CPU", torch.get_num_threads(), 1e9, matrix, adds, exps, far, max(near, far),
        4 * max(near, far), shared=1 << 20, share=1.0, latency=100e-9, l2_latency=20e-9,
        mma_latency=0.0, sync=0.0, launch=launch, division=quotients,
    )  # fmt: skip
