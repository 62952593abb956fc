"""The gate of a SwiGLU layer."""

import torch
import torch.nn.functional as F

import tkpy as tk


@tk.kernel
def swiglu(x: tk.Global["M 2 H"], y: tk.Out["M H"], *, rows: int = 16, cols: int = 512):
    """y[m] = x[m, 0] silu(x[m, 1]).

    x: [M, 2, H], values and their gates; y: [M, H], one dtype of f32, bf16, f16; the arithmetic is
    fp32. Shazeer, "GLU Variants Improve Transformer" (arXiv 2002.05202, equation 6), between its
    two products.
    """
    i, j = tk.grid(tk.cdiv("M", rows), tk.cdiv("H", cols))
    value, gate = [tk.load(x, (i, k, j), (rows, cols), axis=(0, 2), dtype=tk.f32) for k in (0, 1)]
    tk.store(y, value * tk.silu(gate), (i, j))


def _terms(x):
    # A relative error of the gate's sigmoid is at most one of its exponent.
    value, gate = x.unbind(1)
    # Below the smallest normal number of fp32 the sigmoid is nothing (in units of 8 roundings).
    least = torch.finfo(torch.float32).smallest_normal / (8 * torch.finfo(torch.float32).eps)
    return (value * F.silu(gate)).abs() * (1 + gate.abs()) + (value * gate).abs() * least


@swiglu.reference(terms=_terms, roundings=0, sizes={"M": (1, 70), "H": (1, 600)})
def _reference(x):
    value, gate = x.unbind(1)
    return value * F.silu(gate)
