"""The time of a kernel from its cost alone: the largest of what its parts take."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from codegen.cost import Cost, Work, evaluate
from codegen.ir import Function
from tkpy.pipeline.device import Device


def roofline_seconds(cost: Cost, sizes: Mapping[str, int], device: Device) -> tuple[float, str]:
    """Seconds at the least, and what binds: products, arithmetic, special, memory or cache.

    Arithmetic and special functions share the issue of a warp, so they add up.
    """
    types = {w.dtype.name for w in cost.works if w.kind == "matrix"}
    vector = cost.number("vector", sizes) / device.vector
    special = cost.number("special", sizes) / device.special
    moved = cost.number("load", sizes) + cost.number("store", sizes)
    parts = {
        "products": sum(cost.number("matrix", sizes, t) / device.products(t) for t in types),
        "arithmetic" if vector >= special else "special": vector + special,
        "memory": evaluate(cost.bytes(), sizes) / device.dram,
        "cache": moved / device.l2,
    }
    name = max(parts, key=lambda k: parts[k])
    return parts[name], name


#: Seconds to start a program, and one tile operation, on a CPU: what small tiles cost.
_PROGRAM, _OPERATION = 0.3e-6, 40e-9
#: Bytes of tiles that stay close to a core, and that stay in its nearest cache.
_NEAR = 1 << 20
_NEAREST = 1 << 16
_DIVISIONS = ("div", "div_rn", "sqrt", "rsqrt")


def cpu_seconds(fn: Function, cost: Cost, sizes: Mapping[str, int], device: Device) -> float:
    """Seconds of a kernel on this CPU; ``device`` is ``probe.this_cpu()``.

    Memory, products, arithmetic and special functions of a core follow each other: a tile is read
    whole before what is made of it, and a core that works on a tile in its nearest cache asks
    memory for nothing. A program without loops and products asks for its next rows while it works
    on some (``codegen.cpu.rows``), so that memory and work hide each other. What a program loads
    comes from a cache, each tensor once from memory; operands and sum of a product that do not fit
    the nearest cache are gone over once more. Programs and tile operations cost something each,
    cores beyond the programs idle, and tiles larger than a core's cache are moved at the speed of
    memory.
    """
    types = {w.dtype.name for w in cost.works if w.kind == "matrix"}
    matrix = sum(cost.number("matrix", sizes, t) / device.products(t) for t in types)
    vector = cost.number("vector", sizes) / device.vector
    special = sum(
        evaluate(w.total(), sizes)
        / (device.division if w.op.kind in _DIVISIONS else device.special)
        for w in cost.works
        if w.kind == "special"
    )
    moved = cost.number("load", sizes) + cost.number("store", sizes)
    moved += sum(_packed(w) * evaluate(_times(w), sizes) for w in cost.works if w.kind == "matrix")
    memory = evaluate(cost.bytes(), sizes) / device.dram
    near = max((_bytes(w) for w in cost.works), default=0) <= _NEAR
    traffic = moved / (device.l2 if near else device.dram)
    programs = evaluate(sympy.Mul(*[n for _, n in fn.grid]), sizes)
    cores = device.units
    idle = cores * -(-programs // cores) / programs if programs else 1.0
    operations = sum(evaluate(_times(w), sizes) for w in cost.works)
    small = (_PROGRAM * programs + _OPERATION * operations) / cores
    work = (matrix + vector + special + traffic) * idle
    streams = not types and all(len(w.loops) <= len(fn.grid) for w in cost.works)
    both = max(work, memory) if streams else work + memory
    return device.launch + both + small


def _packed(w: Work) -> int:
    """Bytes that one product moves: large operands are packed, a large sum is read and written."""
    rows, inner, cols = (axis.side for axis in _axes(w))
    element = max(1, w.dtype.bits // 8)
    parts = (element * rows * inner, element * inner * cols, 4 * rows * cols)
    return sum(2 * p for p in parts if p > _NEAREST)


def _axes(w: Work):
    a, b = (v.type.axes for v in w.op.operands[:2])
    rows, inner = a[::-1] if w.op.attrs["ta"] else a
    return rows, inner, (b[0] if w.op.attrs["tb"] else b[1])


def _bytes(w: Work) -> int:
    out = 4
    for f in w.factors:
        out *= f.side
    return out


def _times(w: Work) -> sympy.Expr:
    """How often an operation is executed."""
    return Work(w.kind, 1, (), w.loops, w.when, w.op, w.dtype).total()
