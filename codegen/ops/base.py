"""What an operation of tile IR is: one ``OpDef`` a kind, gathered into ``codegen.ops.TABLE``.

A new tile op is one file here that fills in an ``OpDef``, one row in the table, and one verb in
``tkpy.vocabulary``. The parts of a definition are the readers' needs:

    infer    operand types and attributes -> result types; raises ``IRError``. Builder and
             verifier share it, so nothing ill-typed can be built or pass a pass.
    emit     the Triton expression (or statements) that computes the result.
    numpy    what it means, on arrays that hold live elements only. The evaluator, constant
             folding and the knowledge of what dead elements hold all come from it.
    neutral  which operands must hold which value in dead elements, and along which axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from codegen.ir import Axis, Factor, Function, Op, Type, Value

# Binding strength of a Python expression, for parentheses only where they are needed.
LOWEST, CMP, OR, AND, ADD, MUL, UNARY, ATOM = 0, 1, 2, 3, 5, 6, 7, 9


class IRError(Exception):
    """An operation that the rules of tile IR refuse: what is wrong, and what to do instead."""

    def __init__(self, message: str, fix: str = ""):
        super().__init__(message + (f"\n  fix: {fix}" if fix else ""))
        self.message, self.fix = message, fix


@dataclass(frozen=True)
class Need:
    """``operand`` must hold ``value`` in the dead elements of ``axes``."""

    operand: int
    value: float
    axes: tuple[int, ...]


Text = tuple[str, int]


@dataclass(frozen=True)
class OpDef:
    """One row of the table; see the module docstring."""

    kind: str
    infer: Callable[[Function, Op], list[Type]]
    emit: Callable[..., Text | None]
    numpy: Callable[..., object] | None = None
    neutral: Callable[[Op], list[Need]] = lambda op: []
    pure: bool = True
    elementwise: bool = False
    isolated: bool = False  # its regions see nothing of what stands outside


def name_of(value: Value, fallback: str) -> str:
    """How a message names an operand: the author's name, or its place."""
    return value.hint or fallback


def says(value: Value, fallback: str) -> str:
    return f"{name_of(value, fallback)} is {value.type.describe()}"


def no_fp8(op: Op) -> None:
    """Refuses 8-bit floats, which are for storage and products; nothing else computes on them."""
    for v in op.operands:
        if v.type.dtype.is_fp8:
            raise IRError(
                f"{says(v, 'the operand')}: tiles of 8-bit floats are moved, converted and "
                f"multiplied as matrices, and {op.kind} is none of these",
                "tk.cast(x, tk.f32) first",
            )


def meet_axes(a: Axis, b: Axis) -> Axis | None:
    """The axis live where both are, or None where the shapes differ."""
    return a.meet(b) if a.same_shape(b) else None


def live_text(f: Factor) -> str:
    return f"{f.live}"


def require(condition: bool, message: str, fix: str = "") -> None:
    if not condition:
        raise IRError(message, fix)
