"""Kernels of the zoo as pipelines: whole, free of faults, and simulated to sane times."""

from __future__ import annotations

import pytest

from tkpy.ahead import Setting, call_of
from tkpy.cli.find import find
from tkpy.pipeline.check import check
from tkpy.pipeline.device import device
from tkpy.pipeline.events import AsyncCopy, Compute, Mma, StoreAsync
from tkpy.pipeline.of_kernel import estimate, plan

H100 = device("h100")
FEW = ["attention", "gemm", "layernorm", "rotary"]
MORE = [
    "based", "cross_entropy", "fftconv", "hedgehog", "linear_attention", "mamba2", "rmsnorm",
    "linear_cross_entropy", "short_conv", "softmax",
]  # fmt: skip


def planned(name: str, sizes: dict | None = None, **constants):
    kernel = find(name).kernel
    chosen = Setting("bf16", sizes or {}, constants)
    return plan(kernel, H100, dict(call_of(kernel, chosen).sizes), chosen)


@pytest.mark.parametrize("name", [*FEW, *[pytest.param(n, marks=pytest.mark.slow) for n in MORE]])
def test_every_kernel_is_a_pipeline_without_faults(name):
    found = planned(name)
    assert [str(f) for f in check(found.pipeline)] == []
    result = estimate(found, H100)
    assert 0 < result.seconds < 1
    assert any(isinstance(e, AsyncCopy) for r in found.pipeline.roles for e in r.events())


def test_a_gemm_has_its_rings_and_its_products():
    found = planned("gemm", {"M": 4096, "N": 4096, "K": 4096}, rows=128, cols=256)
    assert {r.bytes for r in found.pipeline.rings} == {128 * 64 * 2, 64 * 256 * 2}
    assert found.tasks == 32 * 16 and found.pipeline.iterations == 64
    flops = sum(e.flops for e in found.pipeline.role("compute").body if isinstance(e, Mma))
    assert flops * found.pipeline.role("compute").groups == 2 * 128 * 256 * 64
    result = estimate(found, H100)
    assert 0.6 < result.flops / H100.products("bf16") <= 1.0
    assert result.timeline.binding == "matrix"


def test_a_loop_around_the_main_one_is_flattened_into_it():
    """Its own work comes once in so many iterations, and none of it is lost."""
    sizes = {"M": 256, "D": 256, "V": 1024}
    found = planned("linear_cross_entropy", sizes, bias=True)
    compute, pipeline = found.pipeline.role("compute"), found.pipeline
    assert pipeline.iterations == (256 // 64) * (1024 // 128) and found.tasks == 2
    each = sum(e.flops for e in compute.body if isinstance(e, Mma)) * compute.groups
    assert each * pipeline.iterations * found.tasks == 2 * 256 * 256 * 1024
    rare = [e for e in compute.body if e.when.every == 4]
    exponentials = sum(e.special for e in rare if isinstance(e, Compute)) * compute.groups
    assert exponentials >= 128 * 128
    assert {e.when.phase for e in rare if isinstance(e, Compute)} == {3}
    assert {r.every for r in pipeline.rings} == {1, 4}  # the bias is loaded by the outer loop
    assert check(pipeline) == []


def test_rows_without_a_loop_go_through_output_rings():
    found = planned("rotary", {"B": 4, "H": 8, "N": 4096, "D": 128})
    assert any(isinstance(e, StoreAsync) for e in found.pipeline.role("store").body)
    result = estimate(found, H100)
    assert result.timeline.binding == "dram"
    moved = 2 * 2 * 4 * 8 * 4096 * 128
    assert 0.5 < moved / H100.dram / result.seconds <= 1.01


def test_causal_attention_takes_less_time():
    sizes = {"B": 4, "H": 8, "G": 8, "N": 4096, "M": 4096, "D": 64}
    whole = estimate(planned("attention", sizes), H100).seconds
    half = estimate(planned("attention", sizes, causal=True), H100).seconds
    assert 0.45 < half / whole < 0.7


def test_larger_problems_take_longer():
    times = [
        estimate(planned("gemm", {"M": n, "N": n, "K": n}), H100).seconds for n in (512, 2048, 4096)
    ]
    assert times == sorted(times) and times[2] > 5 * times[1]
