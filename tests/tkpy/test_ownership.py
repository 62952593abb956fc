"""Who owns a gradient where each program has a range of its own: nothing is turned, or added up."""

import numpy as np
import pytest
import torch
from gradients import autograd, derive, exact

import tkpy as tk
from codegen.grad import own
from codegen.ir import loop_parts


@tk.kernel
def shares(x: tk.Global["B D"], w: tk.Global["D"], y: tk.Out["B D"], *, more: int = 0):
    """Program i goes over its eight rows, or over ``more`` that are the next one's too."""
    i = tk.grid(tk.cdiv("B", 8))
    wt, total = tk.load(w, 0, "D"), tk.zeros("D")
    for b in tk.range(i * 8, min(i * 8 + 8 + more, tk.dim("B"))):
        row = tk.load(x, (b, 0), shape="D")
        total = total + row * wt
        if b < i * 8 + 8:
            tk.store(y, total * row, (b, 0))


def meaning(more):
    def run(x, w):
        out = []
        for first in range(0, len(x), 8):
            rows = x[first : first + 8]
            out.append((rows * w).cumsum(0) * rows)
        return torch.cat(out)

    return run


@pytest.mark.parametrize("rows", [1, 8, 21])
@pytest.mark.parametrize("more", [0, 1])
def test_ranges_of_programs(rows, more):
    x, w, cotangent = torch.randn(rows, 5), torch.randn(5), torch.randn(rows, 5)
    derived = derive(shares, {"x": x, "w": w, "y": torch.empty_like(x), "more": more})
    gradient = derived.made.derivation.gradients["x"]
    # A range that reaches into the next one's is no program's own.
    assert (gradient.parts == 0 and len(derived.made.pieces) == 1) == (more == 0)
    got = exact(derived, {"y": cotangent})
    want = autograd(meaning(more), {"x": x, "w": w}, ["x", "w"], {"y": cotangent}, ["y"])
    for n in want:
        assert np.abs(got[n] - want[n]).max() <= 1e-12 * (1 + np.abs(want[n]).max())


@tk.kernel(where=["0 <= offsets"])
def moved(x: tk.Global["B D"], offsets: tk.Global["P", tk.i32], y: tk.Out["P D"]):
    """Ranges begin where a number that was loaded says: they may overlap."""
    i = tk.grid("P")
    first, total = tk.load(offsets, i), tk.zeros("D")
    for b in tk.range(i * 4 + first, i * 4 + first + 4):
        total = total + tk.load(x, (b, 0), shape="D") * (i + 1.0)
    tk.store(y, total, (i, 0))


def moving(x, offsets):
    return torch.stack(
        [x[4 * i + o : 4 * i + o + 4].sum(0) * (i + 1.0) for i, o in enumerate(offsets.tolist())]
    )


def test_ranges_that_were_loaded_may_overlap():
    x, cotangent = torch.randn(15, 5), torch.randn(3, 5)
    offsets = torch.tensor([4, 0, 2], dtype=torch.int32)
    derived = derive(moved, {"x": x, "offsets": offsets, "y": torch.empty(3, 5)}, wrt=["x"])
    got = exact(derived, {"y": cotangent})["x"]
    want = autograd(moving, {"x": x, "offsets": offsets}, ["x"], {"y": cotangent}, ["y"])["x"]
    assert np.abs(got - want).max() <= 1e-12 * (1 + np.abs(want).max())


def test_a_range_taken_for_fixed_is_caught(monkeypatch):
    real = own._share_of

    def careless(loop, determined, fixed):
        start = loop_parts(loop)[1].free_symbols
        return real(loop, determined, fixed | {s for s in start if s.name.startswith("offsets")})

    monkeypatch.setattr(own, "_share_of", careless)
    with pytest.raises(AssertionError):
        test_ranges_that_were_loaded_may_overlap()
