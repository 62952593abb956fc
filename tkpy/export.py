"""A kernel as a file that needs only triton and torch.

The file holds the Triton kernel, its launcher, and a plain function with the kernel's name that
takes the same arguments, asserts what the variant was compiled for, allocates the outputs and
launches.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from codegen.aot import CPU
from codegen.expr import Symbol, text
from codegen.host import dimension_sources, launcher, solve_text
from codegen.ir import Param
from codegen.module import write_atomic
from codegen.writer import filled
from tkpy.ahead import Setting, variables
from tkpy.ahead import key_of as key_for
from tkpy.errors import TkError
from tkpy.signature import (
    REQUIRED,
    TORCH_NAMES,
    Condition,
    ConstSpec,
    Parameter,
    ScalarSpec,
    TensorSpec,
)

if TYPE_CHECKING:
    from tkpy.kernel import Kernel
    from tkpy.lower import Lowered, VariantKey

#: What a file must contain for ``write`` to replace it unasked.
MARK = "Written by `tkpy export`"
RESERVED = {"torch", "triton", "tl", "_launch"}


def export_source(kernel: Kernel, setting: Setting | None = None, target: str = CPU) -> str:
    """The text of a standalone module with one variant of ``kernel``.

    The variant is the one for ``setting`` whose strides may be anything; Triton's launcher itself
    tells those apart that 16 divides. ``target`` is a GPU whose schedule a template gets; the file
    then asserts what tensor descriptors need, and gives Triton memory for them. Raises TkError as
    ``tkpy.ahead.call_of`` does.
    """
    if kernel.name in RESERVED:
        raise TkError(f"a kernel called {kernel.name} cannot be exported: rename it")
    setting = setting or Setting()
    scheduled = kernel.template is not None and target != CPU
    key = key_for(kernel, setting, "cuda" if scheduled else "cpu", target)
    key = replace(key, aligned=False)
    lowered = kernel.lower(key)
    launch = launcher(lowered.fn, lowered.emitted, kernel.num_warps, kernel.num_stages)
    launch = launch.replace("def launch(", "def _launch(", 1)
    place = f"{Path(kernel.fn.__code__.co_filename).name}:{kernel.fn.__code__.co_firstlineno}"
    return (
        f'"""{kernel.name}, a Triton kernel and the function that launches it.\n\n'
        f"{MARK} from {place}. Needs only triton and torch.\n"
        '"""\n\n'
        "import torch\nimport triton\nimport triton.language as tl\n\n\n"
        f"{specialised(lowered)}\n\n{launch}\n\n{HostFunction(kernel, key, lowered).text()}"
    )


def specialised(lowered: Lowered) -> str:
    """The kernel's text with strides left to Triton's specialisation, sizes still not."""
    source, arguments = lowered.emitted.source, lowered.emitted.arguments
    numbers = [n for n in arguments if not n.endswith("_ptr") and not n.startswith("stride_")]
    decorator = "@triton.jit"
    if numbers:
        decorator = filled("@triton.jit(do_not_specialize=[", [f'"{n}"' for n in numbers], "])")
    # The kernel is the last function of the text; what it calls stands before it.
    head, _, tail = source.rpartition("@triton.jit")
    return f"{head}{decorator}\n{tail[tail.index(f'def {lowered.emitted.name}(') :]}"


def write(path: Path, source: str, replace: bool = False) -> None:
    """Write ``source`` to ``path``, whole or not at all.

    A file that an export did not write is only replaced if ``replace`` says so. Raises TkError
    otherwise, and where the file cannot be written.
    """
    path = Path(os.path.realpath(path))  # through a link, not over it
    try:
        if path.is_dir():
            raise TkError(f"{path} is a folder")
        if path.exists() and not replace and MARK not in path.read_text(errors="replace")[:2000]:
            raise TkError(f"{path} exists and was not written by `tkpy export`\n  fix: --force")
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask()
        write_atomic(path, source)
        with contextlib.suppress(OSError):
            path.chmod(mode)
    except OSError as e:
        raise TkError(f"{path} cannot be written: {e.strerror or e}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class HostFunction:
    """Writes the host function of one variant."""

    def __init__(self, kernel: Kernel, key: VariantKey, lowered: Lowered):
        self.kernel, self.key, self.lowered = kernel, key, lowered
        self.signature = kernel.signature.settled(dict(key.constants))
        self.dtypes = dict(key.dtypes)
        self.constants = dict(key.constants)
        self.tensors = [p for p in self.signature.tensors if p.name in key.present]
        self.inputs = [p for p in self.tensors if p.spec.role != "out"]  # type: ignore[union-attr]
        self.outputs = [p for p in self.tensors if p.spec.role == "out"]  # type: ignore[union-attr]
        names = {p.name for p in self.signature.parameters}
        if clash := names & {d.name for d in self.signature.dims}:
            raise TkError(f"{kernel.name}: {min(clash)} names a parameter and a dimension")

    @property
    def name(self) -> str:
        return self.kernel.name

    def text(self) -> str:
        head = filled(f"def {self.name}(", self._parameters(), "):")
        if "\n" in head:  # one level deeper than the body
            head = head.replace("\n    ", "\n        ")
        body = [
            *self._docstring(),
            *self._absences(),
            *self._constants(),
            *self._dtypes(),
            *self._sizes(),
            *self._conditions(),
            *self._allocations(),
            *self._layouts(),
            *self._launch(),
        ]
        return head + "\n" + "".join(f"    {line}".rstrip() + "\n" for line in body)

    # -- the head --------------------------------------------------------------------------

    def _parameters(self) -> list[str]:
        plain: list[str] = []
        keywords: list[str] = []
        for p in self.signature.parameters:
            is_output = isinstance(p.spec, TensorSpec) and p.spec.role == "out"
            text = p.name + self._default(p)
            (keywords if p.keyword_only or is_output else plain).append(text)
        return plain + (["*", *keywords] if keywords else [])

    def _default(self, p: Parameter) -> str:
        if isinstance(p.spec, TensorSpec) and p.spec.role == "out":
            return "=None"
        if p.default is REQUIRED and not (isinstance(p.spec, ConstSpec) and p.keyword_only):
            return ""
        if isinstance(p.spec, ConstSpec):
            return f"={_literal(self.constants[p.name])}"
        given = isinstance(p.spec, TensorSpec) and p.name in self.key.present
        return "" if given and not self._after_default(p) else f"={p.default!r}"

    def _after_default(self, p: Parameter) -> bool:
        """True if Python demands a default, since an earlier parameter has one."""
        earlier = self.signature.parameters[: self.signature.parameters.index(p)]
        return any(e.default is not REQUIRED and not e.keyword_only for e in earlier)

    def _docstring(self) -> list[str]:
        own = inspect.cleandoc(self.kernel.fn.__doc__ or "").splitlines()
        first = own[0] if own else f"The kernel {self.kernel.name}."
        lines = [first, *own[1:], "", "Compiled for:"]
        lines += [f"    {v}" for v in variables(self.key)]
        lines += ["", "Tensors:"]
        for p in self.tensors:
            lines.append(f"    {p.name}: [{_shape(p)}] {_word(p)}")
        if self.signature.conditions:
            lines += ["", "Needs: " + "; ".join(c.source for c in self.signature.conditions)]
        safe = [line.replace("\\", "\\\\").replace('"""', "'''") for line in lines]
        return [f'"""{safe[0]}', *safe[1:], '"""']

    # -- what is asserted -------------------------------------------------------------------

    def _absences(self) -> list[str]:
        return [
            f'assert {p.name} is None, "compiled without {p.name}"'
            for p in self.signature.parameters
            if not isinstance(p.spec, ConstSpec)
            and p.name not in self.key.present
            and (not isinstance(p.spec, TensorSpec) or p.spec.role != "out" or p.spec.optional)
        ]

    def _constants(self) -> list[str]:
        return [
            f"assert {name} {'is' if isinstance(value, bool | None) else '=='} {_literal(value)}, "
            + _quoted(f"compiled for {name}={value}")
            for name, value in self.constants.items()
        ]

    def _dtypes(self) -> list[str]:
        return [
            f"assert {p.name}.dtype == torch.{TORCH_NAMES[self.dtypes[p.name]]}, {p.name}.dtype"
            for p in self.inputs
        ]

    def _sizes(self) -> list[str]:
        params = [
            Param(p.name, p.spec.role, None, p.spec.dims)  # type: ignore[union-attr,arg-type]
            for p in self.inputs
        ]
        sources = dimension_sources(params)
        lines = [
            f"assert {p.name}.dim() == {len(p.spec.dims)}, {p.name}.shape"  # type: ignore[union-attr]
            for p in self.inputs
        ]
        static = dict(self.key.static)
        for s in self.signature.dims:
            if s in sources:
                tensor, axis, size = sources[s]
                lines.append(f"{s} = {solve_text(s, size, f'{tensor}.shape[{axis}]')}")
            if s.name in static:
                n = static[s.name]
                lines.append(f'assert {s.name} == {n}, f"compiled for {s.name}={n}, not {{{s}}}"')
        for p in self.inputs:
            dims = p.spec.dims  # type: ignore[union-attr]
            known = [d for d in dims if d.free_symbols]
            alone = [
                isinstance(d, Symbol) and sources.get(d, ("",))[:2] == (p.name, k)
                for k, d in enumerate(dims)
            ]
            if known and not all(alone):
                lines.append(f"assert {p.name}.shape == {shape_text(p)}, {p.name}.shape")
        return lines

    def _conditions(self) -> list[str]:
        values = {d.name for d in self.signature.dims} | set(self.constants) | self.key.present
        tensors = {p.name for p in self.tensors}
        return [
            f"assert {condition_text(c, tensors)}, {_quoted(c.source)}"
            for c in self.signature.conditions
            if c.names <= values and not any(self.constants.get(n, 0) is None for n in c.names)
        ]

    # -- what is done -----------------------------------------------------------------------

    def _allocations(self) -> list[str]:
        lines = []
        zeroed = {p.name for p in self.lowered.fn.params if p.zeroed}
        device = self._device()
        for p in self.outputs:
            make = "zeros" if p.name in zeroed else "empty"
            dtype = f"torch.{TORCH_NAMES[self.dtypes[p.name]]}"
            lines += [
                f"if {p.name} is None:",
                f"    {p.name} = torch.{make}({shape_text(p)}, dtype={dtype}, device={device})",
                f"assert {p.name}.shape == {shape_text(p)} and {p.name}.dtype == {dtype}",
            ]
        return lines

    def _device(self) -> str:
        return f"{self.inputs[0].name}.device"

    def _layouts(self) -> list[str]:
        twice = "(1 + t.is_complex()) * " if "c64" in self.dtypes.values() else ""
        names = ", ".join(p.name for p in self.tensors)
        flat = any(not p.spec.dims for p in self.tensors)  # type: ignore[union-attr]
        unit = "t.shape[-1] <= 1 or t.stride(-1) == 1"
        return [
            f"for t in [{names}]:",
            f"    assert t.device == {self.inputs[0].name}.device, t.device",
            f"    assert {'t.dim() == 0 or ' if flat else ''}{unit}, "
            '"the innermost stride must be 1"',
            f"    span = {twice}sum((n - 1) * s for n, s in zip(t.shape, t.stride()) if n > 1)",
            '    assert span < 2**31 - 2**16, "compiled for 32-bit offsets"',
            *self._described(),
        ]

    def _described(self) -> list[str]:
        schedule = self.lowered.fn.schedule
        if schedule is None or not schedule.described:
            return []
        return [
            '    assert t.data_ptr() % 16 == 0, "descriptors need addresses of 16 bytes"',
            "    wide = [s * t.element_size() for s in t.stride()[:-1]]",
            '    assert all(s % 16 == 0 for s in wide), "descriptors need strides of 16 bytes"',
        ]

    def _launch(self) -> list[str]:
        scalars = [
            p.name
            for p in self.signature.parameters
            if isinstance(p.spec, ScalarSpec) and p.name in self.key.present
        ]
        arguments = [p.name for p in self.tensors] + scalars
        lines = filled("_launch(", arguments, ")").splitlines()
        if self.outputs:
            lines.append(f"return {', '.join(p.name for p in self.outputs)}")
        return lines


def _literal(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(words: str) -> str:
    """A string literal, in double quotes where that needs no escape."""
    return repr(words) if '"' in words or "\\" in words else f'"{words}"'


def _shape(p: Parameter) -> str:
    return " ".join(str(d).replace(" ", "") for d in p.spec.dims)  # type: ignore[union-attr]


def shape_text(p: Parameter) -> str:
    sizes = [text(d) for d in p.spec.dims]  # type: ignore[union-attr]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _word(p: Parameter) -> str:
    role = p.spec.role  # type: ignore[union-attr]
    return {"in": "read", "out": "returned", "inout": "updated in place"}[role]


# --- preconditions --------------------------------------------------------------------------------


def condition_text(condition: Condition, tensors: set[str]) -> str:
    """Python text of a precondition; one on a tensor is about all of its elements."""
    return ast.unparse(_Elements(tensors).visit(ast.parse(condition.source, mode="eval").body))


class _Elements(ast.NodeTransformer):
    """Turns ``0 <= t < V`` into ``bool(((0 <= t) & (t < V)).all())``, and the like."""

    def __init__(self, tensors: set[str]):
        self.tensors = tensors

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        if not self._has_tensor(node):
            return node
        sides = [self.visit(x) for x in (node.left, *node.comparators)]
        pairs = [
            ast.unparse(ast.Compare(a, [op], [b]))
            for a, op, b in zip(sides, node.ops, sides[1:], strict=False)
        ]
        joined = " & ".join(f"({p})" for p in pairs)
        return ast.parse(f"bool(({joined}).all())", mode="eval").body

    def visit_Call(self, node: ast.Call) -> ast.expr:
        word, inner = ast.unparse(node.func), ast.unparse(node.args[0])
        if word == "sorted":
            source = f"bool(({inner}[..., 1:] >= {inner}[..., :-1]).all())"
        elif word == "distinct":
            source = f"{inner}.unique().numel() == {inner}.numel()"
        else:
            return node
        return ast.parse(source, mode="eval").body

    def _has_tensor(self, node: ast.AST) -> bool:
        # An element that a subscript picks compares well by itself, but .all() does no harm.
        return any(isinstance(n, ast.Name) and n.id in self.tensors for n in ast.walk(node))
