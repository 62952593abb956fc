"""The two fused linear layers of the Flux image model: with gelu, and with a gated residual."""

import torch.nn.functional as F

import tkpy as tk

EXACT = {"f32": {"rows": 64, "cols": 64, "depth": 16}}  # what registers hold of exact products


@tk.function
def linear(x, weight, i, j, rows, cols, depth, finish):
    """Gives ``finish`` the tile i, j of x weight^T, in fp32."""

    def setup():
        return tk.zeros(rows, cols)

    def load(k):
        return tk.load(x, (i, k), (rows, depth)), tk.load(weight, (j, k), (cols, depth))

    def compute(k, acc, xt, wt):
        return tk.mma_ABt(xt, wt, acc)

    tk.run(tk.cdiv("K", depth), setup, load, compute, finish)


@tk.lcf(super_m=8, autocast=True, gpu=EXACT)
def flux_gelu(
    x: tk.Global["M K"],
    weight: tk.Global["N K"],
    bias: tk.Global["N"],
    y: tk.Out["M N"],
    *,
    rows: int = 128,
    cols: int = 128,
    depth: int = 64,
):
    """y = gelu(x weight^T + bias), gelu in its tanh form.

    x: [M, K]; weight: [N, K], as PyTorch's ``linear`` has it; bias: [N]; y: [M, N]; one dtype of
    f32, bf16, f16. Sums and the epilogue are fp32. Hendrycks and Gimpel, "Gaussian Error Linear
    Units" (arXiv 1606.08415, section 2): u (1 + tanh z) / 2 is u sigmoid(2 z), which loses
    nothing where tanh is near -1.
    """
    i, j = tk.tasks(tk.cdiv("M", rows), tk.cdiv("N", cols))

    def finish(acc):
        u = acc + tk.load(bias, j, cols, dtype=tk.f32)
        tk.store(y, u * tk.sigmoid(u * (u * u * 0.0713548162726 + 1.5957691216057308)), (i, j))

    linear(x, weight, i, j, rows, cols, depth, finish)


@tk.lcf(super_m=8, autocast=True, gpu=EXACT)
def flux_gate(
    x: tk.Global["M K"],
    weight: tk.Global["N K"],
    bias: tk.Global["N"],
    gate: tk.Global["N"],
    residual: tk.Global["M N"],
    y: tk.Out["M N"],
    *,
    rows: int = 128,
    cols: int = 128,
    depth: int = 64,
):
    """y = (x weight^T + bias) * gate + residual.

    x: [M, K]; weight: [N, K]; bias, gate: [N]; residual, y: [M, N]; one dtype of f32, bf16, f16.
    Everything between loads and the store is fp32. ThunderKittens' kernels/flux (which drops the
    bias).
    """
    i, j = tk.tasks(tk.cdiv("M", rows), tk.cdiv("N", cols))

    def finish(acc):
        u = (acc + tk.load(bias, j, cols, dtype=tk.f32)) * tk.load(gate, j, cols, dtype=tk.f32)
        tk.store(y, u + tk.load(residual, (i, j), (rows, cols), dtype=tk.f32), (i, j))

    linear(x, weight, i, j, rows, cols, depth, finish)


def _gelu_terms(x, weight, bias):
    return x.abs() @ weight.abs().mT + bias.abs()  # gelu is nowhere steeper than 1.13


@flux_gelu.reference(
    terms=_gelu_terms, roundings=0, sizes={"M": (1, 300), "N": (1, 300), "K": (1, 200)}
)
def _gelu_reference(x, weight, bias):
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def _gate_terms(x, weight, bias, gate, residual):
    return _gelu_terms(x, weight, bias) * gate.abs() + residual.abs()


@flux_gate.reference(
    terms=_gate_terms, roundings=0, sizes={"M": (1, 300), "N": (1, 300), "K": (1, 200)}
)
def _gate_reference(x, weight, bias, gate, residual):
    return F.linear(x, weight, bias) * gate + residual
