"""Padded blocks: what no store shows is not computed, and everything that one shows is."""

import ctypes

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def gemm(a, b, c, total, M, N, K, SM, SN, HOW: tl.constexpr, B: tl.constexpr, BK: tl.constexpr):
    """c = a @ b for [M, K] and [K, N] with rows of B elements; stores show SM by SN of it."""
    rm, rn, rk = tl.arange(0, B), tl.arange(0, B), tl.arange(0, BK)
    acc = tl.zeros((B, B), tl.float32)
    for k in range(0, tl.cdiv(K, BK)):
        at = k * BK + rk
        x = tl.load(a + rm[:, None] * B + at[None, :], (rm[:, None] < M) & (at[None, :] < K), 0.0)
        if HOW == "open":
            y = tl.load(b + at[:, None] * B + rn[None, :])
        else:
            y = tl.load(b + at[:, None] * B + rn[None, :], (at[:, None] < K) & (rn[None, :] < N), 0)
        acc = tl.dot(x, y, acc)
    if HOW == "total":
        tl.store(total + rn, tl.sum(acc, 0))
    if HOW == "twice":
        tl.store(total + rm[:, None] * B + rn[None, :], acc)
    mask = (SM > rm[:, None]) & (rn[None, :] <= SN - 1)  # noqa: SIM300
    tl.store(c + rm[:, None] * B + rn[None, :], (acc * 2).to(c.dtype.element_ty), mask=mask)


SHAPES = [(64, 64, 64), (1, 1, 1), (33, 47, 20), (17, 64, 63), (64, 5, 31), (0, 9, 9), (50, 50, 0)]


@pytest.mark.parametrize(
    ("m", "n", "k", "dtype"),
    [
        # fp16 is widened as it is loaded, and then as fp32: one whole and one ragged product.
        pytest.param(
            *s, t, marks=pytest.mark.slow if t is torch.float16 and i not in (0, 2) else ()
        )
        for i, s in enumerate(SHAPES)
        for t in (torch.float32, torch.bfloat16, torch.float16)
    ],
)
def test_ragged_products(m, n, k, dtype):
    a, b = torch.randn(64, 64).to(dtype), torch.randn(64, 64).to(dtype)
    for how in ("", "total", "twice"):
        c, total = torch.full((64, 64), 7.0), torch.full((64, 64), 7.0)
        gemm[(1,)](a, b, c, total, m, n, k, m, n, how, 64, 32)
        want = a.double()[:m, :k] @ b.double()[:k, :n]
        expect = torch.full((64, 64), 7.0)
        expect[:m, :n] = 2 * want
        assert torch.allclose(c, expect, atol=1e-4, rtol=1e-4), how
        if how == "total":
            sums = torch.zeros(64).double()
            sums[:n] = want.sum(0)
            assert torch.allclose(total[0].double(), sums, atol=1e-3)
        if how == "twice":
            expect = torch.zeros(64, 64)
            expect[:m, :n] = want
            assert torch.allclose(total, expect, atol=1e-4, rtol=1e-4)


def test_stores_may_show_more_than_was_loaded():
    a, b, c = torch.randn(64, 64), torch.randn(64, 64), torch.full((64, 64), 7.0)
    gemm[(1,)](a, b, c, c, 20, 30, 40, 50, 60, "", 64, 64)
    want = torch.zeros(50, 60)
    want[:20, :30] = 2 * a[:20, :40] @ b[:40, :30]
    assert torch.allclose(c[:50, :60], want, atol=1e-4)
    assert (c[50:] == 7).all() and (c[:, 60:] == 7).all()


def test_zero_times_infinity_is_not_left_out():
    a, b, c = torch.randn(64, 64), torch.randn(64, 64), torch.zeros(64, 64)
    b[63, 3] = float("inf")  # only the left operand is masked here
    gemm[(1,)](a, b, c, c, 64, 64, 40, 64, 64, "open", 64, 64)
    assert c[:, 3].isnan().all() and not c[:, 4:].isnan().any()


def counted(monkeypatch, tmp_path, dtype, m, n, k, features):
    """Multiply-adds that a masked product of 128x128x64 blocks executes."""
    from codegen.cpu.emit import Emit

    total = ctypes.c_int64(0)
    where = f"inttoptr (i64 {ctypes.addressof(total)} to ptr)"
    emit = Emit.intrinsic
    steps = {"llvm.fma.v": 16, "llvm.x86.avx512bf16.dpbf16ps": 32, "llvm.x86.tdpbf16ps": 16**3 * 2}
    if features == "avx2":
        steps["llvm.fma.v"] = 8

    def count(self, name, ret, args):
        for start, size in steps.items():
            if name.startswith(start):
                self.line(f"atomicrmw add ptr {where}, i64 {size} monotonic")
        return emit(self, name, ret, args)

    a, b, c = (torch.randn(128, 128).to(dtype) for _ in range(3))
    with monkeypatch.context() as patch:
        patch.setattr(Emit, "intrinsic", count)
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        triton.jit(gemm.fn)[(1,)](a, b, c, c, m, n, k, m, n, "", 128, 64)
    want = a.double()[:m, :k] @ b.double()[:k, :n] * 2
    assert torch.allclose(c[:m, :n].double(), want, rtol=2e-2, atol=2e-2)
    return total.value


@pytest.mark.parametrize("features", ["", "avx512", "avx2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dead_lanes_cost_little(dtype, features, monkeypatch, tmp_path):
    """80x112x48 in 128x128x64 blocks: at most 1.15 of its own multiply-adds are executed.

    A matrix tile has 32 inner steps, so that 48 of them take 64: rows and columns are exact there.
    """
    from codegen.cpu.toolchain import features as host

    monkeypatch.setenv("TKPY_CPU_FEATURES", features)
    if features == "avx512" and not host().has("avx512f"):
        pytest.skip("the host has no AVX-512")
    if not host().has("fma"):
        pytest.skip("products and sums are two instructions here")
    inner = 64 if dtype is torch.bfloat16 and host().amx else 48
    whole = counted(monkeypatch, tmp_path / "whole", dtype, 128, 128, 64, features)
    assert whole == 128 * 128 * 64
    done = counted(monkeypatch, tmp_path / "part", dtype, 80, 112, 48, features)
    assert 80 * 112 * 48 <= done <= 1.15 * 80 * 112 * inner
    assert counted(monkeypatch, tmp_path / "none", dtype, 0, 112, 48, features) == 0


@triton.jit
def softmax(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(o + i, e / tl.sum(e, 0))


@triton.jit
def columns(x, o, s, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    v = tl.exp(tl.load(x + i))
    tl.store(s + tl.arange(0, N), tl.sum(v, 0))
    tl.store(o + i, tl.trans(v))


def test_a_block_is_kept_by_the_reduction_that_reads_it_first():
    x, o = torch.randn(512), torch.empty(512)
    kernel = softmax[(1,)](x, o, 512)
    assert torch.allclose(o, torch.softmax(x, 0), atol=1e-6)
    program = kernel.asm["llir"].split("define void @kernel")[0]
    assert program.count(" = phi i32") == 3  # load and max, exp and sum, divide
    x, o, s = torch.randn(32, 32), torch.empty(32, 32), torch.empty(32)
    columns[(1,)](x, o, s, 32)
    assert torch.allclose(o, x.exp().T) and torch.allclose(s, x.exp().sum(0))


@triton.jit
def both_ways(x, o, s, n, m, N: tl.constexpr, M: tl.constexpr):
    """One comparison masks rows and columns; another one only columns."""
    i, j = tl.arange(0, N), tl.arange(0, M)
    low = i < n
    at = i[:, None] * N + i[None, :]
    v = tl.load(x + at, low[:, None] & low[None, :], other=3.0)
    tl.store(o + at, v, low[:, None] & low[None, :])
    w = tl.load(x + j, (j < n) & (j < m), other=-float("inf"))
    tl.store(s, tl.max(w, 0))
    tl.store(s + 1 + i, tl.sum(v, 1))


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 63, 64, 100, 128])
@pytest.mark.parametrize("m", [0, 70, 4096])
def test_masked_vectors_only_at_the_edge(n, m):
    x, o, s = torch.randn(128 * 128), torch.zeros(128, 128), torch.empty(129)
    both_ways[(1,)](x, o, s, n, m, 128, 2048)
    square = torch.full((128, 128), 3.0)
    square[:n, :n] = x.view(128, 128)[:n, :n]
    want = torch.zeros(128, 128)
    want[:n, :n] = square[:n, :n]
    assert torch.equal(o, want)
    assert torch.allclose(s[1:], square.sum(1), atol=1e-4)
    k = min(n, m)
    assert s[0] == (x[:k].max() if k else -float("inf"))


def test_whole_vectors_are_stored_without_a_mask():
    @triton.jit
    def count(o, n, N: tl.constexpr):
        i = tl.arange(0, N)
        tl.store(o + i, i, mask=i < n)

    o = torch.full((4096,), -1, dtype=torch.int32)
    kernel = count[(1,)](o, 1001, 4096)
    assert torch.equal(o[:1001], torch.arange(1001, dtype=torch.int32)) and (o[1001:] == -1).all()
    assert any(line.strip().startswith("store <") for line in kernel.asm["llir"].splitlines())


@triton.jit
def two_loops(a, b, c, M, N, K, B: tl.constexpr):
    """A mask that is written after two loops bounds the products in both of them."""
    block, r = tl.program_id(0), tl.arange(0, B)
    acc = tl.zeros((B, B), tl.float32)
    for k in range(0, K // B):
        x = tl.load(a + r[:, None] * K + (k * B + r)[None, :])
        acc = tl.dot(x, tl.load(b + (k * B + r)[:, None] * N + r[None, :]), acc)
    for k in range(K // B, tl.cdiv(K, B)):
        at = k * B + r
        x = tl.load(a + r[:, None] * K + at[None, :], at[None, :] < K, 0.0)
        acc = tl.dot(x, tl.load(b + at[:, None] * N + r[None, :], at[:, None] < K, 0.0), acc)
    n = block * B + tl.arange(0, B)
    keep = (r < M)[:, None] & ((n < N) & (r < N))[None, :]
    tl.store(c + r[:, None] * N + n[None, :], acc, mask=keep)


@pytest.mark.parametrize("k", [16, 40, 32])
def test_a_mask_that_is_written_behind_two_loops(k):
    a, b, c = torch.randn(16, k), torch.randn(k, 16), torch.full((16, 16), 7.0)
    two_loops[(1,)](a, b, c, 9, 16, k, 16)
    assert torch.allclose(c[:9].double(), a.double()[:9] @ b.double(), atol=1e-5)
    assert (c[9:] == 7).all()


@triton.jit
def around(x, o, s, start, end, WIDE: tl.constexpr, N: tl.constexpr):
    """Lanes whose i32 index, which may wrap, is less than a bound; by loads, stores and a dot."""
    i = tl.arange(0, N)
    at = start + i
    if WIDE:
        at = at.to(tl.int64)
    on = at < end
    tl.store(o + i, tl.load(x + i, on, other=9.0), on)
    a = tl.load(x + i[:, None] * 0 + i[None, :], on[None, :], other=0.0)
    b = tl.load(x + i[:, None] + i[None, :] * 0, at[:, None] < end, other=0.0)
    both = (i[:, None] < N) & (at[None, :] < end)
    tl.store(s + i[:, None] * N + i[None, :], tl.dot(a, b), both)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("start", [0, 2**31 - 64, 2**31 - 63, 2**31 - 20, 2**31 - 1, -(2**31), -9])
@pytest.mark.parametrize("end", [-(2**31), 0, 5, 2**31 - 30, 2**31 - 1, 2**31 + 9])
def test_a_wrapping_index_masks_what_it_says(start, end, wide):
    n = 64
    if end >= 2**31 and not wide:
        end -= 2**32
    x = torch.randn(n)
    o, s = torch.full((n,), 7.0), torch.full((n, n), 7.0)
    around[(1,)](x, o, s, start, end, wide, n)
    at = (torch.arange(n, dtype=torch.int64) + start + 2**31) % 2**32 - 2**31
    on = at < end
    want = torch.where(on, x, 7.0)
    assert torch.equal(o, want)
    total = (x[on].double() ** 2).sum()
    assert torch.allclose(s[:, on].double(), total, atol=1e-4) and (s[:, ~on] == 7).all()


@triton.jit
def triangle(o, start, shift, N: tl.constexpr, M: tl.constexpr):
    """Row sums of what a comparison of two ramps leaves of ones."""
    i, j = start + tl.arange(0, N), start + shift + tl.arange(0, M)
    x = tl.where(i[:, None] >= j[None, :], 1.0, 0.0)
    y = tl.where(j[None, :] > i[:, None], 1.0, 0.0)
    z = tl.where(i[:, None] < j[None, :], 0.0, 1.0)
    tl.store(o + tl.arange(0, N), tl.sum(x, 1))
    tl.store(o + N + tl.arange(0, N), tl.sum(y, 1))
    tl.store(o + 2 * N + tl.arange(0, N), tl.max(z, 1))


@pytest.mark.parametrize("start", [0, -5, 2**31 - 100, 2**31 - 40, -(2**31)])
@pytest.mark.parametrize("shift", [0, -200, -64, -63, -32, -31, -1, 1, 31, 32, 200])
def test_comparisons_of_two_ramps(start, shift):
    n, m = 32, 64
    o = torch.empty(3, n)
    triangle[(1,)](o, start, shift, n, m)

    def wrap(v):
        return (v + 2**31) % 2**32 - 2**31

    i, j = wrap(torch.arange(n) + start), wrap(wrap(torch.arange(m) + shift) + start)
    below = i[:, None] >= j[None, :]
    assert torch.equal(o[0], below.sum(1).float()) and torch.equal(o[1], (~below).sum(1).float())
    assert torch.equal(o[2], below.any(1).float())
