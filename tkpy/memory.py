"""Memory for results.

Linux maps the memory of a new tensor when it is first written, 4 KB at a time, which costs as much
as writing it does. Where a tensor is large the system is asked to map 2 MB at a time; it is free to
decline.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
from collections.abc import Callable, Sequence

import torch

LARGE = 8 << 20  # bytes below which both ways take the same time
PIECE = 1 << 18  # numbers of a sum of another type than its terms that are held besides


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor that nothing has been written to."""
    t = torch.empty(shape, dtype=dtype, device=device)
    # A fake tensor may be of a size that is a symbol.
    if device.type == "cpu" and type(t) is torch.Tensor and t.nbytes >= LARGE:
        _in_large_pages(t)
    return t


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros.

    A small one is filled by this thread: PyTorch's others would go on spinning on the processors
    that the kernel is about to use.
    """
    t = empty(shape, dtype, device)
    if device.type == "cpu" and type(t) is torch.Tensor and t.nbytes < LARGE:
        ctypes.memset(t.data_ptr(), 0, t.nbytes)
        return t
    return t.zero_()


def added_up(terms: torch.Tensor, leading: int, dtype: torch.dtype) -> torch.Tensor:
    """The sum of the contiguous ``terms`` over their first ``leading`` dimensions, as ``dtype``.

    A single term is taken as it is. A sum that is rounded is made piece by piece, never whole.
    """
    several, shape = math.prod(terms.shape[:leading]), terms.shape[leading:]
    if several == 1:
        return terms.view(shape).to(dtype)
    rows = terms.view(several, math.prod(shape))
    if dtype is terms.dtype:
        return rows.sum(0).view(shape)
    out = empty(shape, dtype, terms.device).view(-1)
    for k in range(0, out.numel(), PIECE):
        out[k : k + PIECE] = rows[:, k : k + PIECE].sum(0)
    return out.view(shape)


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
