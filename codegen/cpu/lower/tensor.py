"""Tensors as functions from an index tuple to a value.

Nothing here is memory except ``Buffer``. A chain of element-wise ops, broadcasts and shape changes
is composed as functions and becomes one loop nest where its result is written down (``write``).
Index components are ``Val``s: one of them may be a ramp over lanes, which makes the values vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

from codegen.cpu.emit import Emit, Val, const
from codegen.cpu.lower import access, requests
from codegen.cpu.ttir import BYTES, Type

ZERO = const("i32", 0)


class Tensor:
    """A lazily evaluated tensor.

    ``heavy``: evaluating an element costs more than reading it back from a buffer.
    ``reads``: evaluating touches memory that the kernel may write (a global load is inside).
    ``data``: elements come from memory, unlike those of index arithmetic.
    ``near``: of a view, for each axis the source's axis that a vector along it steps along.
    """

    heavy = False
    reads = False
    data = False
    op_name = ""
    near: Sequence[int | None] | None = None
    inputs: tuple[Tensor, ...] = ()

    def __init__(self, ty: Type) -> None:
        self.type = ty

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    def at(self, g: Nest, idx: tuple[Val, ...]) -> Val:
        """The element(s) at an index."""
        raise NotImplementedError

    def stride(self, axis: int) -> int | None:
        """Change of the value per step along an axis (bytes for pointers), if it is a constant."""
        return None

    def constant(self):
        """The one value of all elements when known while compiling, else None."""
        return None


class Const(Tensor):
    """Every element the same constant."""

    def __init__(self, ty: Type, value) -> None:
        super().__init__(ty)
        self.value = const(ty.elem, value)

    def at(self, g, idx):
        return self.value

    def stride(self, axis):
        return 0

    def constant(self):
        return self.value.x


class Table(Tensor):
    """A constant tensor with elements that differ; kept as a global array."""

    def __init__(self, ty: Type, values: list, e: Emit) -> None:
        super().__init__(ty)
        from codegen.cpu.emit import LLVM

        t = LLVM[ty.elem] if ty.elem != "i1" else "i8"
        body = ", ".join(f"{t} {e.literal(ty.elem, v) if t != 'i8' else int(v)}" for v in values)
        name = f"@table{len(e.globals)}"
        e.globals[name] = f"{name} = private constant [{len(values)} x {t}] [{body}]"
        self.buffer = Buffer(ty, Val("ptr", "u", name))

    def at(self, g, idx):
        return self.buffer.at(g, idx)


class Range(Tensor):
    """start, start + 1, ..."""

    def __init__(self, ty: Type, start: int) -> None:
        super().__init__(ty)
        self.start = const(ty.elem, start)

    def at(self, g, idx):
        return g.e.add(idx[0], self.start)

    def stride(self, axis):
        return 1


class Splat(Tensor):
    """A scalar everywhere."""

    def __init__(self, ty: Type, value: Val) -> None:
        super().__init__(ty)
        self.value = value

    def at(self, g, idx):
        return self.value

    def stride(self, axis):
        return 0

    def constant(self):
        return self.value.x if self.value.kind == "c" else None


class Map(Tensor):
    """An element-wise op over tensors of one shape."""

    def __init__(self, ty: Type, name: str, fn: Callable[..., Val], inputs, heavy: bool) -> None:
        super().__init__(ty)
        self.op_name, self.fn, self.inputs = name, fn, tuple(inputs)
        self.word = ""  # the predicate of a comparison
        self.data = any(t.data for t in inputs)  # index arithmetic is done once for many elements
        self.flops = self.data + sum(getattr(t, "flops", 0) for t in inputs)
        floats = ty.elem in ("f32", "f64", "bf16", "f16")
        own = self.flops > 3 and (floats or self.data)
        self.heavy = heavy or own or any(t.heavy for t in inputs)
        self.strides: dict[int, int | None] = {}
        self.reads = any(t.reads for t in inputs)

    def at(self, g, idx):
        return self.fn(g.e, *[g.at(t, idx) for t in self.inputs])

    def stride(self, axis):
        if axis not in self.strides:
            self.strides[axis] = self._stride(axis)
        return self.strides[axis]

    def _stride(self, axis):
        strides = [t.stride(axis) for t in self.inputs]
        if all(s == 0 for s in strides):
            return 0
        if None in strides:
            return None
        if self.op_name == "arith.addi":
            return strides[0] + strides[1]
        if self.op_name == "arith.subi":
            return strides[0] - strides[1]
        if self.op_name == "tt.addptr":
            return strides[0] + strides[1] * BYTES.get(self.type.pointee, 1)
        if self.op_name in ("arith.extsi", "arith.extui", "tt.int_to_ptr", "arith.trunci"):
            return strides[0]
        if self.op_name == "arith.muli":
            (a, b), (s, z) = self.inputs, strides
            if z == 0 and b.constant() is not None:
                return s * b.constant()
            if s == 0 and a.constant() is not None:
                return z * a.constant()
        return None


class Reindex(Tensor):
    """Another tensor read at a computed index: broadcast, expand, transpose, reshape, ...

    ``strides``: as ``near``, but for any number of steps, from anywhere.
    """

    def __init__(self, ty: Type, src: Tensor, index, strides=None, near=None) -> None:
        super().__init__(ty)
        self.src, self.index, self.strides = src, index, strides
        self.near = strides or near
        self.inputs = (src,)
        self.heavy, self.reads, self.data = src.heavy, src.reads, src.data
        self.flops = getattr(src, "flops", 0)

    def at(self, g, idx):
        return g.at(self.src, self.index(g, idx))

    def stride(self, axis):
        if self.strides is None:
            return None
        source = self.strides[axis]
        return 0 if source is None else self.src.stride(source)

    def constant(self):
        return self.src.constant()


class Load(Tensor):
    """A load that has not happened yet. ``name`` is its pointer in the kernel, ``root`` the
    function argument behind that."""

    heavy = True
    reads = True
    data = True

    def __init__(self, ty: Type, ptr: Tensor, mask: Tensor | None, other: Tensor | None) -> None:
        super().__init__(ty)
        self.ptr, self.mask, self.other = ptr, mask, other
        self.name = ""
        self.root: str | None = None
        self.inputs = tuple(t for t in (ptr, mask, other) if t is not None)

    def at(self, g, idx):
        ptr = g.at(self.ptr, idx)
        mask = g.at(self.mask, idx) if self.mask is not None else None
        other = g.at(self.other, idx) if self.other is not None else None
        return access.load(g.e, self.type.elem, ptr, mask, other)


class Buffer(Tensor):
    """A tensor in scratch memory. ``order`` lists the axes from outermost to contiguous."""

    data = True

    def __init__(self, ty: Type, base: Val, order: tuple[int, ...] | None = None) -> None:
        super().__init__(ty)
        self.base = base
        self.order = order or tuple(range(len(ty.shape)))
        self.steps = [0] * len(ty.shape)
        step = 1
        for axis in reversed(self.order):
            self.steps[axis] = step
            step *= ty.shape[axis]

    def address(self, e: Emit, idx) -> Val:
        offset = ZERO
        for i, step in zip(idx, self.steps, strict=True):
            offset = e.add(offset, e.mul(i, const("i32", step)))
        return e.offset(self.base, offset, BYTES[self.type.elem])

    def at(self, g, idx):
        return access.load(g.e, self.type.elem, self.address(g.e, idx), None, None)

    def put(self, g: Nest, idx, value: Val) -> None:
        n = max((i.n for i in idx if not i.uniform), default=0)
        access.store(g.e, self.type.elem, self.address(g.e, idx), value, None, n)


class Fresh(Tensor):
    """What a loop adds to: a constant in the first iteration, before its buffer was written."""

    def __init__(self, buffer: Buffer, value: Const, first: Val) -> None:
        super().__init__(buffer.type)
        self.buffer, self.value, self.first, self.inputs = buffer, value, first, (buffer,)

    def at(self, g, idx):
        return g.e.select(self.first, g.at(self.value, idx), g.at(self.buffer, idx))


class Tee(Map):
    """A tensor that its first reader writes down on the way: a reduction, which visits every
    element once, so that a block is computed, kept and summed up in one pass. ``kept`` is what
    is done to elements before they are written; ``pairs``: it takes one or two vectors that lie
    side by side, and the reduction says where two of them end (``flush``)."""

    def __init__(self, src: Tensor, buffer: Buffer, kept=None, pairs: bool = False) -> None:
        super().__init__(src.type, "tee", lambda e, v: v, [src], True)
        self.buffer, self.kept, self.pairs = buffer, kept, pairs
        self.waiting: list[tuple[tuple[Val, ...], Val]] = []

    def at(self, g, idx):
        value = g.at(self.inputs[0], idx)
        if self.pairs:
            self.waiting.append((idx, value))
        else:
            self.buffer.put(g, idx, value if self.kept is None else self.kept(g.e, [value]))
        return value

    def flush(self, g: Nest) -> None:
        """Write what waits, two neighbours at a time."""
        todo, self.waiting = self.waiting, []
        while todo:
            two = len(todo) > 1 and todo[0][1].n == g.e.features.width
            (idx, first), *rest = todo[: 1 + two]
            todo = todo[1 + two :]
            out = self.kept(g.e, [first, *(v for _, v in rest)])
            at = tuple(i if i.uniform else Val(i.ty, "a", n=out.n, base=i.base, stride=i.stride,
                                               level=i.level) for i in idx)  # fmt: skip
            self.buffer.put(g, at, out)


class Ramp(Tensor):
    """A loop carry that only moves by a scalar: its first value plus a running offset."""

    def __init__(self, first: Tensor, moved: Val) -> None:
        super().__init__(first.type)
        self.first, self.moved = first, moved
        self.inputs = (first,)

    def at(self, g, idx):
        v = g.at(self.first, idx)
        if self.type.elem == "ptr":
            return g.e.offset(v, self.moved, 1)
        return g.e.add(v, self.moved)

    def stride(self, axis):
        return self.first.stride(axis)


class Nest:
    """A loop nest under construction; evaluates tensors at the level their index needs."""

    def __init__(self, e: Emit) -> None:
        self.e = e
        self.known: dict[int, int] = {}  # comparisons that hold in the part being emitted: axis
        self.lanes: Val | None = None  # ... where this is their index along that axis
        self.outer: list[tuple[dict[int, int], Val]] = []  # the same for axes without lanes
        self.sure: set[int] = set()  # comparisons that hold at every index

    def affine(self, i: Val, scale: int, shift: int) -> Val:
        """``i * scale + shift`` for an index component, made at the level of ``i``."""
        e = self.e
        level = min(max(e.base_level, i.level), e.scope.level)
        with e.at_level(level):
            out = e.add(e.mul(i, const("i32", scale)), const("i32", shift))
        if out.kind != "c" and out is not i:
            out.level = i.level
        return out

    def at(self, t: Tensor, idx: tuple[Val, ...]) -> Val:
        e = self.e
        if self.known and id(t) in self.known and idx[self.known[id(t)]] is self.lanes:
            return const("i1", 1)
        if id(t) in self.sure:
            return const("i1", 1)
        for known, i in self.outer:
            if id(t) in known and idx[known[id(t)]] is i:
                return const("i1", 1)
        level = max([e.base_level, *(i.level for i in idx)])
        level = min(level, e.scope.level)
        memo = e.scopes[level].memo
        key = (id(t), *map(id, idx))
        hit = memo.get(key)
        if hit is None and self.outer:
            # What is found by what holds here only is not for a part where it may not hold.
            key = (*key, *((id(known), id(i)) for known, i in self.outer))
            hit = memo.get(key)
        if hit is None:
            with e.at_level(level):
                hit = (t.at(self, idx), t, idx)
            memo[key] = hit
        return hit[0]


@contextmanager
def nest(e: Emit):
    """A scope for one loop nest: nothing evaluated in it is reused after it."""
    keep = e.base_level
    e.open()
    e.base_level = e.scope.level
    try:
        yield Nest(e)
    finally:
        e.base_level = keep
        e.close()


def lane_axis(shape: tuple[int, ...], prefer: int | None = None) -> int | None:
    """The axis that lanes run along: the preferred one, else the last that is not 1."""
    if prefer is not None and shape[prefer] > 1:
        return prefer
    return next((a for a in reversed(range(len(shape))) if shape[a] > 1), None)


def contiguous_axis(t: Tensor) -> int | None:
    """The axis along which the loads inside a tensor are contiguous in memory."""
    seen: dict[int, bool | None] = {}

    def visit(t: Tensor, axis: int) -> bool | None:
        if id(t) not in seen:
            seen[id(t)] = None
            seen[id(t)] = ask(t, axis)
        return seen[id(t)]

    def ask(t: Tensor, axis: int) -> bool | None:
        if isinstance(t, Load):
            return t.ptr.stride(axis) == BYTES[t.type.elem]
        if isinstance(t, Buffer):
            return t.steps[axis] == 1 if t.shape[axis] > 1 else None
        if t.near is not None:
            return None if t.near[axis] is None else visit(t.inputs[0], t.near[axis])
        if not isinstance(t, Map):
            return None
        votes = [v for v in (visit(i, axis) for i in t.inputs) if v is not None]
        return None if not votes else sum(votes) * 2 >= len(votes) and any(votes)

    best = None
    for axis in reversed(range(len(t.shape))):
        if t.shape[axis] == 1:
            continue
        seen.clear()
        if visit(t, axis):
            return axis
        best = axis if best is None else best
    return best


def loops(g: Nest, shape, axis: int | None, width: int, body: Callable[[tuple[Val, ...]], None],
          stops: dict[int, Val | None] | None = None, whole=None, unroll: int = 1):  # fmt: skip
    """Call ``body`` at every index, lanes along ``axis``: that axis innermost, others in order.

    ``stops`` end an axis early (lanes at the end of the vector that they are in). ``whole`` gives
    (comparisons, count) per axis: they hold for that many of its indices, which get loops without
    them, ``unroll`` vectors at a time.
    """
    e = g.e
    ends = {a: v for a, v in (stops or {}).items() if v is not None}
    whole = {a: v for a, v in (whole or {}).items() if v is not None}
    idx: list[Val] = [ZERO] * len(shape)
    outer = [a for a in range(len(shape)) if a != axis and shape[a] > 1]
    columns = axis is not None and axis == len(shape) - 1 and len(shape) <= 2
    site = requests.site(e, shape[axis]) if columns and shape[axis] > 4 * width else None

    def least(a: int, b: Val) -> Val:
        """The smaller of a count and the end of its axis."""
        return b if a not in ends else e.call("llvm.smin", "i32", b, ends[a])

    def lanes(split: bool) -> None:
        if axis is None:
            body(tuple(idx))
            return
        size = shape[axis]
        n = min(width, size)

        def ramp(start: Val) -> Val:
            return Val("i32", "a", n=n, base=start, stride=const("i32", 1), level=start.level)

        if size // n <= 4 and axis not in ends and not (split and axis in whole):
            for start in range(0, size, n):
                idx[axis] = ramp(const("i32", start))
                body(tuple(idx))
            return

        def step(i, _):
            g.lanes = idx[axis] = ramp(i)
            if site is not None:
                site.here(e, idx[0] if len(shape) == 2 else None, i, n)
            body(tuple(idx))

        def steps(i, _):
            for u in range(ways):
                step(g.affine(i, 1, u * n), None)

        start, end = ZERO, ends.get(axis, size)
        ways = min(unroll, size // n)
        if axis in whole and split:
            g.known, count = whole[axis]
            start = e.op("and", "i32", least(axis, count), const("i32", -n * ways))
            e.loop(ZERO, start, n * ways, steps)
            g.known = {}
        elif axis not in ends and ways > 1:
            e.loop(ZERO, size, n * ways, steps)
            return
        e.loop(start, end, n, step)

    def level(k: int, split: bool) -> None:
        if k == len(outer):
            lanes(split)
            return
        a = outer[k]
        start, end = ZERO, ends.get(a, shape[a])

        def step(i, _):
            idx[a] = i
            level(k + 1, split)

        def known(i, _):
            g.outer.append((whole[a][0], i))
            step(i, None)
            g.outer.pop()

        if a in whole and split:
            start = least(a, whole[a][1])
            e.loop(ZERO, start, 1, known)
            split = False  # what is left over is not worth more loops
        e.loop(start, end, 1, step)

    level(0, True)


def write(e: Emit, t: Tensor, out: Buffer, axis: int | None = None, stops=None,
          whole=None, unroll: int = 1) -> None:  # fmt: skip
    """Evaluate a tensor into a buffer, in one loop nest."""
    if axis is None:
        axis = lane_axis(t.shape, contiguous_axis(t) if t.shape else None)
    with nest(e) as g:
        width = e.features.width
        loops(g, t.shape, axis, width, lambda idx: out.put(g, idx, g.at(t, idx)), stops,
              whole, unroll)  # fmt: skip
