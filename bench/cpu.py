"""The CPU backend against torch: ``python -m bench cpu``.

``limit_fraction`` is the share of a limit measured in the same rounds: an FMA loop for
matrix work, a copy of arrays of the row's own size for row-wise work.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import torch
import triton

import codegen.cpu
from bench import kernels
from bench.measure import fma_peak, turns

F = torch.nn.functional


@dataclass
class Row:
    """One measured row."""

    work: str
    ours_ms: float
    rival: str
    rival_ms: float
    ratio: float
    limit_fraction: float


def _check(work: str, got: torch.Tensor, want: torch.Tensor, tol: float) -> None:
    error = (got.double() - want.double()).abs().max() / want.double().abs().max()
    if not error <= tol:
        raise AssertionError(f"{work}: relative error {error:.3g} exceeds {tol:.3g}")


def _gemm(m: int, n: int, k: int, dtype):
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    c, ref = torch.empty(m, n, dtype=dtype), torch.empty(m, n, dtype=dtype)
    bm, bn, bk = (512, 256 if n < 2048 else 512, 256 if dtype is torch.float32 else 512)
    grid = (triton.cdiv(m, bm), triton.cdiv(n, bn))

    def ours():
        kernels.gemm[grid](a, b, c, m, n, k, *a.stride(), *b.stride(), c.stride(0), bm, bn, bk)

    def rival():
        torch.mm(a, b, out=ref)

    return ours, rival, lambda: (c, ref), 2 * m * n * k, 1e-5 if dtype is torch.float32 else 1e-2


def _attention(n: int, causal: bool, dtype):
    q, k, v = (torch.randn(1, 4, n, 64).to(dtype) for _ in range(3))
    o = torch.empty_like(q)
    bm, bn = (128, 64) if dtype is torch.float32 else (128, 128)
    grid = (triton.cdiv(n, bm), 4)

    def ours():
        kernels.attention[grid](q, k, v, o, n, 0.125, causal, bm, bn, 64)

    def rival():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    flops = 4 * 4 * n * n * 64 // (2 if causal else 1)
    return ours, rival, lambda: (o, rival()), flops, 1e-5 if dtype is torch.float32 else 2e-2


def _rowwise(kind: str):
    x, o = torch.randn(4096, 1024), torch.empty(4096, 1024)
    w, b = torch.randn(1024), torch.randn(1024)
    ref = torch.empty_like(x)
    if kind == "softmax":

        def ours():
            kernels.softmax[(4096,)](x, o, 1024, 1024)

        def rival():
            torch.softmax(x, -1, out=ref)
            return ref
    elif kind == "layernorm":

        def ours():
            kernels.layernorm[(4096,)](x, w, b, o, 1024, 1e-5, 1024)

        def rival():
            return F.layer_norm(x, (1024,), w, b)
    else:

        def ours():
            kernels.rmsnorm[(4096,)](x, w, o, 1024, 1e-5, 1024)

        def rival():
            return F.rms_norm(x, (1024,), w, 1e-5)

    return ours, rival, lambda: (o, rival()), 0, 1e-5


def _work() -> dict:
    fp32, bf16 = torch.float32, torch.bfloat16
    rows = {
        "gemm fp32 1024": lambda: _gemm(1024, 1024, 1024, fp32),
        "gemm fp32 2048": lambda: _gemm(2048, 2048, 2048, fp32),
        "gemm fp32 1000x1100x900": lambda: _gemm(1000, 1100, 900, fp32),
        "gemm bf16 2048": lambda: _gemm(2048, 2048, 2048, bf16),
    }
    for dtype, name in ((fp32, "fp32"), (bf16, "bf16")):
        for n in (1024, 4096):
            for causal in (False, True):
                work = f"attention {name} {'causal ' if causal else ''}{n}"
                rows[work] = lambda n=n, causal=causal, dtype=dtype: _attention(n, causal, dtype)
    for kind in ("softmax", "layernorm", "rmsnorm"):
        rows[f"{kind} 4096x1024"] = lambda kind=kind: _rowwise(kind)
    return rows


def run(only: str, threads: int) -> list[dict]:
    """Measure, print and give the rows."""
    os.environ.setdefault("TRITON_DEFAULT_BACKEND", "cpu")
    codegen.cpu.register()
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    peak = fma_peak(threads)
    src, dst = torch.randn(4096, 1024), torch.empty(4096, 1024)
    rows = []
    print(f"{'work':28}{'ours ms':>10}{'rival ms':>10}  {'rival':8}{'ratio':>7}{'of limit':>10}")
    for work, make in _work().items():
        if only not in work:
            continue
        ours, rival, results, flops, tol = make()
        ours()
        rival()
        _check(work, *results(), tol)
        rates: list[float] = []
        fns = {"ours": ours, "rival": rival}
        if flops:
            fns["limit"] = lambda rates=rates: rates.append(peak())
        else:
            fns["limit"] = lambda: dst.copy_(src)
        t = turns(fns)
        limit_ms = flops / sorted(rates)[len(rates) // 2] / 1e6 if flops else t["limit"]
        row = Row(
            work, t["ours"], "torch", t["rival"], t["rival"] / t["ours"], limit_ms / t["ours"]
        )
        rows.append(asdict(row))
        print(f"{work:28}{row.ours_ms:10.3f}{row.rival_ms:10.3f}  {row.rival:8}{row.ratio:7.2f}"
              f"{row.limit_fraction:10.2f}", flush=True)  # fmt: skip
    return rows
