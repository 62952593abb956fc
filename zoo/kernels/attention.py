"""Exact attention, one pass over the keys."""

import math

import torch

import tkpy as tk

LOWEST = torch.finfo(torch.float32).min
LOG2E, LN2 = math.log2(math.e), math.log(2)


@tk.lcf(
    where=["G >= 1", "H % G == 0", "window >= 1"],
    consumer_warps=4,
    persistent=False,
    autocast=True,
    gpu={"f32": {"rows": 32, "cols": 16}},
    gpu_backward={"f32": {"rows": 16, "cols": 16}},
)
def attention(
    q: tk.Global["B H N D"],
    k: tk.Global["B G M D"],
    v: tk.Global["B G M D"],
    o: tk.Out["B H N D"],
    lse: tk.Out["B H N", tk.f32] | None = None,
    scale: tk.f32 | None = None,
    window: tk.i32 | None = None,
    *,
    causal: bool = False,
    rows: int = 64,
    cols: int = 64,
):
    """o = softmax(scale q k^T) v, and lse = log of the sum of exp(scale q k^T).

    q, o: [B, H, N, D]; k, v: [B, G, M, D]; lse: [B, H, N]. Query head h reads key head
    h // (H / G). ``scale`` is D ** -0.5 unless given. ``causal`` aligns the last query with the
    last key: query i sees keys up to i + M - N. ``window`` implies it, and leaves the last
    ``window`` of those, the query's own position included. A query that sees no key gives 0 and
    an lse of -inf, as FlashAttention does. Dao, "FlashAttention-2" (arXiv 2307.08691, algorithm
    1), in powers of two; the maximum starts at the lowest finite number, which spares the case
    of a tile without keys.
    """
    b, h, i = tk.tasks("B", "H", tk.cdiv("N", rows))
    g = h // tk.dim("H // G")
    first = i * rows + tk.dim("M - N")  # the last key that the first query sees
    start, until = 0, None
    if window is not None:
        window = min(window, tk.dim("M"))
        start = max(first + 1 - window, 0) // cols
    if causal or window is not None:
        until = tk.causal_limit(i, rows, cols, tk.dim("M - N"))
    to_bits = (tk.static("D") ** -0.5 if scale is None else scale) * LOG2E
    qt = tk.load(q, (b, h, i, 0), shape=(rows, "D"))

    def setup():
        return tk.full(rows, LOWEST), tk.zeros(rows), tk.zeros(rows, "D")

    @tk.ring(stages=2)
    def load_k(j):
        return tk.load(k, (b, g, j, 0), shape=(cols, "D"))

    @tk.ring(stages=2)
    def load_v(j):
        return tk.load(v, (b, g, j, 0), shape=(cols, "D"))

    def compute(j, top, total, acc, kt, vt):
        s = tk.fill_dead(tk.mma_ABt(qt, kt) * to_bits, -math.inf, axis=1)
        if until is not None:
            s = tk.causal(s, first, j * cols)
        if window is not None:
            s = tk.triu(s, 1 - window, first, j * cols, fill=-math.inf)
        new_top = tk.detach(tk.row_max(s, top))
        p, decay = tk.exp2(s - new_top), tk.exp2(top - new_top)
        total = total * decay + tk.row_sum(p)
        return new_top, total, acc * decay + tk.cast(p, v.dtype) @ vt

    def finish(top, total, acc):
        tk.store(o, acc / tk.where(total == 0, 1.0, total), (b, h, i, 0))
        if lse is not None:
            tk.store(lse, (top + tk.log2(total)) * LN2, (b, h, i))

    keys = tk.range(start, tk.cdiv("M", cols), until=until)
    tk.run(keys, setup, (load_k, load_v), compute, finish)


def _scores(q, k, scale, window, causal):
    n, m = q.shape[2], k.shape[2]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    last = torch.arange(n, device=q.device)[:, None] + m - n
    key = torch.arange(m, device=q.device)
    seen = torch.ones_like(last * key, dtype=torch.bool)
    if causal or window is not None:
        seen = key <= last
    if window is not None:
        seen = seen & (key > last - window)
    return s, seen


def _attention_terms(q, k, v, scale=None, window=None, *, causal=False, rows=64, cols=64):
    s, seen = _scores(q, k, scale, window, causal)
    size, _ = _scores(q.abs(), k.abs(), None if scale is None else abs(scale), window, causal)
    p = s.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num()
    v = v.abs().repeat_interleave(q.shape[1] // v.shape[1], 1)
    # An error d of a score moves its weight p by p d, and all others through the normaliser.
    moved = p * (1 + size)
    o = moved @ v + moved.sum(-1, keepdim=True) * (p @ v)
    return o, s.masked_fill(~seen, 0).abs().amax(-1) + (p * size).sum(-1) + 1


@attention.reference(
    terms=_attention_terms,
    special=False,  # infinite scores have no maximum to subtract, infinite values meet weights of 0
    sizes={"B": (1, 2), "G": (1, 3), "H": (1, 6), "N": (1, 150), "M": (1, 150), "D": (1, 128)},
)
def _attention_reference(q, k, v, scale=None, window=None, *, causal=False, rows=64, cols=64):
    s, seen = _scores(q, k, scale, window, causal)
    s = s.masked_fill(~seen, -math.inf)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    # One division by the sum of weights, as the kernel: then what a row's gradients have in common,
    # the product of o and its gradient, is a sum of the terms that the kernel rounds.
    p = torch.exp(s - s.amax(-1, keepdim=True).clamp(min=LOWEST).detach())
    total = p.sum(-1, keepdim=True)
    return (p @ v) / torch.where(total == 0, 1.0, total), s.logsumexp(-1)
