"""Writing adjoint operations: arithmetic on tile IR values, and an adjoint's way to its operand.

Adjoints are fp32, whatever they are adjoints of, and live where that lives: a dead element
influences nothing, so its adjoint is dead too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from codegen.ir import Axis, DType, Function, Loc, Op, Region, Type, Value, f32
from codegen.rewrite import build


class Emit:
    """Appends operations to the innermost open region of ``fn``."""

    def __init__(self, fn: Function, region: Region):
        self.fn, self.regions, self.loc = fn, [region], Loc()

    @contextmanager
    def into(self, region: Region) -> Iterator[Region]:
        self.regions.append(region)
        try:
            yield region
        finally:
            self.regions.pop()

    def append(self, op: Op) -> Op:
        self.regions[-1].ops.append(op)
        return op

    def op(self, kind: str, operands=(), attrs=None, regions=None) -> Op:
        return self.append(build(self.fn, kind, list(operands), attrs, regions, self.loc))

    def value(self, kind: str, *operands: Value, **attrs: object) -> Value:
        return self.op(kind, operands, attrs).result

    # -- arithmetic ------------------------------------------------------------------------

    def number(self, x: float, dtype: DType = f32) -> Value:
        return self.value("const", value=x, dtype=dtype)

    def map(self, kind: str, *operands: Value | float) -> Value:
        """An elementwise operation; Python numbers become literals.

        A product by a number stays outermost, so that those of a chain become one.
        """
        if kind == "mul":
            scale, rest = 1.0, []
            for v in operands:
                factor, inner = self._scaled(v)
                scale *= factor
                rest += inner
            if scale != 1.0 and rest:
                plain = rest[0] if len(rest) == 1 else self.value("mul", *rest)
                return self.value("mul", plain, self.number(scale))
        values = [v if isinstance(v, Value) else self.number(v) for v in operands]
        return self.value(kind, *values)

    def _scaled(self, v: Value | float) -> tuple[float, list[Value]]:
        """(number, what is left) of a product by a number."""
        if not isinstance(v, Value):
            return v, []
        if v.op is None or v.type.dtype != f32:
            return 1.0, [v]
        if v.op.kind == "const":
            return v.op.attrs["value"], []  # type: ignore[return-value]
        if v.op.kind == "retype":
            factor, inner = self._scaled(v.op.operands[0])
            if factor != 1.0 and inner:
                return factor, [self.value("retype", inner[0], **v.op.attrs)]
        if v.op.kind == "mul":
            (a, x), (b, y) = (_number(o) for o in v.op.operands)
            if x is None and y is not None:
                return a, [y]
            if y is None and x is not None:
                return b, [x]
        return 1.0, [v]

    def wide(self, v: Value) -> Value:
        """``v`` in fp32."""
        if v.type.dtype == f32 or not v.type.dtype.inexact:
            return v
        return self.value("cast", v, dtype=f32)

    def narrow(self, v: Value, dtype: DType) -> Value:
        return v if v.type.dtype == dtype else self.value("cast", v, dtype=dtype)

    def full(self, type_: Type, x: float) -> Value:
        """``x`` in every element of ``type_``."""
        if not type_.rank:
            return self.number(x, type_.dtype)
        attrs = {"value": x, "dtype": type_.dtype, "axes": type_.axes, "orient": type_.orient}
        return self.value("full", **attrs)

    def sum_all(self, v: Value) -> Value:
        while v.type.rank:
            v = self.value("reduce", v, op="sum", axis=v.type.rank - 1)
        return v

    # -- types -----------------------------------------------------------------------------

    def spread(self, v: Value, type_: Type) -> Value:
        """A vector or scalar repeated over ``type_``."""
        if v.type.rank == type_.rank:
            return self.within(v, type_)
        if not v.type.rank:
            attrs = {"dtype": v.type.dtype, "axes": type_.axes, "orient": type_.orient}
            return self.value("splat", v, **attrs)
        orient = v.type.orient or "row"
        across = type_.axes[1 if orient == "col" else 0]
        return self.within(self.value("broadcast", v, orient=orient, across=across), type_)

    def within(self, v: Value, type_: Type) -> Value:
        """``v`` where ``type_`` lives too, with its orientation; where ``v`` is dead it stays so.

        An adjoint that is dead where its value lives is zero there, and never a product of zero
        and whatever the value is, which may be infinite.
        """
        axes = tuple(a.meet(b) for a, b in _pairs(v.type, type_))
        if v.type.axes == axes and v.type.orient == type_.orient:
            return v
        return self.value("retype", v, axes=axes, orient=type_.orient)

    def shaped(self, v: Value, type_: Type) -> Value:
        """``v`` with the live extents and the orientation of ``type_``.

        Where more is alive than ``v`` knows of, it holds zero.
        """
        if v.type.axes == type_.axes and v.type.orient == type_.orient:
            return v
        short = tuple(k for k, (a, b) in enumerate(_pairs(v.type, type_)) if a.meet(b) != b)
        if short:
            v = self.value("fill_dead", v, value=0.0, alive=True, axes=short)
        if v.type.axes == type_.axes and v.type.orient == type_.orient:
            return v
        return self.value("retype", v, axes=type_.axes, orient=type_.orient)

    def adjoint_of(self, operand: Type, g: Value) -> Value:
        """``g``, of the broadcast result's shape, summed to the shape of an operand."""
        if g.type.rank == 2 and operand.rank == 1:
            g = self.value("reduce", g, op="sum", axis=1 if operand.orient == "col" else 0)
        elif not operand.rank:
            return self.sum_all(g)
        return self.within(g, operand.like(dtype=f32))

    def add(self, a: Value | None, b: Value, type_: Type) -> Value:
        """``a + b``, adjoints of a value of ``type_``; None is zero.

        A product just made is summed into ``a`` by the product itself.
        """
        if a is None:
            return b
        if a.type.axes != b.type.axes:  # each counts where the other is dead
            a, b = (self.shaped(v, type_.like(dtype=f32)) for v in (a, b))
        made = b.op
        ops = self.regions[-1].ops
        if (
            made is not None
            and made.kind == "mma"
            and len(made.operands) == 2
            and ops
            and ops[-1] is made
            and a.type == b.type
        ):
            ops.pop()
            return self.op("mma", [*made.operands, a], made.attrs).result
        return self.map("add", a, b)


def _number(v: Value) -> tuple[float, Value | None]:
    constant = v.op is not None and v.op.kind == "const"
    return (v.op.attrs["value"], None) if constant else (1.0, v)  # type: ignore


def _pairs(a: Type, b: Type) -> Iterator[tuple[Axis, Axis]]:
    return zip(a.axes, b.axes, strict=True)
