"""What BASED is trained on: recall made by rule, or text that comes with Python itself.

The text is the reference documentation that every CPython carries for ``help()``, in
``pydoc_data.topics``: some 700 kB of English about the language, whose exact words depend on
Python's version. Nothing is downloaded. A model reads it byte by byte.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.based.mqar import Segment, mqar

#: Of the topics in alphabetical order one in so many is kept for tests.
_HELD_OUT = 10


@dataclass(frozen=True)
class BasedData:
    """task "recall": multi-query associative recall; "text": the bytes of Python's documentation.

    train, test: recall's segments, each (length, pairs, rows). power, random_filler: as in
    ``mqar.mqar``. length: of a row of text, in bytes.
    """

    task: Literal["recall", "text"] = "recall"
    train: tuple[tuple[int, int, int], ...] = ((64, 4, 16_000), (64, 8, 8_000), (64, 16, 8_000))
    test: tuple[tuple[int, int, int], ...] = ((64, 4, 300), (64, 8, 300), (64, 16, 300),
                                              (128, 32, 300))  # fmt: skip
    power: float = 0.01
    random_filler: bool = True
    length: int = 256

    def segments(self, part: Literal["train", "test"]) -> list[Segment]:
        return [Segment(*s) for s in getattr(self, part)]

    def rows(self, part: Literal["train", "test"], vocabulary: int, seed: int):
        """Tokens and labels [rows, length] of each segment."""
        for k, s in enumerate(self.segments(part)):
            # Tests are others than what any training of these seeds sees, and the same for all.
            number = 2 * (1000 * seed + k) if part == "train" else 2 * k + 1
            generator = torch.Generator().manual_seed(number)
            yield s, mqar(s, vocabulary, generator, self.power, self.random_filler)


class Recall:
    """Rows of recall, (tokens, labels) each; segment after segment."""

    def __init__(self, data: BasedData, vocabulary: int, seed: int):
        self.parts = [rows for _, rows in data.rows("train", vocabulary, seed)]
        lengths = torch.tensor([len(t) for t, _ in self.parts])
        self.starts = lengths.cumsum(0) - lengths
        self.alike = len({t.shape[1] for t, _ in self.parts}) == 1
        if self.alike:
            self.all = [torch.cat(x) for x in zip(*self.parts, strict=True)]

    def __len__(self) -> int:
        return sum(len(t) for t, _ in self.parts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens, labels = self.batch(torch.tensor([index]))
        return tokens[0], labels[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and labels [n, length]; rows of one length only."""
        if self.alike:
            return self.all[0][indices], self.all[1][indices]
        part = torch.searchsorted(self.starts, indices, right=True) - 1
        tokens, labels = zip(
            *(
                (self.parts[p][0][i], self.parts[p][1][i])
                for p, i in zip(part.tolist(), (indices - self.starts[part]).tolist(), strict=True)
            ),
            strict=True,
        )
        return torch.stack(tokens), torch.stack(labels)


class Text:
    """Overlapping rows of length + 1 bytes, from every place of the text that training may see."""

    def __init__(self, length: int):
        self.bytes = text("train")
        self.length = length
        if len(self.bytes) <= length:
            raise ValueError(f"the text has {len(self.bytes)} bytes, no row of {length + 1}")

    def __len__(self) -> int:
        return len(self.bytes) - self.length

    def __getitem__(self, index: int) -> Tensor:
        return self.bytes[index : index + self.length + 1].long()

    def batch(self, indices: Tensor) -> Tensor:
        """[n, length + 1]"""
        return self.bytes[indices[:, None] + torch.arange(self.length + 1)].long()


@functools.cache
def text(part: Literal["train", "test"]) -> Tensor:
    """Python's documentation as bytes, uint8; every tenth topic is in "test", the others not."""
    from pydoc_data.topics import topics

    held_out = part == "test"
    chosen = [t for k, t in enumerate(sorted(topics)) if (k % _HELD_OUT == 0) == held_out]
    return torch.frombuffer(
        bytearray("\n\n".join(topics[t] for t in chosen).encode()), dtype=torch.uint8
    )
