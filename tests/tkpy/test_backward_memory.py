"""What a derived backward allocates, counted from its plan: nothing large is made or measured."""

import math

import pytest
import torch

import tkpy as tk
from tkpy import backward, memory
from tkpy.ahead import Setting, backward_for, call_of
from tkpy.backward_plan import Tensor
from zoo.kernels.attention import attention
from zoo.kernels.linear_cross_entropy import linear_cross_entropy

BITS = {"f32": 32, "bf16": 16}


def _plan(kernel, dtype, sizes, **constants):
    call = call_of(kernel, Setting(dtype, sizes, constants), "cpu", "cpu")
    call = kernel.backward._with_own(call)
    wrt, given = tuple(sorted(kernel.backward.inputs(call))), tuple(kernel.backward.outputs(call))
    key = kernel.backward._key(call)
    how = (wrt, given, True, kernel.backward.jointly(key, wrt, given, True, call))
    how = (*how, kernel.backward.segments(key, how, call))
    return kernel.backward._load(key, how, call.device), call, how


def _bytes(t: Tensor, sizes) -> int:
    _, shape, dtype = t.how(sizes)
    return math.prod(shape) * dtype.itemsize


def peak(kernel, dtype, sizes, **constants) -> int:
    """Bytes at the peak of forward and backward, without inputs and cotangents."""
    plan, call, (wrt, _, _, _, _) = _plan(kernel, dtype, sizes, **constants)
    read = {t.name for p in plan.programs for t in p.tensors}
    known = {*call.tensors, *(p.name for p in call.wanted), *(f"d_{p.name}" for p in call.wanted)}
    live = {t.name: _bytes(t, call.sizes) for t in plan.saved}
    wanted = [t for t in plan.forward.tensors if t.role == "out" and t.name not in live]
    live |= {t.name: _bytes(t, call.sizes) for t in wanted if t.name in read}
    made = {t.name: t for p in plan.programs for t in p.tensors}
    most = 0
    for program, done in zip(plan.programs, plan.done, strict=True):
        fresh = [t for t in program.tensors if t.name not in known | {*live}]
        live |= {t.name: _bytes(t, call.sizes) for t in fresh}
        most = max(most, sum(live.values()))
        for n in done:
            del live[n]
    for n in wrt:
        t = made[f"d_{n}"]
        own = t.dtype == TYPES[call.tensors[n].dtype]
        _, shape, _ = t.how(call.sizes)
        one = math.prod(shape[t.parts :])
        if not own or math.prod(shape[: t.parts]) > 1:
            live[n] = one * call.tensors[n].element_size()
            most = max(most, sum(live.values()))
            del live[f"d_{n}"]
    return most


TYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("heads", [1, 2, 4, 16])
def test_attention(dtype, heads):
    """Its output and three gradients; one scratch tensor; no parts of a sum, and d_q in fp32."""
    n, d = 4096, 64
    sizes = {"B": 1, "H": heads, "G": heads, "N": n, "M": n, "D": d}
    own = heads * n * d * BITS[dtype] // 8
    numbers = 4 * heads * n * 4  # a few for each query
    more = 1 if heads >= 4 else 0  # fewer heads: programs of their own, nothing is added up
    rounded = heads * n * d * 4 - own if heads >= 4 else 0
    assert 4 * own < peak(attention, dtype, sizes) <= (4 + more) * own + rounded + numbers


def test_few_programs_are_joint_where_sums_are_small():
    for n, joint in ((512, True), (4096, False)):
        sizes = {"B": 1, "H": 1, "G": 1, "N": n, "M": n, "D": 64}
        assert _plan(attention, "bf16", sizes)[2][3] == joint


def test_what_apart_would_be_too_much_work_is_joint():
    """Linear cross entropy has four products apart for its forward's one."""
    sizes = {"M": 4096, "V": 32768, "D": 64}
    assert _plan(linear_cross_entropy, "f32", sizes)[2][3]


def test_a_wish_is_heard(monkeypatch):
    monkeypatch.setattr(attention.backward, "joint", True)
    sizes = {"B": 1, "H": 1, "G": 1, "N": 4096, "M": 4096, "D": 64}
    assert _plan(attention, "bf16", sizes)[2][3]


@pytest.mark.slow
@pytest.mark.parametrize("least", [0, 1 << 20])
def test_both_forms_give_the_same_gradients(monkeypatch, least):
    """On either side of where sums are large, through autograd."""
    monkeypatch.setattr(backward, "LEAST", least)
    monkeypatch.setattr(backward, "SHARE", 1 << 40)
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(1, 1, 200, 64) for _ in range(4))
    call = attention.binder.bind((q, k, v), {})
    how = (attention.backward._key(call), ("k", "q", "v"), ("o",), True, call)
    assert attention.backward.jointly(*how) == (least > 0)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    mine = torch.autograd.grad(attention(*leaves), leaves, g)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    sdpa = torch.nn.functional.scaled_dot_product_attention(*wide)
    for a, b in zip(mine, torch.autograd.grad(sdpa, wide, g.double()), strict=True):
        assert (a - b).abs().max() <= 64 * 2.0**-24 * b.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_added_up(monkeypatch, dtype):
    monkeypatch.setattr(memory, "PIECE", 7)
    torch.manual_seed(0)
    terms = torch.randn(3, 2, 5, 6, dtype=dtype if dtype.is_complex else torch.float32)
    assert torch.equal(memory.added_up(terms, 2, dtype), terms.sum((0, 1)).to(dtype))
    empty = memory.added_up(torch.ones(0, 4, 6), 1, torch.bfloat16)
    assert empty.shape == (4, 6) and not empty.any()


def test_a_sum_of_one_is_that_one():
    terms = torch.randn(1, 1, 5, 6)
    same = memory.added_up(terms, 2, torch.float32)
    assert same.data_ptr() == terms.data_ptr() and same.shape == (5, 6)


@tk.kernel
def recurrent(x: tk.Global["N D"], s: tk.Global["D D"], o: tk.Out["D D"]):
    """A state whose every value its own adjoint asks for."""
    tk.grid(1)
    state = tk.load(s, (0, 0), shape=("D", "D"))
    for i in tk.range(tk.cdiv("N", 16)):
        a = tk.load(x, (i, 0), shape=(16, "D"))
        state = tk.tanh(state + tk.mm_AtB(a, a))
    tk.store(o, state, (0, 0))


@pytest.mark.parametrize(("tokens", "wide"), [(2**22, False), (2**24, True)])
def test_a_tape_of_more_than_32_bits(monkeypatch, tokens, wide):
    """Of 64 KB for 16 tokens: the call's tensors have 2^30 numbers at most, and the tape 2^32."""
    monkeypatch.setattr(recurrent.backward, "carries", "saved")
    setting = Setting("f32", {"N": tokens, "D": 64})
    call = call_of(recurrent, setting, "cpu", "cpu")
    assert not call.wide
    made = backward_for(recurrent, setting, "cpu", "cpu")
    compiled, _ = recurrent.backward.compiled(call, ("s", "x"), ("o",))
    for text in (made.pieces[0].source, compiled.programs[0].source):
        assert "tape_0" in text and ("tl.int64" in text) == wide
    assert made.forward.fn.wide == wide
    monkeypatch.setattr(recurrent.backward, "carries", "replayed")
    assert "tl.int64" not in backward_for(recurrent, setting, "cpu", "cpu").pieces[0].source


@pytest.mark.parametrize(("target", "stages"), [("sm_90", 3), ("gfx942", 2)])
def test_stages_of_a_plain_kernel(target, stages):
    """Shared memory holds so many loads of a loop, of kernels without a template too."""
    made = backward_for(product, Setting("f32", {"N": 128}), "cuda", target)
    loops = [p for p in made.pieces if any(op.kind == "for" for op in p.fn.body.walk())]
    assert loops and all(p.fn.schedule.machine == target for p in made.pieces)
    assert [p.fn.schedule.stages for p in loops] == [stages] * len(loops)


@tk.kernel
def product(a: tk.Global["M K"], b: tk.Global["K N"], c: tk.Out["M N"]):
    i = tk.grid(tk.cdiv("M", 64))
    acc = tk.zeros(64, "N")
    for k in tk.range(tk.cdiv("K", 64)):
        acc += tk.load(a, (i, k), (64, 64)) @ tk.load(b, (k, 0), (64, "N"))
    tk.store(c, acc, (i, 0))
