"""Turn generated Triton source text into an importable module.

The text is kept as a file, because three readers need one: Triton hashes and parses the source of a
JIT function, tracebacks print the failing line, and a person wants to open what was generated. The
file's name contains a hash of its contents, so a file never changes meaning once it exists.

The road from text to machine forks here and nowhere else. `load(..., interpret=False)` gives
ordinary Triton functions, which Triton's active driver compiles; `load(..., interpret=True)` gives
functions with the same calling convention, `kernel[grid](*args, **kwargs)`, that run one operation
at a time on numpy (codegen/interpreter.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import tempfile
import threading
import types
from pathlib import Path

from codegen.forks import anew

_modules: dict[tuple[str, str, bool], types.ModuleType] = {}
_lock = threading.RLock()
anew(globals(), _lock=threading.RLock)
_fallback: Path | None = None


def cache_dir() -> Path:
    """The folder for generated files: `$TKPY_CACHE_DIR`, else `~/.cache/tkpy`.

    Where that cannot be written (a read-only or missing home) it is a private temporary folder,
    the same one for the life of the process. The folder exists when this returns.
    """
    global _fallback
    wanted = os.environ.get("TKPY_CACHE_DIR")
    try:
        path = Path(wanted) if wanted else Path.home() / ".cache" / "tkpy"
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK | os.X_OK):
            return path
    except (OSError, RuntimeError):  # RuntimeError: Path.home() found no home
        pass
    with _lock:
        if _fallback is None or not _fallback.is_dir():
            # mkdtemp, not a fixed name: in a shared /tmp a fixed name could be somebody else's.
            _fallback = Path(tempfile.mkdtemp(prefix="tkpy-"))
        return _fallback


def write_atomic(path: str | Path, data: str | bytes) -> Path:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Missing parent folders are created. Raises OSError where the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def source_path(source: str, name: str) -> Path:
    """The file that holds `source`, written if it is not there yet or holds something else."""
    digest = hashlib.sha256(source.encode("utf-8")).hexdigest()[:16]
    stem = re.sub(r"\W+", "_", name).strip("_") or "module"
    path = cache_dir() / "modules" / f"{stem}_{digest}.py"
    try:
        if path.read_bytes() == source.encode("utf-8"):
            return path
    except OSError:
        pass
    return write_atomic(path, source)


def load(source: str, name: str, *, interpret: bool) -> types.ModuleType:
    """Import Triton source text; the same text and name give the same module object.

    source: the text of a module with `@triton.jit` functions and, if it likes, host functions.
    name: what the file and the module are called; any characters, they are made safe.
    interpret: run every `@triton.jit` function of this module in Triton's interpreter. Nothing is
        changed for other Triton kernels of the process: TRITON_INTERPRET is neither read nor set.

    Raises what executing the text raises (a SyntaxError names the generated file and line), and
    OSError where no folder can be written.
    """
    key = (source, name, interpret)
    module = _modules.get(key)
    if module is not None:
        return module
    with _lock:
        if key not in _modules:
            _modules[key] = _execute(source_path(source, name), source, interpret)
        return _modules[key]


def _execute(path: Path, source: str, interpret: bool) -> types.ModuleType:
    # Two module names, because the two executors of one text are different objects.
    module = types.ModuleType(f"tkpy_generated.{path.stem}{'_interpreted' if interpret else ''}")
    module.__file__ = str(path)
    # inspect and pickle look a function's module up by name.
    sys.modules[module.__name__] = module
    try:
        if interpret:
            # Costs a second copy of triton.language: only on demand.
            from codegen.interpreter import execute

            execute(source, module, str(path))
        else:
            code = compile(source, str(path), "exec", dont_inherit=True)
            exec(code, module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module
