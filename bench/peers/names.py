"""Every public op of the packages, found in the packages themselves.

- ``fla.ops``: the functions that its subpackages name in ``__all__``.
- ``fla.modules``: the classes and functions that it and its submodules name in ``__all__``, and
  the public functions of submodules without one.
- Liger-Kernel: the autograd functions of ``liger_kernel.ops``, and the functions of
  ``liger_kernel.transformers.functional``.

- Inductor: one transformer block under ``torch.compile``.

The same object under two names is one op. References (``naive_*``, ``*_ref``) are no ops.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType


def _reference(name: str) -> bool:
    return name.startswith("naive_") or name.endswith("_ref")


def _submodules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for info in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{info.name}")


def _own(module: ModuleType) -> list[str]:
    """Names that a module offers: its ``__all__``, or the public ones that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [n for n, x in vars(module).items()
            if not n.startswith("_") and getattr(x, "__module__", "") == module.__name__
            and (inspect.isfunction(x) or inspect.isclass(x))]  # fmt: skip


def _fla_ops() -> Iterator[tuple[str, object]]:
    package = importlib.import_module("fla.ops")
    for module in _submodules(package):
        if module is not package and hasattr(module, "__all__"):
            for name in module.__all__:
                x = getattr(module, name)
                if inspect.isfunction(x) and not _reference(name):
                    yield f"{module.__name__}.{name}", x


def _fla_modules() -> Iterator[tuple[str, object]]:
    package = importlib.import_module("fla.modules")
    for module in [*list(_submodules(package))[1:], package]:
        for name in _own(module):
            x = getattr(module, name)
            if callable(x) and not _reference(name):
                yield f"{module.__name__}.{name}", x


def _liger() -> Iterator[tuple[str, object]]:
    ops = importlib.import_module("liger_kernel.ops")
    for name, x in vars(ops).items():
        if inspect.isclass(x) and name.endswith("Function"):
            yield f"liger_kernel.ops.{name}", x
    functional = importlib.import_module("liger_kernel.transformers.functional")
    for name in _own(functional):
        if inspect.isfunction(getattr(functional, name)):
            yield f"liger_kernel.transformers.functional.{name}", getattr(functional, name)


def _inductor() -> Iterator[tuple[str, object]]:
    from bench.peers.inductor import NAME, compiled_transformer_block

    yield NAME, compiled_transformer_block


def public_ops() -> dict[str, object]:
    """Every op by its full name, in the order of the packages."""
    found: dict[str, object] = {}
    seen: set[int] = set()
    for name, x in (*_fla_ops(), *_fla_modules(), *_liger(), *_inductor()):
        if id(x) not in seen:
            seen.add(id(x))
            found[name] = x
    return found
