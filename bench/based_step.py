"""A training step of BASED beside its reference in plain PyTorch: ``python -m bench based-step``.

The model is that of ``tkpy train based --preset text``: two blocks each of convolution, linear
attention and window, width 128, over bytes. A step is forward, loss, backward and AdamW. The
reference is tried with linear attention in its quadratic form and in chunks of 64, eager and
compiled; before timing, every side's loss and gradients are held against ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from bench.measure import Compared, turns
from zoo.based.model import Based
from zoo.based.reference import BasedReference
from zoo.based.system import system


def run(length: int, batch: int, threads: int, compiled: bool) -> list[dict]:
    """Print and return a row a rival; of a whole step no limit is known."""
    torch.set_num_threads(threads)
    config = system.preset("text").model
    tokens = torch.randint(config.vocabulary, (batch, length + 1), generator=_seeded())
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {"tkpy": Based(config)}
    for form in ("quadratic", "chunked"):
        models[form] = BasedReference(config, form)
        models[form].load_state_dict(models["tkpy"].state_dict())
    _agree(models, tokens)
    steps = {name: _step(model, model, tokens) for name, model in models.items()}
    for form in ("quadratic", "chunked") if compiled else ():
        steps[f"{form}, torch.compile"] = _step(torch.compile(models[form]), models[form], tokens)
    times = turns(steps, rounds=9, budget=20.0)
    work = f"{batch} x {length} tokens, {len(config.layers)} layers, width {config.width}"
    ours = times.pop("tkpy")
    rows = [Compared(work, ours, name, ms, ms / ours) for name, ms in times.items()]
    for r in rows:
        print(f"{r.work}  {r.ours_ms:8.1f} ms  {r.rival:26}{r.rival_ms:9.1f} ms{r.ratio:8.2f}")
    return [asdict(row) for row in rows]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _step(call: Callable, model: nn.Module, tokens: torch.Tensor) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        loss = call(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def _agree(models: dict[str, nn.Module], tokens: torch.Tensor) -> None:
    got = {}
    for name, model in models.items():
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        got[name] = loss.detach(), [p.grad for p in model.parameters()]
        model.zero_grad()
    loss, grads = got.pop("tkpy")
    for name, (other, theirs) in got.items():
        if not abs(float(loss) - float(other)) < 1e-4:
            raise AssertionError(f"the loss is {float(loss)}, of {name} {float(other)}")
        for g, h in zip(grads, theirs, strict=True):
            if not (g - h).abs().max() <= 1e-3 * h.abs().max():
                raise AssertionError(f"a gradient is not that of {name}")
