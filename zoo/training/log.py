"""What a run reports: rows of numbers to JSON lines and TensorBoard, and to whoever watches."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tkpy import TkError
from zoo.training.system import Row

FILE = "metrics.jsonl"


class Diverged(TkError):
    """The loss is no longer a number."""


class Report:
    """Told what happens in a run; does nothing. ``zoo.training.show`` has those that print."""

    def started(self, title: str, step: int, steps: int) -> None:
        """A run begins, or goes on, after ``step`` of ``steps``."""

    def logged(self, row: Row) -> None:
        """Numbers of one step: step, seconds, loss, lr, grad_norm and the system's metrics."""

    def stepped(self, step: int) -> None:
        """A step is done; called for each, so it must be cheap."""

    def evaluated(self, step: int, rows: list[Row]) -> None:
        """What the system found after ``step``."""

    def said(self, text: str) -> None:
        """Something that people should read."""

    def ended(self) -> None:
        """The run is over, however it went."""


class Log:
    """Collects the rows of a run. Tensors are read half a second late, so that no step waits.

    folder: where ``metrics.jsonl`` grows, None for nowhere. size: how much of an older file is
    kept, in bytes. A row is ``{"step": ..., "loss": ...}`` or ``{"step": ..., "evaluation": ...}``.
    last: the row last written. step: the last added. found: step and rows of the evaluation that
    an older file ends with.
    """

    every = 0.5  # seconds

    def __init__(self, folder: Path | None, report: Report, size: int = 0, tensorboard=None):
        self.report, self.tensorboard = report, tensorboard
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        self._flushed = time.monotonic()
        self._file = None
        self.last: Row = {}
        self.step = -1
        self.found: tuple[int, list[Row]] = (-1, [])
        if folder is not None:
            path = folder / FILE
            self._file = path.open("ab")
            if self._file.tell() > size:
                self._file.truncate(size)
                self._file.seek(size)
            self.found = _last_evaluation(path)

    def add(self, step: int, values: dict[str, Tensor | float]) -> None:
        """Numbers of a step, as scalars or tensors of one element; raises Diverged, later."""
        self.step = step
        self._waiting.append((step, values))
        if time.monotonic() - self._flushed > self.every:
            self.flush()

    def flush(self) -> None:
        """Read, write and tell what waits; raises Diverged for a loss that is no number."""
        waiting, self._waiting = self._waiting, []
        tensors = [v for _, row in waiting for v in row.values() if isinstance(v, Tensor)]
        read = iter(torch.stack([t.detach().double() for t in tensors]).tolist() if tensors else [])
        for step, values in waiting:
            row = {k: next(read) if isinstance(v, Tensor) else v for k, v in values.items()}
            self._write({"step": step} | row)
            if not math.isfinite(row.get("loss", 0.0)):
                self._end_file()
                raise Diverged(
                    f"the loss is {row['loss']} at step {step}\n"
                    "  fix: a lower train.lr, more train.warmup, or a smaller train.clip"
                )
        if self._file is not None:
            self._file.flush()
        self._flushed = time.monotonic()

    def evaluated(self, step: int, rows: list[Row]) -> None:
        """The rows that a system's evaluation gave after ``step``."""
        self.flush()
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "evaluation": rows}).encode() + b"\n")
        if self.tensorboard is not None:
            for k, row in enumerate(rows):
                label = "/".join(str(v) for v in row.values() if not isinstance(v, float)) or str(k)
                for name, value in row.items():
                    if isinstance(value, float):
                        self.tensorboard.add_scalar(f"evaluation/{label}/{name}", value, step)
        self.report.evaluated(step, rows)

    def kept(self) -> int:
        """The size of the file once all of it is on the disk, in bytes."""
        self.flush()
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Write what waits, unless the loss is no number, and close the files."""
        try:
            self.flush()
        finally:
            self._end_file()

    def _write(self, row: Row) -> None:
        self.last = row
        if self._file is not None:
            self._file.write(json.dumps(row).encode() + b"\n")
        if self.tensorboard is not None:
            for name, value in row.items():
                if name != "step":
                    self.tensorboard.add_scalar(f"train/{name}", value, row["step"])
        self.report.logged(row)

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.tensorboard is not None:
            self.tensorboard.close()
            self.tensorboard = None


def _last_evaluation(path: Path) -> tuple[int, list[Row]]:
    last = path.read_bytes().rstrip(b"\n").rpartition(b"\n")[2]
    try:
        row = json.loads(last)
        return int(row["step"]), list(row["evaluation"])
    except (ValueError, KeyError, TypeError):
        return -1, []


def tensorboard(folder: Path, step: int):
    """A writer of TensorBoard's events into ``folder``; rows after ``step`` are made void."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TkError(
            "--tensorboard needs the package tensorboard\n  fix: pip install 'tkpy[zoo]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1)
