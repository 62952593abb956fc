"""What is known of symbols, and what follows from it: proofs that an expression is not negative."""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import sympy

from codegen.expr import (
    Expr,
    FloorDiv,
    FloorMod,
    Max,
    Min,
    Symbol,
    exact_quotient,
    symbols_of,
)

#: A proof takes few steps or is not found: the search for one is cut off here.
_MAX_STEPS = 40
#: How far above its lower bound a symbol without an upper one is tried.
_SPREAD = (0, 1, 2, 7, 63, 64, 300)
#: What ``nonnegative`` found, by the question and the facts; it depends on nothing else.
_ANSWERS: dict[tuple, bool] = {}
_MANY = 1 << 14


@dataclass
class Facts:
    """What is known of symbols: inclusive ranges, and equalities that preconditions imply.

    ``ranges[s] = (low, high)`` with expressions or None; ``equal[s] = e`` rewrites ``s`` in
    proofs (``H % G == 0`` becomes ``H = G * (H//G)`` with the quotient as a fresh symbol).
    """

    ranges: dict[Symbol, tuple[Expr | None, Expr | None]] = field(default_factory=dict)
    equal: dict[Symbol, Expr] = field(default_factory=dict)
    _failed: dict[Expr, int] = field(default_factory=dict, repr=False, compare=False)
    _steps: int = field(default=0, repr=False, compare=False)
    _points: tuple[int, list[dict[Symbol, int]]] | None = field(
        default=None, repr=False, compare=False
    )

    def extended(self, ranges: Mapping[Symbol, tuple[Expr | None, Expr | None]]) -> Facts:
        return Facts({**self.ranges, **ranges}, dict(self.equal))

    def nonnegative(self, expr: Expr | int) -> bool:
        """True only if ``expr >= 0`` is proved for all values the facts allow."""
        expr = sympy.sympify(expr)
        expr = self._expanded(expr)
        if expr.is_Integer:
            return int(expr) >= 0
        # Passes ask again what others asked, and so do the next variants of the kernel.
        slot = (expr, *self.ranges.items(), *self.equal.items())
        answer = _ANSWERS.get(slot)
        if answer is None:
            if len(_ANSWERS) >= _MANY:
                _ANSWERS.clear()
            answer = _ANSWERS[slot] = self._search(expr)
        return answer

    def _expanded(self, expr: Expr) -> Expr:
        if self.equal and not symbols_of(expr).isdisjoint(self.equal):
            expr = expr.subs(self.equal)
        return _expand(expr)

    def _search(self, expr: Expr) -> bool:
        # Most questions have the answer no, and a few values of the symbols tell it at once.
        if self._refuted(expr):
            return False
        self._failed, self._steps = {}, 0
        return self._prove(expr, 10)

    def _refuted(self, expr: Expr) -> bool:
        needed = expr.free_symbols
        return any(_at(expr, p) < 0 for p in self._examples() if needed <= p.keys())

    def _examples(self) -> list[dict[Symbol, int]]:
        """Some values of the symbols that the facts allow."""
        size = len(self.ranges) + len(self.equal)
        if self._points is None or self._points[0] != size:
            found = [self._point(random.Random(k)) for k in range(12)]
            self._points = (size, [p for p in found if p])
        return self._points[1]

    def _point(self, rng: random.Random) -> dict[Symbol, int]:
        point: dict[Symbol, int] = {}
        waiting = [s for s in self.ranges if s not in self.equal]
        while waiting:
            later = []
            for s in waiting:
                low, high = self.ranges[s]
                try:
                    least = _at(low, point) if low is not None else -3
                    most = _at(high, point) if high is not None else least + rng.choice(_SPREAD)
                except KeyError:
                    later.append(s)  # a bound mentions a symbol that comes later
                    continue
                if most < least:
                    return {}  # a loop without trips, a grid without programs
                point[s] = rng.choice((least, most, rng.randint(least, most)))
            for s, e in self.equal.items():
                if s not in point and e.free_symbols <= point.keys():
                    point[s] = _at(e, point)
            if len(later) == len(waiting):
                break
            waiting = later
        return point

    def positive(self, expr: Expr | int) -> bool:
        return self.nonnegative(sympy.sympify(expr) - 1)

    def less_equal(self, a: Expr | int, b: Expr | int) -> bool:
        return self.nonnegative(sympy.sympify(b) - a)

    def _prove(self, expr: Expr, depth: int) -> bool:
        # Each step replaces one symbol (or floor division, or min/max) by the bound that can
        # only make the expression smaller, innermost loop index first: ranges of inner symbols
        # mention outer ones, never the other way round.
        if expr.is_Integer:
            return int(expr) >= 0
        if depth == 0 or self._steps >= _MAX_STEPS or self._failed.get(expr, 0) >= depth:
            return False
        self._steps += 1
        if all(self._term_nonnegative(t) for t in sympy.Add.make_args(expr)):
            return True
        for candidate in self._weaker(expr):
            candidate = self._expanded(candidate)
            if not self._refuted(candidate) and self._prove(candidate, depth - 1):
                return True
        self._failed[expr] = depth
        return False

    def _term_nonnegative(self, term: Expr) -> bool:
        coefficient, rest = term.as_coeff_Mul()
        return coefficient >= 0 and all(
            self._factor_nonnegative(f) for f in rest.as_ordered_factors()
        )

    def _factor_nonnegative(self, factor: Expr) -> bool:
        if factor.is_Integer:
            return int(factor) >= 0
        if isinstance(factor, Symbol):
            low = self.ranges.get(factor, (None, None))[0]
            return low is not None and (
                low.is_nonnegative or (low != factor and self._prove(sympy.expand(low), 3))
            )
        if factor.is_Pow and factor.exp.is_Integer and factor.exp > 0:
            return factor.exp % 2 == 0 or self._factor_nonnegative(factor.base)
        if isinstance(factor, FloorDiv):
            return self._prove(factor.args[0], 4) and self._prove(factor.args[1] - 1, 4)
        if isinstance(factor, FloorMod):
            return self._prove(factor.args[1] - 1, 4)
        if isinstance(factor, Max):
            return any(self._prove(sympy.expand(a), 4) for a in factor.args)
        if isinstance(factor, Min):
            return all(self._prove(sympy.expand(a), 4) for a in factor.args)
        return False

    def _weaker(self, expr: Expr) -> Iterable[Expr]:
        atoms = [a for a in expr.atoms(FloorDiv, FloorMod, Min, Max)]
        yield from self._monotone(expr, [a for a in atoms if isinstance(a, FloorDiv)])
        for atom in atoms:
            dummy = sympy.Dummy("t", integer=True)
            swapped = expr.xreplace({atom: dummy})
            slope = _slope(swapped, dummy)
            if slope is None:
                continue
            sign = self._sign(slope)
            rest = sympy.expand(swapped - slope * dummy)
            yield from self._atom_bounds(atom, slope, sign, rest)
        symbols = [s for s in reversed(list(self.ranges)) if s in expr.free_symbols]
        for symbol in symbols:
            if any(symbol in a.free_symbols for a in atoms):
                continue
            slope = _slope(expr, symbol)
            if slope is None:
                continue
            low, high = self.ranges[symbol]
            sign = self._sign(slope)
            bound = low if sign > 0 else high if sign < 0 else None
            if bound is not None:
                yield expr.xreplace({symbol: bound})
                return  # ranges are triangular: the innermost symbol goes first, always

    def _monotone(self, expr: Expr, quotients: list[Expr]) -> Iterable[Expr]:
        """c // b - a // b >= 0 where c >= a: drop such pairs."""
        for up in quotients:
            for down in quotients:
                if up.args[1] != down.args[1] or expr.coeff(up) != 1 or expr.coeff(down) != -1:
                    continue
                if self._prove(sympy.expand(up.args[0] - down.args[0]), 3):
                    yield expr - up + down

    def smallest(self, *args: Expr) -> Expr:
        """Min of ``args`` without those that are proved not to be the smallest."""
        kept: list[Expr] = []
        for a in dict.fromkeys(args):
            if any(self.less_equal(b, a) for b in kept):
                continue
            kept = [b for b in kept if not self.less_equal(a, b)] + [a]
        return Min(*kept)

    def _atom_bounds(self, atom: Expr, slope: Expr, sign: int, rest: Expr) -> Iterable[Expr]:
        if isinstance(atom, FloorDiv):
            a, b = atom.args
            exact = exact_quotient(slope, b)
            # slope = exact * b, and b * (a // b) lies in [a - b + 1, a].
            if sign > 0 and exact is not None:
                yield rest + exact * (a - b + 1)
            elif sign < 0 and exact is not None:
                yield rest + exact * a
            elif sign < 0:
                if self._prove(-a - 1, 3):
                    yield rest - slope  # a // b <= -1 for a < 0
                # a // b is monotone in a: push the largest a inside, then a // b <= a.
                for symbol in a.free_symbols:
                    low, high = self.ranges.get(symbol, (None, None))
                    slope_in = _slope(sympy.expand(a), symbol) or sympy.Integer(0)
                    bound = high if self._sign(slope_in) > 0 else low
                    if bound is not None and slope_in != 0:
                        yield rest + slope * FloorDiv(sympy.expand(a.subs(symbol, bound)), b)
                if self._prove(a, 3):
                    yield rest + slope * a
            elif sign > 0 and self._prove(a, 3):
                yield rest
        elif isinstance(atom, FloorMod):
            yield rest + (slope * (atom.args[1] - 1) if sign < 0 else 0)
        elif (isinstance(atom, Min) and sign < 0) or (isinstance(atom, Max) and sign > 0):
            for a in atom.args:
                yield rest + slope * a
        elif isinstance(atom, Min | Max) and sign != 0:
            branches = [sympy.expand(rest + slope * a) for a in atom.args]
            if all(self._prove(b, 4) for b in branches):
                yield sympy.Integer(0)

    def _sign(self, expr: Expr) -> int:
        if expr.is_Integer:
            return int(sympy.sign(expr))
        if all(self._term_nonnegative(t) for t in sympy.Add.make_args(expr)):
            return 1
        if all(self._term_nonnegative(-t) for t in sympy.Add.make_args(expr)):
            return -1
        return 0


@functools.lru_cache(1 << 13)
def _expand(expr: Expr) -> Expr:
    return sympy.expand(expr)


def _slope(expr: Expr, symbol: Symbol) -> Expr | None:
    """The factor of ``symbol`` in an expanded expression that is linear in it, else None."""
    slope = []
    for term in sympy.Add.make_args(expr):
        if not term.has(symbol):
            continue
        quotient = term.coeff(symbol)
        if quotient == 0 or quotient.has(symbol):
            return None
        slope.append(quotient)
    return sympy.Add(*slope) if slope else None


def _at(expr: Expr, values: Mapping[Symbol, int]) -> int:
    """The value of ``expr`` at a point; KeyError if it has a symbol that the point lacks."""
    if expr.is_Integer:
        return int(expr)
    if isinstance(expr, Symbol):
        return values[expr]
    parts = [_at(a, values) for a in expr.args]
    if expr.is_Add:
        return sum(parts)
    if expr.is_Mul:
        return reduce(operator.mul, parts)
    if expr.is_Pow:
        return parts[0] ** parts[1]
    if isinstance(expr, Min | Max):
        return min(parts) if isinstance(expr, Min) else max(parts)
    if isinstance(expr, FloorDiv | FloorMod):
        a, b = parts
        return (a // b if isinstance(expr, FloorDiv) else a % b) if b else 0
    raise KeyError(expr)


__all__ = ["Facts"]
