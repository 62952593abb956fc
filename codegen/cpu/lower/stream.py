"""Stores past the caches, for results that no cache would keep.

An ordinary store first reads the line that it overwrites. Where a whole tensor of several times the
size of a core's cache is written, that is a third of all the traffic, for lines that are gone
before anybody reads them. The launcher says which arguments are so large in this launch (one bit
each); whole vectors that lie within one line are then stored without reading it. A tensor that the
kernel also reads is in the cache already and is left alone, and so is every kernel with atomics,
which may tell other programs that data is there.
"""

from __future__ import annotations

from codegen.cpu.emit import Val, const, ll
from codegen.cpu.lower import access
from codegen.cpu.ttir import BYTES, Op

# Of the launcher's bits: the pairs of ``alias`` use those below.
FIRST_BIT, LAST_BIT = 40, 61
LARGE = 8 << 20  # bytes: four times the second-level cache of a core
_SHORT = 256  # bytes along the contiguous axis below which nothing is gained
_ORDERED = ("tt.atomic_rmw", "tt.atomic_cas", "tt.call", "tt.elementwise_inline_asm")
_READS = ("tt.load", "tt.descriptor_load", "tt.descriptor_gather")


def _ops(block):
    for op in block.ops:
        yield op
        for region in op.regions:
            for inner in region.blocks:
                yield from _ops(inner)


def _facts(low) -> tuple[bool, set[str | None]]:
    """Does the kernel order its accesses by atomics, and which arguments does it read?"""
    if low.stream_facts is None:
        ops = [op for block in low.func.body.blocks for op in _ops(block)]
        read = {low.own_uses.root(op.operands[0]) for op in ops if op.name in _READS}
        low.stream_facts = any(op.name in _ORDERED for op in ops), read
    return low.stream_facts


def condition(low, op: Op, shape: tuple[int, ...], axis: int | None, elem: str) -> Val | None:
    """0 if this launch stores an argument past the caches and else 1, for one store; None: never.

    An i64, so that the test of an address's alignment can include it.
    """
    args = low.func.body.entry.args
    root = low.uses.root(op.operands[0])
    if low.uses is not low.own_uses or root not in args or axis is None:
        return None
    if elem == "i1" or shape[axis] * BYTES[elem] < _SHORT or low.e.features.width < 8:
        return None
    ordered, read = _facts(low)
    if ordered or root in read or None in read:
        return None
    arg = args.index(root)
    if arg not in low.streams and len(low.streams) > LAST_BIT - FIRST_BIT:
        return None
    bit = low.streams.setdefault(arg, FIRST_BIT + len(low.streams))
    e, given = low.e, Val("i64", "u", "%overlap")
    large = e.op("and", "i64", e.op("lshr", "i64", given, const("i64", bit)), const("i64", 1))
    return e.op("xor", "i64", large, const("i64", 1))


def store(e, elem: str, ptr: Val, value: Val, n: int, keep: Val) -> None:
    """Store a vector of contiguous elements, past the caches where ``keep`` is 0."""
    size = n * BYTES[elem]
    value = e.wrap(value.ty, e.operand(value, n), n)  # computed before the branch
    address = e.wrap("i64", e.raw(f"ptrtoint ptr {e.operand(ptr.base)} to i64"), 0)
    bits = e.op("and", "i64", e.op("or", "i64", address, keep), const("i64", size - 1))
    past = e.op("icmp eq", "i64", bits, const("i64", 0), out="i1")
    e.globals["!stream"] = "!0 = !{i32 1}"

    def stream() -> None:
        e.line(f"store {ll(value.ty, n)} {e.operand(value, n)}, ptr {e.operand(ptr.base)}, "
               f"align {size}, !nontemporal !0")  # fmt: skip

    e.branch_if(past, stream, lambda: access.store(e, elem, ptr, value, None, n))


def fits(ptr: Val, elem: str, n: int) -> bool:
    """Is this a store of a power of two of bytes, at least 16, in one piece?"""
    size = n * BYTES[elem]
    return n > 1 and size >= 16 and not size & (size - 1) and access.contiguous(ptr, elem)
