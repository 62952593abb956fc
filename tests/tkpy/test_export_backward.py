"""Exported backwards: where there is no tkpy they give the bits that the kernel gives here."""

import cli_kernels
import pytest
import torch
from gradients import native
from test_carries import given, recurrent
from test_export import run_alone
from test_gradients_of_scans import scans

import tkpy as tk
from tkpy.ahead import Setting
from tkpy.errors import CompileError
from tkpy.export_backward import export_backward
from zoo.kernels.attention import attention


@pytest.mark.slow
def test_attention_alone(tmp_path):
    g = torch.Generator().manual_seed(0)
    q, k, v, do = (torch.randn(1, 2, n, 24, generator=g) for n in (37, 45, 45, 37))
    source = export_backward(attention, Setting("f32", {"D": 24}, {"rows": 16, "cols": 16}))
    kernel = lambda *x: attention(*x, rows=16, cols=16)  # noqa: E731
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    want = torch.autograd.grad(kernel(*leaves), leaves, do)
    made = run_alone(tmp_path, source, "attention", {"forward": ((q, k, v), {})})["forward"]
    kept = [torch.tensor(x) for x in made]
    assert torch.allclose(kept[0], kernel(q, k, v), 1e-5, 1e-5)
    calls = {
        "gradients": ((q, k, v), {"kept": kept, "gradients": (do,)}),
        "shape": ((q, k, v), {"kept": kept, "gradients": (do[:, :1],)}),
        "static": ((q[..., :16].contiguous(), k, v), {"kept": kept, "gradients": (do,)}),
    }
    report = run_alone(tmp_path, source, "attention_backward", calls)
    for x, y in zip(report["gradients"], want, strict=True):
        assert torch.allclose(torch.tensor(x), y, 1e-4, 1e-5)
    assert "refused" in report["shape"]
    assert "compiled for D=24, not 16" in report["static"]


@pytest.mark.slow
def test_operators_of_scans_stay_apart(tmp_path):
    """A program's scans have operators of their own, under one name in each."""
    x, cotangent = torch.randn(4, 7, 9), torch.randn(4, 7, 9)
    what = {"which": "affine", "axis": 0, "reverse": False}
    want = native(scans, {"x": x, **what}, ["x"], {"o": cotangent})["x"]
    source = export_backward(scans, Setting("f32", {"M": 7, "N": 9, "K": 4}, what))
    made = run_alone(tmp_path, source, "scans", {"y": ((x,), what)})["y"]
    given = {"kept": [torch.tensor(t) for t in made], "gradients": (cotangent,)}
    report = run_alone(tmp_path, source, "scans_backward", {"g": ((x,), {**what, **given})})
    assert torch.allclose(torch.tensor(report["g"][0]), want, 1e-4, 1e-5)


@pytest.mark.slow
def test_carries_by_hand(tmp_path, monkeypatch):
    """A loop that is cut as ``carries`` says is cut in the export too, and gives the same bits."""
    leaves = given(70)
    cts = {"o": torch.randn(70, 9), "last": torch.randn(9, 9)}
    setting, order = Setting("f32", {"D": 9, "N": 70}), ["x", "w", "s"]
    texts, results = [], []
    for wish in ("saved", 2):
        monkeypatch.setattr(recurrent.backward, "carries", wish)
        want = native(recurrent, leaves, order, cts)
        texts.append(export_backward(recurrent, setting))
        forward = {"y": (tuple(leaves[n] for n in order), {})}
        made = run_alone(tmp_path, texts[-1], "recurrent", forward)["y"]
        kept = {"kept": [torch.tensor(t) for t in made], "gradients": tuple(cts.values())}
        call = {"g": (tuple(leaves[n] for n in order), kept)}
        got = run_alone(tmp_path, texts[-1], "recurrent_backward", call)["g"]
        results.append([torch.tensor(t) for t in got])
        for n, t in zip(order, results[-1], strict=True):
            assert torch.allclose(t, want[n], 1e-4, 1e-5)
    assert texts[0] != texts[1] and "segment" in texts[1] and "segment" not in texts[0]
    assert all(map(torch.equal, *results))


@pytest.mark.slow
def test_one_output_needs_no_tuple(tmp_path):
    source = export_backward(cli_kernels.scaled, Setting("f32", {"D": 16}))
    x = torch.randn(1, 16)
    calls = {"forward": ((x,), {})}
    assert "scaled_backward" in source and "_launch_1" in source
    kept = torch.tensor(run_alone(tmp_path, source, "scaled", calls)["forward"][0])
    one, many = (kept, torch.ones(1, 16)), ((kept,), (torch.ones(1, 16),))
    calls = {
        name: ((x,), {"kept": k, "gradients": g})
        for name, (k, g) in {"one": one, "many": many, "wrong": (kept[0], one[1])}.items()
    }
    report = run_alone(tmp_path, source, "scaled_backward", calls)
    assert report["one"] == report["many"] and "refused" in report["wrong"]


@tk.kernel
def counted(x: tk.Global["N", tk.i32], y: tk.Out["N", tk.i32]):
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.load(x, i, shape=16), i)


def test_what_has_no_derivative_is_refused():
    with pytest.raises((CompileError, tk.errors.TkError), match="no derivative"):
        export_backward(counted)
