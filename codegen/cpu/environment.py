"""Environment variables that are asked for at every launch."""

from __future__ import annotations

import os
from collections.abc import Callable


def reader(name: str) -> Callable[[], str | None]:
    """A function that gives a variable's present value, several times faster than ``os.environ``.

    ``os.environ`` encodes the name and decodes the value at each look-up, a microsecond of a
    launch; its own dictionary is asked whether there is anything to decode.
    """
    data = getattr(os.environ, "_data", None)
    encode = getattr(os.environ, "encodekey", None)
    if data is None or encode is None:
        return lambda: os.environ.get(name)
    key = encode(name)
    return lambda: os.environ.get(name) if key in data else None


_check = reader("TKPY_CPU_CHECK")
_features = reader("TKPY_CPU_FEATURES")


def checking() -> bool:
    """Are kernels to be compiled and run in the checking mode (``codegen.cpu.check``)?"""
    return _check() not in (None, "", "0")


def mode() -> int | str:
    """What code is compiled for: 0 for the host as it is, else a name.

    A forced feature set has a name, and so has the checking mode with each of them.
    """
    forced = _features() or 0
    return f"check-{forced}" if _check() not in (None, "", "0") else forced
