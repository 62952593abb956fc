import pytest
import torch
import torch.nn.functional as F
from zoo_helpers import DTYPES, agrees, made, same_bits

from zoo.kernels.cross_entropy import cross_entropy
from zoo.kernels.linear_cross_entropy import linear_cross_entropy

SMALL = {"rows": 16, "cols": 32, "depth": 16}


def inputs(m, v, d, dtype=torch.float32):
    target = torch.randint(0, v, (m,), generator=torch.Generator().manual_seed(m))
    return made(m, d, dtype=dtype, seed=1), made(v, d, dtype=dtype, seed=2), target


@pytest.mark.parametrize(
    "dtype", [*DTYPES[:2], pytest.param(DTYPES[2], marks=pytest.mark.slow)], ids=str
)
def test_linear_cross_entropy(dtype):
    for m, v, d in ((1, 1, 1), (17, 100, 40), (5, 48, 16), (33, 129, 70)):
        agrees(linear_cross_entropy, *inputs(m, v, d, dtype), **SMALL)


@pytest.mark.parametrize(
    "extra",
    [
        {"softcap": 5.0, "smoothing": 0.2, "z_loss": 1e-3, "bias": made(100, seed=4)},
        pytest.param({"softcap": 3.0}, marks=pytest.mark.slow),
        pytest.param({"smoothing": 0.1}, marks=pytest.mark.slow),
        pytest.param({"z_loss": 1e-2}, marks=pytest.mark.slow),
    ],
    ids=lambda x: "all" if len(x) > 1 else next(iter(x)),
)
def test_extras(extra):
    agrees(linear_cross_entropy, *inputs(17, 100, 40), **extra, **SMALL)


def test_it_is_pytorchs():
    x, w, t = inputs(40, 300, 50)
    t[3] = -100
    z = F.linear(x.double(), w.double())
    for smoothing in (0.0, 0.3):
        want = F.cross_entropy(z, t, reduction="none", label_smoothing=smoothing)
        got = linear_cross_entropy(x, w, t, smoothing=smoothing, **SMALL)
        torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=1e-6)
    assert linear_cross_entropy(x.bfloat16(), w.bfloat16(), t, **SMALL).dtype == torch.float32


def test_it_is_cross_entropy_of_the_logits():
    x, w, t = inputs(40, 100, 64)
    loss, lse = linear_cross_entropy(x, w, t, lse=True, **SMALL)
    for a, b in zip((loss, lse), cross_entropy(x @ w.T, t, lse=True), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-6)


def test_an_ignored_target_is_0_and_one_that_is_no_class_nan():
    x, w, _ = inputs(6, 20, 8)
    odd = torch.tensor([3, -100, 20, -1, 19, 2**40])
    loss = linear_cross_entropy(x, w, odd, **SMALL)
    assert loss[1] == 0 and loss[[2, 3, 5]].isnan().all() and loss[[0, 4]].isfinite().all()
    assert linear_cross_entropy(x, w, torch.full((6,), -1), ignore=-1, **SMALL).eq(0).all()


def test_rows_do_not_know_each_other():
    x, w, t = inputs(50, 70, 20)
    loss, order = linear_cross_entropy(x, w, t, **SMALL), torch.arange(49, -1, -1)
    assert same_bits(linear_cross_entropy(x[order], w, t[order], **SMALL), loss[order])


@pytest.mark.slow
def test_tile_sizes_and_the_order_of_classes_do_not_matter():
    x, w, t = inputs(50, 70, 20)
    loss = linear_cross_entropy(x, w, t)
    torch.testing.assert_close(linear_cross_entropy(x, w, t, **SMALL), loss, atol=1e-5, rtol=1e-5)
    turned = linear_cross_entropy(x, w.flip(0), 69 - t)
    torch.testing.assert_close(turned, loss, atol=1e-5, rtol=1e-5)


def test_large_logits_do_not_overflow():
    x, w, t = inputs(20, 100, 40)
    agrees(linear_cross_entropy, x * 100, w, t, **SMALL)


@pytest.mark.parametrize(
    "wrong, condition",
    [({"ignore": 1}, "ignore < 0"), ({"softcap": 0.0}, "softcap > 0"),
     ({"smoothing": 1.5}, "smoothing <= 1"), ({"smoothing": -0.1}, "smoothing >= 0")],
    ids=str,
)  # fmt: skip
def test_what_has_no_meaning_is_refused(wrong, condition):
    with pytest.raises(ValueError, match=condition):
        linear_cross_entropy(*inputs(2, 4, 4), **wrong)
