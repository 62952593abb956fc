"""Defects found by writing kernels, each with the smallest program that shows it."""

import pytest
import torch
from sympy import Integer

import tkpy as tk
from codegen.expr import FloorDiv, Max, Min, sym
from codegen.facts import _MAX_STEPS, Facts
from tkpy.ahead import Setting, lower_for
from tkpy.errors import CompileError, TkError


def test_a_proof_that_does_not_exist_is_given_up_soon():
    # The mask of a sliding window: once some minutes of search.
    m, n, i, j, r, c, w = map(sym, ("M", "N", "i", "j", "_r", "_c", "window"))
    start = FloorDiv(Max(0, m - n + 64 * i - w + 1), 64)
    ranges = {
        m: (Integer(0), None),
        n: (Integer(0), None),
        w: (Integer(1), None),
        i: (Integer(0), FloorDiv(n + 63, 64) - 1),
        j: (start, FloorDiv(m + 63, 64) - 1),
        r: (Integer(0), Integer(63)),
        c: (Integer(0), Integer(63)),
    }
    facts = Facts(ranges)
    assert not facts.nonnegative(-m + n + c - r - 64 * i + 64 * j + w - 1)
    assert facts._steps <= _MAX_STEPS


@tk.kernel
def copy_of(x: tk.Global["N M if turned else M N"], y: tk.Out["M N"], *, turned: bool = False):
    i = tk.grid(tk.cdiv("M", 16))
    if turned:
        tk.store(y, tk.load(x, (0, i), shape=("N", 16)).T, (i, 0))
    else:
        tk.store(y, tk.load(x, (i, 0), shape=(16, "N")), (i, 0))


def test_a_constant_decides_the_order_of_dimensions():
    x = torch.randn(20, 7)
    assert torch.equal(copy_of(x), x)
    assert torch.equal(copy_of(x, turned=True), x.T)
    assert 'tk.Global["N M if turned else M N"]' in str(copy_of.signature.tensors[0].spec)


def test_dimensions_in_a_choice_are_the_same_ones():
    with pytest.raises(TkError, match="the same dimensions"):
        tk.Global["N K if turned else M N"]
    with pytest.raises(TkError, match="an output has one shape"):
        tk.Out["N M if turned else M N"]


@tk.kernel
def less_nothing(x: tk.Global["M"], y: tk.Out["M"], *, nothing: float = 0.0):
    i = tk.grid(tk.cdiv("M", 16))
    tk.store(y, tk.load(x, (i,), shape=16) - nothing, (i,))


def test_less_nothing_costs_nothing_and_keeps_the_sign_of_zero():
    x = torch.tensor([0.0, -0.0, 1.5, float("nan")])
    assert torch.equal(less_nothing(x).view(torch.int32), x.view(torch.int32))
    sources = [
        lower_for(less_nothing, Setting("f32", {}, {"nothing": n})).source for n in (-0.0, 0.0)
    ]
    assert ["t - (-0.0)" in s or "t - 0.0" in s for s in sources] == [True, False]


@tk.kernel
def seen(x: tk.Global["N M"], y: tk.Out["N"]):
    i = tk.grid(tk.cdiv("N", 16))
    total, first = tk.zeros(16), i * 16 + tk.dim("M - N")
    for j in tk.range(tk.cdiv("M", 16), until=tk.causal_limit(i, 16, 16, tk.dim("M - N"))):
        total += tk.row_sum(tk.causal(tk.load(x, (i, j), (16, 16)), first, j * 16, fill=0.0))
    tk.store(y, total, i)


def test_whole_tiles_below_a_diagonal_between_unequal_sides_carry_no_mask():
    for n, m in ((40, 40), (20, 70), (70, 20)):
        x = torch.randn(n, m)
        torch.testing.assert_close(seen(x), x.tril(m - n).sum(1))
    whole, rest = lower_for(seen, Setting("f32")).source.split("    for j")[1:3]
    assert "where" not in whole and "where" in rest


@tk.kernel
def summed_late(x: tk.Global["N D"], w: tk.Global["D D"], y: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    xt, wt = tk.load(x, (i, 0), shape=(16, "D")), tk.load(w, (0, 0), shape=("D", "D"))
    a = xt + 1
    top = a @ wt
    bottom = tk.row_sum(a) + tk.row_sum(xt * (xt @ wt + 1))
    tk.store(y, top / bottom, (i, 0))


def test_a_name_is_not_reused_while_text_that_is_not_yet_written_needs_it():
    x, w = torch.rand(5, 20), torch.rand(20, 20)
    a = x + 1
    expected = (a @ w) / (a.sum(1) + (x * (x @ w + 1)).sum(1))[:, None]
    torch.testing.assert_close(summed_late(x, w), expected)


def test_least_and_largest_are_kept_as_short_as_numbers_allow():
    x, y = sym("x"), sym("y")
    assert Min(x, x + 3, y, 7, 9) == Min(7, y, x)
    assert Max(x, Max(y, x + 1), x + 1) == Max(x + 1, y)
    assert Min(x, x + 2) == x and Max(4, 9) == 9
    assert Min(x, y).subs({x: 3, y: 5}) == 3 and Max(x, y).subs(x, y + 2) == y + 2


@tk.kernel
def centred(x: tk.Global["M N"], y: tk.Out["M N"], *, cols: int = 64):
    i, total = tk.grid(tk.cdiv("M", 16)), tk.zeros(16)
    width = min(cols, tk.cdiv("N", 16) * 16)
    for j in tk.range(tk.cdiv("N", width)):
        total += tk.row_sum(tk.load(x, (i, j), (16, width)))
    for j in tk.range(tk.cdiv("N", width)):
        tk.store(y, tk.load(x, (i, j), (16, width)) - total / tk.static("N"), (i, j))


def test_a_loop_of_one_trip_is_no_loop_and_reads_once():
    for n in (5, 64, 65, 130):
        x = torch.randn(17, n)
        want = x - x.mean(1, keepdim=True)
        torch.testing.assert_close(centred(x), want, atol=1e-6, rtol=1e-5)
    one, two = (lower_for(centred, Setting("f32", {"N": n})).source for n in (64, 65))
    assert "for j in" in two.replace("# for", "") and two.count("tl.load(") == 4
    assert "for j in" not in one.replace("# for", "") and one.count("tl.load(") == 1


@tk.kernel(where=["R <= D"])
def of_the_first(x: tk.Global["N D"], w: tk.Global["R"], y: tk.Out["N"], *, tile: int = 0):
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.row_sum(tk.load(x, (i, tile), (16, "R")) * tk.load(w, 0, "R")), i)


@tk.kernel(where=["R <= D"])
def sum_of_the_first(x: tk.Global["N D"], w: tk.Global["R"], y: tk.Out["N"]):
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.row_sum(tk.load(x, (i, 0), (16, "R"))), i)


def test_a_named_side_ends_the_tile_also_in_a_longer_dimension():
    for d, r in ((10, 5), (40, 16), (40, 17), (5, 5)):
        x = torch.randn(20, d)
        torch.testing.assert_close(sum_of_the_first(x, torch.ones(r)), x[:, :r].sum(1))
    source = lower_for(sum_of_the_first, Setting("f32", {"D": 10, "R": 5})).source
    assert "< 5" in source and "< 10" not in source  # one bound implies the other


def test_tiles_of_a_named_side_are_not_counted_in_rounded_ones():
    x, w = torch.randn(20, 64), torch.ones(32)
    torch.testing.assert_close(of_the_first(x, w, tile=1), x[:, 32:].sum(1))
    with pytest.raises(
        CompileError, match=r"a tile of 5 is not a multiple of 16(.|\n)*tk.at\(1 \* 5\)"
    ):
        of_the_first(x, torch.ones(5), tile=1)


@tk.kernel
def neighbours(x: tk.Global["N"], y: tk.Out["N"]):
    i = tk.grid(tk.cdiv("N", 16)) * 16
    left, right = (tk.load(x, tk.at(i - 1), 16), tk.load(x, tk.at(i), 16))
    tk.store(y, left + right, tk.at(i))


def test_bounds_that_differ_by_a_number_are_one_bound():
    x = torch.randn(40)
    want = x.clone()
    want[1:] += x[:-1]
    torch.testing.assert_close(neighbours(x), want)
    source = lower_for(neighbours, Setting("f32")).source
    assert "< N" in source and "< N + 1" not in source


@tk.kernel
def whole_sum(x: tk.Global["N D"], s: tk.Out["", tk.f32]):
    tk.grid(1)
    acc = 0.0
    for i in tk.range(tk.cdiv("N", 16)):
        acc = acc + tk.sum(tk.row_sum(tk.load(x, (i, 0), (16, "D"), dtype=tk.f32)), axis=0)
    tk.store(s, acc, ())


@pytest.mark.parametrize("shape", [(37, 23), (0, 5)])
def test_an_output_without_dimensions_is_made(shape):
    x = torch.randn(shape, requires_grad=True)
    s = whole_sum(x)
    s.backward()
    assert s.shape == () and torch.allclose(s, x.sum(), atol=1e-4)
    assert torch.equal(x.grad, torch.ones(shape))


@tk.kernel
def last_row(x: tk.Global["N"], y: tk.Out["N"]):
    i = tk.grid(tk.cdiv("N", 16))
    live = tk.minimum(tk.dim("N") - i * 16, 16)
    t, at = tk.load(x, i, 16), tk.iota(16)
    tk.store(y, tk.where(at == tk.maximum(live - 1, 0), t, 0.0), i)


def test_the_smaller_of_two_indices_is_an_index():
    y = last_row(torch.ones(37))
    assert y.nonzero()[:, 0].tolist() == [15, 31, 36]
