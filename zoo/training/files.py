"""Files that are whole or not there: written under another name, flushed to the disk, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tkpy import TkError

#: What an unfinished file or folder is called: this before its name. Nothing reads such a one.
UNFINISHED = ".unfinished-"


class LoadError(TkError):
    """A file that cannot be loaded: absent, cut short, corrupt, or of something else."""


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """``path`` as ``write(temporary)`` makes it, in one rename: readers see old or new."""
    temporary = path.with_name(UNFINISHED + path.name)
    write(temporary)
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """A new folder ``path`` with the files that ``write(temporary)`` makes, in one rename."""
    temporary = path.with_name(UNFINISHED + path.name)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    write(temporary)
    for file in temporary.iterdir():
        _flush(file)
    _flush(temporary)
    os.rename(temporary, path)
    _flush(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Delete what a process that was killed had begun to write in ``folder``."""
    for path in folder.glob(UNFINISHED + "*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises LoadError."""
    try:
        value = json.loads(path.read_text())
    except OSError as e:
        raise LoadError(f"{path} cannot be read: {e.strerror or e}") from None
    except ValueError as e:
        raise LoadError(f"{path} is not JSON: {e}") from None
    if not isinstance(value, dict):
        raise LoadError(f"{path} holds no object")
    return value


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Tensors by name as safetensors; each is stored apart, contiguous."""
    apart = {n: t.detach().contiguous().cpu() for n, t in tensors.items()}
    first: dict[int, str] = {}
    for name, tensor in apart.items():
        if first.setdefault(tensor.untyped_storage().data_ptr(), name) != name:
            apart[name] = tensor.clone()
    save_file(apart, path, metadata={"format": "pt", **(metadata or {})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the metadata of a safetensors file; raises LoadError."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError:
        raise LoadError(f"{path} cannot be read: there is no such file") from None
    except OSError as e:
        raise LoadError(f"{path} cannot be read: {e.strerror or e}") from None
    except SafetensorError as e:
        raise LoadError(f"{path} is no whole safetensors file: {e}") from None
