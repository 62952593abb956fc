"""Adding up what runs of programs have summed."""

from __future__ import annotations

import torch

#: Elements that one thread adds up sooner than PyTorch has called the others.
ALONE = 1 << 18


def added(parts: torch.Tensor, axes: int) -> torch.Tensor:
    """The sum of a new tensor over its first ``axes`` axes, the same bits every time."""
    if parts.device.type == "cpu" and parts.numel() <= ALONE:
        return torch.as_tensor(parts.flatten(0, axes - 1).numpy().sum(0))
    return parts.sum(tuple(range(axes)))
