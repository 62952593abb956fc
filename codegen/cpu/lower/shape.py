"""Shape changes: every one is a tensor read at another index."""

from __future__ import annotations

from codegen.cpu.emit import Val, const
from codegen.cpu.lower.tensor import ZERO, Nest, Reindex, Tensor
from codegen.cpu.ttir import Type

LANES = 16  # no vector of 32-bit numbers has more


def expand_dims(ty: Type, src: Tensor, axis: int) -> Tensor:
    axes = [a for a in range(len(ty.shape)) if a != axis]
    strides = [None if a == axis else axes.index(a) for a in range(len(ty.shape))]
    return Reindex(ty, src, lambda g, idx: tuple(idx[a] for a in axes), strides)


def broadcast(ty: Type, src: Tensor) -> Tensor:
    keep = [s == d for s, d in zip(src.shape, ty.shape, strict=True)]
    strides = [a if k else None for a, k in enumerate(keep)]
    return Reindex(
        ty, src, lambda g, idx: tuple(i if k else ZERO for i, k in zip(idx, keep, strict=True)),
        strides)  # fmt: skip


def transpose(ty: Type, src: Tensor, order: list[int]) -> Tensor:
    """Axis k of the result is axis order[k] of the source."""
    place = [order.index(a) for a in range(len(order))]
    return Reindex(ty, src, lambda g, idx: tuple(idx[p] for p in place), list(order))


def _divmod(g: Nest, v: Val, size: int) -> tuple[Val, Val]:
    """v // size and v % size of a non-negative index, keeping a ramp that stays in one row."""
    e = g.e
    if size == 1:
        return v, ZERO
    if v.kind == "c":
        return const("i32", v.x // size), const("i32", v.x % size)
    if v.kind == "a" and v.stride.is_const(1) and size % v.n == 0 and v.base.div % v.n == 0:
        q, r = _divmod(g, v.base, size)
        return q, Val("i32", "a", n=v.n, base=r, stride=v.stride, level=v.level)
    div = const("i32", size)
    q = e.op("udiv", "i32", v, div)
    r = e.op("urem", "i32", v, div)
    if v.uniform:
        r.div = min(v.div, size & -size)
    return q, r


def reshape(ty: Type, src: Tensor) -> Tensor:
    """The same elements in row-major order under another shape."""
    to, frm = ty.shape, src.shape
    ones = [a for a in range(len(frm)) if frm[a] != 1]
    if [d for d in to if d != 1] == [d for d in frm if d != 1]:  # only ones come or go
        real = [a for a in range(len(to)) if to[a] != 1]

        def rename(g, idx):
            out = [ZERO] * len(frm)
            for a, b in zip(ones, real, strict=True):
                out[a] = idx[b]
            return tuple(out)

        strides = [ones[real.index(a)] if a in real else None for a in range(len(to))]
        return Reindex(ty, src, rename, strides)

    def index(g: Nest, idx):
        e = g.e
        level = max(i.level for i in idx)
        flat = ZERO
        for i, size in zip(idx, to, strict=True):
            flat = e.add(e.mul(flat, const("i32", size)), i)
        out = []
        for size in reversed(frm[1:]):
            flat, r = _divmod(g, flat, size)
            out.append(r)
        out.append(flat)
        out = [ZERO if frm[len(frm) - 1 - k] == 1 else v for k, v in enumerate(out)]
        for v in out:
            if v.kind != "c":
                v.level = max(v.level, level)
        return tuple(reversed(out))

    here, there = (max(a for a, n in enumerate(shape) if n != 1) for shape in (to, frm))
    near: list[int | None] = [None] * len(to)
    if to[here] % LANES == frm[there] % LANES == 0:  # so many elements are neighbours in both
        near[here] = there
    return Reindex(ty, src, index, near=near)


class _Two(Tensor):
    """Elements of two tensors, each from one of them."""

    def __init__(self, ty: Type, a: Tensor, b: Tensor) -> None:
        super().__init__(ty)
        self.inputs = (a, b)
        self.heavy, self.reads = a.heavy or b.heavy, a.reads or b.reads
        self.data = a.data or b.data
        self.flops = 1 + getattr(a, "flops", 0) + getattr(b, "flops", 0)


class Join(_Two):
    """Two tensors along a new last axis of size 2."""

    def __init__(self, ty: Type, a: Tensor, b: Tensor) -> None:
        super().__init__(ty, a, b)
        self.near = (*range(len(a.shape)), None)  # vectors along other axes are the first's too

    def at(self, g, idx):
        a, b = self.inputs
        last, rest = idx[-1], idx[:-1]
        if last.kind == "c":
            return g.at(b if last.x else a, rest)
        first = g.e.op("icmp eq", "i32", last, ZERO, out="i1")
        return g.e.select(first, g.at(a, rest), g.at(b, rest))


class Cat(_Two):
    """Two tensors one after the other along axis 0."""

    def at(self, g, idx):
        e = g.e
        a, b = self.inputs
        half = a.shape[0]
        i, rest = idx[0], idx[1:]
        size = const("i32", half)
        low = e.op("icmp slt", "i32", i, size, out="i1")
        from codegen.cpu.lower.elementwise import vector

        # Either side is read at an index inside it, whichever is selected.
        ia = e.select(low, vector(e, i), ZERO)
        ib = e.select(low, ZERO, vector(e, e.sub(i, size)))
        ia.level = ib.level = max(v.level for v in idx)
        return e.select(low, g.at(a, (ia, *rest)), g.at(b, (ib, *rest)))


def split(ty: Type, src: Tensor, side: int) -> Tensor:
    """One half along the last axis of size 2."""
    which = const("i32", side)
    strides = list(range(len(ty.shape)))
    return Reindex(ty, src, lambda g, idx: (*idx, which), strides)
