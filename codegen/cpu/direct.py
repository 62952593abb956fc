"""Launch a ``triton.jit`` kernel here, whatever Triton's active driver is (on a GPU host)."""

from __future__ import annotations

import threading
import weakref

from codegen.cpu import environment

_state: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class _Compiled:
    __slots__ = ("function", "kernel", "launcher", "library")

    def __init__(self, kernel, source) -> None:
        from codegen.cpu.launch import Launcher, load

        self.kernel = kernel
        self.library, self.function = load(kernel.asm[kernel_ext(kernel)])
        self.launcher = Launcher(source, kernel.metadata)


def kernel_ext(kernel) -> str:
    """The name of the object stage."""
    from codegen.cpu.compiler import CpuBackend

    return CpuBackend.binary_ext


def _binder(fn):
    from triton.runtime.jit import create_function_from_signature

    from codegen.cpu.compiler import CpuBackend
    from codegen.cpu.driver import CpuDriver

    backend = CpuBackend(CpuDriver().get_current_target())
    return create_function_from_signature(fn.signature, fn.params, backend), backend, {}


def run(fn, grid, args: tuple, kwargs: dict):
    """``fn[grid](*args, **kwargs)`` on CPU tensors."""
    from triton.compiler import ASTSource, compile

    from codegen.cpu.toolchain import features

    arch = (features().name, environment.checking())
    with _lock:
        states = _state.setdefault(fn, {})
        if arch not in states:
            states[arch] = _binder(fn)
    bind, backend, cache = states[arch]
    kwargs = {"debug": bool(fn.debug), "instrumentation_mode": "", **kwargs}
    bound, specialization, options = bind(*args, **kwargs)
    try:
        key = (tuple(specialization), str(options))  # as Triton's own launch looks kernels up
        hash(key)
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
    grid = (*grid, 1, 1)[:3]
    done.launcher(*grid, 0, done.function, None, None, None, None, *bound.values())
    return done.kernel
