"""BASED's linear attention: the kernel against its reference, and the oracles that hold of it.

B1 to B12 are those of the project's specification, with its tolerances.
"""

import itertools
import math

import pytest
import torch
from zoo_helpers import DTYPES, agrees, exact, made, same_bits

from zoo.kernels.attention import attention
from zoo.kernels.based import based, based_decode

STATE = ("t0", "t1", "t2", "s0", "s1", "s2")
ALL = {f"new_{name}": True for name in STATE}


def inputs(n, f=16, v=32, b=1, h=2, dtype=torch.float32, sigma=1.0):
    shapes = ((b, h, n, f), (b, h, n, f), (b, h, n, v))
    return [made(*s, dtype=dtype, seed=k, size=sigma) for k, s in enumerate(shapes)]


def run(q, k, v, state=(), **options):
    y, *after = based(q, k, v, *state, **ALL, **options)
    return y, after


def decode(q, k, v, state):
    """y of all positions, one by one, and the state after; ``state`` is left alone."""
    state = [x.clone() for x in state]
    return torch.stack(
        [based_decode(q[:, :, t], k[:, :, t], v[:, :, t], *state) for t in range(q.shape[2])], 2
    ), state


def nothing(q, v):
    (b, h, _, f), d = q.shape, v.shape[-1]
    shapes = ((), (f,), (f, f), (d,), (f, d), (f, f, d))
    return [torch.zeros(b, h, *s) for s in shapes]


def quadratic(q, k, v):
    """The definition, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    s = q @ k.mT * q.shape[-1] ** -0.5
    a = (1 + s + s * s / 2).tril()
    return a @ v / a.sum(-1, keepdim=True)


def features(x):
    """The map of the specification, section 2.1: [1, x / F^(1/4), vec(x x^T) / sqrt(2 F)]."""
    f = x.shape[-1]
    outer = (x[..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(2 * f)
    return torch.cat([torch.ones_like(x[..., :1]), x / f**0.25, outer], -1)


# -- against the reference ---------------------------------------------------------------------


#: Every shape and every dtype is tried each time, not every pair: each compiles two large kernels.
QUICK = [(16, torch.bfloat16), (5, torch.float32), (1, torch.float16)]


@pytest.mark.parametrize(
    "f, v, dtype",
    [
        pytest.param(f, v, t, marks=() if (f, t) in QUICK else pytest.mark.slow)
        for f, v in ((16, 32), (5, 20), (1, 1))
        for t in DTYPES
    ],
    ids=str,
)
def test_chunks_with_state(f, v, dtype):
    for n in (1, 31, 32, 33, 65):
        q, k, val = inputs(n, f, v, dtype=dtype)
        _, after = run(q, k, val)
        agrees(based, q, k, val, within=16)
        agrees(based, q, k, val, *after, within=16)


def test_many_features_and_columns():
    q, k, v = inputs(20, 32, 70)
    _, after = run(q, k, v)
    agrees(based, q, k, v, *after, within=16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_position(dtype):
    for f, v in ((16, 32), (5, 20)):
        q, k, val = inputs(20, f, v, b=2, h=3, dtype=dtype)
        _, after = run(q, k, val)
        agrees(based_decode, q[:, :, 3], k[:, :, 4], val[:, :, 5], *after, within=16)


def test_a_state_in_part():
    q, k, v = inputs(40)
    _, (t0, t1, t2, *_) = run(q, k, v)
    agrees(based, q, k, v, t0=t0, t2=t2, within=16)
    want = exact(based, q, k, v, t1=t1)["y"]
    torch.testing.assert_close(based(q, k, v, t1=t1).double(), want, atol=1e-4, rtol=1e-4)


# -- the oracles -------------------------------------------------------------------------------


def test_b1_the_state_is_that_of_the_feature_map():
    for sigma in (0.1, 1.0, 3.0):
        q, k, _ = inputs(1, 16, 1, h=64, sigma=sigma)
        _, (t0, t1, t2, s0, s1, s2) = run(q, k, torch.ones(1, 64, 1, 1))
        q = q[:, :, 0].double() / 2
        s = (q * k[:, :, 0].double() / 2).sum(-1)
        for zero, one, two in ((t0, t1, t2), (s0[..., 0], s1[..., 0], s2[..., 0])):
            read = zero + (q / 2 * one).sum(-1)
            read = read + torch.einsum("bhi,bhj,bhij->bh", q / 2, q / 2, two.double()) / 2
            torch.testing.assert_close(read, 1 + s + s * s / 2, atol=0, rtol=1e-3)
    product = (features(2 * q) * features(k[:, :, 0].double())).sum(-1)
    torch.testing.assert_close(product, 1 + s + s * s / 2, atol=0, rtol=1e-11)


def test_b2_the_quadratic_features_are_symmetric():
    q, k, v = inputs(50)
    _, (_, _, t2, _, _, s2) = run(q, k, v)
    assert same_bits(t2, t2.mT)
    torch.testing.assert_close(s2, s2.transpose(2, 3), atol=1e-5, rtol=1e-5)
    # 153 numbers instead of 273: half of them, the diagonal weighed by one half.
    q = q[:, :, -1].double() / 2
    i, j = torch.triu_indices(16, 16)
    weight = torch.where(i == j, 0.5, 1.0)
    packed = torch.einsum("bhp,bhpv->bhv", weight * q[..., i] * q[..., j], s2.double()[:, :, i, j])
    full = torch.einsum("bhi,bhj,bhijv->bhv", q, q, s2.double()) / 2
    torch.testing.assert_close(packed, full, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_b3_quadratic_recurrent_and_chunked_agree(sigma):
    for n in (1, 15, 16, 17, 35):
        q, k, v = inputs(n, 8, 16, h=1, sigma=sigma)
        v = v / sigma
        want = quadratic(q, k, v)
        torch.testing.assert_close(
            exact(based, q, k, v)["y"], want, atol=1e-12, rtol=0, msg="the reference"
        )
        one_by_one, _ = decode(q, k, v, nothing(q, v))
        torch.testing.assert_close(one_by_one.double(), want, atol=5e-5, rtol=0)
        for chunk in (16, 32, 64):
            got = based(q, k, v, chunk=chunk).double()
            torch.testing.assert_close(got, want, atol=5e-6, rtol=0)


def test_b4_prefill_and_decode_at_every_split():
    q, k, v = inputs(37, 8, 16, h=1)
    whole, last = run(q, k, v, chunk=16)
    for cut in (0, 15, 16, 17, 36):
        head, tail = ([x[:, :, s] for x in (q, k, v)] for s in (slice(cut), slice(cut, None)))
        y, state = run(*head, chunk=16) if cut else (whole[:, :, :0], nothing(q, v))
        for rest, after in (decode(*tail, state), run(*tail, state, chunk=16)):
            both = torch.cat([y, rest], 2)
            torch.testing.assert_close(both, whole, atol=5e-5, rtol=0)
            for a, b in zip(after, last, strict=True):
                torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-5)


def test_b5_causal_bit_by_bit():
    q, k, v = inputs(70, 8, 16)
    before = based(q, k, v)
    for t in (0, 14, 31, 32, 68):
        later = [x.clone() for x in (q, k, v)]
        for x in later:
            x[:, :, t + 1 :] = 1e4 * made(*x[:, :, t + 1 :].shape, seed=8)
        assert same_bits(based(*later)[:, :, : t + 1], before[:, :, : t + 1])


def test_b6_outputs_are_averages():
    q, k, v = inputs(70, 8, 16)
    constant = torch.full_like(v, 3.0)
    torch.testing.assert_close(based(q, k, constant), constant, atol=1e-5, rtol=0)
    y = based(q, k, v)
    assert (y <= v.cummax(2).values + 1e-5).all() and (y >= v.cummin(2).values - 1e-5).all()


def test_b7_without_query_or_key_it_is_the_running_mean():
    q, k, v = inputs(70, 8, 16)
    mean = v.cumsum(2) / torch.arange(1, 71)[:, None]
    for pair in ((torch.zeros_like(q), k), (q, torch.zeros_like(k))):
        torch.testing.assert_close(based(*pair, v), mean, atol=1e-6, rtol=0)


def test_b8_count_sum_and_denominator():
    for n in (1, 33, 257):
        q, k, v = inputs(n, 8, 16)
        _, (t0, t1, t2, s0, *_) = run(q, k, v)
        assert (t0 == n).all()
        torch.testing.assert_close(s0, v.sum(2), atol=1e-5, rtol=1e-5)
        probe = made(1, 2, 500, 8, seed=6, size=3.0).double() * 8**-0.5
        weight = t0[..., None] + torch.einsum("bhni,bhi->bhn", probe, t1.double())
        weight = weight + torch.einsum("bhni,bhnj,bhij->bhn", probe, probe, t2.double()) / 2
        assert (weight >= n / 2 - 1e-3).all()


def test_b8_a_count_beyond_what_16_bits_hold():
    """The count stops at 256 in bf16: here it does not."""
    q, k, v = inputs(40, 8, 16, dtype=torch.bfloat16)
    _, state = run(q, k, v)
    state[0] += 4000.0
    _, (t0, *_) = run(q, k, v, state)
    assert (t0 == 4080).all()
    based_decode(*(x[:, :, 0] for x in (q, k, v)), *state)
    assert (state[0] == 4041).all()


def test_b9_the_order_of_the_past_does_not_matter():
    q, k, v = inputs(70, 8, 16)
    order = torch.cat(
        [torch.randperm(69, generator=torch.Generator().manual_seed(1)), torch.tensor([69])]
    )
    y, other = based(q, k, v), based(q, k[:, :, order], v[:, :, order])
    torch.testing.assert_close(other[:, :, -1], y[:, :, -1], atol=1e-5, rtol=0)
    assert not torch.allclose(other[:, :, 5], y[:, :, 5])


def test_b10_heads_and_batches_are_independent():
    q, k, v = inputs(40, 8, 16, b=2, h=3)
    y = based(q, k, v)
    order = torch.tensor([2, 0, 1])
    assert same_bits(based(*(x[:, order] for x in (q, k, v))), y[:, order])
    for b, h in itertools.product(range(2), range(3)):
        alone = based(*(x[b : b + 1, h : h + 1] for x in (q, k, v)))
        assert same_bits(alone, y[b : b + 1, h : h + 1])


def test_b11_linear_in_v_and_free_of_a_common_scale():
    q, k, v = inputs(40, 8, 16)
    w = made(1, 2, 40, 16, seed=6)
    both = 2 * based(q, k, v) - 3 * based(q, k, w)
    torch.testing.assert_close(based(q, k, 2 * v - 3 * w), both, atol=1e-4, rtol=0)
    for c in (0.1, -7.0):
        torch.testing.assert_close(based(q * c, k / c, v), based(q, k, v), atol=1e-4, rtol=0)


def test_b12_softmax_is_approached_to_third_order():
    q, k, v = inputs(40, 8, 8)
    gaps = []
    for c in (1e-3, 1e-2, 1e-1):
        taylor = exact(based, q.double() * c, k, v)["y"]
        soft = exact(attention, q.double() * c, k, v, causal=True)["o"]
        gaps.append((taylor - soft).abs().max().log10().item())
    for slope in (gaps[1] - gaps[0], gaps[2] - gaps[1]):
        assert abs(slope - 3) < 0.1
    gap = (based(q * 0.1, k, v) - attention(q * 0.1, k, v, causal=True)).abs().max().item()
    assert abs(math.log10(gap) - gaps[2]) < 0.1


def test_one_token_is_its_value():
    q, k, v = inputs(1, 8, 16)
    torch.testing.assert_close(based(q, k, v), v, atol=1e-6, rtol=1e-6)


def test_columns_of_a_program_do_not_matter():
    q, k, v = inputs(40, 8, 70)
    assert same_bits(based(q, k, v, cols=16), based(q, k, v, cols=80))


def test_near_the_minimum_of_the_weight_nothing_cancels():
    """Where s = -1 the weight is 1/2, formed of 1, -1 and 1/2 and not of powers of q and k."""
    q = torch.full((1, 1, 30, 4), 40.0)
    k = torch.full((1, 1, 30, 4), -0.0125)
    v = made(1, 1, 30, 16)
    torch.testing.assert_close(based(q, k, v).double(), quadratic(q, k, v), atol=1e-6, rtol=1e-5)
