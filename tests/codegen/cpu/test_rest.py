"""Descriptors, scalar functions with branches, printing, pointers as integers, every atomic."""

import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

import codegen.cpu
from codegen.cpu.ttir import Unsupported

# -- descriptors -----------------------------------------------------------------------------


@triton.jit
def move(src, dst, i, j, n, B: tl.constexpr, C: tl.constexpr):
    for k in range(n):
        dst.store([i + k * B, j], src.load([i + k * B, j]) * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("place", [(0, 0), (8, 16), (-8, 0), (40, 0)])
def test_descriptors_made_on_the_host(place, dtype):
    """Loads and stores inside, across and beyond the edges of a tensor with longer rows."""
    x = (torch.randn(37, 32) * 9).to(dtype)[:, :24]
    o = torch.zeros(37, 32, dtype=dtype)
    a, b = (TensorDescriptor(t, [37, 24], [32, 1], [16, 16]) for t in (x, o))
    move[(1,)](a, b, *place, 2, 16, 16)
    rows, cols = (
        range(max(0, p), min(p + s, d)) for p, s, d in zip(place, (32, 16), (37, 24), strict=True)
    )
    want = torch.zeros_like(o)
    if rows and cols:
        part = np.ix_(rows, cols)
        want[part] = x[part] * 2
    assert torch.equal(o, want)
    codegen.cpu.run(move, (1,), a, b, *place, 2, B=16, C=16)  # the other road to a launch


@triton.jit
def padded(src, o, B: tl.constexpr):
    at = tl.arange(0, B)[:, None] * B + tl.arange(0, B)[None, :]
    tl.store(o + at, src.load([0, 0]))


@pytest.mark.parametrize("padding", ["zero", "nan"])
def test_padding_of_descriptors(padding):
    x, o = torch.randn(5, 8), torch.empty(16, 16)
    padded[(1,)](TensorDescriptor.from_tensor(x, [16, 16], padding), o, 16)
    want = torch.full((16, 16), float("nan") if padding == "nan" else 0.0)
    want[:5, :8] = x
    assert torch.equal(o.isnan(), want.isnan()) and torch.equal(o.nan_to_num(), want.nan_to_num())


def test_host_descriptors_in_the_checking_mode(monkeypatch):
    monkeypatch.setenv("TKPY_CPU_CHECK", "1")
    x, o = torch.randn(37, 24), torch.zeros(37, 24)
    a, b = (TensorDescriptor.from_tensor(t, [16, 8]) for t in (x, o))
    move[(1,)](a, b, 16, 8, 2, 16, 8)
    assert torch.equal(o[16:, 8:16], 2 * x[16:, 8:16])
    wrong = TensorDescriptor(x, [40, 24], [24, 1], [16, 8])  # claims rows that are not there
    with pytest.raises(codegen.cpu.launch.KernelError, match=r"src \+ \d+ bytes.*past the end"):
        move[(1,)](wrong, b, 16, 8, 2, 16, 8)


@triton.jit
def rows(x, o, idx, n, m, J: tl.constexpr, B: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [n, m], [m, 1], [1, B])
    target = tl.make_tensor_descriptor(o, [n, m], [m, 1], [1, B])
    r = tl.load(idx + tl.arange(0, 8))
    target.scatter(source.gather(r, J), r, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("j", [0, 4, 48])
def test_rows_gathered_and_scattered(j, dtype):
    x = (torch.randn(16, 64) * 9).to(dtype)
    o = torch.zeros(16, 64, dtype=dtype)
    idx = torch.tensor([3, 5, 7, 1, 0, 15, 16, 2], dtype=torch.int32)  # one is no row
    rows[(1,)](x, o, idx, 16, 64, j, 32)
    want = torch.zeros_like(o)
    real = idx[idx < 16].long()
    want[real, : min(32, 64 - j)] = x[real, j : j + 32]
    assert torch.equal(o, want)


@triton.jit
def combine(x, o, n, m, HOW: tl.constexpr, B: tl.constexpr):
    d = tl.make_tensor_descriptor(o, [n, m], [m, 1], [B, B])
    v = tl.load(x + tl.arange(0, B)[:, None] * B + tl.arange(0, B)[None, :])
    if HOW == "add":
        d.atomic_add([0, 0], v)
    elif HOW == "max":
        d.atomic_max([0, 0], v)
    elif HOW == "min":
        d.atomic_min([0, 0], v)
    elif HOW == "and":
        d.atomic_and([0, 0], v)
    elif HOW == "or":
        d.atomic_or([0, 0], v)
    elif HOW == "xor":
        d.atomic_xor([0, 0], v)


REDUCED = {"add": torch.add, "max": torch.maximum, "min": torch.minimum, "and": torch.bitwise_and,
           "or": torch.bitwise_or, "xor": torch.bitwise_xor}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float16])
@pytest.mark.parametrize("how", REDUCED)
def test_descriptor_reductions(how, dtype):
    if dtype.is_floating_point and how != "add":
        pytest.skip("Triton has no such operation")
    x = torch.randint(-99, 99, (16, 16)).to(dtype)
    o = torch.randint(-99, 99, (10, 12)).to(dtype)
    want = REDUCED[how](o, x[:10, :12])
    combine[(1,)](x, o, 10, 12, how, 16)
    assert torch.equal(o, want)


# -- functions of scalars ----------------------------------------------------------------------


@triton.jit
def collatz(n, most):
    """Steps to 1, or -1 where ``most`` are not enough; and the largest number on the way."""
    steps = 0
    top = n
    while (n != 1) & (steps < most):
        if n % 2 == 0:  # noqa: SIM108
            n = n // 2
        else:
            n = 3 * n + 1
        top = tl.maximum(top, n)
        steps += 1
    if n != 1:
        return -1, top
    return steps, top


@triton.jit
def mapped(x, most, o, p, N: tl.constexpr):
    i = tl.arange(0, 4)[:, None] * N + tl.arange(0, N)[None, :]
    steps, top = tl.map_elementwise(collatz, tl.load(x + i), tl.load(most))
    tl.store(o + i, steps)
    tl.store(p + i, top)


def _collatz(n, most):
    steps, top = 0, n
    while n != 1 and steps < most:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        top, steps = max(top, n), steps + 1
    return (-1 if n != 1 else steps), top


@pytest.mark.parametrize("n", [1, 8, 32])
def test_map_elementwise(n):
    x = torch.arange(1, 4 * n + 1, dtype=torch.int32)
    o, p = torch.empty_like(x), torch.empty_like(x)
    mapped[(1,)](x, torch.tensor([60], dtype=torch.int32), o, p, n)
    want = [_collatz(int(v), 60) for v in x]
    assert list(zip(o.tolist(), p.tolist(), strict=True)) == want


@triton.jit
def ordered(a, b, c, d):
    """Of two pairs: both turned round, and the first doubled, where that sorts their sum."""
    if a + c > b + d:
        return b * 2, a * 2, d, c
    else:
        return a, b, c, d


@triton.jit
def packed(x, y, o, p, N: tl.constexpr):
    i = tl.arange(0, N)
    u, v = tl.map_elementwise(ordered, tl.load(x + i), tl.load(y + i), pack=2)
    tl.store(o + i, u)
    tl.store(p + i, v)


def test_map_elementwise_of_packs():
    x, y = torch.randn(64), torch.randn(64)
    o, p = torch.empty(64), torch.empty(64)
    packed[(1,)](x, y, o, p, 64)
    a, b = x.view(-1, 2), y.view(-1, 2)
    swap = ((a[:, 0] + b[:, 0]) > (a[:, 1] + b[:, 1]))[:, None]
    assert torch.equal(o.view(-1, 2), torch.where(swap, a.flip(1) * 2, a))
    assert torch.equal(p.view(-1, 2), torch.where(swap, b.flip(1), b))


@triton.jit(noinline=True)
def early(x, k):
    if k > 3:
        return x * 2
    for i in range(k):
        x += i
    if x > 100:
        x = x * 3
        if k > 1:
            return x
    return x + 1


@triton.jit(noinline=True)
def put(o, k):
    if k == 2:
        return
    tl.store(o, k)


@triton.jit
def calls(x, o, k):
    v = tl.load(x)
    tl.store(o, early(v, k) + early(v + 98, k - 1))
    put(o + 1, k)


def _early(x, k):
    if k > 3:
        return x * 2
    x += sum(range(k))
    if x > 100:
        return x * 3 if k > 1 else x * 3 + 1
    return x + 1


@pytest.mark.parametrize("k", [0, 2, 3, 4, 5])
def test_functions_that_return_early(k):
    o = torch.full((2,), -1.0)
    calls[(1,)](torch.tensor([3.0]), o, k)
    assert o.tolist() == [_early(3.0, k) + _early(101.0, k - 1), -1.0 if k == 2 else k]


# -- printing --------------------------------------------------------------------------------


@triton.jit
def prints(x, y, n, B: tl.constexpr):
    i = tl.arange(0, B)
    p = tl.program_id(0)
    tl.device_print("x", tl.load(x + i))
    tl.device_print("two: ", p, tl.load(y + i[:, None]))
    tl.device_print("100% hex", n, hex=True)
    tl.device_print("done")


def test_device_print(capfd):
    x = torch.tensor([0.5, -1e-9, float("inf"), float("nan")])
    y = torch.tensor([200, 0, 7, 255], dtype=torch.uint8)
    prints[(2,)](x, y, -2, 4)
    lines = [s for s in capfd.readouterr().out.splitlines() if s.startswith("pid")]
    for p in range(2):
        mine = [re.sub(r"\s+", " ", s) for s in lines if s.startswith(f"pid ({p}, 0, 0)")]
        at = f"pid ({p}, 0, 0) "
        values = [s.replace("-nan", "nan") for s in mine[:4]]
        assert values == [
            f"{at}idx ({k}) x: {v}" for k, v in enumerate(("0.5", "-1e-09", "inf", "nan"))
        ]
        assert mine[4:] == [
            f"{at}idx () two: (operand 0) {p}",
            *[f"{at}idx ({k}, 0) two: (operand 1) {v}" for k, v in enumerate(y.tolist())],
            f"{at}idx () 100% hex: 0xfffffffe", f"{at}done"]  # fmt: skip


# -- pointers, dots, atomics -------------------------------------------------------------------


@triton.jit
def addresses(x, a, o, N: tl.constexpr):
    i = tl.arange(0, N)
    number = (x + i).to(tl.int64)
    tl.store(a + i, number)
    p = (number + 4 * (N - 1 - 2 * i)).to(tl.pointer_type(tl.float32))
    tl.store(o + i, tl.load(p))


def test_pointers_as_integers():
    x, o = torch.randn(32), torch.empty(32)
    a = torch.empty(32, dtype=torch.int64)
    addresses[(1,)](x, a, o, 32)
    assert a.tolist() == [x.data_ptr() + 4 * k for k in range(32)]
    assert torch.equal(o, x.flip(0))


@triton.jit
def narrow_dot(a, b, c, o, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    r = tl.dot(tl.load(a + at), tl.load(b + at), tl.load(c + at), out_dtype=tl.float16)
    tl.store(o + at, r)


def test_dot_into_fp16():
    """Accumulated in fp32 and rounded once: half a place of fp16 next to what fp32 loses."""
    a, b, c = (torch.randn(32, 32).half() for _ in range(3))
    o = torch.empty(32, 32, dtype=torch.float16)
    narrow_dot[(1,)](a, b, c, o, 32)
    want = c.double() + a.double() @ b.double()
    terms = c.double().abs() + a.double().abs() @ b.double().abs()
    assert ((o.double() - want).abs() <= 2.0**-11 * want.abs() + 33 * 2.0**-24 * terms).all()


@triton.jit
def exchange(p, c, v, old, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(old + i, tl.atomic_cas(p + i, tl.load(c + i), tl.load(v + i)))


WORDS = [torch.int16, torch.uint16, torch.float16, torch.bfloat16, torch.int32, torch.uint32,
         torch.float32, torch.int64, torch.uint64, torch.float64]  # fmt: skip


@pytest.mark.parametrize("dtype", WORDS)
def test_compare_and_swap(dtype):
    """By bits: -0.0 is not 0.0, and a NaN is itself."""
    p = torch.tensor([0.0, 1, 2, 3] * 4).to(dtype)
    c = torch.tensor([0.0, 1, 3, 3] * 4).to(dtype)
    v = torch.arange(16).to(dtype)
    if dtype.is_floating_point:
        p[4], p[5], c[5], c[8] = -0.0, float("nan"), float("nan"), -0.0
    same = p.view(torch.int16) == c.view(torch.int16) if dtype.itemsize == 2 else None
    if same is None:
        whole = {4: torch.int32, 8: torch.int64}[dtype.itemsize]
        same = p.view(whole) == c.view(whole)
    raw = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    before = p.clone()
    want = torch.where(same, v.view(raw), p.view(raw))
    old = torch.zeros(16).to(dtype)
    exchange[(1,)](p, c, v, old, 16)
    assert torch.equal(p.view(raw), want) and torch.equal(old.view(raw), before.view(raw))


@triton.jit
def update(p, v, old, OP: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(v + i)
    if OP == "add":
        r = tl.atomic_add(p + i, x)
    elif OP == "max":
        r = tl.atomic_max(p + i, x)
    elif OP == "min":
        r = tl.atomic_min(p + i, x)
    else:
        r = tl.atomic_xchg(p + i, x)
    tl.store(old + i, r)


@pytest.mark.parametrize(
    "dtype", [torch.uint32, torch.int64, torch.uint64, torch.float32, torch.float64]
)
@pytest.mark.parametrize("op", ["add", "max", "min", "xchg"])
def test_every_atomic_of_wide_types(op, dtype):
    kind = {torch.uint32: np.uint32, torch.int64: np.int64, torch.uint64: np.uint64,
            torch.float32: np.float32, torch.float64: np.float64}[dtype]  # fmt: skip
    rng = np.random.default_rng(3)
    if np.issubdtype(kind, np.floating):
        a, b = (rng.normal(size=32).astype(kind) for _ in range(2))
    else:  # far apart, so that a signed comparison of unsigned numbers shows
        info = np.iinfo(kind)
        a, b = (rng.integers(info.min, info.max, 32, dtype=kind) for _ in range(2))
    p, old = torch.from_numpy(a.copy()), torch.from_numpy(np.zeros_like(a))
    update[(1,)](p, torch.from_numpy(b), old, op, 32)
    want = {"add": a + b, "max": np.maximum(a, b), "min": np.minimum(a, b), "xchg": b}[op]
    assert np.array_equal(p.numpy(), want)
    if op in ("add", "xchg") or not np.issubdtype(kind, np.floating):
        assert np.array_equal(old.numpy(), a)


# -- clamps, precise arithmetic ------------------------------------------------------------------


@triton.jit
def precise(x, y, o, OP: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    if OP == "div":
        r = tl.div_rn(a, b)
    elif OP == "sqrt":
        r = tl.sqrt_rn(a)
    elif OP == "fma":
        r = tl.fma(a, b, a)
    elif OP == "clamp":
        r = tl.clamp(a, -b, b)
    else:
        r = tl.clamp(a, -b, b, propagate_nan=tl.PropagateNan.ALL)
    tl.store(o + i, r)


@pytest.mark.parametrize("op", ["div", "sqrt", "fma", "clamp", "clamp nan"])
def test_precise_operations(op):
    """Correctly rounded: equal to the fp64 result rounded once, bit for bit."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=1024) * 10.0 ** rng.integers(-30, 30, 1024)).astype(np.float32)
    y = np.abs((rng.normal(size=1024) * 10.0 ** rng.integers(-6, 6, 1024)).astype(np.float32))
    x[:3] = np.nan, np.inf, -0.0
    if op == "sqrt":
        x = np.abs(x)
    if op == "fma":  # exact in fp64: products of 24-bit numbers of like size
        x = rng.integers(-(2**23), 2**23, 1024).astype(np.float32)
        y = rng.integers(1, 2**20, 1024).astype(np.float32)
    o = torch.empty(1024)
    precise[(1,)](torch.from_numpy(x), torch.from_numpy(y), o, op, 1024)
    a, b = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(all="ignore"):
        want = {"div": lambda: a / b, "sqrt": lambda: np.sqrt(a), "fma": lambda: a * b + a,
                "clamp": lambda: np.fmin(np.fmax(a, -b), b),
                "clamp nan": lambda: np.minimum(np.maximum(a, -b), b)}[op]().astype(np.float32)  # fmt: skip
    assert np.array_equal(o.numpy(), want, equal_nan=True)


# -- what is refused -----------------------------------------------------------------------------


def test_inline_assembly_is_refused_with_the_reason():
    @triton.jit
    def kernel(o):
        i = tl.arange(0, 16)
        v = tl.inline_asm_elementwise(
            "mov.u32 $0, $1;", "=r,r", [i], dtype=tl.int32, is_pure=True, pack=1
        )
        tl.store(o + i, v)

    with pytest.raises(Unsupported) as error:
        kernel[(1,)](torch.empty(16, dtype=torch.int32))
    assert re.search(r"test_rest.py:\d+:\d+: tt.elementwise_inline_asm: .*GPU", str(error.value))
