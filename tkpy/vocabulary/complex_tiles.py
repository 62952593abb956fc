"""Complex tiles: pairs of real ones, and what each verb means for them.

A complex value exists only here and in the front end; tile IR sees two real tiles. ``FORMS`` says
what a verb does when an operand is complex; a verb that is not in it refuses them.
"""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Callable

from codegen.ir import DType, Value, f32
from codegen.ops.base import IRError
from tkpy.builder import Complex, TensorRef, current, what
from tkpy.vocabulary.verb import VERBS, verb

__all__ = ["complex", "conj", "imag", "real"]

FORMS: dict[str, Callable] = {}


def is_complex(x: object) -> bool:
    """True for what makes an operation a complex one: a value, a number or a tensor."""
    if isinstance(x, TensorRef | DType):
        return x.is_complex
    return isinstance(x, Complex | builtins.complex)


def pair(re: Value, im: Value) -> Complex:
    """A complex value of two real ones. Raises IRError if they differ in type or are no floats."""
    for v in (re, im):
        if not v.type.dtype.is_float:
            raise IRError(f"{what(v)}: the parts of a complex value are floats", "tk.cast it first")
    if re.type.like(axes=()) != im.type.like(axes=()) or re.type.shape != im.type.shape:
        raise IRError(
            f"the real part is {what(re)} and the imaginary part {what(im)}",
            "both parts have one shape and dtype",
        )
    return Complex(re, im)


@verb
def complex(re, im=0.0):
    """The complex value ``re + i im`` of two real tiles, vectors or numbers of one type.

    f32, bf16 or f16. A number stands for a tile or vector that holds it everywhere. Complex
    values have ``.real``, ``.imag``, ``.T``, ``.shape``, ``.dtype`` (of a part) and the operators
    + - * / @; they are carried round loops like others. Raises CompileError if the parts differ.
    """
    b = current()
    if not isinstance(re, Value) and not isinstance(im, Value):
        return pair(b.value(float(re)), b.value(float(im)))
    like = re if isinstance(re, Value) and (re.type.rank or not isinstance(im, Value)) else im
    parts = [x if isinstance(x, Value) and x.type.rank else _filled(x, like) for x in (re, im)]
    return pair(*parts)


def _filled(x: object, like: Value) -> Value:
    """``x``, a number, in the shape of ``like``."""
    b = current()
    t = like.type
    if not t.rank or isinstance(x, Value):
        v = b.value(float(x) if isinstance(x, int) else x)
        if not t.rank:
            return v if v.type.dtype == t.dtype else b.op("cast", [v], {"dtype": t.dtype})
        out = b.op("splat", [v], {"dtype": t.dtype, "axes": t.axes})
    else:
        number = b.element(x, t.dtype, "a part of a complex value")
        out = b.op("full", attrs={"value": number, "dtype": t.dtype, "axes": t.axes})
    if t.orient:
        out = b.op("retype", [out], {"axes": t.axes, "orient": t.orient})
    return out


def _part(x: object, name: str) -> object:
    """The real or imaginary part of a value, number or tensor; the type of c64's parts."""
    if not is_complex(x):
        return x
    return f32 if isinstance(x, DType) else getattr(x, name)


def _split(x: object) -> tuple:
    """(real, imaginary): values or numbers, None for a part that is not there."""
    if isinstance(x, Complex):
        return x.parts
    if isinstance(x, builtins.complex):
        return (x.real if x.real or not x.imag else None), x.imag or None
    return x, None


def _wide(*values: object) -> tuple[list, Callable]:
    """Values in fp32, and what brings the result back: 16-bit parts are rounded once."""
    b = current()
    reals = [v for x in values for v in (x.parts if isinstance(x, Complex) else (x,))]
    tiles = [v for v in reals if isinstance(v, Value) and v.type.rank]
    short = {v.type.dtype for v in tiles if v.type.dtype.is_float and v.type.dtype.bits < 32}
    if len(short) != 1 or any(v.type.dtype not in short for v in tiles):
        return list(values), lambda x: x  # fp32 already, or types that the map will refuse
    (dtype,) = short

    def up(v: object) -> object:
        if isinstance(v, Complex):
            return Complex(*map(up, v.parts))  # type: ignore[arg-type]
        is_tile = isinstance(v, Value) and v.type.rank
        return b.op("cast", [v], {"dtype": f32}) if is_tile else v  # type: ignore[list-item]

    def down(x):
        if isinstance(x, Complex):
            return Complex(*map(down, x.parts))
        return b.op("cast", [x], {"dtype": dtype})

    return [up(v) for v in values], down


def _add(a: object, b: object) -> object:
    return a if b is None else b if a is None else current().map("add", a, b)


def _sub(a: object, b: object) -> object:
    if b is None:
        return a
    return _neg(b) if a is None else current().map("sub", a, b)


def _neg(a: object) -> object:
    return -a if isinstance(a, int | float) else current().map("neg", a)


def _mul(a: object, b: object) -> object:
    return None if a is None or b is None else current().map("mul", a, b)


def _whole(re: object, im: object) -> Complex:
    """Parts, one of which may be missing, as a complex value of the shape that they have."""
    return complex.lower(*(0.0 if part is None else part for part in (re, im)))


def _form(kind: str) -> Callable:
    def decorator(form: Callable) -> Callable:
        FORMS[kind] = form
        return form

    return decorator


# -- maps ----------------------------------------------------------------------------------------


@_form("add")
def _complex_add(a, b):
    (ar, ai), (br, bi) = _split(a), _split(b)
    return _whole(*_alike(_add(ar, br), _add(ai, bi)))


@_form("sub")
def _complex_sub(a, b):
    (ar, ai), (br, bi) = _split(a), _split(b)
    return _whole(*_alike(_sub(ar, br), _sub(ai, bi)))


def _alike(re: object, im: object) -> tuple:
    """Two parts, the one that came from a vector or number alone spread over the other's shape."""
    parts = [re, im]
    ranks = [p.type.rank if isinstance(p, Value) else 0 for p in parts]
    if all(isinstance(p, Value) for p in parts) and ranks[0] != ranks[1]:
        low = ranks.index(min(ranks))
        other = parts[1 - low]
        assert isinstance(other, Value)
        parts[low] = current().map("add", parts[low], _filled(0.0, other))
    return tuple(parts)


@_form("mul")
def _complex_mul(a, b):
    """Four products, two where an operand is real; 16-bit parts are rounded once."""
    (a, b), back = _wide(a, b)
    (ar, ai), (br, bi) = _split(a), _split(b)
    re = _sub(_mul(ar, br), _mul(ai, bi))
    im = _add(_mul(ar, bi), _mul(ai, br))
    return back(_whole(*_alike(re, im)))


@_form("div")
def _complex_div(a, b):
    """By the larger part of ``b`` first, so that |b|^2 neither overflows nor vanishes."""
    map_ = current().map
    (a, b), back = _wide(a, b)
    ar, ai = _split(a)
    if not is_complex(b):
        parts = (None if v is None else map_("div", v, b) for v in (ar, ai))
        return back(_whole(*_alike(*parts)))
    if isinstance(b, builtins.complex):
        return back(_complex_mul(a, 1 / b))
    size = map_("max", map_("abs", b.real), map_("abs", b.imag))
    br, bi = map_("div", b.real, size), map_("div", b.imag, size)
    norm = map_("mul", map_("add", map_("mul", br, br), map_("mul", bi, bi)), size)
    re = _add(_mul(ar, br), _mul(ai, bi))
    im = _sub(_mul(ai, br), _mul(ar, bi))
    return back(_whole(*_alike(*(map_("div", v, norm) for v in (re, im)))))


@_form("neg")
def _complex_neg(x):
    return Complex(*(current().map("neg", v) for v in x.parts))


@verb
def conj(x):
    """The complex conjugate; a real value is its own."""
    if not isinstance(x, Complex):
        return current().value(x)
    return Complex(x.real, current().map("neg", x.imag))


@verb
def real(x):
    """The real part of a complex value or tensor, ``x.real``."""
    return x.real if is_complex(x) else current().value(x)


@verb
def imag(x):
    """The imaginary part of a complex value or tensor, ``x.imag``."""
    if not is_complex(x):
        raise IRError(f"{what(x)} is real", "tk.complex(x, 0) makes it complex")
    return x.imag


for _v in (conj, real, imag):
    FORMS[_v.__name__] = _v.lower


@_form("abs")
def _complex_abs(x):
    """hypot: no overflow on the way, infinity if a part is infinite, else NaN if one is NaN."""
    map_ = current().map
    (x,), back = _wide(x)
    a, b = map_("abs", x.real), map_("abs", x.imag)
    large, small = map_("max", a, b), map_("min", a, b)
    ratio = map_("div", small, large)
    length = map_("mul", large, map_("sqrt", map_("add", map_("mul", ratio, ratio), 1.0)))
    inside = map_("and", map_("gt", large, 0.0), map_("lt", large, builtins.float("inf")))
    length = map_("where", inside, length, large)
    total = map_("add", a, b)
    odd = map_("and", map_("ne", total, total), map_("lt", large, builtins.float("inf")))
    return back(map_("where", odd, total, length))


@_form("exp")
def _complex_exp(x):
    """exp(re) (cos im + i sin im)."""
    map_ = current().map
    (x,), back = _wide(x)
    size = map_("exp", x.real)
    parts = [map_("mul", size, map_(k, x.imag)) for k in ("cos", "sin")]
    return back(Complex(*parts))


@_form("fma_AxBtC")
def _fma(a, b, c):
    return FORMS["add"](FORMS["mul"](a, b), c)


@_form("fma_AxCtB")
def _fma_other(a, b, c):
    return FORMS["add"](FORMS["mul"](a, c), b)


@_form("eq")
def _complex_eq(a, b):
    same = [
        current().map("eq", *(0.0 if v is None else v for v in both))
        for both in zip(_split(a), _split(b), strict=True)
    ]
    return current().map("and", *same)


@_form("ne")
def _complex_ne(a, b):
    return current().map("invert", _complex_eq(a, b))


@_form("where")
def _complex_where(cond, a, b):
    parts = [
        current().map("where", cond, *(0.0 if v is None else v for v in both))
        for both in zip(_split(a), _split(b), strict=True)
    ]
    return Complex(*parts)


# -- what is done to each part -------------------------------------------------------------------


def _by_parts(name: str) -> None:
    """``name`` of a complex value is ``name`` of each part."""

    def form(*args, **kwargs):
        lower = VERBS[name].lower
        bound = inspect.signature(lower).bind(*args, **kwargs)
        out = []
        for part in ("real", "imag"):
            out.append(lower(**{k: _part(v, part) for k, v in bound.arguments.items()}))
        return None if out[0] is None else Complex(*out)

    FORMS[name] = form


for _name in (
    "transpose", "subtile", "swap_layout", "col_vec", "row_vec", "broadcast_row",
    "broadcast_col", "row_sum", "col_sum", "sum", "cumsum",
):  # fmt: skip
    _by_parts(_name)


@_form("cast")
def _complex_cast(x, dtype=None):
    dtype = f32 if dtype is not None and dtype.is_complex else dtype
    lower = VERBS["copy"].lower
    return Complex(*(lower(v, dtype) for v in x.parts)) if isinstance(x, Complex) else (
        complex.lower(lower(x, dtype), 0.0)
    )  # fmt: skip


FORMS["copy"] = _complex_cast


def _both_complex(name: str) -> None:
    """``name`` of two values, the real one of which counts as complex."""
    _by_parts(name)
    inner = FORMS[name]

    def form(a, b, *args, **kwargs):
        a, b = (x if isinstance(x, Complex) else complex.lower(x, 0.0) for x in (a, b))
        return inner(a, b, *args, **kwargs)

    FORMS[name] = form


_both_complex("concat")

#: Masks fill the imaginary part with zero: a fill is a real number.
for _name in ("tril", "triu", "make_causal", "make_causal_t", "right_fill", "left_fill",
              "upper_fill", "lower_fill", "upper_right_fill", "fill_dead"):  # fmt: skip

    def _masked(*args, _name=_name, **kwargs):
        lower = VERBS[_name].lower
        bound = inspect.signature(lower).bind(*args, **kwargs)
        bound.apply_defaults()
        fill = "value" if _name == "fill_dead" else "fill"
        out = []
        for part in ("real", "imag"):
            given = {k: _part(v, part) for k, v in bound.arguments.items()}
            number = bound.arguments[fill]
            given[fill] = getattr(number, part) if is_complex(number) or part == "real" else 0.0
            out.append(lower(**given))
        return Complex(*out)

    FORMS[_name] = _masked


def _with_vector(name: str, kind: str, orient: str) -> None:
    def form(x, v):
        v = FORMS[f"{orient}_vec"](v) if is_complex(v) else VERBS[f"{orient}_vec"].lower(v)
        return FORMS[kind](x, v)

    FORMS[name] = form


for _kind in ("add", "sub", "mul", "div"):
    _with_vector(f"{_kind}_row", _kind, "col")
    _with_vector(f"{_kind}_col", _kind, "row")


# -- from nothing, and memory --------------------------------------------------------------------


def _made(name: str, imaginary: str) -> None:
    def form(*shape, dtype=None, layout=None):
        parts = [VERBS[n].lower(*shape, dtype=f32, layout=layout) for n in (name, imaginary)]
        return Complex(*parts)

    FORMS[name] = form


_made("zeros", "zeros")
_made("ones", "zeros")
FORMS["zero"], FORMS["one"] = FORMS["zeros"], FORMS["ones"]


@_form("full")
def _complex_full(shape, value, dtype=f32):
    dtype = f32 if dtype.is_complex else dtype
    parts = (0.0 if v is None else v for v in _split(value))
    return Complex(*(VERBS["full"].lower(shape, v, dtype) for v in parts))


for _name in ("load", "prefetch", "gather_rows"):
    _by_parts(_name)

_loaded = FORMS["load"]


@_form("load")
def _complex_load(t, coord, shape=(), *, dtype=None, **how):
    """Of a complex tensor, or of a real one as ``dtype=tk.c64``."""
    if is_complex(t):
        return _loaded(t, coord, shape, dtype=dtype, **how)
    return complex.lower(VERBS["load"].lower(t, coord, shape, dtype=f32, **how), 0.0)


FORMS["associative_scan"] = lambda *args, **how: VERBS["associative_scan"].lower(*args, **how)


def _stored(name: str) -> None:
    _by_parts(name)
    inner = FORMS[name]

    def form(t, x, *args, **kwargs):
        if isinstance(t, TensorRef) and not t.is_complex:
            raise IRError(
                f"{what(x)} and {t.name} holds {t.dtype}",
                "store x.real and x.imag, or tk.abs(x)",
            )
        x = x if is_complex(x) else complex.lower(x, 0.0)
        if isinstance(x, builtins.complex):
            x = complex.lower(x.real, x.imag)
        return inner(t, x, *args, **kwargs)

    FORMS[name] = form


for _name in ("store", "store_add", "scatter_rows", "scatter_add_rows"):
    _stored(_name)


# -- products ------------------------------------------------------------------------------------


def _product(form: str, accumulate: bool) -> None:
    name = f"{'mma' if accumulate else 'mm'}_{form}"

    def product(a, b, acc=None, *, precision: str = "ieee"):
        for x in (a, b):
            if not isinstance(x, Complex | Value):
                raise IRError(f"{what(x)} is not a tile", "matrix products take tiles")
        real_product = VERBS[f"mma_{form}"].lower
        (ar, ai), (br, bi) = _split(a), _split(b)
        cr, ci = (None, None) if acc is None else _accumulator(acc)

        def add(terms, total):
            for x, y in terms:
                if x is not None and y is not None:
                    total = real_product(x, y, total, precision=precision)
            return total

        # re = ar br - ai bi, im = ar bi + ai br: the sign is the operand's, which is exact.
        minus = None if ai is None or bi is None else _neg(ai)
        re, im = add([(ar, br), (minus, bi)], cr), add([(ar, bi), (ai, br)], ci)
        return re if im is None else Complex(re, im)

    FORMS[name] = product


def _accumulator(acc: object) -> tuple:
    if isinstance(acc, Complex):
        return acc.parts
    raise IRError(
        f"{what(acc)} is no accumulator of a complex product",
        "start it with tk.zeros(rows, cols, dtype=tk.c64)",
    )


for _name in ("AB", "ABt", "AtB", "AtBt"):
    _product(_name, True)
    _product(_name, False)
