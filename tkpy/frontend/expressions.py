"""Expressions: names, attributes, lists, slices; operators are in ``operators.py``."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator

import sympy

from codegen.expr import Expr, as_int, is_index
from codegen.ir import DType, Value
from codegen.ops.base import IRError
from tkpy.builder import Complex, TensorRef, is_condition, what
from tkpy.frontend.operators import Operators
from tkpy.frontend.source import Undefined, held
from tkpy.frontend.syntax import (
    INSTEAD,
    MAX_UNROLL,
    assigned,
    closest,
    words,
)
from tkpy.vocabulary.complex_tiles import FORMS
from tkpy.vocabulary.structure import part
from tkpy.vocabulary.verb import VERBS

#: Verbs that tiles also have as methods, as PyTorch's tensors do.
METHODS = ("abs", "exp", "sqrt", "transpose")


class Local:
    """A callable that the walker made: a lambda of the author's, a bound method of a tile."""

    def __init__(self, call: Callable):
        self.call = call

    def __call__(self, *args, **kwargs):
        return self.call(*args, **kwargs)


class Expressions(Operators):
    """The expression half of the walker."""

    def eval(self, node: ast.expr) -> object:
        method = getattr(self, f"on_{type(node).__name__}", None)
        if method is None:
            raise self.error(
                node,
                f"`{words(node)}` is not part of the language",
                INSTEAD.get(type(node).__name__, ""),
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
            return held(self.f.env, name)
        if name in self.f.outer:
            value = self.f.outer[name]
            self.globals_read[(self.f.source.file, name)] = value
            return value
        if hasattr(builtins, name):
            return getattr(builtins, name)
        if name in assigned(self.f.source.tree.body):
            raise self.error(node, f"{name} is used before it is defined")
        hint = closest(name, [*self.f.env, *self.f.outer])
        raise self.error(node, f"unknown name {name}", f"did you mean {hint}?" if hint else "")

    def on_Tuple(self, node: ast.Tuple) -> tuple:
        return tuple(self.each(node.elts))

    def on_List(self, node: ast.List) -> list:
        return self.each(node.elts)

    def each(self, nodes: list[ast.expr]) -> list:
        """The values of some expressions, of which starred ones stand for all that they hold."""
        out: list[object] = []
        for x in nodes:
            if not isinstance(x, ast.Starred):
                out.append(self.eval(x))
                continue
            value = self.eval(x.value)
            if not isinstance(value, tuple | list):
                raise self.error(x, f"{what(value)} is one value, which * does not take apart")
            out += value
        return out

    def on_ListComp(self, node: ast.ListComp) -> list:
        """``[f(x) for x in (a, b) if ...]`` over constants: unrolled, in a scope of its own."""
        kept = dict(self.f.env)
        try:
            return list(self._unroll(node, node.generators))
        finally:
            self.f.env.clear()
            self.f.env.update(kept)

    def _unroll(self, node: ast.ListComp, loops: list[ast.comprehension]) -> Iterator[object]:
        if not loops:
            yield self.eval(node.elt)
            return
        many = self.eval(loops[0].iter)
        if not isinstance(many, builtins.range | tuple | list) or len(many) > MAX_UNROLL:
            raise self.error(
                loops[0].iter,
                f"a comprehension is unrolled, over at most {MAX_UNROLL} constants, "
                f"not over {what(many)}",
                "use a for loop over tk.range",
            )
        for item in many:
            self.bind(loops[0].target, item)  # type: ignore[attr-defined]
            if all(self.decided(c) for c in loops[0].ifs):
                yield from self._unroll(node, loops[1:])

    def decided(self, node: ast.expr) -> bool:
        """A condition of a comprehension, which is known when the kernel is compiled."""
        value = self.eval(node)
        if is_condition(value) or isinstance(value, Value):
            raise self.error(node, "what a comprehension leaves out is decided at compile time")
        return bool(value)

    def on_Lambda(self, node: ast.Lambda) -> Callable:
        frame = self.f
        spec = node.args
        if spec.vararg or spec.kwarg or spec.kwonlyargs:
            raise self.error(node, "a lambda in a kernel takes plain parameters")
        names = [a.arg for a in (*spec.posonlyargs, *spec.args)]
        defaults = [self.eval(d) for d in spec.defaults]

        def call(*values):
            missing = len(names) - len(values)
            if not 0 <= missing <= len(defaults):
                raise IRError(f"`{words(node)}` takes {len(names)} values, got {len(values)}")
            values = (*values, *defaults[len(defaults) - missing :])
            outer, self.f = self.f, frame
            saved = dict(frame.env)
            frame.env.update(zip(names, values, strict=True))
            try:
                return self.eval(node.body)
            finally:
                frame.env, self.f = saved, outer

        return Local(call)

    def on_JoinedStr(self, node: ast.JoinedStr) -> str:
        return "".join(
            str(p.value) if isinstance(p, ast.Constant) else str(self.eval(p.value))
            for p in node.values
        )

    def on_Attribute(self, node: ast.Attribute) -> object:
        base = self.eval(node.value)
        name = node.attr
        if isinstance(base, Value | Complex):
            return self._tile_attribute(node, base, name)
        if isinstance(base, TensorRef | DType):
            if name in ("dtype", "shape", "name", "bits", "is_float"):
                return getattr(base, name)
            if name in ("real", "imag") and getattr(base, "is_complex", False):
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
            hint = closest(name, dir(base))
            where = getattr(base, "__name__", type(base).__name__)
            raise self.error(
                node, f"{where} has no {name}", f"did you mean {hint}?" if hint else ""
            ) from None

    def _tile_attribute(self, node, base: Value | Complex, name: str) -> object:
        if isinstance(base, Complex):
            if name in ("real", "imag", "dtype", "shape"):
                return getattr(base, name)
            if name == "T":
                return self.guard(node, "transpose", lambda: FORMS["transpose"](base))
            form = FORMS.get("cast" if name == "to" else name)
            if form is not None and name in ("to", "conj", "abs", "exp", "transpose"):
                return Local(lambda *a, **k: form(base, *a, **k))
            raise self.error(
                node,
                f"{what(base)} has no attribute {name}",
                "complex tiles have .real, .imag, .dtype, .shape, .T, .conj(), .to(dtype)",
            )
        if name == "dtype":
            return base.type.dtype
        if name == "shape":
            return base.type.shape
        if name == "T":
            return self.guard(node, "transpose", lambda: VERBS["transpose"].lower(base))
        if name in ("to", *(METHODS)):
            target = "cast" if name == "to" else name
            return Local(lambda *a, **k: VERBS[target].lower(base, *a, **k))
        raise self.error(
            node,
            f"{what(base)} has no attribute {name}",
            f"tiles have .dtype, .shape, .T, .to(dtype); "
            f"did you mean tk.{closest(name, VERBS) or name}(...)?",
        )

    def on_Subscript(self, node: ast.Subscript) -> object:
        base = self.eval(node.value)
        if isinstance(base, Value):
            return self.guard(node, "subtile", lambda: self._slice(node, base))
        if isinstance(base, Complex):
            halves = (
                self.guard(node, "subtile", lambda v=v: self._slice(node, v)) for v in base.parts
            )
            return Complex(*halves)
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
