"""Rotary position embedding."""

import torch

import tkpy as tk


@tk.kernel(where=["2 * R <= D"])
def rotary(
    x: tk.Global["B H N D"],
    cos: tk.Global["N R", "C"],
    sin: tk.Global["N R", "C"],
    y: tk.Out["B H N D"],
    *,
    rows: int = 64,
):
    """Turns (x[r], x[r + R]) by the angle r of its position, for r < R; copies x[2 R:].

    x, y: [B, H, N, D]; cos, sin: [N, R] of the angles of these N positions, in a dtype of their
    own; R is D / 2, or less for a partial rotation. A call that starts at position p takes
    ``cos[p : p + N]``. Su et al., "RoFormer" (arXiv 2104.09864, equation 34), with the halves of
    GPT-NeoX and LLaMA instead of neighbouring pairs.
    """
    b, h, i = tk.grid("B", "H", tk.cdiv("N", rows))
    low, high, rest = (b, h, i, 0), (b, h, i, tk.at("R")), (b, h, i, tk.at("2 * R"))
    c = tk.load(cos, (i, 0), (rows, "R"), dtype=tk.f32)
    s = tk.load(sin, (i, 0), (rows, "R"), dtype=tk.f32)
    one = tk.load(x, low, (rows, "R"), dtype=tk.f32)
    two = tk.load(x, high, (rows, "R"), dtype=tk.f32)
    tk.store(y, one * c - two * s, low)
    tk.store(y, two * c + one * s, high)
    if tk.static("D") > 2 * tk.static("R"):
        tk.store(y, tk.load(x, rest, (rows, "D - 2 * R")), rest)


def _rotary_terms(x, cos, sin):
    return (
        _rotary_reference(x.abs(), cos.abs(), -sin.abs()).abs()
        + _rotary_reference(x.abs(), cos.abs(), sin.abs()).abs()
    )


@rotary.reference(
    terms=_rotary_terms, roundings=0, sizes={"N": (1, 150), "D": (1, 128), "R": (1, 64)}
)
def _rotary_reference(x, cos, sin):
    r = cos.shape[-1]
    one, two, rest = x[..., :r], x[..., r : 2 * r], x[..., 2 * r :]
    return torch.cat([one * cos - two * sin, two * cos + one * sin, rest], -1)
