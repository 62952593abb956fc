"""Codebooks that follow their vectors by moving averages."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.kernels.codebook import code_sums, ema_codebook, owners
from zoo.kernels.vector_quantize import TINY, nearest_code


class Codebook(nn.Module):
    """``num_codebooks`` codebooks of ``codebook_size`` codes of ``dim`` numbers, all fp32.

    embed: [H, K, D], the codes, a parameter if ``learnable_codebook``; cluster_size: [H, K] and
    embed_avg: [H, K, D], moving averages of how many vectors belong to a code and of their sum;
    initted: whether k-means has placed the codes. With several processes of torch.distributed
    statistics are summed over all of them, so that codebooks stay the same everywhere.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int,
        decay: float,
        eps: float,
        kmeans_init: bool,
        kmeans_iters: int,
        threshold_ema_dead_code: float,
        reset_cluster_size: float | None,
        use_cosine_sim: bool,
        learnable_codebook: bool,
        ema_update: bool,
    ):
        super().__init__()
        self.decay, self.eps, self.ema_update = decay, eps, ema_update
        self.kmeans_iters, self.threshold = kmeans_iters, threshold_ema_dead_code
        self.reset = threshold_ema_dead_code if reset_cluster_size is None else reset_cluster_size
        self.metric = "cosine" if use_cosine_sim else "euclidean"
        self.learnable_codebook = learnable_codebook
        embed = torch.empty(num_codebooks, codebook_size, dim)
        nn.init.kaiming_uniform_(embed)
        if use_cosine_sim:
            embed = F.normalize(embed, dim=-1)
        self.register_buffer("initted", torch.tensor(not kmeans_init))
        # Counts of one, not zero: else the first average of a rare code is 1 / eps times too long.
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        if learnable_codebook:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)

    @property
    def codes(self) -> Tensor:
        """[H, K, D] as the kernels want them, with a gradient to ``embed`` if it is learned."""
        if not self.learnable_codebook:
            return self.embed
        return F.normalize(self.embed, dim=-1) if self.metric == "cosine" else self.embed

    def lookup(self, index: Tensor) -> Tensor:
        """Codes [H, M, D] of ``index`` [H, M]; zeros for -1."""
        found = index.clamp(min=0)[..., None].expand(*index.shape, self.embed.shape[-1])
        return self.codes.gather(1, found).masked_fill(index[..., None] < 0, 0)

    @torch.no_grad()
    def start(self, x: Tensor, mask: Tensor | None) -> None:
        """Places the codes by k-means of x [H, M, D], once; ``mask``: [M], which vectors count."""
        codes = self._sample(x, mask)
        if codes is None:
            return
        for _ in range(self.kmeans_iters + 1):
            index = nearest_code(x, codes, metric=self.metric)
            n, sums = self._statistics(x, self._masked(index, mask))
            means = sums / n.clamp(min=1)[..., None]
            before, codes = codes, torch.where(n[..., None] > 0, self._unit(means), codes)
        # The statistics are those of the codes before; what is empty begins as a fresh code does.
        self.embed.data.copy_(before)
        self.cluster_size.copy_(n.clamp(min=1))
        self.embed_avg.copy_(torch.where(n[..., None] > 0, sums, before))
        self.initted.fill_(True)

    @torch.no_grad()
    def update(self, x: Tensor, index: Tensor, mask: Tensor | None) -> None:
        """Averages over x [H, M, D] that belongs to ``index`` [H, M]; resets what nothing is near.

        Without ``ema_update`` the counts alone are kept, for the resets.
        """
        if not self.ema_update and not self.threshold:
            return
        n, sums = self._statistics(x, index, sums=self.ema_update)
        if self.ema_update:
            whole = self.cluster_size.sum(-1) * self.decay + n.sum(-1) * (1 - self.decay)
            codes = ema_codebook(
                n, sums, whole, self.cluster_size, self.embed_avg, decay=self.decay, eps=self.eps,
                metric=self.metric,
            )  # fmt: skip
            self.embed.data.copy_(codes)
        else:
            self.cluster_size.lerp_(n, 1 - self.decay)
        if self.threshold:
            self._replace(x, mask)

    def _replace(self, x: Tensor, mask: Tensor | None) -> None:
        """Every code that fewer than ``threshold`` vectors chose of late becomes one of x."""
        expired = self.cluster_size < self.threshold
        if not expired.any():
            return
        found = self._sample(x, mask)
        if found is None:
            return
        self.cluster_size.masked_fill_(expired, self.reset)
        for held, new in ((self.embed.data, found), (self.embed_avg, found * self.reset)):
            held.copy_(torch.where(expired[..., None], new, held))

    def _sample(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """As many vectors of x as there are codes, different ones if there are enough."""
        codes = self.embed.shape[1]
        rows = torch.arange(x.shape[1], device=x.device) if mask is None else mask.nonzero()[:, 0]
        found = torch.zeros_like(self.embed.data)
        if len(rows):
            draw = torch.randperm(len(rows), device=x.device)[:codes]
            if len(rows) < codes:
                more = torch.randint(len(rows), (codes - len(rows),), device=x.device)
                draw = torch.cat([draw, more])
            found = self._unit(x[:, rows[draw]].float())
        if not _several():
            return found if len(rows) else None
        # One process decides for all: the first that has any.
        counts = torch.tensor([len(rows)], device=x.device)
        every = [torch.zeros_like(counts) for _ in range(dist.get_world_size())]
        dist.all_gather(every, counts)
        source = next((rank for rank, n in enumerate(every) if n > 0), None)
        if source is None:
            return None
        found = found.contiguous()
        dist.broadcast(found, source)
        return found

    def _statistics(self, x: Tensor, index: Tensor, sums: bool = True):
        """How many vectors every code has, [H, K], and their sum, [H, K, D] or None."""
        order, starts = owners(index, self.embed.shape[1])
        n, total = starts.diff().float(), None
        if sums:
            total = code_sums(x.detach(), order, starts, metric=self.metric)
        if _several():
            for part in (n, total):
                if part is not None:
                    dist.all_reduce(part)
        return n, total

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=TINY) if self.metric == "cosine" else x

    @staticmethod
    def _masked(index: Tensor, mask: Tensor | None) -> Tensor:
        return index if mask is None else index.masked_fill(~mask, -1)


def usage(index: Tensor, codebook_size: int) -> dict[str, float]:
    """How a codebook is used by ``index``, of any shape, -1 left out.

    Returns: ``used``, codes that occur; ``usage``, their share; ``perplexity``, exp of the entropy
        of their frequencies: 1 <= perplexity <= used <= codebook_size. All 0 of no index.
    Raises: ValueError for an index that is not below ``codebook_size``.
    """
    index = index.reshape(-1)
    index = index[index >= 0]
    if len(index) and int(index.max()) >= codebook_size:
        raise ValueError(f"usage: code {int(index.max())} of {codebook_size}")
    counts = torch.bincount(index, minlength=codebook_size).double()
    used = int((counts > 0).sum())
    p = counts[counts > 0] / counts.sum()
    perplexity = math.exp(-float((p * p.log()).sum())) if used else 0.0
    return {"used": used, "usage": used / codebook_size, "perplexity": perplexity}


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
