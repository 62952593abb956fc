"""Predicted times on a CPU: where memory hides under work, and rates of a machine that stalls."""

from dataclasses import replace

import pytest
import torch

import tkpy as tk
from tkpy.carries import CPU
from tkpy.pipeline import probe
from tkpy.pipeline.of_kernel import front_end_of
from tkpy.pipeline.predict import cpu_seconds


@tk.kernel
def straight(x: tk.Global["M N"], y: tk.Out["M N"]):
    i = tk.grid(tk.cdiv("M", 16))
    tk.store(y, tk.exp(tk.load(x, (i, 0), (16, "N"))), (i, 0))


@tk.kernel
def looping(x: tk.Global["M N"], y: tk.Out["M N"]):
    i = tk.grid(tk.cdiv("M", 16))
    for j in tk.range(tk.cdiv("N", 64)):
        tk.store(y, tk.exp(tk.load(x, (i, j), (16, 64))), (i, j))


def predicted(kernel, **rates):
    call = kernel.binder.bind((torch.empty(1024, 512),), {})
    fn, cost = front_end_of(kernel, kernel.key_of(call))
    return cpu_seconds(fn, cost, call.sizes, replace(CPU, **rates))


@pytest.mark.parametrize(("kernel", "hides"), [(straight, True), (looping, False)])
def test_memory_hides_under_work_where_rows_go_by_strips(kernel, hides):
    free = predicted(kernel, special=1e9, dram=1e15)
    paid = predicted(kernel, special=1e9, dram=40e9)  # 4 MB in 0.1 ms, under 0.5 ms of exp
    assert (paid == pytest.approx(free, rel=1e-6)) == hides
    least = 2 * 4 * 1024 * 512 / 1e9  # memory alone
    assert predicted(kernel, special=1e15, dram=1e9) >= least
    if not hides:
        assert paid - free == pytest.approx(2 * 4 * 1024 * 512 / 40e9, rel=1e-3)


def test_a_rate_is_asked_for_again_where_work_seems_to_take_no_time(monkeypatch):
    told = iter([2.0, 1.0, 1.0, 3.0])  # the base once slower than what contains it
    monkeypatch.setattr(probe, "seconds", lambda run: next(told))
    assert probe._beyond(lambda: None, lambda: None) == 2.0
    monkeypatch.setattr(probe, "seconds", lambda run: 1.5)
    assert probe._beyond(lambda: None, lambda: None) == 1.5
