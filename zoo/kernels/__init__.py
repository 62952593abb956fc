"""Kernels, one file each, with their fp64 references.

The package is also what ``zoo`` registers: called, it gives every kernel by name. (A function of
that name in ``zoo`` would be replaced by this package at the first import from it.)
"""

from __future__ import annotations

import importlib
import sys
import types

#: Kernel name -> module of this package that defines it.
_MODULES = {
    "gemm": "gemm",
    "softmax": "softmax",
    "cross_entropy": "cross_entropy",
    "linear_cross_entropy": "linear_cross_entropy",
    "flux_gelu": "flux",
    "flux_gate": "flux",
    "layernorm": "norm",
    "rmsnorm": "norm",
    "rotary": "rotary",
    "short_conv": "short_conv",
    "attention": "attention",
    "fftconv": "fftconv",
    "linear_attention": "linear_attention",
    "mamba2": "mamba2",
    "hedgehog": "hedgehog",
    "based": "based",
    "based_decode": "based",
    "nearest_code": "vector_quantize",
    "vector_quantize": "vector_quantize",
    "vector_quantize_gradient": "vector_quantize",
    "code_sums": "codebook",
    "ema_codebook": "codebook",
    "taylor_quadratic": "taylor_quadratic",
    "taylor_block": "taylor_quadratic",
    "swiglu": "swiglu",
    "attention_decode": "attention_decode",
}


class _Package(types.ModuleType):
    def __call__(self) -> dict[str, object]:
        """Every kernel of the zoo by name."""
        return {
            name: getattr(importlib.import_module(f"{__name__}.{module}"), name)
            for name, module in _MODULES.items()
        }


sys.modules[__name__].__class__ = _Package
