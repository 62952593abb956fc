"""Normalisation, the short convolution and the loss."""

from __future__ import annotations

from torch import Tensor, nn

from zoo import functional as F


class RMSNorm(nn.RMSNorm):
    """``torch.nn.RMSNorm`` by one kernel, statistics in fp32. x: [..., *normalized_shape].

    With a ``residual`` of x's shape: (the norm of x + residual, that sum).
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        weight = self.weight if self.weight is not None else x.new_ones(self.normalized_shape)
        return F.rms_norm(x, weight, self.eps, residual)


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm`` by one kernel, statistics in fp32. x: [..., *normalized_shape].

    With a ``residual`` of x's shape: (the norm of x + residual, that sum).
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        weight = self.weight if self.weight is not None else x.new_ones(self.normalized_shape)
        return F.layer_norm(x, weight, self.bias, self.eps, residual)


class ShortConv(nn.Conv1d):
    """Causal depthwise convolution of x [B, T, D], channels last, D = ``hidden_size``.

    Parameters, their names and their initial values are those of ``torch.nn.Conv1d(D, D,
    kernel_size, groups=D, padding=kernel_size - 1)``.

    Args:
        kernel_size: 2 to 4.
        activation: None or "silu", applied to the sum.
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int = 4,
        bias: bool = False,
        activation: str | None = None,
        device=None,
        dtype=None,
    ):
        if not 2 <= kernel_size <= 4:
            raise ValueError(f"ShortConv: kernel_size is 2, 3 or 4, not {kernel_size}")
        super().__init__(
            hidden_size, hidden_size, kernel_size, groups=hidden_size, padding=kernel_size - 1,
            bias=bias, device=device, dtype=dtype,
        )  # fmt: skip
        self.activation = activation

    def forward(
        self,
        x: Tensor,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        gate: Tensor | None = None,
        skip: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(y [B, T, D], the state or None); see ``zoo.functional.short_conv``."""
        return F.short_conv(
            x, self.weight[:, 0], self.bias, self.activation, initial_state, output_final_state,
            cu_seqlens, gate, skip,
        )  # fmt: skip


class FusedCrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy of x [..., D] against a head's ``weight`` [V, D], without making the logits.

    Called without a weight it takes logits [..., V] themselves. The classes are the last axis,
    where ``torch.nn.CrossEntropyLoss`` has them second; for [M, V] that is the same. Options as
    there, but weights of classes, which there are none of; ``softcap`` and ``z_loss`` are of
    ``zoo.kernels.linear_cross_entropy``.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        softcap: float | None = None,
        z_loss: float | None = None,
    ):
        super().__init__(
            ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )
        self.softcap, self.z_loss = softcap, z_loss

    def forward(
        self, x: Tensor, target: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        if weight is not None:
            return F.linear_cross_entropy(
                x, weight, target, bias, self.ignore_index, self.label_smoothing, self.softcap,
                self.z_loss, self.reduction,
            )  # fmt: skip
        if self.label_smoothing or self.softcap is not None or self.z_loss is not None:
            raise ValueError(
                "FusedCrossEntropy: label_smoothing, softcap and z_loss need the head's weight"
            )
        if bias is not None:
            raise ValueError("FusedCrossEntropy: a bias without the head's weight")
        return F.cross_entropy(x, target, self.ignore_index, self.reduction)
