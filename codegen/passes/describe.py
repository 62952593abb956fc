"""Tensor descriptors: which accesses go through one, and whether a loop can be split by warp.

A descriptor knows a tensor's shape, strides and the block that moves. What lies outside the tensor
reads as zero and is not written, which is a mask for nothing. So an access goes through one where
the elements of its block that are dead are exactly those outside the tensor, and where its tensor
is only read or only written. On Hopper and Blackwell it then becomes a bulk copy.

Triton 3.7 splits a loop by warp where one loop holds the matrix products and every tile of the
kernel comes through a descriptor; of other kernels its pass fails, so that they are not asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import sympy

from codegen.ir import Function, Op, Region, Type
from codegen.ops.mma import exact

#: Triton's: a side of the block that one bulk copy moves.
_MOST = 256


def describe_accesses(fn: Function) -> None:
    """Marks loads and stores ``described`` and settles ``fn.schedule``; nothing without one."""
    schedule = fn.schedule
    if schedule is None:
        return
    unfit: dict[str, dict[str, int]] = {}  # why: tensors, each with the line of its first access
    if schedule.described:
        written = {o.attrs["param"] for o in fn.body.walk() if o.kind in _WRITES}
        for op in fn.body.walk():
            if op.kind not in ("load", "store") or not op.attrs["tile"]:
                continue
            type_ = op.result.type if op.kind == "load" else op.operands[0].type
            why = _unfit(fn, op, type_, written)
            if why:
                if type_.rank == 2:
                    unfit.setdefault(why, {}).setdefault(op.attrs["param"], op.loc.line)
            else:
                op.attrs["described"] = True
    reasons = [
        f"{', '.join(f'{name} in line {line}' for name, line in names.items())}: {why}"
        for why, names in unfit.items()
    ]
    described = [o for o in fn.body.walk() if o.attrs.get("described")]
    if any(set(_outer(o)) - {sympy.Integer(0)} for o in described):
        # Their descriptors belong to a task: a program that walks over tasks would make them anew.
        schedule = replace(schedule, persistent=False)
    if schedule.specialise:
        why = _unspecialised(fn, reasons, bool(described))
        if why:
            schedule = replace(
                schedule, specialise=False, notes=(*schedule.notes, f"not specialised: {why}")
            )
        else:
            schedule = replace(schedule, warps=4)
    fn.schedule = replace(schedule, described=bool(described))


_WRITES = ("store", "store_add", "store_min", "store_max", "scatter_rows", "scatter_add_rows")


def _outer(op: Op) -> Iterator[object]:
    tiled = {d for which in op.attrs["tile"] for d in which}
    return (s for d, s in enumerate(op.attrs["start"]) if d not in tiled)


def _unfit(fn: Function, op: Op, type_: Type, written: set[str]) -> str:
    """Why this access cannot go through a descriptor, or nothing."""
    param = fn.param(op.attrs["param"])
    if type_.rank != 2:
        return "a vector"
    if param.pair:
        return "its numbers are complex"
    if any(len(which) != 1 for which in op.attrs["tile"]):
        return "several dimensions are one side"
    dims = [which[0] for which in op.attrs["tile"]]
    if dims[1] != len(param.dims) - 1 or dims[0] >= dims[1] or not param.unit_inner:
        return "its columns are not the innermost dimension"
    if param.dtype.bits == 1 or (op.kind == "load") == (param.name in written):
        return "it is read and written"
    if param.role == "inout":
        return "it is read and written"
    if any(any(c) for d, c in enumerate(op.attrs["checks"]) if d not in dims):
        return "a coordinate may lie outside the tensor"
    known = set(fn.dims)
    fixed = known | {s for s, _ in fn.grid}
    if any(s.free_symbols - fixed for d, s in enumerate(op.attrs["start"]) if d not in dims):
        return "its place changes in the loop, and a descriptor has one"
    for axis, d, limit in zip(type_.axes, dims, op.attrs["limit"], strict=True):
        f = axis.factors[0]
        start = op.attrs["start"][d]
        end = param.dims[d] if limit is None else limit
        if end.free_symbols - known:
            return f"it ends at {end}"
        if f.block > _MOST:
            return f"a side of {f.block}: a bulk copy moves at most {_MOST}"
        # Dead elements must be those outside, whatever the start.
        short = f.side < f.block and not (start == 0 and end.is_Integer and end <= f.side)
        others = [b for b in f.bounds if not _same(b + start, end) and not _same(b, end)]
        constant = [b for b in others if not (b.is_Integer and (b >= f.side or b == end))]
        if short or constant:
            return "its side is no power of two or ends before the tensor"
    return ""


def _same(a, b) -> bool:
    return sympy.expand(a - b) == 0


def _unspecialised(fn: Function, reasons: list[str], described: bool) -> str:
    """Why Triton is not asked to split the pipelined loop by warp, or nothing."""
    if reasons:
        return "; ".join(reasons)
    if not described:
        return "its tiles do not go through descriptors"
    loops = [o for o in fn.body.walk() if o.kind == "for"]
    if not loops:
        return "there is one iteration"
    if len(loops) != 1:
        return f"it has {len(loops)} loops, and Triton splits a loop that is alone"
    if any(o.kind == "if" for o in fn.body.walk()):
        return "it branches at run time"
    body = loops[0].regions[0]
    products = [o for o in body.walk() if o.kind == "mma"]
    if not products:
        return "Triton splits loops with a matrix product only"
    if all(map(exact, products)):
        return "its products are exact fp32, which is no matrix instruction's"
    pointers = [o for o in _loads(fn.body) if not o.attrs.get("described")]
    inside = set(map(id, body.walk()))
    if any(id(o) in inside for o in pointers):
        return f"{pointers[0].attrs['param']} is loaded through pointers in the loop"
    return ""


def _loads(region: Region) -> Iterator[Op]:
    return (o for o in region.walk() if o.kind in ("load", "gather_rows") and o.attrs["tile"])
