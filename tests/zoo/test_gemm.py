import pytest
import torch
import torch.nn.functional as F
from zoo_helpers import DTYPES, agrees, made, same_bits

from zoo.kernels.gemm import gemm

# Few variants, many shapes: sizes of a gemm are run-time.
SHAPES = [(1, 1, 1), (16, 16, 16), (130, 70, 65), (5, 200, 64), (128, 128, 63), (129, 3, 130)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(shape, dtype):
    m, n, k = shape
    agrees(gemm, made(m, k, dtype=dtype), made(k, n, dtype=dtype, seed=1))


@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
def test_transposes_and_epilogues(trans_a, trans_b):
    epilogue = {(0, 0): "none", (0, 1): "gelu", (1, 0): "silu", (1, 1): "gelu"}[trans_a, trans_b]
    for m, n, k in ((70, 33, 100), (128, 128, 64), (1, 5, 129)):
        a, b = made(m, k, seed=2), made(k, n, seed=4)
        plain = gemm(a, b)
        a, b = a.T.contiguous() if trans_a else a, b.T.contiguous() if trans_b else b
        # The same products are added in the same order.
        assert same_bits(gemm(a, b, trans_a=trans_a, trans_b=trans_b), plain)
        flags = {"trans_a": trans_a, "trans_b": trans_b, "epilogue": epilogue}
        agrees(gemm, a, b, made(n, seed=6), **flags)


def test_a_transposed_view_is_its_values():
    a, b = made(70, 90, seed=2), made(90, 40, seed=4)
    assert same_bits(gemm(a.T.contiguous().T, b), gemm(a, b))


def test_linear_layer_of_pytorch():
    x, w, b = made(50, 80), made(60, 80, seed=2), made(60, seed=4)
    want = F.gelu(F.linear(x.double(), w.double(), b.double()))
    got = gemm(x, w, b, trans_b=True, epilogue="gelu")
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)


def test_tile_sizes_do_not_matter():
    a, b = made(70, 130), made(130, 50, seed=2)
    for sizes in ({"rows": 16, "cols": 16, "depth": 16}, {"rows": 48, "cols": 80, "depth": 32}):
        got = gemm(a, b, **sizes)
        torch.testing.assert_close(got, gemm(a, b), atol=1e-5, rtol=1e-5)


def test_nothing_to_add_gives_the_bias():
    bias = made(5, seed=2)
    assert torch.equal(gemm(torch.empty(3, 0), torch.empty(0, 5), bias), bias.expand(3, 5))
