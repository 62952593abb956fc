"""Statements: assignments, branches that become regions, loops that stay loops."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable

from codegen.expr import Boolean, is_index
from codegen.ir import Region, Type, Value
from tkpy.builder import TileRange, what
from tkpy.frontend.core import Core
from tkpy.frontend.source import PARTS, Return, Undefined, hold
from tkpy.frontend.syntax import (
    INSTEAD,
    MAX_UNROLL,
    assigned,
    compatible,
    defined_symbols,
    same,
    same_axes,
    target_names,
    words,
)

#: What evaluating the author's expressions at compile time may raise: said with its line.
PYTHON_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


class Statements(Core):
    """The statement half of the walker."""

    def block(self, body: list[ast.stmt]) -> None:
        for node in body:
            method = getattr(self, f"do_{type(node).__name__}", None)
            if method is None:
                raise self.error(
                    node,
                    f"`{words(node)}` is not part of the language",
                    INSTEAD.get(type(node).__name__, "tiles, for, if and @tk.function calls are"),
                )
            try:
                method(node)
            except PYTHON_ERRORS as e:
                raise self.error(node, f"{type(e).__name__}: {e}") from e

    def do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.eval(node.value)

    def do_Pass(self, node: ast.Pass) -> None:
        pass

    def do_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        self.b.targets = target_names(target)
        value = self.eval(node.value)
        self.b.targets = []
        for t in node.targets:
            self.bind(t, value)

    def do_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is None:
            raise self.error(node, "a declaration without a value", "assign the value")
        self.b.targets = target_names(node.target)
        value = self.eval(node.value)
        self.b.targets = []
        self.bind(node.target, value)

    def do_AugAssign(self, node: ast.AugAssign) -> None:
        if not isinstance(node.target, ast.Name):
            raise self.error(node, "only names are updated", "tiles are values: assign a new one")
        left = self.eval(ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target))
        right = self.eval(node.value)
        self.bind(node.target, self.binary(node, node.op, left, right))

    def bind(self, target: ast.expr, value: object) -> None:
        if isinstance(target, ast.Name):
            if isinstance(value, Value) and not value.hint:
                value.hint = target.id
            self.assign(target.id, value)
            return
        if isinstance(target, ast.Tuple | ast.List):
            self.unpack(target, value)
            return
        raise self.error(
            target,
            "tiles are values and are not assigned to in part",
            "use tk.where or tk.concat, or tk.store for global memory",
        )

    def unpack(self, target: ast.Tuple | ast.List, value: object) -> None:
        names = target.elts
        starred = [k for k, t in enumerate(names) if isinstance(t, ast.Starred)]
        if not isinstance(value, tuple | list):
            raise self.error(
                target,
                f"{what(value)} is one value, and is taken apart into {len(names)}",
                f"{ast.unparse(names[0])} = ..." if len(names) == 1 else "",
            )
        if len(starred) > 1 or not (
            len(value) >= len(names) - 1 if starred else len(value) == len(names)
        ):
            raise self.error(target, f"{len(names)} names for {len(value)} values")
        values = list(value)
        for k in starred:
            end = len(values) - (len(names) - 1 - k)
            values[k:end] = [tuple(values[k:end])]
        for t, v in zip(names, values, strict=True):
            self.bind(t.value if isinstance(t, ast.Starred) else t, v)

    def assign(self, name: str, value: object) -> None:
        hold(self.f.env, name, value)

    def do_Return(self, node: ast.Return) -> None:
        if self.f.conditional:
            raise self.error(
                node,
                "return inside a loop or a run-time `if`",
                "assign to a name and return at the end",
            )
        if self.f.depth == 0 and node.value is not None:
            raise self.error(
                node, "a kernel returns nothing", "tk.store into a tk.Out of the signature"
            )
        raise Return(self.eval(node.value) if node.value is not None else None)

    def do_Assert(self, node: ast.Assert) -> None:
        test = self.truth(node.test, self.eval(node.test))
        if test is None:
            raise self.error(
                node,
                "assert is checked at compile time and this is only known at run time",
                'state it in the signature: @tk.kernel(where=["H % G == 0"])',
            )
        if not test:
            message = self.eval(node.msg) if node.msg else "assertion failed"
            raise self.error(node, str(message))

    # -- branches --------------------------------------------------------------------------

    def do_If(self, node: ast.If) -> None:
        test = self.eval(node.test)
        known = self.truth(node.test, test)
        if known is not None:
            self.block(node.body if known else node.orelse)
            return
        before = dict(self.f.env)
        regions, envs = [], []
        for body in (node.body, node.orelse):
            self.f.env = dict(before)
            region = Region()
            self.b.regions.append(region)
            self.f.conditional += 1
            self.block(body)
            self.f.conditional -= 1
            self.b.regions.pop()
            regions.append(region)
            envs.append(self.f.env)
        self.f.env = before
        self._merge(node, test, regions, envs, before)

    def _merge(self, node, test, regions, envs, before) -> None:
        names = []
        for n in dict.fromkeys([*envs[0], *envs[1]]):
            if n in envs[0] and envs[0][n] is envs[1].get(n):
                before[n] = envs[0][n]
            else:
                names.append(n)
        joined: list[str] = []
        for name in names:
            one, two = envs[0].get(name), envs[1].get(name)
            missing = (
                one is None
                or two is None
                or isinstance(one, Undefined)
                or isinstance(two, Undefined)
            )
            if missing:
                before[name] = Undefined(
                    f"{name} is assigned in only one branch of the `if` in line "
                    f"{self.f.source.loc(node).line}"
                )
            elif same(one, two):
                before[name] = one
            else:
                joined.append(name)
        for k, region in enumerate(regions):
            self.b.regions.append(region)
            values = [self._as_value(node, n, envs[k][n]) for n in joined]
            region_values = values
            self.guard(node, "if", lambda v=region_values: self.b.emit("yield", v))
            self.b.regions.pop()
        for name, a, c in zip(
            joined, regions[0].terminator.operands, regions[1].terminator.operands, strict=True
        ):
            if not compatible(a.type, c.type):
                raise self.error(
                    node,
                    f"{name} is {a.type.describe()} in one branch and "
                    f"{c.type.describe()} in the other",
                    "give it one shape and dtype, for example with tk.cast",
                )
        is_value = isinstance(test, Value)
        op = self.guard(
            node,
            "if",
            lambda: self.b.emit(
                "if",
                [test] if is_value else [],
                {} if is_value else {"cond": self.b.norm(test)},
                regions,
            ),
        )
        for name, result in zip(joined, op.results, strict=True):
            result.hint = name.replace(".", "_")
            before[name] = self._from_value(name, result)

    def _as_value(self, node: ast.AST, name: str, x: object) -> Value:
        """``x`` as something a region can hand on."""
        if isinstance(x, Value):
            return x
        if is_index(x):
            return self.guard(node, "", lambda: self.b.op("index", attrs={"expr": self.b.norm(x)}))
        if isinstance(x, bool | float | Boolean):
            return self.guard(node, "", lambda: self.b.value(x))
        raise self.error(
            node,
            f"{name} would change at run time from one compile-time value to another ({what(x)})",
            "only tiles, vectors and numbers can depend on run-time conditions",
        )

    def _from_value(self, name: str, value: Value) -> object:
        if value.type.rank == 0 and value.type.dtype.kind == "int":
            value.symbol = self.b.new_symbol(name, None, None)
            return value.symbol
        return value

    # -- loops -----------------------------------------------------------------------------

    def do_For(self, node: ast.For) -> None:
        if node.orelse:
            raise self.error(node, "for ... else is not part of the language", "drop the else")
        many = self.eval(node.iter)
        if isinstance(many, TileRange):
            self._tile_loop(node, many)
            return
        if isinstance(many, builtins.range | tuple | list):
            if len(many) > MAX_UNROLL:
                raise self.error(
                    node,
                    f"this loop would be unrolled {len(many)} times",
                    "use tk.range for a loop that the kernel runs",
                )
            for item in many:
                self.bind(node.target, item)
                self.block(node.body)
            return
        raise self.error(
            node.iter,
            f"cannot loop over {what(many)}",
            "use tk.range(n), or Python's range of constants to unroll",
        )

    def _tile_loop(self, node: ast.For, many: TileRange) -> None:
        if not isinstance(node.target, ast.Name):
            raise self.error(node.target, "a tile loop has one index")
        updated = [
            n
            for n in assigned(node.body)
            if n in self.f.env and not isinstance(self.f.env[n], Undefined) and n != node.target.id
        ]
        self.loop_over(node, many, node.target.id, updated, lambda: self.block(node.body), {})

    def loop_over(
        self,
        node: ast.AST,
        many: TileRange,
        index: str,
        updated: list[str],
        body: Callable[[], None],
        attrs: dict[str, object],
    ) -> None:
        """A ``for`` over ``many`` that carries those of ``updated`` that ``body`` changes.

        ``body`` walks one trip: it finds the trip's number under the name ``index`` and leaves
        what it carries on in the frame. ``attrs`` are further attributes of the operation.
        """
        updated = [p for n in updated for p in self._with_parts(n)]
        before = dict(self.f.env)
        state = (
            len(self.b.regions[-1].ops),
            set(self.b.stored),
            set(self.b.symbols),
            dict(self.b.fn.facts.ranges),
            self.b.fn.pipelined,
        )
        types: dict[str, Type] = {}
        changed: list[str] = list(updated)
        for attempt in range(6):
            # Start over from the same point: the types of carries are a fixed point.
            del self.b.regions[-1].ops[state[0] :]
            self.b.stored, self.b.symbols = set(state[1]), set(state[2])
            self.b.fn.facts.ranges = dict(state[3])
            self.b.fn.pipelined = state[4]
            self.f.env = dict(before)
            first = attempt == 0
            outcome = self._loop_once(node, many, index, body, attrs, changed, types, first)
            if outcome is True:
                return
            changed = outcome
        raise self.error(node, "the types of the values carried round this loop do not settle")

    def _with_parts(self, name: str) -> list[str]:
        return [f"{name}.real", f"{name}.imag"] if self.f.env.get(name) is PARTS else [name]

    def _loop_once(self, node, many, name, walk, extra, carried, types, first):
        """One attempt. Returns True when done, else the names to carry in the next attempt."""
        before = dict(self.f.env)
        inits = {n: self._initial(node, n, before[n]) for n in carried}
        region = Region()
        for n in carried:
            init = inits[n]
            if n not in types:
                orient = (
                    "?" if init.type.rank == 1 and init.type.orient is None else (init.type.orient)
                )
                types[n] = init.type.like(orient=orient)
            arg = Value(types[n], n.replace(".", "_"))
            region.args.append(arg)
            self.f.env[n] = self._from_value(n, arg)
        index = self.b.new_symbol(name, many.start, many.stop - 1)
        self.f.env[name] = index
        self.b.regions.append(region)
        self.f.conditional += 1
        self.b.loop_vars.append(index)
        try:
            walk()
        finally:
            self.f.conditional -= 1
            self.b.regions.pop()
            self.b.loop_vars.pop()
        after = self.f.env
        for n, value in before.items():
            if (value is PARTS) != (after[n] is PARTS):
                one, two = ("complex", "real")[:: 1 if value is PARTS else -1]
                raise self.error(
                    node,
                    f"{n} enters the loop {one} and leaves it {two}",
                    "a value carried round a loop keeps its type: start it with tk.complex(...)",
                )
        really = [
            n
            for n, arg in zip(carried, region.args, strict=True)
            if not same(after[n], self._seen(arg))
        ]
        if first and really != list(carried):
            types.clear()
            return really
        self.b.regions.append(region)
        outs = {n: self._as_value(node, n, after[n]) for n in carried}
        self.b.regions.pop()
        settled = True
        inner = defined_symbols(region) | {index}
        for n in carried:
            new = self._unify(node, n, types[n], outs[n], inner)
            settled &= new == types[n]
            types[n] = new
        if not settled:
            return list(carried)
        region_outs = [self._oriented(region, outs[n], types[n]) for n in carried]
        self.b.regions.append(region)
        self.guard(node, "for", lambda: self.b.emit("yield", region_outs))
        self.b.regions.pop()
        ins = [self._oriented(None, inits[n], types[n]) for n in carried]
        ends = {"start": self.b.norm(many.start), "stop": self.b.norm(many.stop)}
        attrs = {"index": index, **ends, **extra}
        op = self.guard(node, "for", lambda: self.b.emit("for", ins, attrs, [region]))
        for new in after:
            if new not in before:
                after[new] = Undefined(
                    f"{new} is only assigned inside the loop in line "
                    f"{self.f.source.loc(node).line}, which may run zero times"
                )
        self.f.env = {**before, **{n: v for n, v in after.items() if n not in before}}
        self.f.env[name] = Undefined(
            f"{name} is the index of the loop in line {self.f.source.loc(node).line}, "
            "which may run zero times"
        )
        for n, result in zip(carried, op.results, strict=True):
            result.hint = n.replace(".", "_")
            self.f.env[n] = self._from_value(n, result)
        return True

    def _seen(self, arg: Value) -> object:
        return arg.symbol if arg.symbol is not None else arg

    def _initial(self, node, name: str, x: object) -> Value:
        if isinstance(x, Value):
            return x
        return self._as_value(node, name, x)

    def _oriented(self, region: Region | None, v: Value, want: Type) -> Value:
        if v.type.rank != 1 or v.type.orient == want.orient:
            return v
        attrs = {"axes": v.type.axes, "orient": want.orient}
        if region is None:
            return self.b.op("retype", [v], attrs)
        self.b.regions.append(region)
        out = self.b.op("retype", [v], attrs)
        self.b.regions.pop()
        return out

    def _unify(self, node, name: str, old: Type, value: Value, inner: set) -> Type:
        new = value.type
        if old.dtype != new.dtype or old.shape != new.shape or not same_axes(old, new):
            raise self.error(
                node,
                f"{name} enters the loop as {old.describe()} and leaves it as {new.describe()}: "
                "a value carried round a loop keeps its shape and dtype",
                f"start it with the type it is to have, or convert with tk.cast({name}, "
                f"tk.{old.dtype})"
                if old.dtype != new.dtype
                else "start it with the shape it is to have",
            )
        axes = tuple(a.meet(b) for a, b in zip(old.axes, new.axes, strict=True))
        out = old.like(axes=axes)
        if out.free_symbols() & inner:
            bounds = ", ".join(sorted(map(str, out.free_symbols() & inner)))
            raise self.error(
                node,
                f"the live extent of {name} changes with every trip of the loop (through {bounds})",
                "say what its dead elements count as, for example tk.fill_dead(x, 0) before adding",
            )
        if out.rank == 1 and old.orient != new.orient:
            orients = {old.orient, new.orient} - {"?", None}
            if len(orients) > 1:
                raise self.error(
                    node,
                    f"{name} enters the loop as a {old.orient}_vec and leaves it as a "
                    f"{new.orient}_vec",
                    "turn it with tk.row_vec or tk.col_vec",
                )
            out = out.like(orient=orients.pop() if orients else None)
        elif out.orient == "?":
            out = out.like(orient=None)
        return out

    def do_While(self, node: ast.While) -> None:
        raise self.error(
            node, "while loops are not part of the language", "use for ... in tk.range(n)"
        )
