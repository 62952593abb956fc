"""Products, reductions and maps whose rows are independent are done some rows at a time."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from codegen.cpu import strips
from codegen.cpu.lower.uses import Uses
from codegen.cpu.parser import parse
from codegen.cpu.ttir import BYTES


@triton.jit
def steps(
    q, k, v, bias, keys, o, sums, cols, N, M, CASE: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Two or more products with something in between, in a loop, in the ways that CASE says."""
    rm, rd = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, D)
    x = tl.load(q + rm[:, None] * D + rd[None, :], mask=rm[:, None] < N, other=0.0)
    m = tl.full((R,), -1e30, tl.float32)
    total = tl.zeros((R,), tl.float32)
    acc = tl.zeros((R, D), tl.float32)
    for j in range(0, M, C):
        rn = j + tl.arange(0, C)
        y = tl.load(k + rn[:, None] * D + rd[None, :], mask=rn[:, None] < M, other=0.0)
        z = tl.load(v + rn[:, None] * D + rd[None, :], mask=rn[:, None] < M, other=0.0)
        s = tl.dot(x, tl.trans(y))
        if CASE == "bias":
            s += tl.load(bias + rm[:, None] * M + rn[None, :],
                         mask=(rm[:, None] < N) & (rn[None, :] < M), other=0.0)  # fmt: skip
        if CASE == "causal":
            s = tl.where(rm[:, None] >= rn[None, :], s, float("-inf"))
        if CASE == "keyed":  # row numbers that come from memory
            s = tl.where(tl.load(keys + rm, mask=rm < N)[:, None] >= rn[None, :], s, -1e30)
        s = tl.where(rn[None, :] < M, s, float("-inf"))
        new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp(s - new[:, None])
        decay = tl.exp(m - new)
        if CASE == "late":  # what was carried is wanted again when the strips are done
            old = acc
        acc = tl.dot(p.to(z.dtype), z, acc * decay[:, None])
        if CASE == "late":
            tl.atomic_add(cols + rd, tl.sum(old, 0))
        if CASE == "turned":  # columns know all rows: not in the strips
            tl.store(cols + rn, tl.sum(p, 0), mask=rn < M)
        if CASE == "again":  # a second product of weights, and of the first one's result
            acc += tl.dot(tl.dot(p.to(z.dtype), y).to(z.dtype), tl.trans(tl.dot(tl.trans(y), y)
                          ).to(z.dtype)) * 0.01  # fmt: skip
        total = total * decay + tl.sum(p, 1)
        m = new
    tl.store(o + rm[:, None] * D + rd[None, :], acc / total[:, None], mask=rm[:, None] < N)
    tl.store(sums + rm, m + tl.log(total), mask=rm < N)


def _reference(q, k, v, bias, keys, case, c):
    """The same in fp64, loop included."""
    q, k, v, bias = (t.double() for t in (q, k, v, bias))
    n, m = len(q), len(k)
    top, total, acc = torch.full((n,), -1e30).double(), torch.zeros(n).double(), q * 0
    cols = torch.zeros(max(m, q.shape[1])).double()
    for j in range(0, m, c):
        y, z = k[j : j + c], v[j : j + c]
        at = torch.arange(j, min(j + c, m))
        s = q @ y.T
        if case == "bias":
            s = s + bias[:, at]
        if case == "causal":
            s = s.masked_fill(torch.arange(n)[:, None] < at, -torch.inf)
        if case == "keyed":
            s = s.masked_fill(keys[:, None] < at, -1e30)
        new = torch.maximum(top, s.amax(1))
        p, decay = (s - new[:, None]).exp(), (top - new).exp()
        if case == "late":
            cols[: q.shape[1]] += acc.sum(0)
        acc = p @ z + acc * decay[:, None]
        if case == "turned":
            cols[at] = p.sum(0)
        if case == "again":
            acc = acc + (p @ y) @ (y.T @ y).T * 0.01
        total, top = total * decay + p.sum(1), new
    return acc / total[:, None], top + total.log(), cols


CASES = ("plain", "bias", "causal", "keyed", "late", "turned", "again")


QUICK = {(case, torch.float32) for case in CASES} | {("plain", torch.bfloat16)}
GRID = [
    pytest.param(c, d, marks=() if (c, d) in QUICK else pytest.mark.slow)
    for c in CASES
    for d in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("case", "dtype"), GRID)
def test_the_same_numbers(case, dtype):
    """Ragged in rows and keys, one program of which has no whole strip."""
    n, m, r, c, d = 140, 150, 128, 64, 32
    if dtype == torch.bfloat16 and case in ("bias", "keyed"):
        pytest.skip("as for the others")
    if case in ("late", "turned"):
        n = 100  # one program
    q, k, v = (torch.randn(s, d).to(dtype) for s in (n, m, m))
    bias, keys = torch.randn(n, m), torch.randint(0, m, (n,), dtype=torch.int32)
    o, sums, cols = torch.full((n, d), 9.0), torch.empty(n), torch.zeros(max(m, d))
    kernel = steps[(triton.cdiv(n, r),)](q, k, v, bias, keys, o, sums, cols, n, m, case, r, c, d)
    assert _strips(kernel.asm["ttir"])
    want, total, columns = _reference(q, k, v, bias, keys, case, c)
    eps = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-20
    scale = 1 if case != "again" else want.abs().max()
    assert (o - want).abs().max() <= 8 * eps * scale
    assert (sums - total).abs().max() <= 64 * 2.0**-20
    if case in ("late", "turned") and dtype == torch.float32:
        # dead rows of the program are all alike, and zero: weights of 1, no sum
        extra = torch.zeros_like(columns)
        if case == "turned":
            for j in range(0, m, c):
                extra[j : min(j + c, m)] = r - n
        if case == "late":
            extra = (cols - columns) * 0 + _dead(q, k, v, c, r - n)
        assert (cols - columns - extra).abs().max() <= 1e-3


def _dead(q, k, v, c, rows):
    """What rows of zeros add to the sums of what was carried."""
    out, acc = torch.zeros(max(len(k), q.shape[1])).double(), torch.zeros(q.shape[1]).double()
    for j in range(0, len(k), c):
        out[: q.shape[1]] += rows * acc
        acc = acc + v[j : j + c].double().sum(0)
    return out


def _strips(text: str) -> list:
    """The loops over strips that a kernel gets."""
    func = parse(text).kernel
    strips.apply(func, Uses(func))
    found = []

    def walk(block):
        for op in block.ops:
            if op.name == "strip.for":
                found.append(op)
            for region in op.regions:
                for b in region.blocks:
                    walk(b)

    for b in func.body.blocks:
        walk(b)
    return found


@triton.jit
def plain(a, b, o, R: tl.constexpr):
    """A product and what is done to it on its way out."""
    i, j = tl.arange(0, R)[:, None], tl.arange(0, R)[None, :]
    s = tl.dot(tl.load(a + i * R + j), tl.load(b + i * R + j))
    tl.store(o + i * R + j, tl.exp(s * 0.1))


def test_only_where_it_pays():
    """Scores stay within their strip; a product that is only stored has none."""
    a, b, o = (torch.randn(128, 128) for _ in range(3))
    assert not _strips(plain[(1,)](a, b, o, 128).asm["ttir"])
    torch.testing.assert_close(o, (a @ b * 0.1).exp(), rtol=1e-4, atol=1e-4)


def test_what_a_strip_holds():
    q = torch.randn(128, 32)
    k = torch.randn(64, 32)
    out = torch.empty(128, 32), torch.empty(128), torch.empty(64)
    kernel = steps[(1,)](q, k, k, q, q, *out, 128, 64, "plain", 128, 64, 32)
    (strip,) = _strips(kernel.asm["ttir"])
    names = [op.name for op in strip.regions[0].entry.ops]
    assert names.count("tt.dot") == 2 and names.count("tt.reduce") == 2
    tall = [t for t in strip.result_types if BYTES[t.elem] * np.prod(t.shape) > 128 * 32 * 4]
    assert not tall  # no scores come out


@triton.jit
def extremes(x, high, low, R: tl.constexpr, C: tl.constexpr, AXIS: tl.constexpr):
    i, j = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    v = tl.load(x + i * C + j)
    at = tl.arange(0, C if AXIS == 0 else R)
    tl.store(high + at, tl.max(v, AXIS))
    tl.store(low + at, tl.min(v, AXIS))


@pytest.mark.parametrize("shape", [(32, 64), (16, 16), (4, 128), (64, 2)])
@pytest.mark.parametrize("axis", [0, 1])
def test_extremes_leave_nan_out(shape, axis):
    """Rows of numbers, with NaN among them, of infinities, and of nothing but NaN."""
    x = torch.randn(shape)
    x[torch.rand(shape) < 0.5] = torch.nan
    inf, nan = torch.inf, torch.nan
    rows = x if axis else x.T
    for k, fill in enumerate((nan, -inf, inf)):
        rows[k % len(rows)] = fill
    for k, fill in enumerate((-inf, inf)):
        rows[(k + 3) % len(rows), :1] = nan
        rows[(k + 3) % len(rows), 1:] = fill
    size = shape[1 - axis]
    high, low = torch.empty(size), torch.empty(size)
    extremes[(1,)](x, high, low, *shape, axis)
    np.testing.assert_array_equal(high, np.fmax.reduce(x.numpy(), axis))
    np.testing.assert_array_equal(low, np.fmin.reduce(x.numpy(), axis))


@triton.jit
def weigh(x, v, o, R: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    i, j, d = tl.arange(0, R)[:, None], tl.arange(0, C), tl.arange(0, D)[None, :]
    p = tl.exp(tl.load(x + i * C + j[None, :]))
    total = tl.sum(p, 1)
    y = tl.dot(p.to(tl.bfloat16), tl.load(v + j[:, None] * D + d))
    tl.store(o + i * D + d, y / total[:, None])


def test_weights_in_bf16():
    """They go two vectors at a time from the sum to the product, subnormal ones as zero."""
    x, v = torch.randn(32, 96 + 32), torch.randn(128, 32).bfloat16()
    x[3:5] -= 87.5
    x[7] = -torch.inf
    x[7, 5] = 0
    o = torch.empty(32, 32)
    weigh[(1,)](x, v, o, 32, 128, 32)
    p = x.double().exp()
    want = (p / p.sum(1, keepdim=True)) @ v.double()
    keep = [r for r in range(32) if r not in (3, 4)]
    assert (o - want)[keep].abs().max() <= 2.0**-7
    assert torch.isfinite(o[3:5]).all()


DOTS = """module {
  tt.func public @kernel(%p: !tt.ptr<f32>) {
    %z = arith.constant dense<0.000000e+00> : tensor<128x128xf32>
    %s = tt.dot %z, %z, %z : tensor<128x128xf32> * tensor<128x128xf32> -> tensor<128x128xf32>
    %o = tt.dot %s, %z, %z : tensor<128x128xf32> * tensor<128x128xf32> -> tensor<128x128xf32>
    tt.return
  }
}
"""


def test_a_block_ends_as_it_ended():
    """Products right before a return go into strips before it."""
    func = parse(DOTS).kernel
    assert strips.apply(func, Uses(func))
    assert [op.name for op in func.body.entry.ops][-2:] == ["strip.for", "tt.return"]
