"""How commands print: rich on a terminal, plain text in a pipe, JSON alone where it is asked."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.syntax import Syntax


def console() -> Console:
    """A console on standard output, as it is now (tests redirect it)."""
    return Console(highlight=False)


def print_json(value: object) -> None:
    """One JSON document on standard output, and nothing else."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def print_code(text: str, language: str, on: Console | None = None) -> None:
    """Source text: coloured on a terminal, byte for byte in a pipe."""
    on = on or console()
    if on.is_terminal:
        on.print(Syntax(text.rstrip("\n"), language, theme="ansi_dark", word_wrap=True))
    else:
        on.file.write(text if text.endswith("\n") else text + "\n")
