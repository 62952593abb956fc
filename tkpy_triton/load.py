"""The backend's class in ``codegen.cpu``, or, where that cannot be imported, one that is inert."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path


def load(module: str, name: str, base: type) -> type:
    """Class ``name`` of ``codegen.cpu.<module>``; never raises.

    The stand-in is a concrete subclass of ``base`` that supports no target and is not active. If
    ``TRITON_DEFAULT_BACKEND=cpu`` asks for it all the same, making it raises ImportError with the
    reason.
    """
    try:
        ours = Path(__file__).resolve().parent.parent / "codegen" / "__init__.py"
        spec = importlib.util.find_spec("codegen")
        found = spec.origin if spec is not None else None
        if found is None or Path(found).resolve() != ours:
            raise ImportError(f"`import codegen` finds {found or 'nothing'}, not {ours}")
        # Both halves or neither.
        halves = {m: importlib.import_module(f"codegen.cpu.{m}") for m in ("compiler", "driver")}
        return getattr(halves[module], name)
    except Exception as error:
        return _inert(base, f"{type(error).__name__}: {error}")


def _inert(base: type, reason: str) -> type:
    def make(self, *_args):
        raise ImportError(f"tkpy's CPU backend cannot be loaded: {reason}")

    def asked(*_args) -> bool:
        return os.environ.get("TRITON_DEFAULT_BACKEND") == "cpu"

    body: dict = dict.fromkeys(base.__abstractmethods__, make)  # type: ignore[attr-defined]
    body.update(__init__=make, is_active=staticmethod(asked))
    body["inert"] = True
    body["supports_target"] = staticmethod(lambda target: False)
    return type("Inert", (base,), body)
