"""The systems there are: names to modules, which are imported when one is asked for."""

from __future__ import annotations

import importlib

from tkpy.cli.app import NotFound
from tkpy.cli.find import load_package, packages
from zoo.training.config import unknown
from zoo.training.system import System


def systems() -> dict[str, str]:
    """Names to ``module:attribute``, of every package under the entry-point group tkpy.zoo."""
    import zoo

    found = dict(zoo.systems())
    for entry in packages():
        for name, place in getattr(load_package(entry), "systems", dict)().items():
            found.setdefault(name, place)
    return found


def find(name: str) -> System:
    """The system of that name, or of ``module:attribute``; raises NotFound."""
    if ":" in name:
        place = name
    else:
        known = systems()
        if name not in known:
            raise NotFound(unknown(f"system {name!r}", name, known))
        place = known[name]
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute or "system", None)
    except ModuleNotFoundError as e:
        if e.name is None or not (module + ".").startswith(e.name + "."):
            raise
        raise NotFound(f"system {name}: there is no module {e.name}") from None
    if not isinstance(found, System):
        raise NotFound(f"{place} is not a zoo.training.System")
    return found
