"""Results that a reduction writes down on its way, for those who read them after it."""

from __future__ import annotations

from codegen.cpu import floats
from codegen.cpu.lower import dot
from codegen.cpu.lower.elementwise import TABLE
from codegen.cpu.lower.tensor import Buffer, Tee, Tensor
from codegen.cpu.ttir import Op, Type


def reduced(low, op: Op, t: Tensor, name: str, users: list[Op]) -> Tee | None:
    """A result with several readers, of which one is a reduction of it alone: that one comes
    first, whatever the order of the others, and writes down what they read. If they are one
    conversion to a narrower type, what it gives is written instead."""
    if isinstance(t, Buffer) or any(u.block is not op.block for u in users):
        return None
    sums = [u for u in users if u.name == "tt.reduce" and u.operands == [name]]
    if not sums:
        return None
    first = min(sums, key=lambda u: u.index)
    low.next = first
    rest = [u for u in users if u is not first]
    if len(rest) == 1 and rest[0].name == "arith.truncf":
        narrow = rest[0]
        buffer = low.alloc(narrow.result_types[0])
        low.made[narrow.results[0]] = buffer
        if multiplied(low, narrow, t.type):
            return Tee(t, buffer, floats.host_bf16, pairs=True)
        fn = TABLE[narrow.name][0]
        return Tee(t, buffer, lambda e, vs: fn(e, narrow, *vs))
    return Tee(t, low.places.get(name) or spent(low, name, t.type) or low.alloc(t.type))


def multiplied(low, narrow: Op, ty: Type) -> bool:
    """Is a conversion to bf16 read by the host's own products only?"""
    out = narrow.result_types[0]
    if out.elem != "bf16" or ty.elem != "f32" or len(ty.shape) != 2 or ty.shape[1] % 16:
        return False
    if "rtz" in narrow.attrs.get("rounding", "") + " ".join(w or "" for w in narrow.words):
        return False
    pending, ends = [narrow.results[0]], 0
    while pending:
        name = pending.pop()
        for u in low.uses.of(name):
            if u.name == "tt.trans" or (u.name == "arith.select" and name != u.operands[0]):
                pending += u.results
            elif dot.by_host(low, u) and name in u.operands[:2]:
                ends += 1
            else:
                return False
    return ends > 0


def spent(low, name: str, ty: Type) -> Buffer | None:
    """The buffer of a product of which only this result is made, element by element."""
    owner = low.uses.defs.get(name)
    if not isinstance(owner, Op):
        return None
    if owner.name == "tt.dot":
        out = low.env.get(name)
        mine = type(out) is Buffer and name not in low.targets
        return out if mine and (out.type.elem, out.shape) == (ty.elem, ty.shape) else None
    for v in owner.operands if owner.name in TABLE else ():
        source = low.uses.defs.get(v)
        here = isinstance(source, Op) and source.block is owner.block
        if here and low.uses.of(v) == [owner] and owner.operands.count(v) == 1:
            out = spent(low, v, ty)
            if out is not None:
                return out
    return None
