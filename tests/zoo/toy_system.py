"""A system as small as one can be that has all a trainer must care for, for the tests of training.

Its model has dropout (random numbers), a moving average in a buffer (state without gradients), tied
weights, and a loss that is a mean over a number of terms that varies from item to item.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from zoo.training import Preset, Pretrained, System, Train


@dataclass(frozen=True)
class Sizes:
    words: int = 11
    width: int = 8
    dropout: float = 0.1
    momentum: float = 0.1


@dataclass(frozen=True)
class Source:
    items: int = 50
    length: int = 6
    seed: int = 3


class Model(Pretrained, nn.Module):
    config_class, model_type = Sizes, "toy"

    def __init__(self, config: Sizes):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.words, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.hidden = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.words, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("average", torch.zeros(config.width))

    def forward(self, tokens):
        x = self.embedding(tokens)
        h = F.dropout(self.hidden(self.norm(x)).relu(), self.config.dropout, self.training)
        if self.training:
            with torch.no_grad():
                mean = h.float().mean((0, 1))
                if dist.is_initialized():  # the same everywhere: shares are of one size
                    dist.all_reduce(mean)
                    mean /= dist.get_world_size()
                self.average.lerp_(mean, self.config.momentum)
        return self.out(x + h + self.average)

    def terms(self, tokens, labels):
        """A method that is not forward: what a loss may call."""
        return F.cross_entropy(self(tokens).flatten(0, 1), labels.flatten(), ignore_index=-1)


class Pairs:
    """Tokens and labels [length]; item k has labels at its first 1 + k % length places only."""

    def __init__(self, source: Source, words: int):
        g = torch.Generator().manual_seed(source.seed)
        self.tokens = torch.randint(0, words, (source.items, source.length), generator=g)
        self.labels = (self.tokens * 3 + 1) % words
        places = torch.arange(source.length)
        count = 1 + torch.arange(source.items) % source.length
        self.labels.masked_fill_(places >= count[:, None], -1)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return self.tokens[index], self.labels[index]

    def batch(self, indices):
        return [self.tokens[indices], self.labels[indices]]


class Toy(System):
    name = "toy"
    model_config, data_config = Sizes, Source
    presets = {  # noqa: RUF012
        "tiny": Preset(Sizes(), Source(), Train(steps=40, batch=8, lr=1e-2, log_every=1)),
        "calm": Preset(
            Sizes(dropout=0.0), Source(), Train(steps=30, batch=8, lr=1e-2, warmup=3, log_every=1)
        ),
    }

    def build(self, config, reference=False):
        return Model(config)

    def data(self, preset):
        return Pairs(preset.data, preset.model.words)

    def loss(self, model, batch):
        if pause := os.environ.get("TOY_PAUSE"):
            time.sleep(float(pause))
        tokens, labels = batch
        loss = model.terms(tokens, labels)
        return loss, {"twice": 2 * loss.detach()}

    def weight(self, batch):
        return (batch[1] >= 0).sum()

    def on_step(self, model, step):
        return {"average": model.average.norm()}

    def evaluate(self, model, preset):
        data = Pairs(Source(seed=99), preset.model.words)
        right = model(data.tokens).argmax(-1) == (data.tokens * 3 + 1) % preset.model.words
        torch.rand(3)  # what evaluation draws, training must not notice
        return [{"part": "held out", "items": len(data), "accuracy": float(right.float().mean())}]

    def generate(self, model, preset, request):
        word = int(request.prompt or 0)
        for _ in range(request.tokens):
            word = int(model(torch.tensor([[word]]))[0, 0].argmax())
            yield f"{word} "


system = Toy()
