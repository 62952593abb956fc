"""BASED: short convolutions, Taylor linear attention and a small exact window, in one stack.

Arora et al., "Simple linear attention language models balance the recall-throughput tradeoff"
(arXiv 2402.18668). Mixers, norms, gates and the loss are tile kernels; the projections between
them are plain matrix products, which are PyTorch's. ``reference.py`` is the same in PyTorch alone.

One forward serves training, reading a prompt and writing a token: with a ``State`` the model goes
on where the state stands and brings it up to date. Its size does not depend on how much was read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnF
from torch import Tensor, nn

from zoo import functional as F
from zoo import nn as znn
from zoo.based.config import BasedConfig, Layer
from zoo.based.generate import generate
from zoo.kernels.attention_decode import attention_decode
from zoo.kernels.based import based_decode
from zoo.training.pretrained import Pretrained


@dataclass(frozen=True)
class Place:
    """Where a call stands in its sequences: rows of ``tokens`` positions each.

    starts: [B], the position of the first of each row, and ``start`` the largest of them.
    counts: [B], how many of a row are live, the first ones; None if all of them are.
    apart: whether there are several tokens for rows that stand at different positions.
    """

    starts: Tensor
    start: int
    tokens: int
    counts: Tensor | None = None
    apart: bool = False

    @property
    def ends(self) -> Tensor:
        """[B], positions read once the call is done."""
        return self.starts + (self.tokens if self.counts is None else self.counts)

    @property
    def dead(self) -> Tensor | None:
        """[B, tokens], True where a row has ended."""
        if self.counts is None:
            return None
        return torch.arange(self.tokens, device=self.counts.device) >= self.counts[:, None]

    def rows(self) -> list[Place]:
        """Each row alone."""
        counts = [None] * len(self.starts) if self.counts is None else self.counts.split(1)
        each = zip(self.starts.split(1), self.starts.tolist(), counts, strict=True)
        return [Place(s, start, self.tokens, n) for s, start, n in each]


@dataclass
class State:
    """What a model keeps of the sequences that it has read.

    lengths: [B], how many tokens each has; longest: the largest, as a number.
    layers: the tensors of each layer, rows first; brought up to date in place.
    """

    lengths: Tensor
    longest: int
    layers: list[list[Tensor]]

    @property
    def bytes(self) -> int:
        """Of all tensors, for all rows."""
        return sum(t.nbytes for layer in self.layers for t in layer)

    def clone(self) -> State:
        """A copy that goes its own way."""
        return self.rows(torch.arange(len(self.lengths), device=self.lengths.device))

    def rows(self, index: Tensor) -> State:
        """A state of copies of the rows ``index`` [n]; a row may be taken more than once."""
        layers = [[t[index] for t in layer] for layer in self.layers]
        return State(self.lengths[index], self.longest, layers)


class ShortConv(nn.Module):
    """W_out(silu(conv(u1)) u2) with (u1, u2) = W_in x + b; the paper's gated convolution.

    Or, with ``conv="skip"``, Zoology's conv(x) (W_in x + b) + x. The state is the last inputs of
    the convolution, [B, taps - 1, channels].
    """

    def __init__(self, c: BasedConfig):
        super().__init__()
        self.skip = c.conv == "skip"
        self.channels = c.width if self.skip else 2 * c.width
        self.in_proj = nn.Linear(c.width, c.width if self.skip else 4 * c.width)
        self.conv = znn.ShortConv(
            self.channels, c.taps, bias=self.skip, activation=None if self.skip else "silu"
        )
        if not self.skip:
            self.out_proj = nn.Linear(2 * c.width, c.width)

    def start(self, rows: int, like: Tensor) -> list[Tensor]:
        return [like.new_zeros(rows, self.conv.kernel_size[0] - 1, self.channels)]

    def forward(self, x: Tensor, kept: list[Tensor] | None = None, at: Place | None = None):
        """[B, N, width] for x of that shape."""
        u = self.in_proj(x)
        value, gate = (x, u) if self.skip else u.chunk(2, -1)
        past = None if kept is None else kept[0]
        y, _ = self.conv(value, past, gate=gate, skip=self.skip)
        if kept is not None and at is not None:
            seen = torch.cat([kept[0].to(value.dtype), value], 1)
            last = torch.arange(kept[0].shape[1], device=x.device)
            index = last + (at.ends - at.starts)[:, None]
            kept[0].copy_(seen.gather(1, index[..., None].expand_as(kept[0])))
        return y if self.skip else self.out_proj(y)


class LinearAttention(nn.Module):
    """Attention with softmax's exponential to second order; no positions, no window.

    The state is the six sums of ``zoo.kernels.based``, in fp32.
    """

    def __init__(self, c: BasedConfig):
        super().__init__()
        self.heads, self.features, self.head = c.heads, c.features, c.head
        self.qkv_proj = nn.Linear(c.width, c.heads * (2 * c.features + c.head), bias=False)
        self.out_proj = nn.Linear(c.width, c.width, bias=False)

    def start(self, rows: int, like: Tensor) -> list[Tensor]:
        f, v = self.features, self.head
        shapes = ((), (f,), (f, f), (v,), (f, v), (f, f, v))
        return [like.new_zeros(rows, self.heads, *s, dtype=torch.float32) for s in shapes]

    def forward(self, x: Tensor, kept: list[Tensor] | None = None, at: Place | None = None):
        """[B, N, width] for x of that shape."""
        wide = self.heads * self.features
        parts = self.qkv_proj(x).split([wide, wide, self.heads * self.head], -1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)) for p in parts)
        if kept is None or at is None:
            y, _ = F.taylor_linear_attention(q, k, v)
        elif at.tokens == 1 and at.counts is None:
            y = based_decode(q[:, 0], k[:, 0], v[:, 0], *kept)[:, None]
        else:
            dead = at.dead
            if dead is not None:
                # Of a key and value of zeros only the number of keys takes notice.
                k, v = (t.masked_fill(dead[..., None, None], 0) for t in (k, v))
            y, after = F.taylor_linear_attention(q, k, v, None, tuple(kept), True)
            if dead is not None:
                after[0].sub_(dead.sum(1, keepdim=True))
            for old, new in zip(kept, after, strict=True):
                old.copy_(new)
        return self.out_proj(y.flatten(2))


class Attention(nn.Module):
    """Exact attention to the last ``window`` keys, or to all of them if that is None.

    The state is keys, turned by their positions, and values, [B, heads, slots, head]: a ring of
    ``window`` slots in which position p has slot p % window; without a window, all of them.
    """

    def __init__(self, c: BasedConfig, window: int | None):
        super().__init__()
        self.heads, self.window = c.heads, window
        self.qkv_proj = nn.Linear(c.width, 3 * c.width, bias=False)
        self.out_proj = nn.Linear(c.width, c.width, bias=False)
        self.rotary = znn.RotaryEmbedding(c.head) if c.rotary else None
        self.head = c.head

    def start(self, rows: int, like: Tensor) -> list[Tensor]:
        return [like.new_zeros(rows, self.heads, self.window or 0, self.head) for _ in "kv"]

    def forward(self, x: Tensor, kept: list[Tensor] | None = None, at: Place | None = None):
        """[B, N, width] for x of that shape."""
        heads = self.qkv_proj(x).unflatten(-1, (3, self.heads, self.head))
        if kept is not None and at is not None and at.tokens == 1 and at.counts is None:
            return self.out_proj(self._one(heads[:, 0], kept, at).flatten(1)[:, None])
        if kept is not None and at is not None and at.apart:
            self._room(kept, at.start + at.tokens)
            # The kernel has one position for the first query, so rows apart take one call each.
            alone = zip(heads.split(1), *(t.split(1) for t in kept), at.rows(), strict=True)
            y = torch.cat([self._several(row, [k, v], a) for row, k, v, a in alone])
        else:
            y = self._several(heads, kept, at)
        return self.out_proj(y.flatten(2))

    def _several(self, heads: Tensor, kept: list[Tensor] | None, at: Place | None) -> Tensor:
        """[B, N, heads, head] of positions from ``at.start``; heads: [B, N, 3, heads, head]."""
        start = 0 if at is None else at.start
        if self.rotary is None:
            q, k, v = heads.unbind(2)
        else:
            both, v = heads.split([2, 1], 2)
            tables = self.rotary.tables(start + heads.shape[1], heads.device)
            q, k = F.rotary(both.flatten(2, 3), *tables, start).chunk(2, 2)
            v = v[:, :, 0]
        if kept is None or at is None:
            return F.attention(q, k, v, causal=True, window=self.window)
        slots = kept[0].shape[2]
        past = torch.arange(max(start - slots, 0), start, device=heads.device) % max(slots, 1)
        keys, values = (
            torch.cat([old[:, :, past].transpose(1, 2).to(new.dtype), new], 1)
            for old, new in zip(kept, (k, v), strict=True)
        )
        y = F.attention(q, keys, values, causal=True, window=self.window)
        self._keep(kept, k.transpose(1, 2), v.transpose(1, 2), at)
        return y

    def _one(self, heads: Tensor, kept: list[Tensor], at: Place) -> Tensor:
        """[B, heads, head] of one position a row; heads: [B, 3, heads, head]."""
        q, k, v = heads.unbind(1)
        if self.rotary is not None:
            # Rows stand at positions of their own, so they take the place of positions.
            cos, sin = (t[at.starts] for t in self.rotary.tables(at.start + 1, q.device))
            both = heads[:, :2].flatten(1, 2)[None]
            q, k = F.rotary(both, cos, sin)[0].chunk(2, 1)
        slots = self._room(kept, at.start + 1)
        row = torch.arange(len(q), device=q.device)
        for old, new in zip(kept, (k, v), strict=True):
            old[row, :, at.starts % slots] = new.to(old.dtype)
        seen = (at.starts + 1).clamp(max=slots)
        return attention_decode(q, *(t.to(q.dtype) for t in kept), seen)

    def _room(self, kept: list[Tensor], positions: int) -> int:
        """The number of slots; without a window, grown to hold that many positions."""
        slots = kept[0].shape[2]
        if self.window is None and slots < positions:
            more = max(positions, 2 * slots) - slots
            kept[:] = [nnF.pad(t, (0, 0, 0, more)) for t in kept]
        return kept[0].shape[2]

    def _keep(self, kept: list[Tensor], k: Tensor, v: Tensor, at: Place) -> None:
        """The newest position of each slot's own; k, v: [B, heads, N, head] from ``at.start``."""
        slots = self._room(kept, at.start + at.tokens)
        last = at.ends[:, None] - 1
        newest = last - (last - torch.arange(slots, device=k.device)) % slots  # [B, slots]
        index = (newest - at.start).clamp(min=0)[:, None, :, None]
        fresh = (newest >= at.start)[:, None, :, None]
        for old, new in zip(kept, (k, v), strict=True):
            taken = new.gather(2, index.expand(*old.shape)).to(old.dtype)
            old.copy_(torch.where(fresh, taken, old))


class SwiGLU(nn.Module):
    """W_out(a silu(b)) with (a, b) = W_in x."""

    def __init__(self, c: BasedConfig):
        super().__init__()
        self.in_proj = nn.Linear(c.width, 2 * c.mlp, bias=False)
        self.out_proj = nn.Linear(c.mlp, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(F.swiglu(self.in_proj(x)))


class Block(nn.Module):
    """r += mixer(norm(r)), then r += mlp(norm(r)), each sum made by the norm that follows it."""

    def __init__(self, c: BasedConfig, kind: Layer):
        super().__init__()
        self.norm1 = norm(c)
        if kind == "conv":
            self.mixer: nn.Module = ShortConv(c)
        elif kind == "linear":
            self.mixer = LinearAttention(c)
        else:
            self.mixer = Attention(c, c.window if kind == "window" else None)
        if c.mlp:
            self.norm2 = norm(c)
            self.mlp = SwiGLU(c)

    def forward(
        self,
        delta: Tensor,
        residual: Tensor | None,
        kept: list[Tensor] | None = None,
        at: Place | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What is still to be added to the residual stream, and the stream in fp32, both
        [B, N, width]. ``residual`` None: the stream is ``delta``."""
        if residual is None:
            x, residual = self.norm1(delta), delta.float()
        else:
            x, residual = self.norm1(delta, residual)
        delta = self.mixer(x, kept, at)
        if hasattr(self, "mlp"):
            x, residual = self.norm2(delta, residual)
            delta = self.mlp(x)
        return delta, residual


def norm(c: BasedConfig) -> nn.Module:
    kind = znn.RMSNorm if c.norm == "rms" else znn.LayerNorm
    return kind(c.width, eps=c.eps)


class Based(Pretrained, nn.Module):
    """The stack, with logits against the embedding."""

    config_class = BasedConfig
    model_type = "based"

    def __init__(self, config: BasedConfig):
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocabulary, c.width)
        self.blocks = nn.ModuleList(Block(c, kind) for kind in c.layers)
        self.norm = norm(c)
        initialise(self, c)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        state: State | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, N, vocabulary] for tokens [B, N], or with labels [B, N] the mean loss, fp32.

        Labels are the tokens to be foretold at their own positions; -100 asks for nothing, and
        logits are made at the other positions only. With a ``state`` the rows go on from it and it
        is brought up to date; ``counts`` [B] then says how many tokens of each row are live, and
        what is beyond is ignored. Raises ValueError for what ``place`` refuses.
        """
        delta, residual = self._stream(input_ids, state, counts)
        if labels is None:
            return self.logits(self.norm(delta, residual)[0])
        target = labels.flatten()
        delta, residual = delta.flatten(0, 1), residual.flatten(0, 1)
        asked = (target != -100).nonzero()[:, 0]
        if len(asked) < len(target):
            target, delta, residual = (t.index_select(0, asked) for t in (target, delta, residual))
        h, _ = self.norm(delta, residual)
        return F.linear_cross_entropy(h, self.embedding.weight, target)

    def last(self, input_ids: Tensor, state: State, counts: Tensor | None = None) -> Tensor:
        """Logits [B, vocabulary] after the last live token of each row."""
        delta, residual = self._stream(input_ids, state, counts)
        row = torch.arange(len(delta), device=delta.device)
        end = input_ids.shape[1] - 1 if counts is None else counts - 1
        return self.logits(self.norm(delta[row, end], residual[row, end])[0])

    def logits(self, h: Tensor) -> Tensor:
        """[..., vocabulary] of the last norm's outputs [..., width]."""
        return nnF.linear(h, self.embedding.weight)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options):
        """See ``zoo.based.generate.generate``; options as of Hugging Face's ``generate``."""
        return generate(self, input_ids, attention_mask, **options)

    def start(self, rows: int) -> State:
        """The state of ``rows`` sequences of which nothing has been read."""
        like = self.embedding.weight.detach()
        lengths = torch.zeros(rows, dtype=torch.int64, device=like.device)
        return State(lengths, 0, [b.mixer.start(rows, like) for b in self.blocks])

    def _stream(self, tokens: Tensor, state: State | None, counts: Tensor | None):
        at = None if state is None else place(tokens, state, counts)
        delta, residual = self.embedding(tokens), None
        for i, block in enumerate(self.blocks):
            kept = None if state is None else state.layers[i]
            delta, residual = block(delta, residual, kept, at)
        if state is not None and at is not None:
            state.lengths = at.ends
            state.longest = at.start + at.tokens if at.counts is None else int(at.ends.max())
        return delta, residual


def place(tokens: Tensor, state: State, counts: Tensor | None) -> Place:
    """Where a call with ``tokens`` [B, N] stands.

    Raises ValueError for another number of rows than the state's, no tokens, and counts that are
    not from 1 to N.
    """
    rows, n = tokens.shape
    if rows != len(state.lengths):
        raise ValueError(f"{rows} rows of tokens for a state of {len(state.lengths)} sequences")
    if not n:
        raise ValueError("there are no tokens")
    if counts is not None:
        if counts.shape != (rows,) or not 1 <= int(counts.min()) <= int(counts.max()) <= n:
            raise ValueError(f"counts are {counts.tolist()}: one of 1 to {n} for each row")
        if int(counts.min()) == n:
            counts = None
    apart = n > 1 and bool((state.lengths != state.longest).any())
    return Place(state.lengths, state.longest, n, counts, apart)


def initialise(model: nn.Module, c: BasedConfig) -> None:
    """The embedding N(0, 0.02), zero biases, projections as ``c.start`` says."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if not isinstance(module, nn.Linear):
            continue
        if c.start == "published":
            small = name.endswith("out_proj")
            std = 0.02 / math.sqrt(2 * len(c.layers)) if small else 0.02
            nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
