"""Modules made of the zoo's kernels, to plug into PyTorch models.

A module with a namesake in ``torch.nn`` is that class with another forward: it is constructed and
initialised like it, and each loads the other's state dict.
"""

from zoo.nn.attention import Attention, RotaryEmbedding, TaylorLinearAttention
from zoo.nn.layers import FusedCrossEntropy, LayerNorm, RMSNorm, ShortConv

__all__ = [
    "Attention",
    "FusedCrossEntropy",
    "LayerNorm",
    "RMSNorm",
    "RotaryEmbedding",
    "ShortConv",
    "TaylorLinearAttention",
]
