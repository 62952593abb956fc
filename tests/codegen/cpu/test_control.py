"""Loops, branches, early returns, calls, asserts, and what is refused."""

import pytest
import torch
import triton
import triton.language as tl

from codegen.cpu.launch import KernelError
from codegen.cpu.ttir import Unsupported


@triton.jit
def loops(x, o, n, HOW: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    if HOW == "for":
        acc = tl.zeros((N,), tl.float32)
        for k in range(n):
            acc += v * k
        v = acc
    elif HOW == "swap":
        a, b = v, v * 2
        for _ in range(n):
            a, b = b, a + b
        v = a
    elif HOW == "three":
        a, b, c = v, v + 1, v + 2
        for _ in range(n):
            a, b, c = b, c, a
        v = a * 100 + b * 10 + c
    elif HOW == "shift":
        w = v
        for _ in range(n):
            w = tl.gather(w, (i + 1) % N, 0)
        v = w
    elif HOW == "while":
        k = n
        while k > 0:
            v = v + k
            k -= 2
    elif HOW == "if":
        if n > 2:
            v = v * 2
            v = v + 0
        else:
            v = v + 1
    elif HOW == "nested":
        acc = tl.zeros((N,), tl.float32)
        for a in range(n):
            for b in range(a):
                if (a + b) % 2 == 0:
                    acc += v
        v = acc
    elif HOW == "scalar":
        s = 0.0
        t = 1
        for k in range(n):
            s += k * 0.5
            t = t * 3 + k
        v = v + s + t
    elif HOW == "pointers":
        p = x + i
        acc = tl.zeros((N,), tl.float32)
        for _ in range(n):
            acc += tl.load(p, mask=i < N - n, other=0.0)
            p += 1
        v = acc
    elif HOW == "invariant":
        e = tl.exp(v)
        acc = tl.zeros((N,), tl.float32)
        for k in range(n):
            acc += e * k
        v = acc
    elif HOW == "effects":
        for k in range(n):
            tl.store(o + k, k)
        v = tl.where(i < n, i, v)
    elif HOW == "empty":
        for _ in range(n, 0):
            v = v * 0
    tl.store(o + i, v)


def expected(how, x, n):
    if how == "for":
        return x * sum(range(n))
    if how == "swap":
        a, b = x, x * 2
        for _ in range(n):
            a, b = b, a + b
        return a
    if how == "three":
        a, b, c = x, x + 1, x + 2
        for _ in range(n):
            a, b, c = b, c, a
        return a * 100 + b * 10 + c
    if how == "shift":
        return x.roll(-n)
    if how == "while":
        return x + sum(range(n, 0, -2))
    if how == "if":
        return x * 2 if n > 2 else x + 1
    if how == "nested":
        return x * sum((a + b) % 2 == 0 for a in range(n) for b in range(a))
    if how == "scalar":
        s, t = 0.0, 1
        for k in range(n):
            s, t = s + k * 0.5, t * 3 + k
        return x + s + t
    if how == "pointers":
        m = torch.arange(len(x)) < len(x) - n
        return sum((torch.where(m, x.roll(-k), 0) for k in range(n)), torch.zeros_like(x))
    if how == "effects":
        return torch.where(torch.arange(len(x)) < n, torch.arange(len(x)), x)
    if how == "invariant":
        return x.exp() * sum(range(n))
    return x


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("how", ["for", "swap", "three", "shift", "while", "if", "nested", "scalar",
                                 "pointers", "invariant", "effects", "empty"])  # fmt: skip
def test_control(how, n):
    x = torch.randint(-4, 5, (64,), generator=torch.Generator().manual_seed(n)).float()
    out = torch.empty(64)
    loops[(1,)](x, out, n, how, 64)
    assert torch.allclose(out, expected(how, x, n), rtol=1e-6)


def test_early_return_and_grid():
    @triton.jit
    def kernel(o, n):
        i = tl.program_id(0) + tl.num_programs(0) * (
            tl.program_id(1) + tl.num_programs(1) * tl.program_id(2)
        )
        if i >= n:
            return
        tl.store(o + i, i)

    out = torch.full((24,), -1, dtype=torch.int32)
    kernel[(2, 3, 4)](out, 20)
    assert out.tolist() == [*range(20), -1, -1, -1, -1]


@triton.jit(noinline=True)
def helper(a, k):
    return a * k + 1


def test_noinline_call():
    @triton.jit
    def kernel(x, o):
        i = tl.program_id(0)
        tl.store(o + i, helper(tl.load(x + i), 3))

    x, out = torch.randn(32), torch.empty(32)
    kernel[(32,)](x, out)
    exact, terms = x.double() * 3 + 1, x.double().abs() * 3 + 1  # they cancel where x is near -1/3
    assert ((out - exact).abs() <= 2**-23 * terms).all()


def test_device_assert():
    @triton.jit(debug=True)
    def kernel(x, n):
        i = tl.arange(0, 16)
        tl.device_assert(tl.load(x + i) < n, "too large")

    x = torch.arange(16)
    kernel[(1,)](x, 16)
    with pytest.raises(KernelError, match=r"test_control.py:\d+:\d+: too large"):
        kernel[(1,)](x, 15)


def test_inline_assembly_is_refused_with_its_line():
    @triton.jit
    def kernel(o):
        i = tl.arange(0, 16)
        v = tl.inline_asm_elementwise(
            "mov.u32 $0, $1;", "=r,r", [i], dtype=tl.int32, is_pure=True, pack=1
        )
        tl.store(o + i, v)

    with pytest.raises(Unsupported, match=r"test_control.py:\d+:\d+: tt.elementwise_inline_asm"):
        kernel[(1,)](torch.empty(16, dtype=torch.int32))


def test_tuple_and_scalar_arguments():
    @triton.jit
    def kernel(o, a, b, c, flag):
        tl.store(o, a)
        tl.store(o + 1, b.to(tl.float64))
        tl.store(o + 2, c.to(tl.float64))
        if flag:
            tl.store(o + 3, 1.0)

    out = torch.zeros(4, dtype=torch.float64)
    kernel[(1,)](out, 0.5, 2**40, -7, True)
    assert out.tolist() == [0.5, 2.0**40, -7.0, 1.0]


def test_random_numbers_match_the_reference():
    @triton.jit
    def kernel(o, seed):
        i = tl.arange(0, 64)
        tl.store(o + i, tl.randint(seed, i))

    out = torch.empty(64, dtype=torch.int32)
    kernel[(1,)](out, 42)
    want = [_philox(42, k) for k in range(64)]
    assert (out.long() & 0xFFFFFFFF).tolist() == want


def _philox(seed: int, offset: int) -> int:
    c = [offset, 0, 0, 0]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k1, a & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c[0]
