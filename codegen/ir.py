"""Tile IR: typed, immutable values in SSA form, operations with regions, one function a kernel.

A *tile* is a value of rank 2, a *vector* of rank 1, a *scalar* of rank 0. Every axis has a side
(a multiple of 16) and a live extent: the elements at and beyond the extent are *dead*, hold
anything, and never reach a result. Integers that decide where things lie are not values but
index expressions (``codegen.expr``) in attributes and types; an integer that only the running
kernel knows is a value whose symbol such expressions may name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from codegen.expr import Boolean, Expr, Max, Min, Symbol, as_int, spelled, symbols_of, text
from codegen.facts import Facts
from codegen.schedule import Schedule

# --------------------------------------------------------------------------------------------
# Types


@dataclass(frozen=True)
class DType:
    """An element type. ``triton`` is its name in ``triton.language``; ``bits`` its width."""

    name: str
    triton: str
    bits: int
    kind: str  # "float", "int", "bool", "complex"

    def __repr__(self) -> str:
        return self.name

    def __or__(self, other: object) -> Maybe:
        """``dtype | None``: the annotation of a scalar that may be left out."""
        if other is None or other is type(None):
            return Maybe(self)
        return NotImplemented

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_fp8(self) -> bool:
        return self.kind == "float" and self.bits == 8

    @property
    def is_complex(self) -> bool:
        return self.kind == "complex"

    @property
    def inexact(self) -> bool:
        """True for floats and for pairs of them."""
        return self.kind in ("float", "complex")

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest number of an integer type."""
        if self.triton.startswith("u"):
            return 0, 2**self.bits - 1
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class Maybe:
    """A scalar of ``dtype``, or None."""

    dtype: DType


f32 = DType("f32", "float32", 32, "float")
bf16 = DType("bf16", "bfloat16", 16, "float")
f16 = DType("f16", "float16", 16, "float")
fp8e4m3 = DType("fp8e4m3", "float8e4nv", 8, "float")  # torch.float8_e4m3fn
fp8e5m2 = DType("fp8e5m2", "float8e5", 8, "float")
i64 = DType("i64", "int64", 64, "int")
i32 = DType("i32", "int32", 32, "int")
i16 = DType("i16", "int16", 16, "int")
i8 = DType("i8", "int8", 8, "int")
u64 = DType("u64", "uint64", 64, "int")
u32 = DType("u32", "uint32", 32, "int")
u8 = DType("u8", "uint8", 8, "int")
bool_ = DType("bool", "int1", 1, "bool")
#: Of tensors only: in tiles a complex number is two of f32, bf16 or f16.
c64 = DType("c64", "complex64", 64, "complex")
index = DType("index", "int32", 32, "int")  # a run-time integer that index expressions name

DTYPES = {
    d.name: d
    for d in (f32, bf16, f16, fp8e4m3, fp8e5m2, i64, i32, i16, i8, u64, u32, u8, bool_, c64, index)
}


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def round_up(n: int, multiple: int = 16) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Factor:
    """One factor of an axis: ``side`` elements of which the first ``min(side, *bounds)`` live."""

    side: int
    bounds: tuple[Expr, ...] = ()

    @property
    def block(self) -> int:
        """Elements that Triton holds: sides need not be powers of two, Triton's blocks must."""
        return next_power_of_two(self.side)

    @property
    def full(self) -> bool:
        """True if no element of the block can be dead."""
        return not self.bounds and self.side == self.block

    @property
    def live(self) -> Expr:
        """The live extent as one expression; a bound may lie before the tile, an extent not."""
        least = Min(self.side, *self.bounds)
        return least if least.is_Integer else Max(0, least)

    def meet(self, other: Factor) -> Factor:
        """Live where both are."""
        return factor(self.side, (*self.bounds, *other.bounds))


def factor(side: int, bounds: Iterable[Expr] = ()) -> Factor:
    """A factor in canonical form: bounds expanded, sorted, without those that cannot bind."""
    return _factor(side, tuple(bounds))


@functools.lru_cache(1 << 12)
def _factor(side: int, bounds: tuple[Expr, ...]) -> Factor:
    constants = [int(b) for b in map(sympy.sympify, bounds) if b.is_Integer]
    others = {sympy.expand(b) for b in map(sympy.sympify, bounds) if not b.is_Integer}
    if len(others) > 1:  # of bounds that differ by a number the least
        others = {b for b in others if not any(_exceeds(b, c) for c in others)}
    smallest = min([side, *constants])
    out = tuple(sorted(others, key=spelled))
    return Factor(side, (*out, sympy.Integer(max(smallest, 0))) if smallest < side else out)


def _exceeds(a: Expr, b: Expr) -> bool:
    difference = a - b
    return bool(difference.is_Integer and difference > 0)


@dataclass(frozen=True)
class Axis:
    """An axis of a tile. More than one factor means that axes were flattened into this one."""

    factors: tuple[Factor, ...]

    @property
    def side(self) -> int:
        return _product(f.side for f in self.factors)

    @property
    def block(self) -> int:
        return _product(f.block for f in self.factors)

    @property
    def full(self) -> bool:
        return all(f.full for f in self.factors)

    @property
    def simple(self) -> bool:
        return len(self.factors) == 1

    def meet(self, other: Axis) -> Axis:
        return Axis(tuple(a.meet(b) for a, b in zip(self.factors, other.factors, strict=True)))

    def same_shape(self, other: Axis) -> bool:
        return [f.side for f in self.factors] == [f.side for f in other.factors]


def axis(side: int, *bounds: Expr) -> Axis:
    return Axis((factor(side, bounds),))


def _product(numbers: Iterable[int]) -> int:
    out = 1
    for n in numbers:
        out *= n
    return out


@dataclass(frozen=True)
class Type:
    """``axes`` from the outermost; ``orient`` of a vector: "col" has one element a row of a tile
    (what ``row_sum`` gives), "row" one a column, None is undecided and broadcasts like PyTorch,
    along the last axis. "?" stands for an orientation that a loop has still to settle."""

    dtype: DType
    axes: tuple[Axis, ...] = ()
    orient: str | None = None

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(a.side for a in self.axes)

    @property
    def block(self) -> tuple[int, ...]:
        return tuple(a.block for a in self.axes)

    @property
    def full(self) -> bool:
        return all(a.full for a in self.axes)

    def like(self, **changes) -> Type:
        return replace(self, **changes)

    def describe(self) -> str:
        """For messages: ``64x128 bf16``, ``vector of 64 f32``, ``f32 scalar``."""
        if not self.axes:
            return f"{self.dtype} scalar"
        sides = "x".join(map(str, self.shape))
        if self.rank == 1:
            where = {"col": "col_vec", "row": "row_vec"}.get(self.orient or "", "vector")
            return f"{where} of {sides} {self.dtype}"
        return f"{sides} {self.dtype}"

    def free_symbols(self) -> frozenset[Symbol]:
        return self._symbols

    @functools.cached_property
    def _symbols(self) -> frozenset[Symbol]:
        return frozenset().union(*map(_symbols_in, self.axes))

    def __str__(self) -> str:
        if not self.axes:
            return self.dtype.name
        axes = " x ".join("*".join(_factor_text(f) for f in a.factors) for a in self.axes)
        orient = f", {self.orient}" if self.orient else ""
        return f"tile<{axes}, {self.dtype}{orient}>"


def _factor_text(f: Factor) -> str:
    return f"{f.side}" + (f"[{'; '.join(text(b) for b in f.bounds)}]" if f.bounds else "")


def scalar(dtype: DType) -> Type:
    return Type(dtype)


# --------------------------------------------------------------------------------------------
# Values, operations, regions


@dataclass(frozen=True)
class Loc:
    """Where the author wrote it: file, line, column (0-based), and the text of that line."""

    file: str = "<unknown>"
    line: int = 0
    column: int = 0
    source: str = ""
    end_column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(eq=False)
class Value:
    """An SSA value. ``hint`` is the author's name for it; ``symbol`` that of a run-time integer."""

    type: Type
    hint: str = ""
    op: Op | None = None
    symbol: Symbol | None = None

    def __repr__(self) -> str:
        return f"%{self.hint or '?'}: {self.type}"


@dataclass(eq=False)
class Op:
    """One operation. What ``kind`` means is told by its row in ``codegen.ops.TABLE``."""

    kind: str
    operands: list[Value] = field(default_factory=list)
    attrs: dict[str, Any] = field(default_factory=dict)
    results: list[Value] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    loc: Loc = field(default_factory=Loc)
    hook: str = ""  # the template's hook that it came from

    @property
    def result(self) -> Value:
        return self.results[0]

    def attr_symbols(self) -> set[Symbol]:
        return set().union(*map(_symbols_in, self.attrs.values()))


def _symbols_in(value: object) -> frozenset[Symbol]:
    if isinstance(value, Expr | Boolean):
        return symbols_of(value)
    if isinstance(value, tuple | list):
        return frozenset().union(*map(_symbols_in, value))
    if isinstance(value, Axis):
        return frozenset().union(*(symbols_of(b) for f in value.factors for b in f.bounds))
    return frozenset()


@dataclass(eq=False)
class Region:
    """A straight list of operations, closed by a ``yield``; ``args`` are bound on entry."""

    args: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    def walk(self) -> Iterator[Op]:
        """Every operation here and in nested regions, outer before inner."""
        for op in self.ops:
            yield op
            for region in op.regions:
                yield from region.walk()

    @property
    def terminator(self) -> Op:
        return self.ops[-1]


@dataclass
class Param:
    """A kernel parameter.

    ``role`` is "in", "out" or "inout" for tensors, "scalar" for run-time numbers. ``dims`` are
    the tensor's sizes as expressions of named dimensions, outermost first. ``pair``: a complex
    tensor, whose last dimension holds the real and the imaginary part, next to each other.
    """

    name: str
    role: str
    dtype: DType
    dims: tuple[Expr, ...] = ()
    unit_inner: bool = True
    zeroed: bool = False
    labels: tuple[str, ...] = ()
    pair: bool = False

    def label(self, d: int) -> str:
        """What the author calls dimension ``d``, even where its size is a constant here."""
        return self.labels[d] if self.labels else spelled(self.dims[d])

    def __str__(self) -> str:
        sizes = " ".join(text(d).replace(" ", "") for d in self.dims)
        flags = ("" if self.unit_inner else " strided") + (" zeroed" if self.zeroed else "")
        flags += " pair" if self.pair else ""
        return (
            f"{self.name}: {self.role} {self.dtype}"
            + (f"[{sizes}]" if self.role != "scalar" else "")
            + flags
        )


@dataclass
class Function:
    """A kernel in tile IR, of one variant: dtypes, constants and static dimensions are settled.

    ``dims`` names the run-time dimensions; ``grid`` has (program symbol, count) pairs in the
    author's order; ``facts`` holds the ranges of all symbols that are not values. ``wide``:
    offsets may pass 2^31. ``aligned``: every stride but the innermost is a multiple of 16, and
    so is the length of every row that is known at run time only.
    ``tasked``: the grid counts tasks, which persistent programs may walk over; ``pipelined``: a
    loop is a template's; ``schedule``: how a GPU runs it, None for one program a task.
    """

    name: str
    params: list[Param] = field(default_factory=list)
    dims: list[Symbol] = field(default_factory=list)
    grid: list[tuple[Symbol, Expr]] = field(default_factory=list)
    body: Region = field(default_factory=Region)
    facts: Facts = field(default_factory=Facts)
    wide: bool = False
    aligned: bool = False
    tasked: bool = False
    pipelined: bool = False
    schedule: Schedule | None = None
    loc: Loc = field(default_factory=Loc)

    def param(self, name: str) -> Param:
        return next(p for p in self.params if p.name == name)


def walk_values(region: Region) -> Iterator[Value]:
    """Every value defined in ``region`` and below."""
    yield from region.args
    for op in region.ops:
        yield from op.results
        for inner in op.regions:
            yield from walk_values(inner)


def loop_parts(op: Op) -> tuple[Symbol, Expr, Expr]:
    """(index symbol, start, stop) of a ``for``."""
    return op.attrs["index"], op.attrs["start"], op.attrs["stop"]  # type: ignore[return-value]


def trip_facts(op: Op, facts: Facts) -> Facts:
    """``facts`` inside the body of the ``for`` ``op``."""
    index_symbol, start, stop = loop_parts(op)
    if isinstance(stop, Max):
        # start <= j < max(start, e) means that j < e.
        others = set(stop.args) - set(Max.make_args(start))
        stop = Max(*others) if others else stop
    return facts.extended({index_symbol: (start, stop - 1)})


__all__ = [name for name in dir() if not name.startswith("_")] + ["as_int"]
