"""Choices on disk: one small file a kernel, machine, and kind of call.

A file that is damaged, or written by anything else, is as good as none. Sizes are remembered up to
the next power of two: a choice made at N = 1000 serves N = 1024 too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
from pathlib import Path

from codegen.module import cache_dir, write_atomic
from tkpy.call import Call
from tkpy.frontend.source import lines_of
from tkpy.kernel import Kernel
from tkpy.store import fingerprint
from tkpy.tune.candidates import SMALLEST, Choice

_FORMAT = 1
_LARGEST = 1 << 14


def machine(device) -> str:
    """What measured times hold for: the processor or the GPU, and the number of threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    from codegen.cpu.toolchain import features

    return f"{platform.machine()} {features().flags} {torch.get_num_threads()}"


class Memory:
    """The choices of one kernel.

    Args:
        kernel: whose.
        folder: where; None: ``tuned`` in tkpy's cache.
    """

    def __init__(self, kernel: Kernel, folder: Path | None = None):
        self.kernel, self._folder = kernel, folder

    @property
    def folder(self) -> Path:
        return self._folder or cache_dir() / "tuned"

    def path(self, call: Call, taken: frozenset[str], where: str | None = None) -> Path | None:
        """The file of such calls; None for a kernel whose source cannot be read.

        ``taken``: the tile sizes that the call gives itself, by which calls differ.
        """
        try:
            source = "".join(lines_of(self.kernel.fn)[0])
        except (OSError, TypeError):
            return None
        from tkpy.tune.candidates import knobs

        open_ = knobs(self.kernel, dict.fromkeys(taken))
        constants = {n: v for n, v in call.constants.items() if n not in open_}
        sizes = {n: 1 << max(0, math.ceil(math.log2(max(1, s)))) for n, s in call.sizes.items()}
        parts = [
            str(_FORMAT),
            fingerprint(),
            self.kernel.name,
            source,
            where or machine(call.device),
            repr(sorted(constants.items(), key=lambda kv: kv[0])),
            repr(sorted(sizes.items())),
            repr(sorted((n, d.name) for n, d in call.dtypes.items())),
            repr(sorted(call.present)),
        ]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        return self.folder / f"{self.kernel.name}-{digest}.json"

    def recall(self, path: Path | None, names: set[str]) -> Choice | None:
        """The choice in a file, if it is one for exactly these names (or warps and stages)."""
        if path is None:
            return None
        try:
            entry = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or entry.get("format") != _FORMAT:
            return None
        choice = entry.get("choice")
        if not isinstance(choice, dict) or entry.get("kernel") != self.kernel.name:
            return None
        extra = {"num_warps", "num_stages"}
        for name, value in choice.items():
            if not isinstance(value, int) or isinstance(value, bool) or name not in names | extra:
                return None
            if name in names and not (SMALLEST <= value <= _LARGEST and value % 16 == 0):
                return None
            if name == "num_warps" and value not in (1, 2, 4, 8, 16, 32):
                return None
            if name == "num_stages" and not 1 <= value <= 16:
                return None
        return choice

    def remember(self, path: Path | None, choice: Choice, seconds: float | None) -> None:
        """Writes a choice; a folder that cannot be written is no error."""
        if path is None:
            return
        entry = {
            "format": _FORMAT,
            "kernel": self.kernel.name,
            "choice": choice,
            "seconds": seconds,
        }
        with contextlib.suppress(OSError):
            write_atomic(path, json.dumps(entry))
