"""Loop splitting: whole tiles first, in bounds and unmasked by construction, then the rest.

    for j in range(cdiv(M, 64)):      ->   for j in range(M // 64):            # no masks
        load k[64*j ...]                       ...
                                           for j in range(M // 64, cdiv(M, 64)):
                                               load k[64*j ...]                # masked

An access ``start = a*j + c`` of side ``s`` in a size ``M`` is whole while
``j < (M - s - c) // a + 1``; a mask ``_c + a*j + c <= _r + d`` keeps everything while the last
column passes in the first row. The loop splits at the smallest such threshold.
"""

from __future__ import annotations

import sympy

from codegen.expr import And, Expr, FloorDiv, Max, Min, Symbol, spelled
from codegen.facts import Facts
from codegen.ir import Function, Op, Region, Value, loop_parts
from codegen.ops import TABLE
from codegen.ops.mask import COL, ROW
from codegen.passes.bounds import margin_of
from codegen.rewrite import clone, fresh_symbol


def split_ragged(fn: Function) -> None:
    _visit(fn, fn.body, fn.facts)


def _visit(fn: Function, region: Region, facts: Facts) -> None:
    out: list[Op] = []
    for op in region.ops:
        if op.kind == "for":
            out += _split(fn, op, facts, fn.body)
        else:
            for r in op.regions:
                _visit(fn, r, facts)
            out.append(op)
    region.ops = out


def _split(fn: Function, op: Op, facts: Facts, whole: Region) -> list[Op]:
    index, start, stop = loop_parts(op)
    body = op.regions[0]
    if "rings" in op.attrs and fn.schedule is not None and fn.schedule.specialise:
        return [op]  # a loop that is split by warp stays one
    if any(o.kind == "for" for o in body.walk()):
        # Only innermost loops: copies of nests would grow the code for little.
        _visit(fn, body, facts)
        return [op]
    thresholds = _thresholds(fn, body, index)
    if not thresholds or op.attrs.get("reverse"):
        return [op]
    stops = stop.args if isinstance(stop, Min) else (stop,)
    middle = facts.smallest(*stops, *thresholds)
    if facts.less_equal(middle, start):
        return [op]
    # The first loop may end before it starts and then runs not at all, which keeps its bound
    # simple enough for proofs; the second one must not start before the author's.
    begin = middle if facts.less_equal(start, middle) else Max(start, middle)
    rest = Op("for", [], {**op.attrs, "start": begin, "num_stages": 1}, [], [], op.loc, op.hook)
    rest.regions = [clone(body, fn, "rest")]
    rest.results = op.results
    for v in rest.results:
        v.op = rest
    op.attrs["stop"] = middle
    op.results = [Value(v.type, v.hint, op, None) for v in rest.results]
    for new, old in zip(op.results, rest.results, strict=True):
        if old.symbol is not None:
            new.symbol = fresh_symbol(fn, f"{old.symbol.name}_whole")
            fn.facts.ranges[new.symbol] = fn.facts.ranges.get(old.symbol, (None, None))
    rest.operands = list(op.results)
    return [op, rest]


def _thresholds(fn: Function, body: Region, index: Symbol) -> list[Expr]:
    found: set[Expr] = set()
    inner = {v.symbol for o in body.walk() for v in o.results if v.symbol is not None}
    inner |= {a.symbol for a in body.args if a.symbol is not None}
    # What a descriptor reads outside the tensor is zero, and a product asks for no more.
    zero_will_do = all(
        o.kind in ("mma", "load") or not TABLE[o.kind].neutral(o) for o in body.walk()
    )
    for op in body.walk():
        if op.kind == "keep":
            rows, cols = op.operands[0].type.shape
            for pred in And.make_args(op.attrs["pred"]):
                margin = margin_of(pred)
                if margin is None:
                    continue
                c, r = margin.coeff(COL), margin.coeff(ROW)
                worst = margin - c * COL - r * ROW
                worst += (c * (cols - 1) if c < 0 else 0) + (r * (rows - 1) if r < 0 else 0)
                found |= _solve(worst, index)
        if "checks" not in op.attrs or (op.attrs.get("described") and zero_will_do):
            continue
        dims = fn.param(op.attrs["param"]).dims
        for which, sides, limit in zip(
            op.attrs["tile"], op.attrs["sides"], op.attrs["limit"], strict=True
        ):
            for d, side in zip(which, sides, strict=True):
                begin = op.attrs["start"][d]
                if op.attrs["checks"][d][1]:
                    found |= _solve(dims[d] - begin - side, index)
                if limit is not None:
                    found |= _solve(limit - begin - side, index)
    return sorted((t for t in found if not (t.free_symbols & inner)), key=spelled)


def _solve(margin: Expr, index: Symbol) -> set[Expr]:
    """``{t}`` such that ``margin >= 0`` exactly for ``index < t``, or nothing if there is no t."""
    margin = sympy.expand(margin)
    if not margin.has(index) or not margin.is_polynomial(index):
        return set()
    slope = margin.coeff(index)
    if not slope.is_Integer or slope >= 0:
        return set()
    rest = sympy.expand(margin - slope * index)
    if rest.has(index):
        return set()
    return {FloorDiv(rest, -slope) + 1}
