"""Products added to what lies in memory: where it lies, and only where that cannot be told apart."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M", "N", "K", "sa", "sb", "sc"])
def grow(a, b, c, M, N, K, sa, sb, sc, m: tl.constexpr, n: tl.constexpr, k: tl.constexpr):
    i, j, d = tl.arange(0, m), tl.arange(0, n), tl.arange(0, k)
    for s in range(0, K, k):
        x = tl.load(a + i[:, None] * sa + (s + d)[None, :], mask=(i < M)[:, None], other=0.0)
        y = tl.load(b + (s + d)[:, None] * sb + j[None, :], mask=(j < N)[None, :], other=0.0)
        live = (i < M)[:, None] & (j < N)[None, :]
        p = c + i[:, None] * sc + j[None, :]
        tl.store(p, tl.dot(x, y, tl.load(p, mask=live), input_precision="ieee"), mask=live)


@triton.jit
def holes(a, b, c, step: tl.constexpr, m: tl.constexpr):
    i = tl.arange(0, m)
    at = i[:, None] * m + i[None, :]
    live = (i % step == 0)[:, None] & (i < m)[None, :]
    total = tl.dot(tl.load(a + at), tl.load(b + at), tl.load(c + at, mask=live))
    tl.store(c + at, total, mask=live)


@triton.jit
def squares(a, b, c, m: tl.constexpr):
    i = tl.arange(0, m)
    p = c + (i * i)[:, None] * m + i[None, :]
    at = i[:, None] * m + i[None, :]
    tl.store(p, tl.dot(tl.load(a + at), tl.load(b + at), tl.load(p)))


def _close(got, want, terms, dtype):
    assert ((got.double() - want).abs() <= 64 * 2.0**-24 * terms + 1e-30).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(64, 64), (64, 48), (61, 64), (1, 1), (33, 17)])
@pytest.mark.parametrize("gap", [0, 3])
def test_sums_are_added_and_nothing_else_is_touched(dtype, sizes, gap):
    (m, n), k = sizes, 128
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    whole = torch.randn(m + 70, n + gap)
    before, c = whole.clone(), whole[:m, :n]
    grow[(1,)](a, b, c, m, n, k, k, n, n + gap, 64, 64, 64)
    x, y = a.double(), b.double()
    old = before[:m, :n].double()
    _close(c, old + x @ y, old.abs() + x.abs() @ y.abs(), dtype)
    assert torch.equal(whole[m:], before[m:]) and torch.equal(whole[:, n:], before[:, n:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", ["a", "b"])
def test_an_operand_that_overlaps_is_read_as_it_was(dtype, side):
    # The left half of c is the right half of the operand: the first panel's sums lie in the second.
    n = 128
    shared = torch.randn(n, 4 * n).to(dtype)
    c = shared.view(torch.float32).view(-1)[n // 2 : n // 2 + n * n].view(n, n)
    shared = shared.view(-1)[: n * n].view(n, n)
    other = torch.randn(n, n).to(dtype)
    a, b = (shared, other) if side == "a" else (other, shared)
    x, y, old = a.double().clone(), b.double().clone(), c.double().clone()
    grow[(1,)](a, b, c, n, n, n, n, n, n, n, n, n)
    _close(c, old + x @ y, old.abs() + x.abs() @ y.abs(), dtype)


def test_rows_that_lie_over_each_other_are_not_added_up_in_place():
    """The last row that is stored wins at every place, as it did."""
    a, b, memory = torch.randn(64, 64), torch.randn(64, 64), torch.randn(64)
    old = memory.double().clone()
    grow[(1,)](a, b, memory, 64, 64, 64, 64, 64, 0, 64, 64, 64)
    x, y = a.double(), b.double()
    _close(memory, old + (x @ y)[-1], old.abs() + (x.abs() @ y.abs())[-1], torch.float32)


def test_a_mask_with_holes_keeps_what_is_under_it():
    a, b, c = (torch.randn(64, 64) for _ in range(3))
    old = c.clone()
    holes[(1,)](a, b, c, 3, 64)
    want = old.double() + a.double() @ b.double()
    _close(c[::3], want[::3], (old.abs() + a.abs() @ b.abs()).double()[::3], torch.float32)
    for r in (1, 2):
        assert torch.equal(c[r::3], old[r::3])


def test_rows_at_uneven_distances():
    a, b, c = torch.randn(64, 64), torch.randn(64, 64), torch.randn(64 * 64, 64)
    old = c.clone()
    squares[(1,)](a, b, c, 64)
    at = torch.arange(64) ** 2
    terms = old[at].abs().double() + a.abs().double() @ b.abs().double()
    _close(c[at], old[at].double() + a.double() @ b.double(), terms, torch.float32)
    rest = torch.ones(len(c), dtype=torch.bool).index_fill(0, at, False)
    assert torch.equal(c[rest], old[rest])


def test_both_ways_share_one_product():
    a, b, c = torch.randn(64, 64), torch.randn(64, 64), torch.zeros(64, 64)
    made = grow[(1,)](a, b, c, 64, 64, 64, 64, 64, 64, 64, 64, 64)
    text = made.asm["llir"]
    assert "ptrtoint" in text, "the product is made in scratch memory"
    one = holes[(1,)](a, b, c, 3, 64)
    assert "ptrtoint" not in one.asm["llir"]
    assert text.count("@llvm.fma.v16f32(") <= one.asm["llir"].count("@llvm.fma.v16f32(")
