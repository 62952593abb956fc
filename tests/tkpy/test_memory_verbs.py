"""Extremes by atomics, axes of an access, naive vectors, and hints that change no number."""

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import tkpy as tk
from codegen.inspect import inspect
from tkpy.ahead import Setting, compile_for
from tkpy.execution import interpreted


@tk.kernel
def extremes(
    x: tk.Global["M N", "T"],
    low: tk.InOut["N", "T"],
    high: tk.InOut["N", "T"],
    n: tk.InOut["1", tk.i32],
):
    i, j = tk.grid(tk.cdiv("M", 16), tk.cdiv("N", 32))
    for k in tk.range(i * 16, min(i * 16 + 16, tk.dim("M"))):
        t = tk.load(x, (k, j), shape=32)
        tk.store_min(low, t, j)
        tk.store_max(high, t, j)
    tk.store_max(n, i, 0)


VALUES = st.sampled_from([0.0, -0.0, 1.5, -1.5, 3e38, -3e38, 1e-40, -1e-40, float("inf"),
                          -float("inf"), float("nan"), -2.0])  # fmt: skip


@given(st.integers(1, 40), st.integers(1, 40), st.lists(VALUES, min_size=1, max_size=12))
@settings(max_examples=10, deadline=None, database=None)
@seed(5)
def test_extremes_are_those_of_the_numbers(m, n, values):
    g = torch.Generator().manual_seed(m * 41 + n)
    x = torch.tensor(values)[torch.randint(0, len(values), (m, n), generator=g)]
    low, high = torch.full((n,), 0.25), torch.full((n,), -0.25)
    count = torch.full((1,), -1, dtype=torch.int32)
    want_low = torch.minimum(low, torch.where(x.isnan(), torch.inf, x).amin(0))
    want_high = torch.maximum(high, torch.where(x.isnan(), -torch.inf, x).amax(0))
    extremes(x, low, high, count)
    assert torch.equal(low, want_low) and torch.equal(high, want_high)
    assert count.item() == (m - 1) // 16


@tk.kernel
def largest(x: tk.Global["M N", tk.i32], o: tk.InOut["N", tk.i32], low: tk.InOut["N", tk.i32]):
    i = tk.grid(tk.cdiv("M", 16))
    t = tk.load(x, (i, 0), shape=(16, "N"))
    tk.store_max(o, tk.col_max(t), 0)
    tk.store_min(low, tk.col_min(t), 0)


def test_extremes_of_integers_in_both_executions():
    g = torch.Generator().manual_seed(1)
    x = torch.randint(-(2**31), 2**31 - 1, (50, 21), generator=g, dtype=torch.int32)
    for _ in range(2):
        o, low = torch.full((21,), -(2**31), dtype=torch.int32), torch.full((21,), 7).int()
        largest(x, o, low)
        assert torch.equal(o, x.amax(0)) and torch.equal(low, x.amin(0).clamp(max=7))
        with interpreted():
            other, second = torch.full((21,), -(2**31)).int(), torch.full((21,), 7).int()
            largest(x, other, second)
        assert torch.equal(o, other) and torch.equal(low, second)


@tk.kernel
def naive(x: tk.Global["N"], o: tk.Out["N"], s: tk.Out["I", tk.f32], *, length: int = 100):
    i = tk.grid(tk.cdiv("N", length))
    v = tk.load(x, i, shape=length, layout="naive")
    one = tk.ones(length, layout="naive")
    tk.store(o, v * 2, i)
    tk.store(s, tk.sum(v) + 0 * tk.sum(one), i)


@pytest.mark.parametrize("length", [5, 100])
@pytest.mark.parametrize("n", [1, 99, 100, 250])
def test_naive_vectors_have_any_length(n, length):
    x = torch.randint(-9, 9, (n,), generator=torch.Generator().manual_seed(n)).float()
    o, s = naive(x, s=torch.empty(-(-n // length)), length=length)
    assert torch.equal(o, x * 2)
    assert torch.equal(s, torch.stack([p.sum() for p in x.split(length)]))


@tk.kernel
def hints(x: tk.Global["M N"], o: tk.Out["M N"], *, policy: str | None = None,
          out_policy: str | None = None, layout: str | None = None):  # fmt: skip
    i = tk.grid(tk.cdiv("M", 16))
    tk.prefetch(x, (i + 1, 0), shape=(16, "N"), policy=policy)
    t = tk.load(x, (i, 0), shape=(16, "N"), policy=policy, layout=layout)
    tk.store(o, t + tk.zeros(16, "N", dtype=x.dtype, layout=layout), (i, 0), policy=out_policy)


def source(kernel, *inputs, **constants):
    return kernel.lower(kernel.key_of(kernel.binder.bind(inputs, constants))).source


def test_hints_reach_triton_and_change_no_number():
    x = torch.randn(33, 21)
    assert torch.equal(hints(x, policy="evict_first", out_policy="EVICT_LAST"), x + 0.0)
    text = source(hints, x, policy="evict_first", out_policy="EVICT_LAST")
    assert text.count('eviction_policy="evict_first"') == 1
    assert text.count('eviction_policy="evict_last"') == 1
    plain = source(hints, x)
    for options in ({"policy": "normal"}, {"layout": "row"}, {"layout": "col"}):
        assert source(hints, x, **options) == plain
    assert "eviction" not in plain


def test_hints_and_atomics_compile_for_a_gpu():
    setting = Setting("f32", {"M": 32, "N": 32}, {"policy": "evict_last"})
    assert "evict_last" in compile_for(hints, "sm_90", setting).asm["ptx"]
    compiled = compile_for(extremes, "sm_90", Setting("f32", {"M": 32, "N": 32}, {}))
    assert "atom" in compiled.asm["ptx"] or "red" in compiled.asm["ptx"]
    assert inspect(compiled).registers > 0


@tk.kernel
def beyond(x: tk.Global["M N"], o: tk.Out["K", tk.f32], s: tk.Out["K", tk.f32]):
    k = tk.grid("K")
    t = tk.load(x, (k, 0), shape="N", dtype=tk.f32)
    tk.store(o, tk.max(t), k)
    tk.store(s, tk.min(t) + tk.sum(t), k)


def test_a_tile_at_a_coordinate_outside_reads_as_zero():
    x = -torch.rand(3, 20) - 1
    o, s = beyond(x, o=torch.empty(5), s=torch.empty(5))
    assert torch.equal(o[:3], x.amax(1)) and not o[3:].any() and not s[3:].any()
    assert "other=0.0" in source(beyond, x, o=torch.empty(5), s=torch.empty(5))


# -- what is refused -----------------------------------------------------------------------------


@tk.kernel
def wrong(
    x: tk.Global["A B C"],
    o: tk.Out["A B C"],
    f: tk.Out["A", tk.f32],
    s: tk.InOut["A"],
    *,
    case: str,
):
    tk.grid(1)
    t = tk.load(x, (0, 0, 0), shape=(16, 16))
    if case == "axis":
        t = tk.load(x, (0, 0, 0), shape=(16, 16), axis=3)
    if case == "axes":
        t = tk.load(x, (0, 0, 0), shape=(16, 16), axis=(1, 1))
    if case == "two":
        t = t + tk.load(x, (0, 0, 0), shape=16, axis=(0, 1))
    if case == "policy":
        t = tk.load(x, (0, 0, 0), shape=(16, 16), policy="evict_now")
    if case == "layout":
        t = tk.load(x, (0, 0, 0), shape=(16, 16), layout="naive")
    if case == "odd":
        t = t + tk.zeros(100)
    if case == "output":
        tk.store_max(f, tk.cast(tk.row_sum(t), tk.f32), 0)
    if case == "short":
        tk.store_min(s, tk.row_sum(t), 0)
    if case == "prefetch":
        tk.prefetch(x, (0, 0), shape=(16, 16))
    if case == "input":
        tk.store_max(x, t, (0, 0, 0))
    if case == "swap":
        t = tk.swap_layout(t, "naive")
    tk.store(o, t, (0, 0, 0))
    tk.store(f, tk.zeros(16), 0)


@pytest.mark.parametrize(
    "case, said",
    [
        ("axis", "has 3 dimensions .A B C. and no axis 3"),
        ("axes", "is its column axis already"),
        ("two", "names 2 axes of x, and the tile has 1"),
        ("policy", "'evict_now' is none of 'normal', 'evict_first', 'evict_last'"),
        ("layout", "a tile's layout is 'row' or 'col'"),
        ("odd", "multiple of 16"),
        ("output", "declare it tk.InOut"),
        ("short", "atomic min needs f32, i32 or i64"),
        ("prefetch", "2 coordinates were given"),
        ("input", "x is an input and is not written"),
        ("swap", "a tile's layout is 'row' or 'col'"),
    ],
)
def test_what_is_refused_is_said_at_its_line(case, said):
    x = torch.zeros(16, 16, 16, dtype=torch.float16)
    with pytest.raises(tk.CompileError, match=said) as e:
        wrong(x, s=torch.zeros(16, dtype=torch.float16), case=case)
    assert "test_memory_verbs.py:" in str(e.value)
