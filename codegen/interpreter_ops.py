"""What each Triton operation means in numpy, for the interpreter.

Triton's semantic analysis calls a builder; on a GPU the builder makes MLIR, here it computes. This
file derives the builder from Triton's own and changes what is wrong, missing or slow there:

- bf16 arithmetic, comparisons, casts and dots go through fp32 and round to nearest even; fp16 dots
  accumulate in fp32. (Stock: bit patterns are added, compared and multiplied, casts to bf16
  truncate, and an integer becomes a bit pattern.)
- maximum, minimum and their reductions drop NaN, as the hardware does unless asked to propagate it.
- Reductions and scans with any combine function take log2(n) tile operations, not a call per
  element.
- An access outside every tensor argument raises `OutOfBounds`, where stock Triton reads the heap.
- libdevice functions exist, and `tl.device_assert` asserts.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from codegen.interpreter_copy import core, interpreter, libdevice, plain
from codegen.interpreter_copy import language as tl
from codegen.interpreter_values import (
    TensorHandle,
    handle_of,
    np_dtype,
    numbers,
    other_fp8,
    to_bf16,
)

_Array = np.ndarray


class OutOfBounds(IndexError):
    """A load, store or atomic touched memory outside every tensor the kernel was given."""


def _elementwise(op: Callable[..., _Array]) -> Any:
    return lambda self, *args: handle_of(op(*map(numbers, args)), args[0].dtype)


def _compare(op: Callable[..., _Array], ordered: bool | None = None) -> Any:
    # numpy's comparisons are those of IEEE: all are ordered (false on NaN) but not_equal. Where
    # Triton names the other kind, NaN is put right. The result's dtype is int1 (stock: the
    # operand's).
    def compare(self: Any, a: Any, b: Any) -> Any:
        x, y = numbers(a), numbers(b)
        out = op(x, y)
        if ordered is not None:
            nan = np.isnan(x) | np.isnan(y)
            out = out & ~nan if ordered else out | nan
        return TensorHandle(out, tl.int1)

    return compare


def _erf(x: _Array) -> _Array:
    return torch.erf(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))).numpy()


def _divide_integers(a: _Array, b: _Array) -> _Array:
    """C's division, rounding toward zero; a division by zero gives something, as on a GPU."""
    return (a - np.fmod(a, b)) // b


_OPTIONS = dataclasses.replace(
    interpreter.InterpreterOptions(),
    debug=True,  # run tl.device_assert
    sanitize_overflow=False,  # the checks cost five tile operations for each add and report nothing
    allowed_dot_input_precisions=("tf32", "tf32x3", "ieee", "bf16x3", "bf16x6"),
)


class Builder(interpreter.InterpreterBuilder):  # type: ignore[misc]
    """Triton's numpy builder with the corrections above.

    `state` is per thread and belongs to the launch in progress: grid_dim and grid_idx, three ints
    each, and memory, the sorted [start, end) addresses of the tensor arguments, shape (ranges, 2).
    """

    def __init__(self) -> None:
        super().__init__()
        self.options = _OPTIONS
        self.state: Any = threading.local()
        # As the GPUs have it, so that what runs here also compiles there.
        self.codegen_fns["min_dot_size"] = lambda lhs, rhs: (
            (1, 1, 32) if lhs.scalar.primitive_bitwidth == 8 else (1, 1, 16)
        )

    def create_get_program_id(self, axis: int) -> Any:
        return TensorHandle(np.array([self.state.grid_idx[axis]], dtype=np.int32), tl.int32)

    def create_get_num_programs(self, axis: int) -> Any:
        return TensorHandle(np.array([self.state.grid_dim[axis]], dtype=np.int32), tl.int32)

    def get_bf16(self, value: float) -> Any:
        return TensorHandle(to_bf16(np.array([value], dtype=np.float32)), tl.bfloat16)

    # Casts.

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        if other_fp8(src.dtype.scalar) or other_fp8(dst_type.scalar):
            return super().cast_impl(src, dst_type)
        return handle_of(numbers(src), dst_type)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        toward_zero = rounding is not None and rounding == interpreter._ir.ROUNDING_MODE.RTZ
        if source == tl.float32 and target == tl.bfloat16:
            return TensorHandle(to_bf16(src.data, toward_zero), target)
        if other_fp8(source) or other_fp8(target) or toward_zero:
            return super().create_fp_to_fp(src, dst_type, rounding)
        return handle_of(numbers(src), dst_type)

    def create_bitcast(self, src: Any, dst_type: Any) -> Any:
        data = np.ascontiguousarray(src.data)  # a view of a broadcast has no bytes of its own
        return TensorHandle(data.view(np_dtype(dst_type)), dst_type.scalar)

    create_int_to_ptr = create_ptr_to_int = create_bitcast

    # Arithmetic.

    create_fadd = _elementwise(np.add)
    create_fsub = _elementwise(np.subtract)
    create_fmul = _elementwise(np.multiply)
    create_fdiv = create_precise_divf = create_approx_divf = _elementwise(np.divide)
    create_fneg = _elementwise(np.negative)  # from Triton 3.8 on; before, it subtracts from zero
    create_frem = _elementwise(np.fmod)
    create_sdiv = create_udiv = create_idiv = _elementwise(_divide_integers)
    create_maxnumf = _elementwise(np.fmax)
    create_minnumf = _elementwise(np.fmin)
    create_maximumf = _elementwise(np.maximum)
    create_minimumf = _elementwise(np.minimum)
    create_exp, create_exp2 = _elementwise(np.exp), _elementwise(np.exp2)
    create_log, create_log2 = _elementwise(np.log), _elementwise(np.log2)
    create_sin, create_cos = _elementwise(np.sin), _elementwise(np.cos)
    create_floor, create_ceil = _elementwise(np.floor), _elementwise(np.ceil)
    create_sqrt = create_precise_sqrt = _elementwise(np.sqrt)
    create_rsqrt = _elementwise(lambda x: 1 / np.sqrt(x))
    create_erf = _elementwise(_erf)

    def create_fma(self, x: Any, y: Any, z: Any) -> Any:
        wide = [numbers(h).astype(np.float64) for h in (x, y, z)]  # one rounding, for fp32 too
        return handle_of(wide[0] * wide[1] + wide[2], z.dtype)

    def create_clampf(self, x: Any, low: Any, high: Any, propagate_nans: Any) -> Any:
        a, lo, hi = map(numbers, (x, low, high))
        keep = propagate_nans == interpreter._ir.PROPAGATE_NAN.ALL
        return handle_of(np.clip(a, lo, hi) if keep else np.fmin(np.fmax(a, lo), hi), x.dtype)

    # Comparisons. `and`, `or`, `xor` and select work on bits and need no change.

    create_fcmpOEQ, create_fcmpUEQ = _compare(np.equal), _compare(np.equal, False)
    create_fcmpONE, create_fcmpUNE = _compare(np.not_equal, True), _compare(np.not_equal)
    create_fcmpOLT, create_fcmpULT = _compare(np.less), _compare(np.less, False)
    create_fcmpOLE, create_fcmpULE = _compare(np.less_equal), _compare(np.less_equal, False)
    create_fcmpOGT, create_fcmpUGT = _compare(np.greater), _compare(np.greater, False)
    create_fcmpOGE, create_fcmpUGE = _compare(np.greater_equal), _compare(np.greater_equal, False)
    create_icmpEQ, create_icmpNE = _compare(np.equal), _compare(np.not_equal)
    create_icmpSLT = create_icmpULT = _compare(np.less)
    create_icmpSLE = create_icmpULE = _compare(np.less_equal)
    create_icmpSGT = create_icmpUGT = _compare(np.greater)
    create_icmpSGE = create_icmpUGE = _compare(np.greater_equal)

    def get_all_ones_value(self, type: Any) -> Any:
        # -1 is out of bounds for numpy's unsigned types (stock: OverflowError).
        return TensorHandle(np.full(1, -1, np.int64).astype(np_dtype(type)), type.scalar)

    def create_umulhi(self, a: Any, b: Any) -> Any:
        """Operands are bits, whatever their type says (stock: a signed product's high half)."""
        size = a.data.itemsize
        x, y = (h.data.astype(f"u{size}").astype(np.uint64) for h in (a, b))
        high = x * y >> np.uint64(32) if size < 8 else x.astype(object) * y >> 64
        return TensorHandle(high.astype(f"u{size}").astype(a.data.dtype), a.dtype.scalar)

    def create_ashr(self, a: Any, b: Any) -> Any:
        signed = f"i{a.data.itemsize}"
        return TensorHandle(a.data.view(signed) >> b.data.view(signed), a.dtype.scalar)

    # Tiles.

    def create_splat(self, ret_ty: Any, arg: Any) -> Any:
        # A view is enough: no operation writes into its operands.
        data = np.broadcast_to(arg.data.reshape(-1)[0], [*ret_ty.shape])
        return TensorHandle(data, arg.dtype.scalar)

    def create_dot(self, a: Any, b: Any, acc: Any, input_precision: Any, imprecise: Any) -> Any:
        """a (..., M, K) @ b (..., K, N) + acc; 16-bit products are exact in fp32, sums are fp32."""
        if a.dtype.scalar.is_fp8() or b.dtype.scalar.is_fp8():
            return super().create_dot(a, b, acc, input_precision, imprecise)
        # fp64 adds 8-bit products exactly, and BLAS has no integer matmul.
        wide = np.float64 if a.data.dtype in (np.int8, np.uint8, np.float64) else np.float32
        product = np.matmul(numbers(a).astype(wide), numbers(b).astype(wide))
        if acc.dtype.scalar.is_int():
            return TensorHandle(product.astype(acc.data.dtype) + acc.data, acc.dtype.scalar)
        return handle_of(product + numbers(acc), acc.dtype)

    # Memory.

    def _check(self, what: str, pointers: Any, mask: _Array | None) -> None:
        """Raise unless every active address lies inside a tensor argument."""
        active = pointers.data if mask is None else pointers.data[mask]
        memory: _Array = self.state.memory
        if not active.size:
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        if len(memory):
            low, high = active.min(), active.max()
            at = np.searchsorted(memory[:, 0], low, side="right") - 1
            if at >= 0 and high + size <= memory[at, 1]:
                return
            where = np.searchsorted(memory[:, 0], active.ravel(), side="right") - 1
            inside = (where >= 0) & (active.ravel() + size <= memory[np.maximum(where, 0), 1])
            bad = np.count_nonzero(~inside)
            if not bad:
                return
        else:
            bad = active.size
        raise OutOfBounds(
            f"{what} touches {bad} of {active.size} active elements outside every tensor argument: "
            "a mask is missing or wrong"
        )

    def create_masked_load(self, ptrs: Any, mask: Any, *rest: Any, **hints: Any) -> Any:
        self._check("load", ptrs, np.broadcast_to(mask.data, ptrs.data.shape))
        return super().create_masked_load(ptrs, mask, *rest, **hints)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *hints: Any) -> Any:
        self._check("store", ptrs, np.broadcast_to(mask.data, ptrs.data.shape))
        return super().create_masked_store(ptrs, value, mask, *hints)

    def create_atomic_cas(self, ptr: Any, cmp: Any, val: Any, sem: Any, scope: Any) -> Any:
        self._check("atomic_cas", ptr, None)
        return super().create_atomic_cas(ptr, cmp, val, sem, scope)

    def create_atomic_rmw(
        self, op: Any, ptr: Any, val: Any, mask: Any, sem: Any, scope: Any
    ) -> Any:
        active = np.broadcast_to(mask.data, ptr.data.shape)
        self._check("atomic", ptr, active)
        if op != interpreter._ir.ATOMIC_OP.FADD or val.data.itemsize != 2:
            return super().create_atomic_rmw(op, ptr, val, mask, sem, scope)
        memory = interpreter._interpreter
        # 16-bit float addition, one element after the other: addresses may repeat within a tile.
        old = np.zeros(ptr.data.shape, dtype=val.data.dtype)
        for i in zip(*np.nonzero(active), strict=True):
            at, yes = ptr.data[i].reshape(1), np.ones(1, dtype=bool)
            old[i] = memory.load(at, yes, old[i].reshape(1), old.dtype)[0]
            before = TensorHandle(old[i].reshape(1), val.dtype)
            added = TensorHandle(np.broadcast_to(val.data, old.shape)[i].reshape(1), val.dtype)
            memory.store(at, self.create_fadd(before, added).data, yes)
        return TensorHandle(old, val.dtype.scalar)


class _Semantic(interpreter.TritonSemantic):  # type: ignore[misc]
    def broadcast_impl_value(self, a: Any, b: Any) -> Any:
        if a.handle.data.shape == b.handle.data.shape and a.type.is_block() == b.type.is_block():
            return a, b  # most operands agree already
        return super().broadcast_impl_value(a, b)


BUILDER = Builder()
interpreter.interpreter_builder = BUILDER
interpreter.interpreter_semantic = _Semantic(BUILDER)


# --- reductions and scans -------------------------------------------------------------------------


def _tensor(data: _Array, dtype: Any) -> Any:
    """A tile of that shape, or a scalar for shape ()."""
    if data.ndim == 0:
        return core.tensor(TensorHandle(data.reshape(1), dtype.scalar), dtype.scalar)
    return core.tensor(
        TensorHandle(data, dtype.scalar), core.block_type(dtype.scalar, [*data.shape])
    )


def _combine(fn: Callable[..., Any], left: list[_Array], right: list[_Array], like: Any) -> Any:
    out = fn(*(_tensor(d, t.dtype) for d, t in zip([*left, *right], [*like, *like], strict=True)))
    results = [*out] if isinstance(out, (tuple, core.tuple)) else [out]
    # A combine function may return a Python number, or promote: the tile keeps its dtype.
    tensors = [
        semantic.cast(semantic.to_tensor(r), t.dtype) for r, t in zip(results, like, strict=True)
    ]
    return [np.broadcast_to(t.handle.data, left[0].shape) for t in tensors]


def _is(fn: Any, *names: str) -> bool:
    return any(fn is getattr(tl.standard, name, None) for name in names)


def _reduce(inputs: Any, axis: Any, combine_fn: Any, keep_dims: Any = False, **_: Any) -> Any:
    """`tl.reduce`: a tensor or a tuple of equally shaped tensors; axis None reduces all axes."""
    if isinstance(inputs, core.tensor):
        return _reduce((inputs,), axis, combine_fn, keep_dims)[0]
    axis, keep_dims = plain(axis), bool(plain(keep_dims))
    data = [t.handle.data for t in inputs]
    rank = data[0].ndim
    if axis is None:
        data, at = [d.reshape(-1) for d in data], 0
    else:
        if not -rank <= axis < rank:
            raise ValueError(f"axis {axis} is out of range for shape {data[0].shape}")
        at = axis % rank
    out = _reduce_axis(combine_fn, data, at, inputs)
    if keep_dims:
        out = [d.reshape((1,) * rank) if axis is None else np.expand_dims(d, at) for d in out]
    return tuple(_tensor(np.asarray(d), t.dtype) for d, t in zip(out, inputs, strict=True))


def _reduce_axis(fn: Any, data: list[_Array], at: int, like: Any) -> list[_Array]:
    first, dtype = data[0], like[0].dtype
    wide = dtype not in (tl.bfloat16, tl.float16)  # these round after every addition: no short cut
    if wide and _is(fn, "_sum_combine"):
        return [np.sum(first, axis=at, dtype=first.dtype)]
    if dtype != tl.bfloat16 and _is(fn, "_elementwise_max", "_elementwise_min"):
        op = np.fmax if _is(fn, "_elementwise_max") else np.fmin
        return [op.reduce(first, axis=at)]
    for name, pick in (("argmax", np.argmax), ("argmin", np.argmin)):
        left_first = _is(fn, f"_{name}_combine_tie_break_left")
        if (
            left_first
            and dtype != tl.bfloat16
            and not (dtype.is_floating() and np.isnan(first).any())
        ):
            best = np.expand_dims(pick(first, axis=at), at)
            return [np.take_along_axis(d, best, at).squeeze(at) for d in data]
    # Neighbours first, so that a combine function need be associative but not commutative.
    data = [np.moveaxis(d, at, 0) for d in data]
    while data[0].shape[0] > 1:
        data = _combine(fn, [d[0::2] for d in data], [d[1::2] for d in data], like)
    return [d[0] for d in data]


def _scan(inputs: Any, axis: Any, combine_fn: Any, reverse: Any = False, **_: Any) -> Any:
    """`tl.associative_scan`, inclusive, from the far end if `reverse`."""
    if isinstance(inputs, core.tensor):
        return _scan((inputs,), axis, combine_fn, reverse)[0]
    at = plain(axis) % inputs[0].handle.data.ndim
    step = -1 if plain(reverse) else 1
    data = [np.moveaxis(t.handle.data, at, 0)[::step] for t in inputs]
    wide = inputs[0].dtype not in (tl.bfloat16, tl.float16)
    if wide and _is(combine_fn, "_sum_combine"):
        data = [np.cumsum(data[0], axis=0, dtype=data[0].dtype)]
    elif wide and _is(combine_fn, "_prod_combine"):
        data = [np.cumprod(data[0], axis=0, dtype=data[0].dtype)]
    else:
        distance = 1
        while distance < data[0].shape[0]:
            # Element i takes what ended at i - distance. Tiles keep their shape (a power of two),
            # so the first `distance` elements are combined with something and then put back.
            earlier = [np.roll(d, distance, axis=0) for d in data]
            new = _combine(combine_fn, earlier, data, inputs)
            data = [
                np.concatenate([d[:distance], n[distance:]]) for d, n in zip(data, new, strict=True)
            ]
            distance *= 2
    out = [np.ascontiguousarray(np.moveaxis(d[::step], 0, at)) for d in data]
    return tuple(_tensor(d, t.dtype) for d, t in zip(out, inputs, strict=True))


# --- binding the copy -----------------------------------------------------------------------------


def _static_assert(condition: Any, message: Any = "") -> None:
    if not plain(condition):
        raise AssertionError(plain(message))


def _hint(x: Any, values: Any) -> Any:
    return x  # tl.multiple_of and its kin inform an optimiser


def _bind_builtins(owner: Any) -> None:
    """Give every builtin of a module or class the numpy semantic, for good."""
    for name, member in list(vars(owner).items()):
        if core.is_builtin(member):
            raw = getattr(
                member, "__wrapped__", member
            )  # without the check that a compiler is there

            def bound(*args: Any, _raw: Any = raw, **kwargs: Any) -> Any:
                kwargs["_semantic"] = semantic
                return _raw(*args, **kwargs)

            bound.__name__ = name
            bound.__doc__ = member.__doc__
            setattr(owner, name, bound)


_NUMPY_NAMES = (
    *("tanh", "sinh", "cosh", "tan", "sin", "cos", "exp", "exp2", "expm1", "log", "log2", "log1p"),
    *("log10", "sqrt", "cbrt", "floor", "ceil", "trunc", "rint", "fmod", "hypot", "copysign"),
)
_ARC_NAMES = ("asin", "acos", "atan", "asinh", "acosh", "atanh")


def _bind_libdevice() -> None:
    """Element-wise numpy functions under libdevice's names; others are absent and say so."""
    functions: dict[str, Callable[..., _Array]] = {
        **{name: getattr(np, name) for name in _NUMPY_NAMES},
        **{name: getattr(np, "arc" + name[1:]) for name in _ARC_NAMES},
        **{"abs": np.abs, "fabs": np.abs, "pow": np.power, "erf": _erf},
        "rsqrt": lambda x: 1 / np.sqrt(x),
        "erfc": lambda x: 1 - _erf(x),
        "exp10": lambda x: 10.0**x,
        "nearbyint": np.rint,
        "round": lambda x: np.trunc(x + np.copysign(0.5, x)),
        "fast_expf": np.exp,
        "fast_tanhf": np.tanh,
        "fast_dividef": np.divide,
        "div_rn": np.divide,
        "atan2": np.arctan2,
        "fma": lambda x, y, z: x.astype(np.float64) * y + z,
    }
    for name, function in functions.items():

        def call(*args: Any, _function: Any = function) -> Any:
            tensors = [semantic.to_tensor(a) for a in args]
            for i in range(1, len(tensors)):
                tensors[0], tensors[i] = semantic.binary_op_type_checking_impl(
                    tensors[0], tensors[i]
                )
            handle = handle_of(_function(*(numbers(t.handle) for t in tensors)), tensors[0].dtype)
            return core.tensor(handle, tensors[0].type)

        setattr(libdevice, name, call)
    libdevice.__dict__["isnan"] = lambda x: x != x
    libdevice.__dict__["isinf"] = lambda x: tl.abs(x) == float("inf")


semantic = interpreter.interpreter_semantic
interpreter._get_np_dtype = np_dtype
TensorHandle.__post_init__ = lambda self: None  # a check of numpy's item size, at every result
for _owner in (core, core.tensor, core.tensor_descriptor_base, tl.math, tl):
    _bind_builtins(_owner)
# numpy needs no second type system; and unlike MLIR it knows signed from unsigned.
core.dtype.to_ir = lambda self, builder: self
for _module in (tl, core):
    _module.reduce, _module.associative_scan = _reduce, _scan
    _module.static_assert, _module.static_print = _static_assert, print
    _module.multiple_of = _module.max_contiguous = _module.max_constancy = _hint
core.tensor.reduce, core.tensor.associative_scan = _reduce, _scan
core.tensor.__index__ = lambda self: int(self.handle.data.item())
core.tensor.__repr__ = core.tensor.__str__ = lambda self: f"{self.type} {self.handle.data}"
core.tensor.T = property(lambda self: tl.trans(self))
_bind_libdevice()
