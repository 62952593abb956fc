"""What well-formed tile IR is: checked between passes in tests, and before anything is emitted."""

from __future__ import annotations

from codegen.expr import Symbol
from codegen.ir import Function, Op, Region, Value
from codegen.ops import TABLE
from codegen.ops.base import IRError


class VerifyError(AssertionError):
    """Tile IR that breaks a rule; a defect of the compiler, never of the author's kernel."""


def verify(fn: Function) -> None:
    """Every operation known and typed as its row says; every value and symbol defined before use.

    Raises:
        VerifyError: naming the operation and the rule.
    """
    symbols = set(fn.dims) | {s for s, _ in fn.grid}
    symbols |= {Symbol(p.name, integer=True) for p in fn.params if p.role == "scalar"}
    _region(fn, fn.body, set(), symbols)


def _region(fn: Function, region: Region, values: set[Value], symbols: set[Symbol]) -> None:
    values, symbols = set(values), set(symbols)
    _define(region.args, values, symbols, None)
    if not region.ops or region.ops[-1].kind != "yield":
        raise VerifyError("a region does not end with a yield")
    for op in region.ops:
        if op.kind not in TABLE:
            raise VerifyError(f"{op.kind} is not in the table of operations")
        for v in op.operands:
            if v not in values:
                raise VerifyError(f"{op.kind} at {op.loc} uses {v!r} before it is defined")
        inner = set(symbols)
        if op.kind == "for":
            inner.add(op.attrs["index"])
        local = {Symbol(n, integer=True) for n in ("_r", "_c")} if op.kind == "keep" else set()
        loose = op.attr_symbols() - inner - local
        if loose:
            raise VerifyError(f"{op.kind} at {op.loc} names {sorted(map(str, loose))} out of scope")
        for r in op.regions:
            _region(fn, r, values, inner)
        _types(fn, op)
        _define(op.results, values, symbols, op)


def _types(fn: Function, op: Op) -> None:
    try:
        types = TABLE[op.kind].infer(fn, op)
    except IRError as e:
        raise VerifyError(f"{op.kind} at {op.loc}: {e}") from None
    have = [v.type for v in op.results]
    if have != types:
        raise VerifyError(
            f"{op.kind} at {op.loc} is typed {', '.join(map(str, have))}, "
            f"its row says {', '.join(map(str, types))}"
        )


def _define(new: list[Value], values: set[Value], symbols: set[Symbol], op: Op | None) -> None:
    for v in new:
        if v in values:
            raise VerifyError(f"{v!r} is defined twice")
        if v.op is not op:
            raise VerifyError(f"{v!r} does not know the operation that defines it")
        loose = v.type.free_symbols() - symbols
        if loose:
            raise VerifyError(f"the type of {v!r} names {sorted(map(str, loose))} out of scope")
        values.add(v)
        if v.symbol is not None:
            symbols.add(v.symbol)
