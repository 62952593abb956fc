"""Kernels as PyTorch operators: gradients, what refuses them, memory, types, modes."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_kernels import decayed, doubled, gram, normed, rows_of, scaled, softmax, step
from torch.utils.checkpoint import checkpoint

import tkpy as tk

EPS = 2.0**-23


def randn(*shape, grad=False):
    return torch.randn(*shape).requires_grad_(grad)


# -- gradients -----------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 40), st.booleans(), st.integers(0, 2**31))
def test_gradients_of_any_layout(n, expanded, seed):
    hold_gradients(n, 23, expanded, True, seed)


@pytest.mark.parametrize(
    "n, d, asked",
    [pytest.param(20, 0, True, marks=pytest.mark.slow), (20, 23, False), (0, 23, False)],
)
def test_gradients_of_nothing(n, d, asked):
    hold_gradients(n, d, False, asked, 0)


def hold_gradients(n, d, expanded, asked, seed):
    torch.manual_seed(seed)
    x = (torch.randn(1, d) if expanded else torch.randn(d, n).T).requires_grad_()
    w = randn(d, grad=True)
    g, h = torch.randn(n, d), torch.randn(n)
    given_x = x.expand(n, d) if expanded else x
    out = scaled(given_x, w, 2, total=asked, power=1.5)
    y, total = out if asked else (out, None)
    loss = (y * g).sum() + ((total * h).sum() if asked else 0)
    loss.backward()
    both = (g + h[:, None] * asked).double() * 3
    wide = given_x.detach().double()
    checks = [
        (y, wide * w * 3, (wide * w).abs() * 3),
        (w.grad, (both * wide).sum(0), (both * wide).abs().sum(0) + 1),
        (x.grad, both * w, both.abs() * w.abs()),
    ]
    if expanded:
        checks[-1] = (x.grad, (both * w).sum(0, True), (both * w).abs().sum(0, True) + 1)
    for ours, right, size in checks:
        assert ours.shape == right.shape
        assert ((ours - right).abs() <= (n + 8) * EPS * size).all()


def test_an_output_that_the_backward_keeps_is_computed_unasked():
    x = randn(20, 24, grad=True)
    y = softmax(x)
    assert isinstance(y, torch.Tensor), "lse is kept, not returned"
    g = torch.randn(20, 24)
    (y * g).sum().backward()
    x64 = x.detach().double().requires_grad_()
    (x64.softmax(1) * g).sum().backward()
    assert (x.grad - x64.grad).abs().max() < 1e-6
    y, lse = softmax(x, lse=True)
    with pytest.raises(tk.CallError, match=r"a gradient comes from lse.*takes none"):
        (y.sum() + lse.sum()).backward()


def test_changes_in_place_are_recorded_as_torch_records_its_own():
    x, start = randn(20, 8, grad=True), randn(20, 8, grad=True)
    state = start * 1
    y, norm = step(x, state, norm=True)
    (y.sum() + 3 * norm.sum() + 5 * state.sum()).backward()
    want = 2 * (x + start) * 4 + 5
    assert torch.allclose(x.grad, want) and torch.allclose(start.grad, want)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        step(x, start)
    plain = torch.zeros(20, 8)
    step(x, plain)
    assert plain.requires_grad, "it now depends on x"
    version = (plain := torch.zeros(20, 8))._version
    torch.vmap(step)(torch.randn(1, 20, 8), plain[None])
    assert plain._version > version


def rms(x, w):
    return x / (x.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * w


@pytest.mark.parametrize(
    "view", [lambda t: t, lambda t: t[::2, 1:], lambda t: t[:1].expand(30, -1)]
)
def test_a_derived_backward_is_found_by_itself(view):
    x, g = randn(40, 23, grad=True), torch.randn(40, 23)
    w = randn(view(x).shape[1], grad=True)
    y = normed(view(x), w)
    g = g[: y.shape[0], : y.shape[1]]
    y.backward(g)
    x64, w64 = (t.detach().double().requires_grad_() for t in (x, w))
    (rms(view(x64), w64) * g).sum().backward()
    for ours, right in ((x.grad, x64.grad), (w.grad, w64.grad)):
        assert (ours - right).abs().max() <= 64 * EPS * right.abs().max()
    part = torch.func.grad(lambda x: normed(x, w.detach()).pow(2).sum())(view(x).detach())
    whole = torch.func.grad(lambda x: rms(x, w.detach()).pow(2).sum())(view(x).detach())
    assert torch.allclose(part, whole, atol=1e-4)
    only = torch.autograd.grad(normed(view(x), w).sum(), w)[0]  # of two that were recorded
    assert torch.allclose(only, rms(view(x), w).detach().div(w).sum(0), rtol=1e-3, atol=1e-4)


def test_an_output_that_is_given_has_a_gradient():
    x, w, room = randn(20, 8, grad=True), torch.ones(8), torch.zeros(20, 8)
    assert scaled(x, w, 3.0, y=room) is room
    room.sum().backward()
    assert torch.equal(x.grad, torch.full((20, 8), 3.0))
    for wrong in (torch.zeros(8), torch.zeros(20, 8).double(), torch.zeros(1, 20, 8)):
        with pytest.raises(tk.CallError, match=r"y (has|is|and)"):
            scaled(x, w, y=wrong)


def test_integers_have_none():
    w, index = randn(9, 8, grad=True), torch.tensor([3, 1, 3])
    rows_of(w, index).sum().backward()
    assert w.grad.sum(1).tolist() == [0, 8, 0, 16, 0, 0, 0, 0, 0]
    with pytest.raises(tk.CallError, match="0 <= index < V"):
        rows_of(w, index + 7)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    x, w = randn(20, 8, grad=True), randn(8)
    checkpoint(lambda t: scaled(t, w), x, use_reentrant=reentrant).sum().backward()
    assert torch.equal(x.grad, w.expand(20, 8))


def test_modes_that_record_nothing():
    x, w = randn(20, 8, grad=True), randn(8)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = scaled(x, w)
        assert not y.requires_grad and torch.equal(y, x * w)
    assert scaled(x, w).requires_grad


def test_transforms_of_torch_func():
    x, w = randn(5, 8), randn(8)
    loss = lambda t, u: (scaled(t, u, 2.0) ** 2).sum()  # noqa: E731
    gx, gw = torch.func.grad(loss, (0, 1))(x, w)
    assert torch.allclose(gx, 8 * x * w * w) and torch.allclose(gw, (8 * x * x * w).sum(0))
    rows = torch.vmap(torch.func.grad(loss, 1), (0, None))(x[:, None], w)
    assert torch.allclose(rows, 8 * x * x * w)
    jacobian = torch.func.jacrev(lambda t: scaled(t, w))(x)
    assert torch.allclose(jacobian, torch.einsum("ac,bd,d->abcd", torch.eye(5), torch.eye(8), w))
    pull = torch.func.vjp(lambda t: scaled(t, w), x)[1]
    assert torch.allclose(pull(torch.ones(5, 8))[0], w.expand(5, 8))


# -- refusals --------------------------------------------------------------------------------------


def test_second_and_forward_derivatives_are_refused():
    x, w = randn(5, 8, grad=True), randn(8)
    (g,) = torch.autograd.grad((scaled(x, w) ** 2).sum(), x, create_graph=True)
    with pytest.raises(tk.CallError, match="scaled: there is no second derivative"):
        g.sum().backward()
    loss = lambda t: (scaled(t, w) ** 2).sum()  # noqa: E731
    with pytest.raises(tk.CallError, match="no second derivative"):
        torch.func.grad(lambda t: torch.func.grad(loss)(t).sum())(x.detach())
    with pytest.raises(tk.CallError, match="no forward-mode"):
        torch.func.jvp(loss, (x.detach(),), (x.detach(),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(tk.CallError, match="x carries"):
        scaled(torch.autograd.forward_ad.make_dual(x.detach(), x.detach()), w)


def test_what_has_no_backward_says_so_in_the_forward():
    x = randn(5, grad=True)
    with pytest.raises(
        tk.CompileError, match=r"operator_kernels.py:\d+: decayed has no derivative"
    ):
        decayed(x)
    decayed(x, halve=False).sum().backward()
    assert torch.equal(x.grad, torch.ones(5))
    assert decayed(x.detach()).shape == (5,)
    with pytest.raises(
        tk.CallError, match=r"doubled: state .* in place.*\n  fix: .*attach_backward"
    ):
        doubled(x * 1)
    doubled(y := x.detach().clone())
    assert torch.equal(y, 2 * x)
    with pytest.raises(tk.CallError, match="s requires grad, and it is a number"):
        scaled(randn(5, 8), randn(8), torch.tensor(2.0, requires_grad=True))
    with pytest.raises(tk.TkError, match="scaled has no output x; it has y, total"):
        scaled.attach_backward(keeps=["x"])


@pytest.mark.parametrize(
    "gives, message",
    [
        (lambda a: {"x": a["x"]}, "gives no gradient of w"),
        (lambda a: {"x": a["x"], "w": a["x"]}, r"shape \(3, 4\) for w of shape \(4,\)"),
        (lambda a: (a["x"], a["w"]), "gives a tuple"),
    ],
)
def test_a_wrong_backward_by_hand_is_named(gives, message):
    @tk.kernel
    def product(x: tk.Global["N D"], w: tk.Global["D"], y: tk.Out["N D"]):
        i = tk.grid(tk.cdiv("N", 16))
        tk.store(y, tk.load(x, (i, 0), (16, "D")) * tk.load(w, 0, "D"), (i, 0))

    product.attach_backward(lambda a, outputs, cotangents, needs: gives(a))
    y = product(randn(3, 4, grad=True), randn(4, grad=True))
    with pytest.raises(tk.CallError, match=message):
        y.sum().backward()


def test_gradients_have_memory_and_types_of_their_own():
    @tk.kernel
    def plus(x: tk.Global["N"], z: tk.Global["N"], y: tk.Out["N"]):
        i = tk.grid(tk.cdiv("N", 16))
        tk.store(y, tk.load(x, i, 16) + tk.load(z, i, 16), i)

    @plus.attach_backward
    def _(a, outputs, cotangents, needs):
        return {"x": cotangents["y"], "z": cotangents["y"].double()}

    x, z = (randn(20).half().requires_grad_() for _ in range(2))
    g = torch.randn(20).half()
    dx, dz = torch.autograd.grad(plus(x, z), (x, z), g)
    assert dx.dtype == dz.dtype == torch.float16 and torch.equal(dx, dz)
    assert len({t.data_ptr() for t in (dx, dz, g)}) == 3


@pytest.mark.parametrize(
    "args, kwargs, words",
    [
        ((randn(5, 8), randn(7)), {}, "w and x disagree on D"),
        ((randn(5, 8),), {}, "w is missing"),
        ((randn(5, 8), "w"), {}, "w must be a torch.Tensor, got str"),
        ((randn(5, 8), randn(8)), {"rowz": 3}, "unknown keyword rowz\n.*did you mean rows"),
        ((randn(5, 8), randn(8), 1.0, 2), {}, "takes 3 positional"),
        ((randn(5, 8), randn(8)), {"rows": 1.5}, "rows must be int"),
        ((randn(5, 8), randn(8)), {"y": 3}, "y is an output"),
        ((randn(5, 8), randn(8).double()), {}, "float64"),
        ((randn(5, 8).to_sparse(), randn(8)), {}, "not a dense tensor"),
    ],
)
def test_errors_are_those_of_the_plain_call(args, kwargs, words):
    with pytest.raises(tk.CallError, match=words) as plain:
        scaled(*args, **kwargs)
    args = (args[0].requires_grad_(), *args[1:])
    with pytest.raises(tk.CallError) as recorded:
        scaled(*args, **kwargs)
    assert str(plain.value) == str(recorded.value)


# -- operators -------------------------------------------------------------------------------------


def test_the_schema_is_the_signature():
    assert str(scaled.op._schema) == (
        "tkpy::operator_kernels_scaled(Tensor x, Tensor w, float s=1., *, int rows=16, "
        "float power=1., bool total=False) -> (Tensor, Tensor)"
    )
    x, w = randn(5, 8), randn(8)
    y, total = torch.ops.tkpy.operator_kernels_scaled(x, w, 2.0)
    assert torch.equal(y, x * w * 2) and total.numel() == 0
    y, state = step.op(x, old := randn(5, 8))[::2]
    assert torch.equal(state, x + old), "and old is as it was"
    meta = scaled(x.to("meta"), w.to("meta"), total=True)
    assert [tuple(t.shape) for t in meta] == [(5, 8), (5,)]
    with pytest.raises(tk.CallError, match="w and x disagree on D"):
        scaled(x.to("meta"), w[:3].to("meta"))


def make(factor):
    @tk.kernel
    def times(x: tk.Global["N"], y: tk.Out["N"]):
        i = tk.grid(tk.cdiv("N", 16))
        tk.store(y, tk.load(x, i, 16) * factor, i)

    return times


def test_kernels_of_one_name_have_operators_of_their_own():
    x = randn(20)
    first, second, again = make(2.0), make(3.0), make(2.0)
    names = [k.op._schema.name for k in (first, second, again)]
    assert len(set(names)) == 3 and all(
        n.startswith("tkpy::test_operator_make_times") for n in names
    )
    assert torch.equal(first.op(x), x * 2) and torch.equal(second.op(x), x * 3)


@tk.kernel
def halved_backward(x: tk.Global["N"], y: tk.Out["N"]):
    """Called as the backward of ``halved`` is."""
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.load(x, i, 16) * 0.25, i)


@tk.kernel
def halved(x: tk.Global["N"], y: tk.Out["N"]):
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.load(x, i, 16) * 0.5, i)


@tk.kernel
def halved_(x: tk.Global["N"], y: tk.Out["N"]):
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.load(x, i, 16) * 0.125, i)


def test_kernels_that_are_called_as_operators_of_others():
    """Whichever is used first, none takes the name of another's."""
    x = randn(20, grad=True)
    for kernel, factor in ((halved_, 0.125), (halved, 0.5), (halved_backward, 0.25)):
        y = kernel.op(x)
        assert torch.equal(y, x * factor)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full((20,), factor))
    assert halved.op._schema.name == "tkpy::test_operator_halved"


def test_defaults_that_schemas_have_no_word_for():
    @tk.kernel
    def odd(
        x: tk.Global["N"],
        y: tk.Out["N"],
        *,
        bound: float = float("inf"),
        word: str = 'a "b"',
        none: int | None = None,
    ):
        i = tk.grid(tk.cdiv("N", 16))
        t = tk.minimum(tk.load(x, i, 16), bound)
        tk.store(y, t if word == 'a "b"' else t * 2.0, i)

    x = randn(20)
    assert torch.equal(odd.op(x), x)
    assert torch.equal(odd.op(x, bound=0.0, word="c"), x.clamp(max=0) * 2)


def test_kernels_are_copied_and_pickled_by_name():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel, self.w = scaled, torch.nn.Parameter(torch.ones(8))

        def forward(self, x):
            return self.kernel(x, self.w)

    layer = copy.deepcopy(Layer())
    assert layer.kernel is scaled and pickle.loads(pickle.dumps(scaled)) is scaled
    layer(randn(5, 8)).sum().backward()
    assert layer.w.grad is not None
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(make(2.0))


# -- autocast --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
)
def test_autocast_where_the_kernel_says_so(dtype):
    x, w = randn(2, 5, 8, grad=True), randn(5)
    with torch.autocast("cpu", dtype):
        y = gram(x, w.to(dtype))  # of two types, as torch.matmul's operands may be
        plain = gram(x.detach(), w)
        kept = scaled(x[0], randn(8))
    assert y.dtype == plain.dtype == dtype and kept.dtype == torch.float32
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    low = x.detach().to(dtype)
    assert torch.equal(plain, gram(low, w.to(dtype)))
    assert gram(x.detach(), w).dtype == torch.float32
