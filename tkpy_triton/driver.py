"""The driver class, as Triton looks for it: the only subclass of ``DriverBase`` here."""

import triton.backends.driver as _triton

from tkpy_triton.load import load as _load

CpuDriver = _load("driver", "CpuDriver", _triton.DriverBase)
