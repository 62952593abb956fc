"""The hybrid of window and linear attention: against its reference, and the algebra that holds."""

import math

import pytest
import torch
from zoo_helpers import DTYPES, agrees, made, same_bits

from tkpy import CallError
from zoo.kernels.attention import attention
from zoo.kernels.hedgehog import hedgehog

BOTH = pytest.mark.parametrize("style", ["terrace", "sliding"])
SMALL = {"rows": 16, "cols": 16}
USUAL = {"window": 24, **SMALL}  # blocks of one tile and a half
ALPHA, BETA = torch.tensor([1.0, 0.3, 2.0, 1.0]), torch.tensor([0.1, 0.9, 0.5, 0.1])


def inputs(n, m=None, d=16, e=8, v=16, h=4, g=2, dtype=torch.float32):
    shapes = ((1, h, n, d), (1, g, m or n, d), (1, g, m or n, v), (h, d, e), (h, d, e))
    size = (1.0, 1.0, 1.0, 0.5, 0.5)
    made_ = [made(*s, dtype=dtype, seed=k, size=size[k]) for k, s in enumerate(shapes)]
    return *made_, ALPHA[:h], BETA[:h]


def run(*given, **options):
    return hedgehog(*given, new_state=True, new_norm=True, **options)


@BOTH
@pytest.mark.parametrize(
    "dtype", [DTYPES[0], *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[1:])], ids=str
)
def test_windows_and_lengths(style, dtype):
    for n, m in ((1, 1), (64, 64), (65, 65), (50, 150)):
        agrees(hedgehog, *inputs(n, m, dtype=dtype), style=style, within=16, **USUAL)


@pytest.mark.slow
@BOTH
def test_ragged_sides_and_a_state(style):
    given = inputs(60, 90, d=20, e=5, v=23)
    state, norm = made(1, 4, 10, 23, seed=8), made(1, 4, 10, seed=6).abs()
    agrees(hedgehog, *given, state, norm, style=style, window=7, within=16, **SMALL)


@BOTH
def test_a_window_that_holds_everything_is_softmax(style):
    """LT3: whatever the maps and factors are."""
    for n in (1, 16, 20, 24):
        q, k, v, *rest = inputs(n)
        want = attention(q, k, v, causal=True, **SMALL)
        o, _, _ = run(q, k, v, *rest, style=style, **USUAL)
        torch.testing.assert_close(o, want, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
def test_one_key_in_the_window_and_the_rest_linear():
    """What every key weighs, written out."""
    q, k, v, wq, wk, alpha, beta = inputs(40, g=4)
    o = hedgehog(q, k, v, wq, wk, alpha, beta, window=1, style="sliding", **SMALL).double()
    fq, fk = ((x.double() @ w.double()) for x, w in ((q, wq), (k, wk)))
    fq, fk = (torch.cat([u.softmax(-1), (-u).softmax(-1)], -1) for u in (fq, fk))
    weight = (fq @ fk.mT * alpha[:, None, None]).tril(-1) + torch.eye(40) * beta[:, None, None]
    want = weight @ v.double() / weight.sum(-1, keepdim=True)
    torch.testing.assert_close(o, want, atol=2e-6, rtol=1e-5)


def test_the_masks_split_the_triangle():
    """LT7, of the reference; the kernel is held against it."""
    from zoo.kernels.hedgehog import _masks

    for style, window, n in (("terrace", 3, 11), ("sliding", 3, 11), ("terrace", 20, 11)):
        near, before, _ = _masks(n, n, window, style, "cpu")
        assert ((near.int() + before.int()) == torch.ones(n, n).tril()).all()
        i = torch.arange(n)
        count = (
            (i + 1).clamp(max=window)
            if style == "sliding"
            else i % window + 1 + window * (i >= window)
        )
        assert (near.sum(-1) == count).all()


def test_the_largest_score_is_part_of_the_model():
    """LT10: equal scores, however large, weigh 1 beside the linear part, which stays what it is."""
    q, k, v, wq, wk, alpha, beta = inputs(60)
    q = torch.zeros_like(q)
    q[..., 0] = 1.0
    outs = []
    for size in (0.0, 200.0):
        k[..., 0] = size
        outs.append(run(q, k, v, wq * 0, wk * 0, alpha, beta, style="sliding", **USUAL)[0])
    torch.testing.assert_close(*outs, atol=2e-6, rtol=1e-5)


@BOTH
def test_a_sequence_may_be_cut_anywhere(style):
    q, k, v, *rest = inputs(90)
    window, options = USUAL["window"], {"style": style, **USUAL}
    whole, last, count = run(q, k, v, *rest, **options)
    for cut in (1, 23, 24, 48, 53, 89):
        y, state, norm = run(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], *rest, **options)
        done = cut - window if style == "sliding" else (cut // window - 1) * window
        keep = slice(max(done, 0), None)
        rest_y, after, norm = run(
            q[:, :, cut:], k[:, :, keep], v[:, :, keep], *rest, state=state, norm=norm, **options
        )
        torch.testing.assert_close(torch.cat([y, rest_y], 2), whole, atol=5e-6, rtol=1e-5)
        torch.testing.assert_close(after, last, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(norm, count, atol=1e-5, rtol=1e-5)


@BOTH
def test_causal_bit_by_bit_and_free_of_the_length(style):
    """LT8: neither what comes later nor how much of it there is."""
    given = inputs(70)
    options = {"style": style, **USUAL}
    before, _, _ = run(*given, **options)
    for t in (0, 23, 24, 47, 68):
        later = [x.clone() for x in given]
        for x in later[:3]:
            x[:, :, t + 1 :] = 1e3 * made(*x[:, :, t + 1 :].shape, seed=8)
        assert same_bits(run(*later, **options)[0][:, :, : t + 1], before[:, :, : t + 1])
        short = [x[:, :, : t + 1] for x in given[:3]]
        alone, _, _ = run(*short, *given[3:], **options)
        torch.testing.assert_close(alone, before[:, :, : t + 1], atol=1e-6, rtol=1e-6)


@BOTH
def test_outputs_are_averages(style):
    q, k, v, *rest = inputs(60)
    o, _, _ = run(q, k, torch.full_like(v, 3.0), *rest, style=style, **USUAL)
    torch.testing.assert_close(o, torch.full_like(o, 3.0), atol=1e-5, rtol=0)


@pytest.mark.slow
@BOTH
def test_tile_sizes_do_not_matter(style):
    given = inputs(70)
    first = run(*given, window=24, style=style, **SMALL)
    for sizes in ({"rows": 48, "cols": 32}, {"rows": 64, "cols": 64, "width": 16}):
        for a, b in zip(first, run(*given, window=24, style=style, **sizes), strict=True):
            torch.testing.assert_close(a, b, atol=5e-6, rtol=1e-5)


def test_what_has_no_meaning_is_refused():
    given = inputs(4)
    with pytest.raises(CallError, match="beta > 0"):
        hedgehog(*given[:-1], BETA * 0)
    with pytest.raises(CallError, match="window >= 1"):
        hedgehog(*given, window=0)
    with pytest.raises(CallError, match="N <= M"):
        hedgehog(inputs(9)[0], *given[1:])


def test_the_state_holds_features_that_sum_to_two():
    _, _, norm = run(*inputs(64), style="sliding", **USUAL)
    torch.testing.assert_close(norm.sum(-1), torch.full((1, 4), 2.0 * 40), atol=1e-4, rtol=0)
    assert math.isclose(float(norm[..., :8].sum()), 4 * 40, rel_tol=1e-5)
