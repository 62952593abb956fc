"""Random numbers by counter: known answers, Triton's own, any tiling, and their statistics."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import tkpy as tk
from codegen.ops.random import philox
from tkpy.ahead import Setting, compile_for

# Random123 1.14, tests/kat_vectors: counter, key, result.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    assert [int(w) for w in philox(counter, key)] == words


@tk.kernel
def drawn(
    x: tk.Global["B M N"], words: tk.Out["4 B M N", tk.i32], u: tk.Out["B M N", tk.f32],
    g: tk.Out["B M N", tk.f32], n: tk.Out["B M N", tk.i32], kept: tk.Out["B M N"],
    key: tk.i64, p: tk.f32, *, rows: int = 16, cols: int = 32,
):  # fmt: skip
    b, i, j = tk.grid("B", tk.cdiv("M", rows), tk.cdiv("N", cols))
    place = tk.offsets(x, (b, i, j), shape=(rows, cols))
    for k, w in enumerate(tk.philox(key, place)):
        tk.store(words, tk.cast(w, tk.i32), (k, b, i, j))
    tk.store(u, tk.rand(key, place), (b, i, j))
    tk.store(g, tk.randn(key, place), (b, i, j))
    tk.store(n, tk.randint(key, place, -3, 7), (b, i, j))
    t = tk.load(x, (b, i, j), shape=(rows, cols))
    tk.store(kept, tk.dropout(t, p, key, place), (b, i, j))


def words_of(key, count):
    at = np.arange(count, dtype=np.uint64)
    key %= 2**64
    zero = np.zeros_like(at)
    return philox((at & np.uint64(0xFFFFFFFF), at >> np.uint64(32), zero, zero),
                  (key & 0xFFFFFFFF, key >> 32))  # fmt: skip


SIZES = {"b": st.integers(1, 3), "m": st.integers(1, 40), "n": st.integers(1, 70)}


@given(**SIZES, key=st.one_of(st.sampled_from([0, 1, -1]), st.integers(-(2**30), 2**30)),
       sides=st.sampled_from([(16, 32), (32, 64)]))  # fmt: skip
@settings(max_examples=10, deadline=None, database=None)
@seed(5)
def test_words_are_philox_of_the_element_whatever_the_tiling(b, m, n, key, sides):
    drawn_right(b, m, n, key, sides)


@pytest.mark.slow
@given(**SIZES, key=st.one_of(st.sampled_from([2**31, 2**63 - 1, -(2**63)]),
                              st.integers(-(2**63), 2**63 - 1)))  # fmt: skip
@settings(max_examples=10, deadline=None, database=None)
@seed(6)
def test_all_64_bits_of_a_seed_count(b, m, n, key):
    drawn_right(b, m, n, key, (16, 32))


def drawn_right(b, m, n, key, sides):
    x = torch.ones(n, b, m).permute(1, 2, 0)  # strides say nothing about an element's number
    words, u, g, r, kept = drawn(x, key, 0.25, rows=sides[0], cols=sides[1])
    want = words_of(key, b * m * n)
    for k in range(4):
        assert np.array_equal(words[k].numpy().view(np.uint32).ravel(), want[k])
    folded = want[0].astype(np.int32).astype(np.int64)
    folded = np.where(folded < 0, -folded - 1, folded)
    assert np.abs(u.numpy().ravel() - folded / 2**31).max() < 1e-6
    assert np.array_equal(r.numpy().ravel(), (want[0].astype(np.int64) * 10 >> 32) - 3)
    assert torch.equal(kept, torch.where(u >= 0.25, 1 / 0.75, 0.0).float())
    assert bool(((u >= 0) & (u < 1)).all()) and bool(g.isfinite().all())


@triton.jit
def tritons(u, g, key, n, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(u + i, tl.rand(key, i), mask=i < n)
    tl.store(g + i, tl.randn(key, i), mask=i < n)


def test_the_same_as_tritons_own():
    x = torch.zeros(1, 50, 41)
    _, u, g, _, _ = drawn(x, 1234567, 0.5)
    wants = torch.empty(2, x.numel())
    tritons[(triton.cdiv(x.numel(), 128),)](wants[0], wants[1], 1234567, x.numel(), SIZE=128)
    assert torch.equal(u.ravel(), wants[0]) and torch.equal(g.ravel(), wants[1])


def test_statistics():
    x = torch.ones(1, 512, 512)
    size = x.numel()
    _, u, g, r, kept = drawn(x, 99, 0.3)
    _, other, *_ = drawn(x, 100, 0.3)
    sigma = size**-0.5
    assert abs(u.mean() - 0.5) < 5 * sigma * 12**-0.5
    assert abs(u.double().var() - 1 / 12) < 5 * sigma * 180**-0.5
    assert abs(g.double().mean()) < 5 * sigma and abs(g.double().var() - 1) < 5 * sigma * 2**0.5
    assert abs((g.double() ** 4).mean() - 3) < 5 * sigma * 96**0.5
    counts = torch.bincount((u.ravel() * 256).long(), minlength=256).double()
    chi = ((counts - size / 256) ** 2 / (size / 256)).sum()
    assert abs(chi - 255) < 5 * (2 * 255) ** 0.5
    assert sorted(set(r.ravel().tolist())) == list(range(-3, 7))
    for a, b in ((u[0, :, 1:], u[0, :, :-1]), (u[0, 1:], u[0, :-1]), (u, other)):  # neighbours
        correlation = ((a.double() - 0.5) * (b.double() - 0.5)).mean() * 12
        assert abs(correlation) < 5 * sigma
    assert abs((kept == 0).double().mean() - 0.3) < 5 * sigma * 0.21**0.5
    assert abs(kept.mean() - 1) < 0.02


@tk.kernel
def vectors(o: tk.Out["N", tk.f32], k: tk.Global["N"], key: tk.i32, *, side: int = 32):
    i = tk.grid(tk.cdiv("N", side))
    tk.store(o, tk.rand(key, tk.offsets(k, (i,), shape=(side,))), (i,))


def test_vectors_and_short_seeds():
    x = torch.zeros(101)
    want = words_of(-7, 101)[0].astype(np.int32).astype(np.int64)
    want = np.where(want < 0, -want - 1, want) / 2**31
    for side in (16, 64):
        assert np.abs(vectors(x, -7, side=side).numpy() - want).max() < 1e-6


def test_offsets_of_more_elements_than_32_bits_count():
    x = torch.zeros(1, 1).expand(3, 2**31 - 1)[:, : 2**31 - 5]  # no memory behind it

    @tk.kernel
    def last(x: tk.Global["M N"], o: tk.Out["M 16", tk.i64]):
        i = tk.grid("M")
        at = tk.offsets(x, (tk.at(i), tk.at(tk.dim("N") - 16)), shape=(16, 16))
        tk.store(o, at, (tk.at(i), 0), until=i + 1)

    got = last(x)
    n = 2**31 - 5
    assert got[:, -1].tolist() == [n - 1, 2 * n - 1, 3 * n - 1]
    assert got[2].tolist() == list(range(3 * n - 16, 3 * n))


@pytest.mark.parametrize("target", ["sm_90", pytest.param("gfx942", marks=pytest.mark.slow)])
def test_compiles_for_gpus(target):
    assert compile_for(drawn, target, Setting("f32", {"M": 40, "N": 40})).binary


REFUSED = [
    ("tk.rand(1.5, at)", "a seed is an integer, not 1.5"),
    ("tk.rand(p, at)", "a seed is an integer scalar: p is f32 scalar"),
    ("tk.rand(1, t)", "offsets are a tile or vector of 32- or 64-bit integers: t is 16x16 f32"),
    ("tk.rand(1, 3)", "offsets are a tile or vector of integers, not 3"),
    ("tk.rand(2**64, at)", "more than 64 bits"),
    ("tk.dropout(t, 1.5, 1, at)", "probability 1.5: it is a number from 0 to 1"),
    ("tk.dropout(at, 0.5, 1, at)", "dropout takes a tile of floats"),
    ("tk.dropout(t, 0.5, 1, at[:, 0:16].T @ t)", "16x16 i64"),
    ("tk.dropout(t, 0.5, 1, tk.offsets(x, (0, 0), shape=(32, 16)))", "shapes differ"),
    ("tk.cast(tk.randint(1, at, 3, 3), tk.f32)", "low < high"),
    ("tk.cast(tk.randint(1, at, 0, 2**31 + 1), tk.f32)", "low < high <= 2**31"),
    ("tk.offsets(x, (0, 0), shape=())", "a tile or a vector of plain sides"),
]


@pytest.mark.parametrize(("line", "says"), REFUSED)
def test_refused(tmp_path, line, says):
    source = (
        'import tkpy as tk\n\n@tk.kernel\ndef k(x: tk.Global["M N"], o: tk.Out["M N"], p: tk.f32):\n'
        '    i = tk.grid(tk.cdiv("M", 16))\n    t = tk.load(x, (i, 0), shape=(16, 16))\n'
        f"    at = tk.offsets(x, (i, 0), shape=(16, 16))\n    tk.store(o, {line}, (i, 0))\n"
    )
    path = tmp_path / "k.py"
    path.write_text(source)
    scope: dict = {}
    exec(compile(source, str(path), "exec"), scope)
    with pytest.raises(tk.CompileError) as e:
        compile_for(scope["k"], "cpu", Setting("f32", {"M": 16, "N": 16}))
    assert says in str(e.value) and f"{path}:8" in str(e.value)
