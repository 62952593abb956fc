"""Kernels for the tests of the command line: right, wrong, and of every kind of argument."""

from typing import Literal

import tkpy as tk


@tk.kernel
def scaled(x: tk.Global["N D"], y: tk.Out["N D"], factor: tk.f32 = 2.0, *, rows: int = 16):
    """y = x * factor."""
    i = tk.grid(tk.cdiv("N", rows))
    t = tk.load(x, (i, 0), shape=(rows, "D"), dtype=tk.f32)
    tk.store(y, t * factor, (i, 0))


@scaled.reference
def _scaled(x, factor):
    return x * factor


@tk.kernel
def wrong(x: tk.Global["N D"], y: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.load(x, (i, 0), shape=(16, "D")) * 1.5, (i, 0))


@wrong.reference
def _wrong(x):
    return x


@tk.kernel
def unreferenced(x: tk.Global["N D"], y: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.load(x, (i, 0), shape=(16, "D")), (i, 0))


@tk.kernel
def illegal(x: tk.Global["N D"], y: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    t = tk.load(x, (i, 0), shape=(16, "D"))
    tk.store(y, t @ tk.zeros(48, 48, dtype=x.dtype), (i, 0))


@illegal.reference
def _illegal(x):
    return x


@tk.kernel(where=["N >= 1", "H % G == 0", "F <= 24", "0 <= rows_of < N", "sorted(rows_of)"])
def many(
    x: tk.Global["H N F"],
    bias: tk.Global["F"] | None,
    rows_of: tk.Global["G K", tk.i32],
    y: tk.Out["H N+1 2*F"],
    sums: tk.Out["H", tk.f32] | None = None,
    count: tk.i32 = 3,
    alpha: tk.f32 | None = None,
    *,
    mode: Literal["add", "mul"] = "add",
    twice: bool = False,
):
    """One line about it.

    And a backslash \\ with quotes.
    """
    h, i = tk.grid("H", tk.cdiv("N", 16))
    t = tk.load(x, (h, i, 0), shape=(16, "F"), dtype=tk.f32)
    if bias is not None:
        t = t + tk.load(bias, (0,), shape=("F",), dtype=tk.f32)
    t = t + 1.0 if mode == "add" else t * 2.0
    t = t * 2.0 if twice else t
    t = t * alpha if alpha is not None else t
    tk.store(y, t, (h, i, 0))
    if sums is not None:
        tk.store_add(sums, tk.sum(tk.row_sum(t)), (tk.at(h),))


def plain():
    """Not a kernel."""
