"""Exact attention of one query a sequence to keys of which each sequence has its own number."""

import math

import torch

import tkpy as tk
from zoo.kernels.attention import LOG2E, LOWEST


@tk.kernel(where=["G >= 1", "H % G == 0", "0 <= seen <= M"])
def attention_decode(
    q: tk.Global["B H D"],
    k: tk.Global["B G M D"],
    v: tk.Global["B G M D"],
    seen: tk.Global["B", tk.i64],
    o: tk.Out["B H D"],
    scale: tk.f32 | None = None,
    *,
    cols: int = 64,
):
    """o = softmax(scale q k^T) v over the first seen[b] keys of sequence b; 0 where there is none.

    q, o: [B, H, D]; k, v: [B, G, M, D], one dtype of f32, bf16, f16; seen: [B]. Query head h reads
    key head h // (H / G). ``scale`` is D ** -0.5 unless given. The order of the keys does not
    matter, so that a ring of the last ones serves as it lies. The running maximum and sum of
    Milakov and Gimelshein (arXiv 1805.02867), in powers of two.
    """
    b, h = tk.grid("B", "H")
    row, g = (b, tk.at(h), 0), h // tk.dim("H // G")  # a tile of which one row lives
    n = tk.load(seen, (b,))
    to_bits = (tk.static("D") ** -0.5 if scale is None else scale) * LOG2E
    qt = tk.load(q, row, (16, "D"), until=h + 1)
    top, total, acc = tk.full(16, LOWEST), tk.zeros(16), tk.zeros(16, "D")
    for j in tk.range(tk.cdiv(n, cols)):
        kt = tk.load(k, (b, g, j, 0), (cols, "D"), until=n)
        vt = tk.load(v, (b, g, j, 0), (cols, "D"), until=n)
        s = tk.mma_ABt(qt, kt) * to_bits
        new_top = tk.detach(tk.row_max(s, top))
        p, decay = tk.exp2(s - new_top), tk.exp2(top - new_top)
        total = total * decay + tk.row_sum(p)
        acc = tk.mma_AB(tk.cast(p, v.dtype), vt, acc * decay)
        top = new_top
    tk.store(o, acc / tk.where(total == 0, 1.0, total), row, until=h + 1)


def _attend(q, k, v, seen, scale):
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    s = (k @ q[..., None])[..., 0] * (q.shape[-1] ** -0.5 if scale is None else scale)
    late = torch.arange(k.shape[2], device=q.device) >= seen[:, None, None]
    p = s.masked_fill(late, -math.inf).softmax(-1).nan_to_num()
    return s, p, v


def _terms(q, k, v, seen, scale=None):
    _, p, v = _attend(q, k, v, seen, scale)
    size, _, _ = _attend(q.abs(), k.abs(), v, seen, None if scale is None else abs(scale))
    moved = p * (1 + size)
    v = v.abs()
    return torch.einsum("bhm,bhmd->bhd", moved, v) + moved.sum(-1, keepdim=True) * torch.einsum(
        "bhm,bhmd->bhd", p, v
    )


@attention_decode.reference(
    terms=_terms,
    special=False,
    sizes={"B": (1, 3), "G": (1, 3), "H": (1, 6), "M": (1, 150), "D": (1, 80)},
)
def _reference(q, k, v, seen, scale=None):
    _, p, v = _attend(q, k, v, seen, scale)
    return torch.einsum("bhm,bhmd->bhd", p, v)
