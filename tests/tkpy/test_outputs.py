"""Outputs that a call allocates: their shapes, and what they say about the variant."""

import pytest
import torch

import tkpy as tk


@tk.kernel
def widened(x: tk.Global["N D"], y: tk.Out["N+1 2*D-8"]):
    i = tk.grid(tk.cdiv("N", 16))
    t = tk.load(x, (i, 0), shape=(16, "D"))
    tk.store(y, t, (i, 0))


@tk.kernel
def outer(x: tk.Global["N"], y: tk.Global["M"], o: tk.Out["N M"]):
    i, j = tk.grid(tk.cdiv("N", 16), tk.cdiv("M", 16))
    a, b = tk.load(x, (i,), shape=(16,)), tk.load(y, (j,), shape=(16,))
    tk.store(o, tk.zeros(16, 16) + tk.broadcast_col(a, 16) * b, (i, j))


def meta(*shape):
    return torch.empty(shape, device="meta")


def test_shape_from_expressions():
    assert widened(torch.randn(5, 16)).shape == (6, 24)


def test_negative_size_is_refused():
    with pytest.raises(tk.CallError, match=r"y would have shape \(1, -2\)"):
        widened.binder.collect((meta(0, 3),), {})


def test_alignment_counts_outputs_that_do_not_exist_yet():
    assert widened.binder.collect((meta(16, 32),), {}).aligned is False  # 2*32-8 = 56
    assert widened.binder.collect((meta(16, 36),), {}).aligned is False
    assert widened.binder.collect((meta(16, 24),), {}).aligned is False  # x itself
    assert outer.binder.collect((meta(64), meta(48)), {}).aligned is True
    assert outer.binder.collect((meta(64), meta(40)), {}).aligned is False


def test_width_counts_outputs_that_do_not_exist_yet():
    assert outer.binder.collect((meta(2**16), meta(2**14)), {}).wide is False
    assert outer.binder.collect((meta(2**16), meta(2**15)), {}).wide is True
