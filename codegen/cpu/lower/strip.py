"""``strip.for`` and ``strip.pack``: ops done for some rows at a time (see codegen.cpu.strips).

A strip's rows of a buffer are a buffer that begins further on; of anything else, the same function
at an index that is further on. What comes out is written into its rows of the whole: those of the
carried buffer that the strip read, where a loop carries it.
"""

from __future__ import annotations

from codegen.cpu.emit import Val, const
from codegen.cpu.lower import control, prefix
from codegen.cpu.lower.tensor import Buffer, Const, Nest, Splat, Tensor
from codegen.cpu.ttir import BYTES, Op, Type


class Window(Tensor):
    """Some rows of a tensor that is not in memory."""

    def __init__(self, ty: Type, src: Tensor, row: Val) -> None:
        super().__init__(ty)
        self.src, self.row, self.inputs = src, row, (src,)
        self.heavy, self.reads, self.data = src.heavy, src.reads, src.data
        self.flops = getattr(src, "flops", 0)

    def at(self, g: Nest, idx):
        e, i = g.e, idx[0]
        level = min(max(e.base_level, i.level), e.scope.level)
        with e.at_level(level):
            moved = e.add(i, self.row)
        moved.level = level
        return g.at(self.src, (moved, *idx[1:]))

    def stride(self, axis):
        return self.src.stride(axis)

    def constant(self):
        return self.src.constant()


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
    total = op.result_types[0].shape[0]
    yields = body.ops[-1].operands
    step = next(t.shape[0] for o in body.ops for t in o.result_types if t.tensor)
    whole = [low.destination_of(r) or low.alloc(t)
             for r, t in zip(op.results, op.result_types, strict=True)]  # fmt: skip
    live = prefix.seen_rows(low, op.results)
    mark = low.mark()

    def strip(i: Val, _) -> None:
        row = Val("i32", "u", i.x, div=i.div)
        low.env[op.binds[0]] = row
        views: dict[int, Buffer] = {}

        def view(t: Tensor) -> Tensor:
            if id(t) not in views:
                views[id(t)] = rows_of(low, t, row, step)
            return views[id(t)]

        for name, v in zip(op.binds[1:], op.operands, strict=True):
            low.env[name] = view(low.tensor(v))
        outs = [view(t) for t in whole]
        for name, out in zip(yields, outs, strict=True):
            if _free(low, name, out, op):
                low.targets[name] = out
        low.block(body)
        control.assign(low, outs, [low.tensor(v) for v in yields])

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


OPS = {"strip.for": for_, "strip.pack": pack, "strip.yield": lambda low, op: None}
