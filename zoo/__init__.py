"""The model zoo: kernels and models written in tiles.

It registers with tkpy through the entry-point group ``tkpy.zoo``, as any other package may. The
registered module has ``kernels()`` (name -> kernel) and may have ``demo(console, text, seconds)``.
"""

from __future__ import annotations

import importlib

#: Kernel name -> module below ``zoo.kernels`` that defines it.
_KERNELS = {
    "gemm": "gemm",
    "softmax": "softmax",
    "layernorm": "norm",
    "rmsnorm": "norm",
    "rotary": "rotary",
    "short_conv": "short_conv",
    "attention": "attention",
    "based": "based",
    "based_decode": "based",
}


def kernels() -> dict[str, object]:
    """Every kernel of the zoo by name."""
    return {
        name: getattr(importlib.import_module(f"zoo.kernels.{module}"), name)
        for name, module in _KERNELS.items()
    }
