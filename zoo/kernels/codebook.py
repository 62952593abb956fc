"""Sums of the vectors that belong to each code, and the moving averages made of them."""

from __future__ import annotations

import torch

import tkpy as tk
from zoo.kernels.vector_quantize import TINY, Metric

ROWS = 16


@tk.kernel(
    where=["D >= 1", "tiny > 0", "sorted(starts)", "0 <= starts <= M", "0 <= order < M"],
    num_warps=1,
)
def code_sums(
    x: tk.Global["H M D"],
    order: tk.Global["H M", tk.i64],
    starts: tk.Global["H K+1", tk.i64],
    sums: tk.Out["H K D", tk.f32],
    weights: tk.Global["H M", tk.f32] | None = None,
    total: tk.Out["H K", tk.f32] | None = None,
    tiny: tk.f32 = TINY,
    *,
    metric: Metric = "euclidean",
):
    """sums[h, k] = sum of w e over the vectors of code k, total[h, k] that of w.

    x: [H, M, D], f32, bf16 or f16; e is x, or x / max(|x|, ``tiny``) for the metric "cosine". The
    vectors of code k are x[h, order[h, i]] for starts[h, k] <= i < starts[h, k + 1]; ``owners``
    makes both of the codes' indices. weights: [H, M], f32, 1 unless given, of the vectors in that
    order. sums: [H, K, D], f32; total: [H, K], f32, only with weights.

    One program owns a code and adds its vectors in their order: the same bits in every run.
    """
    h, k = tk.grid("H", tk.dim("K"))
    first, last = tk.load(starts, (h, k)), tk.load(starts, (h, tk.at(k + 1)))
    sum_, count = tk.zeros("D"), 0.0
    for t in tk.range(tk.cdiv(last - first, ROWS)):
        which = tk.load(order, (h, tk.at(first + t * ROWS)), ROWS, until=last)
        e = tk.cast(tk.gather_rows(x, which, (h, None, 0), "D"), tk.f32)
        if metric == "cosine":
            e = e / tk.maximum(tk.sqrt(tk.row_sum(e * e)), tiny)
        if weights is not None:
            w = tk.load(weights, (h, tk.at(first + t * ROWS)), ROWS, until=last)
            e, count = e * tk.col_vec(w), count + tk.sum(w)
        sum_ = tk.col_sum(e, sum_)
    tk.store(sums, sum_, (h, k, 0))
    if total is not None:
        tk.store(total, count, (h, k))


def owners(index: torch.Tensor, codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``order`` and ``starts`` for ``code_sums``, of the codes' indices [H, M], -1 for none."""
    found, order = torch.sort(index, dim=-1, stable=True)
    bounds = torch.arange(codes + 1, device=index.device).expand(len(index), -1).contiguous()
    return order, torch.searchsorted(found, bounds)


def _sums(x, order, starts, weights, metric, tiny, size=False):
    e = x if metric == "euclidean" else torch.nn.functional.normalize(x, dim=-1, eps=tiny)
    h, m, d = x.shape
    k = starts.shape[1] - 1
    place = torch.arange(m).expand(h, m).contiguous()
    code = torch.searchsorted(starts, place, right=True) - 1
    used = (code >= 0) & (code < k)
    w = torch.where(used, 1.0 if weights is None else weights, 0).to(x)
    e, code = e.gather(1, order[..., None].expand(h, m, d)), code.clamp(0, max(k - 1, 0))
    if size:
        e, w = e.abs() * w.abs()[..., None], w.abs()
    else:
        e = e * w[..., None]
    e = torch.where(used[..., None], e, 0)
    sums = x.new_zeros(h, k, d).scatter_add(1, code[..., None].expand(h, m, d), e)
    return sums, x.new_zeros(h, k).scatter_add(1, code, w)


def _terms(x, order, starts, weights=None, tiny=TINY, metric="euclidean"):
    # Of many equal terms every addition rounds a sum that has grown: one more each time.
    sums, total = _sums(x, order, starts, weights, metric, tiny, True)
    return sums * (1 + x.shape[1] / 16), total * (1 + x.shape[1] / 16)


@code_sums.reference(
    terms=_terms,
    roundings=0,
    special=False,
    sizes={"H": (1, 2), "M": (1, 100), "K": (1, 40), "D": (1, 40)},
)
def _reference(x, order, starts, weights=None, tiny=TINY, metric="euclidean"):
    return _sums(x, order, starts, weights, metric, tiny)


@tk.kernel(where=["K >= 1", "D >= 1", "decay >= 0", "decay <= 1", "eps >= 0", "tiny > 0"])
def ema_codebook(
    n: tk.Global["H K", tk.f32],
    sums: tk.Global["H K D", tk.f32],
    whole: tk.Global["H", tk.f32],
    size: tk.InOut["H K", tk.f32],
    mean: tk.InOut["H K D", tk.f32],
    codes: tk.Out["H K D", tk.f32],
    decay: tk.f32 = 0.8,
    eps: tk.f32 = 1e-5,
    tiny: tk.f32 = TINY,
    *,
    metric: Metric = "euclidean",
    rows: int = 64,
):
    """size = decay size + (1 - decay) n; mean likewise with sums; codes = mean / smoothed size.

    n, size: [H, K], how many vectors a code has; sums, mean, codes: [H, K, D]; whole: [H], the sum
    of the new size over the codes, T. Smoothed is (size + eps) / (T + K eps) T; where that is 0
    the code is 0. For the metric "cosine" codes are then divided by max(|code|, ``tiny``).
    Razavi, van den Oord, Vinyals (arXiv 1906.00446, section 2.1), and of the smoothing
    Roy et al. (arXiv 1805.11063, section 3).
    """
    h, i = tk.grid("H", tk.cdiv("K", rows))
    total = tk.load(whole, h)
    count = tk.load(size, (h, i), rows) * decay + tk.load(n, (h, i), rows) * (1.0 - decay)
    e = tk.load(mean, (h, i, 0), (rows, "D")) * decay
    e += tk.load(sums, (h, i, 0), (rows, "D")) * (1.0 - decay)
    smooth = (count + eps) / (total + tk.dim("K") * eps) * total
    c = e * tk.col_vec(tk.where(smooth > 0.0, 1.0 / smooth, 0.0))
    if metric == "cosine":
        c = c / tk.maximum(tk.sqrt(tk.row_sum(c * c)), tiny)
    tk.store(size, count, (h, i))
    tk.store(mean, e, (h, i, 0))
    tk.store(codes, c, (h, i, 0))


@ema_codebook.reference(
    special=False,
    roundings=0,
    sizes={"H": (1, 2), "K": (1, 100), "D": (1, 40)},
)
def _ema_reference(n, sums, whole, size, mean, decay, eps, tiny=TINY, metric="euclidean"):
    size = size * decay + n * (1 - decay)
    mean = mean * decay + sums * (1 - decay)
    whole = whole[:, None]
    smooth = (size + eps) / (whole + size.shape[1] * eps) * whole
    codes = mean * torch.where(smooth > 0, 1 / smooth, 0)[..., None]
    if metric == "cosine":
        codes = torch.nn.functional.normalize(codes, dim=-1, eps=tiny)
    return codes, size, mean
