"""Modules made of the zoo's kernels, to plug into PyTorch models.

A module with a namesake in ``torch.nn`` is that class with another forward: it is constructed and
initialised like it, and each loads the other's state dict.
"""

from zoo.nn.attention import Attention, RotaryEmbedding, TaylorLinearAttention
from zoo.nn.codebook import usage
from zoo.nn.layers import FusedCrossEntropy, LayerNorm, RMSNorm, ShortConv
from zoo.nn.vector_quantize import GroupedVQ, ResidualVQ, VectorQuantize

__all__ = [
    "Attention",
    "FusedCrossEntropy",
    "GroupedVQ",
    "LayerNorm",
    "RMSNorm",
    "ResidualVQ",
    "RotaryEmbedding",
    "ShortConv",
    "TaylorLinearAttention",
    "VectorQuantize",
    "usage",
]
