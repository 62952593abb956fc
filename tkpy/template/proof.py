"""Whether Triton's split of a loop by warp left the kernel whole.

Triton 3.7 removes some loops that it is asked to specialise, on sm_90 with several products on a
state for one: what it compiles without a word then stores nothing. So a specialised kernel is
compiled once before it is used, and one that came out empty is scheduled anew, not specialised.
"""

from __future__ import annotations

import re

from codegen.aot import compile_source
from codegen.ir import Function

STORES = re.compile(r"\b(st\.(?!shared|local|async\.shared)|red\.|atom\.|cp\.(async|reduce\.async)"
                    r"\.bulk\S*\.global\.shared)")  # fmt: skip
PRODUCTS = re.compile(r"\b(wgmma\.mma|tcgen05\.mma|mma\.sync|mma\.sp|fma\.rn|mad\.)")


def whole(fn: Function, assembly: str) -> bool:
    """Does NVIDIA's assembly store, and multiply where the tiles do?"""
    multiplies = any(op.kind == "mma" for op in fn.body.walk())
    return bool(STORES.search(assembly)) and (not multiplies or bool(PRODUCTS.search(assembly)))


def survives(lowered, types: dict[str, str]) -> bool:
    """Compiles a specialised kernel and reads it back; False too where Triton gives up on it."""
    schedule = lowered.fn.schedule
    try:
        compiled = compile_source(
            lowered.source,
            lowered.emitted.name,
            types,
            {},
            schedule.machine,
            num_warps=schedule.warps,
            num_stages=schedule.stages,
            attrs={name: 16 for name, t in types.items() if t.startswith("*")},
        )
    except Exception:  # whatever Triton raises here, it may not raise of the loop left whole
        return False
    return whole(lowered.fn, compiled.assembly)
