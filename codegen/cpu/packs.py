"""Right operands of products that do not change in a loop are brought into panels before it.

The gradient of attention's keys is the example: one block of keys meets every block of queries,
and its transpose was packed anew for each.
"""

from __future__ import annotations

from codegen.cpu.lower.uses import Uses
from codegen.cpu.ttir import Block, Func, Op, parse_type


def apply(func: Func, uses: Uses) -> bool:
    """Move packing out of loops; has anything changed?"""
    moved = [op for block in func.body.blocks for op in _products(block) if _move(op, uses)]
    return bool(moved)


def _products(block: Block):
    for op in list(block.ops):
        if op.name in ("tt.dot", "strip.pack"):
            yield op
        for region in op.regions:
            for inner in region.blocks:
                yield from _products(inner)


def _move(op: Op, uses: Uses) -> bool:
    right = op.operands[0 if op.name == "strip.pack" else 1]
    owner = uses.defs.get(right)
    if owner is None or (isinstance(owner, Op) and owner.name == "strip.pack"):
        return False
    loop, block = None, op.block
    while block.parent is not None and not _inside(owner, right, block.parent):
        if block.parent.name != "scf.for":
            break  # what is under a condition stays there
        loop, block = block.parent, block.parent.block
    if loop is None:
        return False
    if op.name == "strip.pack":
        pack = op
        _insert(op.block, op, None)
    elif len(op.result_types[0].shape) == 2 and len(op.operands) == 3:
        left, ty = [parse_type(t) for t in op.types if t.startswith("tensor<")][:2]
        attrs = {"a": left.elem, "out": op.result_types[0].elem,
                 "rows": str(op.result_types[0].shape[0])}  # fmt: skip
        name = f"{op.results[0]}'packed"
        pack = Op("strip.pack", [name], [right], attrs, result_types=[ty], loc=op.loc)
        op.operands[1] = name
    else:
        return False
    _insert(loop.block, loop, pack)
    return True


def _inside(owner: Op | Block, name: str, loop: Op) -> bool:
    """Is a value made within a loop (or bound by it)?"""
    if isinstance(owner, Op) and name in owner.binds:
        if owner is loop:
            return True
        owner = owner.block
    block = owner.block if isinstance(owner, Op) else owner
    while block is not None and block.parent is not None:
        if block.parent is loop:
            return True
        block = block.parent.block
    return False


def _insert(block: Block, at: Op, new: Op | None) -> None:
    """Put an op before another, or nothing in its place."""
    place = block.ops.index(at)
    block.ops[place : place + (new is None)] = [] if new is None else [new]
    if new is not None:
        new.block = block
    for k, op in enumerate(block.ops):
        op.index = k
