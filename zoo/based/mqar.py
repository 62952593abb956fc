"""Multi-query associative recall: pairs of a key and a value, then keys whose values are asked for.

Arora et al., "Zoology" (arXiv 2312.04927); the settings of the BASED paper (arXiv 2402.18668). Of
V tokens, keys are 1 to V/2 - 1 and values V/2 to V - 1. A row is k1 v1 k2 v2 ... kn vn and then
filler, in which every key comes up once more; its value is the label at that place. Where it does
follows a power law: most of them soon after the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Rows made at a time, which bounds the memory that drawing keys needs.
_ROWS = 4096


@dataclass(frozen=True)
class Segment:
    """Rows of ``length`` tokens with ``pairs`` pairs each; ``rows`` of them."""

    length: int
    pairs: int
    rows: int

    @property
    def name(self) -> str:
        return f"{self.length}/{self.pairs}"


def mqar(
    segment: Segment,
    vocabulary: int,
    generator: torch.Generator,
    power: float = 0.01,
    random_filler: bool = True,
) -> tuple[Tensor, Tensor]:
    """Tokens and labels, int64 [rows, length]; a label is -100 where nothing is asked.

    Of the (length - 2 pairs) / 2 slots of two tokens after the pairs, each row takes as many as it
    has pairs, slot s with probability proportional to s^(power - 1), without replacement; the i-th
    one drawn is asked for the i-th key. ``random_filler`` puts any token at all, keys and values
    included, where otherwise there are zeros.

    Raises ValueError for an odd length, 4 pairs > length, and a vocabulary with too few keys.
    """
    length, n, rows = segment.length, segment.pairs, segment.rows
    if length % 2 or n < 1 or rows < 0:
        raise ValueError(f"MQAR {segment.name} of {rows} rows: an even length, a pair at least")
    if 4 * n > length:
        raise ValueError(f"MQAR {segment.name}: 4 pairs do not fit the length")
    if vocabulary % 2 or vocabulary <= length or n > vocabulary // 2 - 1:
        raise ValueError(
            f"MQAR {segment.name}: a vocabulary of {vocabulary} is odd, or not above the length"
        )
    parts = [
        _rows(min(_ROWS, rows - r), length, n, vocabulary, generator, power, random_filler)
        for r in range(0, rows, _ROWS)
    ]
    if not parts:
        return torch.empty(2, 0, length, dtype=torch.int64).unbind()
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _rows(rows, length, n, vocabulary, generator, power, random_filler):
    half, slots = vocabulary // 2, (length - 2 * n) // 2
    keys = 1 + _distinct(rows, half - 1, n, generator)
    values = half + _distinct(rows, half, n, generator)
    weight = torch.arange(1, slots + 1, dtype=torch.float64) ** (power - 1)
    # The largest of log p + Gumbel noise, in order, are a draw one by one without replacement.
    noise = torch.empty(rows, slots, dtype=torch.float64).exponential_(generator=generator)
    asked = 2 * n + 2 * (weight.log() - noise.log()).topk(n, -1).indices

    tokens = torch.zeros(rows, length, dtype=torch.int64)
    tokens[:, : 2 * n : 2], tokens[:, 1 : 2 * n : 2] = keys, values
    tokens.scatter_(1, asked, keys)
    labels = torch.full_like(tokens, -100).scatter_(1, asked, values)
    if random_filler:
        filler = torch.randint(vocabulary, tokens.shape, generator=generator)
        tokens = torch.where(tokens == 0, filler, tokens)
    return tokens, labels


def _distinct(rows: int, among: int, n: int, generator: torch.Generator) -> Tensor:
    """[rows, n] numbers below ``among``, each row's without repetition, in random order."""
    return torch.rand(rows, among, generator=generator, dtype=torch.float64).topk(n, -1).indices


def recalled(tokens: Tensor, labels: Tensor, window: int | None = None) -> Tensor:
    """What a dictionary of the pairs answers at each labelled place, -1 where it knows nothing.

    With a ``window`` it has seen the last so many tokens only, the asking one included: what a
    layer of sliding-window attention could know at best.
    """
    row, at = (labels != -100).nonzero(as_tuple=True)
    n = int((labels[0] != -100).sum())
    keys, values = tokens[row, : 2 * n : 2], tokens[row, 1 : 2 * n : 2]
    found = keys == tokens[row, at][:, None]
    if window is not None:
        # A pair is known if its value is: its key may lie before the window.
        found &= at[:, None] - torch.arange(1, 2 * n, 2) < window
    answer = torch.full_like(labels, -1)
    answer[row, at] = torch.where(found.any(1), (values * found).amax(1), -1)
    return answer


@torch.no_grad()
def accuracy(model: nn.Module, tokens: Tensor, labels: Tensor, batch: int = 100) -> float:
    """The share of labelled places that ``model`` gets right, a mean over rows.

    ``model(tokens)`` gives logits [B, N, V]; a model with ``answers`` gives those that count only.
    """
    right = []
    for t, want in zip(tokens.split(batch), labels.split(batch), strict=True):
        asked = want != -100
        guess = model(t)[asked].argmax(-1)
        hit = torch.zeros(t.shape, dtype=torch.float64, device=t.device)
        hit[asked] = (guess == want[asked]).double()
        right.append(hit.sum(1) / asked.sum(1))
    return float(torch.cat(right).mean())
