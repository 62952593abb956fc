"""Launch a ``triton.jit`` kernel here, whatever Triton's active driver is (on a GPU host)."""

from __future__ import annotations

import threading

from triton.compiler import ASTSource, compile
from triton.runtime.jit import create_function_from_signature

from codegen.cpu import environment
from codegen.cpu.compiler import CpuBackend
from codegen.cpu.driver import CpuDriver
from codegen.cpu.launch import Launcher, load

# The attribute of a JIT function that holds its state here: a dictionary keyed by JIT functions
# would hash their source in every launch.
_STATE = "_codegen_cpu"
_lock = threading.Lock()


class _Compiled:
    __slots__ = ("function", "kernel", "launcher", "library")

    def __init__(self, kernel, source) -> None:
        self.kernel = kernel
        self.library, self.function = load(kernel.asm[CpuBackend.binary_ext])
        self.launcher = Launcher(source, kernel.metadata)


def _prepare(fn, mode: int | str):
    """(binder, backend, compiled kernels) of a function for a feature set, with checks or not."""
    with _lock:
        states = fn.__dict__.setdefault(_STATE, {})
        if mode not in states:
            backend = CpuBackend(CpuDriver().get_current_target())
            bind = create_function_from_signature(fn.signature, fn.params, backend)
            states[mode] = bind, backend, {}
        return states[mode]


def run(fn, grid, args: tuple, kwargs: dict):
    """``fn[grid](*args, **kwargs)`` on CPU tensors."""
    mode = environment.mode()
    try:
        bind, backend, cache = fn.__dict__[_STATE][mode]
    except KeyError:
        bind, backend, cache = _prepare(fn, mode)
    kwargs.setdefault("debug", bool(fn.debug))
    kwargs["instrumentation_mode"] = ""
    bound, specialization, options = bind(*args, **kwargs)
    try:
        key = (tuple(specialization), str(options))  # as Triton's own launch looks kernels up
        done = cache.get(key)
    except TypeError:
        key = str(specialization) + str(options)
        done = cache.get(key)
    if done is None:
        parsed, signature, constexprs, attrs = fn._pack_args(
            backend, kwargs, bound, specialization, options
        )
        source = ASTSource(fn, signature, constexprs, attrs)
        kernel = compile(source, target=backend.target, options=parsed.__dict__)
        done = cache[key] = _Compiled(kernel, source)
    if callable(grid):
        grid = grid(bound)
    x, y, z = (*grid, 1, 1)[:3]
    done.launcher(x, y, z, 0, done.function, None, None, None, None, *bound.values())
    return done.kernel
