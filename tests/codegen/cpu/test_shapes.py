"""Shape ops, reductions, scans, gathers: against torch."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def shapes(x, o, OP: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, M)
    j = tl.arange(0, N)
    a = tl.load(x + i[:, None] * N + j[None, :])
    k = tl.arange(0, M * N)
    if OP == "trans":
        tl.store(o + j[:, None] * M + i[None, :], tl.trans(a))
    elif OP == "ravel":
        tl.store(o + k, tl.ravel(a))
    elif OP == "reshape":
        b = tl.reshape(a, (N, M))
        tl.store(o + j[:, None] * M + i[None, :], b)
    elif OP == "split":
        p, q = tl.split(tl.reshape(a, (M, N // 2, 2)))
        h = tl.arange(0, N // 2)
        tl.store(o + i[:, None] * (N // 2) + h[None, :], p - q)
    elif OP == "join":
        b = tl.reshape(tl.join(a, a * 2), (M, 2 * N))
        h = tl.arange(0, 2 * N)
        tl.store(o + i[:, None] * (2 * N) + h[None, :], b)
    elif OP == "cat":
        r = tl.reshape(a, (M * N,))
        h = tl.arange(0, 2 * M * N)
        tl.store(o + h, tl.cat(r, r + 1, can_reorder=True))
    elif OP == "flip":
        tl.store(o + i[:, None] * N + j[None, :], tl.flip(a, 1))
    elif OP == "permute":
        b = tl.permute(tl.reshape(a, (M, N // 2, 2)), (2, 0, 1))
        tl.store(o + k, tl.reshape(b, (M * N,)))
    elif OP == "bcast":
        s = tl.sum(a, 1)
        tl.store(o + i[:, None] * N + j[None, :], a * 0 + s[:, None] + tl.max(a, 0)[None, :])


WANT = {
    "trans": lambda x: x.T, "ravel": lambda x: x.ravel(),
    "reshape": lambda x: x.reshape(x.shape[::-1]),
    "split": lambda x: x[:, ::2] - x[:, 1::2],
    "join": lambda x: torch.stack([x, x * 2], -1).reshape(x.shape[0], -1),
    "cat": lambda x: torch.cat([x.ravel(), x.ravel() + 1]),
    "flip": lambda x: x.flip(1),
    "permute": lambda x: x.reshape(x.shape[0], -1, 2).permute(2, 0, 1).ravel(),
    "bcast": lambda x: x * 0 + x.sum(1)[:, None] + x.amax(0)[None],
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("shape", [(4, 8), (16, 32), (64, 2), (2, 128)])
@pytest.mark.parametrize("op", WANT)
def test_shapes(op, shape, dtype):
    x = torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    want = WANT[op](x)
    out = torch.empty(want.shape, dtype=dtype)
    shapes[(1,)](x.contiguous(), out, op, *shape)
    assert torch.equal(out, want)


@triton.jit
def _mul(a, b):
    return a * b


@triton.jit
def _first(a, b):
    return a


@triton.jit
def _welford(m1, s1, n1, m2, s2, n2):
    n = n1 + n2
    d = m2 - m1
    return m1 + d * n2 / n, s1 + s2 + d * d * n1 * n2 / n, n


@triton.jit
def reduces(x, o, p, OP: tl.constexpr, AXIS: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, M)
    j = tl.arange(0, N)
    a = tl.load(x + i[:, None] * N + j[None, :])
    if OP == "sum":
        r = tl.sum(a, AXIS)
    elif OP == "max":
        r = tl.max(a, AXIS)
    elif OP == "min":
        r = tl.min(a, AXIS)
    elif OP == "argmax":
        _v, r = tl.max(a, AXIS, return_indices=True)
    elif OP == "argmin":
        r = tl.argmin(a, AXIS)
    elif OP == "xor":
        r = tl.xor_sum(a, AXIS)
    elif OP == "prod":
        r = tl.reduce(a, AXIS, _mul)
    elif OP == "welford":
        _m, s, n = tl.reduce((a, a * 0, a * 0 + 1), AXIS, _welford)
        r = s / n
    k = i if AXIS == 1 else j
    tl.store(o + k, r)


@pytest.mark.parametrize("shape", [(4, 8), (16, 64), (128, 2), (1, 256), (32, 16)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("op", ["sum", "max", "min", "argmax", "argmin", "xor", "prod", "welford"])
def test_reduce(op, axis, shape):
    g = torch.Generator().manual_seed(5)
    x = torch.randint(-3, 4, shape, generator=g).to(torch.int32 if op == "xor" else torch.float32)
    if op == "prod":
        x = x.sign() + 2.0 * (x == 0)
        x = torch.where(x == 2, 1.0, x)
    if op == "xor":
        want = x.select(axis, 0).clone()
        for k in range(1, shape[axis]):
            want ^= x.select(axis, k)
    elif op == "welford":
        want = x.var(axis, correction=0)
    else:
        want = getattr(x, {"max": "amax", "min": "amin"}.get(op, op))(axis)
        if op in ("argmax", "argmin"):  # ties: the smallest index
            best = x.amax(axis, True) if op == "argmax" else x.amin(axis, True)
            where = torch.where(
                x == best,
                torch.arange(shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1)),
                10**6,
            )
            want = where.amin(axis).to(torch.int32)
    out = torch.empty(want.shape, dtype=want.dtype)
    reduces[(1,)](x, out, out, op, axis, *shape)
    assert torch.allclose(out.double(), want.double(), atol=1e-5)


def test_max_of_nan_and_infinity():
    x = torch.tensor([[float("nan"), 1.0, -float("inf"), 2.0] * 8])
    out = torch.empty(1)
    reduces[(1,)](x, out, out, "max", 1, 1, 32)
    assert out[0] == 2


@triton.jit
def full_reduce(x, o, M: tl.constexpr, N: tl.constexpr):
    a = tl.load(x + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :])
    tl.store(o, tl.sum(a))
    tl.store(o + 1, tl.max(tl.max(a, 1), 0))


def test_reduce_to_scalar():
    x = torch.randn(16, 32)
    out = torch.empty(2)
    full_reduce[(1,)](x, out, 16, 32)
    assert torch.allclose(out, torch.stack([x.sum(), x.max()]), atol=1e-5)


@triton.jit
def scans(
    x, o, OP: tl.constexpr, AXIS: tl.constexpr, REV: tl.constexpr, M: tl.constexpr, N: tl.constexpr
):
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    a = tl.load(x + at)
    if OP == "sum":
        r = tl.cumsum(a, AXIS, reverse=REV)
    elif OP == "prod":
        r = tl.cumprod(a, AXIS, reverse=REV)
    else:
        r = tl.associative_scan(a, AXIS, _first, reverse=REV)
    tl.store(o + at, r)


@pytest.mark.parametrize("shape", [(4, 8), (16, 64), (64, 2), (1, 128), (128, 1)])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("op", ["sum", "prod", "first"])
def test_scan(op, axis, reverse, shape):
    x = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(1)).float()
    if op == "prod":
        x = x.sign() + (x == 0)
    y = x.flip(axis) if reverse else x
    if op == "first":
        want = y.select(axis, 0).unsqueeze(axis).expand(shape)
    else:
        want = getattr(y, "cum" + op)(axis)
    want = want.flip(axis) if reverse else want
    out = torch.empty(shape)
    scans[(1,)](x, out, op, axis, reverse, *shape)
    assert torch.equal(out, want)


def test_scan_of_one_dimension():
    @triton.jit
    def kernel(x, o, N: tl.constexpr):
        i = tl.arange(0, N)
        tl.store(o + i, tl.cumsum(tl.load(x + i), 0))

    x = torch.randint(-9, 9, (512,)).float()
    out = torch.empty(512)
    kernel[(1,)](x, out, 512)
    assert torch.equal(out, x.cumsum(0))


@triton.jit
def gathers(x, i, o, AXIS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    a = tl.load(x + at)
    if AXIS == 1:
        w = tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :]
    else:
        w = tl.arange(0, K)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(o + w, tl.gather(a, tl.load(i + w), AXIS))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape,k", [((16, 32), 8), ((4, 4), 64)])
def test_gather(axis, shape, k):
    x = torch.randn(shape)
    size = (shape[0], k) if axis == 1 else (k, shape[1])
    i = torch.randint(0, shape[axis], size, dtype=torch.int32)
    out = torch.empty(size)
    gathers[(1,)](x, i, out, axis, *shape, k)
    assert torch.equal(out, torch.gather(x, axis, i.long()))


def test_histogram_sort_and_topk():
    @triton.jit
    def kernel(x, h, s, N: tl.constexpr, B: tl.constexpr):
        i = tl.arange(0, N)
        v = tl.load(x + i)
        tl.store(h + tl.arange(0, B), tl.histogram(v, B))
        tl.store(s + i, tl.sort(v))

    x = torch.randint(0, 16, (128,), dtype=torch.int32)
    h, s = torch.empty(16, dtype=torch.int32), torch.empty_like(x)
    kernel[(1,)](x, h, s, 128, 16)
    assert torch.equal(h, torch.bincount(x, minlength=16).int())
    assert torch.equal(s, x.sort().values)
