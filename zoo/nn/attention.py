"""Attention: exact, BASED's, and the positions of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo import functional as F


class RotaryEmbedding(nn.Module):
    """Turns q and k [B, T, H, D] by their positions (RoFormer, arXiv 2104.09864, halves).

    Args:
        dim: how much of D is turned; even. base: that of the angles' geometric series.
    """

    def __init__(self, dim: int, base: float = 10_000.0):
        super().__init__()
        if dim <= 0 or dim % 2:
            raise ValueError(f"RotaryEmbedding: dim is positive and even, not {dim}")
        self.dim, self.base = dim, base
        self._tables: tuple[Tensor, Tensor] | None = None

    def tables(self, length: int, device) -> tuple[Tensor, Tensor]:
        """cos and sin [at least ``length``, dim / 2] of every position, fp32.

        They are remembered, and twice as many made when they do not suffice, so that positions
        that come one by one cost no more than as many at once.
        """
        known = self._tables
        if known is None or len(known[0]) < length or known[0].device != device:
            if known is not None and len(known[0]) < length:
                length = max(length, 2 * len(known[0]))
            # In fp64: at position 100,000 an angle in fp32 is off by a hundredth.
            powers = torch.arange(0, self.dim, 2, device=device, dtype=torch.float64) / self.dim
            angle = torch.arange(max(length, 1), device=device)[:, None] * self.base**-powers
            self._tables = angle.cos().float(), angle.sin().float()
        return self._tables

    def forward(self, q: Tensor, k: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
        """q and k turned; ``offset``: the position of the first of either."""
        tables = self.tables(offset + max(q.shape[1], k.shape[1]), q.device)
        return F.rotary(q, *tables, offset), F.rotary(k, *tables, offset)

    def extra_repr(self) -> str:
        return f"{self.dim}, base={self.base:g}"


class Attention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` by one pass over the keys; batch first, no dropout.

    Parameters, their names and their initial values are its own. Masks are ``is_causal`` and
    ``window``: the last query is aligned with the last key, a window leaves each query the last
    ``window`` keys, its own included.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        window: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(
            embed_dim, num_heads, bias=bias, batch_first=True, device=device, dtype=dtype
        )
        self.window = window

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        need_weights: bool = False,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """([B, T, E], None) for query [B, T, E], key and value [B, S, E], or all of them query.

        Raises: ValueError for ``need_weights=True``: there is no matrix of weights to return.
        """
        if need_weights:
            raise ValueError("Attention makes no weights\n  fix: need_weights=False")
        key = query if key is None else key
        value = key if value is None else value
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            nn.functional.linear(x, w, b).unflatten(-1, (self.num_heads, self.head_dim))
            for x, w, b in zip(
                (query, key, value), self.in_proj_weight.chunk(3), biases, strict=True
            )
        )
        o = F.attention(q, k, v, causal=is_causal, window=self.window)
        return self.out_proj(o.flatten(2)), None


class TaylorLinearAttention(nn.Module):
    """BASED's linear attention as a layer: four projections around the kernel.

    Arora et al. (arXiv 2402.18668): heads have ``feature_dim`` features for q and k, and
    embed_dim / num_heads for v. Projections are initialised like ``torch.nn.Linear``.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, feature_dim: int = 16, bias: bool = False,
        device=None, dtype=None,
    ):  # fmt: skip
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}")
        if not 1 <= feature_dim <= 32:
            raise ValueError(f"feature_dim is 1 to 32, not {feature_dim}")
        self.embed_dim, self.num_heads, self.feature_dim = embed_dim, num_heads, feature_dim
        options = {"bias": bias, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, num_heads * feature_dim, **options)
        self.k_proj = nn.Linear(embed_dim, num_heads * feature_dim, **options)
        self.v_proj = nn.Linear(embed_dim, embed_dim, **options)
        self.out_proj = nn.Linear(embed_dim, embed_dim, **options)

    def forward(
        self,
        x: Tensor,
        initial_state: F.State | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, F.State | None]:
        """([B, T, E], the state or None) for x [B, T, E]; causal."""
        q, k, v = (
            p(x).unflatten(-1, (self.num_heads, -1))
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        y, state = F.taylor_linear_attention(
            q, k, v, None, initial_state, output_final_state, cu_seqlens
        )
        return self.out_proj(y.flatten(2)), state
