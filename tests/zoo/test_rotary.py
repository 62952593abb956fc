import pytest
import torch
from zoo_helpers import DTYPES, agrees, made, same_bits

from zoo.kernels.rotary import rotary


def tables(n, r, start=0, dtype=torch.float32):
    angle = torch.arange(start, start + n)[:, None] * 100.0 ** (-torch.arange(r) / r)
    return angle.cos().to(dtype), angle.sin().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d, r", [(2, 1), (32, 16), (40, 20), (96, 48), (64, 8), (7, 3)])
def test_rotary(d, r, dtype):
    for n in (1, 63, 65):
        agrees(rotary, made(2, 3, n, d, dtype=dtype, seed=1), *tables(n, r, dtype=dtype))


def test_tables_in_a_type_of_their_own():
    agrees(rotary, made(1, 2, 20, 32, dtype=torch.bfloat16), *tables(20, 16))


def test_halves_are_turned_as_complex_numbers():
    x, (cos, sin) = made(1, 2, 30, 32), tables(30, 16)
    turned = torch.complex(x[..., :16], x[..., 16:]) * torch.complex(cos, sin)
    want = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(rotary(x, cos, sin), want)


def test_no_angle_no_change_and_what_is_beyond_is_copied():
    x, (cos, sin) = made(1, 2, 70, 40), tables(70, 7)
    assert same_bits(rotary(x, torch.ones_like(cos), torch.zeros_like(sin)), x + 0)
    assert same_bits(rotary(x, cos, sin)[..., 14:], x[..., 14:])


def test_scores_depend_on_the_distance_only():
    q, k = made(1, 1, 1, 32).expand(1, 1, 40, 32), made(1, 1, 1, 32, seed=2).expand(1, 1, 40, 32)
    s = rotary(q, *tables(40, 16))[0, 0] @ rotary(k, *tables(40, 16))[0, 0].T
    for distance in (0, 3, 20):
        band = s.diagonal(-distance)
        torch.testing.assert_close(band, band[:1].expand_as(band), atol=1e-4, rtol=1e-4)


def test_a_call_may_start_anywhere():
    x, (cos, sin) = made(1, 2, 70, 32), tables(70, 16)
    whole = rotary(x, cos, sin)
    assert same_bits(rotary(x[:, :, 13:], cos[13:], sin[13:]), whole[:, :, 13:])


def test_more_pairs_than_elements_are_refused():
    from tkpy import CallError

    with pytest.raises(CallError, match=r"2 \* R <= D"):
        rotary(made(1, 1, 4, 8), *tables(4, 5))


def test_heads_do_not_know_of_each_other():
    x, (cos, sin) = made(2, 5, 33, 24), tables(33, 8)
    one_by_one = [rotary(x[:, h : h + 1], cos, sin) for h in range(5)]
    assert same_bits(rotary(x, cos, sin), torch.cat(one_by_one, 1))
