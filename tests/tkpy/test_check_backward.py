"""``check(backward=True)``: what it holds a backward to, and that each of it can fail."""

import math

import pytest
import torch

import tkpy as tk
from tkpy.backward import Backward
from tkpy.testing import check, conditioning


@tk.kernel
def ratio(x: tk.Global["M K", tk.f32], w: tk.Global["K N", tk.f32], y: tk.Out["M N", tk.f16],
          *, size: float = 1.0):  # fmt: skip
    i = tk.grid(tk.cdiv("M", 16))
    xt = tk.load(x, (i, 0), shape=(16, "K"))
    top = tk.mm_AB(xt, tk.load(w, (0, 0), shape=("K", "N"))) * size
    tk.store(y, top / (1 + tk.row_sum(xt * xt)), (i, 0))


@ratio.reference(sizes={"M": (1, 20), "K": [8], "N": [5]})
def _ratio(x, w, size):
    return x @ w * size / (1 + (x * x).sum(1, keepdim=True))


def checked(examples=4, **options):
    return check(ratio, backward=True, examples=examples, kinds=["normal"], **options)


def test_a_backward_that_is_right():
    assert checked().ok


def test_after_an_overflow_a_gradient_need_not_be_a_number():
    result = checked(constants={"size": (1e7,)})
    assert result.ok, result.failure
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    x.requires_grad_()
    ratio(x, w, size=1e7).sum().backward()
    assert not x.grad.isfinite().all()  # so that the check above had something to forgive


DEFECTS = {
    "no number": (lambda g, ct: g * math.nan, "expected"),
    "a forgotten factor": (lambda g, ct: g * 1.05, "expected"),
    "an even part": (lambda g, ct: g + 1e-6 * g.abs(), "is not linear"),
    "more of a small one": (
        lambda g, ct: g * (1.0 if bool((ct != 0).all()) else 1.2),
        "against the sum of those of two parts",
    ),
}


@pytest.mark.parametrize(
    "name",
    [n if n == "an even part" else pytest.param(n, marks=pytest.mark.slow) for n in DEFECTS],
)
def test_seeded_defects(name, monkeypatch):
    defect, said = DEFECTS[name]
    real = Backward.gradients

    def broken(self, arguments, outputs, saved, cotangents, needs, deterministic=True):
        made = real(self, arguments, outputs, saved, cotangents, needs, deterministic)
        return {n: defect(g, cotangents[0]) for n, g in made.items()}

    monkeypatch.setattr(Backward, "gradients", broken)
    result = checked()
    assert not result.ok
    assert said in result.failure


def test_terms_of_intermediates_that_are_infinite_elsewhere():
    """Masked scores are -inf: that is no reason to know nothing of the others."""
    mask = torch.ones(6, 6, dtype=torch.bool).tril()

    def fn(t):
        p = (t[0] * 1e3).masked_fill(~mask, -math.inf).softmax(-1)
        return [(p * t[1]).sum(-1)]

    x = [torch.rand(6, 6, dtype=torch.float64), torch.randn(6, 6, dtype=torch.float64)]
    (terms,) = conditioning(fn, x, fn(x), seed=0)
    p = (x[0] * 1e3).masked_fill(~mask, -math.inf).softmax(-1)
    assert (terms[1:] > 0.4 * (p * x[1].abs()).sum(-1)[1:]).all()
    assert terms[1:].max() > 5  # scores of a thousand under an exponential


def test_terms_of_complex_intermediates():
    """Re a b = Re a Re b - Im a Im b is rounded as both are, though they cancel."""
    a, b = torch.tensor([3 + 3j]), torch.tensor([2 + 2j])

    def fn(t):
        z = torch.view_as_complex(t[0]) * torch.view_as_complex(t[1])
        return [torch.view_as_real(z * 1.0 * 1.0)[..., 0]]

    values = [torch.view_as_real(t.to(torch.complex128)).contiguous() for t in (a, b)]
    (terms,) = conditioning(fn, values, fn(values), seed=0)
    assert fn(values)[0].abs().max() == 0 and 10 < terms.max() < 500


@tk.kernel
def rounded(x: tk.Global["N D"], w: tk.Global["N D"], y: tk.Out["N D"], far: tk.Out["N D"]):
    """Whole numbers, whose gradient goes straight through by agreement."""
    i = tk.grid(tk.cdiv("N", 16))
    a = tk.load(x, (i, 0), (16, "D"), dtype=tk.f32)
    tk.store(y, tk.round(a) * tk.load(w, (i, 0), (16, "D"), dtype=tk.f32), (i, 0))
    tk.store(far, a, (i, 0))


@rounded.reference(sizes={"N": (1, 20), "D": (1, 20)}, kinds=("normal",))
def rounded_meaning(x, w):
    return (x + (x.round() - x).detach()) * w, x.detach()


def straight(arguments, outputs, cotangents, needs):
    x, w, g = arguments["x"], arguments["w"], cotangents["y"]
    return {"x": g.float() * w.float(), "w": g.float() * x.float().round()}


@pytest.mark.slow
def test_an_attached_backward_is_checked_as_it_is_called(monkeypatch):
    """Against the reference's own gradient, which is no derivative of what the kernel computes."""
    options = {"examples": 6, "backward": True, "dtypes": [torch.float32]}
    assert not check(rounded, **options).ok  # the derived one is zero where rounding is
    rounded.attach_backward(straight, through=["y"])
    try:
        check(rounded, **options).raise_if_failed()
        rounded.attach_backward(
            lambda *a: {n: g * 1.01 for n, g in straight(*a).items()}, through=["y"]
        )
        assert "the gradient of" in check(rounded, **options).failure
    finally:
        rounded.attached = None
