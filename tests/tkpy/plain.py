"""Kernels that the tests of calls, variants and caches run."""

import tkpy as tk


@tk.kernel
def scale(x: tk.Global["N D"], y: tk.Out["N D"], factor: tk.f32, *, rows: int = 32):
    i = tk.grid(tk.cdiv("N", rows))
    tk.store(y, tk.load(x, (i, 0), shape=(rows, "D")) * factor, (i, 0))


@tk.kernel
def walk(x: tk.Global["B N D"], y: tk.Out["B D", tk.f32]):
    b = tk.grid("B")
    total = tk.zeros("D")
    for j in tk.range(tk.cdiv("N", 32)):
        t = tk.load(x, (b, j, 0), shape=(32, "D"), dtype=tk.f32)
        total = total + tk.col_sum(tk.fill_dead(t, 0))
    tk.store(y, total, (b, 0))


OFFSET = 1.5


@tk.function
def shift(x):
    return x + OFFSET


@tk.kernel
def shifted(x: tk.Global["N D"], y: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, shift(tk.load(x, (i, 0), shape=(16, "D"))), (i, 0))


@tk.kernel(where=["0 <= s"])
def at_tile(x: tk.Global["N D"], o: tk.Out["64 D"], s: tk.i32):
    tk.grid(1)
    tk.store(o, tk.load(x, (s, 0), shape=(64, "D")), (0, 0))
