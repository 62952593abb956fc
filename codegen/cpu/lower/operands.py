"""Left operands that lie in memory already, though not by that name.

A transposed buffer is a buffer whose axes have changed places. A buffer under a mask that is on
everywhere, as it is in all blocks but the last, is that buffer: only the last one is copied.
"""

from __future__ import annotations

from collections.abc import Callable

from codegen.cpu.emit import Val, const
from codegen.cpu.lower import prefix
from codegen.cpu.lower.tensor import Buffer, Map, Reindex, Tensor


def in_memory(t: Tensor) -> Tensor:
    """A transposed buffer as a buffer; anything else as it is."""
    if isinstance(t, Reindex) and t.strides is not None:
        order, src = t.strides, in_memory(t.src)
        if type(src) is Buffer and None not in order and sorted(order) == list(range(len(order))):
            out = Buffer(t.type, src.base)
            out.steps = [src.steps[a] for a in order]
            return out
    return t


def unmasked(low, t: Tensor) -> tuple[Buffer, Val] | None:
    """The buffer that ``t`` is wherever its mask is on, and whether that is everywhere."""
    masks: list[Tensor] = []
    src = _peel(t, masks)
    if src is None or not masks or src.steps != Buffer(t.type, src.base, _order(src)).steps:
        return None
    found: set[int] = set()
    everywhere = const("i1", 1)
    for axis, size in enumerate(t.shape):
        held = prefix.whole(low, (t,), axis)
        if held is not None:
            found |= set(held[0])
            full = low.e.op("icmp sge", "i32", held[1], const("i32", size), out="i1")
            everywhere = low.e.op("and", "i1", everywhere, full)
    if not all(_follows(m, found) for m in masks):
        return None
    return src, everywhere


def _peel(t: Tensor, masks: list[Tensor]) -> Buffer | None:
    """What is under the masks, and those; its axes where those of ``t`` are."""
    if isinstance(t, Reindex) and t.strides is not None:
        inner = _peel(t.src, masks)
        order = t.strides
        if inner is None or None in order or sorted(order) != list(range(len(order))):
            return None
        out = Buffer(t.type, inner.base)
        out.steps = [inner.steps[a] for a in order]
        return out
    if isinstance(t, Map) and t.op_name == "arith.select":
        masks.append(t.inputs[0])
        return _peel(t.inputs[1], masks)
    return t if type(t) is Buffer else None


def _order(t: Buffer) -> tuple[int, ...]:
    """The axes from outermost to contiguous."""
    return tuple(sorted(range(len(t.shape)), key=lambda a: -t.steps[a]))


def _follows(mask: Tensor, found: set[int]) -> bool:
    """Is a mask on if these comparisons hold?"""
    if id(mask) in found:
        return True
    if isinstance(mask, Reindex):
        return _follows(mask.src, found)
    both = isinstance(mask, Map) and mask.op_name == "arith.andi"
    return both and all(_follows(m, found) for m in mask.inputs)


def choose(low, t: Tensor, src: Buffer, everywhere: Val, copy: Callable[[Buffer], None]) -> Buffer:
    """``src``, or where its mask is not on everywhere a copy of ``t`` that lies as it does."""
    e = low.e
    held = low.alloc(t.type, _order(src))
    slot = low.slot("ptr")
    e.line(f"store ptr {e.operand(src.base)}, ptr {slot}")

    def masked() -> None:
        copy(held)
        e.line(f"store ptr {e.operand(held.base)}, ptr {slot}")

    e.branch_if(e.op("xor", "i1", everywhere, const("i1", 1)), masked)
    return Buffer(t.type, e.wrap("ptr", e.raw(f"load ptr, ptr {slot}"), 0), held.order)
