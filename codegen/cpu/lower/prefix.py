"""Masks that keep the first elements along an axis, as counts.

Where a block is padded, what a product computes beyond the mask of the only store that shows it
cannot be seen, and what both operands were loaded as zero for adds nothing. Those rows, columns and
inner steps are left out: exactly the same results, without multiplying by what is not there.
"""

from __future__ import annotations

from codegen.cpu.emit import INT_BITS, Val, const
from codegen.cpu.lower.elementwise import TABLE
from codegen.cpu.lower.tensor import ZERO, Load, Map, Reindex, Tensor, nest
from codegen.cpu.ttir import Op

_PURE = ("arith.cmpi", "arith.andi", "arith.addi", "arith.subi", "arith.muli", "tt.expand_dims",
         "tt.broadcast", "tt.splat", "tt.make_range", "arith.constant", "arith.extsi")  # fmt: skip
_KEEPS_ZERO = ("arith.extf", "arith.truncf", "tt.fp_to_fp", "arith.extsi", "widen")
_WIDER = ("arith.extsi", "arith.extui")
NO, YES = const("i1", 0), const("i1", 1)
_LESS = {"slt": 0, "sle": 1}
_MORE = {"sgt": 0, "sge": 1}


def smaller(e, a: Val | None, b: Val | None) -> Val | None:
    """The smaller of two bounds, None being no bound."""
    if a is None or b is None:
        return b if a is None else a
    if a.kind == "c" and b.kind == "c":
        return a if a.x < b.x else b
    return e.call("llvm.smin", "i32", a, b)


def larger(e, a: Val, b: Val) -> Val:
    """The larger of two bounds."""
    if a.kind == "c" and b.kind == "c":
        return a if a.x > b.x else b
    return e.call("llvm.smax", "i32", a, b)


def up_to(e, v: Val, step: int) -> Val:
    """A count rounded up to a multiple of a power of two."""
    v = e.add(v, const("i32", step - 1))
    if v.kind == "c":
        return const("i32", v.x & -step)
    return e.op("and", "i32", v, const("i32", -step))


def count(low, mask: Tensor, axis: int) -> Val | None:
    """How many leading indices of an axis a mask can be on for, if a comparison says so."""
    if isinstance(mask, Reindex):
        source = mask.strides[axis] if mask.strides else None
        return None if source is None else count(low, mask.src, source)
    if not isinstance(mask, Map) or mask.reads:
        return None
    if mask.op_name == "arith.andi":
        a, b = (count(low, t, axis) for t in mask.inputs)
        return smaller(low.e, a, b)
    if mask.op_name == "arith.cmpi":
        n, plain = _compared(low, mask, axis)
        if n is None or plain.is_const(1):
            return n
        return low.e.select(plain, n, const("i32", mask.shape[axis]))
    return None


def _compared(low, cmp: Map, axis: int) -> tuple[Val | None, Val]:
    """``ramp < scalar`` (or turned round) where nothing depends on the other axes.

    Gives the count of leading indices where it holds, and whether it holds for no other: a ramp
    that passes the end of its integers begins again at the other end.
    """
    a, b = cmp.inputs
    if cmp.word in _MORE:
        a, b, extra = b, a, _MORE[cmp.word]
    elif cmp.word in _LESS:
        extra = _LESS[cmp.word]
    else:
        return None, NO
    others = [k for k, d in enumerate(cmp.shape) if k != axis and d > 1]
    if a.stride(axis) != 1 or b.stride(axis) != 0:
        return None, NO
    if any(t.stride(k) != 0 for t in (a, b) for k in others):
        return None, NO
    e, size = low.e, cmp.shape[axis]
    with nest(e) as g:
        zero = tuple(ZERO for _ in cmp.shape)
        first, end = (e.extend(g.at(t, zero), "i64") for t in (a, b))
        if not (first.uniform and end.uniform):
            return None, NO
        plain = _plain(g, a, b, axis)
        if plain is None:
            return None, NO
        if first.kind == end.kind == "c":
            return const("i32", min(max(end.x - first.x + extra, 0), size)), plain
        n = e.call("llvm.ssub.sat", "i64", end, first)
        n = e.call("llvm.sadd.sat", "i64", n, const("i64", extra)) if extra else n
        n = e.call("llvm.smax", "i64", n, const("i64", 0))
        n = e.call("llvm.smin", "i64", n, const("i64", size))
        return e.cast("trunc", n, "i32"), plain


def _plain(g, ramp: Tensor, bound: Tensor, axis: int) -> Val | None:
    """Do a ramp, and what it and its bound were widened from, stay clear of the wrap?

    None where that takes more than a look at both ends.
    """
    e, out = g.e, YES
    pending, done = [(ramp, axis, True), (bound, axis, False)], set()
    while pending:
        t, k, look = pending.pop()
        if (id(t), k, look) in done:
            continue
        done.add((id(t), k, look))
        if isinstance(t, Reindex):
            if not t.strides:
                return None
            if t.strides[k] is not None:
                pending.append((t.src, t.strides[k], look))
            continue
        pending += [(x, k, False) for x in t.inputs]
        wider = isinstance(t, Map) and t.op_name in _WIDER
        step = t.stride(k)
        if step == 0 or not (wider or look):
            continue
        bits = INT_BITS[t.inputs[0].type.elem if wider else t.type.elem]
        others = (d for d in range(len(t.shape)) if d != k and t.shape[d] > 1)
        if (
            step is None
            or abs(step) * (t.shape[k] - 1) >= 1 << (bits - 1)
            or any(t.stride(d) != 0 for d in others)
        ):
            return None
        ends = [ZERO] * len(t.shape), [ZERO] * len(t.shape)
        ends[step > 0][k] = const("i32", t.shape[k] - 1)
        low, high = (g.at(t, tuple(at)) for at in ends)
        if low.kind == high.kind == "c":
            if low.x > high.x:
                return NO
        else:
            fine = e.op("icmp sle", low.ty, low, high, out="i1")
            out = fine if out is YES else e.op("and", "i1", out, fine)
    return out


def whole(low, tensors, axis: int | None) -> tuple[dict[int, int], Val] | None:
    """The comparisons inside tensors that hold up to a count along an axis, and that count."""
    found: dict[int, int] = {}
    bound: Val | None = None
    pending = [] if axis is None else [(t, axis) for t in tensors if t is not None]
    seen_already = set()
    while pending:
        t, k = pending.pop()
        if (id(t), k) in seen_already:
            continue
        seen_already.add((id(t), k))
        if isinstance(t, Reindex):
            if t.strides and t.strides[k] is not None:
                pending.append((t.src, t.strides[k]))
        elif isinstance(t, Map) and t.op_name == "arith.cmpi":
            if id(t) in found or t.reads:
                continue
            n, plain = _compared(low, t, k)
            if n is not None:
                found[id(t)] = k
                bound = smaller(low.e, bound, low.e.select(plain, n, ZERO))
        elif isinstance(t, (Map, Load)):
            pending += [(x, k) for x in t.inputs]
    return None if bound is None or bound.kind == "c" else (found, bound)


def certain(low, tensors) -> tuple[set[int], Val] | None:
    """The comparisons of two ramps inside tensors, and whether they hold at every index."""
    found: set[int] = set()
    sure = YES
    pending, done = list(tensors), set()
    while pending:
        t = pending.pop()
        if id(t) in done:
            continue
        done.add(id(t))
        if isinstance(t, Map) and t.op_name == "arith.cmpi":
            n = None if t.reads else _everywhere(low, t)
            if n is not None and not (n.kind == "c" and not n.x):
                found.add(id(t))
                sure = n if sure is YES else low.e.op("and", "i1", sure, n)
        elif isinstance(t, (Map, Load, Reindex)):
            pending += t.inputs
    return None if not found or sure is YES else (found, sure)


def _everywhere(low, cmp: Map) -> Val | None:
    """Does a comparison of ramps along different axes hold at the corner where it is closest?"""
    a, b = cmp.inputs
    if cmp.word not in _LESS and cmp.word not in _MORE:
        return None
    less, e = cmp.word in _LESS, low.e
    corners, out = [], YES
    with nest(e) as g:
        for t, high in ((a, less), (b, not less)):
            axes = [k for k in range(len(t.shape)) if t.shape[k] > 1 and t.stride(k) != 0]
            if len(axes) > 1 or (axes and t.stride(axes[0]) is None):
                return None
            at = [ZERO] * len(t.shape)
            if axes:
                plain = _plain(g, t, t, axes[0])
                if plain is None:
                    return None
                out = plain if out is YES else e.op("and", "i1", out, plain)
                if (t.stride(axes[0]) > 0) == high:
                    at[axes[0]] = const("i32", t.shape[axes[0]] - 1)
            corners.append(g.at(t, tuple(at)))
        x, y = corners
        if not (x.uniform and y.uniform):
            return None
        if x.kind == y.kind == "c":
            extra = {**_LESS, **_MORE}[cmp.word]
            holds = const("i1", int((y.x - x.x if less else x.x - y.x) + extra > 0))
        else:
            holds = e.op(f"icmp {cmp.word}", x.ty, x, y, out="i1")
        return holds if out is YES else e.op("and", "i1", out, holds)


def nonzero(low, t: Tensor, axis: int) -> Val | None:
    """How many leading indices of an axis are not all zero by the mask of a load."""
    while not isinstance(t, Load):
        if isinstance(t, Map) and t.op_name in _KEEPS_ZERO and len(t.inputs) == 1:
            t = t.inputs[0]
        elif isinstance(t, Reindex) and t.strides and t.strides[axis] is not None:
            t, axis = t.src, t.strides[axis]
        else:
            return None
    if t.mask is None or (t.other is not None and t.other.constant() != 0):
        return None
    return count(low, t.mask, axis)


def seen(low, name: str, axes: tuple[int, ...]) -> list[Val | None]:
    """Per axis, how many leading indices of a value the stores it ends in can show."""
    masks: list[str] = []
    if not _shown(low, name, masks, set()) or not masks:
        return [None] * len(axes)
    return [_longest(low, masks, axis) for axis in axes]


def _shown(low, name: str, masks: list[str], done: set[str]) -> bool:
    """Collect the masks of the stores that alone show a value; False if it is seen otherwise."""
    if name in done:
        return True
    done.add(name)
    for op in low.uses.of(name):
        follow: list[str] = []
        if op.name == "tt.store":
            if op.operands.index(name) != 1 or len(op.operands) < 3 or op.operands[2] == name:
                return False
            masks.append(op.operands[2])
        elif op.name in TABLE or (op.name == "tt.dot" and name not in op.operands[:2]):
            follow = op.results
        elif op.name == "strip.for":
            follow = [op.binds[1 + k] for k, v in enumerate(op.operands) if v == name]
        elif op.name == "strip.yield":
            owner = op.block.parent
            follow = [r for r, v in zip(owner.results, op.operands, strict=True) if v == name]
        elif (carried := _carried(op, name)) is not None:
            follow = carried
        else:
            return False
        if not all(_shown(low, v, masks, done) for v in follow):
            return False
    return True


def _carried(op: Op, name: str) -> list[str] | None:
    """What a value becomes that a loop is given or hands on; None if the op is neither."""
    if op.name == "scf.for" and name not in op.operands[:3]:
        loop, values = op, op.operands[3:]
    elif op.name == "scf.yield" and op.block.parent is not None:
        loop, values = op.block.parent, op.operands
        if loop.name != "scf.for":
            return None
    else:
        return None
    ks = [k for k, v in enumerate(values) if v == name]
    return [v for k in ks for v in (loop.binds[1 + k], loop.results[k])]


def seen_rows(low, names: list[str]) -> Val | None:
    """How many leading rows of the results of a loop over strips the stores they end in can show.

    Row i of all of them depends on row i of what the strips read only.
    """
    masks: list[str] = []
    pending, done = list(names), set()
    while pending:
        name = pending.pop()
        if name in done:
            continue
        done.add(name)
        for op in low.uses.of(name):
            if op.name == "tt.store":
                if op.operands.index(name) != 1 or len(op.operands) < 3 or op.operands[2] == name:
                    return None
                masks.append(op.operands[2])
            elif op.name == "strip.for" and "folds" not in op.attrs:
                pending += op.results
            elif (carried := _carried(op, name)) is not None:
                pending += carried
            elif (
                op.name in TABLE
                or (op.name == "tt.dot" and name != op.operands[1])
                or (
                    op.name in ("tt.expand_dims", "tt.reduce", "tt.scan")
                    and op.attr_int("axis") > 0
                )
                or (op.name == "tt.broadcast" and _tall(low, name))
            ):
                pending += op.results
            else:
                return None
    return _longest(low, masks, 0) if masks else None


def _tall(low, name: str) -> bool:
    """Has a value more than one row?"""
    owner = low.uses.defs.get(name)
    if isinstance(owner, Op) and name in owner.results:
        return owner.result_types[owner.results.index(name)].shape[0] > 1
    return False


def _longest(low, masks: list[str], axis: int) -> Val | None:
    """How many leading indices of an axis one of several masks can be on for."""
    known = set(low.env)
    bound: Val | None = ZERO
    for mask in masks:
        n = _named(low, mask, axis)
        bound = None if n is None or bound is None else larger(low.e, bound, n)
    for early in low.env.keys() - known:  # computed in this block; the next may not be inside it
        del low.env[early]
    return bound


def _named(low, name: str, axis: int) -> Val | None:
    """``count`` of a mask by name, which may be computed later than here."""
    if _ready(low, name):
        mask = low.env[name]
        return count(low, mask, axis) if isinstance(mask, Tensor) else None
    op = low.uses.defs.get(name)
    if isinstance(op, Op) and op.name == "arith.andi":
        return smaller(low.e, *[_named(low, v, axis) for v in op.operands])
    return None


def _ready(low, name: str) -> bool:
    """Is a value known here, or can it be, from index arithmetic alone? It is lowered once more
    in its own place, before anything there uses it, and forgotten until then."""
    if name in low.env:
        return True
    op = low.uses.defs.get(name)
    if not isinstance(op, Op) or op.name not in _PURE:
        return False
    if not all(_ready(low, v) for v in op.operands):
        return False
    low.op(op)
    return True
