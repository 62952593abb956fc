"""BASED's linear attention without a state, for sequences too short for the state to pay."""

import tkpy as tk
from zoo.kernels.based import _based_reference, _based_terms


@tk.function
def weigh(qt, kt, vt, row, col, total, acc):
    """The sums of weights and of weighted values with those of a tile of keys added."""
    precision = "ieee" if vt.dtype == tk.f32 else "tf32"
    s = tk.mma_ABt(qt, kt) * tk.static("F") ** -0.5
    a = tk.tril(1 + s + s * s / 2, 0, row, col)
    return total + tk.row_sum(a), tk.mma_AB(a, tk.cast(vt, tk.f32), acc, precision=precision)


@tk.kernel(where=["1 <= F", "F <= 32"], num_warps=4, autocast=True)
def taylor_quadratic(
    q: tk.Global["B H N F"],
    k: tk.Global["B H N F"],
    v: tk.Global["B H N V"],
    y: tk.Out["B H N V"],
    *,
    rows: int = 64,
    cols: int = 64,
):
    """y[i] = sum over j <= i of a(i, j) v[j], divided by the sum of a(i, j) = 1 + s + s^2 / 2.

    q, k: [B, H, N, F]; v, y: [B, H, N, V], one dtype of f32, bf16, f16; s = q[i] . k[j] / sqrt(F).
    ``zoo.kernels.based`` without its state: N (F + V) / 2 multiply-adds a position instead of 2 F^2
    V. Arora et al. (arXiv 2402.18668, section 4).
    """
    b, h, i = tk.grid("B", "H", tk.cdiv("N", rows))
    qt = tk.load(q, (b, h, i, 0), (rows, "F"))
    total, acc = tk.zeros(rows), tk.zeros(rows, "V")
    for j in tk.range(tk.cdiv("N", cols), until=tk.causal_limit(i, rows, cols)):
        kt, vt = tk.load(k, (b, h, j, 0), (cols, "F")), tk.load(v, (b, h, j, 0), (cols, "V"))
        total, acc = weigh(qt, kt, vt, i * rows, j * cols, total, acc)
    tk.store(y, acc / total, (b, h, i, 0))


@tk.kernel(where=["1 <= F", "F <= 32", "N <= 64"], num_warps=4, autocast=True)
def taylor_block(
    q: tk.Global["B H N F"],
    k: tk.Global["B H N F"],
    v: tk.Global["B H N V"],
    y: tk.Out["B H N V"],
):
    """``taylor_quadratic`` of at most 64 positions: one tile, so that its backward has no loop."""
    b, h = tk.grid("B", "H")
    qt, kt, vt = [tk.load(x, (b, h, 0, 0), (64, n)) for x, n in ((q, "F"), (k, "F"), (v, "V"))]
    total, acc = weigh(qt, kt, vt, 0, 0, tk.zeros(64), tk.zeros(64, "V"))
    tk.store(y, acc / total, (b, h, 0, 0))


def _terms(q, k, v):
    return _based_terms(q, k, v)[0]


def _reference(q, k, v):
    return _based_reference(q, k, v)[0]


for _kernel, _most in ((taylor_quadratic, 150), (taylor_block, 64)):
    _kernel.reference(
        terms=_terms,
        special=False,  # an infinite score meets the next one of the other sign
        sizes={"B": (1, 2), "H": (1, 3), "N": (1, _most), "F": (1, 32), "V": (1, 80)},
    )(_reference)
