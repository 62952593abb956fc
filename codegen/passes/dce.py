"""Dead code: operations nobody reads, carries that nobody needs or that never change."""

from __future__ import annotations

from codegen.expr import Symbol
from codegen.ir import Function, Op, Region, Value
from codegen.ops import TABLE
from codegen.rewrite import replace_uses, uses_value


def drop_dead(fn: Function) -> None:
    """Removes until nothing more can be removed. Reading a value's symbol counts as reading it."""
    while _drop_carries(fn) or _drop_ops(fn):
        pass


def _used(fn: Function) -> tuple[set[Value], set[Symbol]]:
    values: set[Value] = set()
    symbols: set[Symbol] = {s for _, count in fn.grid for s in count.free_symbols}
    for op in fn.body.walk():
        values |= set(op.operands)
        symbols |= op.attr_symbols()
        for v in (*op.results, *(a for r in op.regions for a in r.args)):
            symbols |= v.type.free_symbols()
    return values, symbols


def _drop_ops(fn: Function) -> bool:
    values, symbols = _used(fn)

    def needed(op: Op) -> bool:
        if op.kind in ("for", "if"):
            return bool(_effects(op)) or any(_is_used(v, values, symbols) for v in op.results)
        if not TABLE[op.kind].pure:
            return True
        return any(_is_used(v, values, symbols) for v in op.results)

    changed = False

    def visit(region: Region) -> None:
        nonlocal changed
        kept = [op for op in region.ops if needed(op)]
        changed |= len(kept) < len(region.ops)
        region.ops = kept
        for op in kept:
            for inner in op.regions:
                visit(inner)

    visit(fn.body)
    return changed


def _is_used(value: Value, values: set[Value], symbols: set[Symbol]) -> bool:
    return value in values or (value.symbol is not None and value.symbol in symbols)


def _effects(op: Op) -> bool:
    return any(
        not TABLE[o.kind].pure and o.kind not in ("for", "if", "yield")
        for r in op.regions
        for o in r.walk()
    )


def _drop_carries(fn: Function) -> bool:
    changed = False
    values, symbols = _used(fn)
    for op in list(fn.body.walk()):
        if op.kind == "if":
            for k in reversed(range(len(op.results))):
                if not _is_used(op.results[k], values, symbols):
                    del op.results[k]
                    for r in op.regions:
                        del r.terminator.operands[k]
                    changed = True
        if op.kind != "for":
            continue
        body = op.regions[0]
        for k in reversed(range(len(op.results))):
            arg, out = body.args[k], body.terminator.operands[k]
            unused = not _is_used(op.results[k], values, symbols) and not _read(arg, body, k)
            if out is arg:
                replace_uses(fn.body, {arg: op.operands[k], op.results[k]: op.operands[k]})
            elif not unused:
                continue
            del op.results[k], op.operands[k], body.args[k], body.terminator.operands[k]
            changed = True
    return changed


def _read(arg: Value, body: Region, carry: int) -> bool:
    """True if ``arg`` matters to anything but its own next value."""
    chain = {arg}
    for op in body.ops:
        if op.kind == "yield":
            return any(v in chain for k, v in enumerate(op.operands) if k != carry)
        touched = any(uses_value(op, v) for v in chain)
        if touched and (not TABLE[op.kind].pure or op.regions):
            return True
        if touched:
            chain |= set(op.results)
    return False
