"""Launch kernels in Triton's interpreter, made right for 16-bit floats.

A module run by `execute` sees a private copy of `triton.language` (interpreter_copy.py) that
computes with numpy (interpreter_ops.py, where the differences to the stock interpreter are listed).
A kernel of such a module is called like any Triton kernel, `kernel[grid](*args, **kwargs)`, with
tensors of any device: those on the CPU are used in place, others are copied to the host and back.

Launches from several threads are independent.
"""

from __future__ import annotations

import inspect
import linecache
import traceback
from typing import Any

import numpy as np
import torch
import triton

from codegen.interpreter_copy import core, execute, plain, semantic
from codegen.interpreter_copy import language as tl
from codegen.interpreter_ops import BUILDER, OutOfBounds, TensorHandle

__all__ = ["InterpretedKernel", "KernelError", "OutOfBounds", "execute"]

# Launch options that decide how a GPU compiler builds a kernel, not what it computes.
_LAUNCH_OPTIONS = frozenset(
    (
        *("num_warps", "num_stages", "num_ctas", "maxnreg", "cluster_dims", "enable_fp_fusion"),
        *("debug", "launch_cooperative_grid", "launch_pdl"),
        *("waves_per_eu", "matrix_instr_nonkdim", "kpack", "schedule_hint"),  # AMD's
    )
)


class KernelError(RuntimeError):
    """A kernel failed while interpreted; `filename`, `lineno` and the cause say where and why."""

    def __init__(self, cause: BaseException, kernel: str, filename: str, lineno: int):
        self.kernel, self.filename, self.lineno = kernel, filename, lineno
        text = linecache.getline(filename, lineno).strip()
        # Some of Triton's own assertions have no message: their source line says something.
        why = str(cause) or traceback.extract_tb(cause.__traceback__)[-1].line
        super().__init__(f"{filename}:{lineno}: {text}\n  {type(cause).__name__}: {why}")


class InterpretedKernel:
    """A `@triton.jit` function bound to the interpreter: `kernel[grid](*args, **kwargs)`.

    Called without a grid it is a device function, callable from other kernels only.
    """

    def __init__(self, fn: Any):
        self.fn = fn
        self.__name__, self.__doc__, self.__module__ = fn.__name__, fn.__doc__, fn.__module__
        self.signature = inspect.signature(fn)
        self.arg_names = list(self.signature.parameters)
        self._annotations = {
            name: _annotation(p.annotation) for name, p in self.signature.parameters.items()
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: self.run(*args, grid=grid, **kwargs)

    def run(self, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        """Execute every program of `grid` in order; grid is a tuple of ints or meta -> tuple.

        Raises TypeError for arguments that do not fit the signature, and KernelError, with the line
        of the generated file, for anything that goes wrong inside the kernel.
        """
        options = {k for k in kwargs if k in _LAUNCH_OPTIONS and k not in self.arg_names}
        bound = self.signature.bind(*args, **{k: v for k, v in kwargs.items() if k not in options})
        bound.apply_defaults()
        if warmup:
            return
        grid = grid(dict(bound.arguments)) if callable(grid) else grid
        grid = (*map(int, (grid,) if isinstance(grid, int) else grid), 1, 1, 1)[:3]
        host = _Host()
        values = [
            host.constant(v) if self._annotations[k] == "constexpr" else host.value(v, annotation)
            for (k, v), annotation in zip(
                bound.arguments.items(), self._annotations.values(), strict=True
            )
        ]
        state = BUILDER.state
        outer = state.__dict__.copy()  # a host function may launch from inside a hook
        state.grid_dim, state.memory = grid, host.memory()
        try:
            with np.errstate(all="ignore"):
                for x in range(grid[0]):
                    for y in range(grid[1]):
                        for z in range(grid[2]):
                            state.grid_idx = (x, y, z)
                            self.fn(*values)
        except Exception as error:
            raise self._located(error) from error
        finally:
            state.__dict__.clear()
            state.__dict__.update(outer)
        host.copy_back()

    def _located(self, error: Exception) -> Exception:
        filename, lineno = self.fn.__code__.co_filename, self.fn.__code__.co_firstlineno
        frame = error.__traceback__
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == filename:
                lineno = frame.tb_lineno
            frame = frame.tb_next
        return KernelError(error, self.__name__, filename, lineno)


def _annotation(annotation: Any) -> str | None:
    text = getattr(annotation, "__name__", None) or getattr(annotation, "name", None) or annotation
    text = text if isinstance(text, str) and annotation is not inspect.Parameter.empty else None
    return "constexpr" if text and text.split(".")[-1] == "constexpr" else text


class _Host:
    """The host side of one launch: arguments to tensors, and which memory may be touched."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int, str]] = []
        self.copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def constant(self, arg: Any) -> Any:
        if isinstance(arg, triton.language.dtype):
            return tl.dtype(arg.name)
        return plain(arg)

    def value(self, arg: Any, annotation: str | None = None) -> Any:
        if isinstance(arg, (bool, int, float)) or _is_scalar_tensor_like(arg):
            return _scalar(arg, annotation)
        if hasattr(arg, "data_ptr"):
            return self._pointer(arg)
        if isinstance(arg, tuple):
            return core.tuple([self.value(a) for a in arg])
        if hasattr(arg, "block_shape") and hasattr(arg, "base"):
            return semantic().make_tensor_descriptor(
                self.value(arg.base),
                [_scalar(s, None) for s in arg.shape],
                [*(_scalar(s, "i64") for s in arg.strides[:-1]), tl.constexpr(arg.strides[-1])],
                [tl.constexpr(b) for b in arg.block_shape],
                padding_option=getattr(arg, "padding", "zero"),
            )
        return self.constant(arg)

    def _pointer(self, arg: Any) -> Any:
        tensor = getattr(arg, "base", arg)  # triton.reinterpret wraps a tensor in another dtype
        dtype = tl.str_to_ty(triton.runtime.jit.mangle_type(arg), None)
        if tensor.device.type != "cpu":
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.copies:
                whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
                self.copies[storage.data_ptr()] = (whole, whole.cpu())
            start = self.copies[storage.data_ptr()][1].data_ptr()
            start += tensor.storage_offset() * tensor.element_size()
        else:
            start = tensor.data_ptr()
        if tensor.numel():
            sizes = zip(tensor.shape, tensor.stride(), strict=True)
            extent = 1 + sum((size - 1) * stride for size, stride in sizes)
            self.spans.append((start, start + extent * tensor.element_size(), str(dtype)))
        return core.tensor(TensorHandle(np.array([start], dtype=np.uint64), dtype), dtype)

    def memory(self) -> np.ndarray:
        """Sorted, disjoint [start, end) address ranges, shape (ranges, 2)."""
        merged: list[list[int]] = []
        for start, end, _ in sorted(self.spans):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        return np.array(merged, dtype=np.uint64).reshape(-1, 2)

    def copy_back(self) -> None:
        for device, host in self.copies.values():
            device.copy_(host)


def _is_scalar_tensor_like(arg: Any) -> bool:
    return isinstance(arg, (np.integer, np.floating, np.bool_))


def _scalar(arg: Any, annotation: str | None) -> Any:
    """A scalar argument with the type that Triton's launcher would give it."""
    if annotation in _ANNOTATED:
        dtype = tl.dtype(_ANNOTATED[annotation])
    elif isinstance(arg, (bool, np.bool_)):
        dtype = tl.int1
    elif isinstance(arg, (int, np.integer)):
        dtype = tl.int32 if -(2**31) <= arg < 2**31 else tl.int64 if arg < 2**63 else tl.uint64
    else:
        dtype = tl.float32
    return semantic().scalar_constant(arg.item() if isinstance(arg, np.generic) else arg, dtype)


_ANNOTATED = {
    **{f"{s}{w}": f"{t}int{w}" for s, t in (("i", ""), ("u", "u")) for w in (8, 16, 32, 64)},
    **{f"{t}int{w}": f"{t}int{w}" for t in ("", "u") for w in (8, 16, 32, 64)},
    **{t: t for t in ("fp16", "bf16", "fp32", "fp64")},
}
