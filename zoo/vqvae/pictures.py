"""Pictures of README.md: reconstructions, codebooks, and the toy's points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from zoo.vqvae.himmelblau import descend, himmelblau
from zoo.vqvae.model import VQVAE

GREY, BLUE, RED = "#c4c8cc", "#1f5fa8", "#c8402a"


@torch.no_grad()
def reconstructions(
    models: Mapping[str, Path], images: Tensor, path: Path, count: int = 16
) -> None:
    """Images [N, 1, H, W] above what every model makes of them."""
    from matplotlib.figure import Figure

    rows = {"images": images[:count]}
    for name, folder in models.items():
        rows[name] = VQVAE.from_pretrained(folder)(images[:count]).image
    figure = Figure(figsize=(0.6 * count + 2.4, 0.62 * len(rows)), dpi=120)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, shown) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, shown, strict=True):
            axes.imshow(image[0], cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
        line[0].text(-0.25, 0.5, name, ha="right", va="center", transform=line[0].transAxes)
    figure.subplots_adjust(left=0.2, right=0.995, top=0.99, bottom=0.01, wspace=0.06, hspace=0.06)
    figure.savefig(path)


@torch.no_grad()
def codebooks(models: Mapping[str, Path], images: Tensor, path: Path) -> None:
    """Latent vectors of images and all codes, on the two main axes of the vectors."""
    from matplotlib.figure import Figure

    columns = min(4, len(models))
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.3 * rows), dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, folder) in zip(grid.flat, models.items(), strict=False):
        model = VQVAE.from_pretrained(folder)
        out = model(images)
        e = out.latent.movedim(1, -1).flatten(0, -2)
        codes = model.vq.codebook
        middle = e.mean(0)
        _, _, main = torch.linalg.svd(e - middle, full_matrices=False)
        flat, places = (e - middle) @ main[:2].T, (codes - middle) @ main[:2].T
        used = torch.zeros(len(codes), dtype=torch.bool)
        used[out.index.unique()] = True
        axes.set_axis_on()
        axes.scatter(*flat.T, s=1.5, color=GREY, linewidths=0)
        axes.scatter(*places[~used].T, s=14, color=RED, marker="x", linewidths=0.9)
        axes.scatter(*places[used].T, s=9, color=BLUE, linewidths=0)
        axes.set_title(f"{name}\n{int(used.sum())} of {len(codes)} codes used", fontsize=9)
        axes.tick_params(labelsize=7)
    figure.suptitle("vectors (grey), codes in use (blue) and not (red crosses)", fontsize=9)
    figure.savefig(path)


def descent(path: Path, seed: int = 0) -> None:
    """Where points and codes of the toy are after their descent, and f on the way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.5), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    line = torch.linspace(-6, 6, 121)
    height = himmelblau(torch.stack(torch.meshgrid(line, line, indexing="xy"), -1))
    for axes, gradient, name in (
        (left, "ste", "straight through"), (middle, "rotation", "rotation"),
    ):  # fmt: skip
        o = descend(gradient, seed)
        axes.contour(line, line, (height + 1).log(), 14, colors=GREY, linewidths=0.6)
        axes.scatter(*o.points.T, s=4, color=GREY)
        axes.scatter(*o.codes.T, s=22, color=BLUE)
        axes.set(title=name, xlim=(-6, 6), ylim=(-6, 6), aspect="equal")
        color = RED if gradient == "ste" else BLUE
        right.plot(o.values, color=color, label=f"{name}: f of the codes")
        right.plot(o.distortions, color=color, linestyle=":", label=f"{name}: distortion")
    right.set(xlabel="step", yscale="log")
    right.set_ylim(top=2000)
    right.legend(fontsize=7, loc="upper right")
    figure.savefig(path)
