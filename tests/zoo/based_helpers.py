"""Small BASED models whose logits are far from even, for tests to compare."""

import torch

from zoo.based.config import BasedConfig, zoology
from zoo.based.model import Based

SMALL = BasedConfig(
    ("conv", "linear", "window", "attention"), width=16, heads=2, features=4, window=5, hidden=16,
    vocabulary=40,
)  # fmt: skip
#: Zoology's form: LayerNorm, no MLP, no positions.
RECALL = zoology("linear", 16, 40, 4)
SLIDING = zoology("window", 16, 40, window=5)


def made(config, kind=Based, seed=0, **options):
    """A model with weights four times as large as at the start of training."""
    torch.manual_seed(seed)
    model = kind(config, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.dim() > 1 else 1).add_(0.1 * torch.randn_like(p) * (p.dim() < 2))
    return model


def tokens(rows=2, length=70, vocabulary=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (rows, length), generator=generator)


def one_by_one(model, ids, state):
    """Logits of tokens [B, N] that are read singly."""
    return torch.cat([model(ids[:, k : k + 1], state=state) for k in range(ids.shape[1])], 1)
