"""The hand-written kernels are right, on the CPU; and lengths of loops are read from machine code."""

from __future__ import annotations

import pytest
import torch
import triton

from bench.handwritten import attention, gemm
from bench.static import loop_length
from codegen.cpu import run


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(("m", "n", "k"), [(100, 72, 40), (32, 64, 96), (1, 8, 8)])
def test_gemm_by_hand(described, m, n, k):
    a, b, c = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    kernel = gemm.gemm_described if described else gemm.gemm_pointers
    more = {"SPECIALISE": True} if described else {}
    run(kernel, (3,), a, b, c, m, n, k, k, n, n, BM=32, BN=32, BK=32, GROUP=2, STAGES=2, **more)
    size = a.double().abs() @ b.double().abs()
    assert ((c - a.double() @ b.double()).abs() <= 2 * k * 1.2e-7 * size).all()


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_hand(described, causal):
    q, k, v = torch.randn(2, 2, 70, 32), torch.randn(2, 2, 90, 32), torch.randn(2, 2, 90, 32)
    o = torch.empty_like(q)
    kernel = attention.attention_described if described else attention.attention_pointers
    more = {"SPECIALISE": True} if described else {}
    strides = [s for t in (q, k, v, o) for s in t.stride()[:3]]
    run(kernel, (triton.cdiv(70, 32), 2, 2), q, k, v, o, 0.2, 2, 70, 90, *strides,
        D=32, CAUSAL=causal, BM=32, BN=32, STAGES=2, **more)  # fmt: skip
    s = q.double() @ k.double().mT * 0.2
    if causal:
        seen = torch.arange(90) <= torch.arange(70)[:, None] + 20
        s = s.masked_fill(~seen, float("-inf"))
    assert (o - s.softmax(-1) @ v.double()).abs().max() < 2e-6


def test_length_of_the_innermost_matrix_loop():
    class Fake:
        asm = {"amdgcn": ""}  # noqa: RUF012
        target = "gfx942"
        assembly = """
.LBB0_1:
        s_add_u32 s0, s0, 1
.LBB0_2:
        v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], 0
        s_nop 0
        s_cbranch_scc1 .LBB0_2
        s_cbranch_scc1 .LBB0_1
.LBB0_3:
        v_add_f32 v0, v0, v1
        s_cbranch_scc1 .LBB0_3
"""

    assert loop_length(Fake()) == 3
