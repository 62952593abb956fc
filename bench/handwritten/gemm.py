"""C = A B by hand, after the structure of Triton's tutorial 09 (persistent matmul).

A program walks over tiles of C with the stride of the grid, in groups of ``GROUP`` rows of tiles,
so that tiles which run at the same time share operands in L2. One form reads through tensor
descriptors, for targets with bulk copies, and can be specialised by warp; the other has pointers.
"""

import triton
import triton.language as tl


@triton.jit
def place(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of tile number ``tile``."""
    in_group = GROUP * tiles_n
    first = (tile // in_group) * GROUP
    height = min(tiles_m - first, GROUP)
    return first + (tile % height), (tile % in_group) // height


@triton.jit(do_not_specialize=["M", "N", "K"])
def gemm_described(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_bk, stride_cm,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    STAGES: tl.constexpr, SPECIALISE: tl.constexpr,
):  # fmt: skip
    """a: [M, K], b: [K, N], c: [M, N], rows contiguous and 16-byte aligned."""
    a_desc = tl.make_tensor_descriptor(a_ptr, [M, K], [stride_am, 1], [BM, BK])
    b_desc = tl.make_tensor_descriptor(b_ptr, [K, N], [stride_bk, 1], [BK, BN])
    c_desc = tl.make_tensor_descriptor(c_ptr, [M, N], [stride_cm, 1], [BM, BN])
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    steps = tl.cdiv(K, BK)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        i, j = place(tile, tiles_m, tiles_n, GROUP)
        acc = tl.zeros((BM, BN), tl.float32)
        for k in tl.range(steps, num_stages=STAGES, warp_specialize=SPECIALISE):
            a = a_desc.load([i * BM, k * BK])
            b = b_desc.load([k * BK, j * BN])
            acc = tl.dot(a, b, acc)
        c_desc.store([i * BM, j * BN], acc.to(c_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["M", "N", "K"])
def gemm_pointers(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_bk, stride_cm,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """As ``gemm_described``, through pointers; the innermost strides are one."""
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    steps = tl.cdiv(K, BK)
    lanes_k = tl.arange(0, BK)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        i, j = place(tile, tiles_m, tiles_n, GROUP)
        rows = i * BM + tl.arange(0, BM)
        cols = j * BN + tl.arange(0, BN)
        # Rows and columns past the end read what is there for others; they are never stored.
        safe_rows = tl.max_contiguous(tl.multiple_of(tl.where(rows < M, rows, 0), BM), BM)
        safe_cols = tl.max_contiguous(tl.multiple_of(tl.where(cols < N, cols, 0), BN), BN)
        a_at = a_ptr + safe_rows[:, None] * stride_am + lanes_k[None, :]
        b_at = b_ptr + lanes_k[:, None] * stride_bk + safe_cols[None, :]
        acc = tl.zeros((BM, BN), tl.float32)
        for k in tl.range(steps, num_stages=STAGES):
            left = K - k * BK
            a = tl.load(a_at, mask=lanes_k[None, :] < left, other=0.0)
            b = tl.load(b_at, mask=lanes_k[:, None] < left, other=0.0)
            acc = tl.dot(a, b, acc)
            a_at += BK
            b_at += BK * stride_bk
        inside = (rows[:, None] < M) & (cols[None, :] < N)
        c_at = c_ptr + rows[:, None] * stride_cm + cols[None, :]
        tl.store(c_at, acc.to(c_ptr.dtype.element_ty), mask=inside)
