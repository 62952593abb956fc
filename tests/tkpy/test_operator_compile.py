"""Kernels under torch.compile, with fake tensors, and held against torch.library.opcheck."""

import pytest
import torch
from operator_kernels import gram, normed, rows_of, scaled, softmax, step
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

import tkpy as tk


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()


class Counting:
    """A backend that counts what it compiles."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph


def compiled(fn, backend="aot_eager", **options):
    return torch.compile(fn, fullgraph=True, backend=backend, **options)


def trained(x, w):
    y, total = scaled(normed(x.sin(), w), w, 2.0, total=True, rows=32)
    return (softmax(y) * y).sum() + total.sum()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_forward_and_gradients(backend):
    x, w = torch.randn(20, 8), torch.randn(8)
    results = []
    for fn in (trained, compiled(trained, backend)):
        leaves = [t.clone().requires_grad_() for t in (x, w)]
        loss = fn(*leaves)
        loss.backward()
        results.append([loss.detach(), *(t.grad for t in leaves)])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_writing_in_place(backend):
    def fn(x, state, room):
        y, norm = step(x, state, norm=True)
        scaled(x, x[0], y=room)
        return y + 1, norm * 2, state.sum()

    x, state, room = torch.randn(20, 8), torch.randn(20, 8), torch.zeros(20, 8)
    new = x + state
    y, norm, total = compiled(fn, backend)(x, state, room)
    torch.testing.assert_close(state, new)
    torch.testing.assert_close(y, new**2 + 1)
    torch.testing.assert_close(norm, 2 * (new**2).sum(1))
    torch.testing.assert_close(total, new.sum())
    torch.testing.assert_close(room, x * x[0])
    leaf = x.clone().requires_grad_()
    state = torch.zeros(20, 8)
    y, _, total = compiled(fn, "aot_eager")(leaf, state, room.detach())
    (y.sum() + total).backward()
    torch.testing.assert_close(leaf.grad, 2 * x + 1)


def test_sizes_are_symbols():
    counting = Counting()
    fn = compiled(lambda x, w: gram(x, w).sum(-1) / x.shape[1], counting, dynamic=True)
    for b, n, d in ((2, 5, 8), (3, 17, 8), (4, 40, 8)):
        x, w = torch.randn(b, n, d), torch.randn(n)
        torch.testing.assert_close(fn(x, w), (x @ x.mT * w).sum(-1) / n, rtol=1e-4, atol=1e-4)
    assert len(counting.graphs) == 1


def test_what_the_signature_refuses_is_refused_while_tracing():
    x, w = torch.randn(20, 8), torch.randn(7)
    with pytest.raises(Exception, match="scaled: w and x disagree on D: w has shape"):
        compiled(scaled)(x, w)
    with pytest.raises(Exception, match="the keyword rowz is unknown"):
        compiled(lambda x: scaled(x, x[0], rowz=3))(x)
    with pytest.raises(tk.CallError, match="0 <= index < V"):
        compiled(rows_of)(x, torch.tensor([20]))


def test_fake_tensors():
    x, w = torch.randn(20, 8), torch.randn(8)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y, total = scaled(mode.from_tensor(x), mode.from_tensor(w), total=True)
        assert y.shape == (20, 8) and total.shape == (20,) and total.dtype == torch.float32
        assert type(scaled(x, w)) is type(y), "plain tensors, but somebody traces"
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x, w: scaled(x, w))(x, w)
    assert scaled.op in [n.target for n in graph.graph.nodes]


def test_transforms_inside_of_a_graph():
    x, w = torch.randn(3, 2, 5, 8), torch.randn(5)
    loss = lambda x, w: (gram(x, w) ** 2).sum()  # noqa: E731
    grads = torch.vmap(torch.func.grad(loss), (0, None))
    torch.testing.assert_close(compiled(grads)(x, w), grads(x, w))


def test_a_break_in_the_graph_beside_a_kernel():
    def fn(x, w):
        y = scaled(x, w)
        torch._dynamo.graph_break()
        return scaled(y, w).sum()

    x, w = torch.randn(20, 8, requires_grad=True), torch.randn(8)
    torch.compile(fn, backend="aot_eager")(x, w).backward()
    torch.testing.assert_close(x.grad, (w * w).expand(20, 8))


@pytest.mark.slow
def test_autocast_in_a_graph():
    x, w = torch.randn(2, 20, 8, requires_grad=True), torch.randn(20)
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled(gram)(x, w)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.slow
def test_export():
    class Layer(torch.nn.Module):
        def forward(self, x, w):
            return scaled(x, w) + 1

    program = torch.export.export(Layer(), (torch.randn(20, 8), torch.randn(8)))
    assert scaled.op in [n.target for n in program.graph.nodes]


SAMPLES = {
    "scaled": (scaled, (torch.randn(20, 8), torch.randn(8), 2.0), {"total": True}),
    "softmax": (softmax, (torch.randn(20, 8),), {}),
    "step": (step, (torch.randn(20, 8), torch.randn(20, 8)), {"norm": True}),
    "rows_of": (rows_of, (torch.randn(9, 8), torch.tensor([1, 3])), {}),
    "normed": (normed, (torch.randn(20, 8), torch.randn(8)), {}),
    "gram": (gram, (torch.randn(2, 20, 8), torch.randn(20)), {}),
    "empty": (scaled, (torch.randn(0, 8), torch.randn(8)), {"total": True}),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "name",
    [n if n in ("scaled", "step") else pytest.param(n, marks=pytest.mark.slow) for n in SAMPLES],
)
def test_opcheck(name, grad):
    kernel, args, kwargs = SAMPLES[name]
    args = [
        a.clone().requires_grad_(grad)
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for a in args
    ]
    opcheck(kernel.op, tuple(args), kwargs)
    if kernel is step and not grad:
        in_place = getattr(torch.ops.tkpy, f"{kernel.operator.ready()}_").default
        opcheck(in_place, tuple(args), {"norm__wanted": True})
        opcheck(in_place, (*args, torch.empty(20, 8)), {})


def test_what_the_forward_keeps_goes_to_the_backward(monkeypatch):
    """A graph's backward reads what its forward kept: the kernel runs once.

    From the second length on that is a symbol, and the width of a tile is not.
    """
    from tkpy.backward import Backward
    from zoo.kernels.attention import attention

    forwards, given = [], []
    forward, gradients = Backward.forward_and_reads, Backward.gradients

    def counted(self, *args, **kwargs):
        forwards.append(self)
        return forward(self, *args, **kwargs)

    def told(self, arguments, outputs, saved, *args, **kwargs):
        given.append(saved)
        return gradients(self, arguments, outputs, saved, *args, **kwargs)

    def loss(q, k, v):
        return attention(q * 2, k, v, rows=16, cols=16).square().sum()

    monkeypatch.setattr(Backward, "forward_and_reads", counted)
    monkeypatch.setattr(Backward, "gradients", told)
    fn = compiled(loss)
    for n in (21, 37, 50):
        plain = [torch.randn(1, 2, n, 8, requires_grad=True) for _ in range(3)]
        ours = [t.detach().clone().requires_grad_() for t in plain]
        loss(*plain).backward()
        forwards.clear()
        given.clear()
        fn(*ours).backward()
        assert len(forwards) == 1 and len(given) == 1 and len(given[0]) == 2
        for a, b in zip(plain, ours, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
    # Where the width is a symbol too, it is not known before a run what is kept.
    fn = compiled(loss, dynamic=True)
    ours = [t.detach().clone().requires_grad_() for t in plain]
    fn(*ours).backward()
    assert given[-1] is None
    torch.testing.assert_close(ours[0].grad, plain[0].grad, rtol=1e-5, atol=1e-5)
