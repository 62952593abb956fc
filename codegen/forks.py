"""What a forked child must not take over from its parent: locks that another thread held, memory
that both would write to."""

from __future__ import annotations

import os
from collections.abc import Callable


def anew(scope: dict[str, object], **makers: Callable[[], object]) -> None:
    """In every forked child the variables ``makers`` of ``scope`` are made anew."""

    def remake() -> None:
        scope.update({name: make() for name, make in makers.items()})

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=remake)
