"""From a call's arguments to tensors, sizes and constants, or to a sentence that says why not."""

from __future__ import annotations

import ast
import difflib
import functools
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from codegen.expr import Expr, Symbol, text
from codegen.host import dimension_sources
from codegen.ir import DTYPES, DType, Param, c64
from tkpy.errors import CallError
from tkpy.signature import (
    FLOATS,
    REQUIRED,
    TORCH_NAMES,
    Condition,
    ConstSpec,
    Parameter,
    ScalarSpec,
    Signature,
    TensorSpec,
    dtype_of,
)

LARGE = 2**20  # an integer argument that, times a tile's side, could pass 2^31
_INT32_LIMIT = 2**31 - 2**16  # room for the lanes of a tile past the end


@dataclass
class Call:
    """A call that the signature allows."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    scalars: dict[str, float | int] = field(default_factory=dict)
    constants: dict[str, object] = field(default_factory=dict)
    dtypes: dict[str, DType] = field(default_factory=dict)
    variables: dict[str, DType] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    wanted: list[Parameter] = field(default_factory=list)
    shapes: dict[str, list[int]] = field(default_factory=dict)  # of the outputs wanted
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    machine: str = ""  # the GPU that is compiled for, where it is not the device itself
    left_open: set[str] = field(default_factory=set)  # constants that have their defaults

    @property
    def unit(self) -> bool:
        """True if the innermost stride of every tensor is one (or is never used)."""
        return all(
            t.dim() == 0 or t.stride(-1) == 1 or t.shape[-1] <= 1 for t in self.tensors.values()
        )

    @property
    def aligned(self) -> bool:
        """True if the innermost stride is one and every other a multiple of 16 elements."""
        return self.unit and all(
            s % 16 == 0 for _, strides in self._extents() for s in strides[:-1]
        )

    def describable(self, dtypes: Mapping[str, DType]) -> bool:
        """True if every address and every stride but the innermost is a multiple of 16 bytes.

        ``dtypes``: of all tensors, those outputs included that are yet to be made.
        """
        strides = {name: t.stride() for name, t in self.tensors.items()}
        for name, shape in self.shapes.items():
            strides.setdefault(name, tuple(_contiguous(shape)))
        return (
            not self.wide
            and all(s * dtypes[n].bits % 128 == 0 for n, of in strides.items() for s in of[:-1])
            and all(t.is_meta or t.data_ptr() % 16 == 0 for t in self.tensors.values())
        )

    @property
    def wide(self) -> bool:
        """True if an offset into some tensor, a size or a tile's position needs over 32 bits."""
        return (
            any(_span(*e) >= _INT32_LIMIT for e in self._extents())
            or any(n >= _INT32_LIMIT for n in self.sizes.values())
            or any(isinstance(n, int) and abs(n) >= LARGE for n in self.scalars.values())
        )

    def _extents(self) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """Shape and strides of every tensor, those outputs included that are yet to be made.

        Those of complex tensors in real elements.
        """
        for t in self.tensors.values():
            yield t.shape, [2 * s for s in t.stride()] if t.is_complex() else t.stride()
        for p in self.wanted:
            if p.name not in self.tensors:
                shape = self.shapes[p.name]
                strides = _contiguous(shape)
                yield shape, [2 * s for s in strides] if p.spec.dtype == c64 else strides


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n > 1)


def _contiguous(shape: Sequence[int]) -> list[int]:
    return [math.prod(max(n, 1) for n in shape[k:]) for k in range(1, len(shape) + 1)]


class Binder:
    """Binds calls of one signature. Built once a kernel."""

    def __init__(self, signature: Signature):
        self.signature = signature
        self.positional = [
            p for p in signature.parameters if not p.keyword_only and not _is_output(p)
        ]
        self.names = {p.name: p for p in signature.parameters}
        params = [
            Param(p.name, p.spec.role, DTYPES["f32"], p.spec.dims)  # type: ignore[union-attr]
            for p in signature.tensors
        ]
        self.sources = dimension_sources(params)
        self.shapes = {p.name: [_evaluator(d) for d in p.spec.dims] for p in signature.outputs}

    def bind(self, args: tuple, kwargs: dict[str, object]) -> Call:
        """Raises CallError for anything that the signature does not allow."""
        call = self.collect(args, kwargs)
        self._devices(call)
        self._conditions(call)
        return call

    def bind_without_data(self, arguments: dict[str, object]) -> Call:
        """``bind`` of tensors that hold no data and may be of sizes that only a run will know.

        Preconditions on what tensors hold, and on such sizes, are left to the run.
        """
        call = self.collect((), arguments)
        self._one_device(call)
        symbolic = {n for n, v in call.scalars.items() if not isinstance(v, int | float)}
        self._conditions(call, symbolic | set(call.tensors))
        return call

    def collect(self, args: tuple, kwargs: dict[str, object]) -> Call:
        """``bind`` without looking at devices and preconditions: tensors may hold no data."""
        given = self._arguments(args, kwargs)
        call = Call()
        for p in self.signature.parameters:
            value = given.get(p.name, _MISSING)
            if _is_output(p):
                self._output(p, value, call)
            elif isinstance(p.spec, TensorSpec):
                self._tensor(p, value, call)
            elif isinstance(p.spec, ScalarSpec):
                self._scalar(p, value, call)
            else:
                self._constant(p, value, call)
        self._sizes(call)
        for p in call.wanted:
            shape = call.shapes[p.name] = [size(call.sizes) for size in self.shapes[p.name]]
            if not all(may_hold(n >= 0) for n in shape):
                raise self._fail(f"{p.name} would have shape {tuple(shape)} ({_spec_text(p)})")
        return call

    # -- one argument ----------------------------------------------------------------------

    def _fail(self, message: str, fix: str = "") -> CallError:
        return CallError(f"{self.signature.name}: {message}" + (f"\n  fix: {fix}" if fix else ""))

    def _arguments(self, args: tuple, kwargs: dict[str, object]) -> dict[str, object]:
        if len(args) > len(self.positional):
            names = ", ".join(p.name for p in self.positional)
            raise self._fail(
                f"takes {len(self.positional)} positional arguments ({names}), got {len(args)}",
                "pass outputs and constants by keyword",
            )
        given = {p.name: a for p, a in zip(self.positional, args, strict=False)}
        for name, value in kwargs.items():
            if name not in self.names:
                close = difflib.get_close_matches(name, list(self.names), 1)
                raise self._fail(
                    f"unknown keyword {name}",
                    f"did you mean {close[0]}?" if close else f"it takes {', '.join(self.names)}",
                )
            if name in given:
                raise self._fail(f"{name} is given twice")
            given[name] = value
        return given

    def _missing(self, p: Parameter) -> CallError:
        return self._fail(f"{p.name} is missing ({_spec_text(p)})")

    def _tensor(self, p: Parameter, value: object, call: Call) -> None:
        spec = p.spec
        assert isinstance(spec, TensorSpec)
        if value is _MISSING or value is None:
            if spec.optional and (value is None or p.default is None):
                return
            raise self._missing(p)
        if not isinstance(value, torch.Tensor):
            raise self._fail(
                f"{p.name} must be a torch.Tensor, got {type(value).__name__}",
                f"it is declared {spec}",
            )
        self._accept(p, value, call)

    def _accept(self, p: Parameter, value: torch.Tensor, call: Call) -> None:
        spec = p.spec
        assert isinstance(spec, TensorSpec)
        if value.dim() != len(spec.dims):
            raise self._fail(
                f"{p.name} has {value.dim()} dimensions, shape {tuple(value.shape)}; "
                f"it is declared {spec}",
                f"give it {len(spec.dims)} dimensions",
            )
        if value.layout is not torch.strided:
            raise self._fail(f"{p.name} is {value.layout}, not a dense tensor", ".to_dense()")
        if value.is_neg():
            raise self._fail(
                f"{p.name} is a lazily negated view, as the imaginary part of a conjugate is",
                f"{p.name}.resolve_neg()",
            )
        dtype = dtype_of(value)
        if isinstance(spec.dtype, DType):
            if dtype != spec.dtype:
                raise self._fail(
                    f"{p.name} is {value.dtype}; it is declared {spec}",
                    f"{p.name}.to(torch.{TORCH_NAMES[spec.dtype.name]})",
                )
        elif dtype not in FLOATS:
            raise self._fail(f"{p.name} is {value.dtype}; it takes float32, bfloat16 or float16")
        else:
            first = call.variables.setdefault(spec.dtype, dtype)
            if dtype != first:
                other = next(
                    n
                    for n, d in call.dtypes.items()
                    if d == first and self.names[n].spec.dtype == spec.dtype
                )
                raise self._fail(
                    f"{p.name} is {dtype} and {other} is {first}; they share one dtype",
                    f"{p.name}.to({other}.dtype)",
                )
        call.tensors[p.name] = value
        call.dtypes[p.name] = dtype
        call.present.add(p.name)

    def _output(self, p: Parameter, value: object, call: Call) -> None:
        spec = p.spec
        assert isinstance(spec, TensorSpec)
        if isinstance(value, torch.Tensor):
            call.wanted.append(p)
            self._accept(p, value, call)
            return
        if value is True or (not spec.optional and value in (_MISSING, None)):
            call.wanted.append(p)
            call.present.add(p.name)
        elif value not in (_MISSING, None, False):
            raise self._fail(
                f"{p.name} is an output: pass a tensor to write into"
                + (", or True to ask for one" if spec.optional else "")
            )

    def _scalar(self, p: Parameter, value: object, call: Call) -> None:
        spec = p.spec
        assert isinstance(spec, ScalarSpec)
        if value is _MISSING and p.default is not REQUIRED:
            value = p.default
        if value is None and spec.optional:
            return
        if value is _MISSING:
            raise self._missing(p)
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, torch.SymInt | torch.SymFloat):  # known when the kernel runs
            call.scalars[p.name] = value  # type: ignore[assignment]
            call.present.add(p.name)
            return
        wanted = (int, float) if spec.dtype.is_float else int
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise self._fail(f"{p.name} must be a number ({spec.dtype}), got {value!r}")
        if not spec.dtype.is_float:
            low, high = spec.dtype.limits
            if not low <= value <= high:
                raise self._fail(f"{p.name} = {value} does not fit {spec.dtype}")
        elif spec.dtype.bits == 16:  # Triton passes every float in fp32
            value = torch.tensor(value, dtype=getattr(torch, TORCH_NAMES[spec.dtype.name])).item()
        call.scalars[p.name] = float(value) if spec.dtype.is_float else value
        call.present.add(p.name)

    def _constant(self, p: Parameter, value: object, call: Call) -> None:
        spec = p.spec
        assert isinstance(spec, ConstSpec)
        if value is _MISSING:
            if p.default is REQUIRED:
                raise self._missing(p)
            value = p.default
            call.left_open.add(p.name)
        if value is None and (spec.optional or p.default is None):
            call.constants[p.name] = None
            return
        if spec.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        fits = isinstance(value, spec.type) and (spec.type is bool or not isinstance(value, bool))
        if not fits:
            raise self._fail(f"{p.name} must be {spec.type.__name__}, got {value!r}")
        if spec.choices and value not in spec.choices:
            raise self._fail(
                f"{p.name} = {value!r} is none of {', '.join(map(repr, spec.choices))}"
            )
        call.constants[p.name] = value

    # -- the call as a whole ----------------------------------------------------------------

    def _devices(self, call: Call) -> None:
        self._one_device(call)
        if call.device.type not in ("cpu", "cuda"):
            raise self._fail(f"tensors are on {call.device}; kernels run on cpu and cuda")

    def _one_device(self, call: Call) -> None:
        first: str | None = None
        for name, t in call.tensors.items():
            if first is None:
                first, call.device = name, t.device
            elif t.device != call.device:
                raise self._fail(
                    f"{name} is on {t.device} and {first} on {call.device}",
                    f"{name}.to({first}.device)",
                )

    def _sizes(self, call: Call) -> None:
        origin: dict[Symbol, tuple[str, int]] = {}
        known: dict[Symbol, int] = {}
        for bare in (True, False):
            for name, t in call.tensors.items():
                for axis, size in enumerate(self.names[name].spec.settled(call.constants).dims):
                    if isinstance(size, Symbol) is not bare:
                        continue
                    self._one_size(name, axis, t, size, known, origin)
        for s in self.signature.dims:
            if s in known:
                call.sizes[s.name] = known[s]
        wanted = {s for p in call.wanted for d in p.spec.dims for s in d.free_symbols}
        if missing := sorted(s.name for s in wanted - known.keys()):
            raise self._fail(f"no argument given tells the size {missing[0]}")

    def _one_size(self, name, axis, t, size, known, origin) -> None:
        actual = t.shape[axis]
        unknown = [s for s in size.free_symbols if s not in known]
        if not unknown:
            expected = _evaluator(size)({s.name: n for s, n in known.items()})
            if may_hold(expected == actual):
                return
            other = origin.get(size) if isinstance(size, Symbol) else None
            if other:
                raise self._fail(
                    f"{name} and {other[0]} disagree on {size}: {name} has shape "
                    f"{tuple(t.shape)} ({_spec_text(self.names[name])}) with {size} = {actual}, "
                    f"{other[0]} has {size} = {expected}"
                )
            raise self._fail(
                f"{name} has shape {tuple(t.shape)}; its dimension {axis} must be "
                f"{size} = {expected}"
            )
        if len(unknown) > 1:
            return
        (s,) = unknown
        if size == s:
            known[s], origin[s] = actual, (name, axis)
            return
        slope, offset = int(size.coeff(s, 1) or 0), int(size.coeff(s, 0))
        whole = slope != 0 and may_hold((actual - offset) % slope == 0)
        if not whole or not may_hold((actual - offset) // slope >= 0):
            raise self._fail(
                f"{name} has shape {tuple(t.shape)}; its dimension {axis} must be "
                f"{size} for a whole {s}"
            )
        known[s], origin[s] = (actual - offset) // slope, (name, axis)

    def _conditions(self, call: Call, unknown: Collection[str] = ()) -> None:
        for c in self.signature.conditions:
            values = {**call.sizes, **call.tensors, **call.scalars, **call.constants}
            if any(n not in values or n in unknown for n in c.names):
                continue
            if not holds(c, values):
                shown = ", ".join(
                    f"{n} = {v if not isinstance(v, torch.Tensor) else f'tensor{tuple(v.shape)}'}"
                    for n, v in values.items()
                    if n in c.names
                )
                raise self._fail(f"the precondition {c.source!r} does not hold: {shown}")


@functools.cache
def _evaluator(size: Expr) -> Callable[[dict[str, int]], int]:
    """A function from the sizes of dimensions to ``size``; sympy is not asked again."""
    if isinstance(size, Symbol):
        return operator.itemgetter(size.name)
    return eval(f"lambda sizes: {text(size, lambda s: f'sizes[{s.name!r}]')}")


class _Missing:
    def __repr__(self) -> str:
        return "<missing>"


_MISSING = _Missing()


def _is_output(p: Parameter) -> bool:
    return isinstance(p.spec, TensorSpec) and p.spec.role == "out"


def _spec_text(p: Parameter) -> str:
    return f"{p.name}: {p.spec}" if isinstance(p.spec, TensorSpec) else p.name


# --------------------------------------------------------------------------------------------
# Preconditions


def holds(condition: Condition, values: dict[str, object]) -> bool:
    """Whether a precondition holds of sizes, scalars and whole tensors (every element of them)."""
    return bool(_all(_value(condition.tree, values)))


def _all(x: object) -> bool:
    return bool(x.all()) if isinstance(x, torch.Tensor) else may_hold(x)


def may_hold(x: object) -> bool:
    """Whether it is so; True of what only a run will know."""
    if isinstance(x, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import guard_or_true

        return guard_or_true(x)
    return bool(x)


_ARITHMETIC = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b if not (isinstance(b, int) and b == 0) else 1,
}
_ORDER = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def _value(node: ast.expr, values: dict[str, object]):
    go = lambda n: _value(n, values)  # noqa: E731
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.Tuple):
        return tuple(map(go, node.elts))
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](go(node.left), go(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -go(node.operand)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _all(go(node.operand))
    if isinstance(node, ast.BoolOp):
        parts = (_all(go(x)) for x in node.values)
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    if isinstance(node, ast.Subscript):
        return go(node.value)[go(node.slice)]
    if isinstance(node, ast.Compare):
        sides = [go(x) for x in (node.left, *node.comparators)]
        return all(
            _all(_ORDER[type(op)](a, b))
            for op, a, b in zip(node.ops, sides, sides[1:], strict=False)
        )
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "sorted":
            t = go(node.args[0])
            return True if t.numel() < 2 else (t[..., 1:] >= t[..., :-1])
        if node.func.id == "distinct":
            t = go(node.args[0])
            return t.unique().numel() == t.numel()
        if node.func.id == "cdiv" and len(node.args) == 2:
            return -(-go(node.args[0]) // go(node.args[1]))
    raise CallError(f"precondition {ast.unparse(node)!r} is not of the kind that is understood")
