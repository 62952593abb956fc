"""Reverse mode on tile IR: from a kernel to the program that computes gradients of its inputs.

The derived program has the same grid. It runs the forward again as far as adjoints ask for forward
values, then every operation backwards by its rule. A loop is replayed backwards: its body once
more, from the carry that it had then, followed by the body's adjoints. Where that carry comes from:

    frozen    carries that are ``detach``ed: the answer does not depend on them, so that every
              iteration may use their last value. A running maximum ends here, and with it all
              rescaling, and what is left of such a loop's carries are plain sums.
    tape      all others: the forward loop writes them down, an iteration a place, in memory that
              belongs to the program.

What nobody reads is dropped afterwards, and it is most of this: carries that no adjoint reads,
adjoints of carries that pass through unchanged, loops that are left with nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import sympy

from codegen.expr import And, Expr, Max, Min
from codegen.grad.activity import active_values
from codegen.grad.emit import Emit
from codegen.grad.own import untold
from codegen.grad.rules import NONE, REFUSED, RULES
from codegen.grad.scans import MANY
from codegen.ir import Function, Op, Param, Region, Type, Value, f32, loop_parts
from codegen.ops import TABLE
from codegen.ops.base import IRError
from codegen.passes.cse import share_common
from codegen.passes.dce import drop_dead
from codegen.passes.fold import fold

_PLACE = ("start", "tile", "sides", "limit", "checks")

#: What writes outputs: where the adjoint of a value begins.
OUTPUTS = frozenset(["store", "store_add", "scatter_rows", "scatter_add_rows"])


class NoGradient(Exception):
    """The kernel has no derivative with respect to what was asked: the operation, and why."""

    def __init__(self, op: Op | None, message: str, fix: str = ""):
        super().__init__(message)
        self.op, self.message, self.fix = op, message, fix


@dataclass
class Scope:
    """Forward values and adjoints, both by the value of the original program."""

    env: dict[Value, Value]
    adjoints: dict[Value, Value] = field(default_factory=dict)


@dataclass
class Context:
    """What a rule sees: see ``codegen.grad.rules``."""

    reverse: Reverse
    scope: Scope
    op: Op

    @property
    def emit(self) -> Emit:
        return self.reverse.emit

    def map(self, kind: str, *operands) -> Value:
        return self.emit.map(kind, *operands)

    def narrow(self, v: Value, dtype) -> Value:
        return self.emit.narrow(v, dtype)

    def wants(self, k: int) -> bool:
        return self.op.operands[k] in self.reverse.active

    def value(self, k: int) -> Value:
        v = self.op.operands[k]
        return self.scope.env.get(v, v)

    def wide(self, k: int) -> Value:
        return self.emit.wide(self.value(k))

    def result(self) -> Value:
        return self.emit.wide(self.scope.env[self.op.result])

    def gives(self, k: int, g: Value) -> None:
        v = self.op.operands[k]
        if v in self.reverse.active:
            g = self.emit.adjoint_of(v.type, g)
            self.scope.adjoints[v] = self.emit.add(self.scope.adjoints.get(v), g, v.type)


class Reverse:
    """Derives one program.

    Attributes after ``run``:
        fn: the program. Its parameters are those of the forward with outputs turned into inputs,
            ``d_<output>`` for every output in ``given``, ``d_<input>`` of role "out" for every
            tensor in ``wrt``, and scratch memory of role "inout".
        sites: the stores that hold gradients, with the loads that they belong to.
        sums: accumulators of loops, whose order does not matter.

    With ``scatter`` a tile that was loaded before a loop gets its gradient from every iteration
    by itself instead of from their sum, so that iterations have nothing in common.
    """

    def __init__(
        self,
        forward: Function,
        wrt: Iterable[str],
        given: Iterable[str],
        name: str,
        scatter: bool = False,
    ):
        self.scatter = scatter
        self.forward, self.wrt, self.given = forward, frozenset(wrt), frozenset(given)
        self.active = active_values(forward, self.wrt)
        self.fn = _frame(forward, name, self.wrt, self.given)
        self.emit = Emit(self.fn, self.fn.body)
        self.costly = _costly(forward)
        self.sites: list[tuple[Op, Op]] = []
        self.sums: set[Value] = set()
        self.finals: dict[Value, Value] = {}  # results of copied loops, with the original's
        self._tapes: dict[tuple[Op, int], Param] = {}

    def run(self) -> Function:
        scope = Scope({})
        body = self.forward.body
        self._replay(body.ops, scope, {})
        self._backwards(body.ops, scope)
        self.emit.op("yield")
        self.fn.params = [p for p in self.fn.params if not p.name.startswith("tape_")]
        self.fn.params += self._tapes.values()
        clean(self.fn)
        for op in self.fn.body.walk():
            if (
                op.kind == "for"
                and op.attrs.get("reverse")
                and set(op.regions[0].args) <= self.sums
            ):
                op.attrs = {k: v for k, v in op.attrs.items() if k != "reverse"}
        alive = {id(op) for op in self.fn.body.walk()}
        self.sites = [(store, load) for store, load in self.sites if id(store) in alive]
        return self.fn

    # -- forward again ---------------------------------------------------------------------

    def _replay(self, ops: list[Op], scope: Scope, pinned: dict[Value, Value]) -> None:
        """Copies what has no effect; ``pinned`` values are given, whatever they are made of."""
        stored = {
            op.operands[0]: op
            for op in ops
            if op.kind == "store" and self.forward.param(op.attrs["param"]).role == "out"
        }
        for op in ops:
            if op.results and all(v in pinned for v in op.results):
                scope.env |= {v: pinned[v] for v in op.results}
            elif op.kind == "for":
                self._replay_loop(op, scope)
            elif op.kind != "yield" and (TABLE[op.kind].pure or op.kind == "if"):
                self.emit.append(self._copied(op, scope.env))
                for v in op.results:
                    if v in stored and v in self.costly:
                        self._reload(stored[v], v, scope)

    def _reload(self, store: Op, v: Value, scope: Scope) -> None:
        """A value that took products to make is read from the output that holds it."""
        out = self.emit.value("load", param=store.attrs["param"], **_place(store))
        if not v.type.rank or any(
            a.meet(b) != b for a, b in zip(out.type.axes, v.type.axes, strict=True)
        ):
            return
        scope.env[v] = self.emit.shaped(self.emit.narrow(out, v.type.dtype), v.type)

    def _replay_loop(self, op: Op, scope: Scope) -> None:
        new = self._copied(op, scope.env)
        body = new.regions[0]
        stores = Region()
        with self.emit.into(stores):
            for k, arg in enumerate(body.args):
                if self._frozen(op, k) is None and arg.type.dtype.kind != "bool":
                    self._to_tape(op, k, arg)
        body.ops = stores.ops + body.ops
        self.emit.append(new)
        self.finals |= dict(zip(new.results, op.results, strict=True))

    def _copied(self, op: Op, env: dict[Value, Value]) -> Op:
        """A copy without effects, in nested regions too; ``env`` learns the results."""
        new = Op(op.kind, [env.get(v, v) for v in op.operands], _bare(op), [], [], op.loc)
        for region in op.regions:
            inner = Region([Value(a.type, a.hint, None, a.symbol) for a in region.args])
            env |= dict(zip(region.args, inner.args, strict=True))
            for o in region.ops:
                if o.kind in ("for", "if", "yield") or TABLE[o.kind].pure:
                    inner.ops.append(self._copied(o, env))
            new.regions.append(inner)
        new.results = [Value(v.type, v.hint, new, v.symbol) for v in op.results]
        env |= dict(zip(op.results, new.results, strict=True))
        return new

    # -- carries ---------------------------------------------------------------------------

    def _frozen(self, op: Op, k: int) -> Value | None:
        """The detached value that carry ``k`` of a loop becomes, or None."""
        v: Value = op.regions[0].terminator.operands[k]
        while v.op is not None and v.op.kind == "retype":
            v = v.op.operands[0]
        inside = v.op is not None and any(v.op is o for o in op.regions[0].ops)
        return v if inside and v.op.kind == "detach" else None  # type: ignore[union-attr]

    def _tape(self, op: Op, k: int) -> Param:
        if (op, k) not in self._tapes:
            _, start, stop = loop_parts(op)
            type_ = op.regions[0].args[k].type
            dims = [*(count for _, count in self.fn.grid), most(stop - start, self.fn)]
            name = f"tape_{len(self._tapes)}"
            self._tapes[op, k] = memory_like(name, "inout", dims, type_)
            self.fn.params.append(self._tapes[op, k])
        return self._tapes[op, k]

    def _tape_place(self, op: Op, k: int) -> dict[str, object]:
        index, start, _ = loop_parts(op)
        where = [*(s for s, _ in self.fn.grid), index - start]
        return place_like(self._tape(op, k), where, op.regions[0].args[k].type)

    def _to_tape(self, op: Op, k: int, arg: Value) -> None:
        self.emit.op("store", [arg], self._tape_place(op, k))

    def _from_tape(self, op: Op, k: int) -> Value:
        type_ = op.regions[0].args[k].type
        return self.emit.shaped(self.emit.op("load", [], self._tape_place(op, k)).result, type_)

    # -- backwards -------------------------------------------------------------------------

    def _backwards(self, ops: list[Op], scope: Scope) -> None:
        for op in reversed(ops):
            self.emit.loc = op.loc
            if op.kind in OUTPUTS:
                self._seed(op, scope)
            elif op.kind == "for":
                self._loop(op, scope)
            elif op.kind == "if":
                self._branch(op, scope)
            elif op.results:
                self._rule(op, scope)

    def _rule(self, op: Op, scope: Scope) -> None:
        gs = [scope.adjoints.pop(v, None) for v in op.results]
        if all(g is None for g in gs) or not set(op.results) & self.active:
            return
        if op.kind in ("load", "gather_rows"):
            self._contribute(op, gs[0], scope)  # type: ignore[arg-type]
        elif op.kind in RULES:
            try:
                g = gs if op.kind in MANY else gs[0]
                RULES[op.kind](Context(self, scope, op), op, g)  # type: ignore[arg-type]
            except IRError as e:
                raise NoGradient(op, e.message, e.fix) from None
        elif op.kind not in NONE:
            why = REFUSED.get(op.kind, op.kind)
            raise NoGradient(
                op,
                f"no gradient flows through {why} ({op.kind})",
                "tk.detach its operand, or attach a backward of your own: @kernel.attach_backward",
            )

    def _seed(self, op: Op, scope: Scope) -> None:
        v, name = op.operands[0], op.attrs["param"]
        if v not in self.active or name not in self.given:
            return
        attrs = {"param": f"d_{name}", **_place(op)}
        rows = [scope.env.get(r, r) for r in op.operands[1:]]
        g = self.emit.op("gather_rows" if rows else "load", rows, attrs).result
        g = self.emit.wide(g)
        g = self.emit.spread(g, v.type.like(dtype=f32)) if g.type.rank >= v.type.rank else g
        if v.type.rank < g.type.rank:
            g = self.emit.adjoint_of(v.type, g)
        again = untold(self.forward, op) if op.kind == "store" else []
        if again:  # programs that write the same: the first of them counts
            first = self.emit.value("cond", expr=And(*(sympy.Eq(s, 0) for s in again)))
            g = self.emit.map("where", first, g, 0.0)
        scope.adjoints[v] = self.emit.add(scope.adjoints.get(v), g, v.type)

    def _contribute(self, op: Op, g: Value, scope: Scope) -> None:
        name = op.attrs["param"]
        if name not in self.wrt:
            return
        g = self.emit.shaped(g, op.result.type.like(dtype=f32))
        rows = [scope.env.get(r, r) for r in op.operands]
        kind = "scatter_add_rows" if rows else "store"
        store = self.emit.op(kind, [g, *rows], {"param": f"d_{name}", **_place(op)})
        self.sites.append((store, op))

    def _loop(self, op: Op, scope: Scope) -> None:
        body = op.regions[0]
        carries = [k for k, a in enumerate(body.args) if a in self.active]
        outer = _outside(body, self.active)
        gs = [scope.adjoints.pop(v, None) for v in op.results]
        if not any(g is not None for g in gs) and not _seeded(body, self.given, self.active):
            return
        direct = [v for v in outer if self.scatter and _loaded(v, self.wrt)]
        outer = [v for v in outer if v not in direct]
        wide = [body.args[k].type.like(dtype=f32) for k in carries]
        starts = [
            self.emit.full(t, 0.0) if (g := gs[k]) is None else self.emit.shaped(g, t)
            for k, t in zip(carries, wide, strict=True)
        ]
        for v in outer:
            t = v.type.like(dtype=f32)
            had = scope.adjoints.pop(v, None)
            starts.append(self.emit.full(t, 0.0) if had is None else self.emit.shaped(had, t))
        region = Region(
            [
                Value(s.type, f"d_{v.hint}" if v.hint else "")
                for s, v in zip(starts, [*(body.args[k] for k in carries), *outer], strict=True)
            ]
        )
        self.sums |= set(region.args[len(carries) :])
        inner = Scope(dict(scope.env))
        pinned: dict[Value, Value] = {}
        for k, arg in enumerate(body.args):
            detached = self._frozen(op, k)
            if detached is not None:
                last = self.emit.shaped(scope.env[op.results[k]], arg.type)
                inner.env[arg] = last
                pinned[detached] = self.emit.shaped(last, detached.type)
        self.emit.op("barrier")
        with self.emit.into(region):
            for k, arg in enumerate(body.args):
                if arg not in inner.env or self._frozen(op, k) is None:
                    if arg.type.dtype.kind == "bool" or arg.symbol is not None:
                        raise NoGradient(
                            op,
                            f"the loop carries {arg.hint or 'a number'}, which its body asks for "
                            "again in reverse, and which is no tile of floats or integers",
                            "compute it from the loop's index, or hold it in a vector",
                        )
                    inner.env[arg] = self._from_tape(op, k)
            self._replay(body.ops[:-1], inner, pinned)
            _simplify(region, self.fn)
            for v, acc in zip(outer, region.args[len(carries) :], strict=True):
                inner.adjoints[v] = acc
            for k, g in zip(carries, region.args, strict=False):
                v = body.terminator.operands[k]
                inner.adjoints[v] = self.emit.add(
                    inner.adjoints.get(v), self.emit.shaped(g, v.type), v.type
                )
            self._backwards(body.ops[:-1], inner)
            for v in direct:
                if v in inner.adjoints:
                    self._contribute(v.op, inner.adjoints[v], inner)  # type: ignore[arg-type]
            out = []
            for k, t in zip(carries, wide, strict=True):
                g = inner.adjoints.get(body.args[k])
                out.append(self.emit.full(t, 0.0) if g is None else self.emit.shaped(g, t))
            for v, s in zip(outer, starts[len(carries) :], strict=True):
                out.append(self.emit.shaped(inner.adjoints[v], s.type))
            self.emit.op("yield", out)
        attrs = {**{k: op.attrs[k] for k in ("index", "start", "stop")}, "reverse": True}
        loop = self.emit.op("for", starts, attrs, [region])
        for k, r in zip(carries, loop.results, strict=False):
            v = op.operands[k]
            if v in self.active:
                r = self.emit.shaped(r, v.type)
                scope.adjoints[v] = self.emit.add(scope.adjoints.get(v), r, v.type)
        for v, r in zip(outer, loop.results[len(carries) :], strict=True):
            scope.adjoints[v] = (
                r if v not in scope.adjoints else self.emit.add(scope.adjoints[v], r, v.type)
            )

    def _branch(self, op: Op, scope: Scope) -> None:
        gs = [scope.adjoints.pop(v, None) for v in op.results]
        outer = list(dict.fromkeys(v for r in op.regions for v in _outside(r, self.active)))
        seeded = any(_seeded(r, self.given, self.active) for r in op.regions)
        if not seeded and all(g is None for g in gs):
            return
        had = {}
        for v in outer:
            g = scope.adjoints.pop(v, None)
            t = v.type.like(dtype=f32)
            had[v] = self.emit.full(t, 0.0) if g is None else self.emit.shaped(g, t)
        regions = []
        for region in op.regions:
            new = Region()
            inner = Scope(dict(scope.env), dict(had))
            with self.emit.into(new):
                self._replay(region.ops[:-1], inner, {})
                for v, g in zip(region.terminator.operands, gs, strict=True):
                    if g is not None and v in self.active:
                        g = self.emit.shaped(g, v.type)
                        inner.adjoints[v] = self.emit.add(inner.adjoints.get(v), g, v.type)
                self._backwards(region.ops[:-1], inner)
                out = [self.emit.shaped(inner.adjoints[v], had[v].type) for v in outer]
                self.emit.op("yield", out)
            regions.append(new)
        operands = [scope.env.get(v, v) for v in op.operands]
        new_op = self.emit.op("if", operands, op.attrs, regions)
        scope.adjoints |= dict(zip(outer, new_op.results, strict=True))


# --------------------------------------------------------------------------------------------


def _bare(op: Op) -> dict[str, object]:
    """Attributes without what belongs to a pipeline."""
    return {k: v for k, v in op.attrs.items() if k not in ("rings", "roles", "num_stages")}


def _frame(forward: Function, name: str, wrt: frozenset[str], given: frozenset[str]) -> Function:
    """An empty function over the forward's parameters and grid."""
    fn = Function(name, dims=list(forward.dims), grid=list(forward.grid), wide=forward.wide)
    fn.facts, fn.aligned, fn.loc = forward.facts.extended({}), forward.aligned, forward.loc
    fn.tasked = forward.tasked
    fn.body = Region()
    for p in forward.params:
        if p.role == "inout":
            continue
        role = "in" if p.role == "out" else p.role
        fn.params.append(_as(p, p.name, role, p.dtype))
    for p in forward.params:
        if p.role == "out" and p.name in given:
            fn.params.append(_as(p, f"d_{p.name}", "in", p.dtype))
    for p in forward.params:
        if p.role == "in" and p.name in wrt:
            fn.params.append(_as(p, f"d_{p.name}", "out", f32))
    return fn


def _as(p: Param, name: str, role: str, dtype) -> Param:
    return Param(name, role, dtype, p.dims, p.unit_inner, False, p.labels, p.pair)


def memory_like(name: str, role: str, outer: list[Expr], type_: Type) -> Param:
    """Memory with room for a value of ``type_`` at every place of ``outer``."""
    sides = [sympy.Integer(f.side) for a in type_.axes for f in a.factors]
    return Param(name, role, type_.dtype, tuple(map(sympy.sympify, (*outer, *sides))))


def place_like(p: Param, where: list[Expr], type_: Type) -> dict[str, object]:
    """Attributes of an access to the value at ``where``."""
    tile, sides, d = [], [], len(where)
    for a in type_.axes:
        tile.append(tuple(range(d, d + len(a.factors))))
        sides.append(tuple(f.side for f in a.factors))
        d += len(a.factors)
    return {
        "param": p.name,
        "start": (*where, *[sympy.Integer(0)] * (d - len(where))),
        "tile": tuple(tile),
        "sides": tuple(sides),
        "limit": (None,) * len(tile),
        "checks": ((False, False),) * d,
    }


def most(e: Expr, fn: Function) -> Expr:
    """An expression in dimensions alone that ``e`` does not exceed in any program or iteration."""
    e = sympy.sympify(e)
    known = set(fn.dims) | {sympy.Symbol(p.name, integer=True) for p in fn.params}

    def loose(x: Expr) -> set:
        return x.free_symbols - known

    whole = [a for a in sympy.Add.make_args(e) if isinstance(a, Min)]
    if loose(e) and len(whole) == 1:
        fixed = [a for a in whole[0].args if not loose(a)]
        rest = e - whole[0]
        if fixed:  # a start that depends on the program is not negative
            return Min(*fixed) + (0 if loose(rest) else rest)
    for _ in range(8):  # the range of an inner index may name an outer one
        if not loose(e):
            return e
        for s in sorted(loose(e), key=str):
            low, high = fn.facts.ranges.get(s, (None, None))
            if low is None or high is None:
                raise NoGradient(None, f"how often a loop runs is decided by {s}")
            e = Max(e.subs(s, low), e.subs(s, high))
    raise NoGradient(None, f"how often a loop runs is not told by the sizes: {e}")


def _place(op: Op) -> dict[str, object]:
    """Where ``op`` accesses memory, as attributes."""
    return {k: op.attrs[k] for k in (*_PLACE, "row_dim") if k in op.attrs}


def _loaded(v: Value, wrt: frozenset[str]) -> bool:
    return v.op is not None and v.op.kind == "load" and v.op.attrs["param"] in wrt


def _outside(region: Region, active: set[Value]) -> list[Value]:
    """Active values that ``region`` reads and does not define, in order of first use."""
    defined: set[Value] = set()
    found: dict[Value, None] = {}

    def visit(r: Region) -> None:
        defined.update(r.args)
        for op in r.ops:
            for v in op.operands:
                if v in active and v not in defined:
                    found[v] = None
            for inner in op.regions:
                visit(inner)
            defined.update(op.results)

    visit(region)
    return list(found)


def _seeded(region: Region, given: frozenset[str], active: set[Value]) -> bool:
    """True if something active is stored inside."""
    return any(
        op.kind in OUTPUTS and op.attrs["param"] in given and op.operands[0] in active
        for op in region.walk()
    )


def _costly(fn: Function) -> set[Value]:
    """Values that take a matrix product or a loop to make."""
    out: set[Value] = set()

    def visit(region: Region) -> None:
        out.update(region.args)
        for op in region.ops:
            for inner in op.regions:
                visit(inner)
            if op.kind in ("mma", "for") or set(op.operands) & out:
                out.update(op.results)

    visit(fn.body)
    return out


def _simplify(region: Region, fn: Function) -> None:
    """``x - x`` of a frozen carry is zero: it has stopped changing, and was finite."""
    for op in region.ops:
        if op.kind == "sub" and op.operands[0] is op.operands[1] and op.result.type.rank:
            t = op.result.type
            op.kind, op.operands = "full", []
            op.attrs = {"value": 0.0, "dtype": t.dtype, "axes": t.axes, "orient": t.orient}


def clean(fn: Function) -> None:
    """Folds, shares, and drops what nobody reads; a tape that nobody reads is not written."""
    fold(fn)
    share_common(fn)
    before = -1
    while before != (now := sum(1 for _ in fn.body.walk())):
        before = now
        drop_dead(fn)
        # What is added to in memory is read by that.
        adding = ("load", "store_add", "gather_rows", "scatter_add_rows")
        read = {op.attrs["param"] for op in fn.body.walk() if op.kind in adding}
        dead = {p.name for p in fn.params if p.role == "inout" and p.name not in read}
        _remove(fn.body, lambda op, dead=dead: op.kind == "store" and op.attrs["param"] in dead)
        if not any(p.role == "inout" and p.name in read for p in fn.params):
            _remove(fn.body, lambda op: op.kind == "barrier")
        _remove(fn.body, _idle)
        fn.params = [p for p in fn.params if p.name not in dead]


def _idle(op: Op) -> bool:
    return op.kind == "for" and not op.results and len(op.regions[0].ops) == 1


def _remove(region: Region, unwanted) -> None:
    region.ops = [op for op in region.ops if not unwanted(op)]
    for op in region.ops:
        for inner in op.regions:
            _remove(inner, unwanted)


__all__ = ["NoGradient", "Reverse", "clean", "memory_like", "place_like"]
