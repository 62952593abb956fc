"""Histograms and the k largest: every dtype, tie and NaN, any tiling, what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from verbs import CASES
from verbs_order import largest, ranked

import tkpy as tk
from codegen.ops import TABLE
from tkpy.ahead import Setting, compile_for
from tkpy.execution import launcher


@tk.kernel
def streamed(
    x: tk.Global["M N"], v: tk.Out["M K"], p: tk.Out["M K", tk.i32],
    *, rows: int = 16, cols: int = 32, backwards: bool = False,
):  # fmt: skip
    i = tk.grid(tk.cdiv("M", rows))
    tiles = tk.cdiv("N", cols)
    best, at = tk.topk_start(rows, "K", dtype=x.dtype)
    for j in tk.range(tiles):
        k = tiles - 1 - j if backwards else j
        t = tk.load(x, (i, k), shape=(rows, cols))
        best, at = tk.topk_merge(best, at, t, k * cols)
    tk.store(v, best, (i, 0))
    tk.store(p, at, (i, 0))


def run(x, k, **tiling):
    outs = {"v": torch.empty(len(x), k, dtype=x.dtype),
            "p": torch.empty(len(x), k, dtype=torch.int32)}  # fmt: skip
    return streamed(x, **outs, **tiling)


SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, 3e38, -3e38])


@given(number=st.integers(0, 2**31), m=st.integers(1, 20), n=st.sampled_from([1, 7, 16, 33, 90]),
       k=st.sampled_from([10, 32]), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
       ties=st.booleans())  # fmt: skip
@settings(max_examples=14, deadline=None, database=None)
@seed(11)
def test_largest_are_those_of_a_stable_sort(number, m, n, k, dtype, ties):
    g = torch.Generator().manual_seed(number)
    x = torch.randn(m, n, generator=g) * (1 if ties else 100)
    x = x.round() if ties else x
    some = torch.randint(0, 3, (m, n), generator=g) == 0
    x = torch.where(some, SPECIAL[torch.randint(0, 8, (m, n), generator=g)], x).to(dtype)
    v, p = ranked(x, k)
    got, at = run(x, k)
    assert torch.equal(at, p)
    assert torch.equal(got.isnan(), v.isnan())
    assert torch.equal(got.double().nan_to_num(7), v.nan_to_num(7))


def test_any_tiling_and_order_of_tiles():
    x = torch.randint(-9, 10, (21, 150), generator=torch.Generator().manual_seed(1)).float()
    x[4, 3] = x[4, 100] = float("nan")
    v, p = ranked(x, 64)
    for tiling in ({}, {"rows": 32, "cols": 128}, {"backwards": True}):
        got, at = run(x, 64, **tiling)
        assert torch.equal(at, p), tiling
        assert torch.equal(got.double().nan_to_num(99), v.nan_to_num(99))


def test_zeros_tie_and_lose_their_sign():
    x = torch.tensor([[-0.0, 0.0, -0.0, -1.0]])
    v, p = run(x, 10)
    assert p[0].tolist() == [0, 1, 2, 3] + [-1] * 6
    assert not v[0, :3].signbit().any() and v[0, 3] == -1 and (v[0, 4:] == -torch.inf).all()


def test_integers_of_the_whole_range():
    @tk.kernel
    def k(x: tk.Global["M N", tk.i32], v: tk.Out["M 4", tk.i32], p: tk.Out["M 4", tk.i32]):
        i = tk.grid(tk.cdiv("M", 16))
        best, at = tk.topk(tk.load(x, (i, 0), shape=(16, 16)), 4, first=2**31 - 16)
        tk.store(v, best, (i, 0))
        tk.store(p, at, (i, 0))

    v, p = k(torch.tensor([[-(2**31), 2**31 - 1, 0, -1, 2**31 - 1], [-(2**31)] * 5]).int())
    top = 2**31 - 16
    assert v.tolist() == [[2**31 - 1, 2**31 - 1, 0, -1], [-(2**31)] * 4]
    assert p.tolist() == [[top + 1, top + 4, top + 2, top + 3], [top + j for j in range(4)]]


@pytest.mark.parametrize(("kind", "case"), [("largest", "largest"), ("histogram", "counts")])
def test_dead_elements_would_count_without_the_row_that_keeps_them_out(kind, case, monkeypatch):
    """A seeded defect: the operation's need of its dead elements is taken away."""
    kernel, meaning, make, _ = CASES[case]
    made = make({"M": 19, "N": 7, "K": 1}, torch.Generator().manual_seed(2), torch.float32)
    inputs, outs = made
    want = meaning(*inputs)
    call = kernel.binder.bind(tuple(inputs), dict(outs))
    results = []
    for neutral in (TABLE[kind].neutral, lambda op: []):
        monkeypatch.setitem(TABLE, kind, dataclasses.replace(TABLE[kind], neutral=neutral))
        # A poisoned integer is no bin's number; without poison a dead one is 0 + 1.
        lowered = kernel.lower(kernel.key_of(call), poison=kind == "largest")
        fresh = kernel.binder.bind(tuple(inputs), {n: t.clone() for n, t in outs.items()})
        kernel._allocate(fresh)
        launch = launcher(lowered.source, kernel.name, torch.device("cpu"))
        launch(*(fresh.tensors[p.name] for p in kernel.signature.tensors))
        got = [fresh.tensors[p.name] for p in fresh.wanted]
        results.append(all(torch.equal(a, b.to(a.dtype)) for a, b in zip(got, want, strict=True)))
    assert results == [True, False]


@pytest.mark.parametrize("name", ["randoms", "counts", "largest"])
@pytest.mark.parametrize("target", ["sm_90", pytest.param("gfx942", marks=pytest.mark.slow)])
def test_compiles_for_gpus(name, target):
    assert compile_for(CASES[name][0], target, Setting("bf16", {"M": 40, "N": 40})).binary


@pytest.mark.slow
def test_the_same_as_torch_where_nothing_ties():
    x = torch.randn(64, 1000, generator=torch.Generator().manual_seed(4))
    got, at = run(x, 32, rows=32, cols=64)
    want = x.topk(32, dim=1)
    assert torch.equal(got, want.values) and torch.equal(at.long(), want.indices)


BODY = """
import tkpy as tk

@tk.kernel
def k(x: tk.Global["M N"], o: tk.Out["M N"], c: tk.Global["M N", tk.i32], n: tk.i32):
    i = tk.grid(tk.cdiv("M", 16))
    t, w = tk.load(x, (i, 0), shape=(16, 16)), tk.load(c, (i, 0), shape=(16, 16))
    v, p = {line}
    tk.store(o, t, (i, 0))
"""
REFUSED = [
    ("tk.histogram(t, 8), 0", "histogram takes a tile or vector of integers, not 16x16 f32"),
    ("tk.histogram(w, 0), 0", "the number of bins is 0"),
    ("tk.histogram(w, n), 0", "the number of bins must be known at compile time"),
    ("tk.topk(t, 0)", "k is 0, not a positive number"),
    ("tk.topk(t, 129)", "k is 129, more than 128"),
    ("tk.topk(t, n)", "k must be known at compile time"),
    ("tk.topk(tk.row_sum(t), 3)", "topk takes a tile, not col_vec of 16 f32"),
    ("tk.topk(tk.cast(w, tk.i64), 3)", "topk orders f32, bf16, f16, i32, not i64"),
    ("tk.topk(tk.cast(w, tk.i8), 3)", "tk.cast(x, tk.i32)"),
    ("tk.topk_merge(t, t, t, 0)", "16x16 f32 is no state of topk"),
    ("tk.topk_merge(*tk.topk(t, 3), w, 0)", "element types differ"),
    ("tk.topk_merge(*tk.topk(t, 3), tk.concat(t, t, axis=0), 0)", "rows differ"),
    ("tk.topk_start(16, 3, dtype=tk.u8)", "topk orders"),
]


@pytest.mark.parametrize(("line", "says"), REFUSED)
def test_refused(tmp_path, line, says):
    path = tmp_path / "k.py"
    source = BODY.format(line=line)
    path.write_text(source)
    scope: dict = {}
    exec(compile(source, str(path), "exec"), scope)
    with pytest.raises(tk.CompileError) as e:
        compile_for(scope["k"], "cpu", Setting("f32", {"M": 16, "N": 16}))
    assert says in str(e.value) and f"{path}:8" in str(e.value)


def test_keys_order_every_pair():
    """The numpy meaning of a key: what sorts before what, against Python's own comparison."""
    from codegen.ops.order import _numpy_key

    values = np.array([[float("nan"), np.inf, 3.5, 0.0, -0.0, -1e-40, -2.0, -np.inf]])
    op = type("O", (), {"operands": []})()
    key = _numpy_key(op, values, np.arange(8, dtype=np.int32)[None])[0]
    assert list(np.argsort(-key.astype(object))) == list(range(8))
    assert largest.name == "largest" and key.min() > 0
