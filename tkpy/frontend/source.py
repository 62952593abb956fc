"""A function's source and names: what the walker walks over."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from codegen.ir import Loc
from tkpy.builder import Complex
from tkpy.errors import TkError


@functools.lru_cache(1 << 12)
def lines_of(fn: Callable) -> tuple[tuple[str, ...], int]:
    """The lines of ``fn`` as they were when they were first asked for, and the number of the first.

    Raises OSError or TypeError if they cannot be read. Python finds a function's end by splitting
    its file into tokens, so it is asked once.
    """
    lines, first = inspect.getsourcelines(fn)
    return tuple(lines), first


@dataclass(frozen=True)
class Source:
    """A function's syntax tree with its place in the file."""

    tree: ast.FunctionDef
    file: str
    lines: tuple[str, ...]
    first: int
    indent: int

    @staticmethod
    @functools.lru_cache(1 << 12)
    def of(fn: Callable) -> Source:
        """Raises TkError if the source of ``fn`` cannot be read (typed at a prompt, say)."""
        try:
            lines, first = lines_of(fn)
        except (OSError, TypeError):
            raise TkError(
                f"the source of {fn.__name__} cannot be read; tkpy compiles from source\n"
                "  fix: put the kernel into a file"
            ) from None
        text = "".join(lines)
        indent = len(lines[0]) - len(lines[0].lstrip())
        tree = ast.parse(textwrap.dedent(text)).body[0]
        if not isinstance(tree, ast.FunctionDef):
            raise TkError(f"{fn.__name__}: a kernel is a plain function, not a lambda or coroutine")
        return Source(tree, fn.__code__.co_filename, lines, first, indent)

    def loc(self, node: ast.AST) -> Loc:
        line = getattr(node, "lineno", 1)
        column = getattr(node, "col_offset", 0) + self.indent
        one_line = getattr(node, "end_lineno", line) == line
        text = self.lines[line - 1].rstrip("\n") if line <= len(self.lines) else ""
        end = (getattr(node, "end_col_offset", column) + self.indent) if one_line else len(text)
        return Loc(self.file, self.first + line - 1, column, text, end)


class Inlined:
    """A ``@tk.function``: its body is compiled into each kernel that calls it."""

    def __init__(self, fn: Callable):
        self.fn = fn
        self.__name__, self.__doc__ = fn.__name__, fn.__doc__
        self.__wrapped__ = fn

    def __call__(self, *args, **kwargs):
        raise TkError(f"{self.__name__} is a @tk.function: call it from a kernel")


@dataclass(frozen=True)
class Undefined:
    """A name that was assigned somewhere it cannot be read from here."""

    why: str


class _Parts:
    def __repr__(self) -> str:
        return "a complex value"


#: What a name holds whose value is complex: its parts are under ``name.real``, ``name.imag``, so
#: that branches and loops hand them on like any two names.
PARTS = _Parts()


def hold(env: dict[str, object], name: str, value: object) -> None:
    """``name`` holds ``value`` in ``env`` from here on; see ``PARTS``."""
    if isinstance(value, Complex):
        for part, v in zip(("real", "imag"), value.parts, strict=True):
            v.hint = v.hint or f"{name}_{part}"
            env[f"{name}.{part}"] = v
        value = PARTS
    env[name] = value


def held(env: dict[str, object], name: str) -> object:
    """What ``name`` holds in ``env``."""
    value = env[name]
    if value is not PARTS:
        return value
    return Complex(env[f"{name}.real"], env[f"{name}.imag"])  # type: ignore[arg-type]


class Return(Exception):
    def __init__(self, value: object):
        self.value = value


@dataclass
class Frame:
    """One function being walked: its source, names and the names outside it."""

    source: Source
    env: dict[str, object]
    outer: dict[str, object]
    depth: int = 0
    conditional: int = 0


def outer_names(fn: Callable) -> dict[str, object]:
    """The names a function sees around it: globals, and the closure's variables over them."""
    names = dict(fn.__globals__)
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            continue
    return names
