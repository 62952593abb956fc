"""Loads and stores: masks, strides, memory that must not be touched, order, atomics."""

import ctypes
import mmap

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def copy2d(x, o, m, n, sx, so, M: tl.constexpr, N: tl.constexpr, OTHER: tl.constexpr):
    i = tl.arange(0, M)[:, None]
    j = tl.arange(0, N)[None, :]
    v = tl.load(x + i * sx + j, mask=(i < m) & (j < n), other=OTHER)
    tl.store(o + i * so + j, v)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float64, torch.bool]
)
@pytest.mark.parametrize("m,n", [(1, 1), (3, 17), (8, 32), (7, 31), (0, 5)])
def test_masked_copy(m, n, dtype):
    x = (
        (torch.randn(8, 40) > 0).to(dtype)
        if dtype is torch.bool
        else (torch.randn(8, 40) * 9).to(dtype)
    )
    out = torch.empty(8, 32, dtype=dtype)
    copy2d[(1,)](x, out, m, n, 40, 32, 8, 32, 0 if dtype is torch.bool else 1)
    want = torch.full((8, 32), 0 if dtype is torch.bool else 1, dtype=dtype)
    want[:m, :n] = x[:m, :n]
    assert torch.equal(out, want)


class Guarded:
    """Memory that ends right before a page that faults."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        pages = -(-size // page) + 2
        self.memory = mmap.mmap(-1, pages * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for at in (base, base + (pages - 1) * page):
            assert libc.mprotect(ctypes.c_void_p(at), page, 0) == 0
        self.end = base + (pages - 1) * page
        self.start = base + page


@triton.jit
def touch(x, o, n, N: tl.constexpr, STEP: tl.constexpr, REVERSE: tl.constexpr):
    i = tl.arange(0, N)
    at = (n - 1 - i) if REVERSE else i
    v = tl.load(x + at * STEP, mask=i < n)
    tl.store(o + at * STEP, v + 1, mask=i < n)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n", [0, 1, 5, 16, 23])
def test_masked_off_memory_is_not_touched(n, reverse, step):
    size = max(1, (n - 1) * step + 1) * 4
    for at in ("end", "start"):
        src, dst = Guarded(size), Guarded(size)
        a = src.end - size if at == "end" else src.start
        b = dst.end - size if at == "end" else dst.start
        values = (ctypes.c_float * (size // 4)).from_address(a)
        values[:] = [float(k) for k in range(size // 4)]
        kernel = touch.warmup(torch.float32, torch.float32, n, 64, step, reverse, grid=(1,))
        del kernel
        touch[(1,)](_Pointer(a), _Pointer(b), n, 64, step, reverse)
        got = (ctypes.c_float * (size // 4)).from_address(b)
        for k in range(n):
            assert got[k * step] == k * step + 1


class _Pointer:
    """Something with a data_ptr, as Triton accepts."""

    dtype = torch.float32

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        return self.address


@triton.jit
def in_place(x, y, HOW: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    if HOW == "reverse":
        tl.store(x + (N - 1 - i), tl.load(x + i))
    elif HOW == "shift":
        tl.store(x + i + 1, tl.load(x + i))
    elif HOW == "swap":
        a = tl.load(x + i)
        b = tl.load(y + i)
        tl.store(x + i, b)
        tl.store(y + i, a)
    elif HOW == "old":
        a = tl.load(x + i)
        tl.store(x + i, a + 1)
        tl.store(y + i, a)
    elif HOW == "new":
        tl.store(x + i, tl.load(x + i) + 1)
        tl.store(y + i, tl.load(x + i))
    elif HOW == "transpose":
        r = tl.arange(0, 16)
        a = tl.load(x + r[:, None] * 16 + r[None, :])
        tl.store(x + r[:, None] * 16 + r[None, :], tl.trans(a))


def test_order_of_loads_and_stores():
    x, y = torch.randn(257), torch.randn(257)
    a, b = x[:256], y[:256]
    cases = {
        "reverse": (a.flip(0), b), "swap": (b, a), "old": (a + 1, a), "new": (a + 1, a + 1),
        "transpose": (a.reshape(16, 16).T.reshape(-1), b),
    }  # fmt: skip
    for how, (want_x, want_y) in cases.items():
        p, q = x.clone(), y.clone()
        in_place[(1,)](p, q, how, 256)
        assert torch.equal(p[:256], want_x), how
        assert torch.equal(q[:256], want_y), how
    p = x.clone()
    in_place[(1,)](p, p, "shift", 256)
    assert torch.equal(p[1:], x[:256])


@triton.jit
def atomics(x, o, old, n, OP: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    m = i < n
    if OP == "add":
        r = tl.atomic_add(o + i % 4, v, mask=m)
    elif OP == "max":
        r = tl.atomic_max(o + i % 4, v, mask=m)
    elif OP == "min":
        r = tl.atomic_min(o + i % 4, v, mask=m)
    elif OP == "xchg":
        r = tl.atomic_xchg(o + i, v, mask=m)
    elif OP == "and":
        r = tl.atomic_and(o + i % 4, v, mask=m)
    elif OP == "or":
        r = tl.atomic_or(o + i % 4, v, mask=m)
    elif OP == "xor":
        r = tl.atomic_xor(o + i % 4, v, mask=m)
    elif OP == "cas":
        r = tl.atomic_cas(o + i, v, v + 1)
    tl.store(old + i, r, mask=m)


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int64, torch.float32, torch.bfloat16, torch.float16]
)
@pytest.mark.parametrize("op", ["add", "max", "min", "xchg", "and", "or", "xor", "cas"])
def test_atomics(op, dtype):
    if dtype.is_floating_point and op in ("and", "or", "xor"):
        pytest.skip("no such operation")
    if dtype in (torch.bfloat16, torch.float16) and op != "add":
        pytest.skip("Triton has no such operation")
    if dtype == torch.float32 and op == "cas":
        pytest.skip("Triton has no such operation")
    x = torch.randint(-5, 5, (32,), generator=torch.Generator().manual_seed(0)).to(dtype)
    o, old = torch.full((32,), 3, dtype=dtype), torch.zeros(32, dtype=dtype)
    want = o.clone()
    fn = {"add": lambda a, b: a + b, "max": max, "min": min, "xchg": lambda a, b: b,
          "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b,
          "cas": lambda a, b: b + 1 if a == b else a}[op]  # fmt: skip
    n = 32 if op == "cas" else 29
    for k in range(n):
        at = k if op in ("xchg", "cas") else k % 4
        want[at] = fn(want[at], x[k])
    atomics[(1,)](x, o, old, n, op, 32)
    assert torch.equal(o, want)
    if dtype != torch.float32:  # Triton makes a float maximum from two integer operations
        assert old[0] == 3


def test_atomics_between_programs():
    @triton.jit
    def kernel(o):
        tl.atomic_add(o, tl.program_id(0))

    out = torch.zeros(1, dtype=torch.int32)
    kernel[(1000,)](out)
    assert out.item() == 499500


def test_scalar_loads_and_stores():
    @triton.jit
    def kernel(x, o, n):
        i = tl.program_id(0)
        v = tl.load(x + i, mask=i < n, other=-1.0)
        tl.store(o + i, v * 2, mask=i != 2)

    x, out = torch.arange(6.0), torch.zeros(6)
    kernel[(6,)](x, out, 4)
    assert out.tolist() == [0, 2, 0, 6, -2, -2]


@triton.jit
def store_narrow(x, o, n, N: tl.constexpr, LIVE: tl.constexpr):
    i = tl.arange(0, N)
    for k in range(n):  # a row at a time, with what the loop says of k in the mask
        tl.store(o + k * N + i, tl.load(x + i).to(o.dtype.element_ty), mask=(i < LIVE) & (k < n))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int16, torch.bfloat16, torch.float16, torch.bool]
)
@pytest.mark.parametrize("size", [2, 4, 16, 64])
def test_a_constant_mask_with_one_lane_on(size, dtype):
    """LLVM must not widen what it then stores without a mask."""
    x = torch.zeros(size, dtype=torch.int32)
    for live in (1, 2):
        o = torch.ones(3, size, dtype=dtype)
        want = o.clone()
        want[:2, :live] = 0
        store_narrow[(1,)](x, o, 2, size, live)
        assert torch.equal(o, want)
