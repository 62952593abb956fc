"""Matrix product with a fused epilogue."""

from typing import Literal

import torch.nn.functional as F

import tkpy as tk


@tk.lcf(
    consumer_warps=8,
    producer_warps=4,
    super_m=8,
    autocast=True,
    gpu={"f32": {"rows": 64, "cols": 64, "depth": 16}},
)
def gemm(
    a: tk.Global["K M if trans_a else M K"],
    b: tk.Global["N K if trans_b else K N"],
    c: tk.Out["M N"],
    bias: tk.Global["N"] | None = None,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    epilogue: Literal["none", "gelu", "silu"] = "none",
    rows: int = 128,
    cols: int = 128,
    depth: int = 64,
):
    """c = f(op(a) op(b) + bias), op the identity or the transpose, f none, gelu or silu.

    a: [M, K], or [K, M] with ``trans_a``; b: [K, N], or [N, K] with ``trans_b``; bias: [N];
    c: [M, N]; one dtype of f32, bf16, f16. Sums are fp32, and so is the epilogue; gelu is the
    exact one (erf). PyTorch's ``linear`` is ``trans_b=True``.
    """
    i, j = tk.tasks(tk.cdiv("M", rows), tk.cdiv("N", cols))

    def setup():
        return tk.zeros(rows, cols)

    def load(k):
        at = tk.load(a, (k, i), (depth, rows)).T if trans_a else tk.load(a, (i, k), (rows, depth))
        bt = tk.load(b, (j, k), (cols, depth)).T if trans_b else tk.load(b, (k, j), (depth, cols))
        return at, bt

    def compute(k, acc, at, bt):
        return acc + at @ bt

    def finish(acc):
        if bias is not None:
            acc += tk.load(bias, j, cols, dtype=tk.f32)
        acc = tk.gelu(acc) if epilogue == "gelu" else tk.silu(acc) if epilogue == "silu" else acc
        tk.store(c, acc, (i, j))

    tk.run(tk.cdiv("K", depth), setup, load, compute, finish)


def _gemm_terms(a, b, bias=None, trans_a=False, trans_b=False, epilogue="none"):
    # Neither gelu nor silu is steeper than 1.13.
    return _gemm_reference(a.abs(), b.abs(), None if bias is None else bias.abs(), trans_a, trans_b)


@gemm.reference(terms=_gemm_terms, roundings=0, sizes={"M": (1, 300), "N": (1, 300), "K": (1, 200)})
def _gemm_reference(a, b, bias=None, trans_a=False, trans_b=False, epilogue="none"):
    c = (a.mT if trans_a else a) @ (b.mT if trans_b else b)
    c = c if bias is None else c + bias
    return {"none": lambda x: x, "gelu": F.gelu, "silu": F.silu}[epilogue](c)
