import pytest
import torch
import torch.nn.functional as F
from zoo_helpers import DTYPES, agrees, made, same_bits

from zoo.kernels.flux import flux_gate, flux_gelu

SHAPES = [(1, 1, 1), (130, 70, 65), (5, 200, 64), (129, 3, 130)]


def layer(m, n, k, dtype=torch.float32):
    return [made(*s, dtype=dtype, seed=i) for i, s in enumerate(((m, k), (n, k), (n,)))]


@pytest.mark.parametrize(
    "dtype", [*DTYPES[:2], pytest.param(DTYPES[2], marks=pytest.mark.slow)], ids=str
)
def test_gelu_and_gate(dtype):
    for m, n, k in SHAPES:
        given = layer(m, n, k, dtype)
        agrees(flux_gelu, *given)
        rest = made(n, dtype=dtype, seed=3), made(m, n, dtype=dtype, seed=4)
        agrees(flux_gate, *given, *rest)


def test_the_bias_is_not_lost():
    """ThunderKittens' flux_gate zeroes the accumulator that holds it."""
    x, w, bias = layer(70, 33, 50)
    gate, residual = made(33, seed=3), made(70, 33, seed=4)
    zero = torch.zeros_like(bias)
    gap = flux_gate(x, w, bias, gate, residual) - flux_gate(x, w, zero, gate, residual)
    torch.testing.assert_close(gap, (bias * gate).expand(70, 33), atol=1e-5, rtol=1e-5)
    nothing = torch.zeros_like(x)
    want = F.gelu(bias, approximate="tanh").expand(70, 33)
    torch.testing.assert_close(flux_gelu(nothing, w, bias), want, atol=1e-6, rtol=1e-5)


def test_as_pytorch_does():
    x, w, bias = layer(50, 60, 80)
    want = F.gelu(F.linear(x.double(), w.double(), bias.double()), approximate="tanh")
    torch.testing.assert_close(flux_gelu(x, w, bias).double(), want, atol=1e-5, rtol=1e-5)


def test_gelu_of_what_is_far_from_0():
    x, w = torch.eye(16), torch.zeros(16, 16)
    w[0, :7] = torch.tensor([-1e20, -300.0, -12.0, -6.0, 12.0, 300.0, 1e20])
    y = flux_gelu(x, w, torch.zeros(16))[:7, 0]
    want = F.gelu(w[0, :7].double(), approximate="tanh")
    assert (y.double() - want).abs().div(want.abs().clamp(min=1e-6)).max() < 1e-5


def test_a_gate_of_0_leaves_the_residual_and_of_1_the_layer():
    x, w, bias = layer(40, 50, 60)
    residual = made(40, 50, seed=4)
    assert same_bits(flux_gate(x, w, bias, torch.zeros(50), residual), residual)
    plain = flux_gate(x, w, bias, torch.ones(50), torch.zeros(40, 50))
    torch.testing.assert_close(plain, F.linear(x, w, bias), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_tile_sizes_do_not_matter():
    given = layer(70, 50, 130)
    got = flux_gelu(*given, rows=48, cols=16, depth=32)
    torch.testing.assert_close(got, flux_gelu(*given), atol=1e-5, rtol=1e-5)
