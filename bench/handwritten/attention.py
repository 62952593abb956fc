"""Attention forward by hand, after the structure of Triton's tutorial 06 (fused attention).

One program holds a block of queries and walks over the keys: first those blocks that every query
sees whole, then the ones on the diagonal and at the end, which need a mask.
"""

import triton
import triton.language as tl


@triton.jit
def walk(
    acc, total, top, q, k_from, v_from, b, h, first, start, stop, N, M, scale,
    stride_km, stride_vm,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, DESCRIBED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
    STAGES: tl.constexpr, SPECIALISE: tl.constexpr,
):  # fmt: skip
    """The keys of blocks ``start`` to ``stop`` taken into (acc, total, top)."""
    for block in tl.range(start, stop, num_stages=STAGES, warp_specialize=SPECIALISE):
        at = block * BN
        keys = at + tl.arange(0, BN)
        if DESCRIBED:
            k = k_from.load([b, h, at, 0]).reshape(BN, D)
        else:
            k_at = k_from + keys[:, None] * stride_km + tl.arange(0, D)[None, :]
            k = tl.load(k_at, mask=keys[:, None] < M, other=0.0) if MASKED else tl.load(k_at)
        s = tl.dot(q, k.T) * scale
        if MASKED:
            seen = (keys < M)[None, :]
            if CAUSAL:
                rows = first + tl.arange(0, BM)
                seen = seen & (rows[:, None] + (M - N) >= keys[None, :])
            s = tl.where(seen, s, -3.4e38)
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.math.exp2(s - new[:, None])
        decay = tl.math.exp2(top - new)
        total = total * decay + tl.sum(p, 1)
        acc = acc * decay[:, None]
        if DESCRIBED:
            v = v_from.load([b, h, at, 0]).reshape(BN, D)
        else:
            v_at = v_from + keys[:, None] * stride_vm + tl.arange(0, D)[None, :]
            v = tl.load(v_at, mask=keys[:, None] < M, other=0.0) if MASKED else tl.load(v_at)
        acc = tl.dot(p.to(v.dtype), v, acc)
        top = new
    return acc, total, top


@triton.jit(do_not_specialize=["N", "M"])
def attention(
    q_ptr, k_ptr, v_ptr, o_ptr, scale, B, H, N, M,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_km,
    stride_vb, stride_vh, stride_vm, stride_ob, stride_oh, stride_on,
    D: tl.constexpr, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr, DESCRIBED: tl.constexpr, SPECIALISE: tl.constexpr,
):  # fmt: skip
    """o = softmax(scale q k^T) v; q, o: [B, H, N, D], k, v: [B, H, M, D], innermost stride one."""
    first = tl.program_id(0) * BM
    h = tl.program_id(1)
    b = tl.program_id(2)
    rows = first + tl.arange(0, BM)
    lanes = tl.arange(0, D)
    if DESCRIBED:
        q_desc = tl.make_tensor_descriptor(
            q_ptr, [B, H, N, D], [stride_qb, stride_qh, stride_qn, 1], [1, 1, BM, D]
        )
        k_from = tl.make_tensor_descriptor(
            k_ptr, [B, H, M, D], [stride_kb, stride_kh, stride_km, 1], [1, 1, BN, D]
        )
        v_from = tl.make_tensor_descriptor(
            v_ptr, [B, H, M, D], [stride_vb, stride_vh, stride_vm, 1], [1, 1, BN, D]
        )
        o_desc = tl.make_tensor_descriptor(
            o_ptr, [B, H, N, D], [stride_ob, stride_oh, stride_on, 1], [1, 1, BM, D]
        )
        q = q_desc.load([b, h, first, 0]).reshape(BM, D)
    else:
        k_from = k_ptr + b * stride_kb + h * stride_kh
        v_from = v_ptr + b * stride_vb + h * stride_vh
        q_at = q_ptr + b * stride_qb + h * stride_qh + rows[:, None] * stride_qn + lanes[None, :]
        q = tl.load(q_at, mask=rows[:, None] < N, other=0.0)
    acc = tl.zeros((BM, D), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    top = tl.full((BM,), -3.4e38, tl.float32)
    bits = scale * 1.4426950408889634
    stop = M
    whole = M // BN
    if CAUSAL:
        stop = min(M, max(first + BM + M - N, 0))
        whole = min(whole, max(first + M - N + 1, 0) // BN)
    acc, total, top = walk(
        acc, total, top, q, k_from, v_from, b, h, first, 0, whole, N, M, bits,
        stride_km, stride_vm, False, CAUSAL, DESCRIBED, BM, BN, D, STAGES, SPECIALISE,
    )  # fmt: skip
    acc, total, top = walk(
        acc, total, top, q, k_from, v_from, b, h, first, whole, tl.cdiv(stop, BN), N, M, bits,
        stride_km, stride_vm, True, CAUSAL, DESCRIBED, BM, BN, D, 1, False,
    )  # fmt: skip
    out = (acc / total[:, None]).to(o_ptr.dtype.element_ty)
    if DESCRIBED:
        o_desc.store([b, h, first, 0], out.reshape(1, 1, BM, D))
    else:
        o_at = o_ptr + b * stride_ob + h * stride_oh + rows[:, None] * stride_on + lanes[None, :]
        tl.store(o_at, out, mask=rows[:, None] < N)
