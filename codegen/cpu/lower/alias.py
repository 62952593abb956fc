"""May a load happen inside the loop of the store that follows it?

A program loads a whole block before it stores one; a fused loop does both lane by lane, which is
the same only if no lane reads what an earlier lane wrote. That is certain where load and store use
one pointer at one index. For two kernel arguments it depends on the tensors of a launch: the
launcher compares their storages and hands the kernel one bit per pair of arguments, and the store
keeps a second path that reads everything first. The same argument at other offsets is never fused.
"""

from __future__ import annotations

from codegen.cpu.emit import Val, const
from codegen.cpu.lower.tensor import Load, Map, Tensor
from codegen.cpu.ttir import BYTES, Op

_SAME_SHAPE_OPS = ("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans")
_MAX_BITS = 39  # those above are lower.stream's


def same_offsets(uses, a: str, b: str) -> bool:
    """Do two pointers differ only in the function argument that they start from?"""
    for _ in range(1000):
        if a == b:
            return True
        x, y = uses.defs.get(a), uses.defs.get(b)
        if not isinstance(x, Op) or not isinstance(y, Op):
            return uses.root(a) == a and uses.root(b) == b
        p, q = x.result_types[0], y.result_types[0]
        if (x.name, p.shape) != (y.name, q.shape) or BYTES.get(p.pointee, 1) != BYTES.get(
            q.pointee, 1
        ):
            return False
        if x.name == "tt.addptr":
            if x.operands[1] != y.operands[1]:
                return False
        elif x.name not in _SAME_SHAPE_OPS or x.attrs != y.attrs:
            return False
        a, b = x.operands[0], y.operands[0]
    return False


def _loads(t: Tensor) -> list[tuple[Load, bool]] | None:
    """Loads that evaluating ``t`` does, and whether each is at the index being evaluated.

    None if ``t`` reads through a change of index: written down, its lanes can follow its memory.
    """
    found: list[tuple[Load, bool]] = []
    pending, seen = [(t, True)], set()
    while pending:
        x, here = pending.pop()
        if (id(x), here) in seen or not x.reads:
            continue
        seen.add((id(x), here))
        if isinstance(x, Load):
            found.append((x, here))
            pending += [(i, False) for i in x.inputs]
        elif isinstance(x, Map) or not here:
            pending += [(i, here) for i in x.inputs]
        else:
            return None
    return found


def risk(low, t: Tensor, store: Op) -> int | None:
    """Bits of the argument pairs whose overlap forbids fusing ``t`` into a store; None: always."""
    loads = _loads(t)
    args = low.func.body.entry.args
    pointer = store.operands[0]
    root = low.uses.root(pointer)
    if loads is None or root not in args or low.uses is not low.own_uses:
        return None
    target, bits = low.env.get(pointer), 0
    for x, here in loads:
        if here and x.ptr is target:
            continue
        if x.root not in args or x.root == root:
            return None
        same = here and same_offsets(low.uses, x.name, pointer)
        bits |= bit(low, args.index(x.root), args.index(root), same)
    return bits


def bit(low, load: int, store: int, same: bool) -> int:
    """The launcher's bit for two arguments; ``same``: that they are equal is no overlap."""
    return 1 << low.pairs.setdefault((load, store, same), min(len(low.pairs), _MAX_BITS))


def overlapping(e, bits: int) -> Val:
    """Does any of these pairs overlap in this launch?"""
    given = Val("i64", "u", "%overlap")
    return e.op("icmp ne", "i64", e.op("and", "i64", given, const("i64", bits)),
                const("i64", 0), out="i1")  # fmt: skip
