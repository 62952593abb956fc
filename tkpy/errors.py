"""What can go wrong, said with the author's file and line, the operands, and the fix."""

from __future__ import annotations

from codegen.ir import Loc


class TkError(Exception):
    """Anything that tkpy refuses."""


class CompileError(TkError):
    """A kernel that is not legal. ``loc`` is where; the message shows the line and the fix.

    Attributes:
        loc: file, line and column in the author's source.
        message: what is wrong, without the place.
    """

    def __init__(self, loc: Loc, message: str, verb: str = ""):
        self.loc, self.message = loc, message
        head = f"{loc.file}:{loc.line}: {verb + ': ' if verb else ''}{message}"
        where = ""
        if loc.source.strip():
            indent = len(loc.source) - len(loc.source.lstrip())
            width = max(1, min(loc.end_column or loc.column + 1, len(loc.source)) - loc.column)
            where = f"\n    {loc.source.strip()}\n    {' ' * (loc.column - indent)}{'^' * width}"
        first, _, rest = head.partition("\n")
        super().__init__(first + where + (f"\n{rest}" if rest else ""))


class CallError(TkError, TypeError, ValueError):
    """A call that the signature does not allow: wrong rank, dtype, device, size or keyword."""


class NeedStatic(Exception):
    """A named dimension turned out to be a tile side, so its size is needed at compile time."""

    def __init__(self, names: set[str]):
        self.names = names
        super().__init__(", ".join(sorted(names)))
