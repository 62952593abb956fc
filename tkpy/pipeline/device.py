"""Machines as a pipeline sees them: rates from data sheets, and one measured share.

Peaks are the vendors': dense, at boost clock; of the cache, the width of a multiprocessor's port.
Of the matrix peak a real kernel gets a share, power being what it is. That share is the one number
from a measurement: ThunderKittens' bf16 GEMM, 855 TFLOP/s of 989 on an H100 and 1540 of 2250 on a
B200; machines without such a figure get the H100's. Latencies are no vendor's: the usual order of
magnitude of published micro-benchmarks. Throughput hardly depends on them once a ring hides them,
which a test makes sure of.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tkpy.errors import TkError


@dataclass(frozen=True)
class Device:
    """Rates of a whole device; a block of threads gets its share.

    Attributes:
        name: what ``--device`` takes.
        title: the product.
        units: multiprocessors (compute units, cores).
        clock: Hz.
        matrix: FLOP/s of dense products by element type.
        vector: fp32 FLOP/s (a multiply-add is 2).
        special: exponentials and their kin a second.
        division: divisions and roots a second, where these are not special; 0: they are.
        dram, l2: bytes a second.
        shared_bandwidth: bytes a second between shared memory and registers.
        shared: bytes of shared memory that a block may have.
        share: of the matrix peak that a real kernel gets.
        latency: seconds of a copy from DRAM; ``l2_latency`` from the cache.
        mma_latency: seconds until a product that has been computed can be used.
        sync: seconds to pass a barrier or to see a phase complete.
        launch: seconds between a block's end and the next block's first instruction.
    """

    name: str
    title: str
    units: int
    clock: float
    matrix: dict[str, float] = field(hash=False)
    vector: float = 0
    special: float = 0
    dram: float = 0
    l2: float = 0
    shared_bandwidth: float = 0
    shared: int = 227 * 1024
    share: float = 855 / 989.4
    latency: float = 700e-9
    l2_latency: float = 300e-9
    mma_latency: float = 60e-9
    sync: float = 20e-9
    launch: float = 1e-6
    division: float = 0.0

    def products(self, dtype: str) -> float:
        """FLOP/s of products of a type that can be had."""
        name = {"f16": "bf16", "i8": "fp8", "u8": "fp8"}.get(dtype, dtype)
        return self.matrix.get(name, self.matrix["bf16"]) * self.share


def _gpu(name, title, units, clock, matrix, vector, special, dram, l2, **more) -> Device:
    return Device(
        name, title, units, clock, matrix, vector, special * units * clock, dram, l2,
        128 * units * clock, **more,
    )  # fmt: skip


T, G = 1e12, 1e9

DEVICES = {
    d.name: d
    for d in (
        _gpu(
            "h100", "NVIDIA H100 SXM", 132, 1.83 * G,
            {"bf16": 989.4 * T, "fp8": 1978.9 * T, "f32": 494.7 * T}, 66.9 * T, 16, 3.35 * T,
            132 * 64 * 1.83 * G,
        ),
        _gpu(
            "h200", "NVIDIA H200 SXM", 132, 1.83 * G,
            {"bf16": 989.4 * T, "fp8": 1978.9 * T, "f32": 494.7 * T}, 66.9 * T, 16, 4.8 * T,
            132 * 64 * 1.83 * G,
        ),
        _gpu(
            "b200", "NVIDIA B200", 148, 1.85 * G,
            {"bf16": 2250 * T, "fp8": 4500 * T, "f32": 1125 * T}, 75 * T, 16, 7.7 * T,
            148 * 64 * 1.85 * G,
            share=1540 / 2250,
        ),
        _gpu(
            "a100", "NVIDIA A100 SXM 80GB", 108, 1.41 * G,
            {"bf16": 312 * T, "fp8": 624 * T, "f32": 156 * T}, 19.5 * T, 16, 2.04 * T,
            5120 * 1.41 * G,
            shared=163 * 1024,
        ),
        _gpu(
            "mi300x", "AMD MI300X", 304, 2.1 * G,
            {"bf16": 1307.4 * T, "fp8": 2614.9 * T, "f32": 653.7 * T}, 163.4 * T, 16, 5.3 * T,
            17 * T, shared=64 * 1024,
        ),
    )
}  # fmt: skip


def device(name: str) -> Device:
    """The device of that name: one of DEVICES, or "cpu", which is measured now (a second or two).

    Raises TkError for another name.
    """
    if name == "cpu":
        from tkpy.pipeline.probe import this_cpu

        return this_cpu()
    if name not in DEVICES:
        raise TkError(f"no device {name!r}\n  fix: one of {', '.join([*DEVICES, 'cpu'])}")
    return DEVICES[name]
