"""The driver half of the backend: is it active, what is the target, how is a kernel launched.

Nothing heavy is imported here: Triton imports this module inside ``import triton``.
"""

from __future__ import annotations

import os
import platform

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase as _Base

from codegen.cpu import environment

if environment.checking():  # before the first output is allocated
    from codegen.cpu import poison

    poison.install()


def _gpu_present() -> bool:
    """Does another backend's driver say that it is active?"""
    from triton.backends import backends

    for name, backend in backends.items():
        if name != "cpu":
            try:
                if backend.driver.is_active():
                    return True
            except Exception:  # a driver that cannot tell is not active
                continue
    return False


class CpuUtils:
    """What Triton asks of a device."""

    def load_binary(self, name, kernel, shared, device):
        from codegen.cpu.launch import load

        return (*load(kernel), 0, 0, 1 << 30)

    def unload_module(self, module) -> None:
        """Nothing to do: object code goes when nothing refers to it. From Triton 3.8 on."""

    def get_device_properties(self, device):
        clocks = {"sm_clock_rate": 0, "mem_clock_rate": 0, "mem_bus_width": 0}
        return {
            "max_shared_mem": 1 << 62,
            "max_num_regs": 32,
            "multiprocessor_count": os.cpu_count(),
            "warpSize": 1,
            **clocks,
        }


class CpuDriver(_Base):
    """Runs kernels on the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.utils = CpuUtils()

    @property
    def launcher_cls(self):
        from codegen.cpu.launch import Launcher

        return Launcher

    @classmethod
    def is_active(cls) -> bool:
        """Yes if asked for by name, or if no GPU is there."""
        asked = os.environ.get("TRITON_DEFAULT_BACKEND")
        return asked == "cpu" if asked else not _gpu_present()

    def get_current_target(self) -> GPUTarget:
        """The host. torch asks for it in every torch.compile, so a lack of llvmlite shows later."""
        from codegen.cpu.toolchain import features

        try:
            f = features()
        except (ImportError, OSError):
            return GPUTarget("cpu", platform.machine() or "unknown", 1)
        return GPUTarget("cpu", f"{f.cpu}-{f.name}", 1)

    def get_active_torch_device(self):
        import torch

        return torch.device("cpu")

    def get_device_interface(self):
        from codegen.cpu.launch import DeviceInterface

        return DeviceInterface

    # Triton keeps compiled kernels per device.
    get_current_device = staticmethod(environment.mode)

    def set_current_device(self, device) -> None:
        """There is one."""

    def get_current_stream(self, device=None) -> int:
        return 0

    def get_benchmarker(self):
        from codegen.cpu.timing import benchmark

        return benchmark

    def get_empty_cache_for_benchmark(self):
        import torch

        return torch.empty(1 << 20, dtype=torch.int32)

    def clear_cache(self, cache) -> None:
        cache.zero_()

    def map_python_to_cpp_type(self, ty: str) -> str:
        return {"fp32": "float", "fp64": "double", "i1": "int8_t", "u1": "int8_t"}.get(ty, ty)
