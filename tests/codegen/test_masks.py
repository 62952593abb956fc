"""Masks that become one, and rows known to be long in sixteens: fewer instructions, same values."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tkpy as tk
from tkpy.ahead import Setting, key_of, lower_for
from tkpy.execution import launcher
from zoo.kernels.attention import attention


@tk.kernel
def totals(
    x: tk.Global["N M", tk.f32], y: tk.Out["N", tk.f32], *, ahead: int = 0, fill: float = 3.0,
    last: int = 1000,
):  # fmt: skip
    """Sums of rows whose padding counts 3.0, as do ``fill`` right of a diagonal, and of a width."""
    i = tk.grid(tk.cdiv("N", 32))
    total = tk.zeros(32)
    for j in tk.range(tk.cdiv("M", 32)):
        s = tk.fill_dead(tk.load(x, (i, j), (32, 32)), 3.0, axis=1)
        s = tk.causal(s, i * 32 + tk.dim("M - N") + ahead, j * 32, fill=fill)
        total += tk.row_sum(tk.right_fill(s, last, fill=fill, col=j * 32))
    tk.store(y, total, i)


def by_hand(x, ahead, fill, last):
    n, m = x.shape
    wide = torch.full((n, (m + 31) // 32 * 32), 3.0, dtype=torch.float64)
    wide[:, :m] = x
    row, col = torch.arange(n)[:, None], torch.arange(wide.shape[1])
    wide = torch.where(col <= row + m - n + ahead, wide, fill)
    return torch.where(col < last, wide, fill).sum(1)


RUN: dict = {}


def run(kernel, key, poison, call):
    slot = (kernel.name, key, poison)
    if slot not in RUN:
        source = kernel.lower(key, poison=poison).source
        RUN[slot] = launcher(source, kernel.name, torch.device("cpu"))
    kernel._allocate(call)
    RUN[slot](*[call.tensors[p.name] for p in kernel.signature.tensors])
    return next(call.tensors[p.name] for p in call.wanted)


#: Joined by implication, not by it, with a third mask, not at all.
MASKS = [(0, 3.0, 1000), (1, 3.0, 1000), (-3, 3.0, 40), (0, 2.0, 40)]


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(MASKS), st.booleans())
@settings(deadline=None, max_examples=80)
def test_joined_masks_are_the_masks_one_by_one(n, m, masks, poison):
    ahead, fill, last = masks
    x = torch.randn(n, m)
    call = totals.binder.bind((x,), {"ahead": ahead, "fill": fill, "last": last})
    got = run(totals, totals.key_of(call), poison, call)
    want = by_hand(x.double(), ahead, fill, last)
    assert (got - want).abs().max() <= 1e-5 * (x.abs().sum(1).max() + 200)


@pytest.mark.parametrize("causal, selects", [(True, 1), (False, 1)])
def test_attention_has_one_select_a_score(causal, selects):
    setting = Setting(sizes={"D": 64}, constants={"causal": causal})
    source = lower_for(attention, setting, target="sm_90").source
    assert source.count("tl.where(") == selects + 1  # and the one of queries that see no key
    # The product is written before the mask, so that no predicate waits for it.
    assert source.index("tl.dot(qt") < source.index("tl.where(") < source.index("tl.max(s")


def test_a_mask_that_does_not_imply_the_edge_takes_it_along():
    def selects(**constants):
        source = lower_for(totals, Setting(constants=constants), device="cpu").source
        return source.count("tl.where("), source.count("< M)")

    assert selects(fill=3.0) == (1, 1)  # the load's alone
    assert selects(fill=3.0, ahead=1) == (1, 2)
    assert selects(fill=2.0) == (2, 2)


# --- rows of sixteens -----------------------------------------------------------------------------


@tk.kernel
def doubled(x: tk.Global["N M"], y: tk.Out["N M"]):
    i, j = tk.grid(tk.cdiv("N", 16), tk.cdiv("M", 32))
    tk.store(y, tk.load(x, (i, j), (16, 32)) * 2, (i, j))


def test_an_aligned_variant_knows_the_length_of_rows():
    source = lower_for(doubled, Setting(sizes={"N": 30, "M": 48})).source
    assert "M = M_by_16 * 16" in source and "M // 16" in source and "N_by_16" not in source
    assert key_of(doubled, Setting(sizes={"N": 30, "M": 48})).aligned
    assert not key_of(doubled, Setting(sizes={"M": 40})).aligned
    part = torch.empty(8, 64, device="meta")[:, :40]  # strides of 64, rows of 40
    assert not doubled.key_of(_on_gpu(doubled.binder.collect((part,), {}))).aligned
    whole = torch.empty(8, 64, device="meta")[:, :48]
    assert doubled.key_of(_on_gpu(doubled.binder.collect((whole,), {}))).aligned


def _on_gpu(call):
    call.device = torch.device("cuda")
    return call


@pytest.mark.parametrize("n, m", [(1, 16), (30, 48), (17, 64)])
def test_an_aligned_variant_computes_the_same(n, m):
    x = torch.randn(n, m)
    call = doubled.binder.bind((x,), {})
    key = replace(doubled.key_of(call), aligned=True)
    assert torch.equal(run(doubled, key, False, call), 2 * x)
