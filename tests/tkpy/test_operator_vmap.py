"""Kernels under torch.vmap: in one call where that is proved right, else slice by slice."""

import operator_kernels as kernels
import pytest
import torch
from operator_kernels import gram, scaled, softmax, step

import tkpy as tk
from tkpy.operator import batch


class Runs:
    """Counts the runs of a kernel."""

    def __init__(self, kernel, monkeypatch):
        self.count, run = 0, kernel.run

        def counted(*args, **kwargs):
            self.count += 1
            return run(*args, **kwargs)

        monkeypatch.setattr(kernel, "run", counted)


def right(x, w):
    return x @ x.mT * w


def test_a_batch_dimension_takes_the_mapped_one_in(monkeypatch):
    runs = Runs(gram, monkeypatch)
    x, w = torch.randn(3, 2, 5, 8), torch.randn(5)
    y = torch.vmap(gram, (0, None))(x, w)
    assert runs.count == 1 and torch.allclose(y, right(x, w), atol=1e-5)
    last = torch.vmap(gram, (3, None), 1)(x.movedim(0, 3), w)
    assert runs.count == 2 and torch.allclose(last, y.movedim(0, 1), atol=1e-5)
    nested = torch.vmap(torch.vmap(gram, (0, None)), (0, None))(x[None].expand(4, 3, 2, 5, 8), w)
    assert runs.count == 3 and torch.allclose(nested, y.expand(4, 3, 2, 5, 5), atol=1e-5)
    weights = torch.randn(3, 5)  # has no batch dimension to put three into
    y = torch.vmap(gram)(x, weights)
    assert runs.count == 6 and torch.allclose(y, right(x, weights[:, None, None]), atol=1e-5)
    assert torch.vmap(gram, (0, None))(x[:0], w).shape == (0, 2, 5, 5)


def test_gradients_of_mapped_calls(monkeypatch):
    calls = []
    formula = gram.attached
    monkeypatch.setattr(
        gram, "attached", type(formula)(lambda *a: calls.append(1) or formula.gradients(*a))
    )
    x, w = torch.randn(3, 2, 5, 8), torch.randn(5)
    loss = lambda x, w: (gram(x, w) ** 2).sum()  # noqa: E731
    plain = lambda x, w: (right(x, w) ** 2).sum()  # noqa: E731
    for wanted, times in ((0, 1), (1, 3)):  # a weight that all share has a gradient a sample
        calls.clear()
        ours = torch.vmap(torch.func.grad(loss, wanted), (0, None))(x, w)
        theirs = torch.vmap(torch.func.grad(plain, wanted), (0, None))(x.double(), w.double())
        assert (ours - theirs).abs().max() < 1e-3 and len(calls) == times
    whole = torch.func.grad(lambda x: torch.vmap(gram, (0, None))(x, w).sum())(x)
    assert torch.allclose(whole, torch.func.grad(lambda x: right(x, w).sum())(x), atol=1e-4)


@pytest.mark.parametrize("name", ["running", "average", "numbered", "reversed_", "summed", "few"])
def test_a_first_dimension_that_is_no_batch_is_not_one(name):
    kernel = getattr(kernels, name)
    x = torch.randn(4, 3, 20)
    want = torch.stack([kernel(part) for part in x])
    torch.testing.assert_close(torch.vmap(kernel)(x), want, rtol=1e-6, atol=1e-6)


def test_the_proof_is_needed(monkeypatch):
    """What the test above holds fails without it."""
    monkeypatch.setattr(batch, "proved", lambda *_: {"x", "y"})
    x = torch.randn(4, 3, 20)
    want = torch.stack([kernels.running(part) for part in x])
    assert not torch.equal(torch.vmap(kernels.running)(x), want)


def test_slices_of_everything():
    x, w = torch.randn(3, 5, 8), torch.randn(8, 3)
    y, total = torch.vmap(lambda x, w: scaled(x, w, 2.0, total=True), (0, 1))(x, w)
    want = x * w.T[:, None] * 2
    assert torch.allclose(y, want) and torch.allclose(total, want.sum(2), atol=1e-5)
    assert torch.vmap(lambda x, w: scaled(x, w), (0, 1))(x[:0], w[:, :0]).shape == (0, 5, 8)
    g = torch.vmap(torch.func.grad(lambda x: softmax(x)[:, 0].sum()))(x)
    want = torch.func.grad(lambda x: x.softmax(-1)[..., 0].sum())(x)
    assert torch.allclose(g, want, atol=1e-6)


def test_writing_in_place():
    x, state = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    want = state + x
    y = torch.vmap(step)(x, state)
    assert torch.equal(state, want) and torch.equal(y, want * want)
    with pytest.raises(tk.CallError, match=r"many values for state.*\n  fix: map over state"):
        torch.vmap(lambda x: step(x, state[0]))(x)
    room = torch.empty(3, 5, 8)
    torch.vmap(lambda x, y: scaled(x, torch.ones(8), y=y))(x, room)
    assert torch.equal(room, x)
