"""Causal depthwise convolution of width 2 to 4."""

from typing import Literal

import torch
import torch.nn.functional as F

import tkpy as tk


@tk.function
def inputs(x, state, b, t, j, past, rows, cols):
    """Rows t - past to t - past + rows of the state's rows followed by those of x."""
    xt = tk.load(x, (b, tk.at(t - past), j), (rows, cols), dtype=tk.f32)
    if state is None or past == 0:
        return xt
    before = tk.load(state, (b, tk.at(t - past + tk.dim("W - 1")), j), (rows, cols), dtype=tk.f32)
    return xt + tk.fill_dead(before, 0.0)


_GPU = {t: {"rows": 32, "cols": 32} for t in ("bf16", "f16", "f32")}


@tk.kernel(where=["2 <= W <= 4"], autocast=True, gpu_backward=_GPU)
def short_conv(
    x: tk.Global["B N D"],
    weight: tk.Global["D W"],
    y: tk.Out["B N D"],
    bias: tk.Global["D"] | None = None,
    state: tk.Global["B W-1 D"] | None = None,
    new_state: tk.Out["B W-1 D"] | None = None,
    gate: tk.Global["B N D"] | None = None,
    *,
    activation: Literal["none", "silu"] = "none",
    skip: bool = False,
    rows: int = 64,
    cols: int = 64,
):
    """y[t] = f(sum over k of weight[k] x[t - (W - 1) + k] + bias) gate[t], f none or silu.

    x, gate, y: [B, N, D]; weight: [D, W], weight[:, W - 1] that of the present; bias: [D]; state,
    new_state: [B, W - 1, D], the inputs before the first and the last ones, oldest first (zeros
    if no state is given); one dtype of f32, bf16, f16; sums in fp32. ``new_state=True`` asks for
    the state to go on with: a sequence cut anywhere gives the same result. ``skip`` adds x[t]. The
    convolution of H3 and Mamba (``causal_conv1d``), channels last; BASED's is gated and of width 3
    (arXiv 2402.18668), and Zoology's BaseConv (arXiv 2312.04927) skips too.
    """
    # A program writes new_state where x has no rows too.
    tiles = tk.cdiv("N", rows) if new_state is None else max(tk.cdiv("N", rows), 1)
    b, i, j = tk.grid("B", tiles, tk.cdiv("D", cols))
    past, acc = tk.static("W") - 1, tk.zeros(rows, cols)
    for k in range(past + 1):
        tap = tk.load(weight, (j, k), cols, axis=0, dtype=tk.f32)
        acc += tap * inputs(x, state, b, i * rows, j, past - k, rows, cols)
    acc = acc if bias is None else acc + tk.load(bias, j, cols, dtype=tk.f32)
    acc = tk.silu(acc) if activation == "silu" else acc
    acc = acc if gate is None else acc * tk.load(gate, (b, i, j), (rows, cols), dtype=tk.f32)
    acc = acc + inputs(x, None, b, i * rows, j, 0, rows, cols) if skip else acc
    tk.store(y, acc, (b, i, j))
    if new_state is not None and i == 0:
        tk.store(new_state, inputs(x, state, b, tk.dim("N"), j, past, 16, cols), (b, 0, j))


def _short_conv_terms(x, weight, bias=None, state=None, gate=None, activation="none", skip=False):
    bias, state, gate = (None if t is None else t.abs() for t in (bias, state, gate))
    # The derivative of silu is at most 1.1.
    return _short_conv_reference(x.abs(), weight.abs(), bias, state, gate, "none", skip)


@short_conv.reference(
    terms=_short_conv_terms,
    roundings=0,
    sizes={"B": (1, 3), "N": (1, 150), "D": (1, 150), "W": (2, 4)},
)
def _short_conv_reference(
    x, weight, bias=None, state=None, gate=None, activation="none", skip=False
):
    n, past, now = x.shape[1], weight.shape[1] - 1, x
    if state is None:
        state = x.new_zeros(x.shape[0], past, x.shape[2])
    x = torch.cat([state, x], 1)
    y = sum(weight[:, k] * x[:, k : k + n] for k in range(past + 1))
    y = y if bias is None else y + bias
    y = F.silu(y) if activation == "silu" else y
    y = y if gate is None else y * gate
    return (y + now if skip else y), x[:, x.shape[1] - past :]
