"""Operands of a matrix product as the inner loop wants them, in panels and strips read in order.

A right operand lies in panels as wide as the accumulators, a left one in strips as high.
"""

from __future__ import annotations

from codegen.cpu.emit import Val, const, ll
from codegen.cpu.lower import access, prefix
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
)
from codegen.cpu.lower.window import Window
from codegen.cpu.ttir import BYTES, Type


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
    while not isinstance(t, Load):
        if isinstance(t, Map) and len(t.inputs) == 1:
            t = t.inputs[0]
        elif isinstance(t, Window):
            t, idx = t.src, t.index(g, idx)
        else:
            return
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


class Strips(Buffer):
    """An [M, K] matrix as strips of so many rows, each of which lies column after column: the
    inner loop reads one stream instead of one for each row. The last strip has what is left."""

    def __init__(self, ty: Type, base: Val, height: int) -> None:
        super().__init__(ty, base)
        self.height = height


def pack_rows(low, src: Tensor, height: int, m_stop, k_stop) -> Strips:
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


def turns(e, src: Tensor, along: int | None) -> bool:
    """Is a left operand of 16-bit words one that ``pack_turned`` can write?"""
    m, k = src.shape
    words = src.type.elem in ("bf16", "f16", "i16") and e.features.width == 16
    return along == 0 and words and m % 16 == 0 and k % 32 == 0


def pack_turned(low, src: Tensor, m_stop, k_stop) -> Buffer:
    """Write a left operand of 16-bit words row by row that is contiguous down its columns.

    Two columns are put together as words of 32 bits, and 16 x 16 of those are transposed in
    registers; word by word it takes ten times as long.
    """
    e, lanes = low.e, 16
    m, k = src.shape
    out = low.alloc(src.type)
    t = ll("i32", lanes)
    m_end, k_end = (const("i32", n) if s is None else s for n, s in ((m, m_stop), (k, k_stop)))
    pairs = Pairs(Turned(src))
    with nest(e) as g:

        def block(i: Val, j: Val) -> None:
            ramp = Val("i32", "a", n=lanes, base=i, stride=const("i32", 1), level=i.level)
            half = e.op("lshr", "i32", j, const("i32", 1))
            half.level = j.level
            columns = [e.operand(g.at(pairs, (g.affine(half, 1, q), ramp)), lanes)
                       for q in range(lanes)]  # fmt: skip
            for r, row in enumerate(transpose_lanes(e, columns, t, lanes)):
                p = out.address(e, (e.add(i, const("i32", r)), j))
                e.line(f"store {t} {row}, ptr {e.operand(p)}, align 2")

        e.loop(ZERO, m_end, lanes, lambda i, _: e.loop(
            ZERO, k_end, 2 * lanes, lambda j, _: block(i, j)))  # fmt: skip
    return out


class Turned(Tensor):
    """A matrix the other way round."""

    def __init__(self, src: Tensor) -> None:
        super().__init__(Type(src.type.elem, src.shape[::-1], True))
        self.src, self.inputs = src, (src,)

    def at(self, g, idx):
        return g.at(self.src, (idx[1], idx[0]))


def pack_panel(g: Nest, src: Tensor, out: Panel, j: Val, k_stop, whole) -> None:
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
