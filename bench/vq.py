"""Vector quantisation beside the package vector-quantize-pytorch: ``python -m bench vq``.

Both sides have the same codes, inputs and settings, checked to give the same indices, outputs,
gradients and averages first. A step is forward, backward through autograd, and the update of the
codebook. Peak memory is that of one call in a fresh process, above what it held before.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from bench.measure import Compared, turns
from bench.train_ops import peak_of_this
from zoo.kernels.vector_quantize import nearest_code
from zoo.nn import VectorQuantize

M, K, D = 4096, 1024, 64
Call = Callable[[], object]


@dataclass
class Row(Compared):
    """One measured row, with megabytes at the peak."""

    ours_mb: float
    rival_mb: float


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, M, D), torch.randn(1, K, D)


def _layer(kind: type, codes: torch.Tensor, **options):
    layer = kind(D, K, **options)
    with torch.no_grad():
        layer._codebook.embed.copy_(codes)
        layer._codebook.embed_avg.copy_(codes)
    return layer


def lookup() -> dict[str, Call]:
    """Indices of the nearest codes: ours, the package in eval mode, and its arithmetic alone."""
    from vector_quantize_pytorch import VectorQuantize as Package

    x, codes = _inputs()
    package = _layer(Package, codes).eval()
    half, table = codes[0].square().sum(-1) / -2, codes[0].T.contiguous()

    @torch.no_grad()
    def theirs():
        return package(x)[1][0]

    return {
        "ours": lambda: nearest_code(x, codes)[0],
        "package": theirs,
        "addmm.argmax": lambda: torch.addmm(half, x[0], table).argmax(-1),
    }


def step(**options) -> dict[str, Call]:
    """Forward, backward and update of both layers; each call gives what they can be compared by."""
    from vector_quantize_pytorch import VectorQuantize as Package

    x, codes = _inputs()
    if options.get("use_cosine_sim"):
        codes = torch.nn.functional.normalize(codes, dim=-1)
    weight = torch.randn(1, M, D)

    def of(kind: type) -> Call:
        layer = _layer(kind, codes, **options).train()

        def run():
            leaf = x.detach().requires_grad_()
            q, index, loss = layer(leaf)
            ((q * weight).sum() + loss).backward()
            return index, q.detach(), leaf.grad, layer._codebook.embed

        return run

    return {"ours": of(VectorQuantize), "package": of(Package)}


WORK: dict[str, Callable[[], dict[str, Call]]] = {
    "lookup": lookup,
    "step rotation": step,
    "step rotation cosine": lambda: step(use_cosine_sim=True),
}


def _agree(name: str, sides: dict[str, Call]) -> None:
    ours = sides["ours"]()
    for rival in list(sides)[1:]:
        theirs = sides[rival]()
        pairs = zip(*((r if isinstance(r, tuple) else (r,)) for r in (ours, theirs)), strict=True)
        for a, b in pairs:
            if a.dtype == torch.int64:
                # A few vectors lie between two codes within rounding.
                if (a.reshape(-1) != b.reshape(-1)).float().mean() > 1e-3:
                    raise AssertionError(f"{name}: indices differ from {rival}'s")
            elif float(((a - b).abs() > 1e-3 * b.abs().max()).float().mean()) > 1e-3:
                raise AssertionError(f"{name}: results differ from {rival}'s")


def _peak(name: str, side: str) -> None:
    """Prints the megabytes that one call takes at its peak; for a process of its own."""
    print(peak_of_this(WORK[name]()[side]))


def _peak_of(name: str, side: str) -> float:
    code = f"from bench.vq import _peak; _peak({name!r}, {side!r})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def run(only: str, threads: int, memory: bool) -> list[dict]:
    """Measure, print and give the rows whose work's name contains ``only``."""
    torch.set_num_threads(threads)
    rows = []
    heads = ("work", "ours ms", "rival ms", "rival", "ratio", "MB", "rival's")
    print("{:24}{:>10}{:>11}  {:14}{:>7}{:>8}{:>9}".format(*heads))
    for name, make in WORK.items():
        if only not in name:
            continue
        sides = make()
        _agree(name, sides)
        t = turns(sides, rounds=9, budget=3.0)
        mb = {side: _peak_of(name, side) if memory else 0.0 for side in sides}
        for rival in list(sides)[1:]:
            ratio = t[rival] / t["ours"]
            row = Row(name, t["ours"], rival, t[rival], ratio, mb["ours"], mb[rival])
            rows.append(asdict(row))
            print(f"{name:24}{row.ours_ms:10.2f}{row.rival_ms:11.2f}  {rival:14}{row.ratio:7.2f}"
                  f"{row.ours_mb:8.1f}{row.rival_mb:9.1f}", flush=True)  # fmt: skip
    return rows
