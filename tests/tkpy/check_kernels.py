"""Kernels that between them use every feature of signatures that ``check`` derives inputs from."""

from typing import Literal

import torch

import tkpy as tk


@tk.kernel
def softmax(x: tk.Global["M N"], y: tk.Out["M N"], *, rows: int = 16):
    """Rows as wide as a tile: N is a compile-time size."""
    i = tk.grid(tk.cdiv("M", rows))
    xt = tk.load(x, (i, 0), shape=(rows, "N"), dtype=tk.f32)
    e = tk.exp(xt - tk.row_max(xt))
    tk.store(y, e / tk.row_sum(e), (i, 0))


@softmax.reference(roundings=0, sizes={"N": (1, 70)})
def _softmax(x):
    return x.softmax(-1)


@tk.kernel(where=["0 <= labels < V"])
def pick(
    x: tk.Global["N V"],
    labels: tk.Global["N", tk.i32],
    y: tk.Out["N", tk.f32],
    *,
    rows: int = 16,
    sign: Literal[1, -1] = 1,
):
    """Integers with a range that another size bounds; a Literal."""
    i = tk.grid(tk.cdiv("N", rows))
    label = tk.col_vec(tk.load(labels, i, shape=rows))
    best = tk.zeros(rows)
    for j in tk.range(tk.cdiv("V", 32)):
        xt = tk.load(x, (i, j), shape=(rows, 32), dtype=tk.f32)
        column = tk.broadcast_col(tk.iota(32) + j * 32, rows)
        best += tk.row_sum(tk.where(column == tk.broadcast_row(label, 32), xt, 0.0))
    tk.store(y, best if sign == 1 else -best, i)


@pick.reference(roundings=0)
def _pick(x, labels, sign):
    return sign * x.gather(1, labels.long()[:, None])[:, 0]


@tk.kernel(where=["sorted(cu)", "cu[0] == 0", "cu[-1] == T"])
def segment_sum(
    x: tk.Global["T D"],
    cu: tk.Global["S+1", tk.i32],
    y: tk.Out["S D"],
    count: tk.Out["S", tk.i32] | None = None,
):
    """Packed sequences, an optional integer output."""
    s = tk.grid("S")
    begin, end = tk.load(cu, tk.at(s)), tk.load(cu, tk.at(s + 1))
    total = tk.zeros("D")
    for j in tk.range(tk.cdiv(end - begin, 16)):
        here = (tk.at(begin + j * 16), 0)
        total += tk.col_sum(tk.load(x, here, shape=(16, "D"), until=end, dtype=tk.f32))
    tk.store(y, total, (s, 0))
    if count is not None:
        tk.store(count, end - begin, tk.at(s))


@segment_sum.reference(roundings=0, sizes={"D": (1, 40), "S": (0, 5), "T": (0, 70)})
def _segment_sum(x, cu):
    pairs = list(zip(cu.tolist(), cu.tolist()[1:], strict=False))
    sums = [x[a:b].sum(0) for a, b in pairs]
    counts = torch.tensor([b - a for a, b in pairs], dtype=torch.int32)
    return torch.stack(sums) if sums else x.new_zeros(0, x.shape[1]), counts


@tk.kernel(where=["H % G == 0", "eps > 0"])
def update(
    state: tk.InOut["H N", tk.f32],
    x: tk.Global["G N"],
    scale: tk.Global["N", "W"] | None = None,
    eps: tk.f32 = 1e-3,
    shift: tk.i32 | None = None,
    *,
    twice: bool = False,
):
    """A tensor changed in place, two type variables, grouped heads, optional everything."""
    h, j = tk.grid("H", tk.cdiv("N", 32))
    xt = tk.load(x, (h // tk.dim("H // G"), j), shape=32, dtype=tk.f32)
    if scale is not None:
        xt = xt * tk.load(scale, j, shape=32, dtype=tk.f32)
    new = tk.load(state, (h, j), shape=32) * 0.5 + xt / (tk.abs(xt) + eps)
    if shift is not None:
        new = new + tk.cast(tk.iota(32) + j * 32 + shift, tk.f32)
    tk.store(state, new + new if twice else new, (h, j))


@update.reference(roundings=0)
def _update(state, x, scale, eps, shift, twice):
    x = x.repeat_interleave(state.shape[0] // x.shape[0], 0)
    x = x if scale is None else x * scale
    new = state * 0.5 + x / (x.abs() + eps)
    new = new if shift is None else new + torch.arange(x.shape[-1]) + shift
    return new * 2 if twice else new


@tk.kernel(where=["distinct(rows)", "0 <= rows < N", "0 < gate <= 1"])
def scatter(
    x: tk.Global["K D"],
    rows: tk.Global["K", tk.i64],
    gate: tk.Global["K"],
    base: tk.Global["N D"],
    y: tk.Out["N D", tk.f32],
):
    """Atomic additions into an output that starts from zero; floats with a range; i64."""
    i = tk.grid(tk.cdiv("K", 16))
    gt = tk.col_vec(tk.load(gate, i, shape=16, dtype=tk.f32))
    xt = tk.load(x, (i, 0), shape=(16, "D"), dtype=tk.f32) * tk.broadcast_row(gt, "D")
    tk.scatter_add_rows(y, xt, tk.load(rows, i, shape=16), (0, 0))


@scatter.reference(roundings=0, sizes={"D": (1, 40)})
def _scatter(x, rows, gate, base):
    return torch.zeros_like(base).index_put((rows,), x * gate[:, None])


@tk.kernel(where=["N >= 1"])
def largest(x: tk.Global["M N"], y: tk.Out["M"], place: tk.Out["M", tk.i32]):
    """An integer output, of equals the first."""
    i = tk.grid(tk.cdiv("M", 16))
    xt = tk.load(x, (i, 0), shape=(16, "N"), dtype=tk.f32)
    tk.store(y, tk.row_max(xt), i)
    tk.store(place, tk.row_argmax(xt), i)


@largest.reference(roundings=0, sizes={"N": (1, 70)}, special=False)
def _largest(x):
    return x.amax(-1), x.argmax(-1).int()
