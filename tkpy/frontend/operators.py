"""Operators on tiles and on indices, comparisons, conditions."""

from __future__ import annotations

import ast
import operator

import sympy

from codegen.expr import And, Expr, Not, Or, as_int, is_index
from codegen.ir import Value, f32
from codegen.ops.base import IRError
from tkpy.builder import Complex, TensorRef, is_condition, what
from tkpy.errors import NeedStatic
from tkpy.frontend.core import Core
from tkpy.frontend.syntax import (
    COMPARISONS,
    OPERATORS,
    sign,
    sign_of,
)
from tkpy.vocabulary.complex_tiles import FORMS
from tkpy.vocabulary.verb import VERBS


def _is_complex(a: object, b: object) -> bool:
    """True if an operation of two objects is one of complex tiles."""
    tiles = isinstance(a, Value | Complex) or isinstance(b, Value | Complex)
    return tiles and (isinstance(a, Complex | complex) or isinstance(b, Complex | complex))


class Operators(Core):
    """The half of expressions that computes."""

    def on_BinOp(self, node: ast.BinOp) -> object:
        return self.binary(node, node.op, self.eval(node.left), self.eval(node.right))

    def binary(self, node: ast.AST, op: ast.operator, a: object, b: object) -> object:
        kind, plain = OPERATORS[type(op)]
        if _is_complex(a, b):
            return self.guard(node, sign(op), lambda: self._complex_binary(kind, a, b))
        if isinstance(a, Value) or isinstance(b, Value):
            return self.guard(node, sign(op), lambda: self._tile_binary(node, kind, a, b))
        if is_index(a) and is_index(b):
            return self._index_binary(node, kind, plain, a, b)
        if isinstance(a, Expr) or isinstance(b, Expr):
            return self.guard(node, sign(op), lambda: self._tile_binary(node, kind, a, b))
        if isinstance(a, TensorRef) or isinstance(b, TensorRef):
            t = a if isinstance(a, TensorRef) else b
            raise self.error(
                node,
                f"{t.name} is a tensor in global memory, not a tile",
                f"tk.load({t.name}, coord, shape=...)",
                sign(op),
            )
        if plain is None:
            raise self.error(node, f"{what(a)} @ {what(b)}: matrix products take two tiles")
        if isinstance(op, ast.FloorDiv | ast.Mod):
            plain = operator.floordiv if isinstance(op, ast.FloorDiv) else operator.mod
        try:
            return plain(a, b)
        except Exception as e:
            raise self.error(node, f"{what(a)} {sign(op)} {what(b)}: {e}") from None

    def _complex_binary(self, kind: str, a: object, b: object) -> Complex:
        if kind == "pow" and b == 2:
            kind, b = "mul", a
        form = FORMS.get("mm_AB" if kind == "mma" else kind)
        if form is None:
            raise IRError(f"{what(a)} and {what(b)}: complex numbers have no {kind}")
        return form(a, b)

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
                    node, f"{sign_of(kind)} by {fixed[1]}: the divisor must be positive"
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
                raise self.error(node, f"{sign_of(kind)} needs constants or tiles here")
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
                # The bare product stays for whoever else holds it; else it is dead code.
                return self.b.op("mma", [*y.op.operands, x], y.op.attrs)
        return self.b.map(kind, a, b)

    def on_UnaryOp(self, node: ast.UnaryOp) -> object:
        x = self.eval(node.operand)
        if isinstance(node.op, ast.Not):
            known = self.truth(node.operand, x)
            if known is not None:
                return not known
            if is_condition(x):
                return Not(x)
            return self.guard(node, "not", lambda: self.b.map("invert", x))
        if isinstance(x, Complex) and isinstance(node.op, ast.USub | ast.UAdd):
            return self.guard(node, "neg", lambda: FORMS["neg"](x)) if (
                isinstance(node.op, ast.USub)
            ) else x  # fmt: skip
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
        kind, plain, relation = COMPARISONS[type(op)]
        if _is_complex(a, b):
            if kind not in ("eq", "ne"):
                raise self.error(node, "complex numbers have no order", "compare tk.abs(x)")
            return self.guard(node, kind, lambda: FORMS[kind](a, b))
        if isinstance(a, Value) or isinstance(b, Value):
            return self.guard(node, kind, lambda: self.b.map(kind, a, b))
        if is_condition(a) or is_condition(b):
            # sympy would compare how the two conditions are written, not what they say.
            if not all(is_condition(x) or isinstance(x, bool) for x in (a, b)):
                raise self.error(node, f"{what(a)} and {what(b)} do not compare")
            if kind not in ("eq", "ne"):
                raise self.error(node, "conditions have no order", "use ==, !=, and, or")
            one = And(a, b) if kind == "eq" else And(a, Not(b))
            two = And(Not(a), Not(b)) if kind == "eq" else And(Not(a), b)
            return Or(one, two)
        if float in (type(a), type(b)) and (isinstance(a, Expr) or isinstance(b, Expr)):
            return self.guard(node, kind, lambda: self.b.map(kind, self._float(a), self._float(b)))
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
                if out is None or out is True or out is False or not is_condition(out)
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
        if isinstance(x, Complex):
            raise self.error(node, f"{what(x)} is not one truth value", "compare it: tk.abs(x) > 0")
        if isinstance(x, TensorRef):
            return True  # `if bias:` asks whether it was given
        if is_condition(x) and x not in (sympy.true, sympy.false):
            return None
        if isinstance(x, Expr):
            n = as_int(self.b.norm(x))
            if n is None:
                raise self.error(node, f"{x} as a condition", "compare it: x > 0")
            return bool(n)
        return bool(x)
