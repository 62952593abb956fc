"""A byte-level stack of BASED blocks whose mixers, norms and products are tile kernels.

Arora et al., "Simple linear attention language models balance the recall-throughput tradeoff"
(arXiv 2402.18668). One forward serves both uses: a whole text at once, and one byte at a time
with the state that the bytes before it left. That state does not grow with their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.attention import attention
from zoo.kernels.based import based, based_decode
from zoo.kernels.gemm import gemm
from zoo.kernels.norm import rmsnorm
from zoo.kernels.rotary import rotary
from zoo.kernels.short_conv import short_conv


@dataclass(frozen=True)
class Config:
    """Sizes of a model. ``window`` counts keys, a query's own included."""

    layers: tuple[str, ...] = ("conv", "linear", "window")
    width: int = 32
    heads: int = 2
    features: int = 8
    window: int = 16
    hidden: int = 64
    vocabulary: int = 256


@dataclass
class State:
    """What the model keeps of the bytes that it has read: the count, and tensors a layer."""

    position: int = 0
    layers: list[tuple[Tensor, ...] | None] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for layer in self.layers for t in layer or ())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b over the last axis. x: [..., K]; weight: [N, K]; bias: [N]."""
    flat = x.reshape(-1, x.shape[-1])
    y = gemm(flat, weight, bias, trans_b=True, rows=64, cols=64, depth=32)
    return y.view(*x.shape[:-1], weight.shape[0])


class Weights:
    """Draws every weight from one seeded generator: N(0, 1 / fan-in)."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=self.generator) / math.sqrt(columns)


class ShortConv:
    """y = W_out(silu(conv(u1)) * u2) with (u1, u2) = W_in x + b; BASED's gated convolution."""

    def __init__(self, c: Config, weights: Weights):
        self.into, self.into_bias = weights(4 * c.width, c.width), torch.zeros(4 * c.width)
        self.taps = weights(2 * c.width, 3)
        self.out, self.out_bias = weights(c.width, 2 * c.width), torch.zeros(c.width)

    def __call__(self, x: Tensor, state, position: int):
        """x: [B, N, width]. The state is the last two inputs of the convolution."""
        one, two = linear(x, self.into, self.into_bias).chunk(2, -1)
        past = state[0] if state else None
        y, past = short_conv(one, self.taps, state=past, new_state=True, activation="silu")
        return linear(y * two, self.out, self.out_bias), (past,)


class _Heads:
    """What both attentions share: projections, and the split of a width into heads."""

    def __init__(self, c: Config, weights: Weights, key_width: int):
        self.heads = c.heads
        self.q = weights(key_width, c.width)
        self.k = weights(key_width, c.width)
        self.v = weights(c.width, c.width)
        self.out = weights(c.width, c.width)

    def split(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, N, width] to [B, heads, N, weight's share of a head]."""
        return linear(x, weight).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def join(self, y: Tensor) -> Tensor:
        return linear(y.transpose(1, 2).flatten(2), self.out)


_SUMS = ("t0", "t1", "t2", "s0", "s1", "s2")


class LinearAttention(_Heads):
    """Attention with softmax's exponential to second order; no positions, no window."""

    def __init__(self, c: Config, weights: Weights):
        super().__init__(c, weights, c.heads * c.features)

    def __call__(self, x: Tensor, state, position: int):
        """x: [B, N, width]. The state is the six sums of ``zoo.kernels.based``, in fp32."""
        q, k, v = (self.split(x, w) for w in (self.q, self.k, self.v))
        if state and x.shape[1] == 1:
            state = tuple(t.clone() for t in state)  # the kernel updates it in place
            y = based_decode(q[:, :, 0], k[:, :, 0], v[:, :, 0], *state)
            return self.join(y[:, :, None]), state
        given = dict(zip(_SUMS, state or (), strict=False))
        y, *state = based(q, k, v, **given, **{f"new_{name}": True for name in _SUMS})
        return self.join(y), tuple(state)


class WindowAttention(_Heads):
    """Exact attention to the last ``window`` keys, which lie in a ring of that many slots."""

    def __init__(self, c: Config, weights: Weights):
        super().__init__(c, weights, c.width)
        self.window = c.window
        half = c.width // c.heads // 2
        self.frequencies = 10_000.0 ** (-torch.arange(half) / half)

    def __call__(self, x: Tensor, state, position: int):
        """x: [B, N, width]. The state is the ring's keys, turned by rotary, and its values."""
        n = x.shape[1]
        angles = torch.arange(position, position + n)[:, None] * self.frequencies
        q, k = (rotary(self.split(x, w), angles.cos(), angles.sin()) for w in (self.q, self.k))
        v = self.split(x, self.v)
        ring = state or tuple(t.new_zeros(*t.shape[:2], self.window, t.shape[3]) for t in (k, v))
        after = tuple(_put(r, t, position) for r, t in zip(ring, (k, v), strict=True))
        if n == 1:
            # One query: it matters which keys it sees, not their order.
            seen = min(position + 1, self.window)
            return self.join(attention(q, *(r[:, :, :seen] for r in after))), after
        past = torch.arange(max(position - self.window, 0), position) % self.window
        keys, values = (torch.cat([r[:, :, past], t], 2) for r, t in zip(ring, (k, v), strict=True))
        return self.join(attention(q, keys, values, window=self.window)), after


def _put(ring: Tensor, new: Tensor, position: int) -> Tensor:
    """The ring with the last of ``new`` in the slots of their positions. [B, H, slots, D]."""
    slots, n = ring.shape[2], new.shape[2]
    kept = min(slots, n)
    where = torch.arange(position + n - kept, position + n) % slots
    return ring.index_copy(2, where, new[:, :, n - kept :])


class SwiGLU:
    """W_2(a * silu(b)) with (a, b) = W_1 x."""

    def __init__(self, c: Config, weights: Weights):
        self.into, self.out = weights(2 * c.hidden, c.width), weights(c.width, c.hidden)

    def __call__(self, x: Tensor) -> Tensor:
        value, gate = linear(x, self.into).chunk(2, -1)
        return linear(value * F.silu(gate), self.out)


_MIXERS = {"conv": ShortConv, "linear": LinearAttention, "window": WindowAttention}


class Based:
    """The stack: r += mixer(norm(r)); r += mlp(norm(r)); logits against the embedding."""

    def __init__(self, config: Config | None = None, seed: int = 0):
        c = self.config = config or Config()
        weights = Weights(seed)
        self.embedding = weights(c.vocabulary, c.width)
        self.blocks = [(_MIXERS[kind](c, weights), SwiGLU(c, weights)) for kind in c.layers]
        self.gain = torch.ones(c.width)

    def __call__(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits [B, N, vocabulary] for tokens [B, N], and the state after them."""
        state = state or State(0, [None] * len(self.blocks))
        after = State(state.position + tokens.shape[1])
        delta, stream = self.embedding[tokens], None
        for (mixer, mlp), past in zip(self.blocks, state.layers, strict=True):
            x, stream = self._norm(delta, stream)
            delta, kept = mixer(x, past, state.position)
            after.layers.append(kept)
            x, stream = self._norm(delta, stream)
            delta = mlp(x)
        x, _ = self._norm(delta, stream)
        return linear(x, self.embedding), after

    def _norm(self, delta: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor]:
        """norm(stream + delta), and that sum: the residual stream, in fp32."""
        flat = delta.reshape(-1, delta.shape[-1])
        if stream is None:
            return rmsnorm(flat, self.gain).view_as(delta), flat
        y, stream = rmsnorm(flat, self.gain, residual=stream, total=True)
        return y.view_as(delta), stream

    def cache_bytes(self, length: int) -> int:
        """What a softmax model of this width and depth would keep: every key and every value."""
        return 2 * 4 * self.config.width * len(self.config.layers) * length
