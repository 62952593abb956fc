"""Elementwise operations, and the broadcasts of vectors over tiles."""

from __future__ import annotations

from codegen.expr import Max, Min, is_index
from codegen.ir import DType, Value, i32
from codegen.ops.base import IRError, says
from tkpy.builder import current, known_dtype, what
from tkpy.vocabulary.verb import Verb, verb

__all__ = [
    "abs", "add", "add_col", "add_row", "apply", "broadcast_col", "broadcast_row", "cast",
    "col_vec", "copy", "cos", "detach", "div", "div_col", "div_row", "eq", "erf", "exp", "exp2",
    "fma_AxBtC", "fma_AxCtB", "ge", "gelu", "gt", "le", "log", "log2", "lt", "maximum",
    "minimum", "mul", "mul_col", "mul_row", "ne", "neg", "relu", "row_vec", "rsqrt", "sigmoid",
    "silu", "sin", "sqrt", "sub", "sub_col", "sub_row", "tanh", "where",
]  # fmt: skip


def _unary(name: str, doc: str) -> Verb:
    def lower(x):
        return current().map(name, x)

    lower.__name__, lower.__doc__ = name, doc
    return verb(lower)


def _binary(name: str, kind: str, doc: str) -> Verb:
    def lower(a, b):
        return current().map(kind, a, b)

    lower.__name__, lower.__doc__ = name, doc
    return verb(lower)


exp = _unary("exp", "e to the power x. Floats; 16-bit ones are computed in fp32.")
exp2 = _unary("exp2", "2 to the power x.")
log = _unary("log", "Natural logarithm; -inf at 0, NaN below.")
log2 = _unary("log2", "Logarithm to base 2.")
sqrt = _unary("sqrt", "Square root; NaN below 0.")
rsqrt = _unary("rsqrt", "1 / sqrt(x).")
sin = _unary("sin", "Sine of x in radians.")
cos = _unary("cos", "Cosine of x in radians.")
erf = _unary("erf", "Error function.")
tanh = _unary("tanh", "Hyperbolic tangent.")
sigmoid = _unary("sigmoid", "1 / (1 + exp(-x)).")
relu = _unary("relu", "max(x, 0); NaN stays NaN.")
abs = _unary("abs", "Absolute value, of floats and integers.")
neg = _unary("neg", "-x.")

add = _binary("add", "add", "a + b, of tiles, vectors and numbers.")
sub = _binary("sub", "sub", "a - b.")
mul = _binary("mul", "mul", "a * b, elementwise.")
div = _binary("div", "div", "a / b, of floats.")


@verb
def maximum(a, b):
    """The larger of a and b; a NaN operand is ignored. Of two indices an index."""
    if is_index(a) and is_index(b):
        return Max(a, b)
    return current().map("max", a, b)


@verb
def minimum(a, b):
    """The smaller of a and b; a NaN operand is ignored. Of two indices an index."""
    if is_index(a) and is_index(b):
        return Min(a, b)
    return current().map("min", a, b)


eq = _binary("eq", "eq", "a == b, a bool tile.")
ne = _binary("ne", "ne", "a != b.")
lt = _binary("lt", "lt", "a < b.")
le = _binary("le", "le", "a <= b.")
gt = _binary("gt", "gt", "a > b.")
ge = _binary("ge", "ge", "a >= b.")


@verb
def where(cond, a, b):
    """``a`` where the bool tile ``cond`` holds, else ``b``."""
    return current().map("where", cond, a, b)


@verb
def fma_AxBtC(a, b, c):
    """a * b + c."""
    return current().map("add", current().map("mul", a, b), c)


@verb
def fma_AxCtB(a, b, c):
    """a * c + b."""
    return current().map("add", current().map("mul", a, c), b)


@verb
def detach(x):
    """``x``, with the statement that the kernel's results do not depend on it.

    No gradient flows through it, and a loop's carry that is detached is taken by the derived
    backward at its last value everywhere: a running maximum, subtracted for safety's sake, costs
    the backward nothing. That the statement is true, ``tk.check`` holds by finite differences.
    """
    return current().op("detach", [current().value(x)])


@verb
def silu(x):
    """x * sigmoid(x)."""
    return current().map("mul", x, current().map("sigmoid", x))


@verb
def gelu(x):
    """x * Phi(x) with the exact error function (PyTorch's default)."""
    b = current()
    half = b.map("mul", x, 0.5)
    phi = b.map("erf", b.map("mul", x, 0.7071067811865476))
    return b.map("mul", half, b.map("add", phi, 1.0))


@verb
def cast(x, dtype: DType):
    """``x`` with elements of ``dtype``; floats round to nearest even.

    8-bit floats as in PyTorch: fp8e4m3 has no infinity and saturates at 448, fp8e5m2 becomes
    infinite from 61440 on, NaN stays NaN. Integers wrap.
    """
    known_dtype(dtype)
    if not isinstance(x, Value):
        x = current().value(x, dtype)
    return current().op("cast", [x], {"dtype": dtype})


@verb
def copy(x, dtype: DType | None = None):
    """``x``, converted to ``dtype`` if one is given (ThunderKittens' ``copy``)."""
    return x if dtype is None else cast.lower(x, dtype)


def _orient(v: object, orient: str) -> Value:
    if not isinstance(v, Value) or v.type.rank != 1:
        raise IRError(f"{says(v, 'the operand') if isinstance(v, Value) else v!r} is no vector")
    if v.type.orient == orient:
        return v
    return current().op("retype", [v], {"axes": v.type.axes, "orient": orient})


@verb
def col_vec(v):
    """``v`` as one element a row: it broadcasts along the rows of a tile."""
    return _orient(v, "col")


@verb
def row_vec(v):
    """``v`` as one element a column: it broadcasts down the columns of a tile."""
    return _orient(v, "row")


def _with_vector(name: str, kind: str, orient: str) -> Verb:
    def lower(x, v):
        return current().map(kind, x, _orient(v, orient))

    lower.__name__ = name
    place = "row, v[i] to all of row i" if orient == "col" else "column, v[j] to all of column j"
    lower.__doc__ = f"{kind} of a tile and a vector with one element a {place}."
    return verb(lower)


add_row = _with_vector("add_row", "add", "col")
sub_row = _with_vector("sub_row", "sub", "col")
mul_row = _with_vector("mul_row", "mul", "col")
div_row = _with_vector("div_row", "div", "col")
add_col = _with_vector("add_col", "add", "row")
sub_col = _with_vector("sub_col", "sub", "row")
mul_col = _with_vector("mul_col", "mul", "row")
div_col = _with_vector("div_col", "div", "row")


def _broadcast(v, side, orient: str):
    attrs = {"across": current().axis(side), "orient": orient}
    return current().op("broadcast", [_orient(v, orient)], attrs)


@verb
def broadcast_row(v, cols):
    """The tile of ``cols`` columns whose row i holds v[i] everywhere."""
    return _broadcast(v, cols, "col")


@verb
def broadcast_col(v, rows):
    """The tile of ``rows`` rows whose column j holds v[j] everywhere."""
    return _broadcast(v, rows, "row")


@verb
def apply(x, function, *, row=0, col=0, start=0):
    """``function(row, col, value)`` of every element of a tile, ``function(index, value)`` of a
    vector's.

    Coordinates are logical, i32, and count from ``row``, ``col`` or ``start``: with the tile's own
    offsets they are those of the tensor, whatever the tile's shape and wherever it lies. The
    function works on all elements at once, with the verbs and operators of tiles.
    """
    b = current()
    if not isinstance(x, Value) or not x.type.rank:
        raise IRError(f"{what(x)}: apply takes a tile or a vector")
    if not callable(function):
        raise IRError(f"{what(function)} is not a function", "a lambda, or a @tk.function")
    if not all(a.simple for a in x.type.axes):
        raise IRError(
            f"{says(x, 'the operand')}: the elements of a flattened axis have no one coordinate",
            "load the tile without flattening",
        )
    tile = x.type.rank == 2
    if (start != 0) if tile else (row != 0 or col != 0):
        raise IRError(
            f"{says(x, 'the operand')}: its offsets are " + ("row= and col=" if tile else "start="),
        )
    places = ((row, "col"), (col, "row")) if tile else ((start, x.type.orient),)
    positions = [
        b.op("iota", attrs={"dtype": i32, "axes": (a,), "start": b.index(s), "orient": o})
        for a, (s, o) in zip(x.type.axes, places, strict=True)
    ]
    return function(*positions, x)
