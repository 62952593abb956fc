"""Rotary position embedding."""

import torch

import tkpy as tk


@tk.lcsf(where=["2 * R <= D"], stages=3, output_stages=3, consumer_warps=4, persistent=False)
def rotary(
    x: tk.Global["B H N D"],
    cos: tk.Global["N R", "C"],
    sin: tk.Global["N R", "C"],
    y: tk.Out["B H N D"],
    *,
    rows: int = 64,
    heads: int = 1,
):
    """Turns (x[r], x[r + R]) by the angle r of its position, for r < R; copies x[2 R:].

    x, y: [B, H, N, D]; cos, sin: [N, R] of the angles of these N positions, in a dtype of their
    own; R is D / 2, or less for a partial rotation. A call that starts at position p takes
    ``cos[p : p + N]``. Su et al., "RoFormer" (arXiv 2104.09864, equation 34), with the halves of
    GPT-NeoX and LLaMA instead of neighbouring pairs. A task turns ``heads`` heads by the angles
    that it has loaded once.
    """
    b, g, i = tk.tasks("B", tk.cdiv("H", heads), tk.cdiv("N", rows))
    more = tk.static("D") > 2 * tk.static("R")
    c = tk.load(cos, (i, 0), (rows, "R"), dtype=tk.f32)
    s = tk.load(sin, (i, 0), (rows, "R"), dtype=tk.f32)

    def places(k):
        h = g * heads + k
        return (b, h, i, 0), (b, h, i, tk.at("R")), (b, h, i, tk.at("2 * R"))

    def load(k):
        low, high, rest = places(k)
        one = tk.load(x, low, (rows, "R"), dtype=tk.f32)
        two = tk.load(x, high, (rows, "R"), dtype=tk.f32)
        return one, two, tk.load(x, rest, (rows, "D - 2 * R")) if more else None

    def compute(k, one, two, rest):
        return one * c - two * s, two * c + one * s, rest

    def store(k, one, two, rest):
        low, high, end = places(k)
        tk.store(y, one, low)
        tk.store(y, two, high)
        if more:
            tk.store(y, rest, end)

    count = 1 if heads == 1 else min(heads, tk.dim("H") - g * heads)
    tk.run(count, None, load, compute, store)


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
