"""From the kernel's own source to tile IR: the AST is walked once, loops stay loops.

Names hold what is known when the kernel compiles: tiles and vectors as IR values, run-time
integers as index expressions, everything else as the Python object it is. An ``if`` on something
known is decided here; one on a run-time condition becomes a branch.
"""

from __future__ import annotations

from collections.abc import Callable

from tkpy.frontend.calls import Calls
from tkpy.frontend.expressions import Expressions
from tkpy.frontend.hooks import Hooks
from tkpy.frontend.source import Frame, Inlined, Return, Source, outer_names
from tkpy.frontend.statements import Statements

__all__ = ["Inlined", "Source", "Walker"]


class Walker(Statements, Expressions, Calls, Hooks):
    """Walks one kernel. ``globals_read`` collects what the result depends on, for the cache."""

    def run(self, fn: Callable, arguments: dict[str, object]) -> object:
        source = Source.of(fn)
        frame = Frame(source, dict(arguments), outer_names(fn))
        self.f = frame
        try:
            self.block(source.tree.body)
        except Return as r:
            return r.value
        return None
