"""The signature is the contract: tensors with named dimensions, scalars, constants, conditions.

From it come the output allocation, the launch grid, shape checking, the facts for proofs, and
the strategies that test the kernel.
"""

from __future__ import annotations

import ast
import functools
import inspect
import keyword
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from codegen.expr import Expr, Symbol, parse
from codegen.helpers import SOURCES
from codegen.ir import DTYPES, DType, Maybe, bf16, bool_, f16, f32
from tkpy.errors import TkError

FLOATS = (f32, bf16, f16)


@dataclass(frozen=True)
class TensorSpec:
    """``tk.Global["B H N D", dtype]`` and its kin.

    ``dtype`` is a concrete type or the name of a type variable: parameters that name the same
    variable have the same dtype, one of f32, bf16, f16. The default variable is "T".

    ``tk.Global["K M if trans_a else M K"]`` has the dimensions ``other`` where the constant
    ``when`` is true, else ``dims``.
    """

    role: str
    dims: tuple[Expr, ...]
    dtype: DType | str = "T"
    optional: bool = False
    when: str = ""
    other: tuple[Expr, ...] = ()

    def __or__(self, other: object) -> TensorSpec:
        if other is None or other is type(None):
            return replace(self, optional=True)
        return NotImplemented

    @property
    def sizes(self) -> str:
        """The dimensions as the author writes them."""
        dims = _dims_text(self.dims)
        return f"{_dims_text(self.other)} if {self.when} else {dims}" if self.when else dims

    def settled(self, constants: Mapping[str, object]) -> TensorSpec:
        """With the dimensions that it has for these compile-time constants."""
        if not self.when:
            return self
        dims = self.other if constants.get(self.when) else self.dims
        return replace(self, dims=dims, when="", other=())

    def __call__(self):  # typing accepts callables as annotations
        raise TypeError("a tensor annotation is not a constructor")

    def __str__(self) -> str:
        word = {"in": "Global", "out": "Out", "inout": "InOut"}[self.role]
        tail = "" if self.dtype == "T" else f", {self.dtype}"
        return f'tk.{word}["{self.sizes}"{tail}]' + (" | None" if self.optional else "")


def _dims_text(dims: tuple[Expr, ...]) -> str:
    return " ".join(str(d).replace(" ", "") for d in dims)


class _TensorAnnotation:
    def __init__(self, role: str):
        self.role = role

    def __getitem__(self, item: object) -> TensorSpec:
        dims, dtype = item if isinstance(item, tuple) else (item, "T")
        if not isinstance(dims, str):
            raise TkError(f'dimensions are a string of names such as "B N D", not {dims!r}')
        if not isinstance(dtype, DType | str):
            raise TkError(f"{dtype!r} is not an element type; use tk.f32, tk.bf16, ... or a name")
        choice = re.fullmatch(r"(.*) if (\w+) else (.*)", dims)
        other, when, dims = choice.groups() if choice else ("", "", dims)
        if when and self.role == "out":
            raise TkError(f'an output has one shape, not "{other} if {when} else {dims}"')
        try:
            one, two = (tuple(parse(d) for d in part.split()) for part in (dims, other))
        except ValueError as e:
            raise TkError(f'dimensions "{dims}": {e}') from None
        if when and (len(one) != len(two) or _symbols(one) != _symbols(two)):
            raise TkError(f'"{other}" and "{dims}" must have the same dimensions, in another order')
        return TensorSpec(self.role, one, dtype, when=when, other=two)


def _symbols(dims: tuple[Expr, ...]) -> set[Expr]:
    return {s for d in dims for s in d.free_symbols}


#: A tensor that the kernel reads. ``tk.Global["B H N D"]`` or ``tk.Global["N", tk.i32]``.
Global = _TensorAnnotation("in")
#: A tensor that the kernel writes and the call returns; allocated from the signature.
Out = _TensorAnnotation("out")
#: A tensor that the kernel reads and writes in place.
InOut = _TensorAnnotation("inout")


@dataclass(frozen=True)
class ScalarSpec:
    """A run-time number: ``tk.f32`` or an integer type."""

    dtype: DType
    optional: bool = False


@dataclass(frozen=True)
class ConstSpec:
    """A compile-time constant of a Python type, or one of ``choices`` (``typing.Literal``)."""

    type: type
    choices: tuple[object, ...] = ()
    optional: bool = False


Spec = TensorSpec | ScalarSpec | ConstSpec
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    name: str
    spec: Any  # a Spec
    default: object = REQUIRED
    keyword_only: bool = False
    by_device: bool = False  # a GPU has a default of its own


@dataclass(frozen=True)
class Condition:
    """A precondition in the text of the signature, such as ``H % G == 0`` or ``sorted(cu)``."""

    source: str
    tree: ast.expr
    names: frozenset[str]

    @staticmethod
    def of(source: str) -> Condition:
        try:
            tree = ast.parse(source.strip(), mode="eval").body
        except SyntaxError as e:
            raise TkError(f"precondition {source!r}: {e.msg}") from None
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - {
            "sorted",
            "distinct",
            "cdiv",
        }
        return Condition(source.strip(), tree, frozenset(names))


@dataclass
class Signature:
    """The parsed signature of a kernel. Its lists are not changed once it is read."""

    name: str
    parameters: list[Parameter]
    conditions: list[Condition] = field(default_factory=list)

    @functools.cached_property
    def tensors(self) -> list[Parameter]:
        return [p for p in self.parameters if isinstance(p.spec, TensorSpec)]

    @functools.cached_property
    def inputs(self) -> list[Parameter]:
        """Tensors that the caller provides."""
        return [p for p in self.tensors if p.spec.role != "out"]  # type: ignore[union-attr]

    @functools.cached_property
    def outputs(self) -> list[Parameter]:
        return [p for p in self.tensors if p.spec.role == "out"]  # type: ignore[union-attr]

    @functools.cached_property
    def constants(self) -> list[Parameter]:
        return [p for p in self.parameters if isinstance(p.spec, ConstSpec)]

    @functools.cached_property
    def scalars(self) -> list[Parameter]:
        return [p for p in self.parameters if isinstance(p.spec, ScalarSpec)]

    @functools.cached_property
    def dims(self) -> list[Symbol]:
        """Named dimensions in order of first appearance."""
        out: dict[Symbol, None] = {}
        for p in self.tensors:
            for d in p.spec.dims:  # type: ignore[union-attr]
                for s in sorted(d.free_symbols, key=str):
                    out[s] = None
        return list(out)

    def settled(self, constants: Mapping[str, object]) -> Signature:
        """The signature with the dimensions that tensors have for these constants."""
        specs = [
            replace(p, spec=p.spec.settled(constants)) if isinstance(p.spec, TensorSpec) else p
            for p in self.parameters
        ]
        return replace(self, parameters=specs)

    def parameter(self, name: str) -> Parameter:
        return next(p for p in self.parameters if p.name == name)


def read_signature(fn: Callable, conditions: tuple[str, ...] = ()) -> Signature:
    """The signature of a kernel function.

    Raises:
        TkError: for a parameter without annotation, an annotation that is none of tensor,
            scalar and constant, a default that does not fit, or a condition on unknown names.
    """
    parameters = []
    code = fn.__code__
    where = f"{code.co_filename}:{code.co_firstlineno}: {fn.__name__}"
    for q in inspect.signature(fn).parameters.values():
        if q.kind in (q.VAR_POSITIONAL, q.VAR_KEYWORD):
            raise TkError(f"{where}: *{q.name} is not allowed; a kernel names all its parameters")
        annotation = q.annotation
        if isinstance(annotation, str):
            annotation = eval(annotation, fn.__globals__)
        parameters.append(
            Parameter(
                q.name,
                _spec(where, q.name, annotation),
                q.default,
                q.kind is q.KEYWORD_ONLY,
            )
        )
    signature = Signature(fn.__name__, parameters, [Condition.of(c) for c in conditions])
    _check_names(where, signature)
    known = {s.name for s in signature.dims} | {p.name for p in parameters}
    constants = {p.name for p in signature.constants}
    for p in signature.tensors:
        if p.spec.when and p.spec.when not in constants:  # type: ignore[union-attr]
            raise TkError(f"{where}: {p.name} is {p.spec}, and {p.spec.when} is no constant")  # type: ignore[union-attr]
    for c in signature.conditions:
        if c.names - known:
            raise TkError(f"{where}: precondition {c.source!r} names {sorted(c.names - known)}")
    if not signature.tensors:
        raise TkError(f'{where}: a kernel needs a tensor, for example x: tk.Global["N D"]')
    return signature


#: What generated text calls its own things, and keywords of a Triton launch.
_OURS = {"tl", "triton", "torch", "min", "max", "range", "float", "grid", "_r", "_c", *SOURCES}
_OURS |= {"_times", "num_warps", "num_stages", "num_ctas", "warmup", "maxnreg", "stream"}


def _check_names(where: str, signature: Signature) -> None:
    """Run-time parameters and dimensions keep their names in the generated text."""
    dims = {s.name for s in signature.dims}
    for p in signature.parameters:
        if p.name in dims:
            raise TkError(
                f"{where}: {p.name} is both a parameter and a dimension\n  fix: rename one; "
                f"a tensor tells its sizes, so that tk.dim({p.name!r}) needs no parameter"
            )
    written = {p.name for p in signature.parameters if not isinstance(p.spec, ConstSpec)} | dims
    pointers = {f"{p.name}_ptr" for p in signature.tensors}
    for name in sorted(written):
        ours = name in _OURS or name in pointers or name.startswith(("stride_", "stride16_"))
        if ours or name == f"{signature.name}_kernel" or keyword.iskeyword(name):
            raise TkError(
                f"{where}: generated code has a meaning of its own for the name {name}\n"
                "  fix: choose another name for the parameter or dimension"
            )


def _spec(where: str, name: str, annotation: object) -> Spec:
    if isinstance(annotation, TensorSpec):
        return annotation
    if bool_ in (annotation, getattr(annotation, "dtype", None)):
        raise TkError(
            f"{where}: parameter {name} is a run-time bool\n"
            f"  fix: {name}: bool is a compile-time one, {name}: tk.i32 a run-time number"
        )
    if isinstance(annotation, DType):
        return ScalarSpec(annotation)
    if isinstance(annotation, Maybe):
        return ScalarSpec(annotation.dtype, True)
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        return ConstSpec(type(choices[0]), choices)
    if isinstance(annotation, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        if len(inner) == 1 and inner[0] in (bool, int, float, str):
            return ConstSpec(inner[0], (), True)
    if annotation in (bool, int, float, str):
        return ConstSpec(annotation)  # type: ignore[arg-type]
    what = "has no annotation" if annotation is REQUIRED else f"is annotated {annotation!r}"
    raise TkError(
        f"{where}: parameter {name} {what}\n"
        f'  fix: a tensor is {name}: tk.Global["N D"] (tk.Out, tk.InOut), a run-time number '
        f"{name}: tk.f32 or tk.i32, a compile-time constant {name}: bool, int, float, str or "
        "typing.Literal[...]"
    )


TORCH_NAMES = {
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "fp8e4m3": "float8_e4m3fn",
    "fp8e5m2": "float8_e5m2",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u64": "uint64",
    "u32": "uint32",
    "u8": "uint8",
    "bool": "bool",
    "c64": "complex64",
}


def dtype_of(tensor) -> DType | None:
    """Our name for a torch tensor's dtype, or None if tiles have no such type."""
    return _FROM_TORCH.get(str(tensor.dtype).removeprefix("torch."))


_FROM_TORCH = {t: DTYPES[n] for n, t in TORCH_NAMES.items()}
