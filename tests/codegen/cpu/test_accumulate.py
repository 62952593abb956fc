"""Loops that add up products: accumulators that are neither filled nor copied, strips and panels."""

import hypothesis.strategies as st
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings


@triton.jit
def two_loops(
    a, b, c, M, N, K, k1, outer, seed,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """c[r] = seed + a b, K steps up to k1 in one loop and the rest in another, ``outer`` times."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    for r in range(outer):
        acc = tl.zeros((BM, BN), tl.float32) + seed
        for i in range(k1):
            k = i * BK + tl.arange(0, BK)
            x = tl.load(a + m[:, None] * K + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0.0)
            y = tl.load(b + k[:, None] * N + n[None, :], (k < K)[:, None] & (n < N)[None, :], 0.0)
            acc = tl.dot(x, y, acc, input_precision="ieee")
        for i in range(k1, tl.cdiv(K, BK)):
            k = i * BK + tl.arange(0, BK)
            x = tl.load(a + m[:, None] * K + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0.0)
            y = tl.load(b + k[:, None] * N + n[None, :], (k < K)[:, None] & (n < N)[None, :], 0.0)
            acc = tl.dot(x, y, acc, input_precision="ieee")
        at = c + r * M * N + m[:, None] * N + n[None, :]
        tl.store(at, acc, (m < M)[:, None] & (n < N)[None, :])


@triton.jit
def plain(a, b, c, steps, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """c = the sum over steps of a[s] b[s], whose accumulator begins as a constant zero."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    acc = tl.zeros((M, N), tl.float32)
    for s in range(steps):
        x = tl.load(a + s * M * K + m[:, None] * K + k[None, :])
        y = tl.load(b + s * K * N + k[:, None] * N + n[None, :])
        acc = tl.dot(x, y, acc, input_precision="ieee")
    tl.store(c + m[:, None] * N + n[None, :], acc)


def near(got, a, b, seed=0.0):
    want = a.double() @ b.double() + seed
    terms = a.double().abs() @ b.double().abs() + abs(seed)
    bound = (a.shape[-1] + 2) * torch.finfo(torch.float32).eps * terms
    assert ((got.double() - want).abs() <= bound).all()


SIDES = st.integers(1, 150)


@settings(max_examples=6, deadline=None)
@given(m=SIDES, n=SIDES, k=SIDES, first=st.integers(0, 3), seed=st.sampled_from([0.0, 1.5]))
@pytest.mark.parametrize("block", [(64, 64, 64), (128, 64, 16), (16, 128, 128)])
def test_two_loops_share_an_accumulator(block, m, n, k, first, seed):
    g = torch.Generator().manual_seed(m * 7 + n)
    a, b = torch.randn(m, k, generator=g), torch.randn(k, n, generator=g)
    c = torch.full((2, m, n), float("nan"))
    first = min(first, -(-k // block[2]))
    grid = (triton.cdiv(m, block[0]), triton.cdiv(n, block[1]))
    two_loops[grid](a, b, c, m, n, k, first, 2, seed, *block)
    near(c[0], a, b, seed)
    assert torch.equal(c[0], c[1])  # the second round begins again


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64, 64), (32, 128, 256), (16, 16, 16), (256, 32, 128)])
def test_a_constant_accumulator_is_not_filled(shape, dtype, steps):
    m, n, k = shape
    g = torch.Generator().manual_seed(steps)
    a = torch.randn(max(steps, 1), m, k, generator=g).to(dtype)
    b = torch.randn(max(steps, 1), k, n, generator=g).to(dtype)
    c = torch.full((m, n), float("nan"))
    for _ in range(2):  # the second time over what the first left in scratch memory
        plain[(1,)](a, b, c, steps, m, n, k)
    if steps == 0:
        assert torch.equal(c, torch.zeros(m, n))
    else:
        near(c, a[:steps].permute(1, 0, 2).reshape(m, -1), b[:steps].reshape(-1, n))
