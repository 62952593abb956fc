"""What several commands take: the kernel, the target, and the variant that is meant."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Annotated

import typer

from tkpy.ahead import Setting, is_switch
from tkpy.cli.app import NotFound
from tkpy.kernel import Kernel
from tkpy.signature import ConstSpec


class Target(enum.StrEnum):
    """The keys of ``codegen.aot.TARGETS``."""

    sm_80 = "sm_80"
    sm_90 = "sm_90"
    sm_100 = "sm_100"
    gfx942 = "gfx942"


class AnyTarget(enum.StrEnum):
    """The GPUs, and the processor that this runs on."""

    sm_80 = "sm_80"
    sm_90 = "sm_90"
    sm_100 = "sm_100"
    gfx942 = "gfx942"
    cpu = "cpu"


class Dtype(enum.StrEnum):
    bf16 = "bf16"
    f16 = "f16"
    f32 = "f32"


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    return name.strip(), value.strip()


def _size(text: str) -> tuple[str, int]:
    name, value = _assignment(text)
    if not value.isascii() or not value.isdigit() or int(value) == 0:
        raise typer.BadParameter(f"{text!r}: a size is a positive number of elements")
    return name, int(value)


KernelName = Annotated[
    str, typer.Argument(metavar="KERNEL", help="A name, or path/to/file.py:kernel.")
]
TargetName = Annotated[Target, typer.Option("--target", help="The GPU to compile for.")]
DtypeName = Annotated[
    Dtype, typer.Option("--dtype", help="Element type of tensors whose type is open.")
]
Dims = Annotated[
    list[tuple] | None,
    typer.Option(
        "--dim",
        parser=_size,
        metavar="NAME=SIZE",
        help="Size of a named dimension in elements, e.g. D=64 (the default); repeatable.",
    ),
]
Constants = Annotated[
    list[tuple] | None,
    typer.Option(
        "--set",
        parser=_assignment,
        metavar="NAME=VALUE",
        help="A compile-time constant, e.g. causal=true, or an optional argument to be given "
        "(bias=true); repeatable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone.")]


def setting(
    kernel: Kernel,
    dtype: Dtype,
    dims: Sequence[tuple[str, int]] | None,
    constants: Sequence[tuple[str, str]] | None,
) -> Setting:
    """The setting that the options describe; raises NotFound for a value of the wrong type."""
    return Setting(
        str(dtype),
        dict(dims or ()),
        {name: _value(kernel, name, text) for name, text in constants or ()},
    )


_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _value(kernel: Kernel, name: str, text: str) -> object:
    """``text`` as the type of the constant ``name``; unknown names are told later, with all."""
    parameter = next((p for p in kernel.signature.parameters if p.name == name), None)
    if parameter is None:
        return text
    spec = parameter.spec
    if isinstance(spec, ConstSpec):
        if text.lower() == "none" and (spec.optional or parameter.default is None):
            return None
        kind = spec.type
    elif is_switch(parameter):
        kind = bool
    else:
        return text
    try:
        return _TRUTH[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
        raise NotFound(f"--set {name}={text}: {name} of {kernel.name} is {wanted}") from None
