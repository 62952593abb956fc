"""Kernels that the tests of operators call: each has a backward by hand, or says why it has none."""

import torch

import tkpy as tk


@tk.kernel
def scaled(
    x: tk.Global["N D"],
    w: tk.Global["D"],
    y: tk.Out["N D"],
    s: tk.f32 = 1.0,
    total: tk.Out["N", tk.f32] | None = None,
    *,
    rows: int = 16,
    power: float = 1.0,
):
    """y = x w s power, total = the sums of its rows."""
    i = tk.grid(tk.cdiv("N", rows))
    t = tk.load(x, (i, 0), (rows, "D"), dtype=tk.f32) * tk.load(w, 0, "D", dtype=tk.f32)
    t = t * s * power
    tk.store(y, t, (i, 0))
    if total is not None:
        tk.store(total, tk.row_sum(t), i)


@scaled.attach_backward
def _scaled_backward(a, outputs, cotangents, needs):
    g = 0
    if cotangents["y"] is not None:
        g = g + cotangents["y"].float()
    if cotangents["total"] is not None:
        g = g + cotangents["total"][:, None]
    g = g * a["s"] * a["power"] * torch.ones_like(a["x"], dtype=torch.float32)
    return {"x": g * a["w"], "w": (g * a["x"]).sum(0)}


@tk.kernel
def softmax(x: tk.Global["N D"], y: tk.Out["N D"], lse: tk.Out["N", tk.f32] | None = None):
    i = tk.grid(tk.cdiv("N", 16))
    t = tk.load(x, (i, 0), (16, "D"), dtype=tk.f32)
    top = tk.row_max(t)
    e = tk.exp(t - top)
    tk.store(y, e / tk.row_sum(e), (i, 0))
    if lse is not None:
        tk.store(lse, tk.log(tk.row_sum(e)) + top, i)


@softmax.attach_backward(keeps=["lse"], through=["y"])
def _softmax_backward(a, outputs, cotangents, needs):
    assert outputs["y"] is None, "it was not asked for"
    p = (a["x"].float() - outputs["lse"][:, None]).exp()
    g = cotangents["y"].float()
    return {"x": p * (g - (p * g).sum(1, keepdim=True))}


@tk.kernel
def step(
    x: tk.Global["N D"],
    state: tk.InOut["N D"],
    y: tk.Out["N D"],
    norm: tk.Out["N", tk.f32] | None = None,
):
    """state += x, y = state^2, norm = the sums of its rows."""
    i = tk.grid(tk.cdiv("N", 16))
    a = tk.load(state, (i, 0), (16, "D")) + tk.load(x, (i, 0), (16, "D"))
    tk.store(state, a, (i, 0))
    tk.store(y, a * a, (i, 0))
    if norm is not None:
        tk.store(norm, tk.row_sum(a * a), i)


@step.attach_backward
def _step_backward(a, outputs, cotangents, needs):
    g = torch.zeros_like(a["x"])
    if cotangents["state"] is not None:
        g = g + cotangents["state"]
    if cotangents["y"] is not None:
        g = g + 2 * outputs["state"] * cotangents["y"]
    if cotangents["norm"] is not None:
        g = g + 2 * outputs["state"] * cotangents["norm"][:, None]
    return {"x": g, "state": g}


@tk.kernel(where=["0 <= index < V"])
def rows_of(w: tk.Global["V D"], index: tk.Global["N", tk.i64], y: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.gather_rows(w, tk.load(index, i, 16), (None, 0), "D"), (i, 0))


@rows_of.attach_backward
def _rows_backward(a, outputs, cotangents, needs):
    return {"w": torch.zeros_like(a["w"]).index_add_(0, a["index"], cotangents["y"])}


@tk.kernel(autocast=True)
def gram(x: tk.Global["B N D"], w: tk.Global["N"], y: tk.Out["B N N"]):
    """y = x x^T, its columns scaled by w."""
    b, i, j = tk.grid("B", tk.cdiv("N", 16), tk.cdiv("N", 16))
    p = tk.mma_ABt(tk.load(x, (b, i, 0), (16, "D")), tk.load(x, (b, j, 0), (16, "D")))
    tk.store(y, p * tk.load(w, j, 16, dtype=tk.f32), (b, i, j))


@gram.attach_backward
def _gram_backward(a, outputs, cotangents, needs):
    x, w, g = a["x"].float(), a["w"].float(), cotangents["y"].float()
    gw = g * w
    return {"x": gw @ x + gw.mT @ x, "w": (g * (x @ x.mT)).sum((0, 1))}


@tk.kernel
def decayed(x: tk.Global["N"], y: tk.Out["N"], *, halve: bool = True):
    """Stored twice, it has no derivative: which of the two a gradient belongs to is not told."""
    i = tk.grid(tk.cdiv("N", 16))
    t = tk.load(x, i, 16)
    tk.store(y, t, i)
    if halve:
        tk.store(y, t * 0.5, i)


@tk.kernel
def doubled(state: tk.InOut["N"]):
    """Changes what it is given, and has no backward."""
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(state, tk.load(state, i, 16) * 2.0, i)


# Without a backward by hand: these have the derived one.


@tk.kernel
def normed(x: tk.Global["N D"], w: tk.Global["D"], y: tk.Out["N D"]):
    """y = x / the root mean square of its row, times w."""
    i = tk.grid(tk.cdiv("N", 16))
    t = tk.load(x, (i, 0), (16, "D"), dtype=tk.f32)
    r = tk.rsqrt(tk.row_sum(t * t) / tk.static("D") + 1e-5)
    tk.store(y, t * r * tk.load(w, 0, "D", dtype=tk.f32), (i, 0))


# -- a mapped dimension must not become a part of the first one of these -------------------------


@tk.kernel
def running(x: tk.Global["N D"], y: tk.Out["N D"]):
    j = tk.grid(tk.cdiv("D", 16))
    past = tk.zeros(16)
    for i in tk.range(tk.cdiv("N", 16)):
        t = tk.load(x, (i, j), (16, 16))
        sums = tk.cumsum(t, axis=0) + past
        past = past + tk.col_sum(t)
        tk.store(y, sums, (i, j))


@tk.kernel
def average(x: tk.Global["B N"], y: tk.Out["B N"]):
    b, i = tk.grid("B", tk.cdiv("N", 16))
    tk.store(y, tk.load(x, (b, i), 16) / tk.cast(tk.dim("B"), tk.f32), (b, i))


@tk.kernel
def numbered(x: tk.Global["B N"], y: tk.Out["B N"]):
    b, i = tk.grid("B", tk.cdiv("N", 16))
    tk.store(y, tk.load(x, (b, i), 16) + tk.cast(b, tk.f32), (b, i))


@tk.kernel
def reversed_(x: tk.Global["B N"], y: tk.Out["B N"]):
    b, i = tk.grid("B", tk.cdiv("N", 16))
    tk.store(y, tk.load(x, (b, i), 16), (tk.dim("B") - 1 - b, i))


@tk.kernel
def summed(x: tk.Global["B N"], y: tk.Out["N", tk.f32]):
    b, i = tk.grid("B", tk.cdiv("N", 16))
    tk.store_add(y, tk.load(x, (b, i), 16), i)


@tk.kernel(where=["B <= 3"])
def few(x: tk.Global["B N"], y: tk.Out["B N"]):
    b, i = tk.grid("B", tk.cdiv("N", 16))
    tk.store(y, tk.load(x, (b, i), 16) * 2.0, (b, i))
