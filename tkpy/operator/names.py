"""Names of operators: ``tkpy::<module>_<kernel>``, one a kernel, the same in every process."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable

from torch.compiler import config

NAMESPACE = "tkpy"
#: What ends the names of the operators that belong to a kernel's own.
DERIVED = ("_", "_backward", "_keeping")
_taken: set[str] = set()
_MARK = " tkpy:"
_known = 0  # of the operators of this process, one digest


def claim(fn: Callable) -> str:
    """A name for the operator of the kernel ``fn`` that no other kernel of this process has.

    The second kernel of one module and name, from a factory or a cell of a notebook that ran
    again, is told from the first by a hash of its source and of the variables that it closes
    over; so is one whose name ends as those of other kernels' operators do. The order in which
    kernels are used decides no name, because compilers that cache their results on disk know
    operators by name.
    """
    module = "main" if fn.__module__ == "__main__" else fn.__module__
    base = re.sub(r"\W+", "_", f"{module}_{fn.__qualname__}".replace("<locals>.", ""))
    name = base
    # ``x_backward`` is what x's own backward is called.
    if name in _taken or base.endswith(DERIVED):
        name = f"{base}_{_digest(fn)}"
    number = 1
    while name in _taken:
        number += 1
        name = f"{base}_{_digest(fn)}_{number}"
    _taken.add(name)
    return name


def tell_caches(name: str, fn: Callable) -> None:
    """Has compilers that keep results on disk ask again after ``fn`` has been edited.

    They know an operator by its name, and so took shapes and types of what it returned when they
    compiled for those of today. Their keys hold a tag; it names all operators that are
    registered, in no order.
    """
    global _known
    text = f"{name} {_digest(fn)}".encode()
    _known ^= int(hashlib.sha256(text).hexdigest()[:16], 16)
    given = config.cache_key_tag.partition(_MARK)[0]
    config.cache_key_tag = f"{given}{_MARK}{_known:x}"


def _digest(fn: Callable) -> str:
    try:
        text = inspect.getsource(fn)
    except OSError:
        text = fn.__code__.co_code.hex()
    scope = sorted(inspect.getclosurevars(fn).nonlocals.items())
    known = [f"{n}={v!r}" for n, v in scope if not re.search(r" at 0x[0-9a-f]+>", repr(v))]
    return hashlib.sha256("\0".join([text, *known]).encode()).hexdigest()[:8]
