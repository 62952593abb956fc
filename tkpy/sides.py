"""Defaults of constants that a GPU has of its own: sides of tiles that its registers hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tkpy.call import Call
from tkpy.errors import TkError
from tkpy.signature import FLOATS, REQUIRED, Signature

#: By the name of a dtype: constants and their values.
Sides = Mapping[str, Mapping[str, object]]


def sides_of(signature: Signature, word: str, given: Sides | None) -> dict[str, dict[str, object]]:
    """``given`` as plain dictionaries; ``word`` is the keyword that it was given by.

    Raises:
        TkError: for a dtype that is none of f32, bf16 and f16, a name that is no constant with a
            default, a value of another type, and a constant on which a shape or a precondition
            depends: a call would be held against another one on a GPU.
    """
    known = {p.name: p for p in signature.constants}
    fixed = {s.name for p in signature.tensors for d in p.spec.dims for s in d.free_symbols}
    fixed |= {p.spec.when for p in signature.tensors}
    fixed |= {n for c in signature.conditions for n in c.names}
    for dtype, sides in (given or {}).items():
        if dtype not in [t.name for t in FLOATS]:
            raise TkError(f"{signature.name}: {word} knows f32, bf16 and f16, not {dtype!r}")
        for name, value in sides.items():
            said = f"{signature.name}: {word} gives a default to {name}"
            if name not in known or known[name].default is REQUIRED:
                raise TkError(f"{said}, which is no constant with a default")
            spec = known[name].spec
            if name in fixed:
                raise TkError(f"{said}, on which a shape or a precondition depends")
            if type(value) is not spec.type or (spec.choices and value not in spec.choices):
                raise TkError(f"{said}: {value!r} is not {spec.type.__name__}")
    return {dtype: dict(sides) for dtype, sides in (given or {}).items()}


def marked(signature: Signature, *sides: Mapping[str, Mapping[str, object]]) -> Signature:
    """``signature`` whose parameters say which of them ``sides`` give defaults to."""
    names = {n for by_dtype in sides for of in by_dtype.values() for n in of}
    parameters = [replace(p, by_device=p.name in names) for p in signature.parameters]
    return replace(signature, parameters=parameters)


def open_sides(sides: Mapping[str, Mapping[str, object]], call: Call) -> dict[str, object]:
    """Those of ``sides`` that ``call`` has by default, if it is a GPU's."""
    if call.device.type == "cpu":
        return {}
    own = [sides.get(d.name, {}) for d in call.variables.values()]
    return {n: v for of in own for n, v in of.items() if n in call.left_open}


__all__ = ["Sides", "marked", "open_sides", "sides_of"]
