"""Functions inside a kernel: helpers that are inlined, and the hooks of a template.

``tk.run`` is an ordinary loop to everything after the front end:

    state = setup()                     for k in tk.range(count):
                                            state = compute(k, *state, *load(k))
    finish(*state)

Its ``for`` carries the rings and roles as attributes, and every operation the hook it came from.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass

from codegen.expr import Min, as_int
from codegen.expr import cdiv as _cdiv
from codegen.ir import Op, Region, Value
from codegen.ops import TABLE
from codegen.ops.base import IRError
from tkpy.builder import TileRange, what
from tkpy.frontend.core import Core
from tkpy.frontend.source import Frame, Return, Undefined, held, hold
from tkpy.frontend.syntax import assigned
from tkpy.template.knobs import Ring, Role


@dataclass(eq=False)
class Hook:
    """A function defined in a kernel. It sees the kernel's names as they are when it is called."""

    node: ast.FunctionDef
    frame: Frame
    option: Ring | Role | None = None

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def parameters(self) -> list[str]:
        return [a.arg for a in self.node.args.args]

    @property
    def rest(self) -> str | None:
        """The name after a star, which takes what is left."""
        return self.node.args.vararg.arg if self.node.args.vararg else None

    @property
    def stated(self) -> str:
        """The parameters, for errors."""
        return ", ".join([*self.parameters, *([f"*{self.rest}"] if self.rest else [])])

    def takes(self, count: int) -> bool:
        """Does it take so many values?"""
        return count >= len(self.parameters) if self.rest else count == len(self.parameters)


class Hooks(Core):
    """Nested functions and ``tk.run``, the fourth part of the walker."""

    def do_FunctionDef(self, node: ast.FunctionDef) -> None:
        spec = node.args
        if spec.kwarg or spec.kwonlyargs or spec.defaults or spec.posonlyargs:
            raise self.error(node, f"{node.name} takes plain parameters: it is inlined here")
        hook = Hook(node, self.f)
        for decorator in node.decorator_list:
            option = self.eval(decorator)
            if not isinstance(option, Ring | Role) or hook.option is not None:
                raise self.error(
                    decorator,
                    f"{what(option)} does not decorate a function of a kernel",
                    "@tk.ring(stages=...) or @tk.role(reads=...)",
                )
            hook.option = option
        self.f.env[node.name] = hook

    def call_hook(self, node: ast.AST, hook: Hook, args: tuple, kwargs: dict) -> object:
        """The hook's body, inlined; ``node`` is what calls it."""
        if kwargs:
            raise self.error(node, f"{hook.name} is called with its values in order")
        if not hook.takes(len(args)):
            raise self.error(
                node,
                f"{hook.name} takes {len(hook.parameters)} values ({hook.stated}) "
                f"and is given {len(args)}",
            )
        if hook in self.calling:
            raise self.error(node, f"{hook.name} calls itself; kernels have no recursion")
        seen = dict(hook.frame.env)
        for name in assigned(hook.node.body):
            # As in Python: a name that is assigned here is not the one outside.
            seen[name] = Undefined(f"{hook.name} assigns it, which makes it a name of its own")
        if hook.rest:
            seen[hook.rest] = tuple(args[len(hook.parameters) :])
        for name, value in zip(hook.parameters, args, strict=False):
            if isinstance(value, Value) and not value.hint:
                value.hint = name
            hold(seen, name, value)
        caller, targets = self.f, self.b.targets
        self.f = Frame(hook.frame.source, seen, hook.frame.outer, hook.frame.depth + 1)
        self.b.targets = []
        self.calling.append(hook)
        try:
            self.block(hook.node.body)
            return None
        except Return as r:
            return r.value
        finally:
            self.calling.pop()
            self.f, self.b.targets = caller, targets

    # -- tk.run ----------------------------------------------------------------------------

    def pipeline(self, count, setup, load, compute, rest, store, finish) -> object:
        template = self.b.template
        if template is None:
            raise IRError(
                "tk.run belongs to a template", "decorate the kernel with @tk.lcf or lcsf"
            )
        names = ("finish",) if template.kind == "lcf" else ("store", "finish")
        if len(rest) > len(names):
            raise IRError(
                f"tk.{template.kind} has the hooks setup, load, compute, {', '.join(names)}"
            )
        given = {"store": store, "finish": finish}
        for name, hook in zip(names, rest, strict=False):
            if given[name] is not None:
                raise IRError(f"{name} is given twice")
            given[name] = hook
        if template.kind == "lcf" and given["store"] is not None:
            raise IRError("tk.lcf has no store hook", "tk.lcsf has one; finish stores at the end")
        if self.b.fn.pipelined:
            raise IRError("a template has one tk.run")
        run = _Run(self, template, count, setup, _several(load), _several(compute), **given)
        self.b.fn.pipelined = True
        return run.walk()


def _several(hooks: object) -> tuple:
    return tuple(hooks) if isinstance(hooks, tuple | list) else (hooks,)


class _Run:
    """One ``tk.run``: its hooks, checked, and the loop that they become."""

    def __init__(self, walker, template, count, setup, loads, roles, store, finish):
        self.w, self.b, self.template = walker, walker.b, template
        self.node = _Place(walker)
        self.loads, self.roles, self.store, self.finish = loads, roles, store, finish
        needed = [("load", h) for h in loads] + [("compute", h) for h in roles]
        needed += [("store", store)] if template.kind == "lcsf" else []
        # Within a loop the state goes on to what the loop does with it.
        nested = bool(self.b.loop_vars)
        needed += [("finish", finish)] if template.kind == "lcf" and not nested else []
        for name, hook in needed:
            if not isinstance(hook, Hook):
                says = "is missing" if hook is None else f"is {what(hook)}"
                raise IRError(
                    f"the hook {name} of tk.{template.kind} {says}",
                    f"def {name}(...): in the kernel, before tk.run",
                )
        for hook in (setup, finish, *(h.option.setup for h in roles if _is_role(h))):
            if hook is not None and not isinstance(hook, Hook):
                raise IRError(f"{what(hook)} is not a function of this kernel")
        for h in loads:
            if isinstance(h.option, Role):
                raise self.bad(h, "is a load and has a ring, not a role", "@tk.ring(stages=...)")
        for h in roles:
            if isinstance(h.option, Ring):
                raise self.bad(h, "computes and has a role, not a ring", "@tk.role(reads=...)")
            if len(roles) > 1 and h.option is None:
                raise self.bad(
                    h,
                    f"is one of {len(roles)} roles and does not say what it reads",
                    f"@tk.role(reads=({', '.join(x.name for x in loads)},))",
                )
        self.setups = [h.option.setup if h.option else None for h in roles]
        if setup is not None:
            if any(s is not None for s in self.setups):
                raise IRError("setup is given twice: to tk.run and to a role")
            self.setups[-1] = setup
        self.many = self._range(count)
        rates = {self.every(h) for h in loads} - {1}
        if len(rates) > 1:
            raise IRError(f"rings are filled every {sorted(rates)} iterations: one rate beside 1")
        self.slow = rates.pop() if rates else 1
        if self.slow > 1 and as_int(self.many.start) != 0:
            raise IRError("a ring with every= needs a run that starts at 0")

    def bad(self, hook: Hook, message: str, fix: str = "", node: ast.AST | None = None):
        """A CompileError at the hook's own line."""
        caller, self.w.f = self.w.f, hook.frame
        try:
            return self.w.error(node or _heading(hook.node), f"{hook.name} {message}", fix)
        finally:
            self.w.f = caller

    def _range(self, count) -> TileRange:
        if isinstance(count, TileRange):
            return count
        stop = self.b.index(count, "the number of iterations")
        return TileRange(self.b.norm(0), stop)

    @staticmethod
    def every(hook: Hook) -> int:
        return hook.option.every if isinstance(hook.option, Ring) else 1

    # -- walking ---------------------------------------------------------------------------

    def call(self, hook: Hook, *args, writes: bool = False) -> tuple:
        """The values that ``hook`` returns, in a tuple; its operations are marked as its own."""
        ops = self.b.regions[-1].ops
        before = len(ops)
        result = self.w.call_hook(_heading(hook.node), hook, args, {})
        for op in Region(ops=ops[before:]).walk():
            op.hook = op.hook or hook.name
            if not writes and not TABLE[op.kind].pure and op.kind not in ("for", "if", "yield"):
                raise self.w_error(
                    op,
                    f"{hook.name} writes {op.attrs.get('param', 'memory')}",
                    "return the value and write it in store"
                    if self.template.kind == "lcsf"
                    else "write it in finish; tk.lcsf has a hook that stores every iteration",
                )
        return _flat(result)

    def w_error(self, op: Op, message: str, fix: str):
        from tkpy.errors import CompileError

        return CompileError(op.loc, f"{message}\n  fix: {fix}")

    def takes(self, hook: Hook, wanted: list[str]) -> None:
        """Raises unless ``hook`` has a parameter for each of ``wanted``."""
        if not hook.takes(len(wanted)):
            raise self.bad(
                hook,
                f"takes {len(hook.parameters)} values ({hook.stated or 'none'}) "
                f"and is given {len(wanted)}: {', '.join(wanted) or 'none'}",
                f"def {hook.name}({', '.join(wanted)}):",
            )

    def walk(self) -> object:
        """Walks all hooks; the state after the last iteration, where no ``finish`` takes it."""
        w = self.w
        self.names: list[list[str]] = []  # of the state of each role
        frame = Frame(w.f.source, {}, w.f.outer, w.f.depth + 1)
        for role, setup in zip(self.roles, self.setups, strict=True):
            values: tuple = ()
            if setup is not None:
                self.takes(setup, [])
                values = self.call(setup)
            names = []
            for k, value in enumerate(values):
                wanted = role.parameters[1 + k] if len(role.parameters) > 1 + k else f"state{k}"
                while wanted in frame.env:
                    wanted += "_"
                if isinstance(value, Value) and not value.hint:
                    value.hint = wanted
                hold(frame.env, wanted, value)
                names.append(wanted)
            self.names.append(names)
        caller, w.f = w.f, frame
        self.index = (self.loads[0].parameters or ["k"])[0]
        try:
            if self.slow == 1:
                self.loop(self.index, self.many, self.once, rings=True)
            else:
                self.loop(f"{self.index}_slow", self._outer(), self.several, rings=False)
            states = [v for names in self.names for v in (held(frame.env, n) for n in names)]
        finally:
            w.f = caller
        self._no_races()
        if self.finish is None:
            return states[0] if len(states) == 1 else tuple(states) or None
        flat = [n for names in self.names for n in names]
        self.takes(self.finish, flat)
        if self.call(self.finish, *states, writes=True):
            raise self.bad(self.finish, "returns a value that nobody takes", "tk.store it")
        return None

    def loop(self, index: str, many: TileRange, body: Callable, rings: bool) -> None:
        carried = [n for names in self.names for n in names]
        attrs = self._attributes() if rings else {}
        self.w.loop_over(self.node, many, index, carried, body, attrs)

    def _outer(self) -> TileRange:
        return TileRange(self.many.start, _cdiv(self.many.stop, self.slow))

    def several(self) -> None:
        """One trip of the loop over fills of the slow rings."""
        at = self.w.f.env[f"{self.index}_slow"]
        self.held = {h: self.fill(h, at) for h in self.loads if self.every(h) > 1}
        stop = Min(self.many.stop, (at + 1) * self.slow)
        self.loop(self.index, TileRange(at * self.slow, stop), self.once, rings=True)

    def fill(self, hook: Hook, k) -> tuple:
        self.takes(hook, [self.index])
        values = self.call(hook, k)
        if not values:
            raise self.bad(hook, "returns nothing to compute with", "return tk.load(...)")
        return values

    def once(self) -> None:
        """One iteration: every load, every role, and the store."""
        env = self.w.f.env
        k = env[self.index]
        values: dict[Hook, tuple] = {}
        for h in self.loads:
            values[h] = self.held[h] if self.every(h) > 1 else self.fill(h, k)
        outputs: tuple = ()
        for role, names in zip(self.roles, self.names, strict=True):
            reads = role.option.reads if role.option else self.loads
            inputs: list = []
            wanted = [self.index, *names]
            for h in reads:
                if h not in values:
                    known = ", ".join(x.name for x in values)
                    raise self.bad(role, f"reads {getattr(h, 'name', what(h))}, which has not run "
                                   "before it", f"what it can read: {known}")  # fmt: skip
                inputs += values[h]
                alone = len(values[h]) == 1
                wanted += [_called(v, h.name if alone else f"{h.name}_{n}")
                           for n, v in enumerate(values[h])]  # fmt: skip
            self.takes(role, wanted)
            returned = self.call(role, k, *[held(env, n) for n in names], *inputs)
            last = role is self.roles[-1]
            free = self.template.kind == "lcsf" or not last
            if len(returned) < len(names) or (len(returned) > len(names) and not free):
                stated = ", ".join(names) or "none"
                raise self.bad(
                    role,
                    f"returns {len(returned)} values; its state has {len(names)} ({stated})"
                    + (", and what is to be stored comes after it" if free else ""),
                    f"return {', '.join(names)}{', output' if free else ''}"
                    if names or free
                    else "give it a setup, whose values it updates",
                    _returning(role.node),
                )
            outputs = returned[len(names) :]
            values[role] = outputs
            for n, value in zip(names, returned, strict=False):
                if isinstance(value, Value) and not value.hint:
                    value.hint = n
                hold(env, n, value)
        if self.store is not None:
            if not outputs:
                raise self.bad(
                    self.roles[-1],
                    "returns nothing to store",
                    f"return {', '.join([*self.names[-1], 'output'])}",
                    _returning(self.roles[-1].node),
                )
            names = [_called(v, f"output{n}") for n, v in enumerate(outputs)]
            self.takes(self.store, [self.index, *names])
            if self.call(self.store, k, *outputs, writes=True):
                raise self.bad(self.store, "returns a value that nobody takes")

    def _no_races(self) -> None:
        """A load that runs ahead must not read what a later hook writes."""
        body = self.b.regions[-1]
        written = {
            op.attrs["param"]: op
            for op in body.walk()
            if self.store is not None and op.hook == self.store.name and "param" in op.attrs
            and not TABLE[op.kind].pure
        }  # fmt: skip
        loads = {h.name for h in self.loads}
        for op in body.walk():
            if op.hook in loads and op.attrs.get("param") in written:
                name = op.attrs["param"]
                raise self.w_error(
                    op,
                    f"{op.hook} reads {name}, which {self.store.name} writes in line "
                    f"{written[name].loc.line}: loads run ahead of stores",
                    f"carry what is needed of {name} in the state",
                )

    def _attributes(self) -> dict[str, object]:
        """What a ``for`` says of the pipeline that it is: (name, stages or 0, every) and so on."""
        rings = tuple(
            (h.name, (h.option.stages if h.option else None) or self.template.stages or 0,
             self.every(h))
            for h in self.loads
        )  # fmt: skip
        warps = self.template.consumer_warps
        roles = tuple(
            (h.name, (h.option.warps if h.option else None) or warps // len(self.roles),
             h.option.stages if h.option else 1)
            for h in self.roles
        )  # fmt: skip
        return {"rings": rings, "roles": roles}


class _Place:
    """Stands for the ``tk.run`` call where the loop's errors need a syntax node."""

    def __init__(self, walker):
        loc = walker.b.loc
        self.lineno = loc.line - walker.f.source.first + 1
        self.end_lineno = self.lineno
        self.col_offset = loc.column - walker.f.source.indent
        self.end_col_offset = loc.end_column - walker.f.source.indent


def _is_role(hook: object) -> bool:
    return isinstance(hook, Hook) and isinstance(hook.option, Role)


def _flat(result: object) -> tuple:
    if result is None:
        return ()
    if isinstance(result, tuple | list):
        return tuple(x for r in result for x in (_flat(r) if isinstance(r, tuple | list) else (r,)))
    return (result,)


def _called(value: object, fallback: str) -> str:
    return (value.hint if isinstance(value, Value) else "") or fallback


def _heading(node: ast.FunctionDef) -> ast.AST:
    """The ``def`` line alone, for carets."""
    out = ast.Pass()
    out.lineno, out.col_offset = node.lineno, node.col_offset
    out.end_lineno, out.end_col_offset = node.lineno, node.col_offset + len("def ") + len(node.name)
    return out


def _returning(node: ast.FunctionDef) -> ast.AST:
    """The last ``return`` of a function, or its heading."""
    found = [n for n in ast.walk(node) if isinstance(n, ast.Return)]
    return found[-1] if found else _heading(node)
