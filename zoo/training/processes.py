"""Several processes, one model: who is who under torchrun, and how gradients come together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from zoo.training.config import ConfigError
from zoo.training.system import System


@dataclass(frozen=True)
class Processes:
    """This process among those of a run. One alone needs no torch.distributed."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @classmethod
    def joined(cls, device: str | None = None) -> Processes:
        """Join the processes that torchrun started, if it did: NCCL on GPUs, gloo on CPUs."""
        world = int(os.environ.get("WORLD_SIZE", 1))
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if place.type == "cuda":
            if not torch.cuda.is_available():
                raise ConfigError(f"--device {device}: no GPU is visible\n  fix: --device cpu")
            if world > 1 and place.index is None:
                place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(place)
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        return cls(dist.get_rank() if world > 1 else 0, world, place)

    def leave(self) -> None:
        """Wait for the others, then part."""
        if self.world > 1 and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Tensor) -> list[Tensor]:
        """Everyone's ``value``, of one shape and type, in order of rank."""
        if self.world == 1:
            return [value]
        out = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(out, value)
        return out

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


class Objective(nn.Module):
    """A system's loss as a module around the model: what DDP and FSDP wrap.

    So a loss may call any method of the model, not its forward alone.
    """

    def __init__(self, system: System, model: nn.Module, autocast: torch.dtype | None):
        super().__init__()
        self.system, self.model, self.autocast = system, model, autocast

    def forward(self, batch: Any, device: str) -> tuple[Tensor, dict[str, Tensor]]:
        if self.autocast is None:
            return self.system.loss(self.model, batch)
        with torch.autocast(device, self.autocast):
            return self.system.loss(self.model, batch)


def joined(objective: Objective, processes: Processes, kind: str) -> nn.Module:
    """``objective`` for ``processes``: itself for one, else in DDP or sharded by FSDP2 in place."""
    if processes.world == 1:
        return objective
    if kind == "ddp":
        ids = [processes.device.index] if processes.device.type == "cuda" else None
        return DistributedDataParallel(objective, device_ids=ids)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for part in objective.system.shards(objective.model):
        fully_shard(part, mesh=mesh)
    return fully_shard(objective, mesh=mesh)


def synchronise(objective: nn.Module, wanted: bool) -> None:
    """Whether the next backward brings the gradients of all processes together."""
    if isinstance(objective, DistributedDataParallel):
        objective.require_backward_grad_sync = wanted
    elif hasattr(objective, "set_requires_gradient_sync"):
        objective.set_requires_gradient_sync(wanted)


def full(tensor: Tensor) -> Tensor:
    """A tensor that FSDP has sharded, whole; every process must ask. Others as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """``tensor``, the same in every process, on the device and in the shards of ``model``."""
    if hasattr(model, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        mesh = model.device_mesh  # type: ignore[attr-defined]
        return distribute_tensor(tensor.to(model.device), mesh, model.placements)  # type: ignore[attr-defined]
    return tensor.to(model.device)
