"""Gradients of rows that an index chooses, and of rows written where one tells."""

import numpy as np
import pytest
import torch
from gradients import autograd, derive, exact, native, run
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import tkpy as tk


@tk.kernel
def lookup(
    table: tk.Global["V D"],
    idx: tk.Global["B N", tk.i64],
    o: tk.Out["B N D"],
    *,
    rows: int = 32,
    cols: int = 16,
):
    """Programs for sequences, tiles of positions and tiles of columns."""
    b, i, j = tk.grid("B", tk.cdiv("N", rows), tk.cdiv("D", cols))
    chosen = tk.load(idx, (b, i), shape=rows)
    t = tk.gather_rows(table, chosen, (None, j), cols)
    tk.store(o, t * t, (b, i, j))


def looked_up(table, idx):
    rows = table[idx.clamp(0, len(table) - 1)]
    inside = (idx >= 0) & (idx < len(table))
    return torch.where(inside[..., None], rows, 0.0) ** 2


@tk.kernel
def attended(
    q: tk.Global["N D"],
    table: tk.Global["V D"],
    pages: tk.Global["M", tk.i32],
    o: tk.Out["N D"],
    *,
    rows: int = 32,
    keys: int = 16,
):
    """Keys are gathered in a loop, by every program the same ones."""
    i = tk.grid(tk.cdiv("N", rows))
    qt, acc = tk.load(q, (i, 0), shape=(rows, "D")), tk.zeros(rows, "D")
    for j in tk.range(tk.cdiv("M", keys)):
        page = tk.load(pages, j, shape=keys)
        kt = tk.gather_rows(table, page, (None, 0), "D")
        acc = tk.mma_AB(tk.mma_ABt(qt, kt), kt, acc)
    tk.store(o, acc, (i, 0))


def attention(q, table, pages):
    k = table[pages.long()]
    return q @ k.mT @ k


@tk.kernel(where=["0 <= idx < N"])
def sent(
    x: tk.Global["N D"],
    idx: tk.Global["N", tk.i32],
    there: tk.Out["N D"],
    total: tk.Out["N D", tk.f32],
):
    i = tk.grid(tk.cdiv("N", 16))
    t, to = tk.load(x, (i, 0), shape=(16, "D")), tk.load(idx, i, shape=16)
    tk.scatter_rows(there, t * 2, to, (None, 0))
    tk.scatter_add_rows(total, t * t, to // 2, (None, 0))


def sending(x, idx):
    there = torch.zeros_like(x).index_copy(0, idx.long(), x * 2)
    return there, torch.zeros_like(x).index_add(0, idx.long() // 2, x * x)


def integers(*shape, g):
    return torch.randint(-3, 4, shape, generator=g).float()


def lookups(v, d, b, n, number):
    g = torch.Generator().manual_seed(number)
    # Few rows, so that many are alike, and some that the table has not.
    return {"table": integers(v, d, g=g), "idx": torch.randint(-2, v + 2, (b, n), generator=g)}, g


@given(v=st.sampled_from([1, 3, 20, 300]), d=st.sampled_from([1, 16, 21]),
       b=st.integers(1, 3), n=st.sampled_from([1, 31, 32, 70]), number=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=4, deadline=None, database=None)
@seed(3)
def test_a_table_without_rounding(v, d, b, n, number):
    inputs, g = lookups(v, d, b, n, number)
    o = torch.empty(b, n, d)
    cotangent = integers(b, n, d, g=g)
    for deterministic in (True, False):
        derived = derive(lookup, {**inputs, "o": o}, deterministic=deterministic)
        got = exact(derived, {"o": cotangent})["table"]
        want = autograd(looked_up, inputs, ["table"], {"o": cotangent}, ["o"])["table"]
        assert np.array_equal(got, want), deterministic


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_table_compiled(deterministic):
    """On integers sums are exact, so that every order gives the same."""
    for v, n in ((7, 70), (40, 33)):
        inputs, g = lookups(v, 21, 2, n, v)
        cotangent = integers(2, n, 21, g=g)
        want = autograd(looked_up, inputs, ["table"], {"o": cotangent}, ["o"])["table"]
        got = native(lookup, inputs, ["table"], {"o": cotangent}, deterministic)["table"]
        assert np.array_equal(got.double().numpy(), want)


def test_a_table_gives_the_same_bits_and_dead_rows_reach_nothing():
    inputs, g = lookups(11, 21, 2, 45, 0)
    inputs["table"] = torch.randn(11, 21, generator=g)
    cotangent = {"o": torch.randn(2, 45, 21, generator=g)}
    one, two = (native(lookup, inputs, ["table"], cotangent)["table"] for _ in range(2))
    assert torch.equal(one, two)
    arguments = {**inputs, "o": torch.empty(2, 45, 21)}
    poisoned = run(derive(lookup, arguments, poison=True), cotangent, blank=float("nan"))
    assert torch.allclose(poisoned["table"], one, 1e-5, 1e-5)


@pytest.mark.slow
def test_rows_in_a_loop():
    g = torch.Generator().manual_seed(1)
    inputs = {"q": integers(50, 20, g=g), "table": integers(9, 20, g=g),
              "pages": torch.randint(0, 9, (37,), generator=g, dtype=torch.int32)}  # fmt: skip
    cotangent = integers(50, 20, g=g)
    want = autograd(attention, inputs, ["q", "table"], {"o": cotangent}, ["o"])
    for joint in (True, False):
        derived = derive(attended, {**inputs, "o": torch.empty(50, 20)}, joint=joint)
        got = exact(derived, {"o": cotangent})
        assert all(np.array_equal(got[n], want[n]) for n in want)
    got = native(attended, inputs, ["q", "table"], {"o": cotangent})
    assert all(np.array_equal(got[n].double().numpy(), want[n]) for n in want)


def test_rows_that_are_written():
    g = torch.Generator().manual_seed(2)
    idx = torch.randperm(37, generator=g).int()
    inputs = {"x": integers(37, 19, g=g), "idx": idx}
    cotangents = {n: integers(37, 19, g=g) for n in ("there", "total")}
    want = autograd(sending, inputs, ["x"], cotangents, ["there", "total"])["x"]
    outs = {n: torch.empty(37, 19) for n in cotangents}
    assert np.array_equal(exact(derive(sent, {**inputs, **outs}), cotangents)["x"], want)
    got = native(sent, inputs, ["x"], cotangents)["x"]
    assert np.array_equal(got.double().numpy(), want)


@tk.kernel
def by_bytes(table: tk.Global["V D"], idx: tk.Global["N", tk.u8], o: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 32))
    tk.store(o, tk.gather_rows(table, tk.load(idx, i, shape=32), (None, 0), "D"), (i, 0))


def test_an_index_without_a_sign():
    """The largest u8 is a row like others: it says not that a row is written elsewhere."""
    g = torch.Generator().manual_seed(3)
    inputs = {"table": integers(300, 16, g=g), "idx": torch.full((40,), 7, dtype=torch.uint8)}
    inputs["idx"][::5] = 255
    cotangent = integers(40, 16, g=g)
    got = native(by_bytes, inputs, ["table"], {"o": cotangent})["table"]
    want = torch.zeros(300, 16).index_add(0, inputs["idx"].long(), cotangent)
    assert torch.equal(got, want)


def test_parts_of_a_table_are_few():
    """All parts together hold no more rows than were looked up, or one table."""
    for v, n, most in ((1000, 64, 1), (4, 4096, 32), (64, 640, 20)):
        inputs, _ = lookups(v, 16, 2, n, 0)
        derived = derive(lookup, {**inputs, "o": torch.empty(2, n, 16)})
        (program,) = derived.made.pieces
        p = program.fn.param("d_table")
        sizes = {"V": v, "N": n, "B": 2, "D": 16}
        parts = int(p.dims[0].subs({s: sizes[s.name] for s in p.dims[0].free_symbols}))
        assert len(p.dims) == 3 and 1 <= parts <= most, (v, n, parts)


def test_seeded_defects(monkeypatch):
    """Rows that are alike added up once each, or not added to what is there."""
    inputs, g = lookups(3, 16, 1, 32, 5)
    cotangent = integers(1, 32, 16, g=g)
    want = autograd(looked_up, inputs, ["table"], {"o": cotangent}, ["o"])["table"]
    from codegen.grad import rows

    pairs = rows._pairs

    def apart(emit, kind, v, axis):
        """No row is like another."""
        none = pairs(emit, "ne" if kind == "eq" else kind, v, axis)
        return emit.map("and", none, pairs(emit, "eq", v, axis)) if kind == "eq" else none

    monkeypatch.setattr(rows, "_pairs", apart)
    derived = derive(lookup, {**inputs, "o": torch.empty(1, 32, 16)})
    assert not np.array_equal(exact(derived, {"o": cotangent})["table"], want)
