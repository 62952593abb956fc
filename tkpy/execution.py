"""Which executor runs a kernel on which device.

On a GPU Triton's own launcher does. Tensors on the CPU go to Triton's interpreter, or, with
``TKPY_EXECUTOR=native``, to the CPU backend in ``codegen.cpu``, which compiles the same Triton
source to machine code. The interpreter is the slow second opinion.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable

import torch

from codegen.module import load
from tkpy.errors import TkError

EXECUTORS = ("interpreter", "native")


def executor(device: torch.device) -> str:
    """The name of what runs kernels on ``device``: "triton" on a GPU, else one of EXECUTORS.

    Raises:
        TkError: if ``TKPY_EXECUTOR`` is set to something else.
    """
    if device.type != "cpu":
        return "triton"
    wanted = os.environ.get("TKPY_EXECUTOR", "interpreter")
    if wanted not in EXECUTORS:
        raise TkError(f"TKPY_EXECUTOR={wanted} is none of {', '.join(EXECUTORS)}")
    return wanted


def launcher(source: str, name: str, device: torch.device) -> Callable[..., None]:
    """``launch`` of the generated module ``source``, set up to run on ``device``."""
    chosen = executor(device)
    module = load(source, name, interpret=chosen == "interpreter")
    if chosen != "native":
        return module.launch
    # The same launcher with the kernel bound to the CPU backend, whatever Triton's driver is.
    kernel = f"{name}_kernel"
    scope = {**vars(module), kernel: _Native(vars(module)[kernel])}
    launch = module.launch
    return types.FunctionType(launch.__code__, scope, launch.__name__)


class _Native:
    """A jitted kernel whose ``kernel[grid](...)`` runs on the CPU backend."""

    def __init__(self, kernel: Callable):
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        from codegen.cpu import run

        return lambda *args, **options: run(self.kernel, grid, *args, **options)
