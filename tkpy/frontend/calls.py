"""Calls: verbs, inlined functions, and those of Python's own that mean something here."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable

from codegen.expr import Expr, Max, Min, as_int
from codegen.ir import DType, Value
from codegen.ops.base import IRError
from tkpy.builder import Complex, TensorRef, is_condition, what
from tkpy.frontend.core import Core
from tkpy.frontend.expressions import Local
from tkpy.frontend.hooks import Hook
from tkpy.frontend.source import Frame, Inlined, Return, Source, outer_names
from tkpy.frontend.syntax import closest, hashable
from tkpy.vocabulary.complex_tiles import FORMS, is_complex
from tkpy.vocabulary.verb import VERBS, Verb

_MAX_INLINE = 32


class Calls(Core):
    """Calls, the third part of the walker."""

    def on_Call(self, node: ast.Call) -> object:
        function = self.eval(node.func)
        args = self.each(node.args)
        kwargs = {k.arg: self.eval(k.value) for k in node.keywords}
        if None in kwargs:
            raise self.error(node, "**keywords are not part of the language")
        if isinstance(function, Verb):
            return self._call_verb(node, function, args, kwargs)
        if isinstance(function, Inlined):
            return self._inline(node, function, args, kwargs)
        if isinstance(function, Hook):
            return self.call_hook(node, function, tuple(args), kwargs)
        if isinstance(function, type) and issubclass(function, DType):
            raise self.error(node, "a dtype is not constructed; use tk.cast")
        if isinstance(function, DType):
            if len(args) != 1:
                raise self.error(node, f"tk.{function}(x) converts one value")
            cast = FORMS["cast"] if any(map(is_complex, (args[0], function))) else None
            cast = cast or VERBS["cast"].lower
            return self.guard(node, "cast", lambda: cast(args[0], function))
        handler = _BUILTINS.get(function) if hashable(function) else None
        if handler is not None:
            return self.guard(node, function.__name__, lambda: handler(self, args, kwargs))
        name = ast.unparse(node.func)
        if isinstance(function, Local):
            return self.guard(node, name, lambda: self._bound(node, function, args, kwargs))
        if inspect.isfunction(function):
            raise self.error(
                node,
                f"{name} is a plain Python function",
                f"decorate it with @tk.function to inline {name} into kernels",
            )
        if isinstance(getattr(function, "__self__", None), list | dict | set):
            # A loop's body is walked more than once and run any number of times.
            raise self.error(node, f"{name}: containers do not change in a kernel", "use tuples")
        fixed = all(not isinstance(a, Value | Expr | TensorRef) for a in args)
        if fixed and isinstance(function, type(len)):  # math.sqrt and its like, of constants
            try:
                return function(*args, **kwargs)
            except Exception as e:
                raise self.error(node, f"{name}: {e}") from None
        raise self.error(
            node,
            f"{name} cannot be called in a kernel",
            f"did you mean tk.{closest(name.split('.')[-1], VERBS)}?"
            if closest(name.split(".")[-1], VERBS)
            else "",
        )

    def _bound(self, node, function, args, kwargs):
        try:
            return function(*args, **kwargs)
        except TypeError as e:
            raise self.error(node, str(e)) from None

    def _call_verb(self, node, function: Verb, args, kwargs) -> object:
        args = [self._callable(node, a) for a in args]
        kwargs = {k: self._callable(node, a) for k, a in kwargs.items()}
        try:
            inspect.signature(function.lower).bind(*args, **kwargs)
        except TypeError as e:
            keywords = inspect.signature(function.lower).parameters
            wrong = [k for k in kwargs if k not in keywords]
            hint = closest(wrong[0], list(keywords)) if wrong else ""
            raise self.error(
                node,
                str(e),
                f"did you mean {hint}=?"
                if hint
                else f"tk.{function.__name__}{inspect.signature(function.lower)}",
                function.__name__,
            ) from None
        lower = function.lower
        if any(map(is_complex, (*args, *kwargs.values()))):
            if function.__name__ in FORMS:
                lower = FORMS[function.__name__]
            else:
                given = next(a for a in (*args, *kwargs.values()) if is_complex(a))
                raise self.error(
                    node,
                    f"{what(given)}: tk.{function.__name__} takes real numbers",
                    "take .real, .imag or tk.abs of it first",
                    function.__name__,
                )
        return self.guard(node, function.__name__, lambda: lower(*args, **kwargs))

    def _callable(self, node, x: object) -> object:
        """An inlined function that is handed to a verb, as something the verb can call."""
        if isinstance(x, Inlined):
            return Local(lambda *values: self._inline(node, x, values, {}))
        return x

    def _inline(self, node, function: Inlined, args, kwargs) -> object:
        name = function.__name__
        if function in self.stack or len(self.stack) > _MAX_INLINE:
            raise self.error(node, f"{name} calls itself; kernels have no recursion", "use a loop")
        try:
            bound = inspect.signature(function.fn).bind(*args, **kwargs)
        except TypeError as e:
            raise self.error(node, str(e), verb=name) from None
        bound.apply_defaults()
        source = Source.of(function.fn)
        caller = self.f
        self.inlined.append(function)
        self.stack.append(function)
        self.f = Frame(source, {}, outer_names(function.fn), caller.depth + 1)
        for k, v in bound.arguments.items():
            self.assign(k, v)
        targets, self.b.targets = self.b.targets, []
        try:
            self.block(source.tree.body)
            return None
        except Return as r:
            return r.value
        finally:
            self.f = caller
            self.stack.pop()
            self.b.targets = targets


# --------------------------------------------------------------------------------------------
# Python's own functions that have a meaning on indices and tiles


def _minmax(kind: str, index: Callable) -> Callable:
    def handler(walker, args, kwargs):
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


def _range(walker, args, kwargs):
    bounds = [as_int(walker.b.index(a)) for a in args]
    if None in bounds:
        names = {s for a in args for s in walker.b.index(a).free_symbols}
        raise IRError(
            f"range over {', '.join(sorted(map(str, names)))}, only known at run time",
            "tk.range(...) is a loop that the kernel runs",
        )
    return builtins.range(*bounds)


def _abs(walker, args, kwargs):
    if isinstance(args[0], Complex):
        return FORMS["abs"](args[0])
    return abs(args[0]) if not isinstance(args[0], Value) else walker.b.map("abs", args[0])


def _number(kind: type) -> Callable:
    def handler(walker, args, kwargs):
        x = args[0] if args else 0
        if isinstance(x, Value) or is_condition(x):
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
