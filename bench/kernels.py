"""A Triton kernel as anyone would write it, to time its compilation: nothing CPU-specific."""

import triton
import triton.language as tl


@triton.jit
def attention(
    q, k, v, o, N, scale, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr
):
    """Online-softmax attention forward over contiguous [heads, N, D]."""
    start = tl.program_id(0) * BM
    base = tl.program_id(1) * N * D
    rm = start + tl.arange(0, BM)
    rd = tl.arange(0, D)
    x = tl.load(q + base + rm[:, None] * D + rd[None, :], mask=rm[:, None] < N, other=0.0)
    m = tl.full((BM,), float("-inf"), tl.float32)
    l = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    end = tl.minimum(start + BM, N) if CAUSAL else N
    for j in tl.range(0, end, BN):
        rn = j + tl.arange(0, BN)
        y = tl.load(k + base + rn[:, None] * D + rd[None, :], mask=rn[:, None] < N, other=0.0)
        s = tl.dot(x, tl.trans(y)) * scale
        s = tl.where(rn[None, :] < N, s, float("-inf"))
        if CAUSAL:
            s = tl.where(rm[:, None] >= rn[None, :], s, float("-inf"))
        new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp(s - new[:, None])
        alpha = tl.exp(m - new)
        l = l * alpha + tl.sum(p, 1)
        z = tl.load(v + base + rn[:, None] * D + rd[None, :], mask=rn[:, None] < N, other=0.0)
        acc = tl.dot(p.to(z.dtype), z, acc * alpha[:, None])
        m = new
    acc = acc / l[:, None]
    tl.store(
        o + base + rm[:, None] * D + rd[None, :], acc.to(o.dtype.element_ty), mask=rm[:, None] < N
    )
