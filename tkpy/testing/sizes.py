"""Sizes that satisfy the preconditions: a small constraint solver over interesting numbers.

Each name (a dimension or an integer scalar) has a pool of candidates: one, small odd numbers,
one less and one more than every tile side it is cut into. A name is given a value only if the
names that are still open can be completed, so nothing is drawn in vain.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tkpy.call import holds
from tkpy.signature import Condition
from tkpy.testing.domains import evaluate


@dataclass(frozen=True)
class Constraint:
    """``test`` is asked once all of ``names`` are known."""

    names: frozenset[str]
    test: Callable[[Mapping[str, object]], bool]
    tree: ast.expr | None = None

    @staticmethod
    def of(condition: Condition) -> Constraint:
        return Constraint(
            condition.names, lambda known: holds(condition, dict(known)), condition.tree
        )


@dataclass
class Solver:
    """``pools``: candidates a name, simplest first. ``bounds``: the user's limits."""

    names: list[str]
    constraints: list[Constraint]
    pools: dict[str, list[int]]
    bounds: Mapping[str, object] = field(default_factory=dict)

    def order(self) -> list[str]:
        """Divisors before what they divide, otherwise as declared."""
        divisors = {
            n.id
            for c in self.constraints
            if c.tree is not None
            for op in ast.walk(c.tree)
            if isinstance(op, ast.BinOp) and isinstance(op.op, ast.Mod | ast.FloorDiv)
            for n in ast.walk(op.right)
            if isinstance(n, ast.Name)
        }
        return sorted(self.names, key=lambda n: n not in divisors)

    def options(self, name: str, known: Mapping[str, object]) -> list[int]:
        """The candidates of ``name`` that leave the rest completable."""
        fits = [v for v in self._candidates(name, known) if self._completes({**known, name: v})]
        if not fits:
            fits = [
                v for v in self._within(name, range(1, 600)) if self._completes({**known, name: v})
            ]
        return fits

    def completes(self, known: Mapping[str, object]) -> bool:
        return self._completes(dict(known))

    def _completes(self, known: dict[str, object]) -> bool:
        for c in self.constraints:
            if c.names <= known.keys() and not c.test(known):
                return False
        related = self._related(known)
        if not related:
            return True
        name = related[0]
        return any(self._completes({**known, name: v}) for v in self._candidates(name, known))

    def _related(self, known: Mapping[str, object]) -> list[str]:
        """Open names that share a constraint with another name."""
        tied = {n for c in self.constraints if c.names - known.keys() for n in c.names}
        return [n for n in self.order() if n not in known and n in tied]

    def _candidates(self, name: str, known: Mapping[str, object]) -> list[int]:
        extra: list[int] = []
        for c in self.constraints:
            if c.tree is not None and name in c.names and c.names - {name} <= known.keys():
                extra += _suggested(c.tree, name, known)
        pool = self.pools.get(name, [1, 2, 3, 5, 0])
        kept = list(dict.fromkeys(self._within(name, [*pool, *extra])))
        return kept or list(self._within(name, range(0, 300)))[:16]

    def _within(self, name: str, values: Iterable[int]) -> list[int]:
        bound = self.bounds.get(name)
        if bound is None:
            return list(values)
        if isinstance(bound, tuple):
            low, high = bound
            return [v for v in (*values, low, high) if low <= v <= high]
        return [int(v) for v in bound]  # type: ignore[attr-defined]


def _suggested(tree: ast.expr, name: str, known: Mapping[str, object]) -> list[int]:
    """Values that a condition points at: multiples of a divisor, the numbers beside a bound."""
    out: list[int] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            divisor = evaluate(node.right, known)
            if isinstance(divisor, int) and divisor > 0:
                out += [divisor, 2 * divisor, 3 * divisor]
        elif isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                number = evaluate(side, known)
                if isinstance(number, int) and not isinstance(number, bool):
                    out += [number, number + 1, number - 1]
    return [v for v in out if 0 <= v <= 4096]
