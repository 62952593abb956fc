import pytest
import torch
import torch.nn.functional as F
from zoo_helpers import DTYPES, agrees, made, same_bits

from zoo.kernels.norm import layernorm, rmsnorm

BOTH = pytest.mark.parametrize("kernel", [layernorm, rmsnorm], ids=lambda k: k.name)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_with_everything(kernel, dtype):
    for m, d in ((1, 1), (17, 40), (16, 64)):
        extra = {"bias": made(d, seed=4)} if kernel is layernorm else {}
        for residual in (dtype, torch.float32):
            x, w = made(m, d, dtype=dtype, seed=1), made(d, seed=2)
            agrees(kernel, x, w, residual=made(m, d, dtype=residual, seed=3), **extra)


@BOTH
def test_plain_and_long_rows(kernel):
    w = made(100)
    for size in (1e-3, 1.0, 1e3):
        x = made(20, 100, seed=1, size=size)
        y = agrees(kernel, x, w)["y"]
        torch.testing.assert_close(agrees(kernel, x, w, cols=32)["y"], y, atol=1e-5, rtol=1e-5)


def test_as_pytorch_does():
    x, w, b = made(20, 100), made(100, seed=2), made(100, seed=4)
    torch.testing.assert_close(layernorm(x, w, b), F.layer_norm(x, (100,), w, b))
    torch.testing.assert_close(rmsnorm(x, w, eps=1e-6), F.rms_norm(x, (100,), w, 1e-6))


def test_a_large_mean_does_not_drown_the_variance():
    x = made(16, 300) + 1000.0
    for cols in (64, 1024):
        agrees(layernorm, x, torch.ones(300), cols=cols)
        y = layernorm(x, torch.ones(300), cols=cols)
        torch.testing.assert_close(y, F.layer_norm(x.double(), (300,)).float(), atol=1e-3, rtol=0)


def test_a_constant_row_is_its_bias():
    x, b = torch.full((3, 50), 2.5), made(50)
    torch.testing.assert_close(layernorm(x, torch.ones(50), b), b.expand(3, 50))


@BOTH
def test_total_is_the_rounded_sum_and_y_that_of_the_sum_itself(kernel):
    x, r = made(5, 40, dtype=torch.bfloat16), made(5, 40, dtype=torch.bfloat16, seed=2)
    y, total = kernel(x, torch.ones(40), residual=r, total=True)
    exact = x.float() + r.float()
    assert torch.equal(total, exact.bfloat16())
    assert same_bits(y, kernel(exact, torch.ones(40)).bfloat16())
