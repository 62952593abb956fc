"""Cross entropy of a linear layer's outputs, none of which is ever stored."""

import math

import torch

import tkpy as tk

LOWEST = torch.finfo(torch.float32).min


@tk.lcf(
    where=["ignore < 0", "softcap > 0", "smoothing >= 0", "smoothing <= 1"],
    stages=3,
    persistent=False,
    autocast=True,
    gpu={"f32": {"rows": 64, "cols": 32, "depth": 16}},
)
def linear_cross_entropy(
    x: tk.Global["M D"],
    weight: tk.Global["V D"],
    target: tk.Global["M", tk.i64],
    loss: tk.Out["M", tk.f32],
    lse: tk.Out["M", tk.f32] | None = None,
    bias: tk.Global["V"] | None = None,
    softcap: tk.f32 | None = None,
    smoothing: tk.f32 | None = None,
    z_loss: tk.f32 | None = None,
    ignore: tk.i32 = -100,
    *,
    rows: int = 128,
    cols: int = 128,
    depth: int = 64,
):
    """loss[m] = lse[m] - z[m, target[m]] for z = x weight^T + bias and lse = log sum exp z[m].

    x: [M, D]; weight: [V, D]; bias: [V]; one dtype of f32, bf16, f16; target: [M], i64; loss,
    lse: [M], f32. The logits z are fp32 tiles; no more than one of ``rows`` x ``cols`` exists of
    a program at a time, made of inner sums over ``depth`` of D.

    ``softcap``: z becomes softcap tanh(z / softcap), as in Gemma 2. ``smoothing``: that share of
    the target is spread evenly over the classes, as ``label_smoothing`` of PyTorch. ``z_loss``:
    the loss grows by z_loss lse^2. A target of ``ignore`` gives 0, as in PyTorch; one that is no
    class gives NaN. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (arXiv
    2411.09009, algorithm 1), with the running maximum of arXiv 1805.02867.
    """
    i = tk.tasks(tk.cdiv("M", rows))
    label = tk.load(target, i, rows)
    known = (label >= 0) & (label < tk.dim("V"))
    mine = tk.col_vec(tk.cast(tk.where(known, label, -1), tk.i32))
    top, total = tk.full(rows, LOWEST), tk.zeros(rows)
    picked, spread = tk.zeros(rows), tk.zeros(rows)

    def setup():
        return tk.zeros(rows, cols)

    def load(d):
        return tk.load(x, (i, d), (rows, depth)), tk.load(weight, (j, d), (cols, depth))

    def compute(d, z, xt, wt):
        return tk.mma_ABt(xt, wt, z)

    for j in tk.range(tk.cdiv("V", cols)):
        z = tk.run(tk.cdiv("D", depth), setup, load, compute)
        if bias is not None:
            z += tk.load(bias, j, cols, dtype=tk.f32)
        # The classes beyond the last are dead columns of the weight, and so of z.
        z = z if softcap is None else tk.tanh(z / softcap) * softcap
        new_top = tk.detach(tk.row_max(z, top))
        total = total * tk.exp(top - new_top) + tk.row_sum(tk.exp(z - new_top))
        column = tk.broadcast_col(tk.iota(cols, j * cols), rows)
        picked += tk.row_sum(tk.where(column == mine, z, 0.0))
        if smoothing is not None:
            spread += tk.row_sum(z)
        top = new_top
    entropy = top + tk.log(total)
    if smoothing is not None:
        picked = picked * (1.0 - smoothing) + spread * (smoothing / tk.dim("V"))
    value = entropy - picked
    value = value if z_loss is None else value + z_loss * entropy * entropy
    wrong = tk.where(label == ignore, 0.0, tk.full(rows, math.nan))
    tk.store(loss, tk.where(known, value, wrong), i)
    if lse is not None:
        tk.store(lse, entropy, i)


def _logits(x, weight, bias, softcap):
    z = x @ weight.mT
    z = z if bias is None else z + bias
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def _terms(x, weight, target, bias=None, softcap=None, smoothing=None, z_loss=None, ignore=-100):
    size = _logits(x.abs(), weight.abs(), None if bias is None else bias.abs(), None)
    z = _logits(x, weight, bias, softcap)
    _, lse = _reference(x, weight, target, bias, softcap, smoothing, z_loss, ignore)
    # An error d of a logit moves each sum by d at most; tanh is nowhere steeper than 1.
    moved = size.amax(-1) + lse.abs() + z.abs().amax(-1) + 1
    share = 0 if smoothing is None else abs(smoothing)
    total = moved * (2 + 2 * share)
    if z_loss is not None:
        total = total + abs(z_loss) * (2 * lse.abs() + moved) * moved
    return torch.where(target == ignore, 0, total), moved


@linear_cross_entropy.reference(
    terms=_terms,
    roundings=0,
    special=False,  # an infinite input gives logits of inf - inf
    sizes={"M": (1, 150), "V": (1, 300), "D": (1, 150)},
)
def _reference(
    x, weight, target, bias=None, softcap=None, smoothing=None, z_loss=None, ignore=-100
):
    z = _logits(x, weight, bias, softcap)
    known = (target >= 0) & (target < z.shape[-1])
    lse = z.logsumexp(-1)
    picked = z.gather(-1, torch.where(known, target, 0)[:, None])[:, 0]
    if smoothing is not None:
        picked = (1 - smoothing) * picked + smoothing * z.mean(-1)
    value = lse - picked if z_loss is None else lse - picked + z_loss * lse.square()
    loss = torch.where(target == ignore, 0, math.nan).to(lse)
    return torch.where(known, value, loss), lse
