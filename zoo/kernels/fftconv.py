"""Convolution by Fourier transforms that stay in tiles: four products with DFT matrices.

Fu et al., "FlashFFTConv: efficient convolutions for long sequences with tensor cores" (arXiv
2311.05908, algorithm 1), for a real input. The spectrum keeps the order in which the transform
leaves it, so nothing is transposed; see ``zoo.kernels.fft`` for the factors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

import tkpy as tk
from zoo.kernels.fft import factors_of, fft, sizes_of, tables


@tk.function
def narrow(t, exact):
    return t if exact else tk.cast(t, tk.bf16)


@tk.lcsf(where=["S <= P"], stages=2, consumer_warps=4, persistent=False)
def fftconv(
    u: tk.Global["B H S Q"],
    kf: tk.Global["H P Q", tk.c64],
    f: tk.Global["P P", tk.c64],
    w: tk.Global["P Q", tk.c64],
    g: tk.Global["Q Q", tk.c64],
    y: tk.Out["B H S Q"],
    *,
    exact: bool = True,
    batches: int = 8,
):
    """y = Re(f* ((((f u) * w) g * kf) g* * w*)) / (P Q), with * the complex conjugate.

    u, y: [B, H, S, Q], the first S of P rows of Q samples, the others zero; f32, bf16 or f16.
    kf: [H, P, Q], the filters' spectra, as ``spectrum`` gives them; f, w, g: as ``tables`` gives
    them. Products are of fp32, or of bf16 parts unless ``exact``; the rest is fp32. A program
    reads one head's filter and goes over ``batches`` sequences with it.
    """
    h, i = tk.tasks("H", tk.cdiv("B", batches))
    ft = narrow(tk.load(f, (0, 0), shape=("P", "P")), exact)
    gt = narrow(tk.load(g, (0, 0), shape=("Q", "Q")), exact)
    wt = tk.load(w, (0, 0), shape=("P", "Q"))
    kt = tk.load(kf, (h, 0, 0), shape=("P", "Q")) / (tk.static("P") * tk.static("Q"))

    def load(b):
        return tk.load(u, (b, h, 0, 0), shape=("P", "Q"), dtype=tk.f32 if exact else tk.bf16)

    def compute(b, t):
        t = tk.mm_AB(ft, t) * wt
        t = tk.mm_AB(narrow(t, exact), gt) * kt
        t = tk.mm_AB(narrow(t, exact), tk.conj(gt)) * tk.conj(wt)
        return tk.mm_AB(tk.conj(ft), narrow(t, exact)).real

    def store(b, t):
        tk.store(y, t, (b, h, 0, 0))

    sequences = tk.range(i * batches, min(i * batches + batches, tk.dim("B")))
    tk.run(sequences, None, load, compute, store, None)


def _chain(u, kf, f, w, g, back):
    p, q = kf.shape[-2:]
    u = F.pad(u, (0, 0, 0, p - u.shape[-2])).to(f.dtype)
    t = ((f @ u) * w) @ g * kf / (p * q)
    return (back(f) @ (t @ back(g) * back(w))).real


def _terms(u, kf, f, w, g):
    kf, f, w, g = sizes_of(kf, f, w, g)
    return _chain(u.abs(), kf, f, w, g, lambda t: t)[..., : u.shape[-2], :]


@fftconv.reference(
    terms=_terms, roundings=0, special=False, constants={"exact": (True,), "batches": (8, 1)},
    sizes={"B": (1, 10), "H": (1, 3), "S": (1, 40), "P": (1, 40), "Q": (1, 40)},
)  # fmt: skip
def _fftconv_reference(u, kf, f, w, g):
    return _chain(u, kf, f, w, g, torch.conj)[..., : u.shape[-2], :]


# -- on the host -----------------------------------------------------------------------------------


def spectrum(k: torch.Tensor, n: int) -> torch.Tensor:
    """The transform, of length ``n``, of filters k: [H, at most n], as ``fftconv`` wants it.

    [H, P, Q] complex64: frequency k1 + P k2 at [k1, k2].
    """
    p, q = factors_of(n)
    return fft(F.pad(k.float(), (0, n - k.shape[-1])), (p, q)).reshape(-1, q, p).mT.contiguous()


def convolve(
    u: torch.Tensor, k: torch.Tensor, *, causal: bool = True, exact: bool = True
) -> torch.Tensor:
    """y[b, h, t] = sum over s of k[h, s] u[b, h, t - s]: causal, or around the end (circular).

    u: [B, H, N] of f32, bf16 or f16; k: [H, at most N] f32; y: as u. The causal one pads to twice
    the length, which costs nothing but rows that are known to be zero. Twice N, or N, is at most
    16,384 and has two factors of at most 128; N need not: u is padded with zeros then if causal.

    Raises:
        ValueError: for a filter longer than the input, or a length without such factors.
    """
    n = u.shape[-1]
    if k.dim() != 2 or k.shape[0] != u.shape[1] or k.shape[1] > n:
        raise ValueError(f"filters of shape {tuple(k.shape)} for an input of {tuple(u.shape)}")
    length = n
    if causal:
        length = 256
        while length < 2 * n:
            length *= 2
    if len(factors_of(length)) != 2:
        raise ValueError(f"a convolution of length {n} does not fit one tile of 128x128")
    p, q = factors_of(length)
    rows = -(-n // q)
    padded = F.pad(u, (0, rows * q - n)).unflatten(-1, (rows, q))
    y = fftconv(padded, spectrum(k, length), *tables(p, q, -1, u.device), exact=exact)
    return y.flatten(-2)[..., :n]
