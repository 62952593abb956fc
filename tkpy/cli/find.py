"""From what a user types to a kernel: a registered name, or ``path/to/file.py:kernel``."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import linecache
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import typer
from typer.core import TyperCommand

from tkpy.cli.app import NotFound, complain
from tkpy.errors import TkError
from tkpy.kernel import Kernel

#: The entry-point group of modules with ``kernels()``; they may have ``demo()``, ``commands()``.
GROUP = "tkpy.zoo"


@dataclass(frozen=True)
class Found:
    """A kernel, the name it goes by on the command line, and who registered it (or the file)."""

    name: str
    kernel: Kernel
    origin: str

    @property
    def summary(self) -> str:
        """The first line of the kernel's docstring."""
        return (self.kernel.fn.__doc__ or "").strip().partition("\n")[0]

    @property
    def place(self) -> tuple[str, int]:
        """File and line of the definition."""
        code = self.kernel.fn.__code__
        return code.co_filename, code.co_firstlineno


class BrokenPackage(TkError):
    """A package registered with tkpy that cannot be loaded."""


def packages() -> list[importlib.metadata.EntryPoint]:
    """The entry points that register kernels, each once, in order of name."""
    found = {(e.name, e.value): e for e in importlib.metadata.entry_points(group=GROUP)}
    return [found[k] for k in sorted(found)]


def load_package(entry: importlib.metadata.EntryPoint) -> ModuleType:
    """The module that an entry point names; raises BrokenPackage."""
    try:
        return entry.load()
    except Exception as e:
        raise BrokenPackage(
            f"{entry.value}, registered as {GROUP}, cannot be loaded: {_said(e)}"
        ) from e


def registered(quiet: bool = False) -> dict[str, Found]:
    """Every registered kernel by name. A package that cannot be loaded is a warning."""
    out: dict[str, Found] = {}
    for entry in packages():
        try:
            module = load_package(entry)
            try:
                kernels = dict(module.kernels())
            except Exception as e:
                raise BrokenPackage(f"{entry.value}.kernels() failed: {_said(e)}") from e
        except BrokenPackage as e:
            if not quiet:
                complain(str(e), "warning")
            continue
        for name, kernel in kernels.items():
            if not isinstance(kernel, Kernel):
                complain(f"{entry.value} registers {name}, which is not a tk.kernel", "warning")
            elif name in out:
                complain(f"{name} is registered by {out[name].origin} and {entry.value}", "warning")
            else:
                out[name] = Found(name, kernel, entry.value)
    return out


def commands() -> dict[str, TyperCommand]:
    """What the typer applications that packages' ``commands()`` return add to ``tkpy``."""
    out: dict[str, TyperCommand] = {}
    for entry in packages():
        try:
            made = getattr(load_package(entry), "commands", None)
            group = typer.main.get_command(made()) if made is not None else None
        except Exception as e:
            complain(f"{entry.value}.commands() failed: {_said(e)}", "warning")
            continue
        for name, command in getattr(group, "commands", {}).items():
            out.setdefault(name, command)
    return out


def find(text: str) -> Found:
    """The kernel that ``text`` names.

    Raises NotFound, with the nearest names, and TkError for a file that cannot be executed.
    """
    path, colon, name = text.rpartition(":")
    if not colon and text.endswith(".py"):
        path, name = text, ""
    if path.endswith(".py"):
        return _in_file(Path(path), name)
    known = registered()
    if text in known:
        return known[text]
    raise NotFound(_unknown(f"no kernel {text!r}", text, known))


def _in_file(path: Path, name: str) -> Found:
    if not path.is_file():
        raise NotFound(f"no file {path}")
    module = _execute(path)
    kernels = {n: k for n, k in vars(module).items() if isinstance(k, Kernel)}
    if not name and len(kernels) == 1:
        (name,) = kernels
    if name in kernels:
        return Found(name, kernels[name], str(path))
    if not kernels:
        raise NotFound(f"{path} defines no kernel\n  fix: put @tk.kernel above a function")
    if not name:
        raise NotFound(f"{path} defines {', '.join(kernels)}\n  fix: say which, {path}:NAME")
    if hasattr(module, name):
        raise NotFound(f"{name} in {path} is not a kernel\n  fix: put @tk.kernel above it")
    raise NotFound(_unknown(f"no kernel {name!r} in {path}", name, kernels))


def _unknown(what: str, name: str, known: dict) -> str:
    close = difflib.get_close_matches(name, list(known), 3, 0.5)
    if close:
        return f"{what}\n  did you mean {' or '.join(close)}?"
    return f"{what}\n  there is {', '.join(known)}" if known else what


def _execute(path: Path) -> ModuleType:
    """Run a user's file as a module, with its folder importable as for ``python file.py``."""
    path = path.resolve()
    name = f"tkpy_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__spec__ = None  # nobody else can import it by this name
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except TkError:
        raise  # says its place itself
    except SystemExit as e:
        raise TkError(f"{path}: exits when it is imported (status {e.code})") from None
    except Exception as e:
        raise TkError(_place(e, path)) from e
    return module


def _place(error: Exception, path: Path) -> str:
    """``file:line: kind: message`` and the line, for an error that a user's file caused."""
    if isinstance(error, SyntaxError) and error.filename:
        line = (error.text or "").rstrip()
        caret = " " * max((error.offset or 1) - 1, 0) + "^"
        shown = f"\n    {line}\n    {caret}" if line else ""
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}{shown}"
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if f.filename == str(path)]
    if not mine:
        return f"{path}: {_said(error)}"
    source = linecache.getline(mine[-1].filename, mine[-1].lineno or 0).strip()
    return f"{path}:{mine[-1].lineno}: {_said(error)}" + (f"\n    {source}" if source else "")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
