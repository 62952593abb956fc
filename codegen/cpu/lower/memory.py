"""Loads, stores and atomics."""

from __future__ import annotations

from codegen.cpu import floats
from codegen.cpu.emit import FLOATS, LLVM, Val, const, ll
from codegen.cpu.lower import access, alias, guard, prefix, stream
from codegen.cpu.lower.tensor import Buffer, Load, Tensor, lane_axis, loops, nest
from codegen.cpu.ttir import BYTES, Op

BARE = ("f16", "bf16")


def load(low, op: Op) -> None:
    """tt.load: scalars at once, tensors when (and where) they are needed."""
    ty = op.result_types[0]
    if low.check:
        guard.load(low, op)
        return
    ptr, *rest = op.operands
    if not ty.tensor:
        vals = [low.scalar(v) for v in rest]
        low.env[op.results[0]] = access.load(
            low.e, ty.elem, low.scalar(ptr), vals[0] if vals else None,
            vals[1] if len(vals) > 1 else None)  # fmt: skip
        return
    if op.types and "tensor<" in op.types[0] and op.types[0].startswith("!tt.ptr<tensor"):
        raise low.refuse(op, "block pointers reach the backend only if a pass was left out")
    t = Load(ty, low.tensor(ptr), low.tensor(rest[0]) if rest else None,
             low.tensor(rest[1]) if len(rest) > 1 else None)  # fmt: skip
    t.name, t.root = ptr, low.uses.root(ptr)
    if low.requests is not None:
        with nest(low.e) as g:
            low.requests.load(g, t.ptr, ty)
    low.env[op.results[0]] = t


def _store_axis(ptr: Tensor, value: Tensor, size: int) -> int | None:
    for axis in reversed(range(len(ptr.shape))):
        if ptr.shape[axis] > 1 and ptr.stride(axis) == size:
            return axis
    return lane_axis(ptr.shape)


def store(low, op: Op) -> None:
    """tt.store."""
    if low.check:
        guard.store(low, op)
        return
    e = low.e
    p = low.env[op.operands[0]]
    mask = low.env[op.operands[2]] if len(op.operands) > 2 else None
    value = low.env[op.operands[1]]
    if isinstance(p, Val):
        access.store(e, value.ty, p, value, mask)
        return
    bits = low.risks.get(id(op), 0)
    if not bits:
        _store(low, op, p, value, mask)
        return

    def apart() -> None:
        mark = low.mark()
        held = [low.materialise(t) if t is not None and t.reads else t for t in (p, value, mask)]
        _store(low, op, *held)
        low.release(mark)

    e.branch_if(alias.overlapping(e, bits), apart, lambda: _store(low, op, p, value, mask))


def _store(low, op: Op, p: Tensor, value: Tensor, mask: Tensor | None) -> None:
    e, elem = low.e, value.type.elem
    axis = _store_axis(p, value, BYTES[elem])
    keep = stream.condition(low, op, p.shape, axis, elem)
    whole = {a: prefix.whole(low, (mask, value), a) for a, n in enumerate(p.shape) if n > 1}
    with nest(e) as g:

        def body(idx) -> None:
            n = max((i.n for i in idx if not i.uniform), default=0)
            m = g.at(mask, idx) if mask is not None else None
            where, what = g.at(p, idx), g.at(value, idx)
            open_ = m is None or (m.kind == "c" and m.x)
            if keep is not None and open_ and stream.fits(where, elem, n):
                stream.store(e, elem, where, what, n, keep)
            else:
                access.store(e, elem, where, what, m, n)

        loops(g, p.shape, axis, e.features.width, body, whole=whole)


# -- atomics ---------------------------------------------------------------------------------

RMW = {"and": "and", "or": "or", "xor": "xor", "add": "add", "fadd": "fadd", "max": "max",
       "min": "min", "umax": "umax", "umin": "umin", "exch": "xchg"}  # fmt: skip
ORDER = {"relaxed": "monotonic", "acquire": "acquire", "release": "release", "acq_rel": "acq_rel"}


def _each_lane(low, op: Op, one) -> None:
    """Run ``one(pointer, values) -> result`` for every lane whose mask is on, in order."""
    e = low.e
    cas = op.name == "tt.atomic_cas"
    names = op.operands
    mask_name = None if cas or len(names) < 3 else names[2]
    values = names[1:3] if cas else names[1:2]
    if low.check:
        one = guard.atomic(low, op, one)
    p = low.env[names[0]]
    if isinstance(p, Val):
        vals = [low.scalar(v) for v in values]
        mask = low.scalar(mask_name) if mask_name else const("i1", 1)
        low.env[op.results[0]] = _guarded(low, p, vals, mask, one)
        return
    ty = op.result_types[0]
    tensors = [low.tensor(v) for v in values]
    mask_t = low.tensor(mask_name) if mask_name else None
    used = bool(low.uses.of(op.results[0]))
    out: Buffer | None = low.alloc(ty) if used else None
    with nest(e) as g:

        def body(idx) -> None:
            vals = [g.at(t, idx) for t in tensors]
            mask = g.at(mask_t, idx) if mask_t is not None else const("i1", 1)
            result = _guarded(low, g.at(p, idx), vals, mask, one)
            if out is not None:
                out.put(g, idx, result)

        loops(g, p.shape, None, 1, body)
    low.env[op.results[0]] = out


def _guarded(low, p: Val, vals: list[Val], mask: Val, one) -> Val:
    e, ty = low.e, vals[0].ty
    if mask.kind == "c" and mask.x:
        return one(p, vals)
    slot = low.slot(ty)
    e.line(f"store {LLVM[ty]} zeroinitializer, ptr {slot}")

    def act() -> None:
        e.line(f"store {LLVM[ty]} {e.operand(one(p, vals))}, ptr {slot}")

    e.branch_if(mask, act)
    return e.wrap(ty, e.raw(f"load {LLVM[ty]}, ptr {slot}"), 0)


def _add_narrow(low, p: Val, v: Val, order: str) -> Val:
    """An atomic addition of 16-bit floats: compare-and-swap until nobody came in between."""
    e = low.e
    slot = low.slot(v.ty)
    where = e.operand(p)
    first = e.raw(f"load atomic i16, ptr {where} monotonic, align 2")
    e.line(f"store i16 {first}, ptr {slot}")
    again, done = e.fresh_label("again"), e.fresh_label("added")
    e.branch(again)
    e.mark(again)
    old = e.wrap(v.ty, e.raw(f"load i16, ptr {slot}"), 0)
    total = e.op("fadd", "f32", floats.widen(e, old), floats.widen(e, v))
    new = e.operand(floats.narrow(e, total, v.ty))
    fail = "monotonic" if order in ("monotonic", "release") else "acquire"
    pair = e.raw(f"cmpxchg ptr {where}, i16 {old.x}, i16 {new} {order} {fail}, align 2")
    e.line(f"store i16 {e.raw(f'extractvalue {{ i16, i1 }} {pair}, 0')}, ptr {slot}")
    won = e.raw(f"extractvalue {{ i16, i1 }} {pair}, 1")
    e.line(f"br i1 {won}, label %{done}, label %{again}")
    e.mark(done)
    return old


def atomic_rmw(low, op: Op) -> None:
    """tt.atomic_rmw of every kind."""
    e = low.e
    kind = op.words[0]
    order = next((ORDER[w] for w in op.words if w in ORDER), "acq_rel")
    if kind not in RMW:
        raise low.refuse(op, f"atomic operation {kind} is unknown")
    elem = op.result_types[0].elem
    if elem in FLOATS and kind not in ("fadd", "exch"):
        raise low.refuse(op, f"atomic operation {kind} compares integers, and these are {elem}")

    def one(p: Val, vals: list[Val]) -> Val:
        v = vals[0]
        if v.ty in BARE and kind == "fadd":
            return _add_narrow(low, p, v, order)
        return e.wrap(v.ty, e.raw(
            f"atomicrmw {RMW[kind]} ptr {e.operand(p)}, {ll(v.ty)} {e.operand(v)} {order}, "
            f"align {BYTES[v.ty]}"), 0)  # fmt: skip

    _each_lane(low, op, one)


def atomic_cas(low, op: Op) -> None:
    """tt.atomic_cas."""
    e = low.e
    order = next((ORDER[w] for w in op.words if w in ORDER), "acq_rel")
    fail = {"acq_rel": "acquire", "release": "monotonic"}.get(order, order)

    def one(p: Val, vals: list[Val]) -> Val:
        old, new = vals
        t = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}[BYTES[old.ty]]
        a, b = e.operand(old), e.operand(new)
        real = ll(old.ty)
        if real != t:
            a, b = (e.raw(f"bitcast {real} {x} to {t}") for x in (a, b))
        pair = e.raw(f"cmpxchg ptr {e.operand(p)}, {t} {a}, {t} {b} {order} {fail}, "
                     f"align {BYTES[old.ty]}")  # fmt: skip
        got = e.raw(f"extractvalue {{ {t}, i1 }} {pair}, 0")
        if real != t:
            got = e.raw(f"bitcast {t} {got} to {real}")
        return e.wrap(old.ty, got, 0)

    _each_lane(low, op, one)


OPS = {"tt.load": load, "tt.store": store, "tt.atomic_rmw": atomic_rmw, "tt.atomic_cas": atomic_cas}
