"""Values that may end before what they are used with: refused, since nobody would see it.

Elements live where they live in every operand, and a store writes live elements only. So where
``x`` of length N meets ``w`` of length M, a shorter ``w`` would leave places of the output
unwritten, and products would end early. A name that is used twice is one length, which every call
checks; two names are two lengths, and the author says how they compare.
"""

from __future__ import annotations

from collections.abc import Iterator

import sympy

from codegen.expr import Expr, Symbol, text
from codegen.ir import Axis, Factor, Function, Loc, Op, Value
from codegen.ops import TABLE
from codegen.ops.base import IRError, name_of
from codegen.ops.memory import access_axes

_READS = ("load", "gather_rows")
_AXES_KEPT = ("detach", "keep", "fill_dead", "retype")


class LengthError(IRError):
    """Lengths that need not agree, at ``loc``."""

    def __init__(self, loc: Loc, message: str, fix: str):
        super().__init__(message, fix)
        self.loc = loc


def check_lengths(fn: Function) -> None:
    """Refuses stores that one operand of several cuts short, and products of different lengths.

    Raises:
        LengthError: with the line.
    """
    for op in fn.body.walk():
        if op.kind == "store" and op.operands[0].type.rank:
            _check_store(fn, op)
        elif op.kind == "mma":
            _check_product(fn, op)


def _check_store(fn: Function, op: Op) -> None:
    value, param = op.operands[0], fn.param(op.attrs["param"])
    for k, (place, have) in enumerate(zip(access_axes(fn, op), value.type.axes, strict=True)):
        if not (place.simple and have.simple):
            continue
        short = _short(fn, place.factors[0], have.factors[0])
        if short is None:
            continue
        reads = list(_reads(value, k, set()))
        if not any(_covers(fn, place.factors[0], a.factors[0]) for _, a in reads):
            continue  # nothing here is as long as the output: a part of it is meant
        cut, end = short
        (d,) = op.attrs["tile"][k]
        size, less = param.dims[d], sympy.expand(param.dims[d] + cut - end)
        who = next((name_of(v, "") for v, a in reads if cut in a.factors[0].bounds), "")
        raise LengthError(
            op.loc,
            f"places of {param.name} may be left unwritten: {_long(param.label(d), size)} along "
            f"axis {d}, and what is stored there lives in {text(less)} only"
            + (f", as {who} does" if who else ""),
            _fix(less, param.label(d)),
        )


def _check_product(fn: Function, op: Op) -> None:
    a, b = op.operands[:2]
    ka, kb = a.type.axes[0 if op.attrs["ta"] else 1], b.type.axes[1 if op.attrs["tb"] else 0]
    if not (ka.simple and kb.simple):
        return
    for one, other in ((ka.factors[0], kb.factors[0]), (kb.factors[0], ka.factors[0])):
        short = _short(fn, one, other)
        if short is None:
            continue
        cut, end = short
        less, more = _sizes(cut, end)
        if bool(less.free_symbols) != bool(more.free_symbols):
            continue  # a block of one's own against what there is of a tensor: the rest is zeros
        if less.free_symbols and fn.facts.less_equal(cut, end):
            continue  # the author said, or the coordinates do, which is the longer one
        raise LengthError(
            op.loc,
            f"the inner lengths of {name_of(a, 'the left operand')} and "
            f"{name_of(b, 'the right operand')} need not agree: {text(more)} and {text(less)}",
            _fix(less, text(more)),
        )


def _sizes(cut: Expr, end: Expr) -> tuple[Expr, Expr]:
    """Both lengths without what they have in common."""
    common = sum(
        (t for t in sympy.Add.make_args(cut) if t in sympy.Add.make_args(end)), sympy.Integer(0)
    )
    return sympy.expand(cut - common), sympy.expand(end - common)


def _long(label: str, size: Expr) -> str:
    known = f" = {size}" if not size.free_symbols and label != str(size) else ""
    return f"it has {label}{known}"


def _fix(less: Expr, more: str) -> str:
    one = (
        f'give both one name, or state @tk.kernel(where=["{text(less)} >= {more}"])'
        if less.free_symbols
        else "load both with one length"
    )
    return f"{one}; a part is meant where tk.store or tk.load has until="


def _short(fn: Function, place: Factor, have: Factor) -> tuple[Expr, Expr] | None:
    """A bound of ``have`` that may lie before the end of ``place``, and that end.

    Only where the two differ by named dimensions or a number: what differs by where a program is,
    or by a number that a tensor holds, is the author's arithmetic.
    """
    known = frozenset(fn.dims)
    ends: tuple[Expr, ...] = (*place.bounds, sympy.Integer(place.side))
    for b in have.bounds:
        if any(fn.facts.less_equal(e, b) for e in ends):
            continue
        for e in place.bounds or ends:
            if _symbols(b - e) <= known:
                return b, e
    return None


def _symbols(e: Expr) -> frozenset[Symbol]:
    return frozenset(sympy.expand(e).free_symbols)


def _covers(fn: Function, place: Factor, have: Factor) -> bool:
    """True if ``have`` lives in all of ``place``."""
    ends = (*place.bounds, sympy.Integer(place.side))
    return all(any(fn.facts.less_equal(e, b) for e in ends) for b in have.bounds)


def _reads(value: Value, k: int, seen: set[tuple[Value, int]]) -> Iterator[tuple[Value, Axis]]:
    """What was read from tensors to make ``value``, with the axis there that its axis ``k`` is."""
    op = value.op
    if op is None or (value, k) in seen:
        return
    seen.add((value, k))
    if op.kind in _READS:
        if value.type.axes[k].simple:
            yield value, value.type.axes[k]
    elif op.kind == "mma":
        left, right = op.operands[0], op.operands[1]
        own = (left, 1 if op.attrs["ta"] else 0) if k == 0 else (right, 0 if op.attrs["tb"] else 1)
        yield from _reads(*own, seen)
        for v in op.operands[2:]:
            yield from _reads(v, k, seen)
    elif op.kind == "reduce" and value.type.rank == 1:
        yield from _reads(op.operands[0], 1 - op.attrs["axis"], seen)
    elif op.regions:  # of a loop or a condition: what its bodies give, and what a loop begins with
        n = op.results.index(value)
        starts = op.operands[n : n + 1] if op.kind == "for" else []
        for v in (*starts, *(r.terminator.operands[n] for r in op.regions)):
            if v.type.rank == value.type.rank:
                yield from _reads(v, k, seen)
    elif op.kind in _AXES_KEPT or TABLE[op.kind].elementwise:
        for v in op.operands:
            if v.type.rank == value.type.rank:
                yield from _reads(v, k, seen)
            elif v.type.rank == 1 and k == (0 if v.type.orient == "col" else 1):
                yield from _reads(v, 0, seen)


__all__ = ["LengthError", "check_lengths"]
