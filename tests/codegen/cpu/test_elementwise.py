"""Element-wise ops and conversions against numpy and torch, special values included."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

N = 64


@triton.jit
def binary(x, y, o, OP: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    b = tl.load(y + i)
    if OP == "add":
        r = a + b
    elif OP == "sub":
        r = a - b
    elif OP == "mul":
        r = a * b
    elif OP == "div":
        r = a / b
    elif OP == "floordiv":
        r = a // b
    elif OP == "mod":
        r = a % b
    elif OP == "max":
        r = tl.maximum(a, b)
    elif OP == "min":
        r = tl.minimum(a, b)
    elif OP == "maxnan":
        r = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    elif OP == "and":
        r = a & b
    elif OP == "or":
        r = a | b
    elif OP == "xor":
        r = a ^ b
    elif OP == "shl":
        r = a << b
    elif OP == "shr":
        r = a >> b
    elif OP == "lt":
        r = a < b
    elif OP == "eq":
        r = a == b
    elif OP == "ne":
        r = a != b
    elif OP == "where":
        r = tl.where(a > b, a, b)
    elif OP == "umulhi":
        r = tl.umulhi(a, b)
    tl.store(o + i, r)


SPECIAL = [0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan"), 1e-40, 3e38, -2.5, 0.5]


def floats(dtype, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, generator=g) * 10
    n = len(SPECIAL)
    order = torch.randperm(n, generator=g)
    x[:n] = torch.tensor(SPECIAL)[order]
    return x.to(dtype)


def same(got, want, tol=0.0):
    got, want = got.double(), want.double()
    assert torch.equal(got.isnan(), want.isnan())
    ok = got.isnan() | (got == want)
    if tol:
        ok |= (got - want).abs() <= tol * want.abs()
    assert ok.all(), (got[~ok], want[~ok])


FLOAT_OPS = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "max": torch.fmax, "min": torch.fmin, "maxnan": torch.maximum, "lt": torch.lt,
    "eq": torch.eq, "ne": torch.ne, "where": lambda a, b: torch.where(a > b, a, b),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_float_ops(op, dtype):
    for seed in range(2):
        x, y = floats(dtype, seed), floats(dtype, seed + 7)
        want = FLOAT_OPS[op](x, y)
        if op == "div" and dtype in (torch.bfloat16, torch.float16):
            want = (x.float() / y.float()).to(dtype)  # Triton divides in fp32 and stores narrow
        out = torch.empty(N, dtype=want.dtype)
        binary[(1,)](x, y, out, op, N)
        same(out, want)


INT_OPS = ["add", "sub", "mul", "floordiv", "mod", "max", "min", "and", "or", "xor", "shl", "shr",
           "lt", "eq"]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32])
@pytest.mark.parametrize("op", INT_OPS)
def test_int_ops(op, dtype):
    rng = np.random.default_rng(1)
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, N, dtype=dtype, endpoint=True)
    y = rng.integers(info.min, info.max, N, dtype=dtype, endpoint=True)
    if op in ("shl", "shr"):
        y = (y % (info.bits - 1)).astype(dtype)
    if op in ("floordiv", "mod"):
        y[y == 0] = 3
        y[y == -1] = 5
    with np.errstate(over="ignore"):
        want = {
            "add": lambda: x + y, "sub": lambda: x - y, "mul": lambda: x * y,
            "floordiv": lambda: np.trunc(x.astype(object) / y).astype(object),
            "mod": lambda: np.fmod(x, y), "max": lambda: np.maximum(x, y),
            "min": lambda: np.minimum(x, y), "and": lambda: x & y, "or": lambda: x | y,
            "xor": lambda: x ^ y, "shl": lambda: x << y, "shr": lambda: x >> y,
            "lt": lambda: x < y, "eq": lambda: x == y,
        }[op]()  # fmt: skip
    if op == "floordiv":  # C's truncation, in exact arithmetic
        sign = np.where((x.astype(object) < 0) != (y.astype(object) < 0), -1, 1)
        want = (abs(x.astype(object)) // abs(y.astype(object)) * sign).astype(dtype)
    out = torch.empty(N, dtype=torch.from_numpy(np.asarray(want)).dtype)
    binary[(1,)](torch.from_numpy(x), torch.from_numpy(y), out, op, N)
    assert np.array_equal(out.numpy(), want)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_umulhi(dtype):
    rng = np.random.default_rng(2)
    bits = np.iinfo(dtype).bits
    x, y = (rng.integers(0, np.iinfo(dtype).max, N, dtype=dtype, endpoint=True) for _ in range(2))
    want = ((x.astype(object) * y.astype(object)) >> bits).astype(dtype)
    out = torch.empty(N, dtype=torch.from_numpy(want).dtype)
    binary[(1,)](torch.from_numpy(x), torch.from_numpy(y), out, "umulhi", N)
    assert np.array_equal(out.numpy(), want)


def test_division_by_zero_does_not_trap():
    x = torch.full((N,), -(2**31), dtype=torch.int32)
    y = torch.tensor([0, -1] * (N // 2), dtype=torch.int32)
    out = torch.empty_like(x)
    binary[(1,)](x, y, out, "floordiv", N)
    binary[(1,)](x, y, out, "mod", N)


@triton.jit
def cast(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + i).to(o.dtype.element_ty))


FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("to", FLOATS)
@pytest.mark.parametrize("src", FLOATS)
def test_float_casts(src, to):
    for seed in range(3):
        x = floats(src, seed)
        out = torch.empty(N, dtype=to)
        cast[(1,)](x, out, N)
        same(out, x.to(to))


def test_every_half_and_bfloat():
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype)
        out = torch.empty(65536, dtype=torch.float32)
        cast[(1,)](x, out, 65536)
        same(out, x.float())
        back = torch.empty(65536, dtype=dtype)
        cast[(1,)](out, back, 65536)
        same(back, x)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float8_e4m3fn])
def test_fp8(dtype):
    x = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
    out = torch.empty(256, dtype=torch.float32)
    cast[(1,)](x, out, 256)
    same(out, x.float())
    back = torch.empty(256, dtype=torch.uint8).view(dtype)
    values = torch.cat([x.float()[:128] * 1.06, x.float()[128:] * 0.97])
    values = torch.where(values.abs() > torch.finfo(dtype).max, torch.zeros(()), values)
    cast[(1,)](values, back, 256)
    same(back.float(), values.to(dtype).float())


def test_ties_round_to_even():
    x = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11] * 16)
    for dtype in (torch.bfloat16, torch.float16):
        out = torch.empty(N, dtype=dtype)
        cast[(1,)](x, out, N)
        same(out, x.to(dtype))


@pytest.mark.parametrize("src,to", [(torch.int32, torch.float32), (torch.int64, torch.float32),
                                    (torch.int32, torch.bfloat16), (torch.uint8, torch.float16),
                                    (torch.int8, torch.int64), (torch.int64, torch.int8),
                                    (torch.bool, torch.int32), (torch.int32, torch.bool),
                                    (torch.int64, torch.float16)])  # fmt: skip
def test_int_casts(src, to):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31 - 1, (N,), generator=g)
    x = (x % 2).bool() if src is torch.bool else x.to(src)
    out = torch.empty(N, dtype=to)
    cast[(1,)](x, out, N)
    same(out, x.to(to))


def test_float_to_int_truncates():
    x = torch.tensor([1.9, -1.9, 0.0, 100.5] * 16)
    out = torch.empty(N, dtype=torch.int32)
    cast[(1,)](x, out, N)
    assert torch.equal(out, x.to(torch.int32))


@triton.jit
def unary(x, o, OP: tl.constexpr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    a = tl.load(x + i)
    if OP == "exp":
        r = tl.exp(a)
    elif OP == "exp2":
        r = tl.exp2(a)
    elif OP == "log":
        r = tl.log(a)
    elif OP == "log2":
        r = tl.log2(a)
    elif OP == "sin":
        r = tl.sin(a)
    elif OP == "cos":
        r = tl.cos(a)
    elif OP == "sqrt":
        r = tl.sqrt(a)
    elif OP == "rsqrt":
        r = tl.rsqrt(a)
    elif OP == "erf":
        r = tl.erf(a)
    elif OP == "tanh":
        r = libdevice.tanh(a)
    elif OP == "floor":
        r = tl.floor(a)
    elif OP == "ceil":
        r = tl.ceil(a)
    elif OP == "abs":
        r = tl.abs(a)
    elif OP == "sigmoid":
        r = tl.sigmoid(a)
    tl.store(o + i, r)


@pytest.mark.parametrize("op", ["exp", "log", "sin", "erf", "sqrt", "exp2"])
def test_fp64(op):
    x = torch.linspace(0.1, 3, N, dtype=torch.float64)
    out = torch.empty_like(x)
    unary[(1,)](x, out, op, N)
    want = getattr(torch, op)(x)
    assert torch.allclose(out, want, rtol=1e-15, atol=0)


def test_constant_folding_of_fp_literals_keeps_bits():
    @triton.jit
    def kernel(o):
        i = tl.arange(0, 16)
        tl.store(o + i, tl.full((16,), 0.1, tl.float32) + tl.where(i > 3, float("inf"), 0.0))

    out = torch.empty(16)
    kernel[(1,)](out)
    assert out[0] == torch.tensor(0.1) and out[5] == float("inf")


def test_a_difference_sees_its_product_rounded():
    """Whoever else reads the product: kernels that make one difference again find one number."""

    @triton.jit
    def kernel(x, y, p, o, N: tl.constexpr):
        i = tl.arange(0, N)
        product = tl.load(x + i) * tl.load(y + i)
        tl.store(o + i, product - tl.load(p + i))
        tl.store(o + N + i, tl.load(p + i) - product)

    x, y, out = torch.randn(N), torch.randn(N), torch.empty(2, N)
    kernel[(1,)](x, y, x * y, out, N)
    assert (out == 0).all()
