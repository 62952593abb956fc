"""Cross entropy of logits against class numbers, in one pass over the classes."""

import torch

import tkpy as tk

LOWEST = torch.finfo(torch.float32).min


@tk.kernel(where=["ignore < 0"], num_warps=8)
def cross_entropy(
    logits: tk.Global["M V"],
    target: tk.Global["M", tk.i64],
    loss: tk.Out["M", tk.f32],
    lse: tk.Out["M", tk.f32] | None = None,
    ignore: tk.i32 = -100,
    *,
    rows: int = 16,
    cols: int = 512,
):
    """loss[m] = lse[m] - logits[m, target[m]], with lse[m] = log of the sum of exp(logits[m]).

    logits: [M, V], f32, bf16 or f16; target: [M], i64; loss, lse: [M], f32 whatever the dtype of
    the logits. A target of ``ignore`` gives 0, as in ``torch.nn.functional.cross_entropy`` with
    ``reduction="none"``; one that is no class gives NaN. The logits are read once, with the
    running maximum and sum of Milakov and Gimelshein (arXiv 1805.02867, algorithm 3), and no
    probability is stored.
    """
    i = tk.grid(tk.cdiv("M", rows))
    label = tk.load(target, i, rows)
    known = (label >= 0) & (label < tk.dim("V"))
    mine = tk.col_vec(tk.cast(tk.where(known, label, -1), tk.i32))
    width = min(cols, tk.cdiv("V", 16) * 16)
    top, total, picked = tk.full(rows, LOWEST), tk.zeros(rows), tk.zeros(rows)
    for j in tk.range(tk.cdiv("V", width)):
        x = tk.load(logits, (i, j), (rows, width), dtype=tk.f32)
        new_top = tk.detach(tk.row_max(x, top))
        total = total * tk.exp(top - new_top) + tk.row_sum(tk.exp(x - new_top))
        column = tk.broadcast_col(tk.iota(width, j * width), rows)
        picked += tk.row_sum(tk.where(column == mine, x, 0.0))
        top = new_top
    entropy = top + tk.log(total)
    wrong = tk.where(label == ignore, 0.0, tk.full(rows, float("nan")))
    tk.store(loss, tk.where(known, entropy - picked, wrong), i)
    if lse is not None:
        tk.store(lse, entropy, i)


def _terms(logits, target, ignore=-100):
    _, lse = _reference(logits, target, ignore)
    # Each logit's distance to the maximum is rounded, each weight and each partial sum.
    size = logits.abs().amax(-1) + lse.abs()
    return torch.where(target == ignore, 0, size + 1), size + 1


@cross_entropy.reference(terms=_terms, roundings=0, sizes={"M": (1, 70), "V": (1, 300)})
def _reference(logits, target, ignore=-100):
    known = (target >= 0) & (target < logits.shape[-1])
    lse = logits.logsumexp(-1)
    picked = logits.gather(-1, torch.where(known, target, 0)[:, None])[:, 0]
    loss = torch.where(target == ignore, 0, float("nan")).to(lse)
    return torch.where(known, lse - picked, loss), lse
