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
):
    """Turns (x[r], x[r + R]) by the angle r of its position, for r < R; copies x[2 R:].

    x, y: [B, H, N, D]; cos, sin: [N, R] of the angles of these N positions, in a dtype of their
    own; R is D / 2, or less for a partial rotation. A call that starts at position p takes
    ``cos[p : p + N]``. Su et al., "RoFormer" (arXiv 2104.09864, equation 34), with the halves of
    GPT-NeoX and LLaMA instead of neighbouring pairs. A task loads the angles of ``rows`` positions
    once and turns all heads by them, as ThunderKittens' kernel does.
    """
    b, i = tk.tasks("B", tk.cdiv("N", rows))
    c, s = [tk.load(t, (i, 0), (rows, "R"), dtype=tk.f32) for t in (cos, sin)]
    parts = [p for p in ((0, "R"), ("R", "R"), ("2 * R", "D - 2 * R")) if tk.static(p[1]) > 0]

    def load(h):
        return [tk.load(x, (b, h, i, tk.at(at)), (rows, n), dtype=tk.f32) for at, n in parts]

    def compute(h, one, two, *rest):
        return one * c - two * s, two * c + one * s, *rest

    def store(h, *turned):
        for (at, _), t in zip(parts, turned, strict=True):
            tk.store(y, t, (b, h, i, tk.at(at)))

    tk.run(tk.dim("H"), None, load, compute, store)


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
