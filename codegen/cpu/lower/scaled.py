"""tt.dot_scaled: operands in small formats with a power of two (or an fp8 number) per group.

Both are unpacked to fp32, in which every such number and nearly every scaled one is exact, and
multiplied as fp32 matrices.
"""

from __future__ import annotations

from codegen.cpu import floats
from codegen.cpu.emit import Emit, Val, const
from codegen.cpu.lower import dot, shape
from codegen.cpu.lower.elementwise import vector
from codegen.cpu.lower.tensor import Map, Tensor
from codegen.cpu.ttir import Op, Type


def _i(value: int) -> Val:
    return const("i32", value)


def _float(e: Emit, bits: Val) -> Val:
    return e.cast("bitcast", vector(e, bits), "f32")


def _power(e: Emit, v: Val) -> Val:
    """A scale: 2**(byte - 127), where 255 is NaN."""
    byte = e.extend(vector(e, v), "i32", signed=False)
    bits = e.op("shl", "i32", byte, _i(23))
    bits = e.select(e.op("icmp eq", "i32", byte, _i(0), out="i1"), _i(1 << 22), bits)
    return _float(
        e, e.select(e.op("icmp eq", "i32", byte, _i(255), out="i1"), _i(0x7FC00000), bits)
    )


def _e2m1(e: Emit, v: Val) -> Val:
    """Four bits: sign, two of exponent, one of mantissa; 0, 0.5, 1, 1.5, 2, 3, 4, 6."""
    bits = e.extend(vector(e, v), "i32", signed=False)
    size = e.op("shl", "i32", e.op("and", "i32", bits, _i(7)), _i(22))
    sign = e.op("shl", "i32", e.op("and", "i32", bits, _i(8)), _i(28))
    # Its exponent is rebased by a multiplication, which normalises the subnormal 0.5 as well.
    out = e.op("fmul", "f32", _float(e, size), const("f32", 2.0**126))
    return _float(e, e.op("or", "i32", e.cast("bitcast", out, "i32"), sign))


def _map(t: Tensor, elem: str, name: str, fn) -> Tensor:
    return Map(t.type.with_elem(elem), name, fn, [t], True)


def _unpack(low, t: Tensor, axis: int) -> Tensor:
    """Two four-bit numbers per byte along an axis, the low half first."""
    t = low.materialise(t)

    def nibble(by: int) -> Tensor:
        def take(e: Emit, v: Val) -> Val:
            return e.op("and", "i8", e.op("lshr", "i8", v, const("i8", by)), const("i8", 15))

        return _map(t, "i8", "nibble", take)

    rank = len(t.shape)
    both = shape.Join(Type("i8", (*t.shape, 2), True), nibble(0), nibble(4))
    order = [*range(axis + 1), rank, *range(axis + 1, rank)]
    moved = shape.transpose(Type("i8", tuple(both.shape[k] for k in order), True), both, order)
    to = tuple(d * 2 if k == axis else d for k, d in enumerate(t.shape))
    return _map(shape.reshape(Type("i8", to, True), moved), "f32", "e2m1", _e2m1)


def _spread(low, scale: Tensor, inner: int) -> Tensor:
    """[..., M, groups] scales as [..., M, inner], each repeated over its group."""
    if scale.type.elem == "f8E4M3FN":
        scale = _map(scale, "f32", "widen", floats.widen)
    else:
        scale = _map(scale, "f32", "scale", _power)
    *outer, groups = scale.shape
    scale = low.materialise(scale)
    wide = shape.expand_dims(Type("f32", (*outer, groups, 1), True), scale, len(outer) + 1)
    wide = shape.broadcast(Type("f32", (*outer, groups, inner // groups), True), wide)
    return shape.reshape(Type("f32", (*outer, inner), True), wide)


def _operand(low, t: Tensor, scale: Tensor | None, fmt: str, axis: int, inner: int) -> Tensor:
    """An operand in fp32. ``axis`` is the packed one of four-bit numbers, ``inner`` the axis that
    is summed over; scales have that axis last."""
    t = _unpack(low, t, axis) if fmt == "e2m1" else _map(t, "f32", "widen", floats.widen)
    if scale is not None:
        rank = len(t.shape)
        scale = _spread(low, scale, t.shape[inner])
        if inner != rank - 1:
            order = [*range(rank - 2), rank - 1, rank - 2]
            scale = shape.transpose(Type("f32", t.shape, True), scale, order)
        t = Map(t.type, "scale", lambda e, a, b: e.op("fmul", "f32", a, b), [t, scale], True)
    return low.materialise(t)


def dot_scaled(low, op: Op) -> None:
    """tt.dot_scaled."""
    sides = " ".join(op.types).split("*")
    scaled = ["," in sides[0], "," in sides[1].split("->")[0]]
    names = list(op.operands)
    parts = []
    for has in scaled:
        t = low.tensor(names.pop(0))
        parts.append((t, low.tensor(names.pop(0)) if has else None))
    words = [w for w in op.words if w not in ("=", ",")]
    formats = [words[words.index(side) + 1] for side in ("lhs", "rhs")]
    rank = len(parts[0][0].shape)
    packs = [op.attrs.get(f"{side}_k_pack", "true") != "false" for side in ("lhs", "rhs")]
    a = _operand(low, *parts[0], formats[0], rank - 1 if packs[0] else rank - 2, rank - 1)
    b = _operand(low, *parts[1], formats[1], rank - 2 if packs[1] else rank - 1, rank - 2)
    sides = [f"{op.results[0]}.{side}" for side in ("lhs", "rhs")]
    product = Op("tt.dot", op.results, sides + names, result_types=op.result_types, loc=op.loc)
    product.block, product.index = op.block, op.index
    low.env.update(zip(sides, (a, b), strict=True))
    dot.dot(low, product)


OPS = {"tt.dot_scaled": dot_scaled}
