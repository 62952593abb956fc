"""Arguments that share memory: a program's loads come before the stores that follow them."""

import ctypes

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def softmax(x, o, N, B: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, B)
    v = tl.load(x + row * N + i, mask=i < N, other=-float("inf"))
    e = tl.exp(v - tl.max(v, 0))
    tl.store(o + row * N + i, e / tl.sum(e, 0), mask=i < N)


@triton.jit
def add(x, y, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    m = i < n
    tl.store(o + i, tl.load(x + i, mask=m) + tl.load(y + i, mask=m), mask=m)


@triton.jit
def plain(x, o, SX: tl.constexpr, SO: tl.constexpr, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o + i * SO, tl.load(x + i * SX) + 1)


@triton.jit
def transposed(x, o, B: tl.constexpr):
    i = tl.arange(0, B)
    v = tl.load(x + i[None, :] * B + i[:, None])
    tl.store(o + i[:, None] * B + i[None, :], v)


@triton.jit
def permuted(x, index, o, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o + tl.load(index + i), tl.load(x + i))


@triton.jit
def looked_up(x, index, o, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o + i, tl.load(x + tl.load(index + i)))


def test_softmax_in_place():
    x = torch.randn(8, 200)
    want = torch.softmax(x, 1)
    softmax[(8,)](x, x, 200, 256)
    assert torch.allclose(x, want, atol=1e-6)


@pytest.mark.parametrize("which", ["x", "y", "both"])
def test_add_in_place(which):
    x, y = torch.randn(300), torch.randn(300)
    if which == "both":
        y = x
    want = x + y
    out = y if which == "y" else x
    add[(3,)](x, y, out, 300, 128)
    assert torch.equal(out, want)


@pytest.mark.parametrize("shift", [-70, -16, -3, -1, 0, 1, 3, 16, 70])
def test_shifted_views(shift):
    base = torch.randn(512)
    src = base[100:]
    want = src[:256] + 1
    out = base[100 + shift :]
    plain[(1,)](src, out, 1, 1, 256)
    assert torch.equal(out[:256], want)


@pytest.mark.parametrize("strides", [(1, 2), (2, 1)])
def test_same_start_other_strides(strides):
    x = torch.randn(512)
    want = x[:: strides[0]][:128] + 1
    plain[(1,)](x, x, *strides, 128)
    assert torch.equal(x[:: strides[1]][:128], want)


def test_other_element_size_at_the_same_start():
    x = torch.randint(1, 100, (256,), dtype=torch.int16)
    want = (x + 1).int()[:128]
    wide = x.view(torch.int32)
    plain[(1,)](x, wide, 1, 1, 128)
    assert torch.equal(wide, want)


def test_transposed_in_place():
    x = torch.randn(32, 32)
    want = x.T.clone()
    transposed[(1,)](x, x, 32)
    assert torch.equal(x, want)


def test_index_that_is_overwritten():
    index = torch.randperm(128, dtype=torch.int32)
    x, want = torch.arange(128, dtype=torch.int32), torch.empty(128, dtype=torch.int32)
    want[index.long()] = x
    permuted[(1,)](x, index, index, 128)
    assert torch.equal(index, want)
    index = torch.randperm(128, dtype=torch.int32)
    want = x[index.long()].clone()
    looked_up[(1,)](x, index, index, 128)
    assert torch.equal(index, want)
    index = torch.randperm(128, dtype=torch.int32)
    x = torch.randperm(128, dtype=torch.int32)
    want = x[index.long()].clone()
    looked_up[(1,)](x, index, x, 128)
    assert torch.equal(x, want)


class _Pointer:
    """Memory of unknown extent."""

    dtype = torch.float32

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        return self.address


def test_bare_pointers_may_overlap():
    memory = (ctypes.c_float * 512)(*range(512))
    at = ctypes.addressof(memory)
    plain[(1,)](_Pointer(at), _Pointer(at + 4), 1, 1, 256)
    assert list(memory)[1:257] == [k + 1.0 for k in range(256)]


def test_two_tensors_over_one_buffer():
    """Other storages, the same memory."""
    memory = bytearray(4 * 512)
    a = torch.frombuffer(memory, dtype=torch.float32)
    b = torch.frombuffer(memory, dtype=torch.float32, offset=4)
    a.copy_(torch.randn(512))
    want = a[:256] + 1
    plain[(1,)](a, b, 1, 1, 256)
    assert torch.equal(b[:256], want)
