"""Linear attention with decay: the kernel against its reference, and the algebra that holds."""

import pytest
import torch
from zoo_helpers import DTYPES, agrees, made, same_bits

from tkpy import CallError
from zoo.kernels.linear_attention import linear_attention

SLOPES = torch.tensor([0.0, 0.05, 3.0])


def inputs(n, f=16, v=24, b=1, h=3, dtype=torch.float32):
    shapes = ((b, h, n, f), (b, h, n, f), (b, h, n, v))
    return [made(*s, dtype=dtype, seed=k) for k, s in enumerate(shapes)]


def run(q, k, v, slope=SLOPES, state=None, chunk=16, **options):
    return linear_attention(q, k, v, slope, state=state, new_state=True, chunk=chunk, **options)


@pytest.mark.parametrize(
    "f, v, dtype",
    [
        (16, 24, torch.float32),
        pytest.param(16, 24, torch.bfloat16, marks=pytest.mark.slow),
        *(pytest.param(5, 70, dtype, marks=pytest.mark.slow) for dtype in DTYPES),
    ],
    ids=str,
)
def test_chunks_with_state(f, v, dtype):
    for n in (1, 15, 16, 17, 70):
        state = made(1, 3, f, v, seed=7)
        agrees(linear_attention, *inputs(n, f, v, dtype=dtype), SLOPES, chunk=16, within=16)
        agrees(linear_attention, *inputs(n, f, v, dtype=dtype), SLOPES, state, chunk=16, within=16)


def test_it_is_the_recurrence():
    q, k, v = inputs(50)
    decay, s, want = torch.exp(-SLOPES.double())[:, None, None], 0.0, []
    for t in range(50):
        now = [x[0, :, t].double() for x in (q, k, v)]
        s = s * decay + now[1][:, :, None] * now[2][:, None, :]
        want.append((now[0][:, None] @ s)[:, 0])
    y, last = run(q, k, v)
    torch.testing.assert_close(y[0].double(), torch.stack(want, 1), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(last[0].double(), s, atol=1e-4, rtol=1e-5)


@pytest.mark.slow
def test_chunks_and_columns_do_not_matter():
    q, k, v = inputs(70)
    first = run(q, k, v, chunk=16, cols=16)
    for chunk, cols in ((32, 32), (48, 16), (128, 64)):
        for a, b in zip(first, run(q, k, v, chunk=chunk, cols=cols), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_a_sequence_may_be_cut_anywhere():
    q, k, v = inputs(40)
    whole, last = run(q, k, v)
    for cut in (1, 15, 16, 17, 39):
        y, state = run(*(x[:, :, :cut] for x in (q, k, v)))
        rest, after = run(*(x[:, :, cut:] for x in (q, k, v)), state=state)
        torch.testing.assert_close(torch.cat([y, rest], 2), whole, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(after, last, atol=1e-4, rtol=1e-5)


def test_causal_bit_by_bit():
    q, k, v = inputs(70)
    before, _ = run(q, k, v)
    for t in (0, 15, 63, 64, 68):
        later = [x.clone() for x in (q, k, v)]
        for x in later:
            x[:, :, t + 1 :] = 1e4 * made(*x[:, :, t + 1 :].shape, seed=8)
        y, _ = run(*later)
        assert same_bits(y[:, :, : t + 1], before[:, :, : t + 1])


def test_linear_in_every_operand():
    q, k, v = inputs(40)
    other = [made(*x.shape, seed=6 + i) for i, x in enumerate((q, k, v))]
    for which in range(3):
        parts, given = [], [q, k, v]
        for x in (given[which], other[which], 2 * given[which] - 3 * other[which]):
            parts.append(run(*given[:which], x, *given[which + 1 :])[0])
        torch.testing.assert_close(parts[2], 2 * parts[0] - 3 * parts[1], atol=2e-4, rtol=1e-5)


def test_without_decay_the_last_output_does_not_know_the_order():
    q, k, v = inputs(70)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    y, shuffled = (run(q, k[:, :, o], v[:, :, o], SLOPES * 0)[0]
                   for o in (torch.arange(70), order))  # fmt: skip
    torch.testing.assert_close(y[:, :, -1], shuffled[:, :, -1], atol=1e-4, rtol=1e-5)


def test_a_steep_decay_leaves_the_position_itself():
    q, k, v = inputs(100)
    for slope in (200.0, 1e30):
        y, last = run(q, k, v, torch.full((3,), slope))
        want = (q * k).sum(-1, keepdim=True) * v
        torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last, k[:, :, -1, :, None] * v[:, :, -1, None], atol=0, rtol=0)


def test_a_growing_weight_is_refused():
    with pytest.raises(CallError, match="slope >= 0"):
        linear_attention(*inputs(4), -SLOPES)
