"""From a kernel to machine code, for a GPU that need not be present or for this CPU.

A *setting* is everything that decides what a launch would compile: element types, constants, the
sizes of dimensions, which optional arguments are given. The variant is found by the same code
that a call runs through, on tensors without data.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from triton.errors import TritonError

from codegen.aot import CPU, Compiled, compile_source
from codegen.cpu.ttir import Unsupported
from codegen.ir import DTYPES, DType, Function
from tkpy.backward_plan import entry_of
from tkpy.call import Call, holds
from tkpy.errors import TkError
from tkpy.signature import (
    FLOATS,
    REQUIRED,
    TORCH_NAMES,
    ConstSpec,
    Parameter,
    ScalarSpec,
    Signature,
    TensorSpec,
)

if TYPE_CHECKING:
    from tkpy.kernel import Kernel
    from tkpy.lower import Differentiated, Lowered, VariantKey

#: Sizes to try for a dimension that nobody gave, in this order, until the preconditions hold.
SIZES = (64, 128, 16, 32, 8, 4, 3, 2, 1)
_TRIES = 20_000

_TRITON_TYPES = {
    "f32": "fp32",
    "bf16": "bf16",
    "f16": "fp16",
    "fp8e4m3": "fp8e4nv",
    "fp8e5m2": "fp8e5",
    "i64": "i64",
    "i32": "i32",
    "i16": "i16",
    "i8": "i8",
    "u64": "u64",
    "u32": "u32",
    "u8": "u8",
    "bool": "i1",
}


class SettingError(TkError):
    """A setting that the kernel's signature does not allow."""


@dataclass(frozen=True)
class Setting:
    """What of a call decides the compiled variant.

    dtype: the element type of every tensor whose type the signature leaves open (f32, bf16, f16).
    sizes: of named dimensions, in elements; those not given are chosen from SIZES.
    constants: of compile-time parameters; those not given take their defaults. An optional tensor
        or scalar is named here too: True means that it is given.
    """

    dtype: str = "bf16"
    sizes: Mapping[str, int] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)


def call_of(kernel: Kernel, setting: Setting, device: str = "cuda", target: str = "sm_90") -> Call:
    """The call of contiguous, aligned tensors on ``device`` that ``setting`` describes.

    ``target`` is the GPU that a template is scheduled for.

    Its tensors hold no data. Raises SettingError for names or values that the signature does not
    know, and for sizes that its preconditions refuse.
    """
    signature = kernel.signature
    dtype = DTYPES.get(setting.dtype)
    if dtype not in FLOATS:
        raise SettingError(f"unknown dtype {setting.dtype!r}: choose one of f32, bf16, f16")
    _known(kernel.name, "dimension", setting.sizes, [d.name for d in signature.dims])
    switches = [p.name for p in signature.parameters if is_switch(p)]
    names = [p.name for p in signature.constants] + switches
    _known(kernel.name, "constant", setting.constants, names)
    constants = {n: v for n, v in setting.constants.items() if n not in switches}
    for p in signature.constants:
        if p.default is REQUIRED and p.name not in constants:
            raise SettingError(f"{kernel.name}: the constant {p.name} has no default; give it")
    given = {p.name: p.default for p in signature.constants} | constants
    sizes = choose_sizes(signature, setting.sizes, given)
    arguments: dict[str, object] = dict(constants)
    for p in signature.parameters:
        if isinstance(p.spec, ConstSpec):
            continue
        if is_switch(p) and not setting.constants.get(p.name):
            if p.default is REQUIRED:
                arguments[p.name] = None
            continue
        if not isinstance(p.spec, TensorSpec):
            arguments[p.name] = 1
        elif p.spec.role != "out":
            arguments[p.name] = _empty(p.spec.settled(given), sizes, dtype)
        elif p.spec.optional:
            arguments[p.name] = True
    call = kernel.binder.collect((), arguments)
    # A dimension that only optional tensors name is settled too, should the kernel ask for it.
    call.sizes = {**sizes, **call.sizes}
    call.device, call.machine = torch.device(device), target
    return call


def key_of(
    kernel: Kernel, setting: Setting, device: str = "cuda", target: str = "sm_90"
) -> VariantKey:
    """The variant that a launch of ``setting`` on ``device`` would use; raises as ``call_of``."""
    return kernel.key_of(call_of(kernel, setting, device, target))


def lower_for(
    kernel: Kernel, setting: Setting, device: str = "cuda", target: str = "sm_90", **options
) -> Lowered:
    """Tile IR and Triton source of that variant; ``options`` are those of ``tkpy.lower.lower``."""
    return kernel.lower(key_of(kernel, setting, device, target), **options)


def backward_of(
    kernel: Kernel, setting: Setting, device: str = "cuda", target: str = "sm_90"
) -> tuple[VariantKey, tuple[str, ...], tuple[str, ...]]:
    """The variant, the inputs and the outputs of the backward of ``setting``: of all floats.

    Raises TkError if the kernel has no input or no output of floats.
    """
    call = call_of(kernel, setting, device, target)
    wrt, given = kernel.backward.inputs(call), kernel.backward.outputs(call)
    if not wrt or not given:
        raise TkError(f"{kernel.name} has no derivative: no floats go in, or none come out")
    return kernel.backward.key_of(call), tuple(sorted(wrt)), tuple(given)


def backward_for(
    kernel: Kernel, setting: Setting, device: str = "cuda", target: str = "sm_90", **changes
) -> Differentiated:
    """The derived backward of that variant, lowered: see ``tkpy.lower.Differentiated``.

    ``changes`` are made to the variant's key. Carries are kept as suits the setting's sizes.
    Raises CompileError where the kernel has no derivative, and as ``call_of`` does.
    """
    backward = kernel.backward
    call = call_of(kernel, setting, device, target)
    key, wrt, given = backward_of(kernel, setting, device, target)
    key = replace(key, **changes)
    joint = backward.jointly(key, wrt, given, True, call)
    made = backward.derive(key, wrt, given, joint=joint)
    choices = backward.choose(made.derivation.taped, call)
    cut = {c.loop: c.segment for c in choices if c.segment}
    made = backward.derive(key, wrt, given, joint=joint, segments=cut) if cut else made
    wide = backward.addressed(key, entry_of(made), call)
    return made if wide == key else backward.derive(wide, wrt, given, joint=joint, segments=cut)


def compile_for(kernel: Kernel, target: str, setting: Setting | None = None) -> Compiled:
    """Machine code of that variant for ``target``: one of ``codegen.aot.TARGETS``, or "cpu".

    Raises SettingError for what ``call_of`` refuses, and TkError for a kernel that is not legal or
    that Triton cannot compile for this target.
    """
    device = "cpu" if target == CPU else "cuda"
    return compile_lowered(kernel, lower_for(kernel, setting or Setting(), device, target), target)


def compile_lowered(kernel: Kernel, lowered: Lowered, target: str) -> Compiled:
    """``compile_for`` of what ``lower_for`` gave."""
    types = argument_types(lowered.fn, lowered.emitted.arguments)
    schedule = lowered.fn.schedule
    try:
        return compile_source(
            lowered.source,
            lowered.emitted.name,
            types,
            {},
            target,
            num_warps=schedule.warps if schedule else kernel.num_warps,
            num_stages=schedule.stages if schedule else kernel.num_stages,
            attrs={name: 16 for name, t in types.items() if t.startswith("*")},
        )
    # RuntimeError: from Triton's passes and from LLVM. Unsupported: from the CPU backend.
    except (TritonError, RuntimeError, Unsupported) as e:
        reason = str(e).strip() or type(e).__name__
        raise TkError(f"Triton cannot compile {kernel.name} for {target}:\n{reason}") from e


def argument_types(fn: Function, arguments: tuple[str, ...]) -> dict[str, str]:
    """The Triton type of each run-time argument, as a launch would pass it."""
    out = {}
    params = {p.name: p for p in fn.params}
    for name in arguments:
        param = params.get(name.removesuffix("_ptr")) if name.endswith("_ptr") else None
        if param is not None and param.role != "scalar":
            out[name] = f"*{_TRITON_TYPES[param.dtype.name]}"
        elif name in params:
            # A number goes by its value: every float is fp32, an integer is 64 bits if it must be.
            out[name] = "fp32" if params[name].dtype.is_float else "i32"
        else:
            out[name] = "i32"
    return out


# --- sizes ----------------------------------------------------------------------------------------


def choose_sizes(
    signature: Signature,
    given: Mapping[str, int],
    constants: Mapping[str, object],
    tried: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> dict[str, int]:
    """A size for every named dimension, such that the preconditions over sizes hold.

    ``tried``: sizes to try for a dimension, in this order, instead of SIZES.

    Raises SettingError where those given break one, or where none of SIZES fits.
    """
    free = [d.name for d in signature.dims if d.name not in given]
    numbers = {n: v for n, v in constants.items() if v is not None and v is not REQUIRED}
    known = {**numbers, **given, **dict.fromkeys(free, None)}
    conditions = [c for c in signature.conditions if c.names <= set(known)]
    tries = iter(range(_TRIES))

    def settle(rest: list[str], values: dict[str, object]) -> dict[str, object] | None:
        decided = [c for c in conditions if not c.names & set(rest)]
        if not all(holds(c, values) for c in decided):
            return None
        if not rest:
            return values
        for size in tried.get(rest[0], SIZES):
            if next(tries, None) is None:
                return None
            found = settle(rest[1:], {**values, rest[0]: size})
            if found is not None:
                return found
        return None

    found = settle(free, {**numbers, **given})
    if found is None:
        said = ", ".join(f"{n} = {v}" for n, v in given.items()) or "sizes chosen by themselves"
        wanted = "; ".join(c.source for c in conditions)
        raise SettingError(
            f"{signature.name}: no sizes meet its preconditions ({wanted}) with {said}"
        )
    return {d.name: int(found[d.name]) for d in signature.dims}  # type: ignore[call-overload]


def _empty(spec: TensorSpec, sizes: dict[str, int], open_dtype: DType) -> torch.Tensor:
    dtype = spec.dtype if isinstance(spec.dtype, DType) else open_dtype
    symbols = {s: sizes[s.name] for d in spec.dims for s in d.free_symbols}
    shape = [int(d.subs(symbols)) for d in spec.dims]
    return torch.empty(shape, dtype=getattr(torch, TORCH_NAMES[dtype.name]), device="meta")


def is_switch(p: Parameter) -> bool:
    """True for a tensor or scalar that a call may leave out."""
    if isinstance(p.spec, ConstSpec):
        return False
    return p.spec.optional or (isinstance(p.spec, ScalarSpec) and p.default is not REQUIRED)


def _known(kernel: str, what: str, given: Mapping[str, object], names: list[str]) -> None:
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {_joined(names)}"
            raise SettingError(f"{kernel} has no {what} {name}\n  fix: {hint}")


def _joined(names: list[str]) -> str:
    return ", ".join(names) or "none"


def variables(key: VariantKey) -> Iterator[str]:
    """What was settled, as ``name=value`` texts: constants, static sizes, then dtypes."""
    yield from (f"{n}={v!r}" for n, v in key.constants)
    yield from (f"{n}={v}" for n, v in key.static)
    yield from (f"{n}: {v}" for n, v in key.dtypes)
