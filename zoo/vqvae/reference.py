"""The same quantiser and model in plain PyTorch, to be read beside the papers.

The distances of all vectors to all codes are made, and R as the two products of the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.vqvae import model


def rotate_to(e: Tensor, q: Tensor) -> Tensor:
    """q [..., D] as |q| / |e| R e, in which only the last e is not a constant (algorithm 1)."""
    length_e, length_q = e.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
    usable = (length_e >= 1e-4) & (length_q >= 1e-4)  # else the direction is noise
    e_hat = (e / length_e).detach()
    q_hat = (q / length_q).detach()
    r = F.normalize(e_hat + q_hat, dim=-1)
    turned = e - 2 * r * (r * e).sum(-1, keepdim=True) + 2 * q_hat * (e_hat * e).sum(-1, True)
    scaled = turned * (length_q / length_e).detach()
    return torch.where(usable, scaled, straight_through(e, q))


def straight_through(e: Tensor, q: Tensor) -> Tensor:
    """q with the gradient of e."""
    return e + (q - e).detach()


class Codebook(nn.Module):
    """Codes [1, K, D], and the averages that they are made of."""

    def __init__(self, dim: int, size: int, cosine: bool, learned: bool):
        super().__init__()
        embed = torch.empty(1, size, dim)
        nn.init.kaiming_uniform_(embed)
        embed = F.normalize(embed, dim=-1) if cosine else embed
        self.register_buffer("initted", torch.tensor(True))
        self.register_buffer("cluster_size", torch.ones(1, size))
        self.register_buffer("embed_avg", embed.clone())
        if learned:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)


class VectorQuantize(nn.Module):
    """``zoo.nn.VectorQuantize`` of images, without its kernels. Same arguments, same state dict."""

    def __init__(
        self, dim, codebook_size, decay, use_cosine_sim, commitment_weight, rotation_trick,
        learnable_codebook, threshold_ema_dead_code, kmeans_init, accept_image_fmap, eps=1e-5,
    ):  # fmt: skip
        super().__init__()
        if kmeans_init or rotation_trick not in ("rotation", "ste"):
            raise ValueError("the reference rotates or goes straight through, without k-means")
        self._codebook = Codebook(dim, codebook_size, use_cosine_sim, learnable_codebook)
        self.decay, self.eps, self.threshold = decay, eps, threshold_ema_dead_code
        self.cosine, self.learned = use_cosine_sim, learnable_codebook
        self.weight = commitment_weight
        self.pass_gradient = rotate_to if rotation_trick == "rotation" else straight_through

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        book, rows = self._codebook, x.movedim(1, -1)
        e = rows.reshape(-1, x.shape[1])
        codes = book.embed[0]
        if self.cosine:
            e, codes = F.normalize(e, dim=-1, eps=1e-4), F.normalize(codes, dim=-1)
        index = torch.cdist(e.detach(), codes.detach()).argmin(-1)
        q = codes[index] if self.learned else codes.detach()[index]
        loss = e.new_zeros(())
        out = q
        if self.training:
            loss = self.weight * F.mse_loss(e, q.detach())
            if self.learned:
                loss = loss + F.mse_loss(q, e.detach())
            else:
                self.update(e.detach(), index)
            out = self.pass_gradient(e, q.detach())
        shape = rows.shape
        return out.view(shape).movedim(-1, 1), index.view(shape[:-1]), loss

    @torch.no_grad()
    def update(self, e: Tensor, index: Tensor) -> None:
        """Moving averages of counts and sums (arXiv 1711.00937, appendix A.1), then resets."""
        book = self._codebook
        mine = F.one_hot(index, book.embed.shape[1]).to(e)
        book.cluster_size.lerp_(mine.sum(0)[None], 1 - self.decay)
        book.embed_avg.lerp_((mine.T @ e)[None], 1 - self.decay)
        total = book.cluster_size.sum()
        size = (book.cluster_size + self.eps) / (total + mine.shape[1] * self.eps) * total
        codes = book.embed_avg / size[..., None]
        book.embed.copy_(F.normalize(codes, dim=-1) if self.cosine else codes)
        expired = book.cluster_size < self.threshold
        if expired.any():
            # e itself would be another sample: the draws are those of zoo.nn.codebook.
            rows = torch.arange(len(e))
            draw = torch.randperm(len(rows))[: mine.shape[1]]
            if len(rows) < mine.shape[1]:
                draw = torch.cat([draw, torch.randint(len(rows), (mine.shape[1] - len(rows),))])
            book.embed[expired] = e[draw][expired[0]]
            book.embed_avg[expired] = e[draw][expired[0]] * self.threshold
            book.cluster_size[expired] = self.threshold


def _none(*_, **__):
    raise ValueError("the reference has one quantiser")


class VQVAE(model.VQVAE):
    """The model with that quantiser; each loads the other's weights."""

    quantizer = VectorQuantize
    grouped = residual = staticmethod(_none)
