"""Mask removal: checks that sympy proves to be never needed are dropped, extents become full.

Every access starts with all its checks. What is proved here costs nothing at run time; what is
not proved keeps its mask, so a proof that fails can make a kernel slower, never wrong.
"""

from __future__ import annotations

import sympy

from codegen.expr import And, Expr
from codegen.facts import Facts
from codegen.ir import Axis, Function, Op, Region, Type, Value, f32, trip_facts
from codegen.ops.mask import COL, ROW
from codegen.rewrite import reinfer, replace_uses, simplify_bounds


def drop_proven_checks(fn: Function) -> None:
    replaced: dict[Value, Value] = {}
    _visit(fn, fn.body, fn.facts, replaced)
    replace_uses(fn.body, replaced)
    reinfer(fn)
    if _drop_fills(fn.body, replaced := {}):
        replace_uses(fn.body, replaced)
        reinfer(fn)


def _visit(fn: Function, region: Region, facts: Facts, replaced: dict[Value, Value]) -> None:
    kept = []
    for op in region.ops:
        if "start" in op.attrs and "checks" in op.attrs:
            _drop(fn, op, facts)
        if op.kind == "keep" and _always(op, facts):
            replaced[op.result] = op.operands[0]
            if op.result.hint and not op.operands[0].hint:
                op.operands[0].hint = op.result.hint
            continue
        kept.append(op)
        for name in _AXES.get(op.kind, ()):
            op.attrs[name] = _clean_axes(op.attrs[name], facts)
        inner = trip_facts(op, facts) if op.kind == "for" else facts
        for r in op.regions:
            for arg in r.args:
                arg.type = _clean(arg.type, inner)
            _visit(fn, r, inner, replaced)
    region.ops = kept


def _drop_fills(region: Region, replaced: dict[Value, Value]) -> bool:
    """Fills of dead elements that cannot be there, as the types now tell."""
    kept = []
    for op in region.ops:
        if op.kind == "fill_dead" and op.attrs["alive"] and _nothing_dead(op):
            replaced[op.result] = op.operands[0]
            if op.result.hint and not op.operands[0].hint:
                op.operands[0].hint = op.result.hint
            continue
        kept.append(op)
        for r in op.regions:
            _drop_fills(r, replaced)
    region.ops = kept
    return bool(replaced)


def _nothing_dead(op: Op) -> bool:
    return all(op.operands[0].type.axes[a].full for a in op.attrs["axes"])


#: Attributes that state extents.
_AXES = {"full": ("axes",), "splat": ("axes",), "retype": ("axes",), "broadcast": ("across",)}


def _clean_axes(stated, facts: Facts):
    if isinstance(stated, Axis):
        return _clean(Type(f32, (stated,)), facts).axes[0]
    return _clean(Type(f32, stated), facts).axes


def _clean(type_: Type, facts: Facts) -> Type:
    return simplify_bounds(type_, lambda bound, side: facts.less_equal(side, bound))


def _drop(fn: Function, op: Op, facts: Facts) -> None:
    dims = fn.param(op.attrs["param"]).dims
    sides = dict.fromkeys(range(len(dims)), 1)
    for which, factors in zip(op.attrs["tile"], op.attrs["sides"], strict=True):
        sides |= dict(zip(which, factors, strict=True))
    checks = []
    for d, ((low, high), start) in enumerate(
        zip(op.attrs["checks"], op.attrs["start"], strict=True)
    ):
        low = low and not facts.nonnegative(start)
        high = high and not facts.less_equal(start + sides[d], dims[d])
        checks.append((low, high))
    limits = []
    for which, limit in zip(op.attrs["tile"], op.attrs["limit"], strict=True):
        d = which[0]
        start = op.attrs["start"][d]
        needless = limit is not None and (
            facts.less_equal(start + sides[d], limit)
            or (checks[d][1] and facts.less_equal(dims[d], limit))
        )
        limits.append(None if needless else limit)
        if limits[-1] is not None and len(which) == 1 and facts.less_equal(limits[-1], dims[d]):
            checks[d] = (checks[d][0], False)  # the tile ends before the tensor does
    op.attrs["limit"] = tuple(limits)
    op.attrs["checks"] = tuple(checks)


def _always(op: Op, facts: Facts) -> bool:
    """True if the predicate of a ``keep`` is proved for every element of its tile."""
    rows, cols = op.operands[0].type.shape
    inner = facts.extended(
        {
            ROW: (sympy.Integer(0), sympy.Integer(rows - 1)),
            COL: (sympy.Integer(0), sympy.Integer(cols - 1)),
        }
    )
    return all(_proved(p, inner) for p in And.make_args(op.attrs["pred"]))


def _proved(pred: Expr, facts: Facts) -> bool:
    if pred is sympy.true:
        return True
    margin = margin_of(pred)
    return margin is not None and facts.nonnegative(margin)


def margin_of(pred: Expr) -> Expr | None:
    """An expression that is >= 0 exactly where the inequality holds, or None."""
    if isinstance(pred, sympy.Le):
        return sympy.expand(pred.rhs - pred.lhs)
    if isinstance(pred, sympy.Lt):
        return sympy.expand(pred.rhs - pred.lhs - 1)
    if isinstance(pred, sympy.Ge):
        return sympy.expand(pred.lhs - pred.rhs)
    if isinstance(pred, sympy.Gt):
        return sympy.expand(pred.lhs - pred.rhs - 1)
    return None
