"""Defaults of constants that GPUs have of their own: who has them, and who does not."""

from __future__ import annotations

import pytest
import torch

import tkpy as tk
from tkpy.ahead import Setting, backward_of, key_of


def scale(
    x: tk.Global["N"],
    z: tk.Global["2*N if wide else N"],
    y: tk.Out["N"],
    *,
    wide: bool = False,
    rows: int = 64,
    step: int = 32,
    needed: int,
):
    i = tk.grid(tk.cdiv("N", rows))
    tk.store(y, tk.load(x, i, rows) * 2.0, i)


@tk.kernel(gpu={"f32": {"rows": 16}}, gpu_backward={"f32": {"rows": 32}})
def double(x: tk.Global["N"], y: tk.Out["N"], *, rows: int = 64, other: int = 1):
    i = tk.grid(tk.cdiv("N", rows))
    tk.store(y, tk.load(x, i, rows) * 2.0, i)


def rows(device="cuda", dtype="f32", key=key_of, **given):
    found = key(double, Setting(dtype, {}, given), device)
    return dict((found[0] if key is backward_of else found).constants)["rows"]


def test_sides_left_open_are_the_gpus():
    assert rows() == 16 and rows(other=5) == 16
    assert rows("cpu") == rows(dtype="bf16") == 64
    assert rows(rows=64) == 64 and rows(rows=128) == 128


def test_a_backward_has_its_own():
    assert rows(key=backward_of) == 32
    assert rows("cpu", key=backward_of) == rows(dtype="f16", key=backward_of) == 64
    assert rows(key=backward_of, rows=128) == 128


def test_what_a_call_leaves_open_its_operators_leave_open(monkeypatch):
    calls, bind = [], double.binder.bind

    def seen(args, kwargs):
        calls.append(bind(args, kwargs))
        return calls[-1]

    monkeypatch.setattr(double.binder, "bind", seen)
    assert "int? rows=None" in str(double.op._schema)
    assert "int other=1" in str(double.op._schema)
    for given in ({}, {"rows": 64}, {"rows": 16}):
        x = torch.randn(50, requires_grad=True)
        y = double(x, **given)
        y.sum().backward()
        assert torch.equal(y, 2 * x) and torch.equal(x.grad, torch.full((50,), 2.0))
        assert len(calls) > 1  # forward and backward
        for call in calls:
            assert ("rows" in call.left_open) == (not given)
            assert call.constants["rows"] == given.get("rows", 64)
        calls.clear()


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ({"f64": {"rows": 16}}, "scale: gpu knows f32, bf16 and f16, not 'f64'"),
        ({"f32": {"side": 16}}, "gpu gives a default to side, which is no constant"),
        ({"f32": {"needed": 16}}, "gpu gives a default to needed, which is no constant with a"),
        ({"f32": {"wide": True}}, "wide, on which a shape or a precondition depends"),
        ({"f32": {"step": 16}}, "step, on which a shape or a precondition depends"),
        ({"f32": {"rows": 16.0}}, "rows: 16.0 is not int"),
        ({"f32": {"rows": True}}, "rows: True is not int"),
    ],
)
def test_sides_that_do_not_fit_are_refused(sides, words):
    with pytest.raises(tk.TkError, match=words):
        tk.kernel(where=["N % step == 0"], gpu=sides)(scale)
