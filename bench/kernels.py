"""Triton kernels as anyone would write them: masked pointers, tl.dot, loops. Nothing CPU-specific
but the default block sizes."""

import triton
import triton.language as tl


@triton.jit
def gemm(
    a, b, c, M, N, K, sam, sak, sbk, sbn, scm, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """c = a @ b."""
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    ap = a + rm[:, None] * sam + rk[None, :] * sak
    bp = b + rk[:, None] * sbk + rn[None, :] * sbn
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, tl.cdiv(K, BK)):
        x = tl.load(ap, mask=(rm[:, None] < M) & (rk[None, :] < K - k * BK), other=0.0)
        y = tl.load(bp, mask=(rk[:, None] < K - k * BK) & (rn[None, :] < N), other=0.0)
        acc = tl.dot(x, y, acc)
        ap += BK * sak
        bp += BK * sbk
    mask = (rm[:, None] < M) & (rn[None, :] < N)
    tl.store(c + rm[:, None] * scm + rn[None, :], acc.to(c.dtype.element_ty), mask=mask)


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


@triton.jit
def softmax(x, o, N, B: tl.constexpr):
    """Row-wise softmax."""
    row = tl.program_id(0)
    i = tl.arange(0, B)
    v = tl.load(x + row * N + i, mask=i < N, other=-float("inf"))
    e = tl.exp(v - tl.max(v, 0))
    tl.store(o + row * N + i, e / tl.sum(e, 0), mask=i < N)


@triton.jit
def layernorm(x, w, b, o, N, eps, B: tl.constexpr):
    """Row-wise layer normalisation with weight and bias."""
    row = tl.program_id(0)
    i = tl.arange(0, B)
    v = tl.load(x + row * N + i, mask=i < N, other=0.0)
    mean = tl.sum(v, 0) / N
    d = tl.where(i < N, v - mean, 0.0)
    r = tl.rsqrt(tl.sum(d * d, 0) / N + eps)
    y = d * r * tl.load(w + i, mask=i < N) + tl.load(b + i, mask=i < N)
    tl.store(o + row * N + i, y, mask=i < N)


@triton.jit
def rmsnorm(x, w, o, N, eps, B: tl.constexpr):
    """Row-wise root-mean-square normalisation with weight."""
    row = tl.program_id(0)
    i = tl.arange(0, B)
    v = tl.load(x + row * N + i, mask=i < N, other=0.0)
    r = tl.rsqrt(tl.sum(v * v, 0) / N + eps)
    tl.store(o + row * N + i, v * r * tl.load(w + i, mask=i < N), mask=i < N)
