"""Softmax over the last dimension, rows of any length."""

import torch

import tkpy as tk

LOWEST = torch.finfo(torch.float32).min


@tk.kernel(num_warps=8)
def softmax(x: tk.Global["M N"], y: tk.Out["M N"], *, rows: int = 16, cols: int = 1024):
    """y[m, n] = exp(x[m, n]) / sum over k of exp(x[m, k]).

    x, y: [M, N], one dtype of f32, bf16, f16; the arithmetic is fp32. A row of at most ``cols``
    elements is read once; a longer one is read in tiles, twice, with the running maximum and sum
    of Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867,
    algorithm 3). The maximum starts at the lowest finite number, so that a tile of nothing but
    -inf weighs 0 and only a row of nothing but -inf gives NaN, as in PyTorch.
    """
    i = tk.grid(tk.cdiv("M", rows))
    width = min(cols, tk.cdiv("N", 16) * 16)
    top, total = tk.full(rows, LOWEST), tk.zeros(rows)
    for j in tk.range(tk.cdiv("N", width)):
        xt = tk.load(x, (i, j), shape=(rows, width), dtype=tk.f32)
        new_top = tk.detach(tk.row_max(xt, top))
        total = total * tk.exp(top - new_top) + tk.row_sum(tk.exp(xt - new_top))
        top = new_top
    for j in tk.range(tk.cdiv("N", width)):
        xt = tk.load(x, (i, j), shape=(rows, width), dtype=tk.f32)
        tk.store(y, tk.exp(xt - top) / total, (i, j))


def _terms(x):
    # One relative rounding error of y for each unit of x - max, and one of its own.
    below = x.amax(-1, keepdim=True) - x
    return x.softmax(-1) * (1 + torch.where(below.isfinite(), below, 0))


@softmax.reference(
    terms=_terms, roundings=0, constants={"cols": (1024, 64)}, sizes={"M": (1, 70), "N": (1, 300)}
)
def _softmax_reference(x):
    return x.softmax(-1)
