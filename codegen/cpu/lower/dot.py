"""tt.dot as a register-blocked microkernel over packed operands.

The right operand is packed into panels as wide as the accumulators, one at a time where the second
cache is wanted for the left one; scalars of that are broadcast, from strips as high as the
accumulators where they come from memory, from rows where they are a buffer already. bf16 uses the
host's dot product where it has one; every other narrow type is widened exactly.
"""

from __future__ import annotations

from codegen.cpu import floats
from codegen.cpu.emit import Val, const, ll, mangle
from codegen.cpu.lower import access, inplace, operands, prefix, tiles
from codegen.cpu.lower.packing import (
    Ahead,
    Panel,
    Strips,
    ahead,
    pack,
    pack_panel,
    pack_rows,
    pack_turned,
    turns,
)
from codegen.cpu.lower.tensor import (
    ZERO,
    Buffer,
    Map,
    Nest,
    Tensor,
    contiguous_axis,
    nest,
    write,
)
from codegen.cpu.ttir import BYTES, Op, Type, parse_type


def _widen(t: Tensor, elem: str) -> Tensor:
    """Operand elements in the type the multiplication is done in."""
    if t.type.elem == elem:
        return t
    ty = t.type.with_elem(elem)
    if elem == "i32":
        return Map(ty, "widen", lambda e, v: e.extend(v, "i32", signed=True), [t], False)
    return Map(ty, "widen", lambda e, v: floats.convert(e, v, elem), [t], False)


NEAR_BYTES = 16 << 10  # of a panel, in a first-level cache that two threads may share


def blocking(m: int, vectors: int, registers: int, column_bytes: int = 0) -> tuple[int, int]:
    """Rows and vectors of accumulators: as square as the registers allow.

    The inner loop also holds the vectors of b and one broadcast of a, and LLVM wants one spare.
    ``column_bytes`` is the size of a panel one vector wide: a panel that stays near beats a
    square one.
    """
    best, best_score = (1, 1), 0.0
    for nv in (1, 2, 3, 4):
        if vectors % nv or (nv > 2 and nv * column_bytes > NEAR_BYTES):
            continue
        mr = min(m, (registers - nv - 2) // nv, 14)
        score = mr * nv / (mr + nv) - 0.02 * (m % mr > 0)
        if score > best_score:
            best, best_score = (mr, nv), score
    return best


def dot(low, op: Op) -> None:
    """tt.dot with an optional batch axis in front."""
    a, b, c = (low.tensor(v) for v in op.operands[:3])
    ty = op.result_types[0]
    out = low.destination(op)
    place = None if out is not None else inplace.target(low, op, (a, b))
    if place is not None:
        out, there, store = place
        inplace.begin(low, out, there)
        c = out
    out = out or low.alloc(ty)
    if len(ty.shape) == 3:
        _batched(low, a, b, c, out)
    else:
        if op.block.parent is not None and op.block.parent.name == "strip.for":  # knows its rows
            m, n = None, *prefix.seen(low, op.results[0], (1,))
        else:
            m, n = prefix.seen(low, op.results[0], (0, 1))
        _dot2d(low, a, b, c, out, (m, n, _inner(low, a, b)))
    if place is not None:
        inplace.end(low, out, there, store)
    low.env[op.results[0]] = out


def by_host(low, op: Op) -> bool:
    """Will an op be done by the host's product of bf16?"""
    if op.name != "tt.dot" or len(op.result_types[0].shape) != 2:
        return False
    left, right = [parse_type(t) for t in op.types if t.startswith("tensor<")][:2]
    elems = left.elem, right.elem, op.result_types[0].elem
    m, n = op.result_types[0].shape
    return _Plan(low.e.features, m, left.shape[1], n, elems, True).native


class _Slice(Tensor):
    """Plane ``where`` of a batched matrix."""

    def __init__(self, src: Tensor, where: Val) -> None:
        super().__init__(Type(src.type.elem, src.shape[1:], True))
        self.src, self.where, self.inputs = src, where, (src,)
        self.near = range(1, len(src.shape))
        self.heavy, self.reads = src.heavy, src.reads

    def at(self, g, idx):
        return g.at(self.src, (self.where, *idx))


class _OutSlice(Buffer):
    def __init__(self, src: Buffer, where: Val) -> None:
        super().__init__(Type(src.type.elem, src.shape[1:], True), src.base)
        self.src, self.where = src, where

    def at(self, g, idx):
        return self.src.at(g, (self.where, *idx))

    def put(self, g, idx, value):
        self.src.put(g, (self.where, *idx), value)


def _batched(low, a, b, c, out: Buffer) -> None:
    def plane(i, _):
        _dot2d(low, _Slice(a, i), _Slice(b, i), _Slice(c, i), _OutSlice(out, i), (None, None, None))

    low.e.loop(0, a.shape[0], 1, plane)


def _plain(out: Buffer) -> bool:
    """Does a matrix in memory have contiguous rows?"""
    return isinstance(out, inplace.InPlace) or (type(out) is Buffer and out.steps[1] == 1)


def _inner(low, a: Tensor, b: Tensor) -> Val | None:
    """The inner index from which on both operands are zero."""
    left = prefix.nonzero(low, a, 1)
    right = b.rows if isinstance(b, Packed) else prefix.nonzero(low, b, 0)
    return None if left is None or right is None else prefix.larger(low.e, left, right)


class _Plan:
    """How a product is done: in what type, on what unit, in what blocks."""

    def __init__(self, features, m: int, k: int, n: int, elems: tuple[str, str, str],
                 plain: bool) -> None:  # fmt: skip
        left, right, acc = elems
        self.elem = "i32" if left[0] == "i" else ("f64" if acc == "f64" else "f32")
        self.acc = "f32" if acc == "f16" else acc
        self.tiles = plain and tiles.applies(features, m, k, n, elems)
        wide = features.has("avx512bf16") and features.width == 16
        pairs = left == right == "bf16" and acc == "f32" and k % 2 == 0
        self.native = self.tiles or (pairs and wide and n >= 16)
        self.lanes = lanes = min(features.width, n)
        column_bytes = k * lanes * (2 if self.native else 4)
        self.mr, self.nv = blocking(m, n // lanes, features.registers, column_bytes)
        self.nr = tiles.panel_width(n) if self.tiles else self.nv * lanes
        self.rows = k // 2 if self.native else k
        self.group = 16 if self.tiles else next(u for u in (4, 2, 1) if self.rows % u == 0)

    @property
    def panel_elem(self) -> str:
        return "i32" if self.native else self.elem


class Packed(Tensor):
    """A right operand that lies in panels already, for several products of the same form."""

    def __init__(self, src: Tensor, panel: Panel) -> None:
        super().__init__(src.type)
        self.panel, self.inputs = panel, (src,)
        self.rows: Val | None = None  # beyond which all are zero


def packed(low, b: Tensor, left: str, acc: str, m: int) -> Packed:
    """``b`` in panels, for products with ``m`` rows of ``left`` elements that add up in ``acc``."""
    k, n = b.shape
    plan = _Plan(low.e.features, m, k, n, (left, b.type.elem, acc), True)
    ty = Type(plan.panel_elem, (plan.rows, n), True)
    panel = Panel(ty, low.alloc(ty).base, plan.nr)
    pack(low, b if plan.native else _widen(b, plan.elem), panel, plan.native)
    out = Packed(b, panel)
    out.rows = prefix.nonzero(low, b, 0)
    return out


def _dot2d(low, a: Tensor, b: Tensor, c: Tensor, out: Buffer, live) -> None:
    """``live`` bounds the rows, columns and inner steps that matter, where they are known."""
    e = low.e
    m_stop, n_stop, k_stop = live
    m, k = a.shape
    n = b.shape[1]
    mark = low.mark()
    elems = a.type.elem, b.type.elem, out.type.elem
    plan = _Plan(e.features, m, k, n, elems, _plain(out))
    elem, native, lanes = plan.elem, plan.native, plan.lanes
    mr, nv, nr, rows, group = plan.mr, plan.nv, plan.nr, plan.rows, plan.group
    ready = b.panel if isinstance(b, Packed) else None
    if not native:
        a, b = _widen(a, elem), _widen(b, elem)
    if k_stop is not None:
        steps = prefix.up_to(e, k_stop, group * k // rows)
        k_stop = e.op("lshr", "i32", steps, const("i32", 1)) if native else steps
        k_stop = prefix.smaller(e, k_stop, const("i32", rows))
    a = operands.in_memory(a)
    if not (type(a) is Buffer and (a.steps[1] == 1 or not native)):
        a_stop = k_stop if k_stop is None else e.mul(k_stop, const("i32", k // rows))
        along = contiguous_axis(a)
        width = e.features.width
        mostly = None if native else operands.unmasked(low, a)
        if mostly is not None:

            def masked(out: Buffer) -> None:
                write(e, a, out, stops={0: m_stop, 1: a_stop})

            a = operands.choose(low, a, *mostly, masked)
        elif along == 1 and elem in ("f32", "i32") and not native and k >= width and m >= mr > 1:
            a = pack_rows(low, a, mr, m_stop, a_stop)
        elif native and turns(e, a, along):
            a = pack_turned(low, a, m_stop, a_stop)
        else:
            packed = low.alloc(a.type, (1, 0) if along == 0 and not native else None)
            with nest(e):
                whole = {axis: prefix.whole(low, (a,), axis) for axis in (0, 1)}
                write(e, Ahead(a, along), packed, along, {0: m_stop, 1: a_stop}, whole, 4)
            a = packed
    live = tuple(size if stop is None else stop
                 for size, stop in ((m, m_stop), (n, n_stop), (rows, k_stop)))  # fmt: skip
    by_panel = not (ready or native or contiguous_axis(b) == 0 or n <= nr)
    if ready is None:
        bty = Type(plan.panel_elem, (rows, nr if by_panel else n), True)
        panel = Panel(bty, low.alloc(bty).base, nr)
        n_end = None if n_stop is None else prefix.up_to(e, n_stop, nr)
        if not by_panel:
            pack(low, b, panel, native, k_stop, n_end)
    else:
        panel = ready
    if plan.tiles:
        tiles.multiply(low, a, panel, c, out, live)
        low.release(mark)
        return
    kernel = _Kernel(low, a, panel, c, out, (live[2], group, lanes, nv, native, elem, plan.acc))
    whole = {axis: prefix.whole(low, (b,), axis) if by_panel else None for axis in (0, 1)}
    with nest(e) as g:

        def columns(start, end, mr: int, nv: int) -> None:
            full = m - m % mr
            stop = full if m_stop is None else prefix.smaller(e, m_stop, const("i32", full))

            def column(j, _):
                if by_panel:
                    kernel.b = Panel(Type(elem, (rows, nv * lanes), True), panel.base, nv * lanes)
                    pack_panel(g, b, kernel.b, j, live[2], whole)
                    kernel.coming = (b, g.affine(j, 1, nv * lanes), m)
                if full:
                    e.loop(0, stop, mr, lambda i, _: kernel.block(g, i, j, mr, nv))
                if m % mr and m_stop is None:
                    kernel.block(g, const("i32", full), j, m % mr, nv)
                elif m % mr:  # once, or not at all
                    e.loop(full, m_stop, mr, lambda i, _: kernel.block(g, i, j, m % mr, nv))

            e.loop(start, end, nv * lanes, column)

        if n_stop is None or nv == 1:
            columns(0, live[1], mr, nv)
        else:  # what is left of a panel goes by single vectors
            whole_panels = e.op("and", "i32", n_stop, const("i32", -nr))
            columns(0, whole_panels, mr, nv)
            columns(whole_panels, n_stop, mr if type(a) is Strips else min(m, 12), 1)
    low.release(mark)


CHUNK = 64  # inner steps between two requests for memory that is needed later


class _Kernel:
    """Emits one block of rows times one panel."""

    def __init__(self, low, a: Buffer, b: Panel, c: Tensor, out: Buffer, shape) -> None:
        self.low, self.a, self.b, self.c, self.out = low, a, b, c, out
        self.coming = None  # the right operand, the next panel's column, rows of the product
        self.stop, self.unroll, self.lanes, self.nv, self.native, self.elem, self.acc = shape

    def block(self, g: Nest, i: Val, j: Val, mr: int, nv: int) -> None:
        """``mr`` rows from i on, ``nv`` vectors from column j on; those are in one panel."""
        e, lanes = g.e, self.lanes
        t = ll(self.acc, lanes)
        level = max(i.level, j.level)

        def place(r: int, v: int):
            row = e.add(i, const("i32", r))
            row.level = level if row.kind != "c" else 0
            col = e.add(j, const("i32", v * lanes))
            col.level, col.div = level, lanes
            return row, Val("i32", "a", n=lanes, base=col, stride=const("i32", 1), level=level)

        spots = [[place(r, v) for v in range(nv)] for r in range(mr)]
        if self.acc == self.out.type.elem:

            def first(spot):
                return g.at(self.c, spot)
        else:

            def first(spot):
                return floats.convert(e, g.at(self.c, spot), self.acc)

        init = [(t, e.operand(first(s), lanes)) for row in spots for s in row]
        nr = self.b.width
        size = BYTES[self.b.type.elem]
        within = ZERO
        if nv * lanes < nr:
            within, j = (e.op("and", "i32", j, const("i32", x)) for x in (nr - 1, -nr))
        panel = e.mul(j, const("i32", self.b.shape[0])) if self.b.shape[1] > nr else ZERO
        b0 = e.offset(e.offset(self.b.base, panel, size), within, size)
        asize = BYTES[self.a.type.elem]
        a0 = e.offset(self.a.base, e.mul(i, const("i32", self.a.steps[0])), asize)
        down, along = (1, mr) if type(self.a) is Strips else self.a.steps
        per = 2 if self.native else 1
        unroll = self.unroll

        def body(k, accs):
            accs = list(accs)
            bk = e.offset(b0, e.mul(k, const("i32", nr)), size)
            ak = e.offset(a0, e.mul(k, const("i32", per * along)), asize)
            for u in range(unroll):
                bs = []
                for v in range(nv):
                    p = e.offset(bk, const("i32", u * nr + v * lanes), size)
                    bs.append(
                        e.raw(
                            f"load {ll(self.b.type.elem, lanes)}, ptr {e.operand(p)}, align {size}"
                        )
                    )
                for r in range(mr):
                    p = e.offset(ak, const("i32", r * down + u * per * along), asize)
                    av = self.broadcast(e, p, asize)
                    for v in range(nv):
                        accs[r * nv + v] = self.multiply(e, av, bs[v], accs[r * nv + v])
            return accs

        chunks = self.b.shape[0] // CHUNK
        if chunks > 1 and type(self.out) in (Buffer, inplace.InPlace):

            def chunk(start: Val, accs):
                self.ask(g, e.op("udiv", "i32", start, const("i32", CHUNK)), chunks, i, j, mr, nv)
                end = e.add(start, const("i32", CHUNK))
                if isinstance(self.stop, Val):
                    end = prefix.smaller(e, end, self.stop)
                return e.loop(start, end, unroll, body, [(t, x) for x in accs])

            done = e.loop(0, self.stop, CHUNK, chunk, init)
        else:
            done = e.loop(0, self.stop, unroll, body, init)
        for r in range(mr):
            for v in range(nv):
                value = Val(self.acc, "v", done[r * nv + v], n=lanes)
                if lanes == 1:
                    pass
                self.out.put(g, spots[r][v], floats.convert(e, value, self.out.type.elem)
                             if self.acc != self.out.type.elem else value)  # fmt: skip

    def ask(self, g: Nest, chunk: Val, chunks: int, i: Val, j: Val, mr: int, nv: int) -> None:
        """Ask for a share of what comes next: the following rows of the result, and the panel to
        be packed next, of which every block asks for some rows."""
        e = g.e
        each = -(-mr // chunks)
        row = e.add(e.add(i, const("i32", mr)), e.mul(chunk, const("i32", each)))
        for r, v in ((r, v) for r in range(each) for v in range(nv)):
            at = (e.add(row, const("i32", r)), e.add(j, const("i32", v * self.lanes)))
            access.prefetch(e, self.out.address(e, at), near=True)
            for x in at:
                x.level = e.scope.level
            ahead(g, self.c, (at[0], Val("i32", "a", n=self.lanes, base=at[1],
                                         stride=const("i32", 1), level=e.scope.level)))  # fmt: skip
        if self.coming is None:
            return
        source, column, m = self.coming
        rows = self.b.shape[0]
        each = -(-rows * mr // (m * chunks))
        row = e.op("udiv", "i32", e.mul(i, const("i32", rows)), const("i32", m))
        row = e.add(row, e.mul(chunk, const("i32", each)))
        for r, v in ((r, v) for r in range(each) for v in range(nv)):
            base = g.affine(column, 1, v * self.lanes)
            ramp = Val("i32", "a", n=self.lanes, base=base, stride=const("i32", 1),
                       level=base.level)  # fmt: skip
            k = e.add(row, const("i32", r))
            k.level = e.scope.level
            ahead(g, source, (k, ramp))

    def broadcast(self, e, p: Val, size: int) -> str:
        word = "i32" if self.native else self.elem
        one = e.raw(f"load {ll(word)}, ptr {e.operand(p)}, align {size}")
        return e.operand(Val(word, "u", one), self.lanes)

    def multiply(self, e, a: str, b: str, acc: str) -> str:
        n = self.lanes
        t = ll(self.acc, n)
        if self.native:
            x, y = (e.raw(f"bitcast <16 x i32> {v} to <32 x bfloat>") for v in (a, b))
            return e.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", t,
                               [(t, acc), ("<32 x bfloat>", x), ("<32 x bfloat>", y)])  # fmt: skip
        if self.acc == "i32":
            return e.raw(f"add {t} {e.raw(f'mul {t} {a}, {b}')}, {acc}")
        if e.features.has("fma"):
            return e.intrinsic(f"llvm.fma.{mangle(self.acc, n)}", t, [(t, a), (t, b), (t, acc)])
        return e.raw(f"fadd {t} {e.raw(f'fmul {t} {a}, {b}')}, {acc}")
