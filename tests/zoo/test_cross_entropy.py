import pytest
import torch
from zoo_helpers import DTYPES, agrees, made

from zoo.kernels.cross_entropy import cross_entropy


def targets(m, v, seed=0):
    return torch.randint(0, v, (m,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", [512, 48])
def test_cross_entropy(dtype, cols):
    for m, v in ((1, 1), (17, 100), (5, 48), (33, 129)):
        agrees(cross_entropy, made(m, v, dtype=dtype, size=5, seed=1), targets(m, v), cols=cols)


def test_it_is_pytorchs_and_in_fp32_whatever_the_logits_are():
    x, t = made(40, 1000, size=3), targets(40, 1000)
    want = torch.nn.functional.cross_entropy(x.double(), t, reduction="none")
    torch.testing.assert_close(cross_entropy(x, t).double(), want, atol=1e-5, rtol=1e-6)
    assert cross_entropy(x.bfloat16(), t).dtype == torch.float32


def test_an_ignored_target_is_0_and_one_that_is_no_class_nan():
    x, t = made(6, 20), torch.tensor([3, -100, 20, -1, 19, 2**40])
    loss, lse = cross_entropy(x, t, lse=True)
    assert loss[1] == 0 and loss[[2, 3, 5]].isnan().all() and loss[[0, 4]].isfinite().all()
    torch.testing.assert_close(lse, x.logsumexp(-1), atol=1e-5, rtol=1e-6)
    assert cross_entropy(x, t, ignore=-1)[3] == 0


def test_a_class_that_cannot_be():
    x = made(2, 70)
    x[0, 5] = x[1, 66] = -float("inf")
    t = torch.tensor([5, 0])
    want = torch.nn.functional.cross_entropy(x, t, reduction="none")
    torch.testing.assert_close(cross_entropy(x, t, cols=32), want, atol=1e-5, rtol=1e-6)


def test_a_shift_of_all_logits_changes_nothing_but_the_lse():
    x, t = made(9, 50).double().float(), targets(9, 50)
    torch.testing.assert_close(cross_entropy(x + 8, t), cross_entropy(x, t), atol=2e-6, rtol=1e-5)


def test_ignore_is_a_number_below_all_classes():
    with pytest.raises(ValueError, match="ignore < 0"):
        cross_entropy(made(2, 4), targets(2, 4), ignore=1)
