"""tt.dot as a register-blocked microkernel over packed operands.

The left operand stays row-major (scalars of it are broadcast); the right one is packed into panels
as wide as the accumulators, so that the inner loop reads both from the first-level cache in order.
bf16 uses the host's dot product where it has one; every other narrow type is widened exactly.
"""

from __future__ import annotations

from codegen.cpu import floats
from codegen.cpu.emit import Val, const, ll, mangle
from codegen.cpu.lower import access, prefix, tiles
from codegen.cpu.lower.shape import _divmod
from codegen.cpu.lower.tensor import (
    ZERO,
    Buffer,
    Load,
    Map,
    Nest,
    Tensor,
    contiguous_axis,
    loops,
    nest,
    write,
)
from codegen.cpu.ttir import BYTES, Op, Type


class Panel(Buffer):
    """A [K, N] matrix stored as N / width panels of [K, width]."""

    def __init__(self, ty: Type, base: Val, width: int) -> None:
        super().__init__(ty, base)
        self.width = width

    def address_in(self, g: Nest, k: Val, n: Val) -> Val:
        e = g.e
        panel, column = _divmod(g, n, self.width)
        rows = self.shape[-2]
        offset = e.add(e.mul(panel, const("i32", rows * self.width)),
                       e.add(e.mul(k, const("i32", self.width)), column))  # fmt: skip
        return e.offset(self.base, offset, BYTES[self.type.elem])

    def put(self, g: Nest, idx, value: Val) -> None:
        n = max((i.n for i in idx if not i.uniform), default=0)
        access.store(g.e, self.type.elem, self.address_in(g, *idx), value, None, n)


class Pairs(Tensor):
    """Rows 2k and 2k+1 of a 16-bit matrix as one 32-bit word."""

    def __init__(self, src: Tensor) -> None:
        k, n = src.shape
        super().__init__(Type("i32", (k // 2, n), True))
        self.src, self.inputs = src, (src,)

    def at(self, g, idx):
        e = g.e
        k, n = idx
        words = []
        for part in (0, 1):
            v = g.at(self.src, (g.affine(k, 2, part), n))
            words.append(e.extend(Val("i16", v.kind, v.x, n=v.n) if v.kind != "c" else const(
                "i16", int(e.literal(v.ty, v.x))), "i32", signed=False))  # fmt: skip
        return e.op("or", "i32", words[0], e.op("shl", "i32", words[1], const("i32", 16)))


AHEAD = 4  # rows that are asked for before they are copied


def ahead(g: Nest, t: Tensor, idx) -> None:
    """Ask for the memory behind an index that a copy will come to, if it is a plain load."""
    while isinstance(t, Map) and len(t.inputs) == 1:
        t = t.inputs[0]
    if isinstance(t, Load):
        p = g.at(t.ptr, idx)
        if p.kind == "a":
            access.prefetch(g.e, p.base)


class Ahead(Tensor):
    """A matrix that asks for memory some rows before it is read, lanes being along ``axis``."""

    def __init__(self, src: Tensor, axis: int) -> None:
        super().__init__(src.type)
        self.src, self.axis, self.inputs = src, axis, (src,)

    def at(self, g, idx):
        later = list(idx)
        later[1 - self.axis] = g.affine(idx[1 - self.axis], 1, AHEAD)
        ahead(g, self.src, tuple(later))
        return g.at(self.src, idx)


def transpose_lanes(e, rows: list[str], t: str, n: int) -> list[str]:
    """An n x n transposition of vectors in registers, by log2(n) rounds of pair-wise shuffles."""
    d = 1
    while d < n:
        out = list(rows)
        for r in range(n):
            if r & d:
                continue
            a, b = rows[r], rows[r + d]
            first = [k if not k & d else n + k - d for k in range(n)]
            second = [k + d if not k & d else n + k for k in range(n)]
            for place, lanes in ((r, first), (r + d, second)):
                mask = ", ".join(f"i32 {k}" for k in lanes)
                out[place] = e.raw(f"shufflevector {t} {a}, {t} {b}, <{n} x i32> <{mask}>")
        rows = out
        d *= 2
    return rows


def pack(low, src: Tensor, out: Buffer, pairs: bool, k_stop=None, n_stop=None) -> None:
    """Write a right operand into panels; transposes in registers if it is contiguous along K.

    ``k_stop`` (in rows of panels) and ``n_stop`` leave out what no block will read.
    """
    e = low.e
    width = e.features.width
    k, n = src.shape
    k_lanes = width * (2 if pairs else 1)
    if (
        contiguous_axis(src) == 0
        and k >= k_lanes
        and n >= width
        and out.type.elem in ("i32", "f32")
    ):
        whole = prefix.whole(low, (src,), 1)
        k_end = k if k_stop is None else e.mul(k_stop, const("i32", k // out.shape[0]))
        n_end = const("i32", n) if n_stop is None else n_stop
        with nest(e) as g:
            ty = out.type.elem

            def column(j, _, surely=None):
                ns = [g.affine(j, 1, r) for r in range(width)]
                g.outer = [(surely, jr) for jr in ns if surely]

                def row(i, _):
                    rows = []
                    for jr in ns:
                        ramp = Val(
                            "i32", "a", n=k_lanes, base=i, stride=const("i32", 1), level=i.level
                        )
                        v = e.operand(g.at(src, (ramp, jr)), k_lanes)
                        if pairs:
                            v = e.raw(f"bitcast <{k_lanes} x i16> {v} to <{width} x i32>")
                        rows.append(v)
                    half = e.op("lshr", "i32", i, const("i32", 1)) if pairs else i
                    half.level = i.level
                    cols = transpose_lanes(e, rows, ll(ty, width), width)
                    for r, v in enumerate(cols):
                        kr = e.add(half, const("i32", r))
                        ramp = Val(
                            "i32", "a", n=width, base=j, stride=const("i32", 1), level=j.level
                        )
                        out.put(g, (kr, ramp), e.wrap(ty, v, width))

                e.loop(0, k_end, k_lanes, row)
                g.outer = []

            start = ZERO
            if whole is not None:  # columns that no mask cuts off
                start = e.op(
                    "and", "i32", prefix.smaller(e, whole[1], n_stop), const("i32", -width)
                )
                e.loop(0, start, width, lambda j, _: column(j, _, whole[0]))
            e.loop(start, n_end, width, column)
        return
    if pairs and n % (2 * width) == 0:
        _interleave(low, src, out, k_stop, n_stop)
        return
    value = Pairs(src) if pairs else src
    whole = {} if pairs else {axis: prefix.whole(low, (src,), axis) for axis in (0, 1)}
    with nest(e) as g:
        value = value if pairs else Ahead(value, 1)
        loops(g, value.shape, 1, width, lambda idx: out.put(g, idx, g.at(value, idx)),
              {0: k_stop, 1: n_stop}, whole, out.width // width)  # fmt: skip


def _interleave(low, src: Tensor, out: Panel, k_stop, n_stop) -> None:
    """Rows 2k and 2k + 1 of a 16-bit matrix, element by element in turn, into panels."""
    e = low.e
    width = e.features.width
    lanes = 2 * width
    t = f"<{lanes} x i16>"
    k, n = out.shape
    whole = {axis: prefix.whole(low, (src,), axis) for axis in (0, 1)}
    with nest(e) as g:

        def pair(i: Val, j: Val) -> None:
            g.lanes = Val("i32", "a", n=lanes, base=j, stride=const("i32", 1), level=j.level)
            rows = []
            for part in (0, 1):
                row = g.affine(i, 2, part)
                ahead(g, src, (g.affine(i, 2, part + AHEAD), g.lanes))
                if surely:
                    g.outer.append((whole[0][0], row))
                rows.append(e.operand(g.at(src, (row, g.lanes)), lanes))
                if surely:
                    g.outer.pop()
            for half in (0, 1):
                order = ", ".join(f"i32 {half * width + q + r * lanes}"
                                  for q in range(width) for r in (0, 1))  # fmt: skip
                v = e.raw(f"shufflevector {t} {rows[0]}, {t} {rows[1]}, <{lanes} x i32> <{order}>")
                v = e.raw(f"bitcast {t} {v} to <{width} x i32>")
                at = g.affine(j, 1, half * width)
                at = Val("i32", "a", n=width, base=at, stride=const("i32", 1), level=j.level)
                out.put(g, (i, at), e.wrap("i32", v, width))

        def row(i: Val, _) -> None:
            start, end = ZERO, const("i32", n) if n_stop is None else n_stop
            if whole[1] is not None:
                g.known, count = whole[1]
                start = e.op("and", "i32", prefix.smaller(e, count, n_stop), const("i32", -lanes))
                e.loop(0, start, lanes, lambda j, _: pair(i, j))
                g.known = {}
            e.loop(start, end, lanes, lambda j, _: pair(i, j))

        end = const("i32", k) if k_stop is None else k_stop
        start, surely = ZERO, whole[0] is not None
        if surely:
            start = e.op("lshr", "i32", whole[0][1], const("i32", 1))
            start = prefix.smaller(e, start, k_stop)
            e.loop(0, start, 1, row)
            surely = False
        e.loop(start, end, 1, row)


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
    out = low.destination(op) or low.alloc(ty)
    if len(ty.shape) == 3:
        _batched(low, a, b, c, out)
    else:
        m, n = prefix.seen(low, op.results[0], (0, 1))
        _dot2d(low, a, b, c, out, (m, n, _inner(low, a, b)))
    low.env[op.results[0]] = out


class _Slice(Tensor):
    """Plane ``where`` of a batched matrix."""

    def __init__(self, src: Tensor, where: Val) -> None:
        super().__init__(Type(src.type.elem, src.shape[1:], True))
        self.src, self.where, self.inputs = src, where, (src,)
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


def _inner(low, a: Tensor, b: Tensor) -> Val | None:
    """The inner index from which on both operands are zero."""
    left, right = prefix.nonzero(low, a, 1), prefix.nonzero(low, b, 0)
    return None if left is None or right is None else prefix.larger(low.e, left, right)


def _dot2d(low, a: Tensor, b: Tensor, c: Tensor, out: Buffer, live) -> None:
    """``live`` bounds the rows, columns and inner steps that matter, where they are known."""
    e = low.e
    m_stop, n_stop, k_stop = live
    m, k = a.shape
    n = b.shape[1]
    acc = out.type.elem
    elem = "i32" if a.type.elem[0] == "i" else ("f64" if acc == "f64" else "f32")
    acc_elem = "f32" if acc == "f16" else acc
    native = (a.type.elem == b.type.elem == "bf16" and acc == "f32" and k % 2 == 0
              and e.features.has("avx512bf16") and e.features.width == 16 and n >= 16)  # fmt: skip
    mark = low.mark()
    use_tiles = tiles.applies(e.features, a, b, out)
    native = native or use_tiles
    if not native:
        a, b = _widen(a, elem), _widen(b, elem)
    lanes = min(e.features.width, n)
    mr, nv = blocking(m, n // lanes, e.features.registers, k * lanes * (2 if native else 4))
    nr = tiles.panel_width(n) if use_tiles else nv * lanes
    rows = k // 2 if native else k
    group = 16 if use_tiles else next(u for u in (4, 2, 1) if rows % u == 0)  # rows per inner step
    if k_stop is not None:
        steps = prefix.up_to(e, k_stop, group * k // rows)
        k_stop = e.op("lshr", "i32", steps, const("i32", 1)) if native else steps
        k_stop = prefix.smaller(e, k_stop, const("i32", rows))
    if not (type(a) is Buffer and (a.steps[1] == 1 or not (use_tiles or native))):
        a_stop = k_stop if k_stop is None else e.mul(k_stop, const("i32", k // rows))
        along = contiguous_axis(a)
        width = e.features.width
        if along == 1 and elem in ("f32", "i32") and not native and k >= width and m >= mr > 1:
            a = _pack_rows(low, a, mr, m_stop, a_stop)
        else:
            packed = low.alloc(a.type, (1, 0) if along == 0 and not native else None)
            with nest(e):
                whole = {axis: prefix.whole(low, (a,), axis) for axis in (0, 1)}
                write(e, Ahead(a, along), packed, along, {0: m_stop, 1: a_stop}, whole, 4)
            a = packed
    live = tuple(size if stop is None else stop
                 for size, stop in ((m, m_stop), (n, n_stop), (rows, k_stop)))  # fmt: skip
    by_panel = not (native or contiguous_axis(b) == 0 or n <= nr)
    bty = Type("i32" if native else elem, (rows, nr if by_panel else n), True)
    panel = Panel(bty, low.alloc(bty).base, nr)
    if not by_panel:
        pack(low, b, panel, native, k_stop, None if n_stop is None else prefix.up_to(e, n_stop, nr))
    if use_tiles:
        tiles.multiply(low, a, panel, c, out, live)
        low.release(mark)
        return
    kernel = _Kernel(low, a, panel, c, out, (live[2], group, lanes, nv, native, elem, acc_elem))
    whole = {axis: prefix.whole(low, (b,), axis) if by_panel else None for axis in (0, 1)}
    with nest(e) as g:

        def columns(start, end, mr: int, nv: int) -> None:
            full = m - m % mr
            stop = full if m_stop is None else prefix.smaller(e, m_stop, const("i32", full))

            def column(j, _):
                if by_panel:
                    kernel.b = Panel(Type(elem, (rows, nv * lanes), True), panel.base, nv * lanes)
                    _pack_panel(g, b, kernel.b, j, live[2], whole)
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


class Strips(Buffer):
    """An [M, K] matrix as strips of so many rows, each of which lies column after column: the
    inner loop reads one stream instead of one for each row. The last strip has what is left."""

    def __init__(self, ty: Type, base: Val, height: int) -> None:
        super().__init__(ty, base)
        self.height = height


def _pack_rows(low, src: Tensor, height: int, m_stop, k_stop) -> Strips:
    """Write a left operand that is contiguous along K into strips.

    A store is a whole vector, which may be wider than the strip: what is too much is overwritten
    by the next column, and behind the last one there is room.
    """
    e, lanes = low.e, low.e.features.width
    m, k = src.shape
    ty = src.type.elem
    out = Strips(src.type, low.alloc(Type(ty, (m * k + lanes,), True)).base, height)
    whole = {axis: prefix.whole(low, (src,), axis) for axis in (0, 1)}
    k_end = const("i32", k) if k_stop is None else k_stop

    with nest(e) as g:

        def strip(i: Val, rows: int) -> None:
            base = e.offset(out.base, e.mul(i, const("i32", k)), BYTES[ty])
            lines = [g.affine(i, 1, r) for r in range(rows)]

            def chunk(at: Val, known) -> None:
                ramp = Val("i32", "a", n=lanes, base=at, stride=const("i32", 1), level=at.level)
                g.known, g.lanes = known, ramp
                values = [e.operand(g.at(src, (r, ramp)), lanes) for r in lines]
                g.known = {}
                columns = []
                for q in range(0, rows, lanes):
                    part = values[q : q + lanes]
                    part += [part[0]] * (lanes - len(part))
                    columns.append(transpose_lanes(e, part, ll(ty, lanes), lanes))
                start = e.offset(base, e.mul(at, const("i32", rows)), BYTES[ty])
                for c in range(lanes):
                    for q, vectors in enumerate(columns):
                        p = e.offset(start, const("i32", c * rows + q * lanes), BYTES[ty])
                        e.line(f"store {ll(ty, lanes)} {vectors[c]}, ptr {e.operand(p)}, "
                               f"align {BYTES[ty]}")  # fmt: skip

            start = ZERO
            if whole[0] is not None or whole[1] is not None:
                start = k_end if whole[1] is None else prefix.smaller(e, k_end, whole[1][1])
                start = e.op("and", "i32", start, const("i32", -lanes))
                if whole[0] is not None:
                    inside = e.op("icmp sle", "i32", g.affine(i, 1, rows), whole[0][1], out="i1")
                    start = e.select(inside, start, ZERO)
                    g.outer += [(whole[0][0], r) for r in lines]
                sure = {} if whole[1] is None else whole[1][0]
                e.loop(ZERO, start, lanes, lambda at, _: chunk(at, sure))
                g.outer = []
            e.loop(start, k_end, lanes, lambda at, _: chunk(at, {}))

        full = m - m % height
        stop = const("i32", full)
        stop = stop if m_stop is None else prefix.smaller(e, stop, m_stop)
        e.loop(ZERO, stop, height, lambda i, _: strip(i, height))
        if m % height:
            end = const("i32", m) if m_stop is None else m_stop
            e.loop(full, end, m, lambda i, _: strip(i, m % height))
    return out


def _pack_panel(g: Nest, src: Tensor, out: Panel, j: Val, k_stop, whole) -> None:
    """Copy the columns from j on, as many as the panel is wide, just before they are used: the
    panel is still in the first-level cache then, and the second has room for the left operand."""
    e, n = g.e, min(g.e.features.width, out.width)
    src = Ahead(src, 1)

    def vectors(k: Val, known) -> None:
        for v in range(0, out.width, n):
            at, to = (Val("i32", "a", n=n, base=base, stride=const("i32", 1), level=base.level)
                      for base in (g.affine(j, 1, v), const("i32", v)))  # fmt: skip
            g.known, g.lanes = known, at
            out.put(g, (k, to), g.at(src, (k, at)))
            g.known = {}

    start, end = ZERO, k_stop if isinstance(k_stop, Val) else const("i32", k_stop)
    if whole[0] is not None or whole[1] is not None:  # rows and columns that no mask cuts off
        start = end if whole[0] is None else prefix.smaller(e, end, whole[0][1])
        if whole[1] is not None:
            inside = e.op("icmp sle", "i32", g.affine(j, 1, out.width), whole[1][1], out="i1")
            start = e.select(inside, start, ZERO)

        def known(k: Val, _) -> None:
            if whole[0] is not None:
                g.outer.append((whole[0][0], k))
            vectors(k, {} if whole[1] is None else whole[1][0])
            if whole[0] is not None:
                g.outer.pop()

        e.loop(ZERO, start, 1, known)
    e.loop(start, end, 1, lambda k, _: vectors(k, {}))


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
        if chunks > 1 and type(self.out) is Buffer:

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
