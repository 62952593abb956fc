"""The adjoints of scans.

y[t] = f(y[t - 1], x[t]) for an operator f of one or several elements. With A and B the derivatives
of f(y[t - 1], x[t]) with respect to its two arguments, and g the adjoint of y where it is read,

    lambda[t] = g[t] + A[t + 1]^T lambda[t + 1]        dx[t] = B[t]^T lambda[t]

is a linear recurrence: a scan the other way, of pairs (A^T, A^T g) that compose as affine maps (G.
Blelloch, "Prefix sums and their applications", 1990). A and B come from the rules of the operator's
own operations; what they are known to have as zeros is left out, so that a diagonal A costs one
product an element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from codegen.grad.activity import CONSTANT
from codegen.grad.emit import Emit
from codegen.grad.rules import NONE, RULES, rule
from codegen.ir import Op, Region, Value, f32
from codegen.ops.associative import element_type
from codegen.ops.base import IRError
from codegen.rewrite import build

#: Kinds of several results, whose rule gets an adjoint or None for each.
MANY = frozenset(["associative_scan"])


@rule("scan")
def _scan(x, op, g):
    axis, reverse = op.attrs["axis"], op.attrs["reverse"]
    g = x.emit.shaped(g, op.result.type.like(dtype=f32))  # zeros move the sums of others
    if op.attrs["op"] == "sum":
        x.gives(0, x.emit.value("scan", g, op="sum", axis=axis, reverse=not reverse))
        return
    # d/dx[k] = (product of those before k) r[k], r[k] = g[k] + x[k + 1] r[k + 1].
    v = x.wide(0)
    one = x.emit.full(v.type, 1.0)
    before, _ = scanned(x.emit, [one, v], axis, reverse, _exclusive_product)
    rest, _, _ = scanned(x.emit, [g, one, v], axis, not reverse, _suffix)
    x.gives(0, x.map("mul", before, rest))


def _exclusive_product(e, left, right):
    """(product of all but the last, product of all) of two runs."""
    return [e("mul", left[1], right[0]), e("mul", left[1], right[1])]


def _suffix(e, left, right):
    """(r, product of all but the first met, first met) of two runs, where the scan goes backwards.

    ``left`` is what was met first, that is the later run.
    """
    r2, q2, f2 = left
    r1, q1, f1 = right
    step = e("mul", q1, f2)
    return [e("add", r1, e("mul", step, r2)), e("mul", step, q2), f1]


@rule("associative_scan")
def _associative_scan(x, op, gs):
    """``gs``: an adjoint for every result, None for zero."""
    emit, region, count = x.emit, op.regions[0], len(op.operands)
    axis, reverse = op.attrs["axis"], op.attrs["reverse"]
    type_ = op.result.type
    values = [
        # A value of its own for every operand: two may be the same.
        emit.value("retype", x.wide(k), axes=type_.axes, orient=type_.orient)
        for k in range(count)
    ]
    if any(element_type(v.type.dtype) != v.type.dtype for v in op.operands):
        results = scanned(emit, values, axis, reverse, _again(region))  # before it was rounded
    else:
        results = [x.scope.env[r] for r in op.results]
    before, first = _before(emit, results, axis, reverse)
    step = _Step.of(x, region, before, values)
    floats = [k for k in range(count) if values[k].type.dtype.is_float]
    rows = {i: step.pull({i: emit.full(type_.like(dtype=f32), 1.0)}) for i in floats}
    needed = _needed(rows, {k for k in floats if x.wants(k)}, {k for k in floats if gs[k]}, count)
    if not needed:
        return
    g = {i: emit.shaped(gs[i], type_.like(dtype=f32)) for i in needed if gs[i] is not None}
    matrix = {(j, i): a for i in needed for j, a in rows[i].items() if j in needed}
    total = dict(g)
    if matrix:
        for j, m in _affine(emit, matrix, step.pull(g), needed, axis, not reverse).items():
            total[j] = m if j not in g else emit.map("add", g[j], m)
    found = step.pull(total)
    for k in floats:
        if x.wants(k) and (k in total or count + k in found):
            mine = found.get(count + k, 0.0)
            x.gives(k, emit.map("where", first, total.get(k, 0.0), mine))


def _needed(rows, wanted: set[int], given: set[int], count: int) -> list[int]:
    """The elements that carry an adjoint from a result that has one to an operand that wants it."""
    grown = -1
    while grown != (grown := len(wanted)):
        wanted |= {i for i, row in rows.items() if {k % count for k in row} & wanted}
    grown = -1
    while grown != (grown := len(given)):
        given |= {j for i in given & set(rows) for j in rows[i] if j < count}
    return sorted(wanted & given)


def _affine(
    emit: Emit,
    matrix: dict[tuple[int, int], Value],
    constant: dict[int, Value],
    needed: list[int],
    axis: int,
    reverse: bool,
) -> dict[int, Value]:
    """A[t + 1]^T lambda[t + 1] of every element in ``needed``, zero at the end.

    matrix: A^T by row and column, without known zeros; constant: A^T g.
    """
    like = next(iter(matrix.values())).type
    zero = emit.full(like, 0.0)
    closed = set(matrix)
    grown = -1
    while grown != (grown := len(closed)):
        closed |= {(a, d) for a, b in closed for c, d in closed if b == c}
    places = sorted(closed)
    vector = [j for j in needed if any(row == j for row, _ in places)]

    def compose(e, left, right):
        """The map of the earlier run, ``right``, after that of the later one."""
        one = dict(zip(places, right, strict=False))
        two = dict(zip(places, left, strict=False))
        add = dict(zip(vector, left[len(places) :], strict=True))
        out = []
        for a, d in places:
            terms = [e("mul", one[a, b], two[b, d]) for b in needed if {(a, b), (b, d)} <= closed]
            out.append(_sum(e, terms) or e("const", value=0.0, dtype=f32))
        for j, c in zip(vector, right[len(places) :], strict=True):
            terms = [e("mul", one[j, b], add[b]) for b in vector if (j, b) in closed]
            out.append(_sum(e, [c, *terms]))
        return out

    start = [matrix.get(p, zero) for p in places]
    start += [zero if constant.get(j) is None else constant[j] for j in vector]
    made = scanned(emit, start, axis, reverse, compose)[len(places) :]
    shifted, last = _before(emit, made, axis, reverse)
    return {j: emit.map("where", last, 0.0, m) for j, m in zip(vector, shifted, strict=True)}


def _sum(e, terms):
    total = terms[0] if terms else None
    for t in terms[1:]:
        total = e("add", total, t)
    return total


def _before(emit: Emit, values: list[Value], axis: int, reverse: bool) -> tuple[list[Value], Value]:
    """Each element's predecessor in the order of the scan, and where there is none.

    There it is the element itself. A scan for each: what nobody asks for is dropped.
    """
    alone = emit.full(values[0].type.like(dtype=f32), 1.0)

    def combine(e, left, right):
        """(the last, the one before it, whether there is only one) of a run."""
        one = e("gt", right[2], e("const", value=0.5, dtype=f32))
        return [right[0], e("where", one, left[0], right[1]), none(e)]

    def none(e):
        return e("const", value=0.0, dtype=f32)

    shifted = [scanned(emit, [v, v, alone], axis, reverse, combine)[1] for v in values]
    (first,) = scanned(emit, [alone], axis, reverse, lambda e, left, right: [none(e)])
    return shifted, emit.map("gt", first, 0.5)


@dataclass
class _Step:
    """One application of the operator to tiles: results, and adjoints by the rules."""

    x: Any
    ops: list[Op]
    arguments: list[Value]
    outs: list[Value]
    active: set[Value]

    @property
    def emit(self) -> Emit:
        return self.x.emit

    @classmethod
    def of(cls, x, region: Region, left: list[Value], right: list[Value]) -> _Step:
        ops: list[Op] = []
        active = {v for v in (*left, *right) if v.type.dtype.is_float}

        def make(op: Op, operands: list[Value]) -> list[Value]:
            new = x.emit.op(op.kind, operands, op.attrs)
            ops.append(new)
            if op.kind not in CONSTANT and set(operands) & active:
                active.update(v for v in new.results if v.type.dtype.is_float)
            return new.results

        outs = inlined(region, [*left, *right], make)
        return cls(x, ops, [*left, *right], outs, active)

    def pull(self, seeds: dict[int, Value]) -> dict[int, Value]:
        """Adjoints of the arguments that have some, by place, from those of results."""
        x = self.x
        scope = type(x.scope)({v: v for o in self.ops for v in o.results})
        for k, g in seeds.items():
            v = self.outs[k]
            if v in self.active:
                scope.adjoints[v] = self.emit.add(scope.adjoints.get(v), g, v.type)
        for op in reversed(self.ops):
            g = scope.adjoints.pop(op.result, None)
            if g is None or op.kind in NONE:
                continue
            if op.kind not in RULES:
                raise IRError(
                    f"the operator of the scan holds {op.kind}, which has no derivative",
                    "tk.detach its operands, or attach a backward of your own",
                )
            RULES[op.kind](replace(x, reverse=self, scope=scope, op=op), op, g)
        return {k: scope.adjoints[v] for k, v in enumerate(self.arguments) if v in scope.adjoints}


def inlined(region: Region, arguments: list[Value], make: Callable) -> list[Value]:
    """What ``region`` yields of ``arguments``; ``make(op, operands)`` gives an op's results."""
    env = dict(zip(region.args, arguments, strict=True))
    for op in region.ops[:-1]:
        env |= dict(zip(op.results, make(op, [env[v] for v in op.operands]), strict=True))
    return [env[v] for v in region.terminator.operands]


def _again(region: Region) -> Callable:
    """``region`` as an argument of ``scanned``."""
    return lambda e, left, right: inlined(
        region, [*left, *right], lambda op, operands: [e(op.kind, *operands, **op.attrs)]
    )


def scanned(
    emit: Emit, operands: list[Value], axis: int, reverse: bool, combine: Callable
) -> list[Value]:
    """A scan with ``combine(e, left, right)``, which writes operations ``e(kind, *values)``."""
    args = [Value(v.type.like(axes=(), orient=None)) for v in (*operands, *operands)]
    region = Region(args)

    def e(kind, *values, **attrs):
        op = build(emit.fn, kind, list(values), attrs, loc=emit.loc)
        region.ops.append(op)
        return op.result

    half = len(operands)
    out = combine(e, args[:half], args[half:])
    region.ops.append(build(emit.fn, "yield", out, loc=emit.loc))
    return emit.op(
        "associative_scan", operands, {"axis": axis, "reverse": reverse}, [region]
    ).results


__all__ = ["MANY", "inlined", "scanned"]
