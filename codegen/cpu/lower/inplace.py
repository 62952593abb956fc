"""Products that are added to what lies in memory, where it lies.

``store(p, dot(a, b, load(p)))`` is how a derived backward adds to a gradient. The accumulators are
loaded from that tensor and stored to it, instead of a copy in the program's scratch memory, if this
program's block has no masked element and what the operands are read from does not overlap with it.
Both are known at run time only, so that base and pitch of the result are chosen there, and one
piece of code serves both cases.
"""

from __future__ import annotations

from codegen.cpu.emit import Val, const
from codegen.cpu.lower import access, alias, prefix
from codegen.cpu.lower.tensor import (
    ZERO,
    Buffer,
    Load,
    Map,
    Range,
    Reindex,
    Tensor,
    loops,
    nest,
)
from codegen.cpu.ttir import BYTES, Op, Type

_SUMS = ("arith.addi", "arith.subi", "tt.addptr")
_WIDER = ("arith.extsi", "arith.extui")


class InPlace(Buffer):
    """A matrix with contiguous rows, ``pitch`` bytes from each to the next: known at run time.

    ``inside``: it is the tensor itself, and not a copy of it.
    """

    def __init__(self, ty: Type, base: Val, pitch: Val, inside: Val) -> None:
        super().__init__(ty, base)
        self.pitch, self.inside = pitch, inside

    def address(self, e, idx):
        row = e.mul(e.extend(idx[0], "i64"), self.pitch)
        return e.offset(e.offset(self.base, row, 1), idx[1], BYTES[self.type.elem])


def target(low, op: Op, operands: tuple[Tensor, Tensor]) -> tuple[InPlace, Load, Op] | None:
    """Where a product may be added up, what is loaded from there, and the store; None: nowhere."""
    load, store = low.uses.defs.get(op.operands[2]), _next(op)
    if low.check or store is None or not isinstance(load, Op) or load.name != "tt.load":
        return None
    if low.uses.of(op.results[0]) != [store] or store.operands[1] != op.results[0]:
        return None
    if low.uses.of(load.results[0]) != [op] or op.operands.count(load.results[0]) != 1:
        return None
    if load.operands[0] != store.operands[0] or load.operands[1:2] != store.operands[2:3]:
        return None
    there, ty = low.env[op.operands[2]], op.result_types[0]
    if type(there) is not Load or ty.elem != "f32" or len(ty.shape) != 2 or ty.shape[0] < 2:
        return None
    if there.ptr.stride(1) != BYTES["f32"] or not _linear(there.ptr):
        return None
    apart = _apart(low, operands, there.root)
    open_ = None if apart is None else _open(low, there.mask, ty.shape)
    if apart is None or open_ is None:
        return None
    e = low.e
    with nest(e) as g:
        first, second, last = (
            g.at(there.ptr, (const("i32", r), ZERO)) for r in (0, 1, ty.shape[0] - 1)
        )
        if not (first.uniform and second.uniform and last.uniform):
            return None
        at, then, end = (
            e.wrap("i64", e.raw(f"ptrtoint ptr {e.operand(p)} to i64"), 0)
            for p in (first, second, last)
        )
        pitch = e.op("sub", "i64", then, at)
        row = const("i64", ty.shape[1] * BYTES["f32"])
        inside = e.op("icmp sge", "i64", pitch, row, out="i1")
        # Offsets may pass the end of their integers on the way.
        there_at = e.add(at, e.mul(pitch, const("i64", ty.shape[0] - 1)))
        for holds in (e.op("icmp eq", "i64", there_at, end, out="i1"), *apart, *open_):
            inside = e.op("and", "i1", inside, holds)
        copy = low.alloc(ty)
        base, pitch = e.select(inside, first, copy.base), e.select(inside, pitch, row)
        out = tuple(e.wrap(v.ty, e.operand(v), 0) for v in (base, pitch, inside))
    return InPlace(ty, *out), there, store


def begin(low, out: InPlace, there: Load) -> None:
    """Copies what is added to, unless it is added up in place."""

    def copy() -> None:
        low.write(there, out)

    low.e.branch_if(out.inside, lambda: None, copy)


def end(low, out: InPlace, there: Load, store: Op) -> None:
    """Stores the sum, unless it is in place; ``store`` is done with this."""
    e = low.e

    def back() -> None:
        whole = {a: prefix.whole(low, (there.mask,), a) for a in (0, 1)}
        with nest(e) as g:

            def body(idx) -> None:
                n = max((i.n for i in idx if not i.uniform), default=0)
                m = None if there.mask is None else g.at(there.mask, idx)
                access.store(e, "f32", g.at(there.ptr, idx), g.at(out, idx), m, n)

            loops(g, out.shape, 1, e.features.width, body, whole=whole)

    e.branch_if(out.inside, lambda: None, back)
    low.early.add(id(store))


def _next(op: Op) -> Op | None:
    """The store that follows at once: no load that is done late can fall between."""
    ops = op.block.ops
    after = ops[op.index + 1] if op.index + 1 < len(ops) else None
    return after if after is not None and after.name == "tt.store" else None


def _linear(t: Tensor) -> bool:
    """Is every row of pointers as far from the last as that from the one before it, but for
    integers that pass their end?"""
    if t.stride(0) is not None or isinstance(t, Range):
        return True
    if isinstance(t, Reindex):
        axis = t.strides[0] if t.strides else None
        return axis == 0 and _linear(t.src)
    if not isinstance(t, Map):
        return False
    if t.op_name in _SUMS or t.op_name in _WIDER:
        return all(map(_linear, t.inputs))
    if t.op_name == "arith.muli":
        a, b = t.inputs
        return (a.stride(0) == 0 and _linear(b)) or (b.stride(0) == 0 and _linear(a))
    return False


def _apart(low, operands: tuple[Tensor, Tensor], root: str | None) -> list[Val] | None:
    """Conditions for the operands not to be read from where the result lies."""
    args = low.func.body.entry.args
    if root not in args or low.uses is not low.own_uses:
        return None
    bits = 0
    for t in operands:
        loads = alias._loads(t)
        if loads is None or any(x.root not in args or x.root == root for x, _ in loads):
            return None
        for x, _ in loads:
            bits |= alias.bit(low, args.index(x.root), args.index(root), False)
    if not bits:
        return []
    e = low.e
    return [e.op("xor", "i1", alias.overlapping(e, bits), const("i1", 1))]


def _open(low, mask: Tensor | None, shape: tuple[int, ...]) -> list[Val] | None:
    """Conditions for a mask to be on everywhere; None if it is not made of ends of its axes."""
    if mask is None:
        return []
    e, out, known = low.e, [], set()
    for axis, size in enumerate(shape):
        found = prefix.whole(low, (mask,), axis)
        if found is not None:
            known |= set(found[0])
            out.append(e.op("icmp sge", "i32", found[1], const("i32", size), out="i1"))
    pending = [mask]
    while pending:
        t = pending.pop()
        if isinstance(t, Reindex) or (isinstance(t, Map) and t.op_name == "arith.andi"):
            pending += t.inputs
        elif id(t) not in known and t.constant() != 1:
            return None
    return out


__all__ = ["InPlace", "begin", "end", "target"]
