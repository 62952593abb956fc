"""The compiler class, as Triton looks for it: the only subclass of ``BaseBackend`` here."""

import triton.backends.compiler as _triton

from tkpy_triton.load import load as _load

CpuBackend = _load("compiler", "CpuBackend", _triton.BaseBackend)
