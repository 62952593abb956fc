"""Reverse mode on tile IR: from a kernel to the program that computes gradients of its inputs.

The derived program has the same grid. It runs the forward again as far as adjoints ask for forward
values, then every operation backwards by its rule. A loop is replayed backwards: its body once
more, from the carry that it had then, followed by the body's adjoints. Where that carry comes from:

    frozen    carries that are ``detach``ed: the answer does not depend on them, so that every
              iteration may use their last value. A running maximum ends here, and with it all
              rescaling, and what is left of such a loop's carries are plain sums.
    tape      all others: the forward loop writes them down in memory that belongs to the program,
              every iteration's or those at which segments begin (``codegen.grad.tape``).

What nobody reads is dropped afterwards, and it is most of this: carries that no adjoint reads,
adjoints of carries that pass through unchanged, loops that are left with nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sympy

from codegen.expr import And
from codegen.grad.activity import active_values
from codegen.grad.clean import clean
from codegen.grad.emit import Emit
from codegen.grad.errors import NoGradient
from codegen.grad.memory import frame_of
from codegen.grad.own import untold
from codegen.grad.rules import NONE, REFUSED, RULES
from codegen.grad.scans import MANY
from codegen.grad.tape import Tapes
from codegen.ir import Function, Op, Region, Value, f32
from codegen.ops import TABLE
from codegen.ops.base import IRError

_PLACE = ("start", "tile", "sides", "limit", "checks")

#: What writes outputs: where the adjoint of a value begins.
OUTPUTS = frozenset(["store", "store_add", "scatter_rows", "scatter_add_rows"])


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
        segments: Mapping[Op, int] | None = None,
    ):
        self.scatter = scatter
        self.forward, self.wrt, self.given = forward, frozenset(wrt), frozenset(given)
        self.active = active_values(forward, self.wrt)
        self.fn = frame_of(forward, name, self.wrt, self.given)
        self.emit = Emit(self.fn, self.fn.body)
        self.costly = _costly(forward)
        self.sites: list[tuple[Op, Op]] = []
        self.sums: set[Value] = set()
        self.finals: dict[Value, Value] = {}  # results of copied loops, with the original's
        self.tapes = Tapes(self.fn, self.emit, segments or {})

    def run(self) -> Function:
        scope = Scope({})
        body = self.forward.body
        self._replay(body.ops, scope, {})
        self._backwards(body.ops, scope)
        self.emit.op("yield")
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
        inits = [scope.env.get(v, v) for v in op.operands]
        cut = self.tapes.segment(op)
        if cut is None:
            new = self._forwards(op, inits, scope.env)
        else:
            region = Region([Value(a.type, a.hint) for a in op.regions[0].args])
            with self.emit.into(region):
                self.tapes.write_start(op, region.args)
                inner = self._forwards(op, region.args, scope.env, noted=False)
                self.emit.op("yield", inner.results)
            attrs = {"index": cut[0], "start": sympy.Integer(0), "stop": cut[1]}
            new = self.emit.op("for", inits, attrs, [region])
            for mine, v in zip(new.results, op.results, strict=True):
                mine.hint = v.hint
        scope.env |= dict(zip(op.results, new.results, strict=True))
        self.finals |= dict(zip(new.results, op.results, strict=True))

    def _forwards(self, op: Op, inits: list[Value], env: dict[Value, Value], noted=True) -> Op:
        """The loop again, or what a segment has of it, from ``inits``; ``noted``: on tape."""
        new = self._copied(op, env)
        new.operands = list(inits)
        start, stop = self.tapes.within(op)
        new.attrs = {**new.attrs, "start": start, "stop": stop}
        if noted:
            body, stores = new.regions[0], Region()
            args = range(len(body.args))
            frozen = frozenset(k for k in args if self._frozen(op, k) is not None)
            with self.emit.into(stores):
                self.tapes.write(op, body.args, frozen)
            body.ops = stores.ops + body.ops
        return self.emit.append(new)

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
        hints = [v.hint and f"d_{v.hint}" for v in (*(body.args[k] for k in carries), *outer)]

        def adjoints() -> Region:
            args = [Value(s.type, hint) for s, hint in zip(starts, hints, strict=True)]
            self.sums |= set(args[len(carries) :])
            return Region(args)

        region = adjoints()
        inner = Scope(dict(scope.env))
        pinned: dict[Value, Value] = {}
        for k, arg in enumerate(body.args):
            detached = self._frozen(op, k)
            if detached is not None:
                last = self.emit.shaped(scope.env[op.results[k]], arg.type)
                inner.env[arg] = last
                pinned[detached] = self.emit.shaped(last, detached.type)
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
                    inner.env[arg] = self.tapes.read(op, k)
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
        self.emit.op("barrier")
        start, stop = self.tapes.within(op)
        attrs = {"index": op.attrs["index"], "start": start, "stop": stop, "reverse": True}
        cut = self.tapes.segment(op)
        if cut is None:
            loop = self.emit.op("for", starts, attrs, [region])
        else:
            segment = adjoints()
            with self.emit.into(segment):
                self.emit.op("barrier")  # the segment before has read the tape
                self._forwards(op, self.tapes.read_start(op), dict(scope.env))
                self.emit.op("barrier")
                loop = self.emit.op("for", segment.args, attrs, [region])
                self.emit.op("yield", loop.results)
            attrs = {"index": cut[0], "start": sympy.Integer(0), "stop": cut[1], "reverse": True}
            loop = self.emit.op("for", starts, attrs, [segment])
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


__all__ = ["NoGradient", "Reverse"]
