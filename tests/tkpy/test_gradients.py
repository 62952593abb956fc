"""Derivatives of control flow, memory and choices: what no table of verbs covers.

Each kernel's derived programs are run without rounding and held against autograd; where there is
no reference to trust, against finite differences of the kernel itself, evaluated in fp64.
"""

import numpy as np
import pytest
import torch
from gradients import autograd, derive, exact, native, run

import tkpy as tk
from codegen.cpu import launch
from codegen.evaluate import evaluate
from codegen.expr import sym
from codegen.grad import rules
from tkpy.errors import CompileError


def kernels():
    """(kernel, meaning, arguments) by name."""
    return {k.name: (k, meaning, make) for k, meaning, make in _ALL}


_ALL = []


def case(meaning, **arguments):
    def register(kernel):
        _ALL.append((kernel, meaning, arguments))
        return kernel

    return register


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


# -- memory ------------------------------------------------------------------------------------


@case(lambda x: x * torch.cat([x[1:], torch.zeros_like(x[:1])]), x=normal(37, 20))
@tk.kernel
def neighbours(x: tk.Global["N D"], o: tk.Out["N D"]):
    """Two reads of one place, by two programs."""
    i = tk.grid("N")
    a, b = tk.load(x, (i, 0), shape="D"), tk.load(x, (i + 1, 0), shape="D")
    tk.store(o, a * b, (i, 0))


def _windows(x, w):
    past = torch.cat([torch.zeros_like(x[:3]), x])
    return sum(past[k : k + len(x)] * w[3 - k] for k in range(4))


@case(_windows, x=normal(50, 20), w=normal(4, 20))
@tk.kernel
def windows(x: tk.Global["T D"], w: tk.Global["4 D"], o: tk.Out["T D"]):
    """Tiles that overlap the neighbours', and weights that all programs share."""
    i = tk.grid(tk.cdiv("T", 16))
    acc = tk.zeros(16, "D")
    for k in range(4):
        acc += tk.load(x, (tk.at(i * 16 - k), 0), shape=(16, "D")) * tk.load(w, (k, 0), shape="D")
    tk.store(o, acc, (i, 0))


@case(lambda x, y: x.repeat_interleave(3, 0) * y, x=normal(2, 40), y=normal(6, 40))
@tk.kernel(where=["H % G == 0", "G >= 1"])
def grouped(x: tk.Global["G N"], y: tk.Global["H N"], o: tk.Out["H N"]):
    """Programs that share a head, told by a quotient."""
    h = tk.grid("H")
    a = tk.load(x, (h // tk.dim("H // G"), 0), shape="N")
    tk.store(o, a * tk.load(y, (h, 0), shape="N"), (h, 0))


@case(lambda x, s: x * s[:, None] * s[0], x=normal(21, 20), s=normal(21))
@tk.kernel
def scalars(x: tk.Global["N D"], s: tk.Global["N"], o: tk.Out["N D"]):
    i = tk.grid("N")
    a = tk.load(x, (i, 0), shape="D", dtype=tk.f32)
    tk.store(o, a * tk.load(s, (i,)) * tk.load(s, (0,)), (i, 0))


@case(lambda x, y: (x.sum(0), x.T @ y), x=normal(70, 20), y=normal(70, 24))
@tk.kernel
def own_sums(
    x: tk.Global["N D"], y: tk.Global["N E"], total: tk.Out["D", tk.f32],
    both: tk.Out["D E", tk.f32],
):  # fmt: skip
    """Outputs that the programs add to."""
    i = tk.grid(tk.cdiv("N", 16))
    a, b = tk.load(x, (i, 0), shape=(16, "D")), tk.load(y, (i, 0), shape=(16, "E"))
    tk.store_add(total, tk.col_sum(tk.cast(a, tk.f32)), (0,))
    tk.store_add(both, tk.mm_AtB(a, b), (0, 0))


# -- control -----------------------------------------------------------------------------------


def _recurrent(x, w):
    s = torch.zeros(x.shape[1], x.shape[1]).to(x)
    out = []
    for rows in x.split(16):
        s = torch.tanh(s @ w + rows.T @ rows)
        out.append(rows @ s)
    return torch.cat(out)


@case(_recurrent, x=normal(40, 16) * 0.3, w=normal(16, 16) * 0.3)
@tk.kernel
def recurrent(x: tk.Global["N D"], w: tk.Global["D D"], o: tk.Out["N D"]):
    """A carry that its own adjoint asks for: every value of it is kept."""
    tk.grid(1)
    s, wt = tk.zeros("D", "D"), tk.load(w, (0, 0), shape=("D", "D"), dtype=tk.f32)
    for i in tk.range(tk.cdiv("N", 16)):
        a = tk.load(x, (i, 0), shape=(16, "D"), dtype=tk.f32)
        s = tk.tanh(tk.mm_AB(s, wt) + tk.mm_AtB(a, a))
        tk.store(o, tk.mm_AB(a, s), (i, 0))


def _nested(x, y):
    return torch.stack([(r * y[: 16 * (k + 1)]).sum(1).tanh().sum() * r for k, r in enumerate(x)])


@case(_nested, x=normal(5, 20), y=normal(70, 20))
@tk.kernel
def nested(x: tk.Global["N D"], y: tk.Global["M D"], o: tk.Out["N D"]):
    """A loop whose end depends on the program."""
    i = tk.grid("N")
    a = tk.load(x, (i, 0), shape="D", dtype=tk.f32)
    total = tk.zeros("D")
    for j in tk.range(tk.cdiv("M", 16), until=i + 1):
        b = tk.load(y, (j, 0), shape=(16, "D"), dtype=tk.f32)
        total = total + tk.sum(tk.tanh(tk.row_sum(b * a))) * a
    tk.store(o, total, (i, 0))


def _branches(x, flag):
    return torch.stack([r * r.sum() if f else r.exp() for r, f in zip(x, flag, strict=True)])


@case(_branches, x=normal(9, 20), flag=torch.arange(9, dtype=torch.int32) % 2)
@tk.kernel
def branches(x: tk.Global["N D"], flag: tk.Global["N", tk.i32], o: tk.Out["N D"]):
    i = tk.grid("N")
    a = tk.load(x, (i, 0), shape="D", dtype=tk.f32)
    y = a * 0
    if tk.load(flag, (i,)) > 0:  # noqa: SIM108  a branch is meant
        y = a * tk.sum(a)
    else:
        y = tk.exp(a)
    tk.store(o, y, (i, 0))


@case(lambda x: torch.where(x > 0, x, 0).cumprod(1), x=normal(20, 21).round())
@tk.kernel
def products_with_zeros(x: tk.Global["N D"], o: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    a = tk.load(x, (i, 0), shape=(16, "D"), dtype=tk.f32)
    tk.store(o, tk.cumprod(tk.where(a > 0, a, 0.0), 1), (i, 0))


@case(lambda x: (x.prod(1), x.flip(1).cumprod(1).flip(1)), x=normal(20, 9).round())
@tk.kernel
def zeros_in_products(x: tk.Global["N D"], o: tk.Out["N"], back: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    a = tk.load(x, (i, 0), shape=(16, "D"), dtype=tk.f32)
    tk.store(o, tk.row_prod(a), (i,))
    tk.store(back, tk.cumprod(a, 1, reverse=True), (i, 0))


@case(
    lambda x, y: (x.amax(1), torch.maximum(x, y), torch.minimum(x, y).amin(0)),
    x=torch.ones(20, 21),
    y=torch.ones(20, 21),
)
@tk.kernel
def ties(
    x: tk.Global["N D"], y: tk.Global["N D"], a: tk.Out["N"], b: tk.Out["N D"], c: tk.Out["D"]
):
    """Equal elements share evenly, equal operands take half each, as in PyTorch."""
    tk.grid(1)
    u, v = tk.load(x, (0, 0), shape=("N", "D")), tk.load(y, (0, 0), shape=("N", "D"))
    tk.store(a, tk.row_max(u), (0,))
    tk.store(b, tk.maximum(u, v), (0, 0))
    tk.store(c, tk.col_min(tk.minimum(u, v)), (0,))


@case(
    lambda x, y: torch.softmax((x @ y.mT).masked_fill(
        torch.ones(len(x), len(y)).tril() == 0, -torch.inf), -1) @ y,
    x=normal(40, 24) * 0.3, y=normal(40, 24, seed=1) * 0.3,
)  # fmt: skip
@tk.kernel
def masked(x: tk.Global["N D"], y: tk.Global["N D"], o: tk.Out["N D"]):
    """-inf under a mask, the running maximum detached, a causal limit."""
    i = tk.grid(tk.cdiv("N", 16))
    q = tk.load(x, (i, 0), shape=(16, "D"))
    m, l, acc = tk.full(16, -1e30), tk.zeros(16), tk.zeros(16, "D")
    for j in tk.range(tk.cdiv("N", 16), until=tk.causal_limit(i, 16, 16)):
        k = tk.load(y, (j, 0), shape=(16, "D"))
        s = tk.causal(tk.mma_ABt(q, k), i * 16, j * 16)
        top = tk.detach(tk.row_max(s, m))
        p, r = tk.exp(s - top), tk.exp(m - top)
        l, acc, m = l * r + tk.row_sum(p), tk.mma_AB(p, k, acc * r), top
    tk.store(o, acc / l, (i, 0))


CASES = kernels()


def prepared(name, **options):
    kernel, _, arguments = CASES[name]
    derived = derive(kernel, arguments, **options)
    kernel._allocate(derived.call)
    g = torch.Generator().manual_seed(1)
    cts = {n: torch.randn(derived.call.tensors[n].shape, generator=g) for n in derived.outputs()}
    return derived, cts


def wanted(name, derived, cts):
    _, meaning, arguments = CASES[name]
    outputs = [p.name for p in derived.call.wanted]
    return autograd(meaning, arguments, derived.wrt, cts, outputs)


def off(got, want):
    """The largest relative error over all gradients."""
    return max(
        np.abs(got[n] - want[n]).max(initial=0) / (1e-9 + np.abs(want[n]).max(initial=0))
        for n in want
    )


@pytest.mark.parametrize("name", CASES)
def test_without_rounding(name):
    derived, cts = prepared(name)
    assert off(exact(derived, cts), wanted(name, derived, cts)) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_compiled(name):
    """Compiled, with NaN in dead elements, and with atomic sums: the same within rounding."""
    derived, cts = prepared(name)
    want = exact(derived, cts)
    kernel, _, arguments = CASES[name]
    arrays = [
        native(kernel, arguments, derived.wrt, cts),
        native(kernel, arguments, derived.wrt, cts, deterministic=False),
        run(prepared(name, poison=True)[0], cts, blank=float("nan")),
    ]
    for got in arrays:
        assert off({n: t.double().numpy() for n, t in got.items()}, want) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["windows", "masked", "recurrent"])
def test_threads_and_the_interpreter(name, monkeypatch):
    derived, cts = prepared(name)
    kernel, _, arguments = CASES[name]
    first = native(kernel, arguments, derived.wrt, cts)
    monkeypatch.setattr(launch, "_WORTH", 0)
    for count in (1, 2, 4):
        monkeypatch.setenv("TKPY_NUM_THREADS", str(count))
        for n, t in native(kernel, arguments, derived.wrt, cts).items():
            assert torch.equal(t, first[n])
    monkeypatch.setenv("TKPY_EXECUTOR", "interpreter")
    slow = native(kernel, arguments, derived.wrt, cts)
    assert off({n: t.double().numpy() for n, t in slow.items()},
               {n: t.double().numpy() for n, t in first.items()}) < 1e-5  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked", "recurrent", "grouped"])
def test_empty(name):
    """No rows: gradients of no elements, or zeros where others have some."""
    kernel, _, arguments = CASES[name]
    empty = {n: t[:0] if n != "w" else t for n, t in arguments.items()}
    if name == "grouped":
        empty = {"x": arguments["x"][:, :0], "y": arguments["y"][:, :0]}
    outs, saved = kernel.backward.forward(empty, list(empty))
    got = kernel.backward.gradients(empty, outs, saved, [torch.zeros_like(outs[0])], list(empty))
    for n, t in got.items():
        assert t.shape == empty[n].shape and not t.any()


# -- statements that are false, and programs that are ------------------------------------------


@tk.kernel
def falsely(x: tk.Global["N D"], o: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    a = tk.load(x, (i, 0), shape=(16, "D"), dtype=tk.f32)
    tk.store(o, a * tk.detach(tk.row_max(a)), (i, 0))


def differences(derived, cts, h=1e-5):
    """<gradient, d> of a random direction, by central differences of the kernel in fp64."""
    call, fn = derived.call, derived.made.forward.fn
    known = {sym(n): v for n, v in call.sizes.items()}
    g = np.random.default_rng(0)
    arrays = {n: t.double().numpy().copy() for n, t in call.tensors.items()}
    direction = {n: g.standard_normal(arrays[n].shape) for n in derived.wrt}

    def at(step):
        now = {n: a + step * direction[n] if n in direction else a * 0 for n, a in arrays.items()}
        for p in fn.params:
            if p.name not in now and p.role != "scalar":
                shape = [int(d.subs(known)) for d in p.dims]
                now[p.name] = np.zeros(shape)
        mine = {p.name: now[p.name] for p in fn.params if p.role != "scalar"}
        evaluate(fn, mine, call.scalars, known)
        return sum((now[n] * c.double().numpy()).sum() for n, c in cts.items())

    return (at(h) - at(-h)) / (2 * h), direction


def along(derived, cts):
    """The same by the derived programs."""
    slope, direction = differences(derived, cts)
    got = exact(derived, cts)
    return slope, sum((got[n] * direction[n]).sum() for n in derived.wrt)


@pytest.mark.parametrize("name", ["masked", "windows"])
def test_finite_differences(name):
    slope, got = along(*prepared(name))
    assert abs(slope - got) < 1e-6 * (1 + abs(slope))


def test_a_false_detach_is_caught():
    x = normal(20, 20)
    derived = derive(falsely, {"x": x})
    falsely._allocate(derived.call)
    slope, got = along(derived, {"o": torch.ones(20, 20)})
    assert abs(slope - got) > 1e-2 * abs(slope)


def _half_a_product(x, op, g):
    x.gives(0, x.map("mul", g, x.wide(1)))


def _crossed(x, op, g):
    """A product's adjoints with an operand that is not transposed."""
    low = x.narrow(g, op.operands[0].type.dtype)
    if len(op.operands) == 3:
        x.gives(2, g)
    ta, tb = op.attrs["ta"], op.attrs["tb"]

    def product(a, b, ta, tb):
        return x.emit.value("mma", a, b, ta=ta, tb=tb, precision=op.attrs["precision"])

    if x.wants(0):
        b = x.value(1)
        x.gives(0, product(low, b, False, tb))
    if x.wants(1):
        x.gives(1, product(x.value(0), low, not ta, False))


@pytest.mark.parametrize(
    "kind, rule, name",
    [("mul", _half_a_product, "neighbours"), ("mma", _crossed, "recurrent")],
)
def test_seeded_rules_are_caught(kind, rule, name, monkeypatch):
    monkeypatch.setitem(rules.RULES, kind, rule)
    try:
        derived, cts = prepared(name)
    except (CompileError, AssertionError):
        return
    assert off(exact(derived, cts), wanted(name, derived, cts)) > 1e-6


def test_a_carry_that_is_not_replayed_is_caught(monkeypatch):
    """Every iteration backwards sees the last value instead of its own."""
    from codegen.grad.reverse import Reverse
    from codegen.grad.tape import Tapes

    real, finals = Reverse._replay_loop, {}

    def loop(self, op, scope):
        real(self, op, scope)
        finals.update({b: a for a, b in self.finals.items()})

    def last(self, op, k):
        return self.emit.shaped(finals[op.results[k]], op.regions[0].args[k].type)

    monkeypatch.setattr(Reverse, "_replay_loop", loop)
    monkeypatch.setattr(Tapes, "read", last)
    derived, cts = prepared("recurrent")
    assert off(exact(derived, cts), wanted("recurrent", derived, cts)) > 1e-3


def test_a_frozen_carry_that_is_not_detached_is_caught(monkeypatch):
    from codegen.grad.reverse import Reverse

    monkeypatch.setattr(
        Reverse, "_frozen", lambda self, op, k: op.regions[0].terminator.operands[k]
    )
    derived, cts = prepared("recurrent")
    assert off(exact(derived, cts), wanted("recurrent", derived, cts)) > 1e-3


def test_overlaps_that_are_overlooked_are_caught(monkeypatch):
    from codegen.grad import settle

    monkeypatch.setattr(settle, "_disputed", lambda stores, owners: set())
    monkeypatch.setattr(settle, "disputed", lambda *_: None)
    derived, cts = prepared("neighbours")
    assert off(exact(derived, cts), wanted("neighbours", derived, cts)) > 1e-3


# -- what is refused -----------------------------------------------------------------------------


@tk.kernel
def rewritten(x: tk.Global["N D"], o: tk.Out["D"]):
    tk.grid(1)
    for i in tk.range("N"):
        tk.store(o, tk.load(x, (i, 0), shape="D"), (0,))


@tk.kernel
def stored_twice(x: tk.Global["N D"], o: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    a = tk.load(x, (i, 0), shape=(16, "D"))
    tk.store(o, a, (i, 0))
    tk.store(o, a * a, (i, 0))


@tk.kernel
def in_place(x: tk.InOut["N D"], o: tk.Out["N D"], y: tk.Global["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    a = tk.load(x, (i, 0), shape=(16, "D"))
    tk.store(x, a * tk.load(y, (i, 0), shape=(16, "D")), (i, 0))
    tk.store(o, a, (i, 0))


@pytest.mark.parametrize(
    "kernel, said",
    [
        (rewritten, "o is written in the same place for every i"),
        (stored_twice, "o is stored twice in the same place"),
        (in_place, "x is read and written"),
    ],
)
def test_refusals_name_the_line_and_the_fix(kernel, said):
    x = normal(20, 20)
    arguments = {"x": x, "y": x} if kernel is in_place else {"x": x}
    with pytest.raises(CompileError) as e:
        derive(kernel, arguments)
    assert said in str(e.value) and "fix:" in str(e.value) and "test_gradients.py:" in str(e.value)
