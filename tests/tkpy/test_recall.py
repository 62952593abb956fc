"""Recorded calls that are recalled give what the operator gives, bit by bit, and refuse the same."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import tkpy as tk
from codegen.cpu import launch
from tkpy.operator.call import Operator
from tkpy.operator.recall import Recall
from zoo.kernels.norm import rmsnorm


@tk.kernel(where=["0 < s", "N % 2 == 0"])
def gated(
    x: tk.Global["N D"],
    w: tk.Global["D"],
    k: tk.Global["N", tk.i32],
    y: tk.Out["N D"],
    total: tk.Out["N", tk.f32] | None = None,
    count: tk.Out["N", tk.i32] | None = None,
    s: tk.f32 = 1.5,
    *,
    power: float = 1.0,
):
    """y = silu(x) w s power k, total = sums of its rows, count = k + 1."""
    i = tk.grid(tk.cdiv("N", 16))
    t = tk.load(x, (i, 0), (16, "D"), dtype=tk.f32)
    number = tk.col_vec(tk.load(k, i, 16))
    t = t * tk.sigmoid(t) * tk.load(w, 0, "D", dtype=tk.f32) * s * power * tk.cast(number, tk.f32)
    tk.store(y, t, (i, 0))
    if total is not None:
        tk.store(total, tk.row_sum(t), i)
    if count is not None:
        tk.store(count, number + 1, i)


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setattr(launch, "_WORTH", 0)


@pytest.fixture
def asked(monkeypatch):
    """How many calls went to the operator."""
    calls = []
    plain = Operator.__call__
    monkeypatch.setattr(Operator, "__call__", lambda *a: calls.append(a) or plain(*a))
    gated._replay.plans.clear()
    return calls


def inputs(n=6, d=40, dtype=torch.float32, needs=("x", "w"), strided=False):
    torch.manual_seed(n)
    x, w = torch.randn(n, 2 * d if strided else d).to(dtype), torch.randn(d).to(dtype)
    x = x[:, ::2] if strided else x
    return x.requires_grad_("x" in needs), w.requires_grad_("w" in needs), torch.arange(n).int()


def gradients(out, *of):
    out = out if isinstance(out, tuple) else (out,)
    loss = sum((o.float() * (1 + j)).square().sum() for j, o in enumerate(out) if o.requires_grad)
    return torch.autograd.grad(loss, [t for t in of if t.requires_grad])


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(u, v) and u.dtype == v.dtype for u, v in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("needs", [("x", "w"), ("x",), ("w",)])
@pytest.mark.parametrize(
    "more",
    [{}, {"total": True}, {"total": True, "count": True, "s": 2}, {"power": 2.0, "s": 0.5}],
    ids=["y", "total", "all", "constant"],
)
def test_as_the_operator(asked, needs, more):
    for dtype, strided in ((torch.float32, False), (torch.bfloat16, True)):
        x, w, k = inputs(dtype=dtype, needs=needs, strided=strided)
        found = []
        for _ in range(4):
            out = gated(x, w, k, **more)
            found.append((*(out if isinstance(out, tuple) else (out,)), *gradients(out, x, w)))
        assert all(same(found[0], f) for f in found)
    assert len(asked) == 4  # two for each likeness
    assert any(isinstance(p, Recall) for p in gated._replay.plans.values())


def recalled(x, w, k, **more):
    for _ in range(2):
        gated(x, w, k, **more)
    return gated(x, w, k, **more)


def test_other_sizes_and_values_are_seen(asked):
    for n in (2, 18, 40, 600):  # the gradient of w is one sum, or partial ones
        x, w, k = inputs(n)
        recalled(x, w, k)
        with torch.no_grad():
            x += 1
        want = x * torch.sigmoid(x) * w * 1.5 * k[:, None]
        torch.testing.assert_close(gated(x, w, k), want)
        got = gradients(gated(x, w, k, s=3.0), x, w)
        torch.testing.assert_close(got, gradients(2 * want, x, w), rtol=1e-4, atol=1e-4)


def test_only_a_part_of_the_outputs_and_inputs(asked):
    x, w, k = inputs()
    _, total = recalled(x, w, k, total=True)
    (first,) = torch.autograd.grad(total.sum(), x, retain_graph=True)
    y1, _ = torch.ops.tkpy.test_recall_gated(x, w, k, total=True)[:2]
    (want,) = torch.autograd.grad(y1.sum(), x)
    torch.testing.assert_close(first, want)
    torch.testing.assert_close(torch.autograd.grad(total.sum(), x)[0], first, rtol=0, atol=0)


def test_preconditions_and_mistakes_are_refused_as_ever(asked):
    x, w, k = inputs()
    recalled(x, w, k)
    with pytest.raises(tk.CallError, match="0 < s"):
        gated(x, w, k, s=-1.0)
    with pytest.raises(tk.CallError, match="N % 2"):
        gated(*inputs(5))
    with pytest.raises(tk.CallError, match="w"):
        gated(x, w[:3], k)
    y = gated(x, w, k)
    with torch.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_derivatives_are_refused():
    x, w, k = inputs()
    y = recalled(x, w, k)
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(g, gradients(gated(x, w, k) / 2, x)[0]) or g.requires_grad
    with pytest.raises(tk.CallError, match="no second derivative"):
        g.sum().backward()


def turned(t):
    """The same numbers, the first axis contiguous."""
    return t.mT.contiguous().mT if t.ndim == 2 else t.clone()


@pytest.mark.parametrize("strided", [False, True])
def test_hooks_that_store_in_another_layout(strided):
    x, w, k = inputs(strided=strided)
    want = gradients(recalled(x, w, k), x, w)
    other = torch.Tensor.contiguous if strided else turned
    with torch.autograd.graph.saved_tensors_hooks(other, lambda t: t):
        y = gated(x, w, k)
    torch.testing.assert_close(gradients(y, x, w), want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant):
    x, w, k = inputs()
    want = gradients(recalled(x, w, k), x, w)
    y = checkpoint(gated, x, w, k, use_reentrant=reentrant)
    y.float().square().sum().backward()
    assert same((x.grad, w.grad), want)


def test_whoever_looks_on_sees_the_operator(asked):
    x, w, k = inputs()
    recalled(x, w, k)
    before = len(asked)
    with FlopCounterMode(display=False):
        y = gated(x, w, k)
    assert len(asked) == before + 1
    want = gradients(y, x, w)
    y = gated(x, w, k)
    with FlopCounterMode(display=False):
        assert same(gradients(y, x, w), want)
    got = torch.func.grad(lambda x: gated(x, w, k).square().sum())(x)
    assert torch.equal(got, want[0])
    with torch.inference_mode():
        assert torch.equal(gated(x, w, k), y)


def test_a_changed_backward_is_noticed(asked, monkeypatch):
    x, w, k = inputs()
    want = gradients(recalled(x, w, k), x, w)
    before = len(asked)
    monkeypatch.setattr(gated.backward, "joint", False)
    torch.testing.assert_close(gradients(gated(x, w, k), x, w), want)
    assert len(asked) == before + 1


def test_from_several_threads():
    x, w, k = inputs(200)
    want = gradients(recalled(x, w, k), x, w)
    wrong = []

    def work():
        for _ in range(20):
            if not same(gradients(gated(x, w, k), x, w), want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_partial_sums_are_added():
    x = torch.randn(600, 48, requires_grad=True)
    w = torch.randn(48, requires_grad=True)
    for _ in range(3):
        y = rmsnorm(x, w)
    plans = [p for p in rmsnorm._replay.plans.values() if isinstance(p, Recall)]
    assert any(r.parts for p in plans for r in p.results)
    want = torch.nn.functional.rms_norm(x, (48,), w, 1e-5)
    torch.testing.assert_close(gradients(y, x, w), gradients(want, x, w), rtol=1e-4, atol=1e-4)


@tk.kernel(autocast=True)
def products(x: tk.Global["N D"], w: tk.Global["D E"], y: tk.Out["N E"]):
    """A product, whose operands autocast casts."""
    i = tk.grid(tk.cdiv("N", 16))
    a, b = tk.load(x, (i, 0), (16, "D")), tk.load(w, (0, 0), ("D", "E"))
    tk.store(y, tk.mm_AB(a, b), (i, 0))


def test_autocast_is_recalled(asked):
    """As without autocast, on operands that were cast; gradients have the leaves' types."""
    torch.manual_seed(0)
    x, w = torch.randn(6, 20, requires_grad=True), torch.randn(20, 9, requires_grad=True)
    seen = []
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            y = products(x, w)
            assert y.dtype == torch.bfloat16
        seen.append((len(asked), gradients(y, x, w)))
        found = gradients(products(x, w), x, w)
        seen.append((len(asked), found))
    assert [n for n, _ in seen] == [1, 2, 3, 4, 4, 4, 4, 4]  # two calls of either likeness
    low = gradients(products(x.to(torch.bfloat16), w.to(torch.bfloat16)), x, w)
    for k, (_, found) in enumerate(seen):
        assert all(g.dtype == torch.float32 for g in found)
        assert same(found, seen[1][1] if k % 2 else low)
    assert isinstance(list(products._replay.plans.values())[-1], Recall)


@tk.kernel(autocast=True)
def added(x: tk.Global["N D"], w: tk.Global["D D"], s: tk.InOut["N D"]):
    """s += x w"""
    i = tk.grid(tk.cdiv("N", 16))
    p = tk.mm_AB(tk.load(x, (i, 0), (16, "D")), tk.load(w, (0, 0), ("D", "D")))
    tk.store(s, tk.load(s, (i, 0), (16, "D"), dtype=tk.f32) + p, (i, 0))


def test_what_is_written_into_is_not_cast(monkeypatch):
    """As in PyTorch: changes in place and calls with ``out`` do not take part in autocast."""
    x, w = torch.randn(6, 9), torch.randn(9, 9)
    room, want = torch.empty(6, 9), products(x, w)
    for trace in (False, True):
        monkeypatch.setattr(tk.Kernel, "_looked_at", lambda *a, trace=trace: trace)
        s = torch.ones(6, 9)
        with torch.autocast("cpu", torch.bfloat16):
            added(x, w, s)
            assert products(x, w, y=room.zero_()) is room
        assert torch.equal(room, want) and torch.allclose(s, want + 1, atol=1e-5)


@tk.kernel
def pair(x: tk.Global["N"], y: tk.Out["N"], z: tk.Out["N"]):
    i = tk.grid(tk.cdiv("N", 16))
    t = tk.exp(tk.load(x, i, 16))
    tk.store(y, t, i)
    tk.store(z, t * 2.0, i)


@pytest.mark.parametrize("first", range(4))
def test_a_checkpoint_recomputes_by_the_other_way(first):
    """What either way saves must be alike: one is compared with the other."""
    pair._replay.plans.clear()
    for k in range(first + 1):  # the last is recorded or recalled, its recomputation too
        x = torch.randn(20, requires_grad=True)
        y, z = checkpoint(pair, x, use_reentrant=False) if k == first else pair(x)
    (y.sum() + z.sum()).backward()
    torch.testing.assert_close(x.grad, 3 * x.exp())


def test_tensors_without_data_under_autocast():
    x, w = torch.randn(6, 9, device="meta"), torch.randn(9, 9, device="meta")
    with torch.autocast("cpu", torch.bfloat16):
        assert products(x, w).shape == (6, 9)
    for recorded in (False, True):
        for _ in range(3):
            assert products(x.requires_grad_(recorded), w).is_meta
