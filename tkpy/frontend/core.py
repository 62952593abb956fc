"""What all parts of the walker share: the builder, the current frame, and how errors are said."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from codegen.ops.base import IRError
from tkpy.builder import Builder
from tkpy.errors import CompileError
from tkpy.frontend.source import Frame, Inlined


class Core:
    """The walker's state; ``Statements``, ``Expressions`` and ``Calls`` add what it can walk."""

    if TYPE_CHECKING:  # the parts call each other
        eval: Callable[..., Any]
        assign: Callable[..., None]
        bind: Callable[..., None]
        block: Callable[..., None]
        binary: Callable[..., Any]
        truth: Callable[..., bool | None]

    f: Frame

    def __init__(self, builder: Builder):
        self.b = builder
        builder.walker = self
        self.globals_read: dict[tuple[str, str], object] = {}
        self.inlined: list[Inlined] = []
        self.stack: list[Inlined] = []
        self.calling: list[object] = []  # functions of the kernel that are being walked

    def error(self, node: ast.AST, message: str, fix: str = "", verb: str = "") -> CompileError:
        text = message + (f"\n  fix: {fix}" if fix else "")
        return CompileError(self.f.source.loc(node), text, verb)

    def guard(self, node: ast.AST, verb: str, act: Callable[[], Any]) -> Any:
        """Run a piece of lowering; what it refuses is reported at ``node``."""
        before = self.b.loc
        self.b.loc = self.f.source.loc(node)
        try:
            return act()
        except IRError as e:
            raise self.error(node, e.message, e.fix, verb) from None
        finally:
            self.b.loc = before
