"""Free points in the plane, quantised, that descend a function of their codes.

Fifty et al. (arXiv 2410.06424, appendix A.2): nothing is encoded or decoded, so that the gradient
past the choice of a code is all that moves a point. Himmelblau's function, (x^2 + y - 11)^2 +
(x + y^2 - 7)^2, has four minima of 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.kernels.vector_quantize import vector_quantize
from zoo.nn import VectorQuantize


@dataclass(frozen=True)
class Outcome:
    """Where points and codes end, [points, 2] and [codes, 2]; means of f over the points' codes and
    of |e - q|^2, one a step, the start included."""

    points: Tensor
    codes: Tensor
    values: list[float]
    distortions: list[float]


def himmelblau(p: Tensor) -> Tensor:
    """f of points [..., 2]."""
    x, y = p.unbind(-1)
    return (x * x + y - 11) ** 2 + (x + y * y - 7) ** 2


def descend(
    gradient: str, seed: int = 0, points: int = 256, codes: int = 16, steps: int = 100,
    lr: float = 1e-3,
) -> Outcome:  # fmt: skip
    """``steps`` of plain gradient descent, codes by moving averages with decay 0.8.

    Points start evenly spread over [-5, 5]^2 and codes at some of them; the same for every
    ``gradient`` (see ``zoo.kernels.vector_quantize``).
    """
    g = torch.Generator().manual_seed(seed)
    at = torch.rand(points, 2, generator=g) * 10 - 5
    vq = VectorQuantize(2, codes, decay=0.8, rotation_trick=gradient, commitment_weight=0)
    start = at[torch.randperm(points, generator=g)[:codes]].clone()
    vq._codebook.embed.copy_(start)
    vq._codebook.embed_avg.copy_(start)
    values, distortions = [], []
    for step in range(steps + 1):
        at.requires_grad_()
        q, _, distance = vector_quantize(at[None].detach(), vq._codebook.embed)
        values.append(float(himmelblau(q).mean()))
        distortions.append(float(distance.mean()))
        if step < steps:
            himmelblau(vq(at)[0]).sum().backward()
            at = (at - lr * at.grad).detach()
    return Outcome(at.detach(), vq.codebook.clone(), values, distortions)
