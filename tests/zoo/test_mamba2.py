"""Mamba-2's SSD: the kernel against its reference, and the algebra that holds."""

import math

import pytest
import torch
from zoo_helpers import DTYPES, agrees, exact, made, same_bits

from tkpy import CallError
from zoo.kernels.linear_attention import linear_attention
from zoo.kernels.mamba2 import mamba2


def inputs(n, s=16, p=24, b=1, h=4, g=2, dtype=torch.float32):
    x = made(b, h, n, p, dtype=dtype)
    a = -made(b, h, n, seed=2).abs() * torch.tensor([0.0, 0.05, 1.0, 30.0])[:h, None]
    return x, a, *(made(b, g, n, s, dtype=dtype, seed=k) for k in (1, 3))


def run(x, a, b, c, state=None, chunk=16, **options):
    return mamba2(x, a, b, c, state=state, new_state=True, chunk=chunk, **options)


def cut(tensors, part):
    return [t[:, :, part] for t in tensors]


@pytest.mark.parametrize(
    "s, p, dtype",
    [
        (16, 24, torch.float32),
        (16, 24, torch.bfloat16),
        *(pytest.param(5, 70, dtype, marks=pytest.mark.slow) for dtype in DTYPES),
    ],
    ids=str,
)
def test_chunks_with_state(s, p, dtype):
    for n in (1, 15, 16, 17, 70):
        agrees(mamba2, *inputs(n, s, p, dtype=dtype), chunk=16, within=16)
        agrees(mamba2, *inputs(n, s, p, dtype=dtype), made(1, 4, s, p, seed=7), chunk=16, within=16)


def test_it_is_the_recurrence():
    x, a, b, c = inputs(50)
    s, want = 0.0, []
    for t in range(50):
        now, decay = x[0, :, t].double(), a[0, :, t].double().exp()[:, None, None]
        write, read = (m[0, :, t].double().repeat_interleave(2, 0) for m in (b, c))
        s = s * decay + write[:, :, None] * now[:, None, :]
        want.append((read[:, None] @ s)[:, 0])
    y, last = run(x, a, b, c)
    torch.testing.assert_close(y[0].double(), torch.stack(want, 1), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(last[0].double(), s, atol=1e-4, rtol=1e-5)


@pytest.mark.slow
def test_chunks_and_columns_do_not_matter():
    given = inputs(70)
    first = run(*given, chunk=16, cols=16)
    for chunk, cols in ((32, 32), (48, 16), (128, 64)):
        for a, b in zip(first, run(*given, chunk=chunk, cols=cols), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_a_sequence_may_be_cut_anywhere():
    given = inputs(40)
    whole, last = run(*given)
    for t in (1, 15, 16, 17, 39):
        y, state = run(*cut(given, slice(t)))
        rest, after = run(*cut(given, slice(t, None)), state=state)
        torch.testing.assert_close(torch.cat([y, rest], 2), whole, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(after, last, atol=1e-4, rtol=1e-5)


def test_causal_bit_by_bit():
    given = inputs(70)
    before, _ = run(*given)
    for t in (0, 15, 63, 64, 68):
        later = [x.clone() for x in given]
        for k, x in enumerate(later):
            new = 1e4 * made(*x[:, :, t + 1 :].shape, seed=8)
            x[:, :, t + 1 :] = -new.abs() if k == 1 else new
        assert same_bits(run(*later)[0][:, :, : t + 1], before[:, :, : t + 1])


def test_a_group_is_its_heads():
    x, a, b, c = inputs(40)
    wide = (m.repeat_interleave(2, 1) for m in (b, c))
    assert same_bits(run(x, a, *wide)[0], run(x, a, b, c)[0])


def test_a_constant_decay_is_linear_attention():
    x, _, b, c = inputs(70, g=4)
    slope = torch.tensor([0.0, 0.05, 1.0, 30.0])
    y, _ = run(x, -slope[:, None].expand(1, 4, 70), b, c)
    torch.testing.assert_close(
        y, linear_attention(c, b, x, slope, chunk=16, new_state=True)[0], atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("decay", [-math.inf, -1e30, -200.0])
def test_forgetting_starts_another_sequence(decay):
    """Sequences that are packed into one row come out as each by itself, in the last digit too."""
    x, a, b, c = inputs(100)
    parts = [slice(0, 30), slice(30, 64), slice(64, 100)]
    for part in parts[1:]:
        a[:, :, part.start] = decay
    packed, last = run(x, a, b, c)
    for part in parts:
        given = cut((x, a, b, c), part)
        alone, state = run(*given)
        want = exact(mamba2, *given)["y"]
        scale = exact(mamba2, *given, fn=mamba2.reference_options["terms"])["y"]
        assert ((packed[:, :, part] - want).abs() <= 2e-6 * scale).all()
        torch.testing.assert_close(packed[:, :, part], alone, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(last, state, atol=1e-4, rtol=1e-5)


def test_growth_and_groups_that_do_not_divide_are_refused():
    x, a, b, c = inputs(4)
    with pytest.raises(CallError, match="a <= 0"):
        mamba2(x, -a, b, c)
    with pytest.raises(CallError, match="H % G == 0"):
        mamba2(x[:, :3], a[:, :3], b, c)
