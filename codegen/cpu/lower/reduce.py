"""Reductions and scans with arbitrary combine regions over one or several operands.

The order of combination depends on the vector width only, never on threads, so results repeat.
"""

from __future__ import annotations

from codegen.cpu.emit import Val, const, ll
from codegen.cpu.lower import library, prefix, requests
from codegen.cpu.lower.elementwise import TABLE, vector
from codegen.cpu.lower.tensor import ZERO, Tee, Tensor, contiguous_axis, lane_axis, loops, nest
from codegen.cpu.ttir import Block, Op, Type, Unsupported


def combine(low, block: Block, args: list[Val]) -> list[Val]:
    """Evaluate a combine region lane by lane."""
    env = dict(zip(block.args, args, strict=True))
    for op in block.ops:
        if op.name.endswith(".return"):
            return [low.scalar(v, env) for v in op.operands]
        if op.name == "arith.constant":
            env[op.results[0]] = low.constant(op).value
            continue
        vals = [vector(low.e, low.scalar(v, env)) for v in op.operands]
        if op.name == "tt.extern_elementwise":
            env[op.results[0]] = library.named(low, op, vals[0].ty)(low.e, *vals)
            continue
        if op.name not in TABLE:
            raise low.refuse(op, "it cannot stand in a combine region")
        env[op.results[0]] = TABLE[op.name][0](low.e, op, *vals)
    raise Unsupported("a combine region without a return")


_EXTREMES = {"arith.maxnumf": ("ogt", float("-inf")), "arith.minnumf": ("olt", float("inf"))}


class _Combine:
    """What a reduction combines by: its region or, for ``maxnum`` and ``minnum``, less.

    Those leave NaN out, which costs a comparison and a selection for each element. Begun with an
    infinity, an accumulator is never NaN, and one instruction keeps it so: the larger, and the
    accumulator if they are not ordered. Only where the infinity is left in the end, the elements
    may have been NaN all of them: that row is done again by the region (``repeat``).
    """

    def __init__(self, low, block: Block, srcs: list[Tensor]) -> None:
        self.low, self.block = low, block
        ops = [op for op in block.ops if not op.name.endswith(".return")]
        self.order, self.neutral = None, None
        alone = len(srcs) == 1 and srcs[0].type.elem == "f32" and len(ops) == 1
        if alone and sorted(ops[0].operands) == sorted(block.args):
            self.order, self.neutral = _EXTREMES.get(ops[0].name, (None, None))

    def first(self, values: list[Val]) -> list[Val]:
        """An accumulator that has seen these values."""
        if self.order is None:
            return values
        return self([const("f32", self.neutral), *values])

    def __call__(self, args: list[Val]) -> list[Val]:
        if self.order is None:
            return combine(self.low, self.block, args)
        held, value = args
        e = self.low.e
        better = e.op(f"fcmp {self.order}", "f32", value, held, out="i1")
        return [e.select(better, value, held)]

    def plain(self) -> _Combine:
        """The same by the region."""
        return _Combine(self.low, self.block, [])

    def repeat(self, value: Val, again) -> None:
        """Do a row (or as many as there are lanes) again if nothing was found."""
        if self.order is None:
            return
        e = self.low.e
        empty = e.op("fcmp oeq", "f32", value, const("f32", self.neutral), out="i1")
        if empty.n:
            lanes = e.raw(f"bitcast <{empty.n} x i1> {e.operand(empty, empty.n)} to i{empty.n}")
            empty = e.wrap("i1", e.raw(f"icmp ne i{empty.n} {lanes}, 0"), 0)
        e.branch_if(empty, again)


def _ramp(start: Val, n: int) -> Val:
    return Val("i32", "a", n=n, base=start, stride=const("i32", 1), level=start.level)


def _later(e, first: Val, r: Val) -> Val:
    """The index ``first + r`` of a loop inside another."""
    out = e.add(first, r)
    out.level = r.level
    return out


def _half(e, v: Val, high: bool) -> Val:
    """The lower or upper half of a vector; one lane becomes a scalar."""
    n = v.n // 2
    t = ll(v.ty, v.n)
    if n == 1:
        return e.wrap(v.ty, e.raw(f"extractelement {t} {v.x}, i64 {int(high)}"), 0)
    lanes = ", ".join(f"i32 {k + (n if high else 0)}" for k in range(n))
    return e.wrap(v.ty, e.raw(f"shufflevector {t} {v.x}, {t} poison, <{n} x i32> <{lanes}>"), n)


def _across(low, combine, accs: list[Val]) -> list[Val]:
    """Combine the lanes of each accumulator into one."""
    while accs[0].n > 1:
        lows = [_half(low.e, v, False) for v in accs]
        highs = [_half(low.e, v, True) for v in accs]
        accs = combine(lows + highs)
        accs = [vector(low.e, a) for a in accs]
    return accs


def _across_rows(low, combine, rows: list[list[Val]]) -> list[Val]:
    """``_across`` for as many rows as there are lanes: lane r of the result is that of row r.

    The same elements are combined in the same order, for n rows in n - 1 steps.
    """
    e, n = low.e, rows[0][0].n
    half = n // 2
    while half:
        sides = [[k for k in range(2 * n) if bool(k & half) == high] for high in (False, True)]
        merged = []
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            picked = []
            for order in sides:
                mask = ", ".join(f"i32 {k}" for k in order)
                for a, b in zip(first, second, strict=True):
                    t = ll(a.ty, n)
                    both = f"shufflevector {t} {a.x}, {t} {b.x}, <{n} x i32> <{mask}>"
                    picked.append(e.wrap(a.ty, e.raw(both), n))
            merged.append([_full(e, v, n) for v in combine(picked)])
        rows, half = merged, half // 2
    return rows[0]


def _full(e, v: Val, n: int) -> Val:
    """A value as a vector of n lanes, or as a scalar for n <= 1."""
    return e.wrap(v.ty, e.operand(v, n), n) if n > 1 else v


def _fold(low, g, combine, srcs: list[Tensor], place, axis: int, n: int, whole) -> list[Val]:
    """Accumulate along an axis at one outer index; n lanes of partial results remain."""
    e = low.e
    size = srcs[0].shape[axis]
    along = place.pop("along")
    step = n if along else 1
    ways = min(4 if along else 1, size // step)

    def values(start: Val) -> list[Val]:
        idx = place["idx"]
        g.lanes = idx[axis] = (_ramp(start, n) if n > 1 else start) if along else start
        return [_full(e, g.at(t, tuple(idx)), n) for t in srcs]

    def flush() -> None:
        for t in srcs:
            if isinstance(t, Tee):
                t.flush(g)

    accs = [[_full(e, v, n) for v in combine.first(values(const("i32", w * step)))]
            for w in range(ways)]  # fmt: skip
    flush()
    if size > ways * step:
        flat = [(ll(v.ty, v.n), e.operand(v, v.n)) for group in accs for v in group]
        kinds = [(v.ty, v.n) for group in accs for v in group]

        here = requests.site(e, size, ways * step) if along and axis == 1 else None

        def body(i, names):
            if here is not None:
                here.here(e, place["idx"][0], i, ways * step)
            held = [Val(ty, "v" if m else "u", x, n=m)
                    for (ty, m), x in zip(kinds, names, strict=True)]  # fmt: skip
            out = []
            for w in range(ways):
                start = e.add(i, const("i32", w * step))
                start.level, start.div = i.level, step
                old = held[w * len(srcs) : (w + 1) * len(srcs)]
                out += combine(old + values(start))
            flush()
            return [e.operand(_full(e, v, n if n > 1 else 0), n if n > 1 else 0) for v in out]

        start, stride = const("i32", ways * step), ways * step
        if whole is not None:  # the lanes for which the masks hold, without the masks
            g.known, count = whole
            whole_end = e.op("and", "i32", count, const("i32", -stride))
            whole_end = e.call("llvm.smax", "i32", whole_end, start)
            names = e.loop(start, whole_end, stride, body, flat)
            flat = [(t, x) for (t, _), x in zip(flat, names, strict=True)]
            start, g.known = whole_end, {}
        names = e.loop(start, size, stride, body, flat)
        vals = [Val(ty, "v" if m else "u", x, n=m) for (ty, m), x in zip(kinds, names, strict=True)]
        accs = [vals[w * len(srcs) : (w + 1) * len(srcs)] for w in range(ways)]
    while len(accs) > 1:
        accs = [[_full(e, v, n) for v in combine(accs[k] + accs[k + 1])]
                for k in range(0, len(accs), 2)]  # fmt: skip
    return accs[0]


def reduce(low, op: Op) -> None:
    """tt.reduce."""
    e = low.e
    block = op.regions[0].entry
    axis = op.attr_int("axis")
    srcs = [low.tensor(v) for v in op.operands]
    shape = srcs[0].shape
    lanes = lane_axis(shape, contiguous_axis(srcs[0]))
    if lanes is None:
        lanes = axis
    n = min(e.features.width, shape[lanes])
    whole = prefix.whole(low, srcs, axis) if lanes == axis else None
    fast = _Combine(low, block, srcs)
    plain = fast.plain()
    # What a first pass wrote down may lie where it was computed from.
    kept = [t.buffer if isinstance(t, Tee) and t.kept is None else t for t in srcs]
    if not op.result_types[0].tensor:
        with nest(e) as g:
            place = {"idx": [ZERO], "along": True}
            accs = _fold(low, g, plain, srcs, place, axis, n, whole)
            out = _across(low, plain, accs)
        for name, v in zip(op.results, out, strict=True):
            low.env[name] = v
        return
    rest = [a for a in range(len(shape)) if a != axis]
    bufs = [low.alloc(ty) for ty in op.result_types]
    outer = tuple(shape[a] for a in rest)
    count = outer[-1]
    grouped = lanes == axis and n == e.features.width and n > 1 and count % n == 0
    grouped = grouped and all(t.type.elem != "i1" for t in srcs)
    mark = low.mark()
    sides = [low.alloc(Type(t.type.elem, (n, n), True)) for t in srcs] if grouped else []

    def rows(g, idx: list[Val]) -> None:
        """Reduce as many rows as there are lanes, then all their lanes at once."""

        def group(first: Val, combine: _Combine) -> None:
            def row(r: Val, _) -> None:
                full = [ZERO] * len(shape)
                for a, i in zip(rest, [*idx, _later(e, first, r)], strict=True):
                    full[a] = i
                place = {"idx": full, "along": True}
                read = srcs if combine is fast else kept
                accs = _fold(low, g, combine, read, place, axis, n, whole)
                for side, v in zip(sides, accs, strict=True):
                    side.put(g, (r, _ramp(ZERO, n)), v)

            e.loop(0, n, 1, row)
            held = [[side.at(g, (const("i32", r), _ramp(ZERO, n))) for side in sides]
                    for r in range(n)]  # fmt: skip
            out = _across_rows(low, combine, held)
            for buf, v in zip(bufs, out, strict=True):
                buf.put(g, (*idx, _ramp(first, n)), v)
            combine.repeat(out[0], lambda: group(first, plain))

        e.loop(0, count, n, lambda first, _: group(first, fast))

    def run(sure: set[int]) -> None:
        with nest(e) as g:
            g.sure = sure
            if grouped:
                loops(g, outer[:-1], None, n, lambda idx: rows(g, list(idx)))
                return

            def body(idx, combine=fast) -> None:
                full = [ZERO] * len(shape)
                for a, i in zip(rest, idx, strict=True):
                    full[a] = i
                place = {"idx": full, "along": lanes == axis}
                read = srcs if combine is fast else kept
                accs = _fold(low, g, combine, read, place, axis, n, whole)
                if lanes == axis:
                    accs = _across(low, combine, accs)
                for buf, v in zip(bufs, accs, strict=True):
                    buf.put(g, idx, v)
                combine.repeat(accs[0], lambda: body(idx, plain))

            loops(g, outer, None if lanes == axis else rest.index(lanes), e.features.width, body)

    found, holds = prefix.certain(low, srcs) or (set(), None)
    if holds is None:
        run(found)
    else:  # a block to which no mask applies does without them
        e.branch_if(holds, lambda: run(found), lambda: run(set()))
    low.release(mark)
    for name, buf in zip(op.results, bufs, strict=True):
        low.env[name] = buf


def scan(low, op: Op) -> None:
    """tt.scan: running combination along an axis, from either end."""
    e = low.e
    block = op.regions[0].entry
    axis = op.attr_int("axis")
    reverse = op.attr_bool("reverse")
    srcs = [low.tensor(v) for v in op.operands]
    shape = srcs[0].shape
    size = shape[axis]
    others = [a for a in range(len(shape)) if a != axis]
    bufs = [low.alloc(Type(ty.elem, ty.shape, True)) for ty in op.result_types]
    lanes = lane_axis(tuple(shape[a] for a in others)) if others else None
    n = min(e.features.width, size) if lanes is None else min(
        e.features.width, shape[others[lanes]])  # fmt: skip
    along = lanes is None  # lanes run along the scanned axis
    step = n if along else 1

    def at(i: Val, idx) -> tuple[Val, ...]:
        full = [ZERO] * len(shape)
        for a, v in zip(others, idx, strict=True):
            full[a] = v
        if reverse:
            last = const("i32", size - step)
            level = i.level
            i = e.sub(last, i)
            i.level, i.div = level, step
        full[axis] = _ramp(i, n) if along and n > 1 else i
        return tuple(full)

    with nest(e) as g:

        def line(idx) -> None:
            def chunk(i: Val, held: list[Val] | None) -> list[Val]:
                place = at(i, idx)
                vals = [_full(e, g.at(t, place), n) for t in srcs]
                if along and n > 1:
                    vals = _scan_lanes(low, block, vals, n, reverse)
                if held is not None:
                    vals = combine(low, block, [_full(e, h, n) for h in held] + vals)
                    vals = [_full(e, v, n) for v in vals]
                for buf, v in zip(bufs, vals, strict=True):
                    buf.put(g, place, v)
                if along and n > 1:
                    edge = 0 if reverse else n - 1
                    vals = [
                        e.wrap(v.ty, e.raw(f"extractelement {ll(v.ty, n)} {v.x}, i64 {edge}"), 0)
                        for v in vals
                    ]
                return vals

            first = chunk(ZERO, None)
            if size > step:
                kinds = [(v.ty, v.n) for v in first]

                def body(i, names):
                    held = [Val(ty, "v" if m else "u", x, n=m)
                            for (ty, m), x in zip(kinds, names, strict=True)]  # fmt: skip
                    return [e.operand(v, v.n) for v in chunk(i, held)]

                flat = [(ll(v.ty, v.n), e.operand(v, v.n)) for v in first]
                e.loop(step, size, step, body, flat)

        loops(g, tuple(shape[a] for a in others), lanes, e.features.width, line)
    for name, buf in zip(op.results, bufs, strict=True):
        low.env[name] = buf


def _scan_lanes(low, block: Block, vals: list[Val], n: int, reverse: bool) -> list[Val]:
    """An inclusive scan inside one vector by doubling distances."""
    e = low.e
    d = 1
    while d < n:
        take = [min(n - 1, k + d) if reverse else max(0, k - d) for k in range(n)]
        lanes = ", ".join(f"i32 {k}" for k in take)
        moved = [e.wrap(v.ty, e.raw(
            f"shufflevector {ll(v.ty, n)} {v.x}, {ll(v.ty, n)} poison, <{n} x i32> <{lanes}>"), n)
            for v in vals]  # fmt: skip
        both = combine(low, block, moved + vals)
        on = [k + d < n if reverse else k >= d for k in range(n)]
        mask = Val("i1", "v", f"<{', '.join('i1 ' + ('true' if b else 'false') for b in on)}>", n=n)
        vals = [e.select(mask, _full(e, b, n), v) for b, v in zip(both, vals, strict=True)]
        d *= 2
    return vals
