"""Parameters of derived programs, and memory that belongs to each of their programs."""

from __future__ import annotations

import sympy

from codegen.expr import Expr, Max, Min
from codegen.grad.errors import NoGradient
from codegen.ir import Function, Param, Region, Type, f32


def frame_of(forward: Function, name: str, wrt: frozenset[str], given: frozenset[str]) -> Function:
    """An empty function over the forward's parameters and grid."""
    fn = Function(name, dims=list(forward.dims), grid=list(forward.grid), wide=forward.wide)
    fn.facts, fn.aligned, fn.loc = forward.facts.extended({}), forward.aligned, forward.loc
    fn.tasked = forward.tasked
    fn.body = Region()
    for p in forward.params:
        if p.role == "inout":
            continue
        role = "in" if p.role == "out" else p.role
        fn.params.append(_as(p, p.name, role, p.dtype))
    for p in forward.params:
        if p.role == "out" and p.name in given:
            fn.params.append(_as(p, f"d_{p.name}", "in", p.dtype))
    for p in forward.params:
        if p.role == "in" and p.name in wrt:
            fn.params.append(_as(p, f"d_{p.name}", "out", f32))
    return fn


def _as(p: Param, name: str, role: str, dtype) -> Param:
    return Param(name, role, dtype, p.dims, p.unit_inner, False, p.labels, p.pair)


def memory_like(name: str, role: str, outer: list[Expr], type_: Type) -> Param:
    """Memory with room for a value of ``type_`` at every place of ``outer``."""
    sides = [sympy.Integer(f.side) for a in type_.axes for f in a.factors]
    return Param(name, role, type_.dtype, tuple(map(sympy.sympify, (*outer, *sides))))


def place_like(p: Param, where: list[Expr], type_: Type) -> dict[str, object]:
    """Attributes of an access to the value at ``where``."""
    tile, sides, d = [], [], len(where)
    for a in type_.axes:
        tile.append(tuple(range(d, d + len(a.factors))))
        sides.append(tuple(f.side for f in a.factors))
        d += len(a.factors)
    return {
        "param": p.name,
        "start": (*where, *[sympy.Integer(0)] * (d - len(where))),
        "tile": tuple(tile),
        "sides": tuple(sides),
        "limit": (None,) * len(tile),
        "checks": ((False, False),) * d,
    }


def most(e: Expr, fn: Function) -> Expr:
    """An expression in dimensions alone that ``e`` does not exceed in any program or iteration."""
    e = sympy.sympify(e)
    known = set(fn.dims) | {sympy.Symbol(p.name, integer=True) for p in fn.params}

    def loose(x: Expr) -> set:
        return x.free_symbols - known

    whole = [a for a in sympy.Add.make_args(e) if isinstance(a, Min)]
    if loose(e) and len(whole) == 1:
        fixed = [a for a in whole[0].args if not loose(a)]
        rest = e - whole[0]
        if fixed:  # a start that depends on the program is not negative
            return Min(*fixed) + (0 if loose(rest) else rest)
    for _ in range(8):  # the range of an inner index may name an outer one
        if not loose(e):
            return e
        for s in sorted(loose(e), key=str):
            low, high = fn.facts.ranges.get(s, (None, None))
            if low is None or high is None:
                raise NoGradient(None, f"how often a loop runs is decided by {s}")
            e = Max(e.subs(s, low), e.subs(s, high))
    raise NoGradient(None, f"how often a loop runs is not told by the sizes: {e}")


__all__ = ["frame_of", "memory_like", "most", "place_like"]
