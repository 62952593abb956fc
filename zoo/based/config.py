"""Sizes of BASED models, those of the paper among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layer = Literal["conv", "linear", "window", "attention"]


@dataclass(frozen=True)
class BasedConfig:
    """Sizes of a model; the defaults are the paper's choices (arXiv 2402.18668).

    layers: the mixer of each layer: a gated short convolution, Taylor linear attention, exact
        attention to the last keys, or exact attention to all (a Transformer's, to compare with).
    heads: of all attentions. features: of q and k in linear attention, per head.
    window: keys that a query sees, its own included. hidden: the width within the MLPs; None is
        twice ``width`` rounded up to a multiple of 256, 0 leaves the MLPs out.
    taps: of the convolution. conv: "gated" projects to twice the width and back around
        silu(conv(u1)) u2; "skip" is Zoology's (arXiv 2312.04927), conv(x) (W x + b) + x.
    rotary: whether exact attention turns q and k by their positions.
    start: the projections' first weights: "published", N(0, 0.02), those back into the stream
        smaller by sqrt(2 layers); "torch", what ``nn.Linear`` begins with. Of narrow models the
        latter are the larger ones.
    """

    layers: tuple[Layer, ...] = ("conv", "linear", "window")
    width: int = 128
    heads: int = 4
    features: int = 16
    window: int = 128
    hidden: int | None = None
    vocabulary: int = 256
    taps: int = 3
    norm: Literal["rms", "layer"] = "rms"
    conv: Literal["gated", "skip"] = "gated"
    rotary: bool = True
    eps: float = 1e-5
    start: Literal["published", "torch"] = "published"

    def __post_init__(self):
        for name in ("width", "heads", "features", "window", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not positive")
        if not self.layers:
            raise ValueError("layers: there is none")
        for kind in self.layers:
            if kind not in ("conv", "linear", "window", "attention"):
                raise ValueError(f"layers: {kind!r} is none of conv, linear, window, attention")
        if self.start not in ("published", "torch"):
            raise ValueError(f"start: {self.start!r} is none of published, torch")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.rotary and self.width // self.heads % 2:
            raise ValueError(f"rotary: heads of {self.width // self.heads} have no halves")
        if self.features > 32:
            raise ValueError(f"features is {self.features}, more than 32")
        if not 2 <= self.taps <= 4:
            raise ValueError(f"taps is {self.taps}, not 2, 3 or 4")
        if self.hidden is not None and self.hidden < 0:
            raise ValueError(f"hidden is {self.hidden}: 0 leaves the MLPs out")

    @property
    def mlp(self) -> int:
        """The width within the MLPs; 0 if there is none."""
        return -(-2 * self.width // 256) * 256 if self.hidden is None else self.hidden

    @property
    def head(self) -> int:
        """The width of a head's values."""
        return self.width // self.heads


def _published(layers: int, first: tuple[int, ...]) -> tuple[Layer, ...]:
    """Linear attention at the layers ``first``, a window after each, convolutions elsewhere."""
    kinds: dict[int, Layer] = {i: "linear" for i in first} | {i + 1: "window" for i in first}
    return tuple(kinds.get(i, "conv") for i in range(layers))


#: GPT-2's 50,257 tokens, padded. The published window_size of 256 lets a query see 129 keys.
SIZES = {
    "360m": BasedConfig(
        _published(27, (1, 6, 11, 16, 21)), width=1024, heads=16, window=129, vocabulary=50264
    ),
    "1.3b": BasedConfig(
        _published(36, (1, 6, 11, 16, 21, 27, 33)), width=1792, heads=16, window=129,
        vocabulary=50264,
    ),
}  # fmt: skip


def zoology(
    mixer: Layer,
    width: int,
    vocabulary: int = 512,
    features: int = 16,
    window: int = 64,
    start: Literal["published", "torch"] = "published",
) -> BasedConfig:
    """The two layers that recall is measured with: a convolution, then ``mixer``.

    One head, LayerNorm, no MLP and no positions, as in Zoology (arXiv 2312.04927). Of its blocks
    one habit is left out: without an MLP they add a norm of the residual to the residual.
    """
    return BasedConfig(
        ("conv", mixer), width, 1, features, window, 0, vocabulary, norm="layer", conv="skip",
        rotary=False, start=start,
    )  # fmt: skip
