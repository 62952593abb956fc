"""tt.dot_scaled in every format against the numbers that its codes stand for."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "bf16": torch.bfloat16,
          "fp16": torch.float16}  # fmt: skip


@triton.jit
def product(a, sa, b, sb, c, o, FA: tl.constexpr, FB: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
            K: tl.constexpr, AM: tl.constexpr, AK: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
            G: tl.constexpr, PA: tl.constexpr, PB: tl.constexpr):  # fmt: skip
    m, n = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    g = tl.arange(0, K // G)[None, :]
    at = tl.load(a + tl.arange(0, AM)[:, None] * AK + tl.arange(0, AK)[None, :])
    bt = tl.load(b + tl.arange(0, BK)[:, None] * BN + tl.arange(0, BN)[None, :])
    ta = None if sa is None else tl.load(sa + m * (K // G) + g)
    tb = None if sb is None else tl.load(sb + tl.arange(0, N)[:, None] * (K // G) + g)
    acc = tl.load(c + m * N + n)
    r = tl.dot_scaled(at, ta, FA, bt, tb, FB, acc, lhs_k_pack=PA, rhs_k_pack=PB)
    tl.store(o + m * N + n, r)


def operand(fmt, shape, packed, generator):
    """(tensor as passed, its numbers)."""
    if fmt != "e2m1":
        x = (torch.randn(shape, generator=generator) * 3).to(DTYPES[fmt])
        return x, x.double()
    codes = torch.randint(0, 16, shape, generator=generator)
    low, high = codes.unflatten(packed, (-1, 2)).unbind(packed + 1)
    return (low + 16 * high).to(torch.uint8).contiguous(), E2M1[codes].double()


def scales(rows, groups, kind, generator):
    if kind is None:
        return None, torch.ones(rows, groups, dtype=torch.float64)
    if kind == "e4m3":
        s = torch.rand(rows, groups, generator=generator).to(torch.float8_e4m3fn)
        return s, s.double()
    s = torch.randint(117, 138, (rows, groups), generator=generator, dtype=torch.int32)
    return s.to(torch.uint8), 2.0 ** (s.double() - 127)


@pytest.mark.parametrize("packs", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize(
    "scaled", [("e8m0", "e8m0"), ("e8m0", None), (None, "e8m0"), ("e4m3", "e4m3")]
)
@pytest.mark.parametrize("formats", [("e2m1", "e2m1"), ("e4m3", "e5m2"), ("e5m2", "e2m1"),
                                     ("bf16", "e4m3"), ("fp16", "e2m1")])  # fmt: skip
def test_dot_scaled(formats, scaled, packs):
    if any(not p and f != "e2m1" for p, f in zip(packs, formats, strict=True)):
        pytest.skip("only four-bit numbers are packed along another axis")
    m, n, k = 32, 16, 64
    gen = torch.Generator().manual_seed(7)
    group = 16 if "e4m3" in scaled else 32
    a, av = operand(formats[0], (m, k), 1 if packs[0] else 0, gen)
    b, bv = operand(formats[1], (k, n), 0 if packs[1] else 1, gen)
    sa, ta = scales(m, k // group, scaled[0], gen)
    sb, tb = scales(n, k // group, scaled[1], gen)
    c = torch.randn(m, n, generator=gen)
    o = torch.empty(m, n)
    product[(1,)](a, sa, b, sb, c, o, *formats, m, n, k, *a.shape, *b.shape, group, *packs)
    left = av * ta.repeat_interleave(group, 1)
    right = bv * tb.repeat_interleave(group, 1).T
    want, terms = c.double() + left @ right, c.double().abs() + left.abs() @ right.abs()
    assert ((o.double() - want).abs() <= (k + 1) * 2.0**-24 * terms).all()


def test_scales_at_their_ends():
    """A scale of 255 is NaN, one of 0 is 2**-127, and neither spreads to other rows."""
    a = torch.full((16, 64), 4.0).to(torch.float8_e4m3fn)
    b = torch.ones(64, 16).to(torch.float8_e4m3fn)
    sa = torch.full((16, 2), 127, dtype=torch.uint8)
    sa[3, 1], sa[5], sa[6, 0] = 255, 0, 254
    o = torch.empty(16, 16)
    args = ("e4m3", "e4m3", 16, 16, 64, 16, 64, 64, 16, 32, True, True)
    product[(1,)](a, sa, b, None, torch.zeros(16, 16), o, *args)
    assert o[3].isnan().all() and (o[5] == 2.0**-119).all() and (o[6] == np.inf).all()
    rest = [k for k in range(16) if k not in (3, 5, 6)]
    assert (o[rest] == 256).all()
