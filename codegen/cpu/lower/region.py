"""Blocks of scalar code emitted in place: calls that return early, functions mapped over elements.

The values that a region returns go through slots on the stack, which LLVM turns into registers;
every ``return`` branches to one end.
"""

from __future__ import annotations

from codegen.cpu.emit import LLVM, Val, const
from codegen.cpu.lower import control
from codegen.cpu.lower.tensor import ZERO, Tensor, loops, nest
from codegen.cpu.lower.uses import Uses
from codegen.cpu.ttir import Block, Func, Op, Type

RETURNS = ("tt.return", "tt.map_elementwise.return")


def inline(low, blocks: list[Block], args: list[Val], types: list[Type]) -> list[Val]:
    """Emit blocks with the first one's arguments bound to scalars; gives what they return."""
    e = low.e
    keep = low.labels, low.block_slots, low.returns
    slots = [low.slot(t.elem) for t in types]
    low.returns = (slots, types, e.fresh_label("returned"))
    low.labels = {b.label: e.fresh_label("block") for b in blocks}
    low.block_slots = {b.label: control.placeholders(low, b) for b in blocks[1:] if b.args}
    low.env.update(zip(blocks[0].args, args, strict=True))
    for k, b in enumerate(blocks):
        if k:
            e.mark(low.labels[b.label])
            if b.args:
                control.read_slots(low, low.block_slots[b.label], b.args)
        low.block(b)
    e.mark(low.returns[2])
    low.labels, low.block_slots, low.returns = keep
    return [e.wrap(t.elem, e.raw(f"load {LLVM[t.elem]}, ptr {s}"), 0)
            for s, t in zip(slots, types, strict=True)]  # fmt: skip


def return_(low, op: Op) -> None:
    """tt.return: of the kernel, or of what is being inlined."""
    e = low.e
    if low.returns is None:
        e.line("ret void")
        return
    slots, types, end = low.returns
    for slot, ty, name in zip(slots, types, op.operands, strict=True):
        e.line(f"store {LLVM[ty.elem]} {e.operand(low.scalar(name))}, ptr {slot}")
    e.branch(end)


def call(low, op: Op, callee: Func) -> None:
    """A call of a function with several blocks: scalars in, scalars out."""
    scalars = all(not t.tensor for t in callee.result_types)
    args = [low.env[v] for v in op.operands]
    if not scalars or any(isinstance(a, Tensor) for a in args):
        raise low.refuse(op, f"{callee.name} is not inlined, returns early and passes tensors")
    if not hasattr(callee, "uses"):
        callee.uses = Uses(callee)
    keep = low.env, low.uses
    low.env, low.uses = {}, callee.uses
    out = inline(low, callee.body.blocks, args, callee.result_types)
    low.env, low.uses = keep
    low.env.update(zip(op.results, out, strict=True))


def map_elementwise(low, op: Op) -> None:
    """tt.map_elementwise: a scalar function with branches over the elements of tensors, ``pack``
    neighbours in row-major order at a time."""
    e = low.e
    pack = op.attr_int("pack", 1)
    blocks = op.regions[0].blocks
    sources = [low.materialise(low.tensor(v)) for v in op.operands]
    outs = [low.alloc(t) for t in op.result_types]
    types = [Type(t.elem) for t in op.result_types for _ in range(pack)]
    shape = op.result_types[0].shape
    size = 1
    for d in shape:
        size *= d
    if size % pack:
        raise low.refuse(op, f"{size} elements are no multiple of pack={pack}")

    def index(flat: Val) -> tuple[Val, ...]:
        out = []
        for d in reversed(shape[1:]):
            out.append(e.op("urem", "i32", flat, const("i32", d)) if d > 1 else ZERO)
            flat = e.op("udiv", "i32", flat, const("i32", d)) if d > 1 else flat
        return (flat, *reversed(out))

    with nest(e) as g:

        def body(idx) -> None:
            first = e.mul(idx[0], const("i32", pack))
            places = [index(e.add(first, const("i32", k))) for k in range(pack)]
            args = [t.at(g, p) for t in sources for p in places]
            keep = dict(low.env)
            results = inline(low, blocks, args, types)
            low.env = keep
            for k, v in enumerate(results):
                outs[k // pack].put(g, places[k % pack], v)

        loops(g, (size // pack,), None, 1, body)
    low.env.update(zip(op.results, outs, strict=True))


OPS = {"tt.map_elementwise": map_elementwise, "tt.map_elementwise.return": return_,
       "tt.return": return_}  # fmt: skip
