"""Checkpoints: all that a run needs to go on as if it had not stopped, in folders that are whole.

    OUT/checkpoints/step-00000100/
      config.json  model.safetensors   the model, as from_pretrained reads it
      optimizer.safetensors            NAME.exp_avg, NAME.exp_avg_sq, NAME.step
      random.safetensors               states of torch's generators, a process each, as bytes
      run.json                         system, preset, step, position in the data

A folder gets its name when all of it is on the disk, and the one before is deleted after that.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.training.config import ConfigError, Preset, to_json
from zoo.training.files import (
    UNFINISHED,
    LoadError,
    read_json,
    read_tensors,
    write_folder,
    write_json,
    write_tensors,
)
from zoo.training.pretrained import CONFIG, WEIGHTS, load_weights, write_weights
from zoo.training.processes import full, like
from zoo.training.system import System

FORMAT = 1
RUN, OPTIMIZER, RANDOM = "run.json", "optimizer.safetensors", "random.safetensors"


@dataclass(frozen=True)
class Run:
    """What a run is, and how far it has come: ``run.json``.

    system: the name that finds it. position: items of the data that were seen. log: bytes of
    metrics.jsonl that belong to it. seconds: spent, evaluation included.
    """

    system: str
    preset_name: str
    preset: Preset
    reference: bool = False
    step: int = 0
    position: int = 0
    log: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        fields = {k: v for k, v in vars(self).items() if k != "preset"}
        return {"format": FORMAT, **fields, "preset": to_json(self.preset)}


def read_run(folder: Path, system: System | None = None) -> Run:
    """``run.json`` of a checkpoint or a finished run; raises LoadError.

    system: whose presets it holds; found by its name if absent.
    """
    path = folder / RUN
    raw = read_json(path)
    if raw.pop("format", None) != FORMAT:
        raise LoadError(f"{path} is not of format {FORMAT}, the one that this version reads")
    kinds = {
        "system": str, "preset_name": str, "preset": dict, "reference": bool,
        "step": int, "position": int, "log": int, "seconds": (int, float),
    }  # fmt: skip
    wrong = [k for k, kind in kinds.items() if not isinstance(raw.get(k), kind)]
    wrong += [k for k in raw if k not in kinds]
    if wrong:
        raise LoadError(f"{path}: {', '.join(wrong)} missing, unknown or of another type")
    if system is None:
        from zoo.training.registry import find

        system = find(raw["system"])
    try:
        return Run(**raw | {"preset": system.preset_from_json(raw["preset"])})
    except ConfigError as e:
        raise LoadError(f"{path}: {e}") from None


def folder_of(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08}"


def latest(out: Path) -> Path | None:
    """The last checkpoint of a run that is whole, if there is one."""
    found = sorted((out / "checkpoints").glob("step-*"))
    return found[-1] if found else None


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, whole; with FSDP every process must ask."""
    return {name: full(t) for name, t in model.state_dict().items()}


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """``NAME.exp_avg`` and the like, whole; with FSDP every process must ask."""
    out = {}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            out[f"{name}.{key}"] = full(value)
    return out


def random_state(device: torch.device) -> dict[str, Tensor]:
    """States of this process's generators, uint8."""
    out = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        out["cuda"] = torch.cuda.get_rng_state(device)
    return out


def write(
    out: Path,
    run: Run,
    model: Mapping[str, Tensor],
    config: Mapping[str, Any],
    optimizer: Mapping[str, Tensor],
    random: Mapping[str, Tensor],
) -> Path:
    """A new checkpoint of ``out``; the others are deleted once it is whole."""

    def files(folder: Path) -> None:
        write_weights(folder / WEIGHTS, model)
        write_json(folder / CONFIG, config)
        write_tensors(folder / OPTIMIZER, optimizer)
        write_tensors(folder / RANDOM, random)
        write_json(folder / RUN, run.as_json())

    path = folder_of(out, run.step)
    if not path.exists():
        write_folder(path, files)
    for other in path.parent.glob("step-*"):
        if other != path:
            shutil.rmtree(other.rename(other.with_name(UNFINISHED + other.name)))
    return path


def load_model(folder: Path, model: nn.Module) -> None:
    """The weights of a checkpoint into a model that is not sharded; raises LoadError."""
    load_weights(model, folder / WEIGHTS)


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """AdamW's averages for every parameter, sharded as it is; raises LoadError."""
    path = folder / OPTIMIZER
    found, _ = read_tensors(path)
    states: dict[Tensor, dict[str, Tensor]] = {}
    for name, p in model.named_parameters():
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            tensor = found.pop(f"{name}.{key}", None)
            if tensor is None:
                continue
            shape = torch.Size() if key == "step" else p.shape
            if tensor.shape != shape:
                raise LoadError(f"{path}: {name}.{key} is {list(tensor.shape)}, not {list(shape)}")
            state[key] = tensor.to(p.device) if key == "step" else like(tensor, p)
        if state and len(state) < 3:
            raise LoadError(f"{path} has not all of {name}'s averages")
        if state:
            states[p] = state
    if found:
        raise LoadError(f"{path} is of another model: it has {next(iter(found))}")
    optimizer.state.update(states)


def load_random(folder: Path, rank: int, device: torch.device) -> bool:
    """Set this process's generators; False if the run that was saved had fewer processes."""
    path = folder / RANDOM
    found, _ = read_tensors(path)
    if f"cpu.{rank}" not in found:
        return False
    try:
        torch.set_rng_state(found[f"cpu.{rank}"])
        if device.type == "cuda" and f"cuda.{rank}" in found:
            torch.cuda.set_rng_state(found[f"cuda.{rank}"], device)
    except (RuntimeError, TypeError) as e:
        raise LoadError(f"{path}: {e}") from None
    return True
