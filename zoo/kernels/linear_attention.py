"""Linear attention with a constant decay for each head."""

import math

import torch

import tkpy as tk
from zoo.kernels.chunked import advance, begin, end


@tk.lcsf(
    where=["slope >= 0"],
    stages=2,
    consumer_warps=8,
    persistent=False,
    autocast=True,
    gpu={"f32": {"chunk": 16, "cols": 16}},
    gpu_backward={t: {"chunk": 16, "cols": 32} for t in ("bf16", "f16")},
)
def linear_attention(
    q: tk.Global["B H N F"],
    k: tk.Global["B H N F"],
    v: tk.Global["B H N V"],
    slope: tk.Global["H", tk.f32],
    y: tk.Out["B H N V"],
    state: tk.Global["B H F V", tk.f32] | None = None,
    new_state: tk.Out["B H F V", tk.f32] | None = None,
    *,
    chunk: int = 64,
    cols: int = 64,
):
    """y[i] = sum over j <= i of exp(-slope (i - j)) (q[i] . k[j]) v[j], slope that of the head.

    q, k: [B, H, N, F]; v, y: [B, H, N, V], one dtype of f32, bf16, f16; slope: [H], not
    negative. state: [B, H, F, V], what came before, sum over j of exp(-slope (last - j)) k[j]
    v[j]^T (zeros if not given); ``new_state=True`` asks for that after position N - 1, so that a
    sequence cut anywhere gives the same result. Nothing is normalised and q is not scaled. A
    program does ``cols`` columns of v in chunks of ``chunk`` rows: the decayed quadratic form
    within a chunk, the state for all before it. Every exponent is zero or negative. Qin et al.,
    "Lightning Attention-2" (arXiv 2401.04658, algorithm 1).
    """
    b, h, c = tk.tasks("B", "H", tk.cdiv("V", cols))
    rate = -tk.load(slope, h)
    place = tk.iota(chunk)
    distance = tk.cast(tk.col_vec(place) - tk.row_vec(place), tk.f32)
    within = tk.exp(tk.make_causal(distance * rate, fill=-math.inf))
    place = tk.col_vec(tk.cast(place, tk.f32))

    def setup():
        return begin(state, (b, h, 0, c), "F", cols)

    def load(i):
        qt, kt = tk.load(q, (b, h, i, 0), (chunk, "F")), tk.load(k, (b, h, i, 0), (chunk, "F"))
        return qt, kt, tk.load(v, (b, h, i, c), (chunk, cols))

    def compute(i, s, qt, kt, vt):
        count = min(tk.dim("N") - i * chunk, chunk)
        before, after = tk.exp((place + 1.0) * rate), tk.exp((count - 1 - place) * rate)
        yt, s = advance(qt, kt, vt, within, before, after, tk.exp(count * rate), s)
        return s, yt

    def store(i, yt):
        tk.store(y, yt, (b, h, i, c))

    def finish(s):
        end(new_state, s, (b, h, 0, c))

    tk.run(tk.cdiv("N", chunk), setup, load, compute, store, finish)


def _decayed(q, k, v, slope, state, terms):
    """(y, new_state), or with ``terms`` the sums of absolute values that they are made of."""
    n = q.shape[2]
    place = torch.arange(n + 1, device=q.device)
    x = (place[1:, None] - place) * slope[:, None, None]  # to position i from j - 1
    weight = torch.exp(-x.masked_fill(x < 0, math.inf)) * (place[1:, None] >= place)
    if terms:  # an error d of an exponent moves its weight by d
        weight = weight * (1 + x.clamp(min=0))
    y = (q @ k.mT * weight[:, :, 1:]) @ v
    last = weight[:, -1, 1:, None] if n else torch.zeros_like(k[:1, :, :, :1])
    after = (k * last).mT @ v
    if state is not None:
        y = y + q @ state * weight[:, :, :1]
        after = after + state * (weight[:, -1, :1, None] if n else 1)
    return y, after


def _terms(q, k, v, slope, state=None):
    q, k, v, state = (None if x is None else x.abs() for x in (q, k, v, state))
    return _decayed(q, k, v, slope, state, True)


@linear_attention.reference(
    terms=_terms,
    special=False,  # the state's products turn one infinity into inf - inf
    c=16,  # each of up to 64 products is added to the sum so far
    sizes={"B": (1, 2), "H": (1, 3), "N": (1, 150), "F": (1, 80), "V": (1, 80)},
)
def _reference(q, k, v, slope, state=None):
    return _decayed(q, k, v, slope, state, False)
