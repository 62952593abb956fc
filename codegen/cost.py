"""How much work a kernel does, as expressions of its dimensions, read from tile IR.

Amounts are of live elements: a ragged tile counts what it has, so a GEMM is ``2*M*N*K`` whatever
its tiles. Loops multiply by their trip counts, also where these depend on the program (a causal
limit): such a count is a ``Sum`` in an expression, and exact in a number. What only the running
kernel knows is bounded from above and said in ``Cost.notes``.

FLOPs are counted as is usual: a product of M x K and K x N is 2 M N K; an addition, a comparison
or a choice is one an element; exponentials, roots, divisions and their kin are *special*, one an
element; moves, casts and masks that are index arithmetic are free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import sympy

from codegen.expr import Expr, Max, Symbol, cdiv
from codegen.ir import Axis, DType, Factor, Function, Op, Region, Type, Value, loop_parts
from codegen.ops import TABLE

KINDS = ("matrix", "vector", "special", "load", "store")

_SPECIAL = {
    "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "erf", "sigmoid", "tanh", "div",
    "div_rn",
}  # fmt: skip
_FREE = {"cast"}
_LOADS = {"load", "gather_rows"}
_STORES = {
    "store", "store_add", "store_min", "store_max", "scatter_rows", "scatter_add_rows",
}  # fmt: skip

#: More points than this are not enumerated: sides are taken for live extents.
MOST_POINTS = 4_000_000


class RunTime(ValueError):
    """An amount that depends on a number which only the running kernel, or nobody yet, knows."""


@dataclass(frozen=True)
class Work:
    """One operation's amount, and the loops that repeat it.

    Attributes:
        kind: one of KINDS; FLOPs for the first two, calls, then bytes.
        scale, factors: the amount of one execution is ``scale * product of live extents``.
        loops: (symbol, start, stop), outermost first; the grid comes first.
        when: it happens where this holds.
        op: the operation.
        dtype: of a product's operands, or of what is moved.
    """

    kind: str
    scale: int
    factors: tuple[Factor, ...]
    loops: tuple[tuple[Symbol, Expr, Expr], ...]
    when: tuple[sympy.Basic, ...]
    op: Op
    dtype: DType

    def total(self) -> Expr:
        """Over all executions, as an expression of the kernel's dimensions."""
        amount: Expr = sympy.Integer(self.scale)
        factors = list(self.factors)
        for condition in self.when:
            amount *= sympy.Piecewise((1, condition), (0, True))
        for symbol, start, stop in reversed(self.loops):
            having = [f for f in factors if any(symbol in b.free_symbols for b in f.bounds)]
            if symbol not in amount.free_symbols and not having:
                amount *= _trips(start, stop)
                continue
            whole = _whole(having, symbol, start, stop)
            if whole is not None and symbol not in amount.free_symbols:
                factors.remove(having[0])
                amount *= whole
                continue
            for f in having:
                factors.remove(f)
                amount *= f.live
            amount = sympy.Sum(amount, (symbol, start, stop - 1))
        for f in factors:
            amount *= f.live
        return amount


@dataclass
class Cost:
    """The work of one variant of a kernel.

    Attributes:
        works: one for each operation that costs anything.
        tensors: bytes of each tensor that is read or written, once.
        notes: what is bounded, not exact.
    """

    works: list[Work] = field(default_factory=list)
    tensors: dict[str, Expr] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def expression(self, kind: str) -> Expr:
        """The total of one of KINDS over the whole grid."""
        return sympy.Add(*[w.total() for w in self.works if w.kind == kind])

    def number(self, kind: str, sizes: Mapping[str, int], dtype: str | None = None) -> int:
        """The same as a number; ``dtype``: of work on that element type only.

        Raises RunTime (a ValueError) if a dimension is missing in ``sizes``.
        """
        return sum(
            evaluate(w.total(), sizes)
            for w in self.works
            if w.kind == kind and dtype in (None, w.dtype.name)
        )

    def flops(self) -> Expr:
        """Products and arithmetic, special functions as one each."""
        return sympy.Add(*[self.expression(k) for k in ("matrix", "vector", "special")])

    def bytes(self) -> Expr:
        """Each tensor once: what must move between memory and the processor."""
        return sympy.Add(*self.tensors.values())

    def intensity(self) -> Expr:
        """FLOPs a byte."""
        return self.flops() / self.bytes()


def cost(fn: Function) -> Cost:
    """The work of ``fn``, best taken before the pass that splits loops into whole and ragged."""
    out = Cost()
    used = _used(fn.body)
    grid = tuple((s, sympy.Integer(0), sympy.sympify(n)) for s, n in fn.grid)
    _region(fn, fn.body, grid, (), used, out)
    for p in fn.params:
        names = {w.op.attrs.get("param") for w in out.works if w.kind in ("load", "store")}
        if p.role != "scalar" and p.name in names:
            twice = 2 if p.role == "inout" or p.zeroed else 1
            size = sympy.Mul(*p.dims) * p.dtype.bits
            out.tensors[p.name] = twice * (size / 8 if p.dtype.bits >= 8 else size)
    return out


def evaluate(e: Expr, sizes: Mapping[str, int]) -> int:
    """An amount as a number: sums are added up, exactly."""
    values = {Symbol(n, integer=True): v for n, v in sizes.items()}
    total = 0
    for term in sympy.Add.make_args(sympy.sympify(e)):
        scale, sums = sympy.Integer(1), []
        for part in sympy.Mul.make_args(term):
            if part.has(sympy.Sum):
                sums.append(part)
            else:
                scale *= part
        outer = scale.subs(values)
        inner = 1
        for s in sums:
            inner *= _add_up(s, values)
        if outer.free_symbols:
            missing = ", ".join(sorted(map(str, outer.free_symbols)))
            raise RunTime(f"{missing} is not given, or known to the running kernel only")
        total += int(outer) * inner
    return total


def _add_up(e: Expr, values: Mapping[Symbol, int]) -> int:
    """A nest of sums, by going through all its points at once."""
    loops: list = []
    while isinstance(e, sympy.Sum):
        body, *limits = e.args
        loops = [*loops, *limits]
        e = body
    scales = [p for p in sympy.Mul.make_args(e) if isinstance(p, sympy.Sum)]
    if scales:  # a product with a sum inside it
        (inner,) = scales
        return _add_up(sympy.Sum(inner.args[0] * e / inner, *inner.args[1:], *loops), values)
    points: dict[Symbol, np.ndarray] = {}
    count = 1
    for symbol, low, high in reversed(loops):  # a Sum's first limit is its innermost
        lows, highs = (_at(x, points, values, count) for x in (low, high))
        trips = np.maximum(highs - lows + 1, 0)
        if trips.sum() > MOST_POINTS:
            raise RunTime(f"{trips.sum()} points are too many to count")
        points = {s: np.repeat(p, trips) for s, p in points.items()}
        offsets = np.arange(trips.sum()) - np.repeat(np.cumsum(trips) - trips, trips)
        points[symbol] = np.repeat(lows, trips) + offsets
        count = int(trips.sum())
    return int(_at(e, points, values, count).sum())


_NAMED = {"FloorDiv": np.floor_divide, "FloorMod": np.mod}  # which numpy calls otherwise


def _at(e: Expr, points: dict[Symbol, np.ndarray], values: Mapping[Symbol, int], n: int):
    e = sympy.sympify(e).subs(values)
    missing = e.free_symbols - set(points)
    if missing:
        names = ", ".join(sorted(map(str, missing)))
        raise RunTime(f"{names} is not given, or known to the running kernel only")
    if not e.free_symbols:
        return np.full(n, int(e), np.int64)
    symbols = sorted(e.free_symbols, key=str)
    f = sympy.lambdify(symbols, e, [_NAMED, "numpy"])
    return np.broadcast_to(np.asarray(f(*[points[s] for s in symbols]), np.int64), (n,))


# Walking


def _used(body: Region) -> set[Op]:
    """Operations that something depends on: the front end leaves others for a pass to remove."""
    used: set[Op] = set()
    todo: list[Op] = [
        op for op in body.walk() if not TABLE[op.kind].pure or op.kind in ("for", "if", "yield")
    ]
    while todo:
        op = todo.pop()
        if op in used:
            continue
        used.add(op)
        todo += [v.op for v in op.operands if v.op is not None]
    return used


def _region(fn: Function, region: Region, loops, when, used: set[Op], out: Cost) -> None:
    for op in region.ops:
        if op.kind == "for":
            _region(fn, op.regions[0], (*loops, loop_parts(op)), when, used, out)
        elif op.kind == "if":
            _branch(fn, op, loops, when, used, out)
        elif op in used:
            out.works += [Work(k, s, f, loops, when, op, d) for k, s, f, d in amounts(fn, op)]


def _branch(fn: Function, op: Op, loops, when, used: set[Op], out: Cost) -> None:
    condition = op.attrs.get("cond")
    if condition is not None:
        for region, holds in zip(op.regions, (condition, sympy.Not(condition)), strict=True):
            _region(fn, region, loops, (*when, holds), used, out)
        return
    out.notes.append(f"{op.loc}: which branch runs is known at run time; both are counted")
    for region in op.regions:
        _region(fn, region, loops, when, used, out)


def amounts(fn: Function, op: Op) -> Iterable[tuple[str, int, tuple[Factor, ...], DType]]:
    """(kind, scale, factors, dtype) of one execution."""
    kind = op.kind
    if kind in _LOADS or kind in _STORES:
        moved: Value = op.result if kind in _LOADS else op.operands[-1]
        if kind in ("store", "store_add", "store_min", "store_max", "scatter_rows"):
            moved = op.operands[0]
        dtype = fn.param(op.attrs["param"]).dtype
        way = "load" if kind in _LOADS else "store"
        yield way, max(1, dtype.bits // 8), _factors(moved.type), dtype
        if kind in ("store_add", "scatter_add_rows"):
            yield "vector", 1, _factors(moved.type), dtype
    elif kind == "mma":
        a, b = (v.type for v in op.operands[:2])
        rows, inner = a.axes if not op.attrs["ta"] else a.axes[::-1]
        inner2, cols = b.axes if not op.attrs["tb"] else b.axes[::-1]
        both = inner.meet(inner2) if inner.same_shape(inner2) else inner
        yield "matrix", 2, _factors(rows, both, cols), a.dtype
    elif kind in ("reduce", "argreduce", "scan"):
        yield "vector", 1, _factors(op.operands[0].type), op.operands[0].type.dtype
    elif kind == "associative_scan":
        inside = [o for o in op.regions[0].ops if TABLE[o.kind].elementwise]
        scanned = op.results[0].type
        for o in inside:
            way = "special" if o.kind in _SPECIAL else "vector"
            yield way, 1, _factors(scanned), scanned.dtype
    elif kind in ("row_outer", "row_pairs"):
        yield "vector", 1, _factors(op.result.type), op.result.type.dtype
    elif TABLE[kind].elementwise and kind not in _FREE and op.result.type.rank:
        result = op.result.type
        way = "special" if kind in _SPECIAL and result.dtype.is_float else "vector"
        yield way, 2 if kind == "fma" else 1, _factors(result), result.dtype


def _factors(*parts: Type | Axis) -> tuple[Factor, ...]:
    axes = [a for p in parts for a in (p.axes if isinstance(p, Type) else (p,))]
    return tuple(f for a in axes for f in a.factors)


def _trips(start: Expr, stop: Expr) -> Expr:
    trips = sympy.expand(sympy.sympify(stop) - start)
    return trips if start == 0 else Max(0, trips)


def _whole(having: list[Factor], symbol: Symbol, start: Expr, stop: Expr) -> Expr | None:
    """The sum of one factor over a loop whose tiles partition an axis: the axis's length."""
    if len(having) != 1 or start != 0 or len(having[0].bounds) != 1:
        return None
    side, (bound,) = having[0].side, having[0].bounds
    length = sympy.expand(bound + side * symbol)
    if symbol in length.free_symbols or sympy.simplify(cdiv(length, side) - stop) != 0:
        return None
    return length
