"""Gradients of scans with the author's operator, against autograd of the loop they stand for."""

import itertools

import numpy as np
import pytest
import torch
from gradients import autograd, derive, exact, native
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import tkpy as tk


@tk.function
def affine(left, right):
    return left[0] * right[0], left[1] * right[0] + right[1]


@tk.function
def matrices(x, y):
    return (
        x[0] * y[0] + x[1] * y[2],
        x[0] * y[1] + x[1] * y[3],
        x[2] * y[0] + x[3] * y[2],
        x[2] * y[1] + x[3] * y[3],
    )


@tk.function
def log_add(x, y):
    most = tk.maximum(x, y)
    return most + tk.log(tk.exp(x - most) + tk.exp(y - most))


@tk.function
def moments(x, y):
    """Of two runs (how many, their mean, the sum of squared distances from it), those of both."""
    n = x[0] + y[0]
    apart = y[1] - x[1]
    return n, x[1] + apart * y[0] / n, x[2] + y[2] + apart * apart * x[0] * y[0] / n


@tk.function
def restarting(x, y):
    return x[0] | y[0], tk.where(y[0] == 1, y[1], x[1] * 0.5 + y[1])


@tk.kernel
def scans(x: tk.Global["K M N"], o: tk.Out["K M N"], *, which: str, axis: int, reverse: bool):
    tk.grid(1)
    t = [tk.load(x, (k, 0, 0), shape=("M", "N")) for k in range(4)]
    if which == "affine":
        out = tk.associative_scan((t[0], t[1]), affine, axis, reverse=reverse)
    elif which == "affine of one":
        out = tk.associative_scan((t[0], t[0]), affine, axis, reverse=reverse)[1:]
    elif which == "matrices":
        out = tk.associative_scan(tuple(t), matrices, axis, reverse=reverse)
    elif which == "log_add":
        out = [tk.associative_scan(t[0], log_add, axis, reverse=reverse)]
    elif which == "moments":
        out = tk.associative_scan((t[0] * 0 + 1, t[1], t[2]), moments, axis, reverse=reverse)
    elif which == "restarting":
        flag = tk.cast(t[1] > 0.5, tk.i32)
        out = tk.associative_scan((flag, t[0]), restarting, axis, reverse=reverse)[1:]
    else:
        z = tk.complex(t[0], t[1])
        z = tk.associative_scan(z, lambda a, b: a * b, axis, reverse=reverse)
        out = [z.real, z.imag]
    for k in range(len(out)):
        tk.store(o, out[k], (k, 0, 0))


def step(which, y, x):
    """One application of the operator, in torch."""
    if which.startswith("affine"):
        return [y[0] * x[0], y[1] * x[0] + x[1]]
    if which == "matrices":
        m = torch.stack(y).unflatten(0, (2, 2)), torch.stack(x).unflatten(0, (2, 2))
        return list(torch.einsum("ij...,jk...->ik...", *m).flatten(0, 1))
    if which == "log_add":
        return [torch.logaddexp(y[0], x[0])]
    if which == "moments":
        n, apart = y[0] + x[0], x[1] - y[1]
        return [n, y[1] + apart * x[0] / n, y[2] + x[2] + apart**2 * y[0] * x[0] / n]
    if which == "restarting":
        return [torch.maximum(y[0], x[0]), torch.where(x[0] == 1, x[1], y[1] * 0.5 + x[1])]
    return [y[0] * x[0] - y[1] * x[1], y[0] * x[1] + y[1] * x[0]]


def meaning(which, axis, reverse):
    def run(x):
        t = list(x.unbind(0))
        if which == "affine of one":
            t = [t[0], t[0]]
        if which == "moments":
            t[0] = torch.ones_like(t[0])
        if which == "restarting":
            t[:2] = [(t[1] > 0.5).to(x.dtype), t[0]]
        count = {"matrices": 4, "log_add": 1, "moments": 3}.get(which, 2)
        lines = [v.unbind(axis) for v in t[:count]]
        order = list(range(len(lines[0])))
        order = order[::-1] if reverse else order
        made = {order[0]: [v[order[0]] for v in lines]}
        for before, at in itertools.pairwise(order):
            made[at] = step(which, made[before], [v[at] for v in lines])
        outs = [torch.stack([made[k][c] for k in sorted(made)], axis) for c in range(count)]
        outs = outs[1:] if which in ("affine of one", "restarting") else outs
        rest = [torch.zeros_like(x[0]) for _ in range(4 - len(outs))]
        return torch.stack([*outs, *rest])

    return run


OPERATORS = ["affine", "affine of one", "matrices", "log_add", "moments", "restarting", "complex"]


QUICK = ("affine", "matrices", "restarting")
FORMS = [w if w in QUICK else pytest.param(w, marks=pytest.mark.slow) for w in OPERATORS]


def inputs(m, n, number, dtype=torch.float32):
    g = torch.Generator().manual_seed(number)
    x, cotangent = (torch.randn(4, m, n, generator=g).to(dtype) for _ in range(2))
    return x, cotangent


@pytest.mark.parametrize("which", FORMS)
@given(m=st.sampled_from([1, 2, 16, 19]), n=st.sampled_from([1, 5, 17]),
       axis=st.integers(0, 1), reverse=st.booleans(), number=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=3, deadline=None, database=None)
@seed(5)
def test_without_rounding(which, m, n, axis, reverse, number):
    x, cotangent = inputs(m, n, number)
    what = {"which": which, "axis": axis, "reverse": reverse}
    o = torch.empty_like(x)
    derived = derive(scans, {"x": x, "o": o, **what})
    want = autograd(meaning(**what), {"x": x}, ["x"], {"o": cotangent}, ["o"])["x"]
    used = {"matrices": 4, "log_add": 1, "affine of one": 1, "moments": 3, "restarting": 1}
    cotangent = cotangent.clone()
    got = exact(derived, {"o": cotangent})["x"]
    count = used.get(which, 2)
    scale = 1 + np.abs(want).max()
    assert np.abs(got - want)[:count].max() <= 1e-11 * scale
    assert not got[count:].any() and not want[count:].any()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["affine", "matrices"])
def test_compiled(which, dtype):
    """Within the rounding of sums over products of as many factors as the axis is long."""
    x, cotangent = inputs(21, 18, 3, dtype)
    x = x * 0.5
    what = {"which": which, "axis": 0, "reverse": True}
    got = native(scans, {"x": x, **what}, ["x"], {"o": cotangent})["x"].double()
    given_ = {"x": x}
    want = autograd(meaning(**what), given_, ["x"], {"o": cotangent}, ["o"])["x"]
    terms = autograd(meaning(**what), {"x": x.abs()}, ["x"], {"o": cotangent.abs()}, ["o"])["x"]
    bound = terms * 8 * 21 * torch.finfo(torch.float32).eps
    bound = bound + np.abs(want) * torch.finfo(dtype).eps
    assert (np.abs(got.numpy() - want) <= bound).all()


def test_what_is_not_asked_for_is_not_scanned():
    """Of h[t] = a[t] h[t - 1] + b[t] the running product of a takes no part in the gradient."""
    x = torch.randn(4, 8, 5)
    what = {"which": "affine of one", "axis": 0, "reverse": False}
    derived = derive(scans, {"x": x, "o": torch.empty_like(x), **what})
    backward = derived.made.pieces[0].fn
    found = [len(op.operands) for op in backward.body.walk() if op.kind == "associative_scan"]
    # h and its affine map; what stands before h and after its adjoint; where that is nothing.
    assert sorted(found) == [1, 1, 2, 2, 3, 3], found
