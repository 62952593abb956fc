"""BASED in plain PyTorch, to be read beside the paper (arXiv 2402.18668) and to hold ours against.

The same parameters under the same names as ``zoo.based.model``: each loads the other's state dict,
and one seed gives both the same weights. Linear attention comes in three forms, equations as in
section 4 of the paper: quadratic, in chunks with a state, and one position at a time.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.based.config import BasedConfig, Layer
from zoo.based.model import initialise
from zoo.training.pretrained import Pretrained

Form = Literal["quadratic", "chunked"]

# --- Taylor linear attention: q, k [B, H, N, f]; v [B, H, N, d] -----------------------------------


def feature_map(x: Tensor) -> Tensor:
    """phi(x) = [1, x / f^(1/4), vec(x x^T) / sqrt(2 f)], 1 + f + f^2 numbers for the f of x.

    phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(f), the exponential to second order.
    """
    f = x.shape[-1]
    second = (x[..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(2 * f)
    return torch.cat([torch.ones_like(x[..., :1]), x / f**0.25, second], -1)


def compressed_map(x: Tensor) -> Tensor:
    """The same kernel from 1 + f + f (f + 1) / 2 numbers: x_i x_j once for i < j."""
    f = x.shape[-1]
    i, j = torch.triu_indices(f, f, device=x.device)
    weight = torch.where(i == j, 0.5**0.5, x.new_ones(())) / f**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x / f**0.25, x[..., i] * x[..., j] * weight], -1)


def weights(q: Tensor, k: Tensor) -> Tensor:
    """1 + s + s^2 / 2 of every query with every key; at least 1/2."""
    s = q @ k.mT * q.shape[-1] ** -0.5
    return 1 + s + s * s / 2


def quadratic(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = weights(q, k).tril()
    return a @ v / a.sum(-1, keepdim=True)


def chunked(q: Tensor, k: Tensor, v: Tensor, chunk: int = 64) -> Tensor:
    """Quadratic within chunks, a running sum of phi(k) v^T for all that came before."""
    n = v.shape[2]
    pad = -n % chunk
    # The last column of v counts: its weighted sum is the denominator. Zeros there make dead keys
    # weigh nothing, though phi(0) is not 0.
    v = F.pad(torch.cat([v, torch.ones_like(v[..., :1])], -1), (0, 0, 0, pad))
    q, k = (F.pad(x, (0, 0, 0, pad)) for x in (q, k))
    q, k, v = (x.unflatten(2, (-1, chunk)) for x in (q, k, v))
    within = weights(q, k).tril() @ v
    sums = feature_map(k).mT @ v
    before = sums.cumsum(2) - sums
    y = (within + feature_map(q) @ before).flatten(2, 3)[:, :, :n]
    return y[..., :-1] / y[..., -1:]


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, state: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """y and (S, z), the sums of phi(k) v^T and of phi(k), after a step for each position."""
    features, out = 1 + k.shape[-1] + k.shape[-1] ** 2, []
    if state is None:
        s = v.new_zeros(*v.shape[:2], features, v.shape[-1])
        state = s, s.new_zeros(*v.shape[:2], features)
    s, z = state
    for t in range(v.shape[2]):
        pq, pk = feature_map(q[:, :, t]), feature_map(k[:, :, t])
        s = s + pk[..., :, None] * v[:, :, t, None, :]
        z = z + pk
        out.append((pq[..., None, :] @ s)[..., 0, :] / (pq * z).sum(-1, keepdim=True))
    return torch.stack(out, 2), (s, z)


# --- exact attention ------------------------------------------------------------------------------


def turned(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions on x [B, H, N, D]: halves, as in GPT-NeoX (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    power = torch.arange(half, device=x.device, dtype=torch.float64) / half
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * base**-power
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def windowed(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Softmax attention to the last ``window`` keys, a query's own included, or to all before."""
    if window is None or window >= q.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    back = torch.arange(q.shape[2], device=q.device)
    back = back[:, None] - back
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(back >= 0) & (back < window))


# --- the modules ----------------------------------------------------------------------------------


class ShortConv(nn.Module):
    def __init__(self, c: BasedConfig):
        super().__init__()
        self.skip, self.taps = c.conv == "skip", c.taps
        channels = c.width if self.skip else 2 * c.width
        self.in_proj = nn.Linear(c.width, c.width if self.skip else 4 * c.width)
        self.conv = nn.Conv1d(
            channels, channels, c.taps, groups=channels, padding=c.taps - 1, bias=self.skip
        )
        if not self.skip:
            self.out_proj = nn.Linear(2 * c.width, c.width)

    def forward(self, x: Tensor) -> Tensor:
        if self.skip:
            return self._convolved(x) * self.in_proj(x) + x
        value, gate = self.in_proj(x).chunk(2, -1)
        return self.out_proj(F.silu(self._convolved(value)) * gate)

    def _convolved(self, x: Tensor) -> Tensor:
        """A few shifted products: twice as fast on a CPU as a grouped ``Conv1d``."""
        n, past = x.shape[1], F.pad(x, (0, 0, self.taps - 1, 0))
        taps = self.conv.weight[:, 0]
        y = past[:, :n] * taps[:, 0]
        for t in range(1, self.taps):
            y = y + past[:, t : t + n] * taps[:, t]
        return y if self.conv.bias is None else y + self.conv.bias


class LinearAttention(nn.Module):
    def __init__(self, c: BasedConfig, form: Form):
        super().__init__()
        self.heads, self.sizes = c.heads, [c.heads * c.features] * 2 + [c.width]
        self.form = {"quadratic": quadratic, "chunked": chunked}[form]
        self.qkv_proj = nn.Linear(c.width, sum(self.sizes), bias=False)
        self.out_proj = nn.Linear(c.width, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv_proj(x).split(self.sizes, -1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        return self.out_proj(self.form(q, k, v).transpose(1, 2).flatten(2))


class Attention(nn.Module):
    def __init__(self, c: BasedConfig, window: int | None):
        super().__init__()
        self.heads, self.window, self.rotary = c.heads, window, c.rotary
        self.qkv_proj = nn.Linear(c.width, 3 * c.width, bias=False)
        self.out_proj = nn.Linear(c.width, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = (h.transpose(1, 2) for h in heads.unbind(2))
        if self.rotary:
            q, k = turned(q), turned(k)
        return self.out_proj(windowed(q, k, v, self.window).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, c: BasedConfig):
        super().__init__()
        self.in_proj = nn.Linear(c.width, 2 * c.mlp, bias=False)
        self.out_proj = nn.Linear(c.mlp, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.in_proj(x).chunk(2, -1)
        return self.out_proj(value * F.silu(gate))


class Block(nn.Module):
    def __init__(self, c: BasedConfig, kind: Layer, form: Form):
        super().__init__()
        self.norm1 = norm(c)
        if kind == "conv":
            self.mixer: nn.Module = ShortConv(c)
        elif kind == "linear":
            self.mixer = LinearAttention(c, form)
        else:
            self.mixer = Attention(c, c.window if kind == "window" else None)
        if c.mlp:
            self.norm2 = norm(c)
            self.mlp = SwiGLU(c)

    def forward(self, r: Tensor) -> Tensor:
        r = r + self.mixer(self.norm1(r))
        return r + self.mlp(self.norm2(r)) if hasattr(self, "mlp") else r


def norm(c: BasedConfig) -> nn.Module:
    return (nn.RMSNorm if c.norm == "rms" else nn.LayerNorm)(c.width, eps=c.eps)


class BasedReference(Pretrained, nn.Module):
    """``Based`` in plain PyTorch; ``form`` says how linear attention is computed."""

    config_class = BasedConfig
    model_type = "based"

    def __init__(self, config: BasedConfig, form: Form = "quadratic"):
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocabulary, c.width)
        self.blocks = nn.ModuleList(Block(c, kind, form) for kind in c.layers)
        self.norm = norm(c)
        initialise(self, c)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
        """As ``Based.forward``: logits, or with labels the mean loss of those that are not -100."""
        r = self.embedding(input_ids)
        for block in self.blocks:
            r = block(r)
        if labels is not None:
            target = labels.flatten()
            asked = (target != -100).nonzero()[:, 0]
            r, target = r.flatten(0, 1).index_select(0, asked), target.index_select(0, asked)
        logits = F.linear(self.norm(r), self.embedding.weight)
        return logits if labels is None else F.cross_entropy(logits, target)
