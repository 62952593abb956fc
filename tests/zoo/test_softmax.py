import pytest
import torch
from zoo_helpers import DTYPES, agrees, made

from zoo.kernels.softmax import softmax


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_softmax(dtype, size):
    for m, n in ((1, 1), (17, 100), (5, 48)):
        agrees(softmax, made(m, n, dtype=dtype, size=size, seed=1))


@pytest.mark.parametrize("n", [31, 32, 33, 100, 129])
def test_rows_longer_than_a_tile(n):
    for seed, size in ((0, 1.0), (1, 100.0)):
        x = made(20, n, seed=seed, size=size)
        y = agrees(softmax, x, cols=32)["y"]
        torch.testing.assert_close(y, softmax(x), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(y.sum(-1), torch.ones(20))


def test_a_long_row_with_the_tile_of_a_launch():
    agrees(softmax, made(3, 1030))


def test_infinities():
    inf, nan = float("inf"), float("nan")
    x = made(16, 100)
    x[0, :40] = -inf  # a whole tile of them
    x[1] = -inf
    x[2, 50] = inf
    x[3, 70] = nan
    x[4, 99] = -inf
    for cols in (32, 1024):
        y = softmax(x, cols=cols)
        torch.testing.assert_close(y, x.softmax(-1), equal_nan=True)
        assert (y[0, :40] == 0).all() and y[1:4].isnan().all() and y[4, 99] == 0


def test_a_shift_changes_nothing():
    x = made(16, 70)
    torch.testing.assert_close(softmax(x + 8), softmax(x), atol=1e-6, rtol=1e-5)
