"""Attention forward by hand, after the structure of Triton's tutorial 06 (fused attention).

One program holds a block of queries and walks over the keys. Through pointers it first takes the
blocks that every query sees whole, then those at the diagonal and the end, which need a mask.
Through descriptors it is one loop with the mask in it: Triton 3.7 splits by warp only a loop that
is alone, and only over descriptors of two dimensions.
"""

import triton
import triton.language as tl


@triton.jit
def taken(
    acc, total, top, q, k, v, keys, rows, N, M, scale, MASKED: tl.constexpr, CAUSAL: tl.constexpr
):
    """(acc, total, top) with one block of keys taken in."""
    s = tl.dot(q, k.T) * scale
    if MASKED:
        seen = (keys < M)[None, :]
        if CAUSAL:
            seen = seen & (rows[:, None] + (M - N) >= keys[None, :])
        s = tl.where(seen, s, float("-inf"))
    new = tl.maximum(top, tl.max(s, 1))
    p = tl.math.exp2(s - new[:, None])
    decay = tl.math.exp2(top - new)
    total = total * decay + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None])
    return acc, total, new


@triton.jit
def stop_of(first, N, M, CAUSAL: tl.constexpr, BM: tl.constexpr):
    """The end of the keys that a block of queries sees."""
    stop = M
    if CAUSAL:
        stop = min(M, max(first + BM + M - N, 0))
    return stop


@triton.jit(do_not_specialize=["H", "N", "M"])
def attention_described(
    q_ptr, k_ptr, v_ptr, o_ptr, scale, H, N, M,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_km,
    stride_vb, stride_vh, stride_vm, stride_ob, stride_oh, stride_on,
    D: tl.constexpr, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr, SPECIALISE: tl.constexpr,
):  # fmt: skip
    """o = softmax(scale q k^T) v; q, o: [B, H, N, D], k, v: [B, H, M, D], innermost stride one."""
    first = tl.program_id(0) * BM
    h = tl.program_id(1)
    b = tl.program_id(2)
    rows = first + tl.arange(0, BM)
    q_desc = tl.make_tensor_descriptor(
        q_ptr + b * stride_qb + h * stride_qh, [N, D], [stride_qn, 1], [BM, D]
    )
    k_desc = tl.make_tensor_descriptor(
        k_ptr + b * stride_kb + h * stride_kh, [M, D], [stride_km, 1], [BN, D]
    )
    v_desc = tl.make_tensor_descriptor(
        v_ptr + b * stride_vb + h * stride_vh, [M, D], [stride_vm, 1], [BN, D]
    )
    o_desc = tl.make_tensor_descriptor(
        o_ptr + b * stride_ob + h * stride_oh, [N, D], [stride_on, 1], [BM, D]
    )
    q = q_desc.load([first, 0])
    acc = tl.zeros((BM, D), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    top = tl.full((BM,), -3.4e38, tl.float32)
    bits = scale * 1.4426950408889634
    blocks = tl.cdiv(stop_of(first, N, M, CAUSAL, BM), BN)
    for block in tl.range(blocks, num_stages=STAGES, warp_specialize=SPECIALISE):
        keys = block * BN + tl.arange(0, BN)
        k = k_desc.load([block * BN, 0])
        v = v_desc.load([block * BN, 0])
        acc, total, top = taken(acc, total, top, q, k, v, keys, rows, N, M, bits, True, CAUSAL)
    o_desc.store([first, 0], (acc / total[:, None]).to(o_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["H", "N", "M"])
def attention_pointers(
    q_ptr, k_ptr, v_ptr, o_ptr, scale, H, N, M,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_km,
    stride_vb, stride_vh, stride_vm, stride_ob, stride_oh, stride_on,
    D: tl.constexpr, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """As ``attention_described``, through pointers."""
    first = tl.program_id(0) * BM
    h = tl.program_id(1)
    b = tl.program_id(2)
    rows = first + tl.arange(0, BM)
    lanes = tl.arange(0, D)
    k_from = k_ptr + b * stride_kb + h * stride_kh
    v_from = v_ptr + b * stride_vb + h * stride_vh
    q_at = q_ptr + b * stride_qb + h * stride_qh + rows[:, None] * stride_qn + lanes[None, :]
    q = tl.load(q_at, mask=rows[:, None] < N, other=0.0)
    acc = tl.zeros((BM, D), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    top = tl.full((BM,), -3.4e38, tl.float32)
    bits = scale * 1.4426950408889634
    blocks = tl.cdiv(stop_of(first, N, M, CAUSAL, BM), BN)
    whole = min(M // BN, blocks)
    if CAUSAL:
        whole = min(whole, max(first + M - N + 1, 0) // BN)
    for block in tl.range(whole, num_stages=STAGES):
        keys = block * BN + tl.arange(0, BN)
        k = tl.load(k_from + keys[:, None] * stride_km + lanes[None, :])
        v = tl.load(v_from + keys[:, None] * stride_vm + lanes[None, :])
        acc, total, top = taken(acc, total, top, q, k, v, keys, rows, N, M, bits, False, CAUSAL)
    for block in tl.range(whole, blocks, num_stages=1):
        keys = block * BN + tl.arange(0, BN)
        inside = keys[:, None] < M
        k = tl.load(k_from + keys[:, None] * stride_km + lanes[None, :], mask=inside, other=0.0)
        v = tl.load(v_from + keys[:, None] * stride_vm + lanes[None, :], mask=inside, other=0.0)
        acc, total, top = taken(acc, total, top, q, k, v, keys, rows, N, M, bits, True, CAUSAL)
    out = (acc / total[:, None]).to(o_ptr.dtype.element_ty)
    o_at = o_ptr + b * stride_ob + h * stride_oh + rows[:, None] * stride_on + lanes[None, :]
    tl.store(o_at, out, mask=rows[:, None] < N)
