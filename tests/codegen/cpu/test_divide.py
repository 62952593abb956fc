"""Rows divided by one number each: every quotient is the correctly rounded one, bit for bit."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def divide(x, d, o, N: tl.constexpr, R: tl.constexpr):
    r, i = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, N)
    v = tl.load(x + r[:, None] * N + i[None, :])
    tl.store(o + r[:, None] * N + i[None, :], v / tl.load(d + r)[:, None])


def floats(rng, low, high, *shape):
    """Random mantissas with exponents from ``low`` to ``high``."""
    bits = rng.integers(0, 2**23, shape, dtype=np.uint32)
    exponent = rng.integers(low + 127, high + 128, shape, dtype=np.uint32)
    return (bits | (exponent << 23)).view(np.float32)


def halfway(rng, b, n):
    """Dividends whose quotients lie next to the middle between two floats."""
    q = floats(rng, 0, 0, len(b), n).astype(np.float64) + 2.0**-24
    x = (q * b[:, None]).astype(np.float32)
    towards = rng.choice(np.array([np.inf, 0], np.float32), x.shape)
    return np.where(rng.random(x.shape) < 0.5, x, np.nextafter(x, towards))


def anything(rng, *shape):
    return rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)


ROWS, N = 1024, 256


@pytest.mark.parametrize("kind", ["near one", "halfway", "edges", "anything"])
def test_quotients(kind):
    rng = np.random.default_rng(0)
    b = floats(rng, 0, 0, ROWS)
    if kind == "near one":
        x = floats(rng, -27, 23, ROWS, N)
    elif kind == "halfway":
        x = halfway(rng, b, N)
    elif kind == "edges":  # where quotient, divisor and remainder begin to leave the range
        b = b * 2.0 ** rng.choice([-51, -50, -49, 99, 100, 101], ROWS).astype(np.float32)
        x = floats(rng, -110, -90, ROWS, N) * rng.choice(np.array([1, -1], np.float32), (ROWS, N))
    else:
        b, x = anything(rng, ROWS), anything(rng, ROWS, N)
        x[:, :3] = np.array([0.0, -0.0, np.inf], np.float32)
        b[:4] = np.array([0.0, -0.0, np.inf, np.nan], np.float32)
    x, b = (np.ascontiguousarray(t, np.float32) for t in (x, b))
    out = torch.empty(ROWS, N)
    divide[(ROWS // 16,)](torch.from_numpy(x), torch.from_numpy(b), out, N, 16)
    with np.errstate(all="ignore"):
        want = x / b[:, None]
    got = out.numpy()
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    assert same.all(), np.argwhere(~same)[:3]
