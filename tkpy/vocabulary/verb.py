"""What a verb is: a Python function that builds tile IR when a kernel that calls it compiles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tkpy.errors import TkError

#: Every verb by name, with its lowering.
VERBS: dict[str, Verb] = {}


class Verb:
    """A word of the language. Its signature and docstring are the public surface."""

    __name__: str

    def __init__(self, lower: Callable[..., Any]):
        self.lower = lower
        functools.update_wrapper(self, lower)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise TkError(
            f"tk.{self.__name__} works on tiles, inside a kernel\n"
            "  fix: call it from a function decorated with @tk.kernel or @tk.function"
        )

    def __repr__(self) -> str:
        return f"tk.{self.__name__}"


def verb(lower: Callable[..., Any]) -> Verb:
    """Decorator: the function body runs at compile time and returns IR values."""
    out = Verb(lower)
    VERBS[lower.__name__] = out
    return out
