"""Forward and backward of the zoo's kernels beside PyTorch: ``python -m bench train-ops``.

Every step goes through autograd on both sides: tensors that require gradients, a call, ``grad``.
The backward of every kernel is derived; none is written by hand. Peak memory is that of a fresh
process, above what it held before the step.
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch

from bench import cpu
from bench.measure import turns
from bench.peak import peak
from zoo.kernels.attention import attention
from zoo.kernels.based import based
from zoo.kernels.linear_cross_entropy import linear_cross_entropy
from zoo.kernels.norm import layernorm, rmsnorm

F = torch.nn.functional
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EPS = {"fp32": 2.0**-24, "bf16": 2.0**-9}


@dataclass
class Step:
    """One row: functions of the same tensors, whose gradients are asked for.

    flops: of forward and backward as PyTorch counts them; compiled: torch.compile is a rival too;
    roundings: how many a gradient may be off by, of its largest element.
    """

    tensors: list[torch.Tensor]
    ours: Callable[..., torch.Tensor]
    rivals: dict[str, Callable[..., torch.Tensor]]
    flops: float = 0
    dtype: str = "fp32"
    moved: float = 0
    roundings: float = 64
    slow: bool = False
    others: dict[str, list[torch.Tensor]] = field(default_factory=dict)  # a rival's own tensors

    def step(self, side: str) -> Callable[[], tuple[torch.Tensor, ...]]:
        fn = self.ours if side == "ours" else self.rivals[side]
        leaves = [t.detach().requires_grad_() for t in self.others.get(side, self.tensors)]
        with torch.no_grad():
            like = fn(*leaves)
        cotangent = torch.ones_like(like) if like.dim() == 0 else torch.randn_like(like)

        def run() -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(fn(*leaves), leaves, cotangent)

        return run


def _randn(*shape: int, dtype: str = "fp32") -> torch.Tensor:
    return torch.randn(*shape).to(DTYPES[dtype])


def _attention(dtype: str, n: int, causal: bool) -> Step:
    tensors = [_randn(1, 4, n, 64, dtype=dtype) for _ in range(3)]
    flops = 7 * 2 * 4 * n * n * 64 / (2 if causal else 1)
    return Step(
        tensors,
        lambda q, k, v: attention(q, k, v, causal=causal, rows=128, cols=128),
        {"torch": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)},
        flops,
        dtype,
    )


def _norm(name: str, dtype: str) -> Step:
    x, w, b = _randn(4096, 1024, dtype=dtype), _randn(1024, dtype=dtype), _randn(1024, dtype=dtype)
    layer = lambda x, w, b: F.layer_norm(x, (1024,), w, b)  # noqa: E731
    rms = lambda x, w: F.rms_norm(x, (1024,), w, 1e-5)  # noqa: E731
    plain = layer if name == "layernorm" else rms
    ours = (lambda x, w, b: layernorm(x, w, bias=b)) if name == "layernorm" else rmsnorm
    tensors = [x, w, b] if name == "layernorm" else [x, w]
    rivals = {"torch": plain, "torch.compile": torch.compile(plain)}
    return Step(tensors, ours, rivals, dtype=dtype, moved=5 * x.numel() * x.element_size())


def _chunked_entropy(x: torch.Tensor, w: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logits of 512 tokens at a time, made again in the backward: plain PyTorch's best effort."""
    from torch.utils.checkpoint import checkpoint

    def part(x, target):
        return F.cross_entropy((x @ w.T).float(), target, reduction="sum")

    parts = zip(x.split(512), target.split(512), strict=True)
    return sum(checkpoint(part, a, t, use_reentrant=False) for a, t in parts) / len(target)


def _linear_cross_entropy(dtype: str) -> Step:
    m, v, d = 4096, 32768, 512
    x, w = _randn(m, d, dtype=dtype), _randn(v, d, dtype=dtype) * d**-0.5
    target = torch.randint(v, (m,))
    side = 256 if dtype == "fp32" else 512
    blocks = {"rows": side, "cols": side, "depth": 512}
    step = Step(
        [x, w],
        lambda x, w: linear_cross_entropy(x, w, target, **blocks).mean(),
        {
            "torch": lambda x, w: F.cross_entropy((x @ w.T).float(), target),
            "torch chunked": lambda x, w: _chunked_entropy(x, w, target),
        },
        3 * 2 * m * v * d,
        dtype,
        slow=True,
    )
    step.roundings = 512  # sums over 32,768 classes
    return step


def chunked_based(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """BASED's linear attention in plain PyTorch: chunks of 64 and a running state of features."""
    n, f = q.shape[2:]
    size = 64
    upper = torch.ones(size, size, dtype=torch.bool).triu(1)
    q = q * f**-0.5

    def features(x):
        second = (x[..., :, None] * x[..., None, :]).flatten(-2) * 2**-0.5
        return torch.cat([torch.ones_like(x[..., :1]), x, second], -1)

    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    qs, ks, vs = (x.unflatten(2, (n // size, size)) for x in (q, k, v))
    s = qs @ ks.mT
    inside = (1 + s + s * s / 2).masked_fill(upper, 0) @ vs
    states = features(ks).mT @ vs
    before = states.cumsum(2) - states
    y = inside + features(qs) @ before
    return (y[..., :-1] / y[..., -1:]).flatten(2, 3)


def _based(n: int) -> Step:
    tensors = [_randn(1, 4, n, 16), _randn(1, 4, n, 16), _randn(1, 4, n, 64)]
    step = Step(
        tensors,
        lambda q, k, v: based(q, k, v, cols=64, chunk=64),
        {
            "torch chunked": chunked_based,
            "SDPA causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        },
        4 * n * (2 * (64 * 16 + 64 * 64) + 6 * 2 * 136 * 64),  # 136 pairs and squares
    )
    step.others["SDPA causal"] = [_randn(1, 4, n, 64) for _ in range(3)]
    step.roundings = 4096  # quotients of sums that cancel
    return step


def work() -> dict[str, Callable[[], Step]]:
    """Rows by name; each makes its inputs when it is called."""
    rows: dict[str, Callable[[], Step]] = {}
    for dtype in DTYPES:
        for n in (1024, 4096):
            for causal in (False, True):
                name = f"attention {dtype}{' causal' if causal else ''} {n}"
                rows[name] = lambda d=dtype, n=n, c=causal: _attention(d, n, c)
    for name in ("layernorm", "rmsnorm"):
        for dtype in DTYPES:
            rows[f"{name} {dtype} 4096x1024"] = lambda m=name, d=dtype: _norm(m, d)
    for dtype in DTYPES:
        rows[f"linear cross entropy {dtype}"] = lambda d=dtype: _linear_cross_entropy(d)
    rows["based 4096"] = lambda: _based(4096)
    return rows


@dataclass
class Row(cpu.Row):
    """One measured row: milliseconds of forward and backward, megabytes at the peak."""

    ours_mb: float
    rival_mb: float


def _agree(name: str, s: Step, rival: str) -> None:
    torch.manual_seed(1)
    ours = s.step("ours")()
    torch.manual_seed(1)
    theirs = s.step(rival)()
    for a, b in zip(ours, theirs, strict=True):
        error = (a.double() - b.double()).abs().max() / b.double().abs().max()
        if not error <= s.roundings * EPS[s.dtype]:
            raise AssertionError(f"{name}: gradients differ by {error:.3g} of the largest element")


def peak_of(name: str, side: str) -> float:
    """Megabytes that one step takes at its peak, measured in a process of its own."""
    code = f"from bench.train_ops import _peak; _peak({name!r}, {side!r})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def _peak(name: str, side: str) -> None:
    torch.manual_seed(0)
    print(peak_of_this(work()[name]().step(side)))


def peak_of_this(step: Callable[[], object]) -> float:
    """Megabytes that the second call of ``step`` adds to this process at its peak."""
    step()  # compiles, and fills pools that live on
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free is no longer this process's
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak counts from here
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """Kilobytes, from the kernel's account of this process."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key))


def run(only: str, threads: int, memory: bool) -> list[dict]:
    """Measure, print and give the rows whose work's name contains ``only``."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    rows = []
    heads = ("work", "ours ms", "rival ms", "rival", "ratio", "of limit", "MB", "rival's")
    print("{:32}{:>10}{:>11}  {:16}{:>7}{:>10}{:>8}{:>8}".format(*heads))
    for name, make in work().items():
        if only not in name:
            continue
        s = make()
        _agree(name, s, next(iter(s.rivals)))
        fns = {side: s.step(side) for side in ("ours", *s.rivals)}
        rates: list[float] = []
        if s.flops:
            limit = peak(s.dtype, threads)
            fns["limit"] = lambda limit=limit, rates=rates: rates.append(limit())
        else:
            source = torch.randn(int(s.moved / 8))
            target = torch.empty_like(source)
            fns["limit"] = lambda source=source, target=target: target.copy_(source)
        t = turns(fns, warm=not s.slow, budget=20.0 if s.slow else 4.0)
        limit_ms = s.flops / max(rates) / 1e6 if s.flops else t["limit"]
        mb = {side: peak_of(name, side) if memory else 0.0 for side in ("ours", *s.rivals)}
        for rival in s.rivals:
            row = Row(
                name, t["ours"], rival, t[rival], t[rival] / t["ours"], limit_ms / t["ours"],
                mb["ours"], mb[rival],
            )  # fmt: skip
            rows.append(asdict(row))
            print(f"{name:32}{row.ours_ms:10.2f}{row.rival_ms:11.2f}  {rival:16}{row.ratio:7.2f}"
                  f"{row.limit_fraction:10.2f}{row.ours_mb:8.1f}{row.rival_mb:8.1f}",
                  flush=True)  # fmt: skip
    return rows


__all__ = ["Row", "Step", "chunked_based", "peak_of", "peak_of_this", "run", "work"]
