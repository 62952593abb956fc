"""BASED for ``tkpy train``: recall at the sizes of a laptop, text, and the published models."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.based.config import SIZES, BasedConfig, zoology
from zoo.based.data import BasedData, Recall, Text, text
from zoo.based.generate import generate
from zoo.based.model import Based
from zoo.based.mqar import accuracy
from zoo.based.reference import BasedReference
from zoo.training import Data, Preset, Request, Row, System, Train, Unsupported

#: Zoology's optimizer: PyTorch's betas, decay of all parameters, no clipping. The warm-up is ours.
_RECALL = Train(
    steps=4000, batch=64, lr=3e-3, warmup=800, betas=(0.9, 0.999), weight_decay=0.1,
    decay_all=True, clip=None,
)  # fmt: skip
_PUBLISHED = Train(
    steps=20_000, batch=256, accumulate=64, lr=8e-4, floor=0.1, warmup=200, weight_decay=0.1,
    autocast="bfloat16", seed=1111, checkpoint_every=1000,
)  # fmt: skip
_SMALLER = ((64, 4, 12_000), (64, 8, 6_000), (64, 16, 6_000))
_TEXT = BasedConfig(
    ("conv", "linear", "window", "conv", "linear", "window"), width=128, heads=4, features=16,
    window=64, vocabulary=256,
)  # fmt: skip


class BasedSystem(System):
    name = "based"
    model_config = BasedConfig
    data_config = BasedData
    presets: ClassVar = {
        "mqar-small": Preset(
            # Begun with N(0, 0.02), seeds end between 0.94 and 0.98 at twice the length trained on.
            zoology("linear", 64, start="torch"), BasedData(), _RECALL,
            "recall of up to 16 pairs, vocabulary 512: learned in a few minutes on a CPU",
        ),
        "mqar-compare": Preset(
            zoology("linear", 32), BasedData(train=_SMALLER),
            Train(steps=1875, batch=64, lr=4e-3, betas=(0.9, 0.999), weight_decay=0.1,
                  decay_all=True, clip=None),
            "the same with too small a state to be perfect, to compare models with",
        ),
        "text": Preset(
            _TEXT, BasedData("text", length=256),
            Train(steps=1000, batch=16, lr=2e-3, warmup=50, floor=0.1),
            "bytes of Python's own documentation",
        ),
        "360m": Preset(SIZES["360m"], BasedData("text", length=2048), _PUBLISHED,
                       "the paper's, but for its data and tokens"),
        "1.3b": Preset(SIZES["1.3b"], BasedData("text", length=2048), _PUBLISHED,
                       "the paper's, but for its data and tokens"),
    }  # fmt: skip

    def build(self, config: BasedConfig, reference: bool = False) -> nn.Module:
        return BasedReference(config) if reference else Based(config)

    def data(self, preset: Preset) -> Data:
        d = preset.data
        if d.task == "text":
            return Text(d.length)
        return Recall(d, preset.model.vocabulary, preset.train.seed)

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, labels = self._split(batch)
        return model(tokens, labels), {}

    def weight(self, batch: Any) -> Tensor | float:
        return (self._split(batch)[1] != -100).sum()

    def order(self, data: Data, epoch: int, seed: int, batch: int) -> Tensor:
        """A permutation; rows of several lengths are shuffled so that each batch has one."""
        if isinstance(data, Text) or data.alike:
            return super().order(data, epoch, seed, batch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        batches: list[Tensor] = []
        for start, (tokens, _) in zip(data.starts.tolist(), data.parts, strict=True):
            rows = start + torch.randperm(len(tokens), generator=generator)
            batches += rows[: len(rows) // batch * batch].split(batch)
        return torch.cat([batches[i] for i in torch.randperm(len(batches), generator=generator)])

    def evaluate(self, model: nn.Module, preset: Preset) -> list[Row]:
        """Recall: accuracies by segment, and chance; text: bits a byte of what was held out."""
        d = preset.data
        if d.task == "text":
            return [{"held-out bytes": len(text("test")), "bits a byte": bits(model, d.length)}]
        device = next(model.parameters()).device
        rows: list[Row] = []
        for s, (tokens, labels) in d.rows("test", preset.model.vocabulary, 0):
            got = accuracy(model, tokens.to(device), labels.to(device))
            rows.append({"length/pairs": s.name, "rows": s.rows, "accuracy": got,
                         "chance": 2 / preset.model.vocabulary})  # fmt: skip
        return rows

    def generate(self, model: nn.Module, preset: Preset, request: Request) -> Iterable[str]:
        if preset.data.task != "text":
            raise Unsupported("based: a model of recall generates no text\n  fix: --preset text")
        if not isinstance(model, Based):
            raise Unsupported("based: the reference has no state to generate from")
        return _written(model, request)

    def shards(self, model: nn.Module) -> Iterable[nn.Module]:
        return model.blocks

    @staticmethod
    def _split(batch: Any) -> tuple[Tensor, Tensor]:
        """Tokens and labels; a row of text foretells each next byte."""
        if isinstance(batch, Tensor):
            return batch[:, :-1], batch[:, 1:]
        tokens, labels = batch
        return tokens, labels


@torch.no_grad()
def bits(model: nn.Module, length: int, batch: int = 16) -> float:
    """Bits a byte of the held-out text, in rows of ``length`` that know nothing of each other."""
    device = next(model.parameters()).device
    held_out = text("test").long().to(device)
    whole = (len(held_out) - 1) // length * length
    tokens, labels = (held_out[k : k + whole].view(-1, length) for k in (0, 1))
    losses = [
        model(t, y).double() * y.numel()
        for t, y in zip(tokens.split(batch), labels.split(batch), strict=True)
    ]
    return float(torch.stack(losses).sum()) / whole / math.log(2)


def _written(model: Based, request: Request) -> Iterator[str]:
    """The prompt and what follows it, sample after sample; bytes that are no text become U+FFFD."""
    device = next(model.parameters()).device
    prompt = request.prompt.encode() or b"\n"
    ids = torch.tensor([list(prompt)], device=device)
    generator = torch.Generator(device).manual_seed(request.seed)
    samples = generate(
        model, ids, max_new_tokens=request.tokens, num_return_sequences=request.samples,
        do_sample=request.temperature > 0, temperature=request.temperature or 1.0,
        top_k=request.top_k, top_p=request.top_p, generator=generator,
    )  # fmt: skip
    for k, row in enumerate(samples.tolist()):
        yield "\n\n" if k else ""
        yield codecs.decode(bytes(row), "utf-8", "replace")


system = BasedSystem()
