"""``strip.for`` and ``strip.pack``: ops done for some rows at a time (see codegen.cpu.strips).

A strip's rows of a buffer are a buffer that begins further on; of anything else, the same function
at an index that is further on. What comes out is written into its rows of the whole: those of the
carried buffer that the strip read, where a loop carries it.
"""

from __future__ import annotations

from codegen.cpu.emit import Val, const
from codegen.cpu.lower import alias, control, prefix, reduce
from codegen.cpu.lower.requests import Requests
from codegen.cpu.lower.tensor import Buffer, Const, Splat, Tensor, loops, nest
from codegen.cpu.lower.window import Window
from codegen.cpu.ttir import BYTES, Op, Type


def rows_of(low, t: Tensor, row: Val, count: int) -> Tensor:
    """``count`` rows of a tensor from ``row`` on."""
    ty = Type(t.type.elem, (count, *t.shape[1:]), True, t.type.pointee)
    if type(t) is Buffer:
        e = low.e
        offset = e.mul(row, const("i32", t.steps[0]))
        view = Buffer(ty, e.offset(t.base, offset, BYTES[ty.elem]), t.order)
        view.steps = t.steps
        return view
    if isinstance(t, (Const, Splat)):
        return type(t)(ty, t.value.x if isinstance(t, Const) else t.value)
    return Window(ty, t, row)


def pack(low, op: Op) -> None:
    """strip.pack."""
    from codegen.cpu.lower.dot import packed

    a, out, rows = op.attrs["a"], op.attrs["out"], op.attr_int("rows")
    low.env[op.results[0]] = packed(low, low.tensor(op.operands[0]), a, out, rows)


def for_(low, op: Op) -> None:
    """strip.for: the rows of every result, some at a time."""
    e, body = low.e, op.regions[0].entry
    total, step = op.attr_int("rows"), op.attr_int("step")
    yields = body.ops[-1].operands
    whole = [low.destination_of(r) or low.alloc(t)
             for r, t in zip(op.results, op.result_types, strict=True)]  # fmt: skip
    loads = any(o.name == "tt.load" for o in body.ops)
    folded = {o.results[0] for o in body.ops if o.name == "strip.fold"}
    live = None if folded else prefix.seen_rows(low, op.results)
    mark = low.mark()

    def strip(i: Val, _) -> None:
        if loads:
            low.requests = Requests(e, step)
        row = Val("i32", "u", i.x, div=i.div)
        low.env[op.binds[0]] = row
        views: dict[int, Buffer] = {}

        def view(t: Tensor) -> Tensor:
            if id(t) not in views:
                views[id(t)] = rows_of(low, t, row, step)
            return views[id(t)]

        for name, v in zip(op.binds[1:], op.operands, strict=True):
            low.env[name] = view(low.tensor(v))
        outs = [t if n in folded else view(t) for n, t in zip(yields, whole, strict=True)]
        for name, out in zip(yields, outs, strict=True):
            if name in folded or _free(low, name, out, op):
                low.targets[name] = out
            elif yields.count(name) == 1 and not any(low.env[n] is out for n in op.binds[1:]):
                low.places[name] = out
        low.block(body)
        control.assign(low, outs, [low.tensor(v) for v in yields])
        if loads:
            low.requests.place()
            low.requests = None

    e.loop(0, total if live is None else live, step, strip)
    low.release(mark)
    for name, t in zip(op.results, whole, strict=True):
        low.env[name] = t


def _free(low, name: str, out: Buffer, op: Op) -> bool:
    """May a product be written where it goes at once: does nothing else read what is there, but
    the product's own accumulator, element by element?"""
    dot, end = low.uses.defs.get(name), op.regions[0].entry.ops[-1]
    if not isinstance(dot, Op) or dot.name != "tt.dot" or low.uses.of(name) != [end]:
        return False
    readers = [n for n in op.binds[1:] if low.env[n] is out]
    if end.operands.count(name) > 1 or len(readers) > 1:
        return False
    return not readers or control.dies_in(low, readers[0], dot)


def fold(low, op: Op) -> None:
    """strip.fold: a reduction down the columns goes on with the rows of this strip."""
    e, block = low.e, op.regions[0].entry
    rows, out = low.tensor(op.operands[0]), low.targets[op.results[0]]
    first = e.op("icmp eq", "i32", low.scalar(op.operands[1]), const("i32", 0), out="i1")
    n = min(e.features.width, rows.shape[1])

    def full(v: Val) -> Val:
        return e.wrap(v.ty, e.operand(v, n), n) if n > 1 else v

    with nest(e) as g:

        def column(idx) -> None:
            at = [(const("i32", r), *idx) for r in range(rows.shape[0])]
            new = full(g.at(rows, at[0]))
            held = e.select(first, new, reduce.combine(low, block, [full(g.at(out, idx)), new])[0])
            for i in at[1:]:
                held = reduce.combine(low, block, [held, full(g.at(rows, i))])[0]
            out.put(g, idx, held)

        loops(g, rows.shape[1:], 0, e.features.width, column)
    low.env[op.results[0]] = out


def either(low, op: Op) -> None:
    """strip.either: by strips, unless what they store overlaps with what they load."""
    e = low.e
    usual, strips = (r.entry for r in op.regions)
    outs = [low.alloc(t) for t in op.result_types]

    def way(block):
        def emit() -> None:
            mark = low.mark()
            names = block.ops[-1].operands
            if block is strips:
                low.targets.update(zip(names, outs, strict=True))
            low.block(block)
            control.assign(low, outs, [low.tensor(v) for v in names])
            low.release(mark)

        return emit

    args = low.func.body.entry.args
    bits = 0
    for pair in op.attrs["apart"].split():
        load, store = (args.index(a) for a in pair.split("/"))
        bits |= alias.bit(low, load, store, False)
    if bits:
        e.branch_if(alias.overlapping(e, bits), way(usual), way(strips))
    else:
        way(strips)()
    low.env.update(zip(op.results, outs, strict=True))


OPS = {
    "strip.for": for_,
    "strip.either": either,
    "strip.fold": fold,
    "strip.pack": pack,
    "strip.yield": lambda low, op: None,
}
