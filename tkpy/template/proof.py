"""What is proved of a template's variant before it runs: its pipeline, and what Triton made of it.

The pipeline is checked for races and deadlocks before anything is compiled. Then: Triton 3.7
removes some loops that it is asked to specialise, on sm_90 with several products on a state for
one: what it compiles without a word then stores nothing. In others the consumers, who have four
warps then, spill. So a specialised kernel is compiled once before it is used, and one that came out
empty, or spills more than without, is scheduled anew, not specialised.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from codegen.aot import Compiled, ToolMissing, compile_source
from codegen.inspect import spill_bytes
from codegen.ir import Function

STORES = re.compile(r"\b(st\.(?!shared|local|async\.shared)|red\.|atom\.|cp\.(async|reduce\.async)"
                    r"\.bulk\S*\.global\.shared)")  # fmt: skip
MATRIX = re.compile(r"\b(wgmma\.mma|tcgen05\.mma|mma\.sync)")
EXACT = re.compile(r"\bfma\.rn\.f(32|64)")  # what fp32 products may become instead

#: The device whose pipeline stands for a machine's.
DEVICES = {"sm_80": "a100", "sm_90": "h100", "sm_100": "b200", "gfx942": "mi300x"}


def in_order(kernel, key) -> None:
    """Raises PipelineError where the template's pipeline has a race or a deadlock.

    Sizes are any that meet the preconditions: what is found holds for every number of iterations.
    A pipeline that cannot be drawn up at all says nothing of its order, and is left to Triton.
    """
    from tkpy.ahead import choose_sizes
    from tkpy.errors import TkError
    from tkpy.pipeline import device
    from tkpy.pipeline.check import verify
    from tkpy.pipeline.of_kernel import front_end_of, plan_of

    try:
        fn, amounts = front_end_of(kernel, key)
        sizes = choose_sizes(kernel.signature, dict(key.static), dict(key.constants))
        planned = plan_of(kernel, fn, amounts, device.DEVICES[DEVICES[key.machine]], sizes)
    except TkError:
        return
    verify(planned.pipeline)


def whole(fn: Function, assembly: str) -> bool:
    """Does NVIDIA's assembly store, and multiply where the tiles do?"""
    products = [op.operands[0].type.dtype for op in fn.body.walk() if op.kind == "mma"]
    found = bool(MATRIX.search(assembly))
    if all(dtype.bits >= 32 for dtype in products):
        found = found or not products or bool(EXACT.search(assembly))
    return found and bool(STORES.search(assembly))


LOST = "Triton loses this loop when it does"
SPILLS = "its registers spill when it is"


def loss(lowered, unsplit: Callable[[str], Any]) -> str:
    """Why ``lowered``, a specialised kernel, is better left whole, or nothing.

    It is compiled and read back. Where it spills registers, so is ``unsplit(why)``, the same
    kernel left whole, and the one that spills less is taken.
    """
    compiled = _compile(lowered)
    if compiled is None or not whole(lowered.fn, compiled.assembly):
        return LOST
    spilled = _spilled(compiled)
    if not spilled:
        return ""
    other = _compile(unsplit(SPILLS))
    return SPILLS if other is not None and _spilled(other) < spilled else ""


def survives(lowered) -> bool:
    """Compiles a specialised kernel and reads it back; False too where Triton gives up on it."""
    compiled = _compile(lowered)
    return compiled is not None and whole(lowered.fn, compiled.assembly)


def _compile(lowered) -> Compiled | None:
    from tkpy.ahead import argument_types

    schedule = lowered.fn.schedule
    types = argument_types(lowered.fn, lowered.emitted.arguments)
    try:
        with _quiet():
            return compile_source(
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
        return None


def _spilled(compiled: Compiled) -> int:
    try:
        return spill_bytes(compiled.sass)
    except ToolMissing:  # then nobody can tell
        return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """What Triton's passes say of their failures goes past Python, to the process' own stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
