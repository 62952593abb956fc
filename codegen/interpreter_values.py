"""What the interpreter's tiles hold: numpy arrays, and bits for the floats that numpy lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from codegen.interpreter_copy import interpreter

TensorHandle = interpreter.TensorHandle
_Array = np.ndarray

# Triton's own table is rebuilt at every look-up, and hashing a dtype is slow.
_NP_DTYPES: dict[str, np.dtype[Any]] = {
    **{f"{u}int{w}": np.dtype(f"{u}int{w}") for u in ("", "u") for w in (8, 16, 32, 64)},
    **{"int1": np.dtype(bool), "fp16": np.dtype("f2"), "fp32": np.dtype("f4")},
    **{"fp64": np.dtype("f8"), "bf16": np.dtype("u2")},
    **{f"fp8{kind}": np.dtype("u1") for kind in ("e5", "e5b16", "e4nv", "e4b8", "e4b15")},
}


def np_dtype(dtype: Any) -> np.dtype[Any]:
    """What numpy stores a Triton dtype as; a pointer is an address."""
    scalar = dtype.scalar
    return _NP_DTYPES.get(scalar.name) or np.dtype(np.uint64)


# --- bfloat16: numpy has none, so a tile holds the upper 16 bits of an fp32 -----------------------


def from_bf16(bits: _Array) -> _Array:
    """uint16 bit patterns to fp32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(x: _Array, toward_zero: bool = False) -> _Array:
    """fp32 to uint16 bit patterns, to nearest even; NaN stays NaN, a large value becomes inf."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = bits if toward_zero else bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    out = (rounded >> 16).astype(np.uint16)
    nan = np.isnan(x)
    # Adding to a NaN's payload could carry into the exponent; any quiet NaN will do.
    return np.where(nan, np.uint16(0x7FC0), out) if nan.any() else out


#: 8-bit floats that PyTorch converts (stock: rounded wrongly).
_FP8 = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}


def other_fp8(dtype: Any) -> bool:
    return dtype.is_fp8() and dtype.name not in _FP8


def numbers(handle: Any) -> _Array:
    """The values a handle stands for, in a dtype that numpy computes with."""
    name = handle.dtype.scalar.name
    if name in _FP8:
        bytes_ = torch.from_numpy(np.ascontiguousarray(handle.data))
        return bytes_.view(_FP8[name]).to(torch.float32).numpy()
    return from_bf16(handle.data) if name == "bf16" else handle.data


def handle_of(values: _Array, dtype: Any) -> Any:
    """Round numpy values to `dtype`."""
    dtype = dtype.scalar
    if dtype.name == "bf16":
        return TensorHandle(to_bf16(values), dtype)
    if dtype.name in _FP8:
        wide = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return TensorHandle(wide.to(_FP8[dtype.name]).view(torch.uint8).numpy(), dtype)
    return TensorHandle(values.astype(np_dtype(dtype), copy=False), dtype)
