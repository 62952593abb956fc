"""What a system of the zoo tells the trainer: its models, data, loss and what it can show.

A system is a folder ``zoo/<name>/`` whose ``system.py`` subclasses ``System`` and holds one
instance, ``system``. ``zoo.systems()`` names the modules, other packages theirs: whatever is
registered under the entry-point group ``tkpy.zoo`` may have ``systems()``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from tkpy import TkError
from zoo.training.config import ConfigError, Preset, Train, from_json, unknown

#: A row of an evaluation: names to numbers or texts, the same names in every row of a table.
Row = dict[str, Any]


class Unsupported(TkError):
    """Something that a system cannot do, such as generating."""


class Data(Protocol):
    """What is trained on: map-style, as torch.utils.data.Dataset.

    An item depends on the preset and the index only, never on what was drawn before: then a run
    can go on anywhere. Data held in tensors should also have ``batch(indices)``, with
    ``indices`` int64 [n], the same as ``collate([data[i] for i in indices])`` in one indexing.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Request:
    """What ``tkpy generate`` asks for; a system takes what it has a meaning for."""

    prompt: str = ""
    tokens: int = 200
    samples: int = 1
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


class System:
    """Subclass it, set the four names, write ``build``, ``data`` and ``loss``.

    What is random in a model or a loss draws from torch's default generators alone: their states
    are saved, those of numpy and random are not. State that gradients do not reach, such as moving
    averages, lies in persistent buffers. With several processes every one of them calls ``loss``
    on its share of a batch and ``on_step``; buffers must come out the same everywhere (all-reduce
    statistics where they are made).
    """

    name: ClassVar[str]
    #: The frozen dataclasses of ``Preset.model`` and ``Preset.data``.
    model_config: ClassVar[type]
    data_config: ClassVar[type]
    presets: ClassVar[Mapping[str, Preset]]

    # --- must be written ---

    def build(self, config: Any, reference: bool = False) -> nn.Module:
        """A model with fresh weights from torch's generator; ``reference``: in plain PyTorch.

        Both have the same state dict, so that either loads what the other saved, and draw the same
        weights from one seed. Must work under ``torch.device("meta")``.
        """
        raise NotImplementedError

    def data(self, preset: Preset) -> Data:
        """What the model is trained on. ``preset.train.seed`` may decide it."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, a mean over ``weight(batch)`` terms, and metrics to log.

        Metrics are scalars, detached, averaged like the loss. Avoid ``.item()`` here: it waits.
        """
        raise NotImplementedError

    # --- may be written ---

    def evaluate(self, model: nn.Module, preset: Preset) -> list[Row]:
        """What is known of the model on data that it was not trained on, a row a line of a table.

        Called in eval mode, without gradients; it may draw random numbers, training sees none of
        it. The same model and preset must give the same rows.
        """
        return []

    def generate(self, model: nn.Module, preset: Preset, request: Request) -> Iterable[str]:
        """Pieces of text as they come about, joined without anything between them."""
        raise Unsupported(f"{self.name} generates nothing")

    def collate(self, items: Sequence[Any]) -> Any:
        """Items as a batch: tensors in any nest of tuples, lists and dicts."""
        return default_collate(items)

    def weight(self, batch: Any) -> Tensor | float:
        """Of how many terms ``loss`` is the mean: items, or labelled positions where they vary.

        Accumulation and processes weigh their shares by it, so that the sum is the mean over the
        whole batch. Asked only where there is more than one share.
        """
        return float(_first_tensor(batch).shape[0])

    def order(self, data: Data, epoch: int, seed: int, batch: int) -> Tensor:
        """Indices of an epoch, int64, as many in every epoch: by default a permutation.

        Batches of ``batch`` are cut from epoch after epoch. Override to keep like lengths together
        or to walk a curriculum; it may depend on the arguments alone.
        """
        generator = torch.Generator().manual_seed(mixed(seed, epoch))
        return torch.randperm(len(data), generator=generator)

    def parameter_groups(self, model: nn.Module, train: Train) -> list[dict[str, Any]]:
        """For AdamW. Decay applies to matrices; to vectors too with ``train.decay_all``.

        A group may have an ``lr_scale``, by which the schedule's rate is multiplied.
        """
        every = [p for p in model.parameters() if p.requires_grad]
        decayed = [p for p in every if train.decay_all or p.ndim >= 2]
        kept = {id(p) for p in decayed}
        rest = [p for p in every if id(p) not in kept]
        groups = [
            {"params": decayed, "weight_decay": train.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        return [g for g in groups if g["params"]]

    def on_step(self, model: nn.Module, step: int) -> dict[str, Tensor] | None:
        """Called after the optimizer's step ``step`` (from 1); may return more metrics to log."""

    def shards(self, model: nn.Module) -> Iterable[nn.Module]:
        """Modules that FSDP gathers one at a time; each must be run by calling it."""
        return ()

    # --- as it is ---

    def preset(self, name: str) -> Preset:
        """The preset of that name; raises ConfigError with the nearest names."""
        if name not in self.presets:
            raise ConfigError(unknown(f"preset {name!r} of {self.name}", name, self.presets))
        return self.presets[name]

    def preset_from_json(self, value: Any) -> Preset:
        """A preset from what ``to_json`` made of one; raises ConfigError."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"a preset is an object, not {value!r}")
        raw = from_json(Preset, value)
        return Preset(
            from_json(self.model_config, raw.model, "model"),
            from_json(self.data_config, raw.data, "data"),
            raw.train,
            raw.about,
        )


def _first_tensor(batch: Any) -> Tensor:
    if isinstance(batch, Tensor):
        return batch
    for part in batch.values() if isinstance(batch, Mapping) else batch:
        return _first_tensor(part)
    raise TypeError("a batch without tensors: write System.weight")


def mixed(*numbers: int) -> int:
    """One seed of several numbers: splitmix64 over them, so that neighbours are unrelated."""
    state = 0
    for n in numbers:
        state = (state ^ n) + 0x9E3779B97F4A7C15
        z = state & (2**64 - 1)
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state = z ^ (z >> 31)
    return state & (2**63 - 1)
