"""Where verbs put operations: the function being built, the current region, the author's line."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import sympy

from codegen.expr import Boolean, Expr, Symbol, as_int, is_index, parse, sym
from codegen.ir import (
    Axis,
    DType,
    Function,
    Loc,
    Op,
    Param,
    Region,
    Type,
    Value,
    bool_,
    c64,
    f32,
    factor,
    i32,
    round_up,
)
from codegen.ops.base import IRError
from codegen.rewrite import build
from tkpy.errors import NeedStatic
from tkpy.template.knobs import Template

_CURRENT: ContextVar[Builder] = ContextVar("tkpy_builder")


def current() -> Builder:
    """The builder of the kernel that is being compiled."""
    return _CURRENT.get()


@dataclass(frozen=True)
class TensorRef:
    """A tensor parameter as the kernel's body sees it: ``.dtype``, ``.shape``, ``.name``."""

    param: Param
    part: int | None = None  # of a complex tensor: 0 its real numbers, 1 its imaginary ones

    @property
    def name(self) -> str:
        return self.param.name

    @property
    def is_complex(self) -> bool:
        return self.param.pair and self.part is None

    @property
    def dtype(self) -> DType:
        return c64 if self.is_complex else self.param.dtype

    @property
    def shape(self) -> tuple[Expr, ...]:
        return self.param.dims[:-1] if self.param.pair else self.param.dims

    @property
    def real(self) -> TensorRef:
        return TensorRef(self.param, 0)

    @property
    def imag(self) -> TensorRef:
        return TensorRef(self.param, 1)

    def __repr__(self) -> str:
        return f"tensor {self.param}"


@dataclass(frozen=True, eq=False)
class Complex:
    """A complex tile, vector or scalar: two real values of one type."""

    real: Value
    imag: Value

    @property
    def parts(self) -> tuple[Value, Value]:
        return self.real, self.imag

    @property
    def dtype(self) -> DType:
        """That of each part."""
        return self.real.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.real.type.shape


@dataclass(frozen=True)
class At:
    """A coordinate in elements; a plain coordinate counts tiles."""

    element: Expr


@dataclass(frozen=True)
class TileRange:
    """What ``tk.range`` returns: a loop the kernel runs, not one that is unrolled."""

    start: Expr
    stop: Expr


@dataclass
class Builder:
    fn: Function
    static: dict[str, int]
    conditions: dict[str, tuple[Expr | None, Expr | None]] = field(default_factory=dict)
    regions: list[Region] = field(default_factory=list)
    loc: Loc = field(default_factory=Loc)
    targets: list[str] = field(default_factory=list)
    symbols: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    loop_vars: list[Symbol] = field(default_factory=list)
    template: Template | None = None
    walker: Any = None  # what walks the kernel, for verbs that call its functions

    # -- operations -----------------------------------------------------------------------

    def emit(self, kind: str, operands=(), attrs=None, regions=None) -> Op:
        op = build(self.fn, kind, list(operands), attrs, regions, self.loc)
        self.regions[-1].ops.append(op)
        return op

    def op(self, kind: str, operands=(), attrs=None) -> Value:
        return self.emit(kind, operands, attrs).result

    def map(self, kind: str, *operands: object) -> Value:
        """An elementwise operation on tiles, vectors, scalars and Python numbers."""
        like = next((v for v in operands if isinstance(v, Value) and v.type.rank), None)
        like = like or next((v for v in operands if isinstance(v, Value)), None)
        wanted = like.type.dtype if like is not None else f32
        if kind == "where" and len(operands) == 3:
            picks = [v for v in operands[1:] if isinstance(v, Value)]
            picks.sort(key=lambda v: -v.type.rank)
            wanted = picks[0].type.dtype if picks else f32
        for v in operands:
            self._fits(v, wanted, like)
        return self.op(kind, [self.value(v, wanted) for v in operands])

    def _fits(self, x: object, dtype: DType, like: Value | None) -> None:
        """Refuses a number that the integers of a tile do not hold: it would wrap."""
        if like is None or not like.type.rank or dtype.kind != "int" or not is_index(x):
            return
        number = as_int(self.norm(x))
        low, high = dtype.limits
        if number is not None and not low <= number <= high:
            raise IRError(
                f"{number} is no {dtype}: {_what(like)} holds {low} to {high}",
                "convert the tile first, for example with tk.cast(x, tk.i64)",
            )

    def value(self, x: object, like: DType = f32) -> Value:
        """``x`` as an IR value: a Python number becomes a literal, an index expression a scalar."""
        if isinstance(x, Value):
            return x
        if isinstance(x, bool):
            return self.op("const", attrs={"value": x, "dtype": bool_})
        if is_condition(x):
            return self.op("cond", attrs={"expr": self.norm(x)})
        number = as_int(self.norm(x)) if is_index(x) else None
        if number is not None:
            value: object = float(number) if like.is_float else number
            if like.is_float and int(float(number)) != number:
                raise IRError(f"{number} is not exact in {like}")
            dtype = f32 if like.is_float else (like if like.kind == "int" else i32)
            return self.op("const", attrs={"value": value, "dtype": dtype})
        if is_index(x):
            return self.op("index", attrs={"expr": self.norm(x)})
        if isinstance(x, float):
            return self.op("const", attrs={"value": x, "dtype": f32})
        if isinstance(x, Complex | complex):
            raise IRError(
                f"{_what(x)}: real numbers are wanted here", "use its .real and .imag, or tk.abs"
            )
        raise IRError(f"{_what(x)} is not a tile, vector or number")

    def element(self, x: object, dtype: DType, what: str, fix: str = "") -> float | int | bool:
        """``x``, a number known at compile time, as an element of ``dtype``."""
        n = as_int(self.norm(x)) if is_index(x) else x
        if not isinstance(n, bool | int | float):
            raise IRError(f"{what} must be a number, not {_what(x)}", fix)
        try:
            if dtype.is_float and not (dtype.is_fp8 and abs(n) > _LARGEST[dtype.name]):
                return float(n)
            if dtype.kind == "bool":
                return bool(n)
            if dtype.kind == "int" and int(n) == n and dtype.limits[0] <= n <= dtype.limits[1]:
                return int(n)
        except (OverflowError, ValueError):
            pass
        raise IRError(f"{what} is {n}, which is no {dtype}", fix)

    # -- index expressions ----------------------------------------------------------------

    def norm(self, x):
        """An index expression with the static dimensions put in."""
        if isinstance(x, bool) or x is sympy.true or x is sympy.false:
            return x
        if isinstance(x, str):
            x = self.parse(x)
        e = sympy.sympify(x)
        known = {s: self.static[s.name] for s in e.free_symbols if s.name in self.static}
        return e.subs(known) if known else e

    def parse(self, source: str):
        """An expression over the signature's dimension names."""
        known = {s.name for s in self.fn.dims} | set(self.static)

        def lookup(name: str) -> Expr:
            if name not in known:
                raise IRError(
                    f"{name!r} is not a dimension of the signature",
                    f"the dimensions are {', '.join(sorted(known))}",
                )
            return sym(name)

        try:
            return parse(source, lookup)
        except ValueError as e:
            raise IRError(str(e)) from None

    def index(self, x: object, what: str = "an index") -> Expr:
        if isinstance(x, str):
            return self.norm(x)
        if is_index(x):
            return self.norm(x)
        if isinstance(x, Value) and x.symbol is not None:
            return x.symbol
        raise IRError(f"{what} must be an integer, not {_what(x)}")

    def side(self, x: object, exact: bool = False) -> tuple[int, tuple[Expr, ...]]:
        """A tile side: (multiple of 16, live bound). A named dimension is rounded up to 16.

        ``exact``: a constant may be any positive number (naive vectors).
        """
        named = isinstance(x, str) or (isinstance(x, Expr) and bool(x.free_symbols))
        e = self.index(x, "a tile side")
        if e.free_symbols:
            dims = {s.name for s in self.fn.dims}
            names = {s.name for s in e.free_symbols}
            if names <= dims:
                raise NeedStatic(names)
            raise IRError(
                f"a tile side must be known at compile time, and {e} is not",
                "use a constant or a dimension of the signature",
            )
        n = int(e)
        if named:
            side = max(16, round_up(n))
            return side, ((sympy.Integer(n),) if n < side else ())
        if n > 0 and exact:
            return n, ()
        if n <= 0 or n % 16:
            raise IRError(
                f"a tile side must be a positive multiple of 16, and {n} is not",
                f"use {max(16, round_up(n))}, or name a dimension of the signature: its live "
                "extent is kept",
            )
        return n, ()

    def axis(self, x: object, exact: bool = False) -> Axis:
        parts = x if isinstance(x, tuple) else (x,)
        return Axis(tuple(factor(*self.side(p, exact)) for p in parts))

    def unique(self, wanted: str) -> str:
        name, k = wanted, 0
        while name in self.symbols:
            k += 1
            name = f"{wanted}_{k}"
        self.symbols.add(name)
        return name

    def new_symbol(self, wanted: str, low: Expr | None, high: Expr | None) -> Symbol:
        s = sym(self.unique(wanted))
        self.fn.facts.ranges[s] = (low, high)
        return s


#: Of 8-bit floats; there are no constants beyond, not even infinities, as in ThunderKittens.
_LARGEST = {"fp8e4m3": 448.0, "fp8e5m2": 57344.0}


def is_condition(x: object) -> bool:
    """True for a run-time condition. To sympy a symbol is a Boolean too; here it is an integer."""
    return isinstance(x, Boolean) and not isinstance(x, Expr)


def known_dtype(dtype: object) -> DType:
    if not isinstance(dtype, DType):
        raise IRError(f"{dtype!r} is not an element type", "tk.f32, tk.bf16, tk.i32, ...")
    return dtype


def _what(x: object) -> str:
    if isinstance(x, Value):
        return x.type.describe()
    if isinstance(x, Complex):
        return f"complex {x.real.type.describe()}"
    if isinstance(x, TensorRef):
        return f"the tensor {x.name} (load a tile of it first)"
    if isinstance(x, Type):
        return x.describe()
    return f"{x!r}"


what = _what
