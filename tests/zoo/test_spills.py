"""What GPUs spill of the zoo's kernels and of their derived backwards, at the default sides."""

from __future__ import annotations

import pytest

from codegen.inspect import inspect
from tkpy.ahead import Setting, backward_for, compile_lowered, lower_for
from tkpy.template.plan import SHARED
from zoo import kernels

#: Bytes a thread of the largest program, where they are not 0, for bf16: (sm_90, gfx942).
FORWARD = {
    # Whole rows of a block's weights for both parts of a complex product stay in registers.
    "fftconv": (72, 1580),
    # 16-bit sides are those that Hopper holds; a wave of 64 lanes has half the registers an element.
    "hedgehog": (0, 1424),
    "mamba2": (0, 664),
    "linear_attention": (0, 108),
    "linear_cross_entropy": (0, 164),
    "based": (0, 556),
    "taylor_quadratic": (0, 20),
    "vector_quantize": (0, 56),
}
BACKWARD = {
    # Four products of complex tiles and their adjoints, all of them alive at once.
    "fftconv": (17108, 6204),
    # d k and d v of a head are two accumulators beside the scores and their gradient.
    "attention": (212, 312),
    "attention_decode": (160, 0),
    # Its state has F^2 rows, and the adjoint of the state as many again.
    "based": (1208, 1772),
    "linear_attention": (0, 344),
    "mamba2": (8, 564),
    # Four states and their adjoints.
    "hedgehog": (1252, 9496),
    "short_conv": (0, 1308),
    "code_sums": (136, 20),
    "swiglu": (8, 0),
    "taylor_quadratic": (0, 48),
    "taylor_block": (0, 208),
    "linear_cross_entropy": (0, 164),
    "vector_quantize": (0, 1492),
}
TARGETS = ("sm_90", "gfx942")
#: Those with no derivative: they give indices, or change what they read.
NONE = ("nearest_code", "based_decode", "ema_codebook")
#: Exact products have no matrix instruction: their operands are in registers, and fit with the
#: defaults for f32; those of Hedgehog's two feature maps do at no side.
EXACT = ("gemm", "flux_gelu", "flux_gate", "attention", "linear_attention", "mamba2", "hedgehog",
         "linear_cross_entropy", "nearest_code", "vector_quantize")  # fmt: skip


def setting(name: str, dtype: str = "bf16") -> Setting:
    return Setting(dtype, {}, {"exact": False} if name == "fftconv" else {})


def spilled(kernel, programs, target: str) -> int:
    reports = [inspect(compile_lowered(kernel, p, target)) for p in programs]
    assert all(r.shared_bytes <= SHARED[target] for r in reports), reports
    return max(r.spills for r in reports)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", kernels())
def test_a_kernel_spills_no_more_than_is_known(name, target):
    kernel = kernels()[name]
    got = spilled(kernel, [lower_for(kernel, setting(name), target=target)], target)
    assert got <= FORWARD.get(name, (0, 0))[TARGETS.index(target)]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_exact_products_fit_registers(name):
    kernel = kernels()[name]
    got = spilled(kernel, [lower_for(kernel, setting(name, "f32"), target="sm_90")], "sm_90")
    assert got <= (1128 if name == "hedgehog" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [n for n in kernels() if n not in NONE])
def test_a_backward_spills_no_more_than_is_known(name, target):
    kernel = kernels()[name]
    made = backward_for(kernel, setting(name), target=target)
    got = spilled(kernel, [made.forward, *made.pieces], target)
    assert got <= BACKWARD.get(name, (0, 0))[TARGETS.index(target)]
