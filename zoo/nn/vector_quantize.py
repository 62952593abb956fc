"""Vector quantisation: the nearest code of a codebook, with a gradient past the choice.

Arguments are called as in the package vector-quantize-pytorch, and state dicts are
interchangeable with its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.kernels.vector_quantize import MODES, vector_quantize
from zoo.nn.codebook import Codebook, usage


class VectorQuantize(nn.Module):
    """Replaces vectors of ``dim`` numbers by the nearest of ``codebook_size`` codes.

    Args:
        codebook_dim: the codes' size; other than ``dim``, linear layers stand before and after.
        decay, eps: of the codebook's moving averages (van den Oord et al., arXiv 1711.00937,
            appendix A.1).
        freeze_codebook: never changes the codes.
        kmeans_init, kmeans_iters: the first batch in training places the codes by k-means.
        use_cosine_sim: vectors and codes are of length 1; the result is a code of length 1.
        threshold_ema_dead_code: a code that fewer vectors chose of late is replaced by one of the
            batch; 0 for never. reset_cluster_size: how many then count for it, the threshold if
            None.
        channel_last: x is [..., dim], else [B, dim, ...]. accept_image_fmap: x is [B, dim, H, W].
        commitment_weight: of the mean squared distance that draws vectors to codes.
        rotation_trick: the gradient, see ``zoo.kernels.vector_quantize``: True or "rotation",
            False or "ste", "rotation_tangent", "reflection". None: rotation, but "ste" for codes
            of one number, whose rotations are signs.
        ema_update: whether codes are moving averages; by default if they are not learned.
        learnable_codebook: codes are a parameter, drawn to vectors by the loss.
        codebook_weight: of that part of the loss.
        return_zeros_for_masked_padding: what stands at masked vectors, else the input.

    Raises: ValueError for arguments that exclude each other.
    """

    groups = 1

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        use_cosine_sim: bool = False,
        threshold_ema_dead_code: float = 0,
        reset_cluster_size: float | None = None,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        commitment_weight: float = 1.0,
        rotation_trick: bool | str | None = None,
        ema_update: bool | None = None,
        learnable_codebook: bool = False,
        codebook_weight: float = 1.0,
        return_zeros_for_masked_padding: bool = True,
    ):
        super().__init__()
        codebook_dim = dim // self.groups if codebook_dim is None else codebook_dim
        ema_update = not learnable_codebook if ema_update is None else ema_update
        if dim < 1 or codebook_size < 1 or codebook_dim < 1:
            raise ValueError(f"{self._name()}: dim {dim}, {codebook_size} codes of {codebook_dim}")
        if ema_update and learnable_codebook:
            raise ValueError(
                f"{self._name()}: a codebook is learned or averaged, not both: ema_update=False"
            )
        if not 0 <= decay <= 1:
            raise ValueError(f"{self._name()}: decay is {decay}, not in 0 to 1")
        self.dim, self.codebook_size, self.codebook_dim = dim, codebook_size, codebook_dim
        self.mode = self._mode(rotation_trick)
        self.freeze_codebook, self.learnable_codebook = freeze_codebook, learnable_codebook
        self.channel_last, self.accept_image_fmap = channel_last, accept_image_fmap
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.zeros_for_masked = return_zeros_for_masked_padding
        inner = codebook_dim * self.groups
        self.project_in = nn.Linear(dim, inner) if inner != dim else nn.Identity()
        self.project_out = nn.Linear(inner, dim) if inner != dim else nn.Identity()
        self._codebook = Codebook(
            codebook_dim, codebook_size, self.groups, decay, eps, kmeans_init, kmeans_iters,
            threshold_ema_dead_code, reset_cluster_size, use_cosine_sim, learnable_codebook,
            ema_update,
        )  # fmt: skip
        #: Vectors in training that were too short, or their codes, to be rotated.
        self.register_buffer("fallbacks", torch.zeros((), dtype=torch.int64), persistent=False)

    def _name(self) -> str:
        return type(self).__name__

    def _mode(self, asked: bool | str | None) -> str:
        if asked is None:
            return "rotation" if self.codebook_dim > 1 else "ste"
        mode = {True: "rotation", False: "ste"}.get(asked, asked)
        if mode not in MODES:
            raise ValueError(f"{self._name()}: rotation_trick={asked!r} is none of {MODES}")
        if mode != "ste" and self.codebook_dim == 1:
            raise ValueError(
                f"{self._name()}: rotations of one number are signs: rotation_trick=False"
            )
        return mode

    @property
    def codebook(self) -> Tensor:
        """The codes, [K, D], of several groups [groups, K, D]."""
        codes = self._codebook.codes
        return codes[0] if self.groups == 1 else codes

    def forward(
        self, x: Tensor, mask: Tensor | None = None, freeze_codebook: bool | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantises x.

        mask: bool, x's shape without its channels; vectors where it is false become zeros, have
        index -1, and count nowhere.

        Returns:
            the codes, of x's shape and dtype; their indices, i64, of x's shape without channels,
            of several groups with one more axis of as many at the end; the loss, fp32, 0 in eval
            mode.
        Raises: ValueError for a shape that does not fit.
        """
        rows, shape = self._rows(x)
        keep = self._keep(mask, shape)
        flat = self._split(self.project_in(rows))
        book, training = self._codebook, self.training
        frozen = self.freeze_codebook if freeze_codebook is None else freeze_codebook
        if training and not frozen and not book.initted:
            book.start(flat.detach(), keep)
        codes = book.codes
        if training and not frozen:
            codes = codes.clone()  # the update must not change what the backward reads
        learned = training and self.learnable_codebook and not frozen
        q, index, commitment, *more = vector_quantize(
            flat, codes if learned else codes.detach(), mask=keep, mode=self.mode,
            metric=book.metric, **({"error": True} if learned else {}),
            **({"fallback": True} if training else {}),
        )  # fmt: skip
        loss = commitment.new_zeros(())
        if training:
            self.fallbacks += more.pop().sum()
            count = index.numel() if keep is None else self.groups * keep.sum()
            count = max(count, 1) if keep is None else count.clamp(min=1)
            loss = commitment.sum() * (self.commitment_weight / self.codebook_dim) / count
            if learned:
                loss = loss + more[0].sum() * (self.codebook_weight / self.codebook_dim) / count
            if not frozen:
                book.update(flat, index, keep)
        out = self.project_out(self._joined(q))
        if keep is not None:
            out = torch.where(keep[:, None], out, 0 if self.zeros_for_masked else rows)
        index = index[0] if self.groups == 1 else index.mT
        return self._whole(out, shape), index.reshape(*shape, *index.shape[1:]), loss

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What ``forward`` in eval mode gives where it gives these indices, channels last."""
        shape = indices.shape if self.groups == 1 else indices.shape[:-1]
        index = indices.reshape(1, -1) if self.groups == 1 else indices.flatten(0, -2).mT
        out = self.project_out(self._joined(self._codebook.lookup(index)))
        return out.reshape(*shape, self.dim)

    @torch.no_grad()
    def measure(self, x: Tensor, mask: Tensor | None = None) -> dict[str, float]:
        """How well x is quantised; changes nothing.

        Returns: ``error``, the mean of |e - q|^2; ``relative_error``, that over the mean of |e|^2;
            ``length``, the mean |e|; ``fallbacks``, the share of vectors that would not be rotated;
            and ``usage``, ``used``, ``perplexity`` as of ``zoo.nn.usage``, means over groups.
        """
        rows, shape = self._rows(x)
        keep = self._keep(mask, shape)
        flat = self._split(self.project_in(rows))
        _, index, distance, short = vector_quantize(
            flat, self._codebook.codes, mask=keep, metric=self._codebook.metric, fallback=True
        )
        e = self._codebook._unit(flat.float()).square().sum(-1)
        e = e if keep is None else e * keep
        count = max(int((index >= 0).sum()), 1)
        found = [usage(group, self.codebook_size) for group in index]
        return {
            "error": float(distance.sum()) / count,
            "relative_error": float(distance.sum() / e.sum().clamp(min=1e-30)),
            "length": float(e.sqrt().sum()) / count,
            "fallbacks": float(short.sum()) / count,
            **{n: sum(f[n] for f in found) / len(found) for n in found[0]},
        }

    # -- shapes ------------------------------------------------------------------------------

    def _last(self) -> bool:
        return self.channel_last and not self.accept_image_fmap

    def _rows(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        """Vectors [M, dim] of x, and x's shape without its channels."""
        axis = -1 if self._last() or x.dim() == 2 else 1
        wanted = 4 if self.accept_image_fmap else 2
        if x.dim() < wanted or x.shape[axis] != self.dim:
            form = "[B, {0}, H, W]" if self.accept_image_fmap else "[..., {0}]"
            form = form if self._last() or self.accept_image_fmap else "[B, {0}, ...]"
            raise ValueError(f"{self._name()}: x is {tuple(x.shape)}, not {form.format(self.dim)}")
        moved = x.movedim(axis, -1)
        return moved.reshape(-1, self.dim), moved.shape[:-1]

    def _whole(self, rows: Tensor, shape: torch.Size) -> Tensor:
        out = rows.reshape(*shape, self.dim)
        return out if self._last() or len(shape) == 1 else out.movedim(-1, 1)

    def _keep(self, mask: Tensor | None, shape: torch.Size) -> Tensor | None:
        if mask is None:
            return None
        if mask.shape != shape or mask.dtype != torch.bool:
            raise ValueError(
                f"{self._name()}: mask is {tuple(mask.shape)} {mask.dtype}, not {tuple(shape)} bool"
            )
        return mask.reshape(-1).contiguous()

    def _split(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), self.groups, self.codebook_dim).transpose(0, 1)

    def _joined(self, q: Tensor) -> Tensor:
        return q.transpose(0, 1).flatten(1)


class GroupedVQ(VectorQuantize):
    """Quantises every one of ``groups`` parts of a vector by a codebook of its own, all at once.

    ``codebook_dim`` is that of a group, dim / groups unless given. Yang et al., "HiFi-Codec"
    (arXiv 2305.02765). Raises ValueError also if ``groups`` does not divide ``dim``.
    """

    def __init__(self, dim: int, codebook_size: int, groups: int = 2, **options):
        if groups < 1 or (dim % groups and options.get("codebook_dim") is None):
            raise ValueError(f"GroupedVQ: {groups} groups of {dim} numbers")
        self.groups = groups
        super().__init__(dim, codebook_size, **options)


class ResidualVQ(nn.Module):
    """``num_quantizers`` after each other, each of what those before it left; their sum.

    Other arguments are those of ``VectorQuantize``. Zeghidour et al., "SoundStream" (arXiv
    2107.03312, section III.C).
    """

    def __init__(self, dim: int, codebook_size: int, num_quantizers: int, **options):
        super().__init__()
        if num_quantizers < 1:
            raise ValueError(f"ResidualVQ: {num_quantizers} quantisers")
        self.layers = nn.ModuleList(
            VectorQuantize(dim, codebook_size, **options) for _ in range(num_quantizers)
        )

    def forward(
        self, x: Tensor, mask: Tensor | None = None, freeze_codebook: bool | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of the codes; indices with an axis of quantisers at the end; losses [Q]."""
        total, found, losses = 0, [], []
        for layer in self.layers:
            q, index, loss = layer(x, mask, freeze_codebook)
            total, x = total + q, x - q.detach()
            found.append(index)
            losses.append(loss)
        return total, torch.stack(found, -1), torch.stack(losses)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """The sum of the codes of indices [..., Q], channels last."""
        parts = zip(self.layers, indices.unbind(-1), strict=True)
        return sum(layer.get_output_from_indices(index) for layer, index in parts)
