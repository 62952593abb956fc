"""Loops replayed backwards from all of their carries, or from few: the same gradients, less memory."""

import json

import numpy as np
import pytest
import torch
from gradients import autograd, derive, exact, native
from test_gradients import CASES, off
from typer.testing import CliRunner

import tkpy as tk
from codegen.grad.tape import Tapes
from tkpy import carries
from tkpy.backward_plan import Tensor, entry_of
from tkpy.cli import app
from tkpy.errors import TkError
from zoo.kernels.based import based
from zoo.kernels.linear_attention import linear_attention
from zoo.kernels.mamba2 import mamba2


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def meaning(x, w, s):
    out = []
    for rows in x.split(16) if len(x) else ():
        s = torch.tanh(s @ w + rows.T @ rows)
        out.append(rows @ s)
    return (torch.cat(out) if out else x @ s), s


@tk.kernel
def recurrent(
    x: tk.Global["N D"], w: tk.Global["D D"], s: tk.Global["D D"], o: tk.Out["N D"],
    last: tk.Out["D D"],
):  # fmt: skip
    """A carry that its own adjoint asks for, and one, ``far``, that nobody does."""
    tk.grid(1)
    state, wt = tk.load(s, (0, 0), shape=("D", "D")), tk.load(w, (0, 0), shape=("D", "D"))
    far = tk.zeros("D", "D")
    for i in tk.range(tk.cdiv("N", 16)):
        a = tk.load(x, (i, 0), shape=(16, "D"))
        far = far * 0.5 + state
        state = tk.tanh(tk.mm_AB(state, wt) + tk.mm_AtB(a, a))
        tk.store(o, tk.mm_AB(a, state), (i, 0))
    tk.store(last, state, (0, 0))


def given(rows):
    return {"x": normal(rows, 9) * 0.3, "w": normal(9, 9) * 0.3, "s": normal(9, 9, seed=1)}


def gradients(kernel, arguments, segments=None, **options):
    derived = derive(kernel, arguments, segments=segments, **options)
    kernel._allocate(derived.call)
    g = torch.Generator().manual_seed(1)
    cts = {n: torch.randn(derived.call.tensors[n].shape, generator=g) for n in derived.outputs()}
    return derived, cts, exact(derived, cts)


LENGTHS = [(rows, k) for rows in (0, 5, 32, 70) for k in (1, 2, 3, 7)]
QUICK = [(0, 2), (70, 2)]
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("rows", "k"), [p if p in QUICK else pytest.param(*p, marks=slow) for p in LENGTHS]
)
def test_segments_of_any_length(rows, k):
    """Lengths that k does not divide, one iteration, none."""
    _, cts, kept = gradients(recurrent, given(rows))
    derived, _, got = gradients(recurrent, given(rows), {0: k})
    assert all(np.array_equal(got[n], kept[n]) for n in kept)  # the same operations in fp64
    want = autograd(meaning, given(rows), derived.wrt, cts, ["o", "last"])
    assert off(got, want) < 1e-10


@slow
@pytest.mark.parametrize("name", ["recurrent", "nested", "masked"])
def test_other_loops(name):
    """Those without carries of use are left alone."""
    kernel, _, arguments = CASES[name]
    plain, _, kept = gradients(kernel, arguments)
    cut, _, got = gradients(kernel, arguments, {0: 2})
    assert off(got, kept) < 1e-12
    alike = [p.source for p in plain.programs] == [p.source for p in cut.programs]
    assert alike == (name != "recurrent")


@tk.kernel
def deep(x: tk.Global["N M D"], o: tk.Out["N M D"]):
    """A loop within a loop, each with a carry that is asked for, and one that goes through both."""
    tk.grid(1)
    s = tk.ones("D")
    for i in tk.range("N"):
        t = tk.sin(s)
        for j in tk.range("M"):
            a = tk.load(x, (i, j, 0), shape="D")
            t = tk.tanh(t * a + s)
            tk.store(o, t, (i, j, 0))
        s = s * tk.cos(t)


def deeply(x):
    s, out = torch.ones_like(x[0, 0]), []
    for rows in x:
        t = torch.sin(s)
        for a in rows:
            t = torch.tanh(t * a + s)
            out.append(t)
        s = s * torch.cos(t)
    return torch.stack(out).view(x.shape)


@slow
@pytest.mark.parametrize("segments", [{0: 2}, {1: 2}, {0: 3, 1: 2}])
def test_nests(segments):
    arguments = {"x": normal(5, 3, 6)}
    derived, cts, got = gradients(deep, arguments, segments)
    assert off(got, autograd(deeply, arguments, derived.wrt, cts, ["o"])) < 1e-10


def bytes_of(derived):
    """Of the memory that the programs take for carries, as a call would allocate it."""
    tensors = [Tensor(**t) for p in entry_of(derived.made)["programs"] for t in p["tensors"]]
    sizes = derived.call.sizes
    return sum(
        t.make(sizes, torch.device("cpu")).nbytes for t in tensors if t.name.startswith("tape")
    )


@slow
def test_memory_falls_as_the_root():
    rows = 16 * 64
    kept, cut = (derive(recurrent, given(rows), segments=s) for s in ({}, {0: 8}))
    assert bytes_of(kept) == 64 * 16 * 16 * 4  # a tile of 16 x 16 an iteration
    assert bytes_of(cut) == (8 + 8) * 16 * 16 * 4
    (choice,) = carries.choose(
        carries.facts(kept.made.derivation.taped), kept.call.sizes, "replayed", carries.CPU, 0
    )
    assert (choice.segment, choice.saved) == (8, bytes_of(kept))
    assert choice.replayed == bytes_of(cut)


STATES = {
    "linear attention": (
        linear_attention,
        {"q": normal(1, 2, 70, 20), "k": normal(1, 2, 70, 20), "v": normal(1, 2, 70, 24),
         "slope": torch.tensor([0.0, 0.1]), "state": normal(1, 2, 20, 24), "chunk": 16, "cols": 16},
    ),
    "mamba2": (
        mamba2,
        {"x": normal(1, 2, 70, 20), "a": -normal(1, 2, 70).abs(), "b": normal(1, 1, 70, 12),
         "c": normal(1, 1, 70, 12), "chunk": 16, "cols": 16},
    ),
    "based": (
        based,
        {"q": normal(1, 1, 70, 5) / 4, "k": normal(1, 1, 70, 5) / 4, "v": normal(1, 1, 70, 20),
         "chunk": 16, "cols": 16},
    ),
}  # fmt: skip


@slow
@pytest.mark.parametrize("name", STATES)
def test_kernels_with_a_state(name, monkeypatch):
    """Without rounding, and as they run: forms differ by rounding at most."""
    kernel, arguments = STATES[name]
    derived, cts, kept = gradients(kernel, arguments)
    _, _, got = gradients(kernel, arguments, {0: 2})
    assert off(got, kept) < 1e-10
    ran = {}
    for wish in ("saved", "replayed", 3):
        monkeypatch.setattr(kernel.backward, "carries", wish)
        ran[wish] = native(kernel, arguments, derived.wrt, cts)
    for wish in ("replayed", 3):
        for n, g in ran[wish].items():
            assert (g - ran["saved"][n]).abs().max() <= 64 * 2**-24 * ran["saved"][n].abs().max()


@slow
def test_under_torch_compile_and_as_a_call(monkeypatch):
    arguments = given(100)
    want = autograd(meaning, arguments, ["s", "w", "x"], {"o": torch.ones(100, 9)}, ["o", "last"])
    for wish in (2, "saved"):
        monkeypatch.setattr(recurrent.backward, "carries", wish)
        for call in (recurrent, torch.compile(recurrent, fullgraph=True, backend="aot_eager")):
            leaves = {n: t.clone().requires_grad_() for n, t in arguments.items()}
            call(**leaves)[0].sum().backward()
            for n in want:
                got = leaves[n].grad.double().numpy()
                assert np.abs(got - want[n]).max() <= 1e-4 * np.abs(want[n]).max()


def test_the_choice():
    loops = carries.facts(derive(recurrent, given(70)).made.derivation.taped)
    (loop,) = loops
    assert (loop["noted"], loop["start"], loop["cuttable"]) == (1024, 1024, True)

    def chosen(rows, wish=None, device=carries.CPU, tensors=0, **changes):
        changed = [{**loop, **changes}]
        return carries.choose(changed, {"N": rows, "D": 9}, wish, device, tensors)[0]

    assert chosen(1024).why == "keeping them is faster"
    assert chosen(16).segment == chosen(16, "replayed").segment == 0  # one iteration
    assert chosen(1024, 8).segment == 8
    assert chosen(1024, 64).segment == 0  # a segment as long as the loop
    assert chosen(1024, "saved").segment == 0
    many = chosen(16 << 20)  # 1 GB of carries
    assert many.segment == 1024
    assert "would be kept" in many.why
    assert chosen(16 << 20, tensors=1 << 30).segment == 0
    cheap = chosen(16 << 16, tensors=1 << 30, work=[])
    assert cheap.segment == 256
    assert cheap.why == "making them again is faster"
    assert chosen(16 << 20, cuttable=False).segment == 0


@pytest.mark.parametrize("wish", [0, -1, True, 2.0, "some"])
def test_what_is_no_choice(wish):
    with pytest.raises(TkError, match="fix: None, 'saved', 'replayed'"):
        recurrent.backward.carries = wish
    assert recurrent.backward.carries is None


@slow
def test_cost_says_which_and_why():
    out = CliRunner().invoke(
        app, ["cost", "linear_attention", "--backward", "N=512", "chunk=64", "--json"]
    )
    (said,) = json.loads(out.stdout)["carries"]
    assert (said["places"], said["segment"], said["why"]) == (8, 0, "keeping them is faster")


# -- seeded defects ----------------------------------------------------------------------------


def test_a_segment_replayed_from_a_wrong_carry_is_caught(monkeypatch):
    """Every segment goes on from what the loop began with."""
    arguments = given(70)
    _, cts, _ = gradients(recurrent, arguments)
    place = Tapes._place

    def first(self, op, k, start):
        out = place(self, op, k, start)
        writes = self.emit.regions[-1].args and not self.emit.regions[-1].ops
        cut = self.segment(op)
        if start and cut is not None and not writes:
            out["start"] = tuple(0 if e == cut[0] else e for e in out["start"])
        return out

    monkeypatch.setattr(Tapes, "_place", first)
    derived, _, got = gradients(recurrent, arguments, {0: 2})
    want = autograd(meaning, arguments, derived.wrt, cts, ["o", "last"])
    assert off(got, want) > 1e-3


@slow
def test_a_segment_that_ends_early_is_caught(monkeypatch):
    """The last iterations, fewer than a segment has, are left out."""
    arguments = given(70)
    within = Tapes.within

    def short(self, op):
        low, high = within(self, op)
        return low, high - 1 if self.segment(op) is not None else high

    monkeypatch.setattr(Tapes, "within", short)
    derived, cts, got = gradients(recurrent, arguments, {0: 2})
    want = autograd(meaning, arguments, derived.wrt, cts, ["o", "last"])
    assert not off(got, want) <= 1e-3
