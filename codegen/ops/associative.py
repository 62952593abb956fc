"""Scans with the author's operator, over one or several operands, live elements only.

The operator is a region of scalar operations: its arguments are the elements of the left and then
those of the right, it yields as many, and it sees nothing from outside. Triton knows no neutral
element of it; where dead elements would be met before live ones a flag is scanned along, and the
operator passes over what is not flagged.
"""

from __future__ import annotations

from codegen.ir import DType, Function, Op, Region, Type, f32
from codegen.ops.base import ATOM, LOWEST, IRError, OpDef, no_fp8, says


def element_type(dtype: DType) -> DType:
    """What the operator computes in: 16-bit floats are scanned in fp32 and rounded once."""
    return f32 if dtype.is_float and dtype.bits == 16 else dtype


def _infer(fn: Function, op: Op) -> list[Type]:
    first = op.operands[0]
    for v in op.operands:
        if v.type.rank == 0:
            raise IRError(f"{says(v, 'the operand')}: scans take tiles or vectors")
        same = v.type.rank == first.type.rank and all(
            a.same_shape(b) for a, b in zip(v.type.axes, first.type.axes, strict=True)
        )
        if not same or v.type.orient != first.type.orient:
            raise IRError(
                f"{says(first, 'the first')} and {says(v, 'another operand')}: what is scanned "
                "together has one shape",
                "tk.broadcast_row or tk.broadcast_col makes a tile of a vector",
            )
    axes = first.type.axes
    for v in op.operands[1:]:
        axes = tuple(a.meet(b) for a, b in zip(axes, v.type.axes, strict=True))
    no_fp8(op)
    _check_region(op)
    return [v.type.like(axes=axes) for v in op.operands]


def _check_region(op: Op) -> None:
    from codegen.ops import TABLE

    region, kinds = op.regions[0], [element_type(v.type.dtype) for v in op.operands]
    known = set(region.args)
    assert [a.type.dtype for a in region.args] == kinds * 2
    for inner in region.ops:
        outside = [v for v in inner.operands if v not in known]
        if outside or inner.attr_symbols():
            who = outside[0].hint if outside and outside[0].hint else "a value"
            who = str(sorted(map(str, inner.attr_symbols()))[0]) if not outside else who
            raise IRError(
                f"the operator reads {who}, which is not one of its elements",
                "scan it along as one more operand, for example tk.full(shape, value)",
            )
        if inner.kind not in ("const", "yield", "index") and not TABLE[inner.kind].elementwise:
            raise IRError(
                f"the operator holds {inner.kind}; it combines elements, by elementwise verbs only",
                "tk.where instead of a branch, and nothing that loads, stores or loops",
            )
        known |= set(inner.results)
    got = [v.type for v in region.terminator.operands]
    if got != [Type(k) for k in kinds]:
        raise IRError(
            f"the operator gives ({', '.join(map(str, got))}) for elements of "
            f"({', '.join(map(str, kinds))})",
            "it returns one number for each operand, of the operand's type",
        )


def _flagged(op: Op) -> bool:
    """True if dead elements are met before live ones."""
    axis = op.result.type.axes[op.attrs["axis"]]
    return not axis.full and (op.attrs["reverse"] or not axis.simple)


def _emit(e, op: Op) -> None:
    region: Region = op.regions[0]
    flagged = _flagged(op)
    sources, casts = [], []
    for v, result in zip(op.operands, op.results, strict=True):
        wide = element_type(v.type.dtype) != v.type.dtype
        sources.append(f"{e.ref(v, ATOM)}.to(tl.float32)" if wide else e.ref(v, LOWEST))
        casts.append(f".to({e.dtype(result.type.dtype)})" if wide else "")
    if flagged:
        mask = e.live_mask(op.result.type, (op.attrs["axis"],))
        sources.append(f"tl.broadcast_to({mask}, {e.shape(op.result.type)}).to(tl.int32)")
    word = e.function("combine", region, _passing_over if flagged else None, op.loc)
    tail = ", reverse=True" if op.attrs["reverse"] else ""
    listed = f"({', '.join(sources)})" if len(sources) > 1 else sources[0]
    body = f"tl.associative_scan({listed}, {op.attrs['axis']}, {word}{tail})"
    e.define(op, body, casts, 1 if flagged else 0)


def _passing_over(parameters: list[str], out: list[str], fresh):
    """Parameters, lines and results of an operator that passes over what is not flagged."""
    half = len(parameters) // 2
    left, right = parameters[:half], parameters[half:]
    a, b = fresh("left_live"), fresh("right_live")
    lines, names = [], []
    for x, y, both in zip(left, right, out, strict=True):
        names.append(fresh("out"))
        lines.append(f"{names[-1]} = tl.where({b} == 0, {x}, {both})")
        lines.append(f"{names[-1]} = tl.where({a} == 0, {y}, {names[-1]})")
    return [*left, a, *right, b], lines, [*names, f"{a} | {b}"]


ASSOCIATIVE_SCAN = OpDef("associative_scan", _infer, _emit, isolated=True)
