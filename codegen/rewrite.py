"""Building and rewriting tile IR: what the front end and every pass share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from codegen.expr import Boolean, Expr, Symbol, sym
from codegen.ir import Axis, Factor, Function, Loc, Op, Region, Type, Value, factor
from codegen.ops import TABLE


def build(
    fn: Function,
    kind: str,
    operands: list[Value],
    attrs: dict[str, object] | None = None,
    regions: list[Region] | None = None,
    loc: Loc | None = None,
) -> Op:
    """A new operation with its results typed by the table. Raises ``IRError`` if it is illegal."""
    op = Op(kind, list(operands), dict(attrs or {}), [], list(regions or []), loc or Loc())
    op.results = [Value(t, op=op) for t in TABLE[kind].infer(fn, op)]
    return op


def regions_of(region: Region) -> Iterator[Region]:
    """``region`` and every region below it, outer first."""
    yield region
    for op in region.ops:
        for inner in op.regions:
            yield from regions_of(inner)


def uses_value(op: Op, value: Value) -> bool:
    """True if ``op`` or anything inside it reads ``value``, as an operand or by its symbol."""
    if value in op.operands:
        return True
    if value.symbol is not None and value.symbol in op.attr_symbols():
        return True
    if value.symbol is not None and any(value.symbol in r.type.free_symbols() for r in op.results):
        return True
    return any(uses_value(inner, value) for r in op.regions for inner in r.ops)


def replace_uses(region: Region, mapping: dict[Value, Value]) -> None:
    """Every use of a key becomes a use of its value, symbols in expressions included."""
    if not mapping:
        return
    symbols = {
        old.symbol: new.symbol
        for old, new in mapping.items()
        if old.symbol is not None and new.symbol is not None
    }
    for op in region.walk():
        op.operands = [_final(mapping, v) for v in op.operands]
        if symbols:
            op.attrs = {k: substitute(v, symbols) for k, v in op.attrs.items()}
    if symbols:
        for op in region.walk():
            for r in (*op.results, *(a for g in op.regions for a in g.args)):
                r.type = substitute_type(r.type, symbols)


def _final(mapping: dict[Value, Value], value: Value) -> Value:
    while value in mapping:
        value = mapping[value]
    return value


def substitute(value: object, symbols: dict[Symbol, Expr]) -> object:
    """``value``, an attribute, with symbols replaced in all expressions it holds."""
    if isinstance(value, Symbol) and value in symbols:
        return symbols[value]
    if isinstance(value, Expr | Boolean):
        return _substituted(value, symbols)
    if isinstance(value, tuple):
        return tuple(substitute(v, symbols) for v in value)
    if isinstance(value, Axis):
        return substitute_axis(value, symbols)
    return value


def _substituted(e: Expr | Boolean, symbols: dict[Symbol, Expr]) -> Expr | Boolean:
    touched = not e.free_symbols.isdisjoint(symbols)
    return e.subs(symbols, simultaneous=True) if touched else e


def substitute_axis(axis: Axis, symbols: dict[Symbol, Expr]) -> Axis:
    return Axis(
        tuple(
            factor(f.side, [_substituted(b, symbols) for b in f.bounds]) if f.bounds else f
            for f in axis.factors
        )
    )


def substitute_type(type_: Type, symbols: dict[Symbol, Expr]) -> Type:
    if not (type_.free_symbols() & set(symbols)):
        return type_
    return type_.like(axes=tuple(substitute_axis(a, symbols) for a in type_.axes))


def fresh_symbol(fn: Function, wanted: str) -> Symbol:
    """A symbol that nothing in ``fn`` is called: the author may have used the name already."""
    name = wanted
    while sym(name) in fn.facts.ranges:
        name += "_"
    return sym(name)


def clone(region: Region, fn: Function, suffix: str) -> Region:
    """A deep copy of ``region`` whose values are new; run-time integers get new symbols."""
    mapping: dict[Value, Value] = {}
    symbols: dict[Symbol, Expr] = {}

    def copy_value(v: Value, op: Op | None) -> Value:
        new = Value(substitute_type(v.type, symbols), v.hint, op)
        if v.symbol is not None:
            new.symbol = fresh_symbol(fn, f"{v.symbol.name}_{suffix}")
            symbols[v.symbol] = new.symbol
            fn.facts.ranges[new.symbol] = fn.facts.ranges.get(v.symbol, (None, None))
        mapping[v] = new
        return new

    def copy_region(r: Region) -> Region:
        out = Region([copy_value(a, None) for a in r.args])
        for op in r.ops:
            new = Op(
                op.kind,
                [mapping.get(v, v) for v in op.operands],
                {k: substitute(v, symbols) for k, v in op.attrs.items()},
                [],
                [copy_region(g) for g in op.regions],
                op.loc,
                op.hook,
            )
            new.results = [copy_value(v, new) for v in op.results]
            out.ops.append(new)
        return out

    return copy_region(region)


def reinfer(fn: Function) -> None:
    """Types of all results anew, after a pass changed what is known of live extents."""

    def visit(region: Region) -> None:
        for op in region.ops:
            for inner in op.regions:
                visit(inner)
            for value, type_ in zip(op.results, TABLE[op.kind].infer(fn, op), strict=True):
                value.type = type_

    visit(fn.body)


def simplify_bounds(type_: Type, holds: Callable[[Expr, int], bool]) -> Type:
    """``type_`` without the bounds for which ``holds(bound, side)`` proves ``bound >= side``."""

    def clean(f: Factor) -> Factor:
        return factor(f.side, [b for b in f.bounds if b.is_Integer or not holds(b, f.side)])

    return type_.like(axes=tuple(Axis(tuple(clean(f) for f in a.factors)) for a in type_.axes))
