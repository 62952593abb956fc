"""tt.dot of every dtype, and kernels built on it, against fp64."""

import pytest
import torch
import triton
import triton.language as tl

from codegen.cpu import launch

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))


@triton.jit
def dots(
    a,
    b,
    c,
    o,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    TA: tl.constexpr,
    TB: tl.constexpr,
):
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    if TA:
        x = tl.trans(tl.load(a + k[:, None] * M + m[None, :]))
    else:
        x = tl.load(a + m[:, None] * K + k[None, :])
    if TB:
        y = tl.trans(tl.load(b + n[:, None] * K + k[None, :]))
    else:
        y = tl.load(b + k[:, None] * N + n[None, :])
    z = tl.load(c + m[:, None] * N + n[None, :])
    r = tl.dot(x, y, z, out_dtype=o.dtype.element_ty)
    tl.store(o + m[:, None] * N + n[None, :], r)


SHAPES = [
    (16, 16, 16),
    (64, 64, 32),
    (16, 128, 64),
    (128, 32, 16),
    (32, 32, 128),
    (1, 16, 32),
    (16, 8, 8),
]


LAYOUTS = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(
    ("dtype", "ta", "tb"),
    [
        # Of the rarer types both operands are tried in both layouts, not all four pairs.
        pytest.param(dtype, *t, marks=pytest.mark.slow if rare and t[0] != t[1] else ())
        for dtype, rare in (
            (torch.float32, False), (torch.bfloat16, False),
            (torch.float16, True), (torch.int8, True), (torch.float64, True),
        )
        for t in LAYOUTS
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES)
def test_dot(shape, ta, tb, dtype):
    m, n, k = shape
    g = torch.Generator().manual_seed(0)
    acc = {torch.int8: torch.int32, torch.float64: torch.float64}.get(dtype, torch.float32)
    if dtype is torch.int8:
        a, b = (torch.randint(-128, 128, s, generator=g).to(dtype) for s in ((m, k), (k, n)))
        c = torch.randint(-9, 9, (m, n), generator=g).to(acc)
    else:
        a, b = (torch.randn(s, generator=g).to(dtype) for s in ((m, k), (k, n)))
        c = torch.randn(m, n, generator=g).to(acc)
    out = torch.empty(m, n, dtype=acc)
    dots[(1,)](
        a.T.contiguous() if ta else a, b.T.contiguous() if tb else b, c, out, m, n, k, ta, tb
    )
    want = a.double() @ b.double() + c.double()
    if dtype is torch.int8:
        assert torch.equal(out.double(), want)
    else:
        size = a.double().abs() @ b.double().abs() + c.double().abs()
        eps = torch.finfo(acc).eps
        assert ((out.double() - want).abs() <= 4 * eps * size).all()


@triton.jit
def gemm(
    a, b, c, M, N, K, sam, sak, sbk, sbn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
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
    tl.store(c + rm[:, None] * N + rn[None, :], acc.to(c.dtype.element_ty), mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (100, 130, 75), (64, 64, 64), (65, 17, 200)])
@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_gemm(shape, dtype, layout):
    m, n, k = shape
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(m, k, generator=g).to(dtype), torch.randn(k, n, generator=g).to(dtype)
    if layout[0] == "t":
        a = a.T.contiguous().T
    if layout[1] == "t":
        b = b.T.contiguous().T
    c = torch.full((m, n), float("nan"), dtype=dtype)
    grid = (triton.cdiv(m, 64), triton.cdiv(n, 32))
    gemm[grid](a, b, c, m, n, k, *a.stride(), *b.stride(), 64, 32, 32)
    want = a.double() @ b.double()
    size = a.double().abs() @ b.double().abs()
    assert (
        (c.double() - want).abs()
        <= torch.finfo(dtype).eps * (want.abs() + 1e-5 * size) + 4e-7 * size
    ).all()


def test_results_do_not_depend_on_threads(monkeypatch):
    a, b = torch.randn(300, 200), torch.randn(200, 257)
    out = []
    monkeypatch.setattr(launch, "_WORTH", 0)
    for threads in ("1", "2", "4"):
        monkeypatch.setenv("TKPY_NUM_THREADS", threads)
        c = torch.empty(300, 257)
        gemm[(5, 9)](a, b, c, 300, 257, 200, *a.stride(), *b.stride(), 64, 32, 32)
        out.append(c)
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])


@triton.jit
def attention(
    q, k, v, o, N, scale, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr
):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 63, 100])
def test_attention(n, causal, dtype):
    q, k, v = (
        torch.randn(1, 2, n, 32, generator=torch.Generator().manual_seed(s)).to(dtype)
        for s in range(3)
    )
    o = torch.empty_like(q)
    attention[(triton.cdiv(n, 32), 2)](q, k, v, o, n, 32**-0.5, causal, 32, 32, 32)
    want = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=causal
    )
    assert (o.double() - want).abs().max() < (1e-6 if dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_does_not_depend_on_threads(causal, dtype, monkeypatch):
    q, k, v = (torch.randn(3, 2, 200, 32).to(dtype) for _ in range(3))
    out = []
    monkeypatch.setattr(launch, "_WORTH", 0)
    for threads in ("1", "2", "4", "2"):
        monkeypatch.setenv("TKPY_NUM_THREADS", threads)
        o = torch.full_like(q, float("nan"))
        attention[(triton.cdiv(200, 32), 6)](q, k, v, o, 200, 32**-0.5, causal, 32, 32, 32)
        out.append(o)
    assert not out[0].isnan().any() and all(torch.equal(out[0], o) for o in out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_minus_infinity(dtype):
    """Keys that no query may see weigh nothing, whatever they and their values are."""
    q, k, v = (torch.randn(1, 1, 64, 32).to(dtype) for _ in range(3))
    o, p = torch.empty_like(q), torch.empty_like(q)
    attention[(2, 1)](q, k, v, o, 64, 32**-0.5, True, 32, 32, 32)
    k[:, :, 40:], v[:, :, 40:] = 3e4, 7.0
    attention[(2, 1)](q, k, v, p, 64, 32**-0.5, True, 32, 32, 32)
    assert torch.equal(o[:, :, :40], p[:, :, :40]) and not p.isnan().any()


def test_batched_dot():
    @triton.jit
    def kernel(a, b, o):
        i, j, k = (
            tl.arange(0, 4)[:, None, None],
            tl.arange(0, 16)[None, :, None],
            tl.arange(0, 16)[None, None, :],
        )
        at = i * 256 + j * 16 + k
        tl.store(o + at, tl.dot(tl.load(a + at), tl.load(b + at)))

    a, b = torch.randn(4, 16, 16), torch.randn(4, 16, 16)
    out = torch.empty(4, 16, 16)
    kernel[(1,)](a, b, out)
    assert torch.allclose(out, a @ b, atol=1e-5)


def test_descriptors():
    @triton.jit
    def kernel(x, o, m, n, B: tl.constexpr):
        d = tl.make_tensor_descriptor(x, [m, n], [n, 1], [B, B])
        e = tl.make_tensor_descriptor(o, [m, n], [n, 1], [B, B])
        i, j = tl.program_id(0) * B, tl.program_id(1) * B
        e.store([i, j], d.load([i, j]) * 2)

    x = torch.randn(40, 36)
    o = torch.zeros_like(x)
    kernel[(3, 3)](x, o, 40, 36, 16)
    assert torch.equal(o, x * 2)


@pytest.mark.skipif(VERSION >= (3, 9), reason="Triton 3.9 has no block pointers")
def test_block_pointers():
    @triton.jit
    def kernel(x, p, m, n, B: tl.constexpr):
        i, j = tl.program_id(0) * B, tl.program_id(1) * B
        s = tl.make_block_ptr(x, (m, n), (n, 1), (i, j), (B, B), (1, 0))
        t = tl.make_block_ptr(p, (m, n), (n, 1), (i, j), (B, B), (1, 0))
        v = tl.load(s, boundary_check=(0, 1), padding_option="zero")
        tl.store(t, v + 1, boundary_check=(0, 1))

    x = torch.randn(40, 36)
    p = torch.zeros_like(x)
    kernel[(3, 3)](x, p, 40, 36, 16)
    assert torch.equal(p, x + 1)
