"""Runs in folders: begun, gone on with, finished, and models read back from them.

OUT/metrics.jsonl                 what was logged; OUT/tensorboard/ if it was asked for
OUT/checkpoints/step-00000100/    see zoo.training.checkpoint
OUT/config.json model.safetensors run.json result.json     once the run is finished
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tkpy.cli.app import NotFound
from zoo.training import checkpoint
from zoo.training.checkpoint import RUN, Run
from zoo.training.config import ConfigError, Preset, override
from zoo.training.files import LoadError, read_json, write_file, write_json
from zoo.training.log import Report
from zoo.training.pretrained import WEIGHTS, save_model
from zoo.training.processes import Processes
from zoo.training.registry import find
from zoo.training.system import Row, System
from zoo.training.trainer import Outcome, Trainer, evaluated, model_config

RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """What came of a run. loss: the last that was logged; signal: what stopped it, if one."""

    system: str
    preset: str
    reference: bool
    seed: int
    step: int
    steps: int
    seconds: float
    loss: float
    rows: list[Row]
    out: str | None
    signal: int | None = None


def train(
    name: str,
    preset_name: str,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    resume: bool = False,
    reference: bool = False,
    seed: int | None = None,
    seconds: float | None = None,
    processes: Processes | None = None,
    report: Report | None = None,
    events: bool = False,
) -> Result:
    """Train the system ``name`` by its preset ``preset_name``, changed by ``settings``.

    out: the run's folder; None keeps nothing. resume: go on with the run that it holds, if it
    holds one; settings then change what that run was given. seed: in place of the preset's.
    Raises ConfigError, NotFound and LoadError before anything is trained or written.
    """
    processes = processes or Processes()
    system = find(name)
    fresh = Run(name, preset_name, _changed(system.preset(preset_name), settings, seed), reference)
    if out is None:
        return _result(fresh, Trainer(
            system, fresh, processes=processes, report=report
        ).fit(seconds), None)  # fmt: skip
    with _alone(out, processes):
        last = checkpoint.latest(out)
        if not resume and (last is not None or (out / RUN).exists()):
            raise ConfigError(
                f"{out} holds a run already\n  fix: --resume to go on with it, or another --out"
            )
        run = fresh
        if last is not None:
            run = _resumed(last, system, fresh, settings, seed)
            if run.step >= run.preset.train.steps and (out / RESULT).exists():
                return Result(**read_json(out / RESULT))
        trainer = Trainer(
            system, run, out=out, resume=last, processes=processes, report=report, events=events
        )
        result = _result(run, trainer.fit(seconds), out)
        if processes.first and result.signal is None:
            _finish(out, system, trainer, result)
        processes.wait()
        return result


def _changed(preset: Preset, settings: Sequence[str], seed: int | None) -> Preset:
    preset = override(preset, settings)
    return preset if seed is None else override(preset, [f"train.seed={seed}"])


def _resumed(last: Path, system: System, fresh: Run, settings: Sequence[str], seed) -> Run:
    """The run that a checkpoint holds, with what may be changed of it changed."""
    run = checkpoint.read_run(last, system)
    for word in ("system", "preset_name", "reference"):
        if getattr(run, word) != getattr(fresh, word):
            raise ConfigError(
                f"{last} is of {word.removesuffix('_name')} {getattr(run, word)}, not of "
                f"{getattr(fresh, word)}\n  fix: another --out"
            )
    preset = _changed(run.preset, settings, seed)
    if preset.model != run.preset.model:
        raise ConfigError(f"{last} is of another model: its sizes cannot be changed by --set")
    return replace(run, preset=preset)


def _result(run: Run, outcome: Outcome, out: Path | None) -> Result:
    return Result(
        system=run.system,
        preset=run.preset_name,
        reference=run.reference,
        seed=run.preset.train.seed,
        step=outcome.step,
        steps=run.preset.train.steps,
        seconds=round(outcome.seconds, 3),
        loss=outcome.last.get("loss", float("nan")),
        rows=outcome.rows,
        out=None if out is None else str(out),
        signal=outcome.signal,
    )


def _finish(out: Path, system: System, trainer: Trainer, result: Result) -> None:
    """The model as from_pretrained reads it beside what it is and what it came to."""
    last = checkpoint.latest(out)
    assert last is not None
    model = trainer.model
    if trainer.processes.world > 1 and trainer.train.parallel == "fsdp":
        model, _ = _read(last, system, trainer.run.reference)
    save_model(out, model, model_config(system, model, trainer.preset))
    run = checkpoint.read_run(last, system)
    write_file(out / RUN, lambda p: write_json(p, run.as_json()))
    write_file(out / RESULT, lambda p: write_json(p, vars(result)))


@contextmanager
def _alone(out: Path, processes: Processes) -> Iterator[None]:
    """Hold a run's folder, so that no second run writes into it; raises ConfigError."""
    if not processes.first:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as e:
        raise ConfigError(f"{out} cannot be written: {e.strerror or e}") from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out} is in use by another process") from None
        yield


def new_folder(name: str, preset_name: str, processes: Processes) -> Path:
    """``runs/SYSTEM/PRESET``, with a number if that holds a run; the same for every process."""
    stem = Path("runs") / name.replace(":", ".") / preset_name
    out, number = stem, 1
    while out.exists() and any(out.iterdir()):
        number += 1
        out = stem.with_name(f"{stem.name}-{number}")
    if processes.world == 1:
        return out
    said = [str(out)]
    dist.broadcast_object_list(said, src=0)
    return Path(said[0])


# --- models of runs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """A trained model, the system that knows what to do with it, and the run that it is of."""

    system: System
    run: Run
    model: nn.Module
    folder: Path

    def evaluate(self, settings: Sequence[str] = ()) -> list[Row]:
        """The system's rows, with the run's preset changed by ``settings``."""
        preset = override(self.run.preset, settings)
        if preset.model != self.run.preset.model:
            raise ConfigError("a trained model's sizes cannot be changed by --set")
        device = next(iter(self.model.parameters())).device
        return evaluated(self.system, self.model, preset, device)


def load(path: Path, reference: bool | None = None, device: Any = None) -> Loaded:
    """The model of a run, or of one of its checkpoints; of an unfinished run the last.

    reference: the model in plain PyTorch, or by kernels, whatever trained it. Raises NotFound for
    a folder without a model, and LoadError for files that do not fit.
    """
    folder: Path | None = path
    if not (path / RUN).is_file():
        folder = checkpoint.latest(path)
    if folder is None:
        raise NotFound(
            f"{path} holds no run: there is neither {RUN} nor checkpoints/\n"
            "  fix: the folder that tkpy train --out wrote"
        )
    run = checkpoint.read_run(folder)
    system = find(run.system)
    model, _ = _read(folder, system, run.reference if reference is None else reference)
    return Loaded(system, run, model.to(device).eval(), folder)


def _read(folder: Path, system: System, reference: bool) -> tuple[nn.Module, Run]:
    run = checkpoint.read_run(folder, system)
    if not (folder / WEIGHTS).is_file():
        raise LoadError(f"{folder / WEIGHTS} cannot be read: there is no such file")
    with torch.random.fork_rng(devices=[]):
        model = system.build(run.preset.model, reference)
    checkpoint.load_model(folder, model)
    return model, run
