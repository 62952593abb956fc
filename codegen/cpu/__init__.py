"""A Triton backend for the CPU: TTIR -> LLVM IR -> native code, on llvmlite.

An installed copy is found by Triton through the entry-point group ``triton.backends`` (see
``tkpy_triton``). In a checkout that is not installed, importing this package registers it.
``codegen.cpu.run`` runs a ``triton.jit`` kernel on CPU tensors whatever Triton's active driver is.
"""

from __future__ import annotations

import functools
import os
import sys

__all__ = ["register", "run"]


def register() -> None:
    """Make Triton know this backend as ``cpu``; does nothing where it already does."""
    from triton import backends as registry

    known = registry.backends.get("cpu")
    if known is not None and not getattr(known.compiler, "inert", False):
        return
    from codegen.cpu.compiler import CpuBackend
    from codegen.cpu.driver import CpuDriver

    registry.backends["cpu"] = registry.Backend(CpuBackend, CpuDriver)


def run(kernel, grid, *args, **kwargs):
    """Run ``kernel[grid](*args, **kwargs)`` on this backend, leaving Triton's driver alone."""
    return _direct().run(kernel, grid, args, kwargs)


@functools.cache
def _direct():
    register()
    from codegen.cpu import direct

    return direct


def _register_on_import() -> None:
    if os.environ.get("TRITON_BACKENDS_IN_TREE") == "1":
        return  # the user wants Triton's own backends only
    table = sys.modules.get("triton.backends")
    if table is not None and not hasattr(table, "backends"):
        return  # Triton itself imports us, and is about to make the entry
    register()


_register_on_import()
