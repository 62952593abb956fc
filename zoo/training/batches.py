"""Which items each step sees: a function of one integer, how many items were seen before."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo.training.config import ConfigError, Preset
from zoo.training.system import Data, System


class Batches:
    """Epoch after epoch in the system's order, cut into batches and these into shares.

    ``position`` counts items since the start of training; set it to go on from there. A batch may
    reach over the end of an epoch. Process ``rank`` of ``world`` gets the rank-th part of each, in
    ``train.accumulate`` pieces. Raises ConfigError if that does not divide or there is no data.
    """

    def __init__(self, system: System, preset: Preset, data: Data, rank: int = 0, world: int = 1):
        self.system, self.train, self.data = system, preset.train, data
        pieces = world * self.train.accumulate
        if self.train.batch % pieces:
            raise ConfigError(
                f"train.batch {self.train.batch} does not divide among {world} processes with "
                f"{self.train.accumulate} pieces each\n"
                f"  fix: --set train.batch={math.ceil(self.train.batch / pieces) * pieces}"
            )
        self.piece = self.train.batch // pieces
        self.first = rank * self.train.accumulate * self.piece
        self.position = 0
        self._epoch = -1
        self._length = len(self._order(0))
        if self._length == 0:
            raise ConfigError(f"{system.name}: the training data is empty")

    @property
    def epoch(self) -> float:
        """How often the data was seen."""
        return self.position / self._length

    def indices(self) -> Tensor:
        """The items of the next batch, all of it: int64 [batch]. Does not move on."""
        parts, at, left = [], self.position, self.train.batch
        while left:
            epoch, offset = divmod(at, self._length)
            part = self._order(epoch)[offset : offset + left]
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def take(self) -> list[Any]:
        """This process's pieces of the next batch."""
        mine = self.indices()
        self.position += self.train.batch
        starts = range(self.first, self.first + self.train.accumulate * self.piece, self.piece)
        return [self._made(mine[at : at + self.piece]) for at in starts]

    def _made(self, indices: Tensor) -> Any:
        at_once = getattr(self.data, "batch", None)
        if at_once is not None:
            return at_once(indices)
        return self.system.collate([self.data[i] for i in indices.tolist()])

    def _order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            train = self.train
            order = self.system.order(self.data, epoch, train.seed, train.batch)
            if self._epoch >= 0 and len(order) != self._length:
                raise ConfigError(
                    f"{self.system.name}.order: {len(order)} items in epoch {epoch}, but "
                    f"{self._length} in epoch 0"
                )
            self._epoch, self._kept = epoch, order
        return self._kept
