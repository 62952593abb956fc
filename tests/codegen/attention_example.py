"""A hand-written Triton attention and GEMM, compiled once for each target and configuration."""

from __future__ import annotations

import functools

from codegen.aot import Compiled, compile_source

ATTENTION = """
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M", "N", "stride_q", "stride_k", "stride_v", "stride_o"])
def attention(
    q_ptr, k_ptr, v_ptr, o_ptr, M, N, stride_q, stride_k, stride_v, stride_o, scale,
    D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, HINT: tl.constexpr,
):
    # o (heads, M, D) = softmax(q k^T) v; heads follow each other, rows are strided.
    if HINT == "multiple_of":
        stride_q, stride_k = tl.multiple_of(stride_q, 16), tl.multiple_of(stride_k, 16)
        stride_v, stride_o = tl.multiple_of(stride_v, 16), tl.multiple_of(stride_o, 16)
    if HINT == "stride16":
        stride_q, stride_k = stride_q * 16, stride_k * 16
        stride_v, stride_o = stride_v * 16, stride_o * 16
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q_ptr += head * M * stride_q
    k_ptr += head * N * stride_k
    v_ptr += head * N * stride_v
    o_ptr += head * M * stride_o
    rows, d = block * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
    live = (rows < M)[:, None]
    q = tl.load(q_ptr + rows[:, None] * stride_q + d[None, :], mask=live, other=0.0)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    scale2 = scale * 1.4426950408889634
    for j in range(0, N, COLS):
        cols = j + tl.arange(0, COLS)
        inside = (cols < N)[:, None]
        k = tl.load(k_ptr + cols[:, None] * stride_k + d[None, :], mask=inside, other=0.0)
        s = tl.dot(q, k.T) * scale2
        s = tl.where((cols < N)[None, :], s, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        keep = tl.exp2(top - new)
        total = total * keep + tl.sum(p, 1)
        v = tl.load(v_ptr + cols[:, None] * stride_v + d[None, :], mask=inside, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None])
        top = new
    o = acc / total[:, None]
    tl.store(o_ptr + rows[:, None] * stride_o + d[None, :], o.to(o_ptr.dtype.element_ty), mask=live)
"""

POINTERS = ("q_ptr", "k_ptr", "v_ptr", "o_ptr")
STRIDES = ("stride_q", "stride_k", "stride_v", "stride_o")

# Per target and head size: rows and columns of a block, warps, stages; none of them spills.
CONFIGURATIONS: dict[tuple[str, int], tuple[int, int, int, int]] = {
    ("sm_80", 64): (128, 64, 8, 3),
    ("sm_90", 64): (128, 64, 8, 3),
    ("sm_100", 64): (128, 64, 8, 2),
    ("gfx942", 64): (128, 64, 8, 2),
    ("sm_80", 128): (128, 64, 8, 2),
    ("sm_90", 128): (128, 64, 8, 2),
    ("sm_100", 128): (128, 64, 8, 2),
    ("gfx942", 128): (128, 32, 8, 2),
}


@functools.cache
def attention(
    target: str, d: int, rows: int, cols: int, warps: int, stages: int, hint: str = "attribute"
) -> Compiled:
    """bf16 attention. hint: how the kernel learns that strides are multiples of 16."""
    aligned = POINTERS + (STRIDES if hint == "attribute" else ())
    return compile_source(
        ATTENTION,
        "attention",
        {
            **dict.fromkeys(POINTERS, "*bf16"),
            **dict.fromkeys(("M", "N", *STRIDES), "i32"),
            "scale": "fp32",
        },
        {"D": d, "ROWS": rows, "COLS": cols, "HINT": hint},
        target,
        num_warps=warps,
        num_stages=stages,
        attrs=dict.fromkeys(aligned, 16),
    )


def tuned(target: str, d: int = 64) -> Compiled:
    """Attention in this target's configuration."""
    return attention(target, d, *CONFIGURATIONS[target, d])


GEMM = """
import triton
import triton.language as tl


@triton.jit
def gemm(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    a = tl.make_tensor_descriptor(a_ptr, [M, K], [K, 1], [BM, BK])
    b = tl.make_tensor_descriptor(b_ptr, [N, K], [K, 1], [BN, BK])
    c = tl.make_tensor_descriptor(c_ptr, [M, N], [N, 1], [BM, BN])
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k in tl.range(0, tl.cdiv(K, BK), num_stages=3, warp_specialize=True):
        acc = tl.dot(a.load([i, k * BK]), b.load([j, k * BK]).T, acc)
    c.store([i, j], acc.to(tl.bfloat16))
"""


@functools.cache
def specialised_gemm(target: str) -> Compiled:
    """A GEMM through tensor descriptors whose K loop asks for warp specialisation."""
    return compile_source(
        GEMM,
        "gemm",
        {**dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), "*bf16"), **dict.fromkeys("MNK", "i32")},
        {"BM": 128, "BN": 128, "BK": 64},
        target,
        attrs=dict.fromkeys(("a_ptr", "b_ptr", "c_ptr", "M", "N", "K"), 16),
    )
