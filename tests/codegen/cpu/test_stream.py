"""Large results are stored past the caches: the same numbers, and nothing beside them is touched."""

import pytest
import torch
import triton
import triton.language as tl

from codegen.cpu.lower import stream


@triton.jit
def double(x, y, stride_x, stride_y, N, B: tl.constexpr):
    """y = 2 x, a row a program."""
    row, i = tl.program_id(0), tl.arange(0, B)
    v = tl.load(x + row * stride_x + i, mask=i < N)
    tl.store(y + row * stride_y + i, (2 * v).to(y.dtype.element_ty), mask=i < N)


@pytest.fixture
def everything_is_large(monkeypatch):
    """The threshold is part of what a compile tells the launcher: nothing from a cache."""
    monkeypatch.setattr(stream, "LARGE", 1)
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    double.device_caches.clear()
    yield
    double.device_caches.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("n,wide,start", [(1024, 1024, 0), (1000, 1024, 0), (777, 1001, 3), (1024, 1040, 16)])  # fmt: skip
def test_rows_at_any_alignment(n, wide, start, dtype, everything_is_large):
    x = (torch.randn(33, 1024) * 9).to(dtype)
    memory = torch.full((33, wide + 64), 7).to(dtype)
    y = memory[:, start : start + n]
    double[(33,)](x, y, x.stride(0), y.stride(0), n, 1024)
    want = torch.full((33, wide + 64), 7).to(dtype)
    want[:, start : start + n] = 2 * x[:, :n]
    assert torch.equal(memory, want)


def test_what_is_stored_past_the_caches(everything_is_large):
    x, y = torch.randn(4, 1024), torch.empty(4, 1024)
    kernel = double[(4,)](x, y, 1024, 1024, 1024, 1024)
    assert "vmovnt" in kernel.asm["asm"] or "stnp" in kernel.asm["asm"]
    assert "fence" in kernel.asm["llir"]
    z = torch.zeros(1 << 22)
    kernel = double[(4,)](x, z, 1024, 1024, 1024, 1024)
    assert torch.equal(z[:4096].view(4, 1024), 2 * x) and (z[4096:] == 0).all()


@triton.jit
def within(x, total, N, B: tl.constexpr):
    """x *= 2 in place; its sum by an atomic."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = 2 * tl.load(x + i, mask=i < N)
    tl.store(x + i, v, mask=i < N)


@triton.jit
def counted(y, total, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y + i, i)
    tl.atomic_add(total, 1)


def test_what_is_read_too_or_ordered_by_atomics_is_stored_as_ever():
    x = torch.arange(5000.0)
    kernel = within[(5,)](x, x, 5000, 1024)
    assert torch.equal(x, 2 * torch.arange(5000.0)) and "nontemporal" not in kernel.asm["llir"]
    y, total = torch.empty(4096, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    kernel = counted[(4,)](y, total, 1024)
    assert torch.equal(y, torch.arange(4096, dtype=torch.int32)) and total == 4
    assert "nontemporal" not in kernel.asm["llir"]


@triton.jit
def rows_of(x, y, M, N: tl.constexpr, R: tl.constexpr):
    """y = x + 1 in blocks of R rows, the last of them ragged."""
    r, i = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, N)
    on = (r < M)[:, None]
    v = tl.load(x + r[:, None] * N + i[None, :], mask=on)
    tl.store(y + r[:, None] * N + i[None, :], v + 1, mask=on)


@pytest.mark.parametrize("m", [1, 15, 16, 33])
def test_whole_rows_go_without_a_mask(m, everything_is_large):
    rows_of.device_caches.clear()
    x, y = torch.randn(64, 256), torch.full((64, 256), 7.0)
    kernel = rows_of[(4,)](x, y, m, 256, 16)
    assert torch.equal(y[:m], x[:m] + 1) and (y[m:] == 7).all()
    assert "nontemporal" in kernel.asm["llir"]
