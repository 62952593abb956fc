"""Images that ship with scikit-learn: nothing is downloaded.

digits: 1797 handwritten digits of 8x8, from the Optical Recognition of Handwritten Digits data set
of the UCI repository (E. Alpaydin, C. Kaynak, CC BY 4.0), 1437 to train on and 360 to test.
photos: patches of the two photographs china.jpg and flower.jpg (CC BY, see the README beside them
in scikit-learn), of which the rightmost fifth is for testing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tkpy import TkError


@dataclass(frozen=True)
class Images:
    """Which images. ``side``: of the photographs' patches, a multiple of 4."""

    source: Literal["digits", "photos"] = "digits"
    side: int = 16


class Tensors:
    """Images [N, C, H, W], fp32, 0 to 1, with their classes or None."""

    def __init__(self, images: Tensor, labels: Tensor | None = None):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def batch(self, indices: Tensor) -> Tensor:
        """Images of ``indices`` [n]."""
        return self.images[indices]


def split(config: Images) -> tuple[Tensors, Tensors]:
    """What to train on, and what to test on. Raises TkError without scikit-learn."""
    try:
        import sklearn.datasets  # noqa: F401
    except ImportError:
        raise TkError(
            "the images of zoo.vqvae ship with scikit-learn\n  fix: pip install 'tkpy[zoo]'"
        ) from None
    return _digits() if config.source == "digits" else _photos(config.side)


@functools.cache
def _digits() -> tuple[Tensors, Tensors]:
    from sklearn.datasets import load_digits

    made = load_digits()
    images = torch.from_numpy(made.images).float()[:, None] / 16
    labels = torch.from_numpy(made.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return Tensors(images[train], labels[train]), Tensors(images[test], labels[test])


@functools.cache
def _photos(side: int) -> tuple[Tensors, Tensors]:
    from sklearn.datasets import load_sample_image

    train, test = [], []
    for name in ("china.jpg", "flower.jpg"):
        photo = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1).float() / 255
        patches = photo.unfold(1, side, side).unfold(2, side, side)  # [3, down, across, side, side]
        cut = patches.shape[2] * 4 // 5
        for kept, part in ((train, patches[:, :, :cut]), (test, patches[:, :, cut:])):
            kept.append(part.permute(1, 2, 0, 3, 4).flatten(0, 1))
    return Tensors(torch.cat(train)), Tensors(torch.cat(test))
