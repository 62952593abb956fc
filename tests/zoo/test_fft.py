"""Fourier transforms and convolutions against torch.fft in complex128."""

import itertools

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from zoo_helpers import made

from codegen.inspect import inspect
from tkpy import CallError
from tkpy.ahead import Setting, compile_for
from tkpy.testing import check
from zoo.kernels.fft import factors_of, fft, fft_columns, fft_tiles, roots, tables
from zoo.kernels.fftconv import convolve, fftconv, spectrum

EPS = torch.finfo(torch.float32).eps


def drawn(*shape, number=0):
    g = torch.Generator().manual_seed(number)
    return torch.complex(torch.randn(*shape, generator=g), torch.randn(*shape, generator=g))


def accurate(x, y, want):
    """Every element within eps (sum |x| + |y|), all within 6e-7 of their root mean square."""
    error = torch.view_as_real(y - want).abs().amax(-1)
    assert (error <= EPS * (x.abs().double().sum(-1, keepdim=True) + want.abs())).all()
    assert (y - want).abs().pow(2).mean().sqrt() <= 6e-7 * want.abs().pow(2).mean().sqrt()


LENGTHS = [(15, (5, 3)), (1024, None), (1024, (16, 8, 8)), (65536, None)]
LENGTHS += [
    pytest.param(n, f, marks=pytest.mark.slow)
    for n, f in [(2, None), (7, None), (256, None), (1000, None), (4096, None), (16384, None),
                 (16384, (64, 16, 16)), (60000, None), (65536, (16, 64, 64))]
]  # fmt: skip


@pytest.mark.parametrize("n, factors", LENGTHS)
def test_a_transform_and_its_inverse(n, factors):
    x = drawn(3, n, number=n)
    wide = x.to(torch.complex128)
    accurate(x, fft(x, factors), torch.fft.fft(wide))
    accurate(x / n, fft(x, factors, inverse=True), torch.fft.ifft(wide))


def test_known_transforms():
    one = torch.zeros(1024)
    one[1] = 1.0
    accurate(one, fft(one), roots(2, 1024, 1024, -1)[1])
    flat = torch.ones(1024)
    want = torch.zeros(1024, dtype=torch.complex128)
    want[0] = 1024
    accurate(flat, fft(flat), want)
    # exp(2 pi i 200 n / N) is one line, at 200.
    wave = roots(201, 1024, 1024, 1)[200].to(torch.complex64)
    accurate(wave, fft(wave), torch.fft.fft(wave.to(torch.complex128)))
    assert fft(wave).abs().topk(2).indices[0] == 200 and fft(wave).abs().topk(2).values[1] < 1e-3


def test_linearity_parseval_and_round_trip():
    x, y = drawn(2, 1024, number=1), drawn(2, 1024, number=2)
    a, b = fft(x), fft(y)
    assert ((fft(x + 2j * y) - (a + 2j * b)).abs() <= 3e-6 * 32).all()
    power = a.abs().double().pow(2).sum(-1) / 1024
    assert torch.allclose(power, x.abs().double().pow(2).sum(-1), rtol=2e-6)
    assert (fft(a, inverse=True) - x).abs().max() <= 4e-6


def test_the_roots_are_exact_to_rounding():
    f, w, g = tables(64, 64, -1, torch.device("cpu"))
    r, c = torch.arange(64)[:, None], torch.arange(64)[None]
    angle = torch.tensor(-2 * torch.pi, dtype=torch.float64) * (r * c) / 4096
    want = torch.complex(angle.cos(), angle.sin())
    assert torch.view_as_real(w - want).abs().max() <= EPS / 4
    assert (f[32, 1] + 1).abs() < 1e-12 and f[0, 0] == 1 and (f - g).abs().max() == 0
    assert torch.view_as_real(f @ f.conj() / 64 - torch.eye(64)).abs().max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [fft_columns, fft_tiles, fftconv], ids=lambda k: k.name)
def test_check(kernel):
    check(kernel, examples=40).raise_if_failed()


@given(n=st.integers(1, 70000))
@settings(max_examples=200, deadline=None, database=None)
@seed(1)
def test_factors_multiply_to_the_length_or_there_are_none(n):
    try:
        found = factors_of(n)
    except ValueError:
        low = [p for p in range(1, 129) if n % p == 0]
        assert not any(p * q * r == n for p, q, r in itertools.product(low, repeat=3))
        return
    product = 1
    for f in found:
        product *= f
    assert product == n and len(found) in (2, 3) and max(found) <= 128


def test_what_is_refused():
    with pytest.raises(ValueError, match="no two or three factors"):
        fft(torch.zeros(131))
    with pytest.raises(ValueError, match=r"factors .4, 5. of a transform of length 21"):
        fft(torch.zeros(21), (4, 5))
    with pytest.raises(ValueError, match="filters of shape"):
        convolve(torch.zeros(1, 2, 16), torch.zeros(2, 17))
    with pytest.raises(ValueError, match="does not fit one tile"):
        convolve(torch.zeros(1, 1, 16384), torch.zeros(1, 16384))
    x = torch.zeros(1, 1, 5, 4)
    with pytest.raises(CallError, match="S <= P"):
        fftconv(x, spectrum(torch.zeros(1, 16), 16), *tables(4, 4, -1, x.device))


# -- convolution -----------------------------------------------------------------------------------


def direct(u, k, causal):
    n = u.shape[-1]
    length = 2 * n if causal else n
    ut, kt = (torch.fft.rfft(t.double(), length) for t in (u, k))
    return torch.fft.irfft(ut * kt, length)[..., :n]


def holds(u, k, causal, exact=True, within=1.0):
    y = convolve(u, k, causal=causal, exact=exact)
    assert y.dtype == u.dtype and y.shape == u.shape
    want = direct(u, k, causal)
    # An error of a spectrum is relative to all of it, so that of y is to |u| and |k| in the mean.
    scale = u.double().norm(dim=-1, keepdim=True) * k.double().norm(dim=-1)[:, None]
    eps = EPS if exact else torch.finfo(torch.bfloat16).eps
    bound = within * 4 * eps * scale + torch.finfo(u.dtype).eps * want.abs() + 1e-30
    assert ((y - want).abs() <= bound).all(), ((y - want).abs() / bound).max()
    return y


@pytest.mark.parametrize(
    "n, causal",
    [
        (1024, True),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in [(1024, False), (4096, False)]),
        pytest.param(4096, True, marks=pytest.mark.slow),
    ],
)
def test_convolution(n, causal):
    u, k = made(3, 2, n, seed=1), made(2, n, seed=2)
    holds(u, k, causal)
    holds(u.bfloat16(), k, causal)
    holds(u, k, causal, exact=False, within=4)


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 127])
def test_lengths_without_factors_are_padded(n):
    holds(made(2, 3, n, seed=3), made(3, n, seed=4), True)
    holds(made(2, 3, n, seed=3), made(3, min(3, n), seed=4), True)


@pytest.mark.slow
def test_many_heads_have_a_filter_each():
    """More heads than any machine has processors, more batches than a program takes at once."""
    u, k = made(9, 150, 64, seed=5), made(150, 64, seed=6)
    holds(u, k, True)
    shift = torch.zeros(150, 64)
    shift[torch.arange(150), torch.arange(150) % 64] = 1.0  # head h delays by h
    y = convolve(u, shift, causal=True)
    for h in range(150):
        d = h % 64
        want = torch.cat([torch.zeros(9, d), u[:, h, : 64 - d]], 1)
        assert (y[:, h] - want).abs().max() <= 4e-6 * u.abs().max(), h


@pytest.mark.slow
def test_causal_means_causal_and_circular_goes_round():
    u, k = made(1, 2, 1024, seed=7), made(2, 1024, seed=8)
    other = u.clone()
    other[..., 500:] += 1.0
    a, b = convolve(u, k), convolve(other, k)
    scale = 4 * EPS * other.norm() * k.norm()
    assert (a - b)[..., :500].abs().max() <= scale < (a - b)[..., 500:].abs().max()
    rolled = convolve(u.roll(100, -1), k, causal=False)
    assert (rolled - convolve(u, k, causal=False).roll(100, -1)).abs().max() <= scale


def test_bf16_products_use_the_matrix_unit():
    sizes = {"B": 8, "H": 8, "S": 16, "P": 32, "Q": 32}
    compiled = compile_for(fftconv, "sm_90", Setting("bf16", sizes, {"exact": False}))
    report = inspect(compiled)
    assert report.instructions["wgmma"] + report.instructions["mma"] > 0
