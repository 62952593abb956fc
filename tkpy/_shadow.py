"""Three packages come with this distribution; a folder of the user's may hide one of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def check_siblings(here: Path) -> None:
    """Raises ImportError if ``codegen`` or ``zoo`` is not the one that came with ``tkpy``."""
    root = here.resolve().parent.parent
    for name in ("codegen", "zoo"):
        found = _origin(name)
        ours = root / name / "__init__.py"
        if found is None and not ours.exists():
            continue
        if found is None or Path(found).resolve() != ours:
            raise ImportError(
                f"`import {name}` finds {found or 'nothing'}, not tkpy's own package at {ours}.\n"
                f"  fix: rename {found}, or run Python from another folder "
                f"(it comes before {root} in sys.path)"
            )


def _origin(name: str) -> str | None:
    """The file that ``import name`` would run, without running it."""
    module = sys.modules.get(name)
    if module is not None and getattr(module, "__file__", None):
        return module.__file__
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.origin:
        return spec.origin
    places = list(spec.submodule_search_locations or [])  # a folder without __init__.py
    return places[0] if places else None
