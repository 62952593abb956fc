"""Discrete Fourier transforms by Monarch factors: products with small DFT matrices and twiddles.

With N = P Q, n = Q n1 + n2 and k = k1 + P k2,

    X[k1 + P k2] = sum over n2 of g[n2, k2] w[k1, n2] (sum over n1 of f[k1, n1] x[Q n1 + n2])

where f and g are the DFT matrices of P and Q and w[k1, n2] = exp(-2 pi i k1 n2 / N) (Bailey, "FFTs
in external or hierarchical memory", 1990; Dao et al., "Monarch", arXiv 2204.00595; Fu et al.,
"FlashFFTConv", arXiv 2311.05908). A third factor is split off in front in the same way. Matrices
and twiddles are made in fp64 on the host and rounded once, so that the error of a transform is
that of its sums: below eps sum |x| in every element, and 1e-7 to 4e-7 of the root mean square.
"""

from __future__ import annotations

import functools
import math

import torch

import tkpy as tk

LONGEST_SIDE = 128  # of a tile; two such sides make 16,384


@tk.kernel
def fft_columns(
    x: tk.Global["B P M", tk.c64],
    f: tk.Global["P P", tk.c64],
    w: tk.Global["P M", tk.c64],
    z: tk.Out["B P M", tk.c64],
    *,
    cols: int = 64,
):
    """z = (f x) * w: the first of three factors. All complex64, products in fp32."""
    b, j = tk.grid("B", tk.cdiv("M", cols))
    xt = tk.load(x, (b, 0, j), shape=("P", cols))
    ft = tk.load(f, (0, 0), shape=("P", "P"))
    tk.store(z, tk.mm_AB(ft, xt) * tk.load(w, (0, j), shape=("P", cols)), (b, 0, j))


@tk.kernel
def fft_tiles(
    x: tk.Global["B L P Q", tk.c64],
    f: tk.Global["P P", tk.c64],
    w: tk.Global["P Q", tk.c64],
    g: tk.Global["Q Q", tk.c64],
    y: tk.Out["B Q P L", tk.c64],
):
    """y[b, :, :, l] = transpose of ((f x[b, l]) * w) g: the other two. All complex64, in fp32.

    L is the first factor, or 1. The transpose is the order in which frequencies come out.
    """
    b, i = tk.grid("B", "L")
    ft, gt = tk.load(f, (0, 0), shape=("P", "P")), tk.load(g, (0, 0), shape=("Q", "Q"))
    t = tk.mm_AB(ft, tk.load(x, (b, i, 0, 0), shape=("P", "Q")))
    t = tk.mm_AB(t * tk.load(w, (0, 0), shape=("P", "Q")), gt)
    tk.store(y, t, (b, 0, 0, i), axis=(2, 1))


def sizes_of(*values):
    """|re| + |im| of each: what an error of a complex product is relative to."""
    return [t.real.abs() + t.imag.abs() for t in values]


def _columns_terms(x, f, w):
    x, f, w = sizes_of(x, f, w)
    out = (f @ x) * w
    return torch.complex(out, out)


@fft_columns.reference(
    terms=_columns_terms, roundings=0, special=False, constants={"cols": (64, 16)},
    sizes={"B": (1, 3), "P": (1, 20), "M": (1, 100)},
)  # fmt: skip
def _columns_reference(x, f, w):
    return (f @ x) * w


def _tiles_terms(x, f, w, g):
    x, f, w, g = sizes_of(x, f, w, g)
    out = (((f @ x) * w) @ g).permute(0, 3, 2, 1).contiguous()
    return torch.complex(out, out)


@fft_tiles.reference(
    terms=_tiles_terms, roundings=0, special=False,
    sizes={"B": (1, 3), "L": (1, 4), "P": (1, 40), "Q": (1, 40)},
)  # fmt: skip
def _tiles_reference(x, f, w, g):
    return (((f @ x) * w) @ g).permute(0, 3, 2, 1).contiguous()


# -- on the host -----------------------------------------------------------------------------------


def roots(rows: int, cols: int, n: int, sign: int) -> torch.Tensor:
    """[rows, cols] complex128: exp(sign 2 pi i r c / n), with r c reduced modulo n exactly."""
    turns = torch.arange(rows)[:, None] * torch.arange(cols)[None, :] % n
    angle = turns.double() * (sign * 2 * math.pi / n)
    return torch.complex(angle.cos(), angle.sin())


@functools.lru_cache(maxsize=64)
def tables(p: int, q: int, sign: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """(f, w, g) of two factors, complex64, for a transform with exp(sign 2 pi i k n / N)."""
    made = (roots(p, p, p, sign), roots(p, q, p * q, sign), roots(q, q, q, sign))
    return tuple(t.to(torch.complex64).to(device) for t in made)


def factors_of(n: int) -> tuple[int, ...]:
    """Two factors of ``n``, or three, each at most 128, as equal as they can be.

    Raises:
        ValueError: if ``n`` has none, as 131 or 2 * 131.
    """
    if n < 1:
        raise ValueError(f"a transform of length {n}")
    low = [p for p in range(1, LONGEST_SIDE + 1) if n % p == 0]
    pairs = [(p, n // p) for p in low if p <= n // p <= LONGEST_SIDE]
    if pairs:
        return pairs[-1]
    threes = [(p, q, n // (p * q)) for p in low for q in low if n % (p * q) == 0 and p <= q]
    threes = [t for t in threes if t[1] <= t[2] <= LONGEST_SIDE]
    if not threes:
        raise ValueError(
            f"a transform of length {n}: it has no two or three factors of at most {LONGEST_SIDE}; "
            "pad it, for example to a power of two"
        )
    return min(threes, key=lambda t: t[2] - t[0])


def fft(
    x: torch.Tensor, factors: tuple[int, ...] | None = None, *, inverse: bool = False
) -> torch.Tensor:
    """The discrete Fourier transform of the last dimension, as ``torch.fft.fft`` (``ifft``).

    x: [..., N], real or complex64; complex64 comes back, computed in fp32. factors: two or three
    whose product is N; by default as equal as they can be, each at most 128.

    Raises:
        ValueError: if the factors do not multiply to N, or N has none.
    """
    n = x.shape[-1] if x.dim() else 0
    factors = factors_of(n) if factors is None else tuple(factors)
    if len(factors) not in (2, 3) or min(factors) < 1 or math.prod(factors) != n:
        raise ValueError(f"factors {factors} of a transform of length {n}: two or three of them")
    sign = 1 if inverse else -1
    first, (p, q) = factors[:-2], factors[-2:]
    lead = first[0] if first else 1
    z = x.to(torch.complex64).reshape(-1, lead, p * q)
    if first:
        f = roots(lead, lead, lead, sign).to(torch.complex64).to(x.device)
        w = roots(lead, p * q, n, sign).to(torch.complex64).to(x.device)
        z = fft_columns(z, f, w)
    f, w, g = tables(p, q, sign, x.device)
    w = w / n if inverse else w
    return fft_tiles(z.reshape(-1, lead, p, q), f, w, g).reshape(x.shape)
