import pytest
import torch
import torch.nn.functional as F
from zoo_helpers import DTYPES, agrees, made, same_bits

from zoo.kernels.short_conv import short_conv


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("w", [2, 3, 4])
def test_short_conv(w, dtype):
    weight, bias = made(70, w, dtype=dtype, seed=1), made(70, dtype=dtype, seed=2)
    for n in (1, 2, 3, 63, 64, 65):
        x, state = made(2, n, 70, dtype=dtype, seed=3), made(2, w - 1, 70, dtype=dtype, seed=4)
        agrees(short_conv, x, weight, bias, state, activation="silu")
        agrees(short_conv, x, weight)


def test_as_pytorch_does():
    x, weight, bias = made(2, 100, 20), made(20, 3, seed=2), made(20, seed=4)
    want = F.conv1d(F.pad(x.mT, (2, 0)), weight[:, None], bias, groups=20).mT
    torch.testing.assert_close(short_conv(x, weight, bias), want)


@pytest.mark.parametrize("w", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cut_anywhere(w, dtype):
    """B15: prompts of 0 to 4 and then one by one; and a cut at any other place."""
    x, weight = made(1, 70, 20, dtype=dtype), made(20, w, dtype=dtype, seed=2)
    options = {"bias": made(20, dtype=dtype, seed=4), "activation": "silu"}
    whole, last = short_conv(x, weight, new_state=True, **options)
    for cut in (0, 1, 2, 3, 4, 33, 64, 69):
        pieces, state = [], torch.zeros(1, w - 1, 20, dtype=dtype)
        sizes = [cut] * (cut > 0) + ([1] * 6 if cut <= 4 else [70 - cut])
        for piece in x[:, : sum(sizes)].split(sizes, 1):
            y, state = short_conv(piece, weight, state=state, new_state=True, **options)
            pieces.append(y)
        assert same_bits(torch.cat(pieces, 1), whole[:, : sum(sizes)])
    assert same_bits(state, last) and same_bits(last, x[:, 71 - w :])


def test_causal_bit_by_bit():
    x, weight = made(1, 130, 20), made(20, 4, seed=2)
    before = short_conv(x, weight)
    for t in (0, 62, 63, 64, 129):
        other = x.clone()
        other[:, t] = float("nan")
        after = short_conv(other, weight)
        assert same_bits(after[:, :t], before[:, :t])
        assert after[:, t : t + 4].isnan().all() and same_bits(
            after[:, t + 4 :], before[:, t + 4 :]
        )


def test_other_widths_are_refused():
    from tkpy import CallError

    for w in (1, 5):
        with pytest.raises(CallError, match="W"):
            short_conv(made(1, 5, 8), made(8, w))
