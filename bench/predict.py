"""Predicted and measured time of the zoo's kernels on this CPU.

The prediction is ``tkpy.pipeline.predict.cpu_seconds``: counts from tile IR at the rates that
``tkpy.pipeline.probe`` measures with kernels of its own, none of the zoo's. Nothing is fitted to
the rows. The GEMM is near to a probe and is marked so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from tkpy.pipeline.device import Device
from tkpy.pipeline.of_kernel import front_end_of
from tkpy.pipeline.predict import cpu_seconds
from tkpy.pipeline.probe import seconds, this_cpu
from zoo.kernels.attention import attention
from zoo.kernels.based import based
from zoo.kernels.cross_entropy import cross_entropy
from zoo.kernels.gemm import gemm
from zoo.kernels.norm import layernorm, rmsnorm
from zoo.kernels.rotary import rotary
from zoo.kernels.softmax import softmax


def _calls() -> dict[str, Callable[[], tuple]]:
    """Kernel, arguments and keywords by name."""
    normal = torch.randn
    bf16 = torch.bfloat16
    blocks = {"rows": 512, "cols": 512, "depth": 512}

    def heads(n: int, dtype=torch.float32) -> tuple:
        return tuple(normal(1, 4, n, 64).to(dtype) for _ in range(3))

    def spun() -> tuple:
        angle = normal(4096, 32)
        return normal(1, 8, 4096, 64), angle.cos(), angle.sin()

    return {
        "(probe) gemm fp32 2048": lambda: (gemm, (normal(2048, 2048), normal(2048, 2048)), blocks),
        "(probe) gemm bf16 2048": lambda: (
            gemm, (normal(2048, 2048).to(bf16), normal(2048, 2048).to(bf16)), blocks,
        ),
        "attention fp32 1024": lambda: (attention, heads(1024), {"rows": 128, "cols": 64}),
        "attention fp32 causal 1024": lambda: (
            attention, heads(1024), {"rows": 128, "cols": 64, "causal": True},
        ),
        "attention fp32 4096": lambda: (attention, heads(4096), {"rows": 128, "cols": 64}),
        "attention bf16 4096": lambda: (attention, heads(4096, bf16), {"rows": 128, "cols": 128}),
        "softmax 4096x1024": lambda: (softmax, (normal(4096, 1024),), {}),
        "layernorm 4096x1024": lambda: (
            layernorm, (normal(4096, 1024), normal(1024)), {"bias": normal(1024)},
        ),
        "rmsnorm 4096x1024": lambda: (rmsnorm, (normal(4096, 1024), normal(1024)), {}),
        "rotary 8x4096x64": lambda: (rotary, spun(), {}),
        "cross entropy 1024x32000": lambda: (
            cross_entropy, (normal(1024, 32000), torch.randint(0, 32000, (1024,))), {},
        ),
        "based 8192": lambda: (
            based, (normal(1, 4, 8192, 16), normal(1, 4, 8192, 16), normal(1, 4, 8192, 64)),
            {"chunk": 64, "cols": 64},
        ),
    }  # fmt: skip


def _round(only: str, cpu: Device) -> dict[str, tuple[float, float]]:
    """Predicted and measured seconds by name, at rates just taken."""
    torch.manual_seed(0)
    found = {}
    for name, make in _calls().items():
        if only not in name:
            continue
        kernel, args, more = make()
        outputs = kernel(*args, **more)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        wanted = [p.name for p in kernel.signature.tensors if p.spec.role == "out"]
        given = {n: o for n, o in zip(wanted, outputs, strict=False) if len(wanted) == len(outputs)}
        call = kernel.binder.bind(args, more)
        fn, amounts = front_end_of(kernel, kernel.key_of(call))
        predicted = cpu_seconds(fn, amounts, call.sizes, cpu)
        found[name] = (
            predicted,
            seconds(lambda k=kernel, a=args, m={**more, **given}: k(*a, **m), 9),
        )
    return found


def rows(only: str = "", rounds: int = 3) -> list[dict]:
    """Each with predicted and measured milliseconds and their ratio, medians of rounds.

    A shared machine is fast in one minute and slow in the next, so that every round takes the
    rates anew and its ratios are its own.
    """
    takes = []
    for r in range(rounds):
        cpu = this_cpu.__wrapped__()
        rates = {k: v / 1e9 for k, v in cpu.matrix.items()}
        print(
            f"{cpu.units} threads; products {rates['f32']:.0f} GFLOP/s fp32, {rates['bf16']:.0f} "
            f"bf16; launch {cpu.launch * 1e6:.0f} us; division {cpu.division / 1e9:.1f} G/s; "
            f"arithmetic {cpu.vector / 1e9:.0f} GFLOP/s; exp {cpu.special / 1e9:.2f} G/s; memory "
            f"{cpu.dram / 1e9:.0f} GB/s, cache {cpu.l2 / 1e9:.0f} GB/s (round {r + 1} of {rounds})"
        )
        takes.append(_round(only, cpu))
    return [
        {
            "work": name,
            "predicted_ms": statistics.median(t[name][0] for t in takes) * 1e3,
            "measured_ms": statistics.median(t[name][1] for t in takes) * 1e3,
            "ratio": statistics.median(t[name][0] / t[name][1] for t in takes),
        }
        for name in takes[0]
    ]


def run(only: str = "", rounds: int = 3) -> list[dict]:
    """Prints the rows."""
    found = rows(only, rounds)
    print(f"{'':28}{'predicted, ms':>15}{'measured, ms':>15}{'ratio':>8}")
    for r in found:
        print(f"{r['work']:28}{r['predicted_ms']:15.2f}{r['measured_ms']:15.2f}{r['ratio']:8.2f}")
    held = [r for r in found if not r["work"].startswith("(")]
    good = sum(abs(r["ratio"] - 1) <= 0.3 for r in held)
    print(f"within 30 %: {good} of {len(held)} that no probe resembles")
    return found
