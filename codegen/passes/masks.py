"""Masks that follow one another become one.

    s = fill_dead(product, -inf)             s = product
    s = keep(s, -inf, col <= row)      ->    s = keep(s, -inf, col <= row)

A fill of dead elements is *covered* by a ``keep`` that puts the same number into them: by its
predicate, as above, where the last key that a live query may see is live; else the ``keep`` takes
the other mask along. Two ``keep`` in a row with one number are one with both predicates.
"""

from __future__ import annotations

import sympy

from codegen.expr import And, Expr
from codegen.facts import Facts
from codegen.ir import Function, Op, Region, Type, Value, trip_facts
from codegen.ops.mask import COL, ROW
from codegen.passes.bounds import margin_of
from codegen.writer import count_uses


def join_masks(fn: Function) -> None:
    """Marks fills ``covered`` and joins ``keep``; what a live element holds stays what it was."""
    _visit(fn.body, fn.facts, count_uses(fn))


def _visit(region: Region, facts: Facts, uses: dict[Value, int]) -> None:
    dropped: set[int] = set()
    beside = set(map(id, region.ops))
    for op in region.ops:
        if op.kind == "keep":
            before = _before(op, beside, uses, "keep")
            if before is not None:
                op.attrs["pred"] = And(op.attrs["pred"], before.attrs["pred"])
                op.attrs |= {k: v for k, v in before.attrs.items() if k == "live"}
                op.operands = list(before.operands)
                dropped.add(id(before))
            before = _before(op, beside, uses, "fill_dead")
            if before is not None and not before.attrs.get("covered"):
                before.attrs["covered"] = True
                if not _implied(op.attrs["pred"], before, facts):
                    op.attrs["live"] = before.attrs["axes"]
        inner = trip_facts(op, facts) if op.kind == "for" else facts
        for r in op.regions:
            _visit(r, inner, uses)
    region.ops = [op for op in region.ops if id(op) not in dropped]


def _before(op: Op, beside: set[int], uses: dict[Value, int], kind: str) -> Op | None:
    """The mask under ``op``, if it is of ``kind``, puts the same number and serves nobody else.

    Both are ``beside`` each other: what was moved out of a loop stays out.
    """
    before = op.operands[0].op
    if before is None or before.kind != kind or uses[op.operands[0]] != 1:
        return None
    if id(before) not in beside:
        return None
    a, b = before.attrs["value"], op.attrs["value"]
    return before if a == b and repr(a) == repr(b) else None  # 0.0 == -0.0


def _implied(pred: Expr, fill: Op, facts: Facts) -> bool:
    """True if an element of a live row that passes ``pred`` is alive along the fill's axes."""
    type_ = fill.operands[0].type
    if fill.attrs["axes"] != (1,) or not type_.axes[1].simple:
        return False
    tops = [top for part in And.make_args(pred) for top in _last_column(part, type_)]
    bounds = type_.axes[1].factors[0].bounds
    return all(
        any(facts.nonnegative(sympy.expand(bound - 1 - top)) for top in tops) for bound in bounds
    )


def _last_column(part: Expr, type_: Type) -> list[Expr]:
    """Columns that no element beyond passes in a live row."""
    margin = margin_of(part)
    if margin is None or margin.coeff(COL) != -1:
        return []
    slope = margin.coeff(ROW)
    last = sympy.expand(margin + COL - slope * ROW)
    if last.has(ROW, COL) or not slope.is_Integer:
        return []
    if slope <= 0:
        return [last]
    rows = type_.axes[0].factors[0]
    return [last + slope * (end - 1) for end in (*rows.bounds, sympy.Integer(rows.side))]
