"""The packages' own references, in double precision."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

_SHORT = (torch.float32, torch.bfloat16, torch.float16)
_CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)


def _wide(value):
    return torch.float64 if isinstance(value, torch.dtype) and value in _SHORT else value


class _Wide(TorchFunctionMode):
    """Every cast to a shorter float becomes one to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _CASTS:
            return args[0].double()
        kwargs = {k: _wide(v) for k, v in (kwargs or {}).items()}
        return func(*map(_wide, args), **kwargs)


@contextmanager
def doubles():
    """Code that computes in float32, or in the dtype of its inputs, computes in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide():
            yield
    finally:
        torch.set_default_dtype(before)
