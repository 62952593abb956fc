"""Which executor runs a kernel on which device.

On a GPU Triton's own launcher does. Tensors on the CPU go to the CPU backend in ``codegen.cpu``,
which compiles the same Triton source to machine code whatever Triton's active driver is, or, with
``TKPY_EXECUTOR=interpreter``, to Triton's interpreter, the slow second opinion.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import types
from collections.abc import Callable, Iterator

import torch

import codegen.cpu
from codegen.cpu import environment
from codegen.module import load
from tkpy.errors import TkError

EXECUTORS = ("native", "interpreter")
_wanted = environment.reader("TKPY_EXECUTOR")
_rounds_twice = contextvars.ContextVar("rounds_twice", default=False)
_second_opinion = contextvars.ContextVar("second_opinion", default=False)


def executor(device: torch.device) -> str:
    """The name of what runs kernels on ``device``: "triton" on a GPU, else one of EXECUTORS.

    Inside ``strict()`` compiled code has a name of its own, "strict triton" or "strict native".

    Raises:
        TkError: if ``TKPY_EXECUTOR`` is set to something else.
    """
    chosen = "triton"
    if device.type == "cpu":
        wanted = _wanted()
        chosen = EXECUTORS[0] if wanted is None else wanted
        chosen = "interpreter" if _second_opinion.get() else chosen
        if chosen not in EXECUTORS:
            raise TkError(f"TKPY_EXECUTOR={chosen} is none of {', '.join(EXECUTORS)}")
    return f"strict {chosen}" if _rounds_twice.get() and chosen != "interpreter" else chosen


@functools.cache
def machine_of(device: torch.device) -> str:
    """The machine of ``codegen.schedule`` whose schedule fits a GPU: the newest not newer."""
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Within it no product and sum are fused into one rounding.

    Which of them a compiler fuses depends on what stands around them, so only without fusion do
    two variants of one kernel have to agree in every bit.
    """
    token = _rounds_twice.set(True)
    try:
        yield
    finally:
        _rounds_twice.reset(token)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Within it tensors on the CPU go to the interpreter, which holds every access to bounds."""
    token = _second_opinion.set(True)
    try:
        yield
    finally:
        _second_opinion.reset(token)


def launcher(source: str, name: str, device: torch.device) -> Callable[..., None]:
    """``launch`` of the generated module ``source``, set up to run on ``device``."""
    chosen = executor(device)
    module = load(source, name, interpret=chosen == "interpreter")
    if chosen in ("interpreter", "triton"):
        return module.launch
    # The same launcher with the kernel bound to another way of running it.
    kernel = f"{name}_kernel"
    bound = _Bound(vars(module)[kernel], chosen.endswith("native"), chosen.startswith("strict"))
    scope = {**vars(module), kernel: bound}
    launch = module.launch
    return types.FunctionType(launch.__code__, scope, launch.__name__)


class _Bound:
    """A jitted kernel whose ``kernel[grid](...)`` runs on the CPU backend, or without fusion."""

    def __init__(self, kernel: Callable, native: bool, strict: bool):
        self.kernel, self.native = kernel, native
        self.options = {"enable_fp_fusion": False} if strict else {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        if self.native:
            return functools.partial(codegen.cpu.run, self.kernel, grid, **self.options)
        return functools.partial(self.kernel[grid], **self.options)  # type: ignore[index]
