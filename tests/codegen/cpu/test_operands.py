"""Operands of products however they lie: turned in registers, packed before the loop."""

import pytest
import torch
import triton
import triton.language as tl

from codegen.cpu import packs
from codegen.cpu.lower.uses import Uses
from codegen.cpu.parser import parse


@triton.jit
def turned(a, b, o, M, K, R: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    i, j, d = tl.arange(0, R), tl.arange(0, C), tl.arange(0, D)
    x = tl.load(
        a + j[:, None] * M + i[None, :], mask=(j[:, None] < K) & (i[None, :] < M), other=0.0
    )
    y = tl.load(b + j[:, None] * D + d[None, :], mask=j[:, None] < K, other=0.0)
    tl.store(o + i[:, None] * D + d[None, :], tl.dot(tl.trans(x), y), mask=i[:, None] < M)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_turned_left_operand(dtype):
    for m, k in ((64, 64), (50, 33), (1, 64), (17, 2), (64, 31)):
        a, b = torch.randn(k, m).to(dtype), torch.randn(k, 32).to(dtype)
        o = torch.full((m, 32), 9.0)
        turned[(1,)](a, b, o, m, k, 64, 64, 32)
        want, size = a.double().T @ b.double(), a.double().abs().T @ b.double().abs()
        assert ((o - want).abs() <= 4 * 2.0**-24 * k * size + 1e-30).all()


@triton.jit
def fixed(a, b, w, o, N, K, D, TURN: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """Rows of a, block by block, times one b; and times w, which changes with the block."""
    j, d, r = tl.arange(0, C), tl.arange(0, C), tl.arange(0, R)
    inside = (j[:, None] < K) & (d[None, :] < D)
    y = tl.load(b + j[:, None] * D + d[None, :], mask=inside, other=0.0)
    if TURN:
        y = tl.trans(y)
    total = tl.zeros((R, C), tl.float32)
    for n in range(0, N, R):
        row = n + r
        x = tl.load(a + row[:, None] * K + j[None, :], mask=(row[:, None] < N) & (j[None, :] < K),
                    other=0.0)  # fmt: skip
        total += tl.dot(x, y)
        z = tl.load(w + n + j[:, None] * 0 + d[None, :] * 0)
        total += tl.dot(x, y * z)
    tl.store(o + r[:, None] * D + d[None, :], total, mask=d[None, :] < D)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("turn", [False, True])
def test_packed_before_the_loop(dtype, turn):
    n, k, r = 40, 50, 16
    d = k if turn else 35
    a, b, w = (torch.randn(*s).to(dtype) for s in ((n, k), (k, d), (n,)))
    o = torch.full((r, d), 9.0)
    kernel = fixed[(1,)](a, b, w, o, n, k, d, turn, r, 64)
    right = b.double().T if turn else b.double()
    want = torch.zeros(r, d).double()
    for i in range(0, n, r):
        x = torch.zeros(r, k).double()
        x[: min(r, n - i)] = a[i : i + r].double()
        scaled = (right.to(dtype) * w[i]).double()
        want += x @ right + x @ scaled
    assert (o - want).abs().max() <= 1e-4
    func = parse(kernel.asm["ttir"]).kernel
    assert packs.apply(func, Uses(func))
    packed = [op for op in func.body.entry.ops if op.name == "strip.pack"]
    assert len(packed) == 1  # the other one is made in the loop
    assert not packs.apply(func, Uses(func))


@triton.jit
def rows_beyond(a, b, o, M, R: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """The product of rows that a mask cuts off within a strip of them, all of it shown."""
    r, k, n = tl.arange(0, R), tl.arange(0, K), tl.arange(0, N)
    x = tl.load(a + r[:, None] * K + k[None, :], mask=(r < M)[:, None], other=0.0)
    y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(o + r[:, None] * N + n[None, :], tl.dot(x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [1, 8, 14, 15])
def test_rows_behind_a_mask_are_zero_whatever_lies_there(dtype, m):
    a = torch.full((16, 32), float("nan"))
    a[:m] = torch.randn(m, 32)
    b, o = torch.randn(32, 16).to(dtype), torch.full((16, 16), 9.0)
    rows_beyond[(1,)](a.to(dtype), b, o, m, 16, 32, 16)
    assert (o[:m] - a[:m].to(dtype).double() @ b.double()).abs().max() <= 1e-4
    assert torch.equal(o[m:], torch.zeros(16 - m, 16))


@triton.jit
def masked(q, k, dq, dk, N, M, R: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    """Scores under masks as left operands, as they are and turned: attention's gradients, nearly.

    Beyond a mask scores are infinite or no numbers.
    """
    m, d = tl.arange(0, C), tl.arange(0, D)
    kt = tl.load(k + m[:, None] * D + d[None, :], mask=m[:, None] < M, other=0.0)
    total = tl.zeros((C, D), tl.float32)
    for n in range(0, N, R):
        r = n + tl.arange(0, R)
        at = r[:, None] * D + d[None, :]
        qt = tl.load(q + at, mask=r[:, None] < N, other=0.0)
        s = tl.dot(qt, tl.trans(kt)) + 1.0
        t = tl.dot(qt, tl.trans(kt)) * s / tl.where((m < M)[None, :] & (r < N)[:, None], 1.0, 0.0)
        tl.debug_barrier()
        held = tl.load(dq + at, mask=r[:, None] < N)
        tl.store(dq + at, tl.dot(tl.where((m < M)[None, :], t, 0.0), kt, held), mask=r[:, None] < N)
        total += tl.dot(tl.trans(tl.where((r < N)[:, None], t, 0.0)), qt)
    tl.store(dk + m[:, None] * D + d[None, :], total, mask=m[:, None] < M)


@pytest.mark.parametrize("n, m", [(256, 128), (128, 127), (130, 128), (7, 15), (129, 1)])
def test_left_operands_under_masks(n, m):
    r, c, d = 128, 128, 32
    q, k, before = torch.randn(n, d), torch.randn(m, d), torch.randn(n, d)
    dq, dk = before.clone(), torch.full((m, d), 9.0)
    kernel = masked[(1,)](q, k, dq, dk, n, m, r, c, d)
    assert "barrier" in kernel.asm["ttir"]
    assert "store ptr" in kernel.asm["llir"]  # copies stand in branches that whole blocks pass
    x, y = q.double(), k.double()
    s = x @ y.T
    s, size = s * (s + 1), (x.abs() @ y.abs().T + 1) ** 2
    eps = 4 * 2.0**-24 * (c + d)
    assert ((dq - before - s @ y).abs() <= eps * (size @ y.abs() + before.abs())).all()
    assert ((dk - s.T @ x).abs() <= eps * (size.T @ x.abs())).all()
