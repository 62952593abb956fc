"""From the kernel's own source to tile IR: the AST is walked once, loops stay loops.

Names hold what is known when the kernel compiles: tiles and vectors as IR values, run-time
integers as index expressions, everything else as the Python object it is. An ``if`` on something
known is decided here; one on a run-time condition becomes a branch.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import operator
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

import sympy

from codegen.expr import And, Boolean, Expr, FloorDiv, FloorMod, Max, Min, Not, Or, as_int, is_index
from codegen.ir import DType, Function, Loc, Region, Type, Value, f32, i32
from codegen.ops.base import IRError
from codegen.rewrite import reinfer
from tkpy.builder import At, Builder, TensorRef, TileRange, what
from tkpy.errors import CompileError, NeedStatic, TkError
from tkpy.vocabulary.structure import part
from tkpy.vocabulary.verb import VERBS, Verb

_MAX_UNROLL = 256
_MAX_INLINE = 32


@dataclass(frozen=True)
class Source:
    """A function's syntax tree with its place in the file."""

    tree: ast.FunctionDef
    file: str
    lines: tuple[str, ...]
    first: int
    indent: int

    @staticmethod
    def of(fn: Callable) -> Source:
        """Raises TkError if the source of ``fn`` cannot be read (typed at a prompt, say)."""
        try:
            lines, first = inspect.getsourcelines(fn)
        except (OSError, TypeError):
            raise TkError(
                f"the source of {fn.__name__} cannot be read; tkpy compiles from source\n"
                "  fix: put the kernel into a file"
            ) from None
        text = "".join(lines)
        indent = len(lines[0]) - len(lines[0].lstrip())
        tree = ast.parse(textwrap.dedent(text)).body[0]
        if not isinstance(tree, ast.FunctionDef):
            raise TkError(f"{fn.__name__}: a kernel is a plain function, not a lambda or coroutine")
        return Source(tree, fn.__code__.co_filename, tuple(lines), first, indent)

    def loc(self, node: ast.AST) -> Loc:
        line = getattr(node, "lineno", 1)
        column = getattr(node, "col_offset", 0) + self.indent
        one_line = getattr(node, "end_lineno", line) == line
        text = self.lines[line - 1].rstrip("\n") if line <= len(self.lines) else ""
        end = (getattr(node, "end_col_offset", column) + self.indent) if one_line else len(text)
        return Loc(self.file, self.first + line - 1, column, text, end)


class Inlined:
    """A ``@tk.function``: its body is compiled into each kernel that calls it."""

    def __init__(self, fn: Callable):
        self.fn = fn
        self.__name__, self.__doc__ = fn.__name__, fn.__doc__
        self.__wrapped__ = fn

    def __call__(self, *args, **kwargs):
        raise TkError(f"{self.__name__} is a @tk.function: call it from a kernel")


@dataclass(frozen=True)
class Undefined:
    """A name that was assigned somewhere it cannot be read from here."""

    why: str


class _Return(Exception):
    def __init__(self, value: object):
        self.value = value


@dataclass
class Frame:
    """One function being walked: its source, names and the names outside it."""

    source: Source
    env: dict[str, object]
    outer: dict[str, object]
    depth: int = 0
    conditional: int = 0
    uses: set[str] = field(default_factory=set)


_OPERATORS = {
    ast.Add: ("add", operator.add),
    ast.Sub: ("sub", operator.sub),
    ast.Mult: ("mul", operator.mul),
    ast.Div: ("div", operator.truediv),
    ast.FloorDiv: ("floordiv", lambda a, b: FloorDiv(sympy.sympify(a), sympy.sympify(b))),
    ast.Mod: ("mod", lambda a, b: FloorMod(sympy.sympify(a), sympy.sympify(b))),
    ast.BitAnd: ("and", operator.and_),
    ast.BitOr: ("or", operator.or_),
    ast.BitXor: ("xor", operator.xor),
    ast.Pow: ("pow", operator.pow),
    ast.MatMult: ("mma", None),
    ast.LShift: ("shl", operator.lshift),
    ast.RShift: ("shr", operator.rshift),
}
_COMPARISONS = {
    ast.Lt: ("lt", operator.lt, sympy.Lt),
    ast.LtE: ("le", operator.le, sympy.Le),
    ast.Gt: ("gt", operator.gt, sympy.Gt),
    ast.GtE: ("ge", operator.ge, sympy.Ge),
    ast.Eq: ("eq", operator.eq, sympy.Eq),
    ast.NotEq: ("ne", operator.ne, sympy.Ne),
}


class Walker:
    """Walks one kernel. ``globals_read`` collects what the result depends on, for the cache."""

    def __init__(self, builder: Builder):
        self.b = builder
        self.globals_read: dict[tuple[str, str], object] = {}
        self.inlined: list[Inlined] = []
        self.stack: list[str] = []

    # -- entry -----------------------------------------------------------------------------

    def run(self, fn: Callable, arguments: dict[str, object]) -> object:
        source = Source.of(fn)
        frame = Frame(source, dict(arguments), _outer_names(fn))
        self.f = frame
        try:
            self.block(source.tree.body)
        except _Return as r:
            return r.value
        return None

    # -- errors ----------------------------------------------------------------------------

    def error(self, node: ast.AST, message: str, fix: str = "", verb: str = "") -> CompileError:
        text = message + (f"\n  fix: {fix}" if fix else "")
        return CompileError(self.f.source.loc(node), text, verb)

    def guard(self, node: ast.AST, verb: str, act: Callable[[], object]) -> object:
        """Run a piece of lowering; what it refuses is reported at ``node``."""
        before = self.b.loc
        self.b.loc = self.f.source.loc(node)
        try:
            return act()
        except IRError as e:
            raise self.error(node, e.message, e.fix, verb) from None
        finally:
            self.b.loc = before

    # -- statements ------------------------------------------------------------------------

    def block(self, body: list[ast.stmt]) -> None:
        for node in body:
            method = getattr(self, f"do_{type(node).__name__}", None)
            if method is None:
                raise self.error(
                    node,
                    f"`{_words(node)}` is not part of the language",
                    _INSTEAD.get(type(node).__name__, "tiles, for, if and @tk.function calls are"),
                )
            method(node)

    def do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.eval(node.value)

    def do_Pass(self, node: ast.Pass) -> None:
        pass

    def do_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        self.b.targets = _target_names(target)
        value = self.eval(node.value)
        self.b.targets = []
        for t in node.targets:
            self.bind(t, value)

    def do_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is None:
            raise self.error(node, "a declaration without a value", "assign the value")
        self.b.targets = _target_names(node.target)
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
            self.f.env[target.id] = value
            return
        if isinstance(target, ast.Tuple | ast.List):
            if not isinstance(value, tuple | list) or len(value) != len(target.elts):
                got = len(value) if isinstance(value, tuple | list) else what(value)
                raise self.error(target, f"{len(target.elts)} names for {got}")
            for t, v in zip(target.elts, value, strict=True):
                self.bind(t, v)
            return
        raise self.error(
            target,
            "tiles are values and are not assigned to in part",
            "use tk.where or tk.concat, or tk.store for global memory",
        )

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
        raise _Return(self.eval(node.value) if node.value is not None else None)

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
        names = [
            n for n in dict.fromkeys([*envs[0], *envs[1]]) if envs[0].get(n) is not envs[1].get(n)
        ]
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
            elif _same(one, two):
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
            if not _compatible(a.type, c.type):
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
            result.hint = name
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
            if len(many) > _MAX_UNROLL:
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
        assigned = [
            n
            for n in _assigned(node.body)
            if n in self.f.env and not isinstance(self.f.env[n], Undefined) and n != node.target.id
        ]
        before = dict(self.f.env)
        state = (
            len(self.b.regions[-1].ops),
            set(self.b.stored),
            set(self.b.symbols),
            dict(self.b.fn.facts.ranges),
        )
        types: dict[str, Type] = {}
        changed: list[str] = list(assigned)
        for attempt in range(6):
            # Start over from the same point: the types of carries are a fixed point.
            del self.b.regions[-1].ops[state[0] :]
            self.b.stored, self.b.symbols = set(state[1]), set(state[2])
            self.b.fn.facts.ranges = dict(state[3])
            self.f.env = dict(before)
            outcome = self._loop_once(node, many, changed, types, first=attempt == 0)
            if outcome is True:
                return
            changed = outcome
        raise self.error(node, "the types of the values carried round this loop do not settle")

    def _loop_once(self, node, many, carried, types, first):
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
            arg = Value(types[n], n)
            region.args.append(arg)
            self.f.env[n] = self._from_value(n, arg)
        index = self.b.new_symbol(node.target.id, many.start, many.stop - 1)
        self.f.env[node.target.id] = index
        self.b.regions.append(region)
        self.f.conditional += 1
        self.b.loop_vars.append(index)
        try:
            self.block(node.body)
        finally:
            self.f.conditional -= 1
            self.b.regions.pop()
            self.b.loop_vars.pop()
        after = self.f.env
        really = [
            n
            for n, arg in zip(carried, region.args, strict=True)
            if not _same(after[n], self._seen(arg))
        ]
        if first and really != list(carried):
            types.clear()
            return really
        self.b.regions.append(region)
        outs = {n: self._as_value(node, n, after[n]) for n in carried}
        self.b.regions.pop()
        settled = True
        inner = _defined_symbols(region) | {index}
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
        attrs = {"index": index, "start": self.b.norm(many.start), "stop": self.b.norm(many.stop)}
        op = self.guard(node, "for", lambda: self.b.emit("for", ins, attrs, [region]))
        for name in after:
            if name not in before:
                after[name] = Undefined(
                    f"{name} is only assigned inside the loop in line "
                    f"{self.f.source.loc(node).line}, which may run zero times"
                )
        self.f.env = {**before, **{n: v for n, v in after.items() if n not in before}}
        for name, result in zip(carried, op.results, strict=True):
            result.hint = name
            self.f.env[name] = self._from_value(name, result)
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
        if old.dtype != new.dtype or old.shape != new.shape or not _same_axes(old, new):
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

    # -- expressions -----------------------------------------------------------------------

    def eval(self, node: ast.expr) -> object:
        method = getattr(self, f"on_{type(node).__name__}", None)
        if method is None:
            raise self.error(
                node,
                f"`{_words(node)}` is not part of the language",
                _INSTEAD.get(type(node).__name__, ""),
            )
        return method(node)

    def on_Constant(self, node: ast.Constant) -> object:
        return node.value

    def on_Name(self, node: ast.Name) -> object:
        name = node.id
        if name in self.f.env:
            value = self.f.env[name]
            if isinstance(value, Undefined):
                raise self.error(
                    node,
                    f"{name} is used before it is defined here: {value.why}",
                    f"assign {name} before, on every way to this line",
                )
            return value
        if name in self.f.outer:
            value = self.f.outer[name]
            self.globals_read[(self.f.source.file, name)] = value
            return value
        if hasattr(builtins, name):
            return getattr(builtins, name)
        if name in _assigned(self.f.source.tree.body):
            raise self.error(node, f"{name} is used before it is defined")
        hint = _closest(name, [*self.f.env, *self.f.outer])
        raise self.error(node, f"unknown name {name}", f"did you mean {hint}?" if hint else "")

    def on_Tuple(self, node: ast.Tuple) -> tuple:
        return tuple(self.eval(x) for x in node.elts)

    def on_List(self, node: ast.List) -> list:
        return [self.eval(x) for x in node.elts]

    def on_Lambda(self, node: ast.Lambda) -> Callable:
        frame = self.f
        names = [a.arg for a in node.args.args]

        def call(*values):
            outer, self.f = self.f, frame
            saved = dict(frame.env)
            frame.env.update(zip(names, values, strict=True))
            try:
                return self.eval(node.body)
            finally:
                frame.env, self.f = saved, outer

        return call

    def on_JoinedStr(self, node: ast.JoinedStr) -> str:
        return "".join(
            str(p.value) if isinstance(p, ast.Constant) else str(self.eval(p.value))
            for p in node.values
        )

    def on_Attribute(self, node: ast.Attribute) -> object:
        base = self.eval(node.value)
        name = node.attr
        if isinstance(base, Value):
            return self._tile_attribute(node, base, name)
        if isinstance(base, TensorRef | DType):
            if name in ("dtype", "shape", "name", "bits", "is_float"):
                return getattr(base, name)
            raise self.error(
                node,
                f"{what(base)} has no attribute {name}",
                "tensors have .dtype and .shape; tk.load gives a tile",
            )
        if isinstance(base, Expr):
            raise self.error(node, f"an index has no attribute {name}")
        try:
            return getattr(base, name)
        except AttributeError:
            hint = _closest(name, dir(base))
            where = getattr(base, "__name__", type(base).__name__)
            raise self.error(
                node, f"{where} has no {name}", f"did you mean {hint}?" if hint else ""
            ) from None

    def _tile_attribute(self, node, base: Value, name: str) -> object:
        if name == "dtype":
            return base.type.dtype
        if name == "shape":
            return base.type.shape
        if name == "T":
            return self.guard(node, "transpose", lambda: VERBS["transpose"].lower(base))
        if name in ("to", *(_METHODS)):
            target = "cast" if name == "to" else name
            return lambda *a, **k: VERBS[target].lower(base, *a, **k)
        raise self.error(
            node,
            f"{what(base)} has no attribute {name}",
            f"tiles have .dtype, .shape, .T, .to(dtype); "
            f"did you mean tk.{_closest(name, VERBS) or name}(...)?",
        )

    def on_Subscript(self, node: ast.Subscript) -> object:
        base = self.eval(node.value)
        if isinstance(base, Value):
            return self.guard(node, "subtile", lambda: self._slice(node, base))
        key = self.eval(node.slice)
        number = as_int(self.b.norm(key)) if is_index(key) else None
        key = number if number is not None else key
        if isinstance(base, TensorRef):
            raise self.error(
                node,
                f"{base.name} is a tensor in global memory",
                f"tk.load({base.name}, coord, shape=...)",
            )
        try:
            return base[key]  # type: ignore[index]
        except (TypeError, IndexError, KeyError) as e:
            raise self.error(node, f"{what(base)}[{what(key)}]: {e}") from None

    def on_Slice(self, node: ast.Slice) -> slice:
        pick = [
            self.eval(x) if x is not None else None for x in (node.lower, node.upper, node.step)
        ]
        return slice(*pick)

    def _slice(self, node: ast.Subscript, base: Value) -> Value:
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if len(parts) > base.type.rank:
            raise IRError(f"{what(base)} has {base.type.rank} axes")
        for axis, p in enumerate(parts):
            if not isinstance(p, ast.Slice) or p.step is not None:
                raise IRError("tiles are sliced with start:stop", "tk.subtile(x, shape, coord)")
            side = base.type.shape[axis]
            low = self.b.index(self.eval(p.lower)) if p.lower else sympy.Integer(0)
            high = self.b.index(self.eval(p.upper)) if p.upper else sympy.Integer(side)
            length = as_int(sympy.expand(high - low))
            if length is None or length <= 0 or length % 16:
                raise IRError(
                    f"the slice has {high - low} elements, not a multiple of 16",
                    "slices of tiles are tiles",
                )
            base = part(base, axis, low, length)
        return base

    def on_BinOp(self, node: ast.BinOp) -> object:
        return self.binary(node, node.op, self.eval(node.left), self.eval(node.right))

    def binary(self, node: ast.AST, op: ast.operator, a: object, b: object) -> object:
        kind, plain = _OPERATORS[type(op)]
        if isinstance(a, Value) or isinstance(b, Value):
            return self.guard(node, _sign(op), lambda: self._tile_binary(node, kind, a, b))
        if is_index(a) and is_index(b):
            return self._index_binary(node, kind, plain, a, b)
        if isinstance(a, Expr) or isinstance(b, Expr):
            return self.guard(node, _sign(op), lambda: self._tile_binary(node, kind, a, b))
        if isinstance(a, TensorRef) or isinstance(b, TensorRef):
            t = a if isinstance(a, TensorRef) else b
            raise self.error(
                node,
                f"{t.name} is a tensor in global memory, not a tile",
                f"tk.load({t.name}, coord, shape=...)",
                _sign(op),
            )
        if plain is None:
            raise self.error(node, f"{what(a)} @ {what(b)}: matrix products take two tiles")
        if isinstance(op, ast.FloorDiv | ast.Mod):
            plain = operator.floordiv if isinstance(op, ast.FloorDiv) else operator.mod
        try:
            return plain(a, b)
        except Exception as e:
            raise self.error(node, f"{what(a)} {_sign(op)} {what(b)}: {e}") from None

    def _index_binary(self, node, kind, plain, a, b) -> object:
        fixed = (as_int(self.b.norm(a)), as_int(self.b.norm(b)))
        if kind == "div":
            if None in fixed:
                return self.guard(
                    node, "/", lambda: self.b.map("div", self._float(a), self._float(b))
                )
            if fixed[1] == 0:
                raise self.error(node, "division by zero")
            return fixed[0] / fixed[1]
        if kind in ("floordiv", "mod"):
            if fixed[1] is not None and fixed[1] <= 0:
                raise self.error(
                    node, f"{_sign_of(kind)} by {fixed[1]}: the divisor must be positive"
                )
            if None not in fixed and isinstance(a, int) and isinstance(b, int):
                return a // b if kind == "floordiv" else a % b
        if kind == "pow" and (fixed[1] is None or fixed[1] < 0):
            if None in fixed:
                names = {s.name for x in (a, b) if isinstance(x, Expr) for s in x.free_symbols}
                if names <= {s.name for s in self.b.fn.dims}:
                    raise NeedStatic(names)
                raise self.error(node, "a power of run-time integers is not an index")
            return float(fixed[0]) ** fixed[1]
        if kind in ("and", "or", "xor", "shl", "shr"):
            if None in fixed:
                raise self.error(node, f"{_sign_of(kind)} needs constants or tiles here")
            return plain(*fixed)
        if kind == "mma":
            raise self.error(node, "matrix products take two tiles", verb="@")
        return plain(a, b)

    def _float(self, x) -> Value:
        v = self.b.value(x, f32)
        return v if v.type.dtype.is_float else self.b.op("cast", [v], {"dtype": f32})

    def _tile_binary(self, node, kind: str, a: object, b: object) -> Value:
        if kind == "mma":
            return VERBS["mm_AB"].lower(a, b)
        if kind == "pow":
            n = as_int(b) if is_index(b) else None
            if n == 2:
                return self.b.map("mul", a, a)
            if b == 0.5:
                return self.b.map("sqrt", a)
            if b == -0.5:
                return self.b.map("rsqrt", a)
            if n is not None and 2 < n <= 8:
                out = a
                for _ in range(n - 1):
                    out = self.b.map("mul", out, a)
                return out
            raise IRError(f"the power {what(b)} is not known", "tk.exp2(y * tk.log2(x))")
        if kind in ("shl", "shr"):
            raise IRError("shifts of tiles are not part of the language yet")
        # c + a @ b accumulates in the product itself.
        for x, y in ((a, b), (b, a)):
            if (
                kind == "add"
                and isinstance(x, Value)
                and isinstance(y, Value)
                and y.op is not None
                and y.op.kind == "mma"
                and len(y.op.operands) == 2
                and not y.hint
                and x.type.like(axes=()) == y.type.like(axes=())
                and x.type.shape == y.type.shape
                and y.op in self.b.regions[-1].ops
            ):
                self.b.regions[-1].ops.remove(y.op)
                return self.b.op("mma", [*y.op.operands, x], y.op.attrs)
        return self.b.map(kind, a, b)

    def on_UnaryOp(self, node: ast.UnaryOp) -> object:
        x = self.eval(node.operand)
        if isinstance(node.op, ast.Not):
            known = self.truth(node.operand, x)
            if known is not None:
                return not known
            if isinstance(x, Boolean):
                return Not(x)
            return self.guard(node, "not", lambda: self.b.map("invert", x))
        if isinstance(x, Value):
            kind = {ast.USub: "neg", ast.Invert: "invert"}.get(type(node.op))
            return x if kind is None else self.guard(node, kind, lambda: self.b.map(kind, x))
        if isinstance(x, TensorRef):
            raise self.error(node, f"{x.name} is a tensor in global memory, not a tile")
        return {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert}[
            type(node.op)
        ](x)

    def on_Compare(self, node: ast.Compare) -> object:
        sides = [self.eval(x) for x in (node.left, *node.comparators)]
        out: object = None
        for op, a, b in zip(node.ops, sides, sides[1:], strict=False):
            one = self._compare(node, op, a, b)
            out = one if out is None else self._both(node, out, one)
        return out

    def _compare(self, node, op, a, b) -> object:
        if isinstance(op, ast.Is | ast.IsNot):
            same = a is b or (a is None and b is None)
            return same if isinstance(op, ast.Is) else not same
        if isinstance(op, ast.In | ast.NotIn):
            inside = a in b  # type: ignore[operator]
            return inside if isinstance(op, ast.In) else not inside
        kind, plain, relation = _COMPARISONS[type(op)]
        if isinstance(a, Value) or isinstance(b, Value):
            return self.guard(node, kind, lambda: self.b.map(kind, a, b))
        if is_index(a) and is_index(b):
            a, b = self.b.norm(a), self.b.norm(b)
            facts = self.b.fn.facts
            margins = {"lt": b - a - 1, "le": b - a, "gt": a - b - 1, "ge": a - b}
            if kind in margins:
                if facts.nonnegative(margins[kind]):
                    return True
                if facts.nonnegative(-margins[kind] - 1):
                    return False
            decided = relation(a, b)
            return bool(decided) if decided in (sympy.true, sympy.false) else decided
        return plain(a, b)

    def _both(self, node, a, b) -> object:
        if isinstance(a, Value) or isinstance(b, Value):
            return self.guard(node, "and", lambda: self.b.map("and", a, b))
        if isinstance(a, bool) and isinstance(b, bool):
            return a and b
        return And(a, b)

    def on_BoolOp(self, node: ast.BoolOp) -> object:
        is_and = isinstance(node.op, ast.And)
        out: object = None
        for x in node.values:
            value = self.eval(x)
            known = self.truth(x, value)
            if known is not None and known != is_and:
                return value
            if known is not None:
                out = value if out is None else out
                continue
            if isinstance(value, Value):
                raise self.error(node, "`and` and `or` on tiles", "use & and | on bool tiles")
            out = (
                value
                if out is None or out is True or out is False or not isinstance(out, Boolean)
                else (And if is_and else Or)(out, value)
            )
        return out

    def on_IfExp(self, node: ast.IfExp) -> object:
        test = self.eval(node.test)
        known = self.truth(node.test, test)
        if known is not None:
            return self.eval(node.body if known else node.orelse)
        a, b = self.eval(node.body), self.eval(node.orelse)
        if not isinstance(a, Value) and not isinstance(b, Value):
            raise self.error(
                node,
                f"{what(a)} or {what(b)}, decided at run time",
                "use min or max on indices, or an `if` statement",
            )
        return self.guard(node, "if", lambda: self.b.map("where", self.b.value(test), a, b))

    def truth(self, node: ast.AST, x: object) -> bool | None:
        """What ``x`` is known to be as a condition, or None if only the running kernel knows."""
        if isinstance(x, Value):
            if x.type.rank:
                raise self.error(
                    node,
                    f"{what(x)} is not one truth value",
                    "tk.where picks by element; tk.max(x) > 0 asks for any",
                )
            return None
        if isinstance(x, TensorRef):
            return True  # `if bias:` asks whether it was given
        if isinstance(x, Boolean) and x not in (sympy.true, sympy.false):
            return None
        if isinstance(x, Expr):
            n = as_int(self.b.norm(x))
            if n is None:
                raise self.error(node, f"{x} as a condition", "compare it: x > 0")
            return bool(n)
        return bool(x)

    # -- calls -----------------------------------------------------------------------------

    def on_Call(self, node: ast.Call) -> object:
        function = self.eval(node.func)
        args: list[object] = []
        for a in node.args:
            if isinstance(a, ast.Starred):
                args += list(self.eval(a.value))  # type: ignore[call-overload]
            else:
                args.append(self.eval(a))
        kwargs = {k.arg: self.eval(k.value) for k in node.keywords}
        if None in kwargs:
            raise self.error(node, "**keywords are not part of the language")
        if isinstance(function, Verb):
            return self._call_verb(node, function, args, kwargs)
        if isinstance(function, Inlined):
            return self._inline(node, function, args, kwargs)
        if isinstance(function, type) and issubclass(function, DType):
            raise self.error(node, "a dtype is not constructed; use tk.cast")
        if isinstance(function, DType):
            if len(args) != 1:
                raise self.error(node, f"tk.{function}(x) converts one value")
            return self.guard(node, "cast", lambda: VERBS["cast"].lower(args[0], function))
        handler = _BUILTINS.get(function) if _hashable(function) else None
        if handler is not None:
            return self.guard(node, function.__name__, lambda: handler(self, args, kwargs))
        name = ast.unparse(node.func)
        if inspect.isfunction(function) and function.__name__ != "<lambda>":
            if function.__qualname__.startswith("Walker."):
                return self.guard(node, name, lambda: self._bound(node, function, args, kwargs))
            raise self.error(
                node,
                f"{name} is a plain Python function",
                f"decorate it with @tk.function to inline {name} into kernels",
            )
        if callable(function) and getattr(function, "__qualname__", "").startswith("Walker."):
            return self.guard(node, name, lambda: function(*args, **kwargs))
        if getattr(function, "__module__", "") == "math" or isinstance(function, type(len)):
            if all(not isinstance(a, Value | Expr | TensorRef) for a in args):
                try:
                    return function(*args, **kwargs)  # type: ignore[operator]
                except Exception as e:
                    raise self.error(node, f"{name}: {e}") from None
        if callable(function) and inspect.isfunction(function):
            return function(*args, **kwargs)
        raise self.error(
            node,
            f"{name} cannot be called in a kernel",
            f"did you mean tk.{_closest(name.split('.')[-1], VERBS)}?"
            if _closest(name.split(".")[-1], VERBS)
            else "",
        )

    def _bound(self, node, function, args, kwargs):
        try:
            return function(*args, **kwargs)
        except TypeError as e:
            raise self.error(node, str(e)) from None

    def _call_verb(self, node, function: Verb, args, kwargs) -> object:
        try:
            inspect.signature(function.lower).bind(*args, **kwargs)
        except TypeError as e:
            keywords = inspect.signature(function.lower).parameters
            wrong = [k for k in kwargs if k not in keywords]
            hint = _closest(wrong[0], list(keywords)) if wrong else ""
            raise self.error(
                node,
                str(e),
                f"did you mean {hint}=?"
                if hint
                else f"tk.{function.__name__}{inspect.signature(function.lower)}",
                function.__name__,
            ) from None
        return self.guard(node, function.__name__, lambda: function.lower(*args, **kwargs))

    def _inline(self, node, function: Inlined, args, kwargs) -> object:
        name = function.__name__
        if name in self.stack or len(self.stack) > _MAX_INLINE:
            raise self.error(node, f"{name} calls itself; kernels have no recursion", "use a loop")
        try:
            bound = inspect.signature(function.fn).bind(*args, **kwargs)
        except TypeError as e:
            raise self.error(node, str(e), verb=name) from None
        bound.apply_defaults()
        source = Source.of(function.fn)
        caller = self.f
        self.inlined.append(function)
        self.stack.append(name)
        self.f = Frame(source, dict(bound.arguments), _outer_names(function.fn), caller.depth + 1)
        targets, self.b.targets = self.b.targets, []
        try:
            self.block(source.tree.body)
            return None
        except _Return as r:
            return r.value
        finally:
            self.f = caller
            self.stack.pop()
            self.b.targets = targets


# --------------------------------------------------------------------------------------------
# Python's own functions that have a meaning on indices and tiles


def _minmax(kind: str, index: Callable) -> Callable:
    def handler(walker: Walker, args, kwargs):
        if kwargs or not args:
            raise IRError(f"{kind} takes two or more values")
        if len(args) == 1:
            raise IRError(f"{kind} of one value", f"tk.{kind}(x, axis=...) reduces a tile")
        if any(isinstance(a, Value) for a in args):
            out = args[0]
            for a in args[1:]:
                out = walker.b.map(kind, out, a)
            return out
        if all(isinstance(a, int | float) for a in args):
            return (min if kind == "min" else max)(args)
        return index(*[walker.b.index(a) for a in args])

    return handler


def _range(walker: Walker, args, kwargs):
    bounds = [as_int(walker.b.index(a)) for a in args]
    if None in bounds:
        names = {s for a in args for s in walker.b.index(a).free_symbols}
        raise IRError(
            f"range over {', '.join(sorted(map(str, names)))}, only known at run time",
            "tk.range(...) is a loop that the kernel runs",
        )
    return builtins.range(*bounds)


def _abs(walker: Walker, args, kwargs):
    return abs(args[0]) if not isinstance(args[0], Value) else walker.b.map("abs", args[0])


def _number(kind: type) -> Callable:
    def handler(walker: Walker, args, kwargs):
        x = args[0] if args else 0
        if isinstance(x, Value | Boolean):
            raise IRError(f"{kind.__name__}() of {what(x)}", "tk.cast(x, dtype)")
        if isinstance(x, Expr):
            n = as_int(walker.b.norm(x))
            if n is None:
                return x if kind is int else walker._float(x)
            x = n
        return kind(x)

    return handler


_BUILTINS: dict[object, Callable] = {
    builtins.min: _minmax("min", Min),
    builtins.max: _minmax("max", Max),
    builtins.range: _range,
    builtins.abs: _abs,
    builtins.float: _number(float),
    builtins.int: _number(int),
    builtins.len: lambda w, a, k: len(a[0]),
    builtins.tuple: lambda w, a, k: tuple(a[0]) if a else (),
    builtins.list: lambda w, a, k: list(a[0]) if a else [],
    builtins.enumerate: lambda w, a, k: [(i, x) for i, x in enumerate(*a)],
    builtins.zip: lambda w, a, k: list(zip(*a, strict=True)),
    builtins.reversed: lambda w, a, k: list(reversed(a[0])),
}

_METHODS = ("exp", "abs", "sqrt", "transpose")

_INSTEAD = {
    "With": "there is nothing to manage in a kernel",
    "Try": "a kernel cannot fail part-way; state preconditions in @tk.kernel(where=[...])",
    "Raise": "state preconditions in @tk.kernel(where=[...])",
    "FunctionDef": "define it outside and decorate it with @tk.function",
    "ClassDef": "use tuples",
    "ListComp": "write a for loop over constants; it is unrolled",
    "GeneratorExp": "write a for loop over constants; it is unrolled",
    "DictComp": "use tuples",
    "Dict": "use tuples",
    "Set": "use tuples",
    "Import": "import at the top of the file",
    "ImportFrom": "import at the top of the file",
    "Global": "kernels only read globals",
    "Nonlocal": "kernels only read outer names",
    "Delete": "names need not be deleted",
    "Break": "bound the loop with tk.range(..., until=...)",
    "Continue": "use an `if`",
    "Await": "kernels are not coroutines",
    "Yield": "kernels are not generators",
    "NamedExpr": "assign on a line of its own",
}


def _words(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()[0]
    return text if len(text) < 60 else text[:57] + "..."


def _sign(op: ast.operator) -> str:
    return {
        ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
        ast.Pow: "**", ast.MatMult: "@", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
        ast.LShift: "<<", ast.RShift: ">>",
    }[type(op)]  # fmt: skip


def _sign_of(kind: str) -> str:
    return {"floordiv": "//", "mod": "%", "and": "&", "or": "|", "xor": "^", "shl": "<<",
            "shr": ">>"}[kind]  # fmt: skip


def _target_names(target: ast.expr) -> list[str]:
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Tuple) and all(isinstance(t, ast.Name) for t in target.elts):
        return [t.id for t in target.elts]  # type: ignore[attr-defined]
    return []


def _assigned(body: list[ast.stmt]) -> list[str]:
    """Names that a block may assign, in order of appearance."""
    out: dict[str, None] = {}
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                out[node.id] = None
    return list(out)


def _same(a: object, b: object) -> bool:
    if a is b:
        return True
    if isinstance(a, Value) or isinstance(b, Value):
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:
        return False


def _same_axes(a: Type, b: Type) -> bool:
    return all(x.same_shape(y) for x, y in zip(a.axes, b.axes, strict=True))


def _compatible(a: Type, b: Type) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.orient == b.orient and _same_axes(a, b)


def _defined_symbols(region: Region) -> set:
    out = {v.symbol for op in region.walk() for v in op.results if v.symbol is not None}
    out |= {op.attrs["index"] for op in region.walk() if op.kind == "for"}
    return out | {a.symbol for a in region.args if a.symbol is not None}


def _hashable(x: object) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def _closest(name: str, among) -> str:
    import difflib

    found = difflib.get_close_matches(name, [n for n in among if not n.startswith("__")], 1)
    return found[0] if found else ""


def _outer_names(fn: Callable) -> dict[str, object]:
    """The names a function sees around it: globals, and the closure's variables over them."""
    names = dict(fn.__globals__)
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            continue
    return names


__all__ = ["At", "Function", "Inlined", "Walker", "i32", "reinfer"]
