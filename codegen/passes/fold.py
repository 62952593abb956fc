"""Folding: arithmetic on literals, identities that hold for every float, doubled structure, signs.

A sign moves from an operand, which would be a tile of its own, to the operation that reads it: the
conjugate of a matrix then needs no second matrix.
"""

from __future__ import annotations

import math

import numpy as np

from codegen.ir import Function, Op, Region, Value
from codegen.ops import TABLE
from codegen.ops.elementwise import integers
from codegen.rewrite import build, replace_uses


def fold(fn: Function) -> None:
    _visit(fn, fn.body)


def _visit(fn: Function, region: Region) -> None:
    mapping: dict[Value, Value] = {}
    out: list[Op] = []
    for op in region.ops:
        op.operands = [mapping.get(v, v) for v in op.operands]
        for inner in op.regions:
            replace_uses(inner, mapping)
            _visit(fn, inner)
        new = _literal(fn, op)
        if new is not None:
            new.result.hint = op.result.hint
            mapping[op.result] = new.result
            out.append(new)
            continue
        same = _identity(op)
        if same is not None and same.type == op.result.type:
            mapping[op.result] = same
            if op.result.hint and not same.hint:
                same.hint = op.result.hint
            continue
        signed = _signs(fn, op)
        if signed and signed[-1].result.type == op.result.type:
            signed[-1].result.hint = op.result.hint
            mapping[op.result] = signed[-1].result
            signed[-1].hook = op.hook
            out += signed
            continue
        out.append(op)
    region.ops = out


def _number(value: Value) -> float | int | bool | None:
    if value.op is not None and value.op.kind in ("const", "full"):
        return value.op.attrs["value"]  # type: ignore[return-value]
    return None


def _literal(fn: Function, op: Op) -> Op | None:
    definition = TABLE[op.kind]
    numbers = [_number(v) for v in op.operands]
    if op.kind == "cast" and numbers and numbers[0] is not None:
        value: object = numbers[0]
        dtype = op.attrs["dtype"]
        if dtype.is_float:
            if dtype.is_fp8:
                return None
            value = float(numbers[0])
            if dtype.bits == 16 and value not in (0.0, 1.0, float("inf"), float("-inf")):
                return None  # rounding is the machine's business
        elif dtype.kind == "int" and np.isfinite(numbers[0]):
            wrapped = int(numbers[0]) % 2**dtype.bits
            value = wrapped - (2**dtype.bits if wrapped > dtype.limits[1] else 0)
        else:
            return None
    elif definition.elementwise and definition.numpy and op.operands and None not in numbers:
        dtype = op.operands[-1].type.dtype
        if dtype.is_float and dtype.bits == 16:
            return None
        kind: type[np.generic] = np.float32 if dtype.is_float else np.bool_
        if dtype.kind == "int":
            kind = integers(dtype)
        with np.errstate(all="ignore"):
            value = definition.numpy(*[np.array(n).astype(kind) for n in numbers])
        out = op.result.type.dtype.kind
        value = {"float": float, "int": int, "bool": bool}[out](value)
    else:
        return None
    result = op.result.type
    if not result.rank:
        return build(fn, "const", [], {"value": value, "dtype": result.dtype}, loc=op.loc)
    attrs = {"value": value, "dtype": result.dtype, "axes": result.axes, "orient": result.orient}
    return build(fn, "full", [], attrs, loc=op.loc)


def _positive_zero(number: float | int | bool | None) -> bool:
    # -0.0 - 0.0 is -0.0, but -0.0 + 0.0 and -0.0 - -0.0 are 0.0.
    return number == 0 and math.copysign(1, number) > 0


def _identity(op: Op) -> Value | None:
    """The operand that ``op`` returns unchanged, bit for bit, whatever it is."""
    values = op.operands
    if op.kind in ("mul", "div") and _number(values[1]) == 1 and values[0].type.rank:
        return values[0]
    if op.kind == "mul" and _number(values[0]) == 1 and values[1].type.rank:
        return values[1]
    if op.kind == "cast" and values[0].type.dtype == op.attrs["dtype"]:
        return values[0]
    if op.kind == "transpose" and values[0].op is not None and values[0].op.kind == "transpose":
        return values[0].op.operands[0]
    if op.kind == "neg" and (inner := _negated(values[0])) is not None:
        return inner
    if op.kind == "sub" and values[0].type.rank and _positive_zero(_number(values[1])):
        return values[0]
    if op.kind == "fill_dead" and values[0].type.full:
        return values[0]
    return None


def _negated(value: Value) -> Value | None:
    """The float x of a value that is -x."""
    op = value.op
    if op is not None and op.kind == "neg" and value.type.dtype.is_float:
        return op.operands[0]
    return None


#: a + -b is a - b, and the reverse, bit for bit.
_OTHER = {"add": "sub", "sub": "add"}


def _signs(fn: Function, op: Op) -> list[Op]:
    """What takes the place of ``op`` with fewer signs among its operands; the last is its result.

    -a @ -b is a @ b, x - -y is x + y, x - y * -z is x + y * z, x * -y + z is z - x * y, exactly.
    """
    values = op.operands
    if op.kind == "mma":
        left, right = _negated(values[0]), _negated(values[1])
        if left is not None and right is not None:
            return [build(fn, "mma", [left, right, *values[2:]], op.attrs, loc=op.loc)]
    if op.kind in _OTHER:
        last = _positive(fn, values[1])
        if last:
            new = build(fn, _OTHER[op.kind], [values[0], last[0]], op.attrs, loc=op.loc)
            return [*last[1:], new]
        first = _positive(fn, values[0]) if op.kind == "add" else ()
        if first:
            return [*first[1:], build(fn, "sub", [values[1], first[0]], op.attrs, loc=op.loc)]
    return []


def _positive(fn: Function, value: Value) -> tuple:
    """x for a value of -x, or for one of y * -z the product y * z and the operation that it is."""
    if (x := _negated(value)) is not None:
        return (x,) if x.type == value.type else ()
    product = value.op
    if product is None or product.kind != "mul":
        return ()
    for k, v in enumerate(product.operands):
        if (x := _negated(v)) is not None:
            factors = list(product.operands)
            factors[k] = x
            new = build(fn, "mul", factors, product.attrs, loc=product.loc)
            new.result.hint, new.hook = product.result.hint, product.hook
            return (new.result, new) if new.result.type == value.type else ()
    return ()
