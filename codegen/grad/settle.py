"""What becomes of contributions that meet: plain stores, sums in memory, or partial sums.

stored    one program and iteration owns the place: nothing to add
summed    one program owns it and comes back: it adds in fp32 to what it has written before
partial   several programs: each run of programs adds up a part of its own, in order, and the
          parts, at most ``PARTS``, are added afterwards
atomic    the same without an order, where the caller does not ask for one
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from codegen.expr import Expr, FloorDiv, Max, Min, Symbol, cdiv
from codegen.grad.emit import Emit
from codegen.grad.own import Owner, covers, disputed, owner
from codegen.grad.rows import add_rows, copies
from codegen.ir import DType, Function, Op, Region, Value, f32

#: The most partial sums that a gradient is added up from.
PARTS = 32

#: So many programs of other ids are enough: their run over one is not cut, which would take a sum
#: more for each of its parts.
ENOUGH = 4


@dataclass
class Gradient:
    """How ``d_<name>`` comes out of a program.

    parts: leading dimensions of the parameter, over which the partial sums are added.
    zeroed: the program adds to what is there, or does not write everything.
    """

    name: str
    parts: int = 0
    zeroed: bool = False


def settle(
    fn: Function,
    sites: list[tuple[Op, Op]],
    dtypes: Mapping[str, DType],
    deterministic: bool = True,
    programs: int = 0,
) -> list[Gradient]:
    """Rewrites the gradient stores of ``fn`` in place; says how each gradient is to be read.

    ``programs``: of partial sums only as many are made as it takes to have so many programs, one
    where there are ``ENOUGH`` without.
    """
    by_name: dict[str, list[Op]] = {}
    for store, _ in sites:
        by_name.setdefault(store.attrs["param"].removeprefix("d_"), []).append(store)
    owners = {id(s): owner(fn, s) for s, _ in sites}
    shared: dict[str, list[Symbol]] = {}
    for name, stores in by_name.items():
        told_apart = _disputed(stores, owners)
        shared[name] = [
            s
            for s, _ in fn.grid
            if s in told_apart or any(s in owners[id(o)].shared_programs(fn) for o in stores)
        ]
    out = []
    partial = [n for n, symbols in shared.items() if symbols]
    if partial and not deterministic:
        for n in partial:
            _atomic(fn, by_name[n])
            fn.param(f"d_{n}").role = "inout"
            out.append(Gradient(n, 0, True))
        partial = []
    for name, stores in by_name.items():
        if shared[name]:
            continue
        p = fn.param(f"d_{name}")
        alone = all(s.kind == "store" and not owners[id(s)].shared_loops() for s in stores)
        if alone and not any(
            disputed(a, b, owners[id(a)], owners[id(b)]) is not None
            for k, a in enumerate(stores)
            for b in stores[:k]
        ):
            p.dtype = dtypes[name]
            whole = len(stores) == 1 and covers(fn, stores[0], owners[id(stores[0])])
            out.append(Gradient(name, 0, not whole))
        else:
            p.role = "inout"
            for s in stores:
                _add_in_memory(fn, s)
            out.append(Gradient(name, 0, True))
    if partial:
        out += _partial(fn, {n: by_name[n] for n in partial}, shared, owners, programs)
    return out


def _disputed(stores: list[Op], owners: dict[int, Owner]) -> set[Symbol]:
    """Symbols that some two of ``stores``, which may meet, tell differently."""
    out: set[Symbol] = set()
    for k, a in enumerate(stores):
        for b in stores[:k]:
            out |= disputed(a, b, owners[id(a)], owners[id(b)]) or set()
    return out


def _atomic(fn: Function, stores: list[Op]) -> None:
    for s in stores:
        s.kind = "store_add" if s.kind == "store" else s.kind


def _add_in_memory(fn: Function, store: Op) -> None:
    """``store`` becomes: load what is there, add, store."""
    region = _home(fn.body, store)
    at = next(k for k, op in enumerate(region.ops) if op is store)
    emit = Emit(fn, Region())
    emit.loc = store.loc
    emit.op("barrier")
    v = store.operands[0]
    made = v.op
    if store.kind == "scatter_add_rows":
        add_rows(emit, store)
        region.ops = [*region.ops[:at], *emit.regions[0].ops, *region.ops[at:]]
        return
    there = emit.op("load", [], dict(store.attrs)).result
    if made is not None and made.kind == "mma" and len(made.operands) == 2:
        inner = emit.shaped(there, made.result.type)
        total = emit.op("mma", [*made.operands, inner], made.attrs).result
    else:
        total = emit.map("add", emit.shaped(there, v.type) if v.type.rank else there, v)
    store.operands = [total]
    region.ops = [*region.ops[:at], *emit.regions[0].ops, *region.ops[at:]]


def _home(region: Region, op: Op) -> Region:
    found = _search(region, op)
    assert found is not None
    return found


def _search(region: Region, op: Op) -> Region | None:
    for o in region.ops:
        if o is op:
            return region
        for inner in o.regions:
            found = _search(inner, op)
            if found is not None:
                return found
    return None


def _partial(
    fn: Function,
    stores: dict[str, list[Op]],
    shared: dict[str, list[Symbol]],
    owners: dict[int, Owner],
    programs: int,
) -> list[Gradient]:
    """A run of values of one program id becomes one program, which adds up in order."""
    common = [s for s, _ in fn.grid if all(s in shared[n] for n in stores)]
    walked = max(common, key=lambda s: _weight(fn, s)) if common else None
    chosen = [s for mine in stores.values() for s in mine if s.kind == "scatter_add_rows"]
    # A part has room for the whole of a table: programs that share it are few.
    inside = [s for n in stores for s in shared[n] if s != walked] if chosen else []
    inside = list(dict.fromkeys(inside))
    out = []
    carried: list[tuple[Op, str]] = []
    run: Symbol | None = None
    if walked is not None:
        run = sympy.Symbol(f"{walked.name}_run", integer=True)
        while run in fn.facts.ranges:
            run = sympy.Symbol(f"{run.name}_", integer=True)
    counts = dict(fn.grid)
    length, runs = sympy.Integer(1), sympy.Integer(1)
    if walked is not None:
        # No programs, no runs: a length of zero would divide by it.
        most: Expr = sympy.Integer(PARTS)
        if programs:
            others = Max(sympy.Mul(*(c for s, c in fn.grid if s != walked)), 1)
            cut = FloorDiv(programs - 1, others) * Min(1, FloorDiv(ENOUGH - 1, others))
            most = Min(PARTS, cut + 1)
        for store in chosen:
            most = Min(most, Max(copies(fn, store, counts[walked]), 1))
        length = Max(cdiv(counts[walked], most), 1)
        runs = FloorDiv(counts[walked] + length - 1, length)
    for name, mine in stores.items():
        p = fn.param(f"d_{name}")
        outer = [(run, runs)] if walked is not None else []
        outer += [(s, counts[s]) for s in shared[name] if s != walked and s not in inside]
        p.dims = (*(c for _, c in outer), *p.dims)
        p.labels = ()
        p.unit_inner = True
        lead = len(outer)
        for s in mine:
            s.attrs = {**s.attrs}
            s.attrs["start"] = (*(x for x, _ in outer), *s.attrs["start"])
            s.attrs["tile"] = tuple(tuple(d + lead for d in which) for which in s.attrs["tile"])
            s.attrs["checks"] = (*[(False, False)] * lead, *s.attrs["checks"])
            if "row_dim" in s.attrs:
                s.attrs["row_dim"] += lead
        once = not inside and mine[0].kind == "store"
        once = (
            once
            and len(mine) == 1
            and not owners[id(mine[0])].loops
            and not owners[id(mine[0])].branch
        )
        once = once and not ({walked} | owners[id(mine[0])].dynamic) & mine[0].attr_symbols()
        if once:
            carried.append((mine[0], name))
        else:
            p.role = "inout"
            for s in mine:
                _add_in_memory(fn, s)
        out.append(Gradient(name, lead, True))
    for s in inside:
        fn.grid = [(other, c) for other, c in fn.grid if other != s]
        _walk_run(fn, s, sympy.Integer(0), counts[s], [])
    if walked is None:
        return out
    assert run is not None
    count = counts[walked]
    fn.facts.ranges[run] = (sympy.Integer(0), runs - 1)
    fn.grid = [(run, runs) if s == walked else (s, c) for s, c in fn.grid]
    _walk_run(fn, walked, run * length, Min(run * length + length, count), carried)
    return out


def _weight(fn: Function, s: Symbol) -> int:
    """A program id whose count is a quotient of sizes is one of many, such as rows by tile."""
    count = dict(fn.grid)[s]
    return (2 if count.atoms(FloorDiv) else 1) if count.free_symbols else 0


def _walk_run(
    fn: Function, s: Symbol, low: Expr, high: Expr, carried: list[tuple[Op, str]]
) -> None:
    """The body of ``fn`` in a loop over ``s``; stores in ``carried`` after it, of sums."""
    body, outer = fn.body, Region()
    emit = Emit(fn, outer)
    types = [store.operands[0].type.like(dtype=f32) for store, _ in carried]
    types = [t.like(axes=tuple(_without(a, s) for a in t.axes)) for t in types]
    zeros = [emit.full(t, 0.0) for t in types]
    inner = Region([Value(t, f"sum_{name}") for t, (_, name) in zip(types, carried, strict=True)])
    inner.ops = [op for op in body.ops[:-1] if not any(op is c for c, _ in carried)]
    with emit.into(inner):
        sums = []
        for (store, _), acc, t in zip(carried, inner.args, types, strict=True):
            v = store.operands[0]
            sums.append(emit.map("add", acc, emit.shaped(v, t) if t.rank else v))
        emit.op("yield", sums)
    attrs = {"index": s, "start": low, "stop": high}
    results = emit.op("for", zeros, attrs, [inner]).results
    for (store, _), total in zip(carried, results, strict=True):
        store.operands = [total]
        emit.append(store)
    emit.op("yield")
    fn.body = outer


def _without(axis, s: Symbol):
    """``axis`` without the bounds that depend on ``s``."""
    return type(axis)(
        tuple(
            type(f)(f.side, tuple(b for b in f.bounds if s not in b.free_symbols))
            for f in axis.factors
        )
    )


__all__ = ["PARTS", "Gradient", "settle"]
