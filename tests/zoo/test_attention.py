import math

import pytest
import torch
import torch.nn.functional as F
from zoo_helpers import DTYPES, agrees, made, same_bits

from tkpy import CallError
from zoo.kernels.attention import attention

SMALL = {"rows": 16, "cols": 16}


def inputs(n, m, d=32, b=1, h=2, g=2, dtype=torch.float32, size=1.0):
    shapes = ((b, h, n, d), (b, g, m, d), (b, g, m, d))
    return [made(*s, dtype=dtype, seed=k, size=size) for k, s in enumerate(shapes)]


MASKS = ({}, {"causal": True}, {"window": 20})


@pytest.mark.parametrize(
    ("mask", "dtype"),
    [
        # Masks are of fp32 scores whatever the type of the operands: two types try them each time.
        pytest.param(m, t, marks=pytest.mark.slow if m and t is torch.float16 else ())
        for m in MASKS
        for t in DTYPES
    ],
    ids=str,
)
def test_attention(mask, dtype):
    for n, m in ((1, 1), (63, 64), (65, 130), (100, 65)):
        agrees(attention, *inputs(n, m, dtype=dtype), **mask)


@pytest.mark.parametrize("d", [1, 40, 80])
def test_head_sizes_and_grouped_heads(d):
    for g in (1, 2, 4):
        q, k, v = inputs(33, 50, d, b=2, h=4, g=g)
        o, _ = agrees(attention, q, k, v, causal=True, **SMALL).values()
        want = F.scaled_dot_product_attention(
            q[:, :, 1:].double(), k[:, :, :17].double(), v[:, :, :17].double(), enable_gqa=True
        )
        alone = attention(q[:, :, 1:], k[:, :, :17], v[:, :, :17], **SMALL)
        torch.testing.assert_close(alone.double(), want, atol=2e-6, rtol=1e-5)
        assert o.shape == q.shape


def test_scale():
    q, k, v = inputs(20, 40)
    for scale in (1.0, 0.0, -0.3, 32**-0.5):
        agrees(attention, q, k, v, scale=scale, **SMALL)
    given, default = attention(q, k, v, scale=32**-0.5, **SMALL), attention(q, k, v, **SMALL)
    assert same_bits(given, default)


def test_large_scores_do_not_overflow():
    q, k, v = inputs(20, 70, size=30.0)
    agrees(attention, q, k, v, causal=True, **SMALL)


def test_the_backward_finds_the_probabilities_of_the_forward():
    """One key takes all, so that the gradient of v is that of o, however large the scores are."""
    q, k, v = (x[:, :1].clone().requires_grad_() for x in inputs(3, 70, size=60.0))
    upstream = torch.randn(*q.shape, generator=torch.Generator().manual_seed(1))
    scores = (q.double() @ k.double().mT).squeeze() * q.shape[-1] ** -0.5
    best = scores.topk(2, -1)
    assert (best.values[:, 0] - best.values[:, 1] > 40).all() and best.values.abs().min() > 1000
    (dv,) = torch.autograd.grad(attention(q, k, v, **SMALL), v, upstream)
    want = torch.zeros(70, q.shape[-1], dtype=torch.float64)
    want.index_add_(0, best.indices[:, 0], upstream.double().reshape(3, -1))
    terms = torch.zeros_like(want).index_add_(
        0, best.indices[:, 0], upstream.double().abs().reshape(3, -1)
    )
    assert ((dv.double().reshape(70, -1) - want).abs() <= 4 * 2.0**-23 * terms + 1e-15).all()


@pytest.mark.parametrize("n, m", [(40, 24), (24, 40), (33, 33), (70, 1), (1, 70)])
def test_the_last_query_is_aligned_with_the_last_key(n, m):
    q, k, v = inputs(n, m)
    o, lse = attention(q, k, v, causal=True, lse=True, **SMALL)
    blind = max(n - m, 0)
    assert (o[:, :, :blind] == 0).all() and (lse[:, :, :blind] == -math.inf).all()
    assert lse[:, :, blind:].isfinite().all()
    for i in range(blind, n, 7):
        alone = attention(q[:, :, i : i + 1], *(x[:, :, : i + 1 + m - n] for x in (k, v)), **SMALL)
        torch.testing.assert_close(o[:, :, i : i + 1], alone, atol=2e-6, rtol=1e-5)


def test_no_keys_at_all():
    q, k, v = inputs(5, 0)
    o, lse = attention(q, k, v, lse=True)
    assert (o == 0).all() and (lse == -math.inf).all()


@pytest.mark.parametrize("mask", [{"causal": True}, {"window": 9}], ids=str)
def test_causal_bit_by_bit(mask):
    q, k, v = inputs(50, 50)
    before = attention(q, k, v, lse=True, **mask, **SMALL)
    for t in (0, 15, 16, 31, 48):
        later = [x.clone() for x in (q, k, v)]
        for x in later:
            x[:, :, t + 1 :] = 1e4 * made(*x[:, :, t + 1 :].shape, seed=8)
        for a, b in zip(before, attention(*later, lse=True, **mask, **SMALL), strict=True):
            assert same_bits(a[:, :, : t + 1], b[:, :, : t + 1])


def test_window():
    """B14: one that holds everything is causal attention, one of a single key copies v."""
    q, k, v = inputs(50, 50)
    causal = attention(q, k, v, causal=True, **SMALL)
    for window in (50, 51, 1000, 2**31 - 1):
        torch.testing.assert_close(
            attention(q, k, v, window=window, **SMALL), causal, atol=1e-6, rtol=0
        )
    assert same_bits(attention(q, k, v, window=1, **SMALL), v.contiguous())
    both = attention(q, k, v, window=7, causal=True, **SMALL)
    assert same_bits(both, attention(q, k, v, window=7, **SMALL))
    with pytest.raises(CallError, match="window >= 1"):
        attention(q, k, v, window=0)


def test_decoding_from_a_ring_of_keys_is_the_window():
    """B14: the ring has no more slots than the window, whatever the length."""
    window, n = 6, 30
    q, k, v = inputs(n, n)
    whole = attention(q, k, v, window=window, **SMALL)
    ring_k, ring_v = (torch.full((1, 2, window, 32), float("nan")) for _ in "kv")
    for t in range(n):
        ring_k[:, :, t % window], ring_v[:, :, t % window] = k[:, :, t], v[:, :, t]
        used = min(t + 1, window)  # slots not used yet are left out, not zero keys
        o = attention(q[:, :, t : t + 1], ring_k[:, :, :used], ring_v[:, :, :used], **SMALL)
        torch.testing.assert_close(o, whole[:, :, t : t + 1], atol=1e-6, rtol=0)


def test_log_sum_exp_joins_parts():
    """Two halves of the keys, weighed by their lse, make the whole."""
    q, k, v = inputs(20, 70)
    whole, total = attention(q, k, v, lse=True, **SMALL)
    parts = [
        attention(q, k[:, :, s], v[:, :, s], lse=True, **SMALL)
        for s in (slice(0, 33), slice(33, 70))
    ]
    weights = torch.stack([lse for _, lse in parts]).softmax(0)[..., None]
    joined = sum(w * o for w, (o, _) in zip(weights, parts, strict=True))
    torch.testing.assert_close(joined, whole, atol=2e-6, rtol=1e-5)
    lse = torch.stack([lse for _, lse in parts]).logsumexp(0)
    torch.testing.assert_close(lse, total, atol=2e-6, rtol=1e-5)


ALL_TILES = [(mask, sides) for mask in MASKS for sides in ((48, 32), (16, 80))]
QUICK_TILES = [ALL_TILES[k] for k in (0, 1, 2, 5)]  # each pair of sides with a mask and without


@pytest.mark.parametrize(
    ("mask", "sides"),
    [pytest.param(*x, marks=() if x in QUICK_TILES else pytest.mark.slow) for x in ALL_TILES],
    ids=str,
)
def test_tile_sizes_do_not_matter(mask, sides):
    q, k, v = inputs(50, 70)
    first = attention(q, k, v, lse=True, **mask, **SMALL)
    other = attention(q, k, v, lse=True, rows=sides[0], cols=sides[1], **mask)
    for a, b in zip(first, other, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(CallError, match="H % G == 0"):
        attention(*inputs(4, 4, h=3, g=2))
