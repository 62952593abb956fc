"""Kernels that BASED's model needs beside its mixers: gates, a decoding step, short sequences."""

import pytest
import torch
from zoo_helpers import DTYPES, agrees, made, same_bits

from tkpy import CallError
from zoo.kernels.attention import attention
from zoo.kernels.attention_decode import attention_decode
from zoo.kernels.based import based
from zoo.kernels.short_conv import short_conv
from zoo.kernels.swiglu import swiglu
from zoo.kernels.taylor_quadratic import taylor_block, taylor_quadratic

#: fp32 every time, the narrow types in the long run.
FAST_AND_SLOW = [DTYPES[0], *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[1:])]


@pytest.mark.parametrize("dtype", FAST_AND_SLOW, ids=str)
def test_swiglu(dtype):
    for rows, half in ((1, 1), (17, 33), (3, 520)):
        agrees(swiglu, made(rows, 2, half, dtype=dtype, seed=rows))


def test_swiglu_of_large_gates():
    x = torch.tensor([1.0, -1.0, 2.0, 1.0, 1000.0, -1000.0, 80.0, -80.0]).view(1, 2, 4)
    got = agrees(swiglu, x)["y"]
    assert got[0, 0] == 1000 and got[0, 1] == 0


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dtype", FAST_AND_SLOW, ids=str)
def test_gated_convolution(dtype, skip):
    weight, bias = made(70, 3, dtype=dtype), made(70, dtype=dtype, seed=2)
    for n in (1, 2, 65):
        x, gate = made(2, n, 70, dtype=dtype, seed=3), made(2, n, 70, dtype=dtype, seed=5)
        agrees(short_conv, x, weight, bias, gate=gate, activation="silu", skip=skip)


@pytest.mark.parametrize("dtype", FAST_AND_SLOW, ids=str)
def test_decoding(dtype):
    """Rows that see no key, some, all; more query heads than key heads; several tiles of keys."""
    k, v = (made(4, 2, 70, 20, dtype=dtype, seed=s) for s in (1, 2))
    seen = torch.tensor([0, 1, 33, 70])
    got = agrees(attention_decode, made(4, 6, 20, dtype=dtype), k, v, seen, cols=32)["o"]
    assert (got[0] == 0).all() and same_bits(got[1, 0], v[1, 0, 0])


def test_decoding_is_attention_of_one_query():
    q, k, v = made(1, 2, 20), made(1, 2, 70, 20, seed=2), made(1, 2, 70, 20, seed=4)
    want = attention(q[:, :, None], k[:, :, :33], v[:, :, :33])[:, :, 0]
    got = attention_decode(q, k, v, torch.tensor([33]))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    k[:, :, 33:], v[:, :, 33:] = float("nan"), float("nan")
    assert same_bits(attention_decode(q, k, v, torch.tensor([33])), got)


def test_more_keys_than_there_are():
    x = made(1, 2, 5, 8)
    with pytest.raises(CallError, match="seen"):
        attention_decode(made(1, 2, 8), x, x, torch.tensor([6]))


@pytest.mark.parametrize("dtype", FAST_AND_SLOW, ids=str)
def test_short_sequences(dtype):
    for n in (31, 70):
        q, k, v = (made(2, 2, n, w, dtype=dtype, seed=s) for s, w in ((1, 5), (2, 5), (3, 20)))
        y = agrees(taylor_quadratic, q, k, v)["y"]
        if n <= 64:
            agrees(taylor_block, q, k, v)
    least = 1e-6 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(y, based(q, k, v), atol=least, rtol=1e-2)
    with pytest.raises(CallError, match="N <= 64"):
        taylor_block(q, k, v)


def test_short_sequences_are_causal_bit_by_bit():
    q, k, v = made(2, 2, 70, 5), made(2, 2, 70, 5, seed=2), made(2, 2, 70, 20, seed=4)
    before = taylor_quadratic(q, k, v)
    for t in (0, 63, 64, 68):
        later = [x.clone() for x in (q, k, v)]
        for x in later:
            x[:, :, t + 1 :] = 1e4 * made(*x[:, :, t + 1 :].shape, seed=8)
        assert same_bits(taylor_quadratic(*later)[:, :, : t + 1], before[:, :, : t + 1])
