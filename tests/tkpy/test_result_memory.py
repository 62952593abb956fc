"""Large results are mapped in large pages; small ones, and tensors without data, are left alone."""

import mmap
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tkpy import memory
from zoo.kernels.softmax import softmax

CPU = torch.device("cpu")


def _flags(address: int) -> list[str]:
    """What Linux notes about the mapping that an address lies in."""
    here = False
    with open("/proc/self/smaps") as f:
        for line in f:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                low, high = (int(x, 16) for x in head.split("-"))
                here = low <= address < high
            elif here and head == "VmFlags:":
                return line.split()[1:]
    raise AssertionError("the address is not mapped")


linux = pytest.mark.skipif(
    memory._advice() is None, reason="the system has no large pages to ask for"
)


@linux
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("make", [memory.empty, memory.zeros])
def test_a_large_tensor_asks_for_large_pages(make):
    t = make((16 << 20,), torch.uint8, CPU)
    assert "hg" in _flags(t.data_ptr() + t.nbytes // 2)
    assert make is memory.empty or not t.any()


@linux
def test_of_a_tensor_only_whole_pages_are_named(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_advice", lambda: lambda *given: asked.append(given))
    small = memory.empty((memory.LARGE - 1,), torch.uint8, CPU)
    assert not asked
    large = memory.empty((memory.LARGE + 123,), torch.uint8, CPU)
    ((start, size, _),) = asked
    assert start % mmap.PAGESIZE == size % mmap.PAGESIZE == 0 and small.nbytes < memory.LARGE
    assert large.data_ptr() <= start < start + size <= large.data_ptr() + large.nbytes


def test_the_first_call_and_later_ones_ask(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "LARGE", 1 << 10)
    monkeypatch.setattr(memory, "_in_large_pages", lambda t: asked.append(tuple(t.shape)))
    x = torch.randn(33, 65)
    for _ in range(3):
        softmax(x)
    assert asked == [(33, 65)] * 3


def test_what_has_no_data_is_left_alone():
    with FakeTensorMode():
        assert memory.empty((4096, 4096), torch.float32, CPU).shape == (4096, 4096)
