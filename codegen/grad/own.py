"""Who contributes to a gradient: which programs and iterations meet at the same place of a tensor.

A tile's place is its coordinates. A program id or loop index is *determined* by the place if no two
of its values give places that share an element; then each place belongs to one of them. Of
``h // r`` the place tells the quotient only: r values of h share it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy

from codegen.expr import Expr, FloorDiv, Min, Symbol
from codegen.ir import Function, Op, Region, loop_parts


@dataclass
class Owner:
    """Of one access: symbols that its place determines, those it shares, and quotients it tells.

    loops: the loops around the access, outermost first. branch: it stands in an ``if``.
    """

    determined: set[Symbol] = field(default_factory=set)
    shared: list[Symbol] = field(default_factory=list)
    quotients: dict[Symbol, Expr] = field(default_factory=dict)
    loops: list[Op] = field(default_factory=list)
    branch: bool = False
    dynamic: set[Symbol] = field(default_factory=set)  # decided by what the kernel has loaded
    told_by: dict[Symbol, int] = field(default_factory=dict)  # the dimension that tells a symbol

    def shared_programs(self, fn: Function) -> list[Symbol]:
        """Program ids of which several contribute, quotients included."""
        return [s for s, _ in fn.grid if s in self.shared or s in self.quotients]

    def shared_loops(self) -> list[Symbol]:
        indices = [loop_parts(op)[0] for op in self.loops]
        return [s for s in indices if s in self.shared or s in self.quotients]


def owner(fn: Function, access: Op) -> Owner:
    """Ownership of the place that ``access``, an operation of ``fn``, writes."""
    loops, branch = _path(fn.body, access) or ([], False)
    out = Owner(loops=loops, branch=branch)
    symbols = [s for s, _ in fn.grid] + [loop_parts(op)[0] for op in loops]
    sides = _sides(access)
    starts = [sympy.expand(e) for e in access.attrs["start"]]
    known = set(symbols) | set(fn.dims) | {sympy.Symbol(p.name, integer=True) for p in fn.params}
    out.dynamic = {s for e in starts for s in e.free_symbols} - known
    progress = True
    while progress:
        progress = False
        for d, (e, side) in enumerate(zip(starts, sides, strict=True)):
            if e.free_symbols & out.dynamic:
                continue  # what is loaded may be any number
            free = (e.free_symbols & set(symbols)) - out.determined - set(out.quotients)
            if len(free) == 2 and side == 1 and _digits(e, free, fn):
                out.determined |= free
                progress = True
            if len(free) != 1:
                continue
            (s,) = free
            if _steps(e, s, side):
                out.determined.add(s)
                out.told_by[s] = d
                progress = True
                continue
            divided = [f for f in e.atoms(FloorDiv) if s in f.free_symbols]
            if (
                len(divided) == 1
                and divided[0].args[0] == s
                and s not in divided[0].args[1].free_symbols
            ):
                stand_in = sympy.Dummy(integer=True)
                if _steps(sympy.expand(e.subs(divided[0], stand_in)), stand_in, side):
                    out.quotients[s] = divided[0].args[1]
                    out.told_by[s] = d
                    progress = True
        for op in loops:
            s = _share_of(op, out.determined, known - set(symbols))
            if s in symbols:
                out.determined.add(s)
                out.quotients.pop(s, None)
                out.told_by[s] = out.told_by.get(loop_parts(op)[0], 0)
                progress = True
    out.shared = [s for s in symbols if s not in out.determined and s not in out.quotients]
    return out


def _share_of(loop: Op, determined: set[Symbol], fixed: set[Symbol]) -> Symbol | None:
    """The symbol that a loop's determined index tells, where each value has a range of its own.

    Of ``range(i * 8, min(i * 8 + 8, n))`` an index tells i. What a program has loaded, or another
    loop, may move one range onto another: but for i all is ``fixed``, or determined itself.
    """
    index, start, stop = loop_parts(loop)
    start = sympy.expand(start)
    free = start.free_symbols - fixed - determined
    if index not in determined or len(free) != 1:
        return None
    (s,) = free
    for end in stop.args if isinstance(stop, Min) else (stop,):
        length = sympy.expand(end - start)
        if length.is_Integer and length > 0 and _steps(start, s, int(length)):
            return s
    return None


def _digits(e: Expr, pair: set[Symbol], fn: Function) -> bool:
    """Is ``e`` ``a x + y`` with ``0 <= y < a``, which tells both?"""
    for x in pair:
        (y,) = pair - {x}
        slope = e.coeff(x, 1)
        rest = sympy.expand(e - slope * x - y)
        low, high = fn.facts.ranges.get(y, (None, None))
        if slope == 0 or rest.free_symbols & pair or low != 0 or high is None:
            continue
        if sympy.expand(high + 1 - slope) == 0:
            return True
    return False


def _steps(e: Expr, s: Symbol, side: int) -> bool:
    """Does ``e`` move by at least ``side`` whenever ``s`` moves by one?"""
    slope = e.coeff(s, 1)
    rest = sympy.expand(e - slope * s)
    return bool(slope.is_Integer and abs(int(slope)) >= side and not rest.has(s))


def _sides(access: Op) -> list[int]:
    """The tile's extent in every dimension: its side, or what ``until`` leaves of it."""
    starts, tiles = access.attrs["start"], access.attrs["tile"]
    sides = [1] * len(starts)
    for which, factors, limit in zip(
        tiles, access.attrs["sides"], access.attrs["limit"], strict=True
    ):
        for d, side in zip(which, factors, strict=True):
            sides[d] = side
        if limit is not None:
            left = sympy.expand(limit - starts[which[0]])
            if left.is_Integer:
                sides[which[0]] = min(sides[which[0]], max(int(left), 0))
    return sides


def _path(region: Region, access: Op) -> tuple[list[Op], bool] | None:
    for op in region.ops:
        if op is access:
            return [], False
        for inner in op.regions:
            found = _path(inner, access)
            if found is not None:
                loops, branch = found
                return ([op, *loops], branch) if op.kind == "for" else (loops, True)
    return None


def covers(fn: Function, access: Op, who: Owner) -> bool:
    """True if the programs of ``fn`` together write every element of the tensor."""
    if who.branch or who.dynamic or any(e is not None for e in access.attrs["limit"]):
        return False
    ranges = {s: (sympy.Integer(0), count) for s, count in fn.grid}
    ranges |= {loop_parts(op)[0]: loop_parts(op)[1:] for op in who.loops}
    dims = fn.param(access.attrs["param"]).dims
    for e, side, size in zip(access.attrs["start"], _sides(access), dims, strict=True):
        e = sympy.expand(e)
        if e == 0 and size.is_Integer and int(size) <= side:
            continue
        free = e.free_symbols & set(ranges)
        if len(free) != 1:
            return False
        (s,) = free
        first, stop = ranges[s]
        if e != side * s or first != 0:
            return False
        enough = FloorDiv(sympy.expand(size + side - 1), sympy.Integer(side)) if side > 1 else size
        if sympy.expand(stop - enough) != 0:
            return False
    return True


def disputed(a: Op, b: Op, one: Owner, two: Owner) -> set[Symbol] | None:
    """Symbols that the places of two accesses to one tensor tell, and not alike.

    x[i] and x[i + 1] meet, in two programs that take each other's turn. None if the two never
    share an element, whatever the programs.
    """
    agreed = {
        s
        for s, d in one.told_by.items()
        if two.told_by.get(s) == d and sympy.expand(a.attrs["start"][d] - b.attrs["start"][d]) == 0
    }
    moving = set(one.told_by) | set(two.told_by) | {*one.shared, *two.shared}
    pairs = zip(a.attrs["start"], b.attrs["start"], _sides(a), _sides(b), strict=True)
    for x, y, side, other in pairs:
        gap = sympy.expand(x - y)
        clear = gap.is_Integer and (gap >= other or -gap >= side)
        if clear and not x.free_symbols & (moving - agreed):
            return None
    return (set(one.told_by) | set(two.told_by)) - agreed


def untold(fn: Function, store: Op) -> list[Symbol]:
    """Program ids and loop indices for every value of which ``store`` writes the same place."""
    who = owner(fn, store)
    if who.dynamic:
        return []
    told = conditions(fn.body, store) | store.attr_symbols()
    loops = []
    for loop in who.loops:
        index, start, stop = loop_parts(loop)
        loops.append(index)
        if index in told:  # and its bounds may tell the program
            told |= start.free_symbols | stop.free_symbols
    return [s for s in (*(s for s, count in fn.grid if count != 1), *loops) if s not in told]


def conditions(region: Region, access: Op) -> set[Symbol]:
    """What decides, by the ``if``s around ``access``, whether it happens."""
    return {s for op, _ in _branches(region, access) or [] for s in op.attr_symbols()}


def exclusive(region: Region, a: Op, b: Op) -> bool:
    """True if two operations stand in different branches of one ``if``."""
    ways = dict(_branches(region, a) or [])
    return any(op in ways and ways[op] != way for op, way in _branches(region, b) or [])


def _branches(region: Region, access: Op) -> list[tuple[Op, int]] | None:
    """The ``if``s around ``access`` with the branch that it stands in; None if it is not there."""
    for op in region.ops:
        if op is access:
            return []
        for k, inner in enumerate(op.regions):
            found = _branches(inner, access)
            if found is not None:
                return [(op, k), *found] if op.kind == "if" else found
    return None
