"""Memory for results.

Linux maps the memory of a new tensor when it is first written, 4 KB at a time, which costs as much
as writing it does. Where a tensor is large the system is asked to map 2 MB at a time; it is free to
decline.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence

import torch

LARGE = 8 << 20  # bytes below which both ways take the same time


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor that nothing has been written to."""
    t = torch.empty(shape, dtype=dtype, device=device)
    # A fake tensor may be of a size that is a symbol.
    if device.type == "cpu" and type(t) is torch.Tensor and t.nbytes >= LARGE:
        _in_large_pages(t)
    return t


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros."""
    return empty(shape, dtype, device).zero_()


def _in_large_pages(t: torch.Tensor) -> None:
    advise = _advice()
    if advise is not None:
        page = mmap.PAGESIZE
        first = -(-t.data_ptr() // page) * page
        advise(first, (t.data_ptr() + t.nbytes - first) // page * page, mmap.MADV_HUGEPAGE)


@functools.cache
def _advice() -> Callable[[int, int, int], int] | None:
    """``madvise``, where there is one that knows of large pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
