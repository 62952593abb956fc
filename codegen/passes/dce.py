"""Dead code: operations nobody reads, carries that nobody needs or that never change."""

from __future__ import annotations

from codegen.expr import Symbol
from codegen.ir import Function, Op, Region, Value
from codegen.ops import TABLE
from codegen.rewrite import replace_uses


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
    live = _live(fn)
    for op in list(fn.body.walk()):
        if op.kind == "if":
            for k in reversed(range(len(op.results))):
                if op.results[k] not in live:
                    del op.results[k]
                    for r in op.regions:
                        del r.terminator.operands[k]
                    changed = True
        if op.kind != "for":
            continue
        body = op.regions[0]
        for k in reversed(range(len(op.results))):
            arg, out = body.args[k], body.terminator.operands[k]
            if out is arg:
                replace_uses(fn.body, {arg: op.operands[k], op.results[k]: op.operands[k]})
            elif arg in live:
                continue
            del op.results[k], op.operands[k], body.args[k], body.terminator.operands[k]
            changed = True
    return changed


def _live(fn: Function) -> set[Value]:
    """What an effect depends on. A carry that only makes its own next value is not among it, nor
    one that makes another such, or that goes round an inner loop on its way."""
    _, symbols = _used(fn)
    feeds: dict[Value, list[Value]] = {}  # what is alive if a value is
    live: set[Value] = set()
    todo: list[Value] = []

    def visit(region: Region) -> None:
        for op in region.ops:
            if op.kind == "yield":
                continue
            if op.kind == "for":
                body = op.regions[0]
                for result, arg, first, after in zip(
                    op.results, body.args, op.operands, body.terminator.operands, strict=True
                ):
                    feeds[result] = feeds[arg] = [result, arg, first, after]
            elif op.kind == "if":
                todo.extend(op.operands)
                for k, result in enumerate(op.results):
                    feeds[result] = [r.terminator.operands[k] for r in op.regions]
            elif TABLE[op.kind].pure:
                for result in op.results:
                    feeds[result] = op.operands
            else:
                todo.extend(op.operands)
            known = (*op.results, *(a for r in op.regions for a in r.args))
            todo.extend(v for v in known if v.symbol is not None and v.symbol in symbols)
            if op.kind in ("for", "if"):
                for inner in op.regions:
                    visit(inner)

    visit(fn.body)
    while todo:
        v = todo.pop()
        if v not in live:
            live.add(v)
            todo.extend(feeds.get(v, ()))
    return live
