"""Integer index expressions: sympy trees over named dimensions, program ids and loop indices.

Everything that decides *where* a tile lies (coordinates, loop bounds, live extents) is such an
expression, never an opaque value, so that it can be compared, proved, printed and evaluated on
the host. Division is floor division and ``%`` has the sign of the divisor, as in Python.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable
from functools import reduce

import sympy
from sympy import Expr, Integer, Symbol
from sympy.logic.boolalg import And, Boolean, Not, Or

__all__ = [
    "And",
    "Expr",
    "FloorDiv",
    "FloorMod",
    "Max",
    "Min",
    "Not",
    "Or",
    "Symbol",
    "as_int",
    "cdiv",
    "is_index",
    "parse",
    "spelled",
    "sym",
    "symbols_of",
    "text",
]


@functools.lru_cache(1 << 14, typed=True)
def spelled(expr: object) -> str:
    """``str(expr)``, remembered: expressions are sorted by it, and sympy spells slowly."""
    return str(expr)


@functools.lru_cache(1 << 14)
def symbols_of(expr: Expr | Boolean) -> frozenset[Symbol]:
    """``expr.free_symbols``, remembered: passes ask for them again and again."""
    return frozenset(expr.free_symbols)


def sym(name: str) -> Symbol:
    """The integer symbol called ``name``; equal names are equal symbols."""
    return Symbol(name, integer=True)


class FloorDiv(sympy.Function):
    """``floor(a / b)`` for integers with b > 0, folded where the division is exact."""

    nargs = 2
    is_integer = True

    @classmethod
    def eval(cls, a, b):
        if b == 1:
            return a
        if a.is_Integer and b.is_Integer and b != 0:
            return Integer(int(a) // int(b))
        if a == b:
            return Integer(1)
        whole, rest = [], []
        for term in sympy.Add.make_args(sympy.expand(a)):
            quotient = exact_quotient(term, b)
            (rest if quotient is None else whole).append(term if quotient is None else quotient)
        if whole:
            tail = sympy.Add(*rest)
            return sympy.Add(*whole) + (cls(tail, b) if tail != 0 else 0)
        return None


class FloorMod(sympy.Function):
    """``a - b * floor(a / b)`` for integers with b > 0."""

    nargs = 2
    is_integer = True

    @classmethod
    def eval(cls, a, b):
        if a.is_Integer and b.is_Integer and b != 0:
            return Integer(int(a) % int(b))
        if a == b or b == 1:
            return Integer(0)
        rest = [t for t in sympy.Add.make_args(sympy.expand(a)) if exact_quotient(t, b) is None]
        if len(rest) < len(sympy.Add.make_args(sympy.expand(a))):
            tail = sympy.Add(*rest)
            return Integer(0) if tail == 0 else cls(tail, b)
        return None


class Min(sympy.Min):
    """The smallest. Arguments are compared only if they differ by a number.

    sympy's own constructor compares as hard as it can, at tens of milliseconds a time, and every
    substitution constructs anew.
    """

    def __new__(cls, *args, **_):
        return _extreme(cls, args, -1)


class Max(sympy.Max):
    """The largest; see ``Min``."""

    def __new__(cls, *args, **_):
        return _extreme(cls, args, 1)


def _extreme(cls, args, sign: int):
    kept: list[Expr] = []
    for a in (b for arg in args for b in cls.make_args(sympy.sympify(arg))):
        for k, b in enumerate(kept):
            difference = sympy.expand(a - b)
            if difference.is_Integer:
                kept[k] = a if difference * sign > 0 else b
                break
        else:
            kept.append(a)
    if len(kept) == 1:
        return kept[0]
    out = Expr.__new__(cls, *sympy.ordered(kept))
    out._argset = frozenset(kept)
    return out


@functools.lru_cache(1 << 14)
def exact_quotient(term: Expr, divisor: Expr) -> Expr | None:
    """``term / divisor`` where that is an integer for every value of the symbols, else None."""
    if term == 0 or not divisor.free_symbols <= term.free_symbols:
        return None
    quotient = sympy.cancel(term / divisor) if not divisor.is_Integer else term / divisor
    numerator, denominator = quotient.as_numer_denom()
    return numerator if denominator == 1 else None


def cdiv(a: Expr | int, b: Expr | int) -> Expr:
    """``ceil(a / b)``: how many tiles of side ``b`` cover ``a`` elements."""
    return FloorDiv(sympy.sympify(a) + b - 1, sympy.sympify(b))


def is_index(value: object) -> bool:
    """True for what may stand in an index expression: an int (not a bool) or a sympy integer."""
    return (isinstance(value, int) and not isinstance(value, bool)) or isinstance(value, Expr)


def as_int(value: object) -> int | None:
    """The Python int that ``value`` is known to be at compile time, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, Expr) and value.is_Integer:
        return int(value)
    return None


# --------------------------------------------------------------------------------------------
# Text


_PRECEDENCE = {"or": 1, "and": 2, "not": 3, "cmp": 4, "add": 5, "mul": 6, "atom": 9}


def text(
    expr: Expr | Boolean | int,
    name: Callable[[Symbol], str] = lambda s: s.name,
    nonnegative: Callable[[Expr], bool] = lambda e: True,
) -> str:
    """Python source of ``expr``; the same text is valid in Triton and on the host.

    Triton's ``//`` and ``%`` truncate towards zero, Python's floor. Where ``nonnegative`` can
    not vouch for a numerator the text is written so that both give the floor.
    """
    return _Printer(name, nonnegative).show(sympy.sympify(expr), 0)


class _Printer:
    def __init__(self, name, nonnegative):
        self.name, self.nonnegative = name, nonnegative

    def show(self, e, outer: int) -> str:
        body, inner = self._show(e)
        return f"({body})" if inner < outer else body

    def _show(self, e) -> tuple[str, int]:
        p = _PRECEDENCE
        if e is sympy.true or e is sympy.false:
            return str(bool(e)), p["atom"]
        if e.is_Integer:
            return (str(int(e)), p["atom"]) if e >= 0 else (f"-{-int(e)}", p["add"])
        if isinstance(e, Symbol):
            return self.name(e), p["atom"]
        if e.is_Add:
            # Symbols in their order of names, the constant last, the first term positive.
            terms = sorted(e.args, key=lambda t: (t.is_Integer, _negative(t), spelled(t)))
            out = self.show(terms[0], p["add"])
            for t in terms[1:]:
                neg = _negative(t)
                out += (" - " if neg else " + ") + self.show(-t if neg else t, p["mul"])
            return out, p["add"]
        if e.is_Mul:
            if _negative(e):
                return "-" + self.show(-e, p["mul"]), p["add"]
            factors = sorted(e.args, key=lambda t: (t.is_Integer, spelled(t)))
            return " * ".join(self.show(f, p["mul"] + 1) for f in factors), p["mul"]
        if e.is_Pow and e.exp.is_Integer and e.exp > 0:
            return " * ".join([self.show(e.base, p["mul"] + 1)] * int(e.exp)), p["mul"]
        if isinstance(e, FloorDiv):
            a, b = (self.show(x, p["mul"] + 1) for x in e.args)
            if self.nonnegative(e.args[0]):
                return f"{a} // {b}", p["mul"]
            return f"{a} // {b} - ({a} % {b} < 0)", p["add"]
        if isinstance(e, FloorMod):
            a, b = (self.show(x, p["mul"] + 1) for x in e.args)
            if self.nonnegative(e.args[0]):
                return f"{a} % {b}", p["mul"]
            return f"({a} % {b} + {b}) % {b}", p["mul"]
        if isinstance(e, Min | Max):
            # Nested pairs: Triton's min and max take two scalars.
            word = "min" if isinstance(e, Min) else "max"
            parts = [self.show(a, 0) for a in sorted(e.args, key=spelled)]
            return reduce(lambda x, y: f"{word}({x}, {y})", parts), p["atom"]
        if e.is_Relational:
            a, b = self.show(e.lhs, p["cmp"] + 1), self.show(e.rhs, p["cmp"] + 1)
            return f"{a} {e.rel_op} {b}", p["cmp"]
        if isinstance(e, And | Or):
            word = "and" if isinstance(e, And) else "or"
            parts = [self.show(a, p[word] + 1) for a in sorted(e.args, key=spelled)]
            return f" {word} ".join(parts), p[word]
        if isinstance(e, Not):
            return f"not {self.show(e.args[0], p['not'])}", p["not"]
        raise TypeError(f"not an index expression: {e!r} ({type(e).__name__})")


def _negative(term: Expr) -> bool:
    return bool(term.as_coeff_Mul()[0] < 0)


_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: lambda a, b: FloorDiv(sympy.sympify(a), sympy.sympify(b)),
    ast.Mod: lambda a, b: FloorMod(sympy.sympify(a), sympy.sympify(b)),
    ast.Pow: operator.pow,
}
_COMPARE = {
    ast.Lt: sympy.Lt,
    ast.LtE: sympy.Le,
    ast.Gt: sympy.Gt,
    ast.GtE: sympy.Ge,
    ast.Eq: sympy.Eq,
    ast.NotEq: sympy.Ne,
}
_CALLS = {"min": Min, "max": Max, "cdiv": cdiv}


def parse(source: str, symbols: Callable[[str], Expr] | None = None) -> Expr | Boolean:
    """The expression written in ``source``; ``symbols`` maps a name to its expression.

    Raises:
        ValueError: for anything but integers, names, ``+ - * // % **``, comparisons, ``and or
            not``, ``min``, ``max`` and ``cdiv``.
    """
    lookup = symbols or sym
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except SyntaxError as e:
        raise ValueError(f"{source!r} is not an integer expression: {e.msg}") from None

    def go(node):
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            return sympy.true if node.value else sympy.false
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return Integer(node.value)
        if isinstance(node, ast.Name):
            return lookup(node.id)
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return _BINARY[type(node.op)](go(node.left), go(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -go(node.operand)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return Not(go(node.operand))
        if isinstance(node, ast.BoolOp):
            return (And if isinstance(node.op, ast.And) else Or)(*map(go, node.values))
        if isinstance(node, ast.Compare):
            sides = [go(x) for x in (node.left, *node.comparators)]
            parts = [
                _COMPARE[type(op)](a, b)
                for op, a, b in zip(node.ops, sides, sides[1:], strict=False)
            ]
            return And(*parts)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in _CALLS
        ):
            return _CALLS[node.func.id](*map(go, node.args))
        raise ValueError(f"{source!r} is not an integer expression: {ast.unparse(node)!r}")

    return go(tree)
