"""What the preconditions say about one tensor or scalar: bounds, order, fixed elements.

``0 <= labels < V``, ``sorted(cu)``, ``cu[0] == 0``, ``cu[-1] == T``, ``distinct(x)``, ``g <= 0``
become a ``Domain`` from which values are made that satisfy them, without trial and error.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from codegen.ir import DType
from tkpy.call import _value, holds
from tkpy.signature import Signature

Bound = tuple[ast.expr, bool]  # the other side, and whether equality is excluded


@dataclass
class Domain:
    """The conditions on one name. Bounds are expressions until ``resolve``."""

    lower: list[Bound] = field(default_factory=list)
    upper: list[Bound] = field(default_factory=list)
    fixed: list[tuple[int, str, ast.expr]] = field(default_factory=list)
    sorted: bool = False
    distinct: bool = False


@dataclass
class Range:
    """A ``Domain`` with its numbers filled in: the keywords of ``data.tensor``."""

    low: float | torch.Tensor | None = None
    high: float | torch.Tensor | None = None
    sorted: bool = False
    distinct: bool = False
    fixed: dict[int, int] = field(default_factory=dict)

    def keywords(self) -> dict[str, object]:
        pairs = vars(self).items()
        return {k: v for k, v in pairs if v is not None and v is not False and v != {}}

    def allows(self, shape: tuple[int, ...], integer: bool) -> bool:
        """Whether a tensor of ``shape`` can satisfy it."""
        count = math.prod(shape)
        for index in self.fixed:
            if not shape or not -shape[0] <= index < shape[0]:
                return False
        places = {i % shape[0]: v for i, v in self.fixed.items()}
        if any(places[i % shape[0]] != v for i, v in self.fixed.items()):
            return False
        in_order = [places[i] for i in sorted(places)]
        if self.sorted and in_order != sorted(in_order):
            return False
        low, high = self.low, self.high
        if isinstance(low, torch.Tensor) or isinstance(high, torch.Tensor):
            return True
        if any((low is not None and v < low) or (high is not None and v > high) for v in in_order):
            return False
        if count and low is not None and high is not None and low > high:
            return False
        room = math.inf if low is None or high is None else high - low + 1
        return not (self.distinct and integer and room < count)


def domains_of(signature: Signature) -> dict[str, Domain]:
    """The domain of every tensor and scalar that a precondition names."""
    names = {p.name for p in signature.tensors} | {p.name for p in signature.scalars}
    out: dict[str, Domain] = {}
    for c in signature.conditions:
        for part in _parts(c.tree):
            _read(part, names, out)
    return out


def _parts(tree: ast.expr) -> list[ast.expr]:
    if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
        return [p for v in tree.values for p in _parts(v)]
    return [tree]


def _read(tree: ast.expr, names: set[str], out: dict[str, Domain]) -> None:
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.args:
        target = tree.args[0]
        if isinstance(target, ast.Name) and tree.func.id in ("sorted", "distinct"):
            setattr(out.setdefault(target.id, Domain()), tree.func.id, True)
    if not isinstance(tree, ast.Compare):
        return
    sides = [tree.left, *tree.comparators]
    for a, op, b in zip(sides, tree.ops, sides[1:], strict=False):
        _one(a, op, b, names, out)
        _one(b, _MIRROR.get(type(op), type(op))(), a, names, out)


_MIRROR = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE}


def _one(a: ast.expr, op: ast.cmpop, b: ast.expr, names: set[str], out: dict[str, Domain]) -> None:
    strict = isinstance(op, ast.Lt | ast.Gt)
    if isinstance(a, ast.Name) and a.id in names:
        d = out.setdefault(a.id, Domain())
        if isinstance(op, ast.Lt | ast.LtE | ast.Eq):
            d.upper.append((b, strict))
        if isinstance(op, ast.Gt | ast.GtE | ast.Eq):
            d.lower.append((b, strict))
    elif isinstance(a, ast.Subscript) and isinstance(a.value, ast.Name) and a.value.id in names:
        try:
            index = ast.literal_eval(a.slice)
        except ValueError:
            return
        if isinstance(index, int):
            word = {ast.Eq: "==", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
            d = out.setdefault(a.value.id, Domain())
            d.fixed.append((index, word.get(type(op), "?"), b))


def resolve(domain: Domain, known: Mapping[str, object], dtype: DType) -> Range:
    """Numbers for the bounds. What names something not ``known`` (yet) does not bind."""
    low = _tightest(domain.lower, known, dtype, +1)
    high = _tightest(domain.upper, known, dtype, -1)
    out = Range(low, high, domain.sorted, domain.distinct)
    for index, word, tree in domain.fixed:
        value = evaluate(tree, known)
        if value is None:
            continue
        value = int(value) + {"<": -1, ">": 1}.get(word, 0)
        first, last = domain.sorted and index == 0, domain.sorted and index == -1
        if word == "==" or not (first or last):
            out.fixed[index] = value
        if first and word in ("==", ">", ">="):
            out.low = value if out.low is None else max(out.low, value)
        if last and word in ("==", "<", "<="):
            out.high = value if out.high is None else min(out.high, value)
    return out


def evaluate(tree: ast.expr, known: Mapping[str, object]):
    """The value of a side of a condition, or None if it names something unknown."""
    if not names_in(tree) <= known.keys():
        return None
    return _value(tree, dict(known))


@functools.lru_cache(1 << 12)
def names_in(tree: ast.expr) -> frozenset[str]:
    return frozenset(n.id for n in ast.walk(tree) if isinstance(n, ast.Name))


def _tightest(bounds: list[Bound], known: Mapping[str, object], dtype: DType, sign: int):
    best = None
    for tree, strict in bounds:
        value = evaluate(tree, known)
        if value is None:
            continue
        if strict:
            value = value + sign * (_step(value, dtype) if dtype.is_float else 1)
        if best is None:
            best = value
        elif isinstance(best, torch.Tensor) or isinstance(value, torch.Tensor):
            pick = torch.maximum if sign > 0 else torch.minimum
            best = pick(torch.as_tensor(best), torch.as_tensor(value))
        else:
            best = max(best, value) if sign > 0 else min(best, value)
    return best


def _step(value, dtype: DType):
    """Something that can be told from nothing next to ``value`` in ``dtype``."""
    scale = {"f32": 2.0**-20, "f16": 2.0**-8, "bf16": 2.0**-6}[dtype.name]
    return abs(value) * scale + 2.0**-14


def satisfied(signature: Signature, known: Mapping[str, object]) -> bool:
    """Whether all preconditions hold, as far as ``known`` names what they name."""
    return all(
        holds(c, dict(known)) for c in signature.conditions if all(n in known for n in c.names)
    )
