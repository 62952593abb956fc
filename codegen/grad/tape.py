"""Where a loop that is replayed backwards finds the carries that it had: memory of each program.

Either every iteration's are written down, or every k-th iteration's: then the loop is cut into
segments of k iterations, and the last segment first, each is run forwards once more from what was
written down at its start, now with every carry noted, and then backwards:

    for i in range(n):                       for s in range(cdiv(n, k)):
        tape[i] = c                              start[s] = c
        c = f(c)                                 for i in range(s k, min(s k + k, n)): c = f(c)
    for i in reversed(range(n)):             for s in reversed(range(cdiv(n, k))):
        backwards(tape[i])                       c = start[s]
                                                 for i in range(s k, min(s k + k, n)):
                                                     tape[i - s k] = c
                                                     c = f(c)
                                                 for i in reversed(range(s k, min(s k + k, n))):
                                                     backwards(tape[i - s k])

That is n / k + k places instead of n, and the forward once more. Griewank, "Achieving logarithmic
growth of temporal and spatial complexity in reverse automatic differentiation" (1992); Chen et
al., "Training deep nets with sublinear memory cost" (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from codegen.expr import Expr, Min, Symbol, cdiv
from codegen.grad.emit import Emit
from codegen.grad.memory import memory_like, most, place_like
from codegen.ir import Function, Op, Param, Value, loop_parts
from codegen.rewrite import fresh_symbol


class Tapes:
    """The tapes of one program: ``fn`` gets a parameter for each.

    ``segments``: of the loops that are cut, by their operation, how many iterations a segment has.
    """

    def __init__(self, fn: Function, emit: Emit, segments: Mapping[Op, int]):
        self.fn, self.emit, self.segments = fn, emit, segments
        self.memory: dict[tuple[Op, int, bool], Param] = {}
        self._indices: dict[Op, Symbol] = {}

    def owner(self, name: str) -> Op | None:
        """The loop that the tape of that name belongs to."""
        return next((op for (op, _, _), p in self.memory.items() if p.name == name), None)

    # -- segments --------------------------------------------------------------------------

    def segment(self, op: Op) -> tuple[Symbol, Expr] | None:
        """The index of the segments of a loop that is cut, and how many there are."""
        k = self.segments.get(op)
        if k is None or not cuttable(op):
            return None
        _, start, stop = loop_parts(op)
        count = cdiv(stop - start, sympy.Integer(k))
        if op not in self._indices:
            s = self._indices[op] = fresh_symbol(self.fn, f"{loop_parts(op)[0].name}_segment")
            self.fn.facts.ranges[s] = (sympy.Integer(0), count - 1)
        return self._indices[op], count

    def within(self, op: Op) -> tuple[Expr, Expr]:
        """The range of the loop in one segment; the whole of it where it is not cut."""
        _, start, stop = loop_parts(op)
        cut = self.segment(op)
        if cut is None:
            return start, stop
        k = self.segments[op]
        first = sympy.expand(start + cut[0] * k)
        return first, Min(first + k, stop)

    # -- places ----------------------------------------------------------------------------

    def write(self, op: Op, args: list[Value], unless: frozenset[int] = frozenset()) -> None:
        """Notes ``args``, the carries of an iteration of ``op``."""
        for k, arg in enumerate(args):
            if k not in unless and arg.type.dtype.kind != "bool":
                self.emit.op("store", [arg], self._place(op, k, False))

    def read(self, op: Op, k: int) -> Value:
        """Carry ``k``, as it was at the start of an iteration."""
        return self._load(op, k, False)

    def write_start(self, op: Op, args: list[Value]) -> None:
        """Notes ``args``, the carries at the start of a segment."""
        for k, arg in enumerate(args):
            self.emit.op("store", [arg], self._place(op, k, True))

    def read_start(self, op: Op) -> list[Value]:
        return [self._load(op, k, True) for k in range(len(op.regions[0].args))]

    def _load(self, op: Op, k: int, start: bool) -> Value:
        loaded = self.emit.op("load", [], self._place(op, k, start)).result
        return self.emit.shaped(loaded, op.regions[0].args[k].type)

    def _param(self, op: Op, k: int, start: bool) -> Param:
        key = (op, k, start)
        if key not in self.memory:
            _, first, last = loop_parts(op)
            places = most(last - first, self.fn)
            if self.segment(op) is not None:
                length = sympy.Integer(self.segments[op])
                places = cdiv(places, length) if start else length
            dims = [*(count for _, count in self.fn.grid), places]
            name, taken = f"tape_{len(self.memory)}", {p.name for p in self.fn.params}
            while name in taken:
                name += "_"
            self.memory[key] = memory_like(name, "inout", dims, op.regions[0].args[k].type)
            self.fn.params.append(self.memory[key])
        return self.memory[key]

    def _place(self, op: Op, k: int, start: bool) -> dict[str, object]:
        index, _, _ = loop_parts(op)
        cut = self.segment(op)
        at = cut[0] if start and cut is not None else index - self.within(op)[0]
        where = [*(s for s, _ in self.fn.grid), at]
        return place_like(self._param(op, k, start), where, op.regions[0].args[k].type)


def cuttable(op: Op) -> bool:
    """Whether all carries of a loop can be written down, for the loop to go on from them."""
    return all(
        a.type.dtype.kind in ("float", "int") and a.symbol is None for a in op.regions[0].args
    )


__all__ = ["Tapes", "cuttable"]
