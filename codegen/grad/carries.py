"""What the carries of loops that run backwards take: memory, and work to make them again."""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy

from codegen.cost import amounts
from codegen.expr import Expr
from codegen.grad.memory import most
from codegen.grad.reverse import Reverse
from codegen.grad.tape import cuttable
from codegen.ir import Function, Loc, Op, Region, Type, loop_parts


@dataclass(frozen=True)
class Taped:
    """A loop whose carries a backward asks for, with every one of them noted.

    loop: its number among the loops of the kernel, in order. loc: its line.
    places: iterations. programs: how many programs go through it, each with memory of its own.
    noted: bytes that one iteration of one program notes. start: bytes of all that the loop has to
    go on from. work: FLOPs of one iteration that makes the next carries, by ("matrix", dtype),
    ("vector", "") and ("special", ""), and its bytes as ("load", ""); of whole tiles.
    cuttable: whether it can be cut into segments.
    """

    loop: int
    loc: Loc
    places: Expr
    programs: Expr
    noted: int
    start: int
    work: dict[tuple[str, str], Expr] = field(default_factory=dict)
    cuttable: bool = True


def loops_of(fn: Function) -> dict[Op, int]:
    """The loops of a kernel by their numbers."""
    return {op: k for k, op in enumerate(o for o in fn.body.walk() if o.kind == "for")}


def taped(reverse: Reverse) -> dict[Op, Taped]:
    """The loops of the kernel whose carries the program that ``reverse`` has derived notes."""
    numbers, fn = loops_of(reverse.forward), reverse.fn
    out = {}
    for sweep in [op for op in fn.body.walk() if op.kind == "for"]:
        stores = [o for o in sweep.regions[0].ops if o.kind == "store"]
        owners = {o: reverse.tapes.owner(o.attrs["param"]) for o in stores}
        mine = [o for o, op in owners.items() if op is not None]
        op = owners[mine[0]] if mine else None
        if op is None:
            continue
        places = fn.param(mine[0].attrs["param"]).dims[len(fn.grid)]
        out[op] = Taped(
            numbers[op],
            op.loc,
            places,
            sympy.Mul(*(count for _, count in fn.grid)),
            sum(_bytes(o.operands[0].type) for o in mine),
            sum(_bytes(a.type) for a in sweep.regions[0].args),
            _work(fn, sweep, set(mine)),
            cuttable(op),
        )
    return out


def _bytes(t: Type) -> int:
    out = max(1, t.dtype.bits // 8)
    for side in t.shape:
        out *= side
    return out


def _work(fn: Function, sweep: Op, noting: set[Op]) -> dict[tuple[str, str], Expr]:
    out: dict[tuple[str, str], Expr] = {}

    def visit(region: Region, times: Expr) -> None:
        for op in region.ops:
            if op.kind == "for":
                _, start, stop = loop_parts(op)
                visit(op.regions[0], times * sympy.Max(0, most(stop - start, fn)))
                continue
            for inner in op.regions if op.kind == "if" else ():
                visit(inner, times)
            if op.kind in ("if", "yield") or op in noting:
                continue
            for kind, scale, factors, dtype in amounts(fn, op):
                key = (kind, dtype.name if kind == "matrix" else "")
                sides = sympy.Mul(*(f.side for f in factors))
                out[key] = out.get(key, sympy.Integer(0)) + times * scale * sides

    visit(sweep.regions[0], sympy.Integer(1))
    return out


__all__ = ["Taped", "loops_of", "taped"]
