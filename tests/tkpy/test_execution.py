"""One source, several executions: Triton's interpreter and native code give the same answers."""

import pytest
import torch
import verbs_narrow  # noqa: F401  adds to CASES
import verbs_numbers  # noqa: F401
import verbs_order  # noqa: F401
from verbs import CASES, names

import tkpy as tk
from tkpy.execution import executor, interpreted, launcher, strict


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_code_agrees_with_the_interpreter(name, dtype, monkeypatch):
    kernel, _, make, options = CASES[name]
    dtypes = options.get("dtypes", (dtype,))
    outputs = []
    for chosen in ("interpreter", "native"):
        monkeypatch.setenv("TKPY_EXECUTOR", chosen)
        inputs = make({"M": 33, "N": 17, "K": 35}, torch.Generator().manual_seed(3), dtypes[0])
        inputs, outs = inputs if isinstance(inputs, tuple) else (inputs, {})
        got = kernel(*inputs, **outs)
        outputs.append(got if isinstance(got, tuple) else (got,))
    for a, b in zip(*outputs, strict=True):
        if a.is_complex():
            a, b = torch.view_as_real(a), torch.view_as_real(b)
        error = (a.double() - b.double()).abs() - 4e-6 * (b.double().abs())
        assert (error.nan_to_num(0.0) <= 0).all(), error.max()
        assert torch.equal(a.isnan(), b.isnan())


def test_executors_are_chosen_and_refused(monkeypatch):
    cpu = torch.device("cpu")
    assert executor(torch.device("cuda")) == "triton"
    monkeypatch.delenv("TKPY_EXECUTOR", raising=False)
    assert executor(cpu) == "native"
    with strict():
        assert executor(cpu) == "strict native"
        assert executor(torch.device("cuda")) == "strict triton"
        with interpreted():
            assert executor(cpu) == "interpreter"
    monkeypatch.setenv("TKPY_EXECUTOR", "interpreter")
    assert executor(cpu) == "interpreter"
    monkeypatch.setenv("TKPY_EXECUTOR", "fast")
    with pytest.raises(tk.TkError, match="native, interpreter"):
        launcher("", "k", cpu)


@tk.kernel
def fused(x: tk.Global["N"], y: tk.Out["N"]):
    i = tk.grid(tk.cdiv("N", 32))
    t = tk.load(x, i, 32)
    tk.store(y, t * t - 1.0, i)


def test_strict_code_rounds_a_product_before_it_is_added_to():
    x = 1 + torch.arange(100) * 2.0**-20
    with strict():
        assert torch.equal(fused(x), x * x - 1.0)
    with interpreted():
        assert torch.equal(fused(x), x * x - 1.0)
