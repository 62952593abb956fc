"""A Triton backend for the CPU: TTIR -> LLVM IR -> native code, on llvmlite.

An installed copy is found by Triton through the entry-point group ``triton.backends``. In a
checkout, ``codegen.cpu.register()`` adds it. ``codegen.cpu.run`` runs a ``triton.jit`` kernel on
CPU tensors whatever Triton's active driver is.
"""

from __future__ import annotations

__all__ = ["register", "run"]


def register() -> None:
    """Make Triton know this backend as ``cpu``; does nothing where it already does."""
    from triton import backends as registry

    if "cpu" in registry.backends:
        return
    from codegen.cpu.compiler import CpuBackend
    from codegen.cpu.driver import CpuDriver

    registry.backends["cpu"] = registry.Backend(CpuBackend, CpuDriver)


def run(kernel, grid, *args, **kwargs):
    """Run ``kernel[grid](*args, **kwargs)`` on this backend, leaving Triton's driver alone."""
    register()
    from codegen.cpu import direct

    return direct.run(kernel, grid, args, kwargs)
