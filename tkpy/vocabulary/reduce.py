"""Reductions and scans over the live elements of tiles and vectors."""

from __future__ import annotations

import builtins
import math

from codegen.ir import Region, Type, Value
from codegen.ops.associative import element_type
from codegen.ops.base import IRError, says
from tkpy.builder import Complex, current, what
from tkpy.vocabulary.verb import Verb, verb

__all__ = [
    "argmax", "argmin", "associative_scan", "col_argmax", "col_argmin", "col_max", "col_min",
    "col_prod", "col_sum", "cumprod", "cumsum", "max", "min", "prod", "row_argmax",
    "row_argmin", "row_max", "row_min", "row_prod", "row_sum", "sum",
]  # fmt: skip

_COMBINE = {"sum": "add", "max": "max", "min": "min", "prod": "mul"}


def _tile(x: object) -> Value:
    if not isinstance(x, Value) or x.type.rank != 2:
        raise IRError(f"{says(x, 'the operand') if isinstance(x, Value) else repr(x)}, not a tile")
    return x


def _reduce(x, op: str, axis: int, acc=None):
    if acc is not None and not (isinstance(acc, Value) and acc.type.rank == x.type.rank - 1):
        raise IRError(f"{what(acc)} is no vector to fold the {op} into")
    total = current().op("reduce", [x], {"op": op, "axis": axis})
    return total if acc is None else current().map(_COMBINE[op], acc, total)


def _along(name: str, op: str, axis: int) -> Verb:
    def lower(x, acc=None):
        return _reduce(_tile(x), op, axis, acc)

    lower.__name__ = name
    line, vec = ("row", "col_vec") if axis == 1 else ("column", "row_vec")
    ignored = "; NaN is ignored" if op in ("max", "min") else ""
    lower.__doc__ = (
        f"{op} of every {line}'s live elements, a {vec}; folded into the vector ``acc`` if one "
        f"is given{ignored}."
    )
    return verb(lower)


row_sum, row_max = _along("row_sum", "sum", 1), _along("row_max", "max", 1)
row_min, row_prod = _along("row_min", "min", 1), _along("row_prod", "prod", 1)
col_sum, col_max = _along("col_sum", "sum", 0), _along("col_max", "max", 0)
col_min, col_prod = _along("col_min", "min", 0), _along("col_prod", "prod", 0)


def _argreduce(x: Value, op: str, axis: int) -> Value:
    b = current()
    if isinstance(x, Value) and x.type.dtype.is_float:
        # As in PyTorch; else a row of NaN would have its extreme among dead elements.
        extreme = math.inf if op == "max" else -math.inf
        x = b.map("where", b.map("ne", x, x), extreme, x)
    return b.op("argreduce", [x], {"op": op, "axis": axis})


def _position(name: str, op: str, axis: int) -> Verb:
    def lower(x):
        return _argreduce(_tile(x), op, axis)

    lower.__name__ = name
    line = "row" if axis == 1 else "column"
    lower.__doc__ = (
        f"Position (i32) of every {line}'s {op}imum; of equals the first. NaN counts as {op}imal."
    )
    return verb(lower)


row_argmax, row_argmin = _position("row_argmax", "max", 1), _position("row_argmin", "min", 1)
col_argmax, col_argmin = _position("col_argmax", "max", 0), _position("col_argmin", "min", 0)


def _axis_of(x, axis, name: str) -> int:
    if not isinstance(x, Value) or not x.type.rank:
        raise IRError(f"tk.{name} of {x!r}: takes a tile or a vector")
    if x.type.rank == 1:
        if axis not in (None, 0, -1):
            raise IRError(f"{says(x, 'the operand')} has no axis {axis}")
        return 0
    if axis is None:
        raise IRError(
            f"{says(x, 'the operand')}: along which axis?",
            f"tk.{name}(x, axis=1) reduces rows to a col_vec, axis=0 columns to a row_vec",
        )
    if axis not in (0, 1, -1):
        raise IRError(f"{says(x, 'the operand')} has no axis {axis}")
    return axis % 2


def _general(name: str, op: str) -> Verb:
    def lower(x, other=None, *, axis=None):
        if other is not None or not isinstance(x, Value):
            if op not in ("max", "min"):
                raise IRError(f"tk.{name} of two operands is tk.{_COMBINE[op]}")
            return current().map(op, x, other)
        return _reduce(x, op, _axis_of(x, axis, name))

    lower.__name__ = name
    two = " With two operands: elementwise." if op in ("max", "min") else ""
    lower.__doc__ = (
        f"{op} of a vector (a scalar), or of a tile along ``axis`` (a vector), as in PyTorch.{two}"
    )
    return verb(lower)


sum, prod = _general("sum", "sum"), _general("prod", "prod")
max, min = _general("max", "max"), _general("min", "min")


def _arg(name: str, op: str) -> Verb:
    def lower(x, axis=None):
        return _argreduce(x, op, _axis_of(x, axis, name))

    lower.__name__ = name
    lower.__doc__ = f"Position (i32) of the {op}imum of a vector, or of a tile along ``axis``."
    return verb(lower)


argmax, argmin = _arg("argmax", "max"), _arg("argmin", "min")


def _scan(name: str, op: str) -> Verb:
    def lower(x, axis=None, *, reverse: bool = False):
        attrs = {"op": op, "axis": _axis_of(x, axis, name), "reverse": reverse}
        return current().op("scan", [x], attrs)

    lower.__name__ = name
    lower.__doc__ = (
        f"Running {op} of a vector or of a tile along ``axis``, from the end if ``reverse``."
    )
    return verb(lower)


cumsum, cumprod = _scan("cumsum", "sum"), _scan("cumprod", "prod")


@verb
def associative_scan(x, operator, axis=None, *, reverse: bool = False):
    """Running combination with the author's ``operator``, of a vector or a tile along ``axis``.

    x: a tile or vector, or a tuple of them that are scanned together, of one shape and any
    dtypes, complex ones too; the result is of the same form. ``operator(left, right)`` gets two
    elements (two tuples of elements) and gives one; it must be associative, and is made of
    elementwise verbs:

        # h[t] = a[t] * h[t - 1] + b[t]
        _, h = tk.associative_scan((a, b), lambda l, r: (l[0] * r[0], l[1] * r[0] + r[1]), axis=0)

    out[0] = x[0], out[t] = operator(out[t - 1], x[t]); with ``reverse`` the same from the last
    element to the first. Dead elements take no part. 16-bit floats are combined in fp32 and
    rounded once. The order of combination differs between targets: results agree up to rounding.
    """
    b = current()
    many = isinstance(x, tuple | list)
    items = list(x) if many else [x]
    values = [v for item in items for v in _parts(item)]
    if not values or not all(isinstance(v, Value) and v.type.rank for v in values):
        raise IRError(
            f"tk.associative_scan of {', '.join(map(what, items)) or 'nothing'}: takes a tile, a "
            "vector or a tuple of them"
        )
    if not callable(operator):
        raise IRError(f"{what(operator)} is not an operator", "a lambda, or a @tk.function")
    axis = _axis_of(values[0], axis, "associative_scan")
    dtypes = [element_type(v.type.dtype) for v in values]
    region, sides = Region(), []
    for side in ("left", "right"):
        names = [f"{side}{k}" if len(values) > 1 else side for k in builtins.range(len(values))]
        region.args += (mine := [Value(Type(d), n) for d, n in zip(dtypes, names, strict=True)])
        sides.append(_joined(mine, items))
    b.regions.append(region)
    try:
        out = operator(*(tuple(s) if many else s[0] for s in sides))
        outs = list(out) if isinstance(out, tuple | list) else [out]
        if len(outs) != len(items) or isinstance(out, tuple | list) != many:
            raise IRError(
                f"the operator returns {len(outs)} numbers for {len(items)} operands",
                "it returns as many as it combines",
            )
        for item, result in zip(items, outs, strict=True):
            if isinstance(item, Complex) != isinstance(result, Complex):
                raise IRError(f"the operator gives {what(result)} for elements of {what(item)}")
        flat = [v for o in outs for v in _parts(o)]
        results = [b.value(o, d) for o, d in zip(flat, dtypes, strict=True)]
        results = [
            b.op("cast", [v], {"dtype": d})
            if v.type.dtype != d and v.type.dtype.kind == d.kind and not v.type.rank
            else v
            for v, d in zip(results, dtypes, strict=True)
        ]
        b.emit("yield", results)
    finally:
        b.regions.pop()
    op = b.emit("associative_scan", values, {"axis": axis, "reverse": reverse}, [region])
    scanned = _joined(op.results, items)
    return tuple(scanned) if many else scanned[0]


def _parts(x: object) -> tuple:
    """The real values of an operand: two of a complex one."""
    return x.parts if isinstance(x, Complex) else (x,)


def _joined(values: list[Value], like: list) -> list:
    """Values, pairs of them as complex ones where ``like`` has those."""
    left = iter(values)
    return [Complex(next(left), next(left)) if isinstance(x, Complex) else next(left) for x in like]
