"""Launches on another road than Triton's: found again by the kinds of their arguments."""

import pytest
import torch
import triton
import triton.language as tl

import codegen.cpu


@triton.jit(do_not_specialize=["n", "scale", "flag"])
def copy(x, o, n, scale, flag, B: tl.constexpr = 16):
    i = tl.arange(0, B)
    tl.store(o + i, tl.load(x + i).to(tl.float64) * scale + n.to(tl.float64) + flag)


@triton.jit(do_not_specialize=["n", "scale"])
def short(x, o, n, scale):
    i = tl.arange(0, 16)
    tl.store(o + i, tl.load(x + i).to(tl.float64) * scale + n.to(tl.float64))


SIZES = (0, 1, 16, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**62, 2**63, 2**64 - 1, -(2**63), True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_every_kind_has_its_kernel(dtype):
    """Twice each and in turns, so that what was found for one is looked up for the others."""
    x = torch.arange(16).to(dtype)
    for _ in range(2):
        for n in SIZES:
            o = torch.zeros(16, dtype=torch.float64)
            codegen.cpu.run(short, (1,), x, o, n, 0.5)
            torch.testing.assert_close(o, x.double() * 0.5 + float(n))
            o.zero_()
            codegen.cpu.run(copy, (1,), x, o, n, 2, 1)
            torch.testing.assert_close(o, x.double() * 2 + float(n) + 1)


def test_other_options_and_features(monkeypatch):
    x, o = torch.arange(16.0), torch.zeros(16, dtype=torch.float64)
    first = codegen.cpu.run(short, (1,), x, o, 3, 0.5)
    assert codegen.cpu.run(short, (1,), x, o, 4, 0.25) is first
    assert codegen.cpu.run(short, (1,), x, o, 4, 0.25, enable_fp_fusion=False) is not first
    monkeypatch.setenv("TKPY_CPU_FEATURES", "base")
    assert codegen.cpu.run(short, (1,), x, o, 4, 0.25) is not first
    monkeypatch.delenv("TKPY_CPU_FEATURES")
    assert codegen.cpu.run(short, (1,), x, o, 4, 0.25) is first
    with pytest.raises(ValueError, match="not a CPU tensor"):
        codegen.cpu.run(short, (1,), x.to("meta"), o, 4, 0.25)
