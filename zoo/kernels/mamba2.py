"""Mamba-2's state-space duality: linear attention with a decay of its own at every position."""

import math

import torch

import tkpy as tk
from zoo.kernels.chunked import advance, begin, end


@tk.lcsf(
    where=["G >= 1", "H % G == 0", "a <= 0"],
    stages=2,
    consumer_groups=2,
    autocast=True,
    gpu={"f32": {"chunk": 16, "cols": 16}},
    gpu_backward={t: {"chunk": 16, "cols": 32} for t in ("bf16", "f16")},
)
def mamba2(
    x: tk.Global["B H N P"],
    a: tk.Global["B H N", tk.f32],
    b: tk.Global["B G N S"],
    c: tk.Global["B G N S"],
    y: tk.Out["B H N P"],
    state: tk.Global["B H S P", tk.f32] | None = None,
    new_state: tk.Out["B H S P", tk.f32] | None = None,
    *,
    chunk: int = 64,
    cols: int = 64,
):
    """y[i] = sum over j <= i of exp(a[j + 1] + ... + a[i]) (c[i] . b[j]) x[j].

    x, y: [B, H, N, P]; b, c: [B, G, N, S], shared by H / G heads each, H % G == 0; one dtype of
    f32, bf16, f16. a: [B, H, N], f32, the logarithm of the decay, never above 0; -inf forgets all
    that came before, as at the start of another document. state: [B, H, S, P], sum over j of
    exp(a[j + 1] + ... + a[-1]) b[j] x[j]^T of what came before (zeros if not given);
    ``new_state=True`` asks for that after position N - 1, so that a sequence cut anywhere gives
    the same result. In Mamba-2's terms x is dt x and a is dt A; softplus, D and the gate are
    outside. Sums of a run from j to i, each by itself: differences of running sums would lose
    what is small beside a large decay. Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060,
    section 6).
    """
    n, h, p = tk.tasks("B", "H", tk.cdiv("P", cols))
    g = h // tk.dim("H // G")

    def setup():
        return begin(state, (n, h, 0, p), "S", cols)

    def load(i):
        ct, bt = tk.load(c, (n, g, i, 0), (chunk, "S")), tk.load(b, (n, g, i, 0), (chunk, "S"))
        later = tk.load(a, (n, h, tk.at(i * chunk + 1)), chunk, until=(i + 1) * chunk)
        xt = tk.load(x, (n, h, i, p), (chunk, cols))
        return ct, bt, xt, tk.load(a, (n, h, i), chunk), later

    def compute(i, s, ct, bt, xt, at, later):
        steps = tk.tril(tk.broadcast_row(at, chunk), -1)
        within = tk.exp(tk.make_causal(tk.cumsum(steps, axis=0), fill=-math.inf))
        before = tk.exp(tk.cumsum(at))
        after = tk.exp(tk.cumsum(tk.fill_dead(later, 0.0), reverse=True))
        whole = tk.exp(tk.sum(at))
        yt, s = advance(ct, bt, xt, within, tk.col_vec(before), tk.col_vec(after), whole, s)
        return s, yt

    def store(i, yt):
        tk.store(y, yt, (n, h, i, p))

    def finish(s):
        end(new_state, s, (n, h, 0, p))

    tk.run(tk.cdiv("N", chunk), setup, load, compute, store, finish)


def _between(a):
    """[..., i, j]: a[j] + ... + a[i - 1] for j <= i in 0 .. N, else -inf."""
    n = a.shape[-1]
    rows = a.new_zeros(*a.shape[:-1], n + 1, n + 1)
    rows[..., 1:, :] = a[..., None]
    i, j = torch.arange(n + 1, device=a.device)[:, None], torch.arange(n + 1, device=a.device)
    sums = torch.where(i > j, rows, 0).cumsum(-2)
    return torch.where(i >= j, sums, -math.inf)


def _ssd(x, a, b, c, state, terms):
    """(y, new_state), or with ``terms`` the sums of absolute values that they are made of."""
    b, c = (t.repeat_interleave(x.shape[1] // t.shape[1], 1) for t in (b, c))
    sums = _between(a)
    weight = sums.exp()
    if terms:  # an error d of an exponent moves its weight by d
        weight = weight * (1 - torch.where(sums.isfinite(), sums, 0))
    y = (c @ b.mT * weight[..., 1:, 1:]) @ x
    after = (b * weight[..., -1, 1:, None]).mT @ x
    if state is not None:
        y = y + c @ state * weight[..., 1:, :1]
        after = after + state * weight[..., -1, :1, None]
    return y, after


def _terms(x, a, b, c, state=None):
    x, b, c, state = (None if t is None else t.abs() for t in (x, b, c, state))
    return _ssd(x, a, b, c, state, True)


@mamba2.reference(
    terms=_terms,
    special=False,  # the state's products turn one infinity into inf - inf
    c=16,  # each of up to 64 products is added to the sum so far
    sizes={"B": (1, 2), "H": (1, 6), "G": (1, 3), "N": (1, 150), "P": (1, 80), "S": (1, 80)},
)
def _reference(x, a, b, c, state=None):
    return _ssd(x, a, b, c, state, False)
