"""Sizes that satisfy the preconditions: a small constraint solver over interesting numbers.

Each name (a dimension or an integer scalar) has a pool of candidates: one, small odd numbers,
one less and one more than every tile side it is cut into. A name is given a value only if the
names that are still open can be completed, so nothing is drawn in vain.
"""

from __future__ import annotations

import ast
import functools
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
    """``pools``: candidates a name, simplest first. ``bounds``: the user's limits.

    Nothing of it may change once it was asked: it remembers what can be completed.
    """

    names: list[str]
    constraints: list[Constraint]
    pools: dict[str, list[int]]
    bounds: Mapping[str, object] = field(default_factory=dict)
    _found: dict[tuple, bool] = field(default_factory=dict, init=False, repr=False)

    def order(self) -> list[str]:
        """Divisors before what they divide, otherwise as declared."""
        return list(self._order)

    @functools.cached_property
    def _order(self) -> list[str]:
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

    @functools.cached_property
    def _free(self) -> set[str]:
        """Names that no constraint has: their values do not matter to the others."""
        return set(self.names).difference(*(c.names for c in self.constraints))

    def _completes(self, known: dict[str, object]) -> bool:
        slot = tuple(item for item in known.items() if item[0] not in self._free)
        if slot not in self._found:
            self._found[slot] = self._search(known)
        return self._found[slot]

    def _search(self, known: dict[str, object]) -> bool:
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
        return [n for n in self._order if n not in known and n in tied]

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
    for part, divides in _telling(tree):
        number = evaluate(part, known)
        if not isinstance(number, int) or isinstance(number, bool):
            continue
        if not divides:
            out += [number, number + 1, number - 1]
        elif number > 0:
            out += [number, 2 * number, 3 * number]
    return [v for v in out if 0 <= v <= 4096]


@functools.lru_cache(1 << 10)
def _telling(tree: ast.expr) -> list[tuple[ast.expr, bool]]:
    """The divisors (True) and the sides of comparisons (False) in a condition."""
    out: list[tuple[ast.expr, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            out.append((node.right, True))
        elif isinstance(node, ast.Compare):
            out += [(side, False) for side in (node.left, *node.comparators)]
    return out
