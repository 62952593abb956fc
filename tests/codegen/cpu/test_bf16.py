"""fp32 to bf16: to nearest even for every kind of number, on every feature set."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def narrow(x, o, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, tl.load(x + i).to(tl.bfloat16))


@pytest.mark.parametrize("features", ["", "avx2", "base"])
def test_narrowing(features, monkeypatch):
    monkeypatch.setenv("TKPY_CPU_FEATURES", features)
    rng = np.random.default_rng(0)
    tops = np.arange(512, dtype=np.uint32)[:, None] << np.uint32(23)
    low = rng.integers(0, 1 << 23, (512, 256), dtype=np.uint32)
    low[:, :8] = [0, 1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x17FFF, 0x7FFFFF]
    x = torch.from_numpy((tops + low).view(np.float32).reshape(-1))
    o = torch.empty(x.numel(), dtype=torch.bfloat16)
    narrow[(x.numel() // 1024,)](x, o, 1024)
    want, nan = x.to(torch.bfloat16), x.isnan()
    assert torch.equal(o[~nan].view(torch.int16), want[~nan].view(torch.int16))
    assert o[nan].isnan().all()
