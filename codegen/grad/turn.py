"""Turning the loop nest: a gradient that many programs contribute to gets programs of its own.

    program i:                                   program j:
        for j in range(n):                ->         for i in range(m):
            dk[j] += f(i, j)                             sum += f(i, j)
                                                     dk[j] = sum

Iterations of the loop over j must not depend on each other. What stands before that loop is made
again in every pass; vectors that take a reduction to make are made once, by a program that runs
before, and read; tiles that arithmetic makes of what was loaded, likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from codegen.expr import And, Expr, FloorDiv, Max, Min, Symbol, sym
from codegen.grad.emit import Emit
from codegen.grad.memory import memory_like, place_like
from codegen.grad.own import disputed, owner
from codegen.ir import Function, Op, Param, Region, Type, Value, loop_parts
from codegen.ops import TABLE
from codegen.rewrite import fresh_symbol, substitute, substitute_type


@dataclass
class Turned:
    before: Function | None  # makes the vectors that are read
    fn: Function
    sites: list[tuple[Op, Op]]
    memory: list[Param]


def turnable(fn: Function, stores: list[Op]) -> Op | None:
    """The loop that every one of ``stores`` can be turned out of, or None.

    Other stores inside that loop stay where they are.
    """
    top = [op for op in fn.body.ops if op.kind in ("for", "if") or not TABLE[op.kind].pure]
    loops = [op for op in top if op.kind == "for"]
    if len(loops) != 1 or any(op.kind not in ("for", "yield") for op in top):
        return None
    loop = loops[0]
    index, start, stop = loop_parts(loop)
    told = {s for s, _ in fn.grid} | set(fn.dims) | {sym(p.name) for p in fn.params}
    if (start.free_symbols | stop.free_symbols) - told:
        return None  # how often it runs is loaded by the program that would be turned
    owners = [owner(fn, s) for s in stores]
    first = owners[0]
    for who in owners:
        if not who.loops or who.loops[0] is not loop or index not in who.determined or who.branch:
            return None
        if who.dynamic or who.quotients != first.quotients:
            return None
        if [s for s, _ in fn.grid if s in who.shared] != [
            s for s, _ in fn.grid if s in first.shared
        ]:
            return None
    for k, a in enumerate(stores):
        for b in stores[:k]:
            same = a.attrs["param"] == b.attrs["param"]
            if same and disputed(a, b, owner(fn, a), owner(fn, b)):
                return None
    return None if loop.results else loop


def turn(fn: Function, stores: list[Op], sites: list[tuple[Op, Op]], loop: Op, name: str) -> Turned:
    """``fn`` with ``loop`` as its grid; ``sites`` are ``stores`` and those that stay inside."""
    who = owner(fn, stores[0])
    before, memory = _cut(fn, loop, name)
    out = Function(name, list(fn.params), list(fn.dims), wide=fn.wide, aligned=fn.aligned)
    out.facts, out.loc, out.tasked = fn.facts.extended({}), fn.loc, fn.tasked
    index, start, stop = loop_parts(loop)
    many = _many(fn, stores[0], index)
    symbols: dict[Symbol, Expr] = {}
    quotients: dict[Expr, Expr] = {}
    around: list[tuple[Symbol, Expr, Expr]] = []
    grid: list[tuple[Symbol, Expr]] = []
    for s, count in fn.grid:
        if s in who.determined:
            grid.append((s, count))
        elif s in who.quotients:
            share = who.quotients[s]
            group = fresh_symbol(fn, f"{s.name}_group")
            within = fresh_symbol(fn, f"{s.name}_in")
            groups = sympy.sympify(count.subs(out.facts.equal)) if out.facts.equal else count
            groups = _groups(fn, stores, s, share, groups, count)
            grid.append((group, groups))
            out.facts.ranges[group] = (sympy.Integer(0), groups - 1)
            out.facts.ranges[within] = (sympy.Integer(0), share - 1)
            around.append((within, sympy.Integer(0), share))
            symbols[s] = group * share + within
            quotients[FloorDiv(s, share)] = group
        else:
            around.append((s, sympy.Integer(0), count))
    grid.append((index, many))
    out.facts.ranges[index] = (sympy.Integer(0), many - 1)
    out.grid = grid

    guard = None
    if around:
        s, low, high = around[-1]
        bounds = _bounds(index, start, stop, s, many)
        if bounds is None:
            guard = And(sympy.Ge(index, start), sympy.Lt(index, stop))
        else:
            lows, highs = bounds
            around[-1] = (s, Max(low, *lows) if lows else low, Min(high, *highs) if highs else high)

    emit = Emit(out, out.body)
    copy = _Copy(symbols, quotients)
    kept = [s for s in stores if any(s is o for o in loop.regions[0].ops)]
    bases = {id(s): _base(s.operands[0], {a[0] for a in around}) for s in kept}
    zeros = [emit.full(copy.type(t), 0.0) for _, t in bases.values()]

    def nest(level: int, accs: list[Value]) -> list[Value]:
        if level == len(around):
            return body(accs)
        s, low, high = around[level]
        region = Region([Value(a.type, a.hint) for a in accs])
        with emit.into(region):
            emit.op("yield", nest(level + 1, region.args))
        attrs = {"index": s, "start": low, "stop": copy.attr(high)}
        return emit.op("for", accs, attrs, [region]).results

    def body(accs: list[Value]) -> list[Value]:
        if guard is None:
            return inner(accs)
        yes, no = Region(), Region()
        with emit.into(yes):
            emit.op("yield", inner(accs))
        with emit.into(no):
            emit.op("yield", accs)
        return emit.op("if", [], {"cond": copy.attr(guard)}, [yes, no]).results

    def inner(accs: list[Value]) -> list[Value]:
        copy.env = {}
        outs = list(accs)
        for op in fn.body.ops:
            if op is loop:
                break
            emit.append(copy.op(op))
        for op in loop.regions[0].ops[:-1]:
            if id(op) in bases:
                k = list(bases).index(id(op))
                outs[k] = _accumulate(emit, copy, op, bases[id(op)], accs[k])
            else:
                emit.append(copy.op(op))
        return outs

    sums = nest(0, zeros)
    new_sites = []
    made = {id(s): load for s, load in sites}
    for s, total in zip(kept, sums, strict=True):
        value = emit.shaped(total, copy.type(s.operands[0].type))
        attrs = {k: copy.attr(v) for k, v in s.attrs.items()}
        new_sites.append((emit.op("store", [value], attrs), made[id(s)]))
    emit.op("yield")
    new_sites += [(copy.stores[id(s)], load) for s, load in sites if id(s) in copy.stores]
    return Turned(before, out, new_sites, memory)


#: Operations that cost nothing: what they make is made again.
_PLAIN = ("full", "splat", "retype", "broadcast", "const", "transpose", "argument")


def _made_of_tiles(op: Op) -> bool:
    """A tile that arithmetic has made of others: read once, not made again in every pass."""
    return op.result.type.rank == 2 and op.kind != "load"


def _groups(fn, stores, s, share, groups, count) -> Expr:
    """How many quotients there are: the size of the dimension that they count, where one says."""
    store = stores[0]
    dims = fn.param(store.attrs["param"]).dims
    for d, e in enumerate(store.attrs["start"]):
        if e == FloorDiv(s, share):
            return dims[d]
    return FloorDiv(count, share)


def _many(fn: Function, store: Op, index: Symbol) -> Expr:
    """How many places there are along ``index``: as many as cover the tensor."""
    dims = fn.param(store.attrs["param"]).dims
    for d, e in enumerate(store.attrs["start"]):
        slope = sympy.expand(e).coeff(index, 1)
        if index in e.free_symbols and slope.is_Integer:
            return FloorDiv(sympy.expand(dims[d] + slope - 1), slope)
    raise AssertionError("a determined index moves a coordinate")


def _base(v: Value, gone: set[Symbol]) -> tuple[Value, Type]:
    """What is summed: ``v`` before its extent was restated, and the type of the sum."""
    while (
        v.op is not None and v.op.kind == "retype" and v.op.operands[0].type.orient == v.type.orient
    ):
        v = v.op.operands[0]
    axes = tuple(
        type(a)(
            tuple(
                type(f)(f.side, tuple(b for b in f.bounds if not b.free_symbols & gone))
                for f in a.factors
            )
        )
        for a in v.type.axes
    )
    return v, v.type.like(axes=axes)


def _accumulate(emit: Emit, copy: _Copy, store: Op, base: tuple[Value, Type], acc: Value) -> Value:
    v = copy.env.get(base[0], base[0])
    made = v.op
    if made is not None and made.kind == "mma" and len(made.operands) == 2 and v.type == acc.type:
        new = emit.op("mma", [*made.operands, acc], made.attrs)
        return new.result
    return emit.map("add", acc, emit.shaped(v, acc.type))


def _bounds(index, start, stop, s, many) -> tuple[list[Expr], list[Expr]] | None:
    """(lower bounds, exclusive upper bounds) of ``s`` for which ``start <= index < stop``."""
    lows: list[Expr] = []
    highs: list[Expr] = []
    for e in stop.args if isinstance(stop, Min) else (stop,):
        if sympy.expand(e - many) == 0:
            continue
        form = _linear(e, s)
        if form is None:
            return None
        c, a, b = form
        # index < floor((a s + b) / c)  <=>  c (index + 1) <= a s + b
        need = c * (index + 1) - b
        if a > 0:
            lows.append(FloorDiv(sympy.expand(need + a - 1), sympy.Integer(a)))
        elif a < 0:
            highs.append(FloorDiv(sympy.expand(-need), sympy.Integer(-a)) + 1)
        else:
            return None
    for e in start.args if isinstance(start, Max) else (start,):
        if e == 0:
            continue
        form = _linear(e, s)
        if form is None:
            return None
        c, a, b = form
        # index >= floor((a s + b) / c)  <=>  a s + b <= c (index + 1) - 1
        room = c * (index + 1) - 1 - b
        if a > 0:
            highs.append(FloorDiv(sympy.expand(room), sympy.Integer(a)) + 1)
        else:
            return None
    return lows, highs


def _linear(e: Expr, s: Symbol) -> tuple[int, int, Expr] | None:
    """(c, a, b) such that ``e`` is ``floor((a s + b) / c)`` wherever it is compared with an index.

    A ``max(0, x)`` inside does not matter: an index is below neither 0 nor a floor of less.
    """
    e = sympy.expand(e)
    c = 1
    whole = sympy.Integer(0)
    parts = sympy.Add.make_args(e)
    floors = [p for p in parts if isinstance(p, FloorDiv)]
    if len(floors) == 1 and floors[0].args[1].is_Integer:
        c = int(floors[0].args[1])
        whole = e - floors[0]
        e = sympy.expand(floors[0].args[0] + c * whole)
    elif floors:
        return None
    inside = [p for p in sympy.Add.make_args(e) if isinstance(p, Max)]
    if len(inside) == 1:
        rest = e - inside[0]
        others = [a for a in inside[0].args if a != 0]
        small = rest.is_Integer and 0 <= int(rest) < c
        if len(others) != 1 or len(inside[0].args) != 2 or not small:
            return None
        e = sympy.expand(others[0] + rest)
    elif inside:
        return None
    a = e.coeff(s, 1)
    b = sympy.expand(e - a * s)
    if not a.is_Integer or b.has(s) or b.atoms(FloorDiv, Max, Min):
        return None
    return c, int(a), b


class _Copy:
    """Copies operations with program ids put together from others."""

    def __init__(self, symbols: dict[Symbol, Expr], quotients: dict[Expr, Expr]):
        self.symbols, self.quotients = symbols, quotients
        self.env: dict[Value, Value] = {}
        self.stores: dict[int, Op] = {}

    def attr(self, value):
        if isinstance(value, tuple):
            return tuple(map(self.attr, value))
        if self.quotients and hasattr(value, "xreplace"):
            value = value.xreplace(self.quotients)
        return substitute(value, self.symbols) if self.symbols else value

    def type(self, t: Type) -> Type:
        return substitute_type(t, self.symbols)

    def op(self, op: Op) -> Op:
        attrs = {k: self.attr(v) for k, v in op.attrs.items()}
        new = Op(op.kind, [self.env.get(v, v) for v in op.operands], attrs, [], [], op.loc)
        for region in op.regions:
            inner = Region([self._value(a, None) for a in region.args])
            inner.ops = [self.op(o) for o in region.ops]
            new.regions.append(inner)
        new.results = [self._value(v, new) for v in op.results]
        if op.kind in ("store", "scatter_add_rows"):
            self.stores[id(op)] = new
        return new

    def _value(self, v: Value, op: Op | None) -> Value:
        self.env[v] = Value(self.type(v.type), v.hint, op, v.symbol)
        return self.env[v]


# --------------------------------------------------------------------------------------------


def _cut(fn: Function, loop: Op, name: str) -> tuple[Function | None, list[Param]]:
    """Moves vectors that take a reduction into a program of their own; ``fn`` reads them."""
    used = {v for op in loop.regions[0].walk() for v in op.operands}
    dear: set[Value] = set()
    for op in fn.body.ops:
        if op is loop:
            break
        if op.kind in ("reduce", "mma", "for", "scan") or set(op.operands) & dear:
            dear |= set(op.results)
    for op in reversed(fn.body.ops):
        if op.kind in _PLAIN and set(op.results) & used:
            used |= set(op.operands)
    wanted = [
        v
        for op in fn.body.ops
        for v in op.results
        if v in used and v.type.dtype.is_float and op.kind not in _PLAIN
        if (v in dear and v.type.rank <= 1) or _made_of_tiles(op)
    ]
    if not wanted:
        return None, []
    before = Function(f"{name}_vectors", [], list(fn.dims), list(fn.grid), wide=fn.wide)
    before.facts, before.loc, before.aligned = fn.facts.extended({}), fn.loc, fn.aligned
    before.tasked = fn.tasked
    copy = _Copy({}, {})
    outer = [s for s, _ in fn.grid]
    memory: list[Param] = []
    for k, v in enumerate(wanted):
        counts = [count for _, count in fn.grid]
        memory.append(memory_like(f"{name}_vector_{k}", "out", counts, v.type))
    roles = {p.name: p.role for p in fn.params}
    before.params = [*(p for p in fn.params if roles[p.name] in ("in", "scalar")), *memory]
    emit = Emit(before, before.body)
    for op in fn.body.ops:
        if op is loop:
            break
        emit.append(copy.op(op))
    for p, v in zip(memory, wanted, strict=True):
        emit.op("store", [copy.env[v]], place_like(p, outer, v.type))
    emit.op("yield")

    reads = [Param(p.name, "in", p.dtype, p.dims) for p in memory]
    fn.params = [*fn.params, *reads]
    # Read where it was made: it may reach the loop through what is made again, a broadcast say.
    loads: dict[int, list[Op]] = {}
    mapping = {}
    for p, v in zip(reads, wanted, strict=True):
        at = Emit(fn, Region())
        mapping[v] = at.shaped(at.op("load", [], place_like(p, outer, v.type)).result, v.type)
        loads.setdefault(id(v.op), []).extend(at.regions[0].ops)
    for op in fn.body.walk():
        op.operands = [mapping.get(v, v) for v in op.operands]
    fn.body.ops = [new for op in fn.body.ops for new in (op, *loads.get(id(op), []))]
    return before, reads
