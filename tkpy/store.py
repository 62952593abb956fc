"""What has been compiled before, on disk: a second process does not run the front end again.

A variant is stored under a hash of the kernel's source, its key, the versions of Triton and
Python, and the compiler's own files. It also records every global the kernel read and every
function it inlined; if one of them has changed the entry does not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

from codegen.module import cache_dir, write_atomic

if TYPE_CHECKING:
    from tkpy.kernel import Kernel
    from tkpy.lower import Lowered, VariantKey

_PLAIN = (bool, int, float, str, type(None))


def _hash_of_sources() -> str:
    """Of the files that decide the text of a kernel, as they are when they are imported."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for package in ("codegen", "tkpy"):
        for path in sorted((root / package).rglob("*.py")):
            if not {"cli", "testing", "cpu"} & set(path.relative_to(root).parts):
                digest.update(path.read_bytes())
    return digest.hexdigest()


#: Taken at import: files that change under a running process are not what it compiles with.
_SOURCES = _hash_of_sources()


def fingerprint() -> str:
    """What identifies the compiler and what it stands on."""
    import triton

    return f"{_SOURCES} {sys.version_info} {triton.__version__}"


class VariantStore:
    """The stored variants of one kernel."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self._entries: dict[tuple[VariantKey, str], dict] = {}
        self.compiled = 0  # how many variants this process lowered itself

    # -- what kernels ask ------------------------------------------------------------------

    def source(self, key: VariantKey) -> str:
        return self._entry(key)["source"]

    def zeroed(self, key: VariantKey) -> frozenset[str]:
        return frozenset(self._entry(key)["zeroed"])

    def static_names(self, key: VariantKey, sizes: dict[str, int]) -> frozenset[str]:
        path = self._path("static", key)
        found = self._read(path)
        if found is None:
            found = {
                "static": sorted(self.kernel.find_static(key, sizes)),
                "reads": self._reads([]),
            }
            self._write(path, found)
        return frozenset(found["static"])

    def derived(self, what: str, key: VariantKey, make: Callable[[], tuple[dict, Lowered]]) -> dict:
        """An entry of another kind, ``what``, of the same variant; ``make`` if there is none."""
        path = self._path(what, key)
        entry = self._read(path)
        if entry is None:
            entry, lowered = make()
            self.compiled += 1
            entry["reads"] = self._reads_of(lowered)
            self._write(path, entry)
        return entry

    # -- entries ---------------------------------------------------------------------------

    def _entry(self, key: VariantKey) -> dict:
        slot = (key, repr(key.constants))  # 0.0 == -0.0, and they differ
        if slot not in self._entries:
            path = self._path("variant", key)
            entry = self._read(path)
            if entry is None:
                lowered = self.kernel.lower(key)
                self.compiled += 1
                entry = {
                    "source": lowered.source,
                    "zeroed": [p.name for p in lowered.fn.params if p.zeroed],
                    "reads": self._reads_of(lowered),
                }
                self._write(path, entry)
            self._entries[slot] = entry
        return self._entries[slot]

    def _path(self, what: str, key: VariantKey) -> Path | None:
        from tkpy.frontend.source import lines_of

        try:
            text = "".join(lines_of(self.kernel.fn)[0])
        except OSError:
            return None
        parts = [
            what,
            fingerprint(),
            self.kernel.name,
            text,
            self.kernel.fn.__code__.co_filename,
            repr(self.kernel.where),
            repr((self.kernel.num_warps, self.kernel.num_stages, self.kernel.template)),
            repr(
                (
                    key.constants,
                    key.dtypes,
                    sorted(key.present),
                    key.static,
                    key.unit,
                    key.wide,
                    key.aligned,
                    key.machine,
                    key.described,
                )
            ),
            repr(self.kernel.fn.__code__.co_firstlineno),
        ]
        parts += [f"{p.name}: {p.spec!r}" for p in self.kernel.signature.parameters]
        names = _names(self.kernel.fn.__code__)
        for name, value in sorted(inspect.getclosurevars(self.kernel.fn).nonlocals.items()):
            described = _describe(value, 0, names)
            if described is None:
                return None
            parts.append(f"{name} = {described}")
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        return cache_dir() / "variants" / f"{self.kernel.name}-{digest}.json"

    def _read(self, path: Path | None) -> dict | None:
        if path is None:
            return None
        try:
            entry = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(entry, dict) or entry.get("reads") is None:
            return None
        now = [self._describe(n) for n, _ in entry["reads"]]
        return entry if now == [d for _, d in entry["reads"]] else None

    def _write(self, path: Path | None, entry: dict) -> None:
        if path is not None and entry["reads"] is not None:
            # A cache that cannot be written is a slower start, not an error.
            with contextlib.suppress(OSError):
                write_atomic(path, json.dumps(entry))

    # -- what the kernel read besides its own text -----------------------------------------

    def _reads_of(self, lowered: Lowered) -> list | None:
        walker = lowered.walker
        assert walker is not None
        return self._reads([name for _, name in walker.globals_read])

    def _reads(self, names: list[str]) -> list | None:
        described = [(n, self._describe(n)) for n in sorted({*names, *self._helper_names()})]
        return None if any(d is None for _, d in described) else described

    def _helper_names(self) -> list[str]:
        """Globals that the kernel's code names, so that helpers count even before a walk."""
        return [n for n in _names(self.kernel.fn.__code__) if n in self.kernel.fn.__globals__]

    def _describe(self, name: str) -> str | None:
        value = self.kernel.fn.__globals__.get(name)
        return _describe(value, 0, _names(self.kernel.fn.__code__))


def _names(code: CodeType) -> list[str]:
    """All names and attributes that a function's code mentions, lambdas within it included."""
    inner = [n for c in code.co_consts if isinstance(c, CodeType) for n in _names(c)]
    return sorted({*code.co_names, *inner})


def _describe(value: object, depth: int, names: list[str]) -> str | None:
    """A text that changes when what ``value`` means to a kernel changes, or None.

    ``names`` are those that the code which reads ``value`` mentions: attributes of a module or a
    class count if they are among them.
    """
    from codegen.ir import DType
    from tkpy.frontend import Inlined
    from tkpy.frontend.source import lines_of
    from tkpy.vocabulary.verb import Verb

    if isinstance(value, _PLAIN):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, tuple) and depth < 4:
        parts = [_describe(v, depth + 1, names) for v in value]
        return None if None in parts else f"tuple:{parts}"
    if isinstance(value, DType):
        return f"dtype:{value}"
    if isinstance(value, Verb):
        return f"verb:{value.__name__}"
    if inspect.ismodule(value) or isinstance(value, type):
        mine = {n: getattr(value, n) for n in names if hasattr(value, n)} if depth < 4 else {}
        described = {n: _describe(v, depth + 1, names) for n, v in mine.items()}
        return None if None in described.values() else f"scope:{value.__name__}:{described}"
    if isinstance(value, Inlined) and depth < 8:
        from tkpy.frontend.source import lines_of

        try:
            text = "".join(lines_of(value.fn)[0])
        except OSError:
            return None
        names = _names(value.fn.__code__)
        scope = dict(inspect.getclosurevars(value.fn).nonlocals)
        scope |= {n: v for n, v in value.fn.__globals__.items() if n in names}
        inner = [_describe(v, depth + 1, names) for _, v in sorted(scope.items())]
        inner += [_describe(v, depth + 1, names) for v in value.fn.__defaults__ or ()]
        return None if None in inner else f"function:{text}:{inner}"
    if callable(value) and not isinstance(value, type):
        return f"callable:{getattr(value, '__qualname__', '?')}"
    return None
