"""The interpreter against numpy and torch in fp64, operation by operation and dtype by dtype."""

from __future__ import annotations

import inspect
import math
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from codegen.interpreter import KernelError, OutOfBounds
from codegen.module import cache_dir, load, write_atomic

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HEAD = """import triton
import triton.language as tl
from triton.language.extra import libdevice
"""


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TKPY_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def module(source: str, interpret: bool = True):
    return load(HEAD + textwrap.dedent(source), "test_module", interpret=interpret)


def unary(expression: str, x: torch.Tensor, out: torch.dtype | None = None) -> torch.Tensor:
    """Apply a Triton expression in `x`, a whole tile of x's shape, and store it as dtype `out`."""
    return elementwise(expression, out or x.dtype, x=x)


def elementwise(expression: str, out: torch.dtype, **inputs: torch.Tensor) -> torch.Tensor:
    """Apply a Triton expression to whole tiles, all of one power-of-two size."""
    size = next(iter(inputs.values())).numel()
    pointers = ", ".join(f"{name}_ptr" for name in inputs)
    loads = "\n    ".join(f"{name} = tl.load({name}_ptr + i)" for name in inputs)
    built = module(f"""
@triton.jit
def kernel({pointers}, o_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    {loads}
    tl.store(o_ptr + i, {expression})
""")
    o = torch.empty(size, dtype=out)
    built.kernel[(1,)](*inputs.values(), o, SIZE=size)
    return o


def close(actual: torch.Tensor, expected: torch.Tensor, ulp: float = 1.0) -> None:
    """`actual` within `ulp` units of its own dtype of the fp64 value, NaN and inf alike."""
    expected = expected.double()
    rounded = expected.to(actual.dtype).double()
    eps = torch.finfo(actual.dtype).eps
    finite = rounded.isfinite()
    assert torch.equal(actual.double().isnan(), rounded.isnan())
    assert torch.equal(actual.double()[rounded.isinf()], rounded[rounded.isinf()])
    error = (actual.double() - expected).abs()[finite]
    bound = ulp * eps * expected.abs()[finite] + torch.finfo(actual.dtype).smallest_normal * eps
    worst = (error - bound).max().item() if error.numel() else 0.0
    assert worst <= 0, f"off by {worst} beyond {ulp} ulp"


def values(size: int, dtype: torch.dtype, seed: int = 0, positive: bool = False) -> torch.Tensor:
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((x.abs() + 0.01) if positive else x).to(dtype)


def special(dtype: torch.dtype) -> torch.Tensor:
    """Sixteen values with signed zeros, infinities, NaN, subnormals, the largest and near-ties."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal
    listed = [0.0, -0.0, math.inf, -math.inf, math.nan, info.max, info.min, tiny, -tiny, tiny / 4]
    return torch.tensor([*listed, 1.0, -1.0, 3.0, 1 + info.eps, 0.1, -7.5], dtype=dtype)


# --- elementwise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", ["+", "-", "*"])
def test_arithmetic_rounds_to_the_tiles_dtype(dtype, op):
    x, y = values(64, dtype), values(64, dtype, 1)
    got = elementwise(f"x {op} y", dtype, x=x, y=y)
    expected = eval(f"x.double() {op} y.double()")
    close(got, expected, 0.5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_special_values_survive_arithmetic_and_negation(dtype):
    x = special(dtype)
    torch.testing.assert_close(unary("x + x", x), x + x, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(unary("x * 1.0", x), x, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(unary("tl.abs(x)", x), x.abs(), equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(unary("-x", x), -x, equal_nan=True, rtol=0, atol=0)


def test_division_of_16_bit_tiles_is_done_in_fp32():
    x, y = values(64, torch.bfloat16), values(64, torch.bfloat16, 1, positive=True)
    close(elementwise("x / y", torch.float32, x=x, y=y), x.double() / y.double(), 0.5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", ["<", "<=", ">", ">=", "==", "!="])
def test_comparisons_are_ieee(dtype, op):
    x = special(dtype)
    y = x.roll(3)
    got = elementwise(f"(x {op} y).to(tl.int32)", torch.int32, x=x, y=y)
    assert got.bool().tolist() == eval(f"x {op} y").tolist()
    # The mask itself must not carry the operands' dtype: a cast to float gives 0.0 and 1.0.
    as_float = elementwise(f"(x {op} y).to(tl.float32)", torch.float32, x=x, y=y)
    assert as_float.tolist() == eval(f"x {op} y").float().tolist()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_maximum_drops_nan_unless_asked(dtype):
    x, y = special(dtype), torch.ones(16, dtype=dtype)
    assert elementwise("tl.maximum(x, y)", dtype, x=x, y=y).tolist() == x.fmax(y).tolist()
    assert elementwise("tl.minimum(y, x)", dtype, x=x, y=y).tolist() == x.fmin(y).tolist()
    kept = elementwise("tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)", dtype, x=x, y=y)
    torch.testing.assert_close(kept, x.maximum(y), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_where_and_masks(dtype):
    x, y = values(32, dtype), values(32, dtype, 1)
    got = elementwise("tl.where((x > y) & (y > 0) | ~(x > 0), x, y)", dtype, x=x, y=y)
    expected = torch.where((x > y) & (y > 0) | ~(x > 0), x, y)
    assert torch.equal(got, expected)
    # A where between a tile and a number, and one with a scalar condition.
    assert torch.equal(elementwise("tl.where(x > 0, x, 0.0)", dtype, x=x), x.clamp(min=0))


FUNCTIONS = {
    "tl.exp(x)": torch.exp,
    "tl.exp2(x)": torch.exp2,
    "tl.log(tl.abs(x))": lambda x: x.abs().log(),
    "tl.log2(tl.abs(x))": lambda x: x.abs().log2(),
    "tl.sqrt(tl.abs(x))": lambda x: x.abs().sqrt(),
    "tl.rsqrt(tl.abs(x))": lambda x: x.abs().rsqrt(),
    "tl.erf(x)": torch.erf,
    "tl.sigmoid(x)": torch.sigmoid,
    "tl.sin(x)": torch.sin,
    "tl.cos(x)": torch.cos,
    "tl.floor(x)": torch.floor,
    "tl.ceil(x)": torch.ceil,
    "libdevice.tanh(x)": torch.tanh,
    "tl.extra.libdevice.tanh(x)": torch.tanh,
    "libdevice.log1p(tl.abs(x))": lambda x: x.abs().log1p(),
    "libdevice.pow(tl.abs(x), 1.5)": lambda x: x.abs().pow(1.5),
    "libdevice.expm1(x)": torch.expm1,
    "tl.fma(x, x, 1.0)": lambda x: x * x + 1,
    "tl.clamp(x, -0.5, 0.5)": lambda x: x.clamp(-0.5, 0.5),
    "tl.fdiv(x, tl.abs(x) + 1)": lambda x: x / (x.abs() + 1),
    "1 / (x + 10)": lambda x: 1 / (x + 10),
    "-x % 2.0": lambda x: torch.fmod(-x, 2.0),
}


@pytest.mark.parametrize("expression", FUNCTIONS)
def test_functions_of_fp32_tiles(expression):
    x = values(128, torch.float32)
    close(unary(expression, x), FUNCTIONS[expression](x.double()), 3)


def test_mathematics_on_a_bf16_tile_is_refused_as_triton_refuses_it():
    with pytest.raises(KernelError, match=r"(?s)Expected dtype.*fp32.*but got bf16"):
        unary("tl.exp(x)", values(16, torch.bfloat16))


# --- casts ----------------------------------------------------------------------------------------


def test_fp32_to_bf16_rounds_to_nearest_even():
    # Every upper half with lower halves around a tie: carries, exponents, subnormals, inf and NaN.
    upper = torch.arange(0, 1 << 16, dtype=torch.int64)
    for lower in (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = ((upper << 16) | lower).to(torch.int32).view(torch.float32)
        got = unary("x.to(tl.bfloat16)", x, torch.bfloat16)
        torch.testing.assert_close(got, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("source", FLOATS, ids=str)
@pytest.mark.parametrize("target", FLOATS, ids=str)
def test_casts_between_floats(source, target):
    x = torch.cat([special(source), values(48, source)])
    name = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[target]
    got = unary(f"x.to(tl.{name})", x, target)
    torch.testing.assert_close(got, x.to(target), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_casts_between_floats_and_integers(dtype):
    i = torch.arange(-128, 128, dtype=torch.int32)
    name = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    assert torch.equal(unary(f"x.to(tl.{name})", i, dtype), i.to(dtype))
    x = values(64, dtype) * 100
    assert torch.equal(unary("x.to(tl.int32)", x, torch.int32), x.to(torch.int32))
    assert torch.equal(unary("(x > 0).to(tl.int8)", x, torch.int8), (x > 0).to(torch.int8))


def test_storing_casts_to_the_pointers_dtype():
    x = values(64, torch.float32)
    assert torch.equal(unary("x", x, torch.bfloat16), x.bfloat16())
    assert torch.equal(
        unary("tl.full((64,), 0.1, tl.bfloat16)", x, torch.bfloat16)[:1].float(),
        torch.tensor([0.1]).bfloat16().float(),
    )


def test_bitcast_of_a_broadcast_view():
    x = values(64, torch.float32)
    got = unary(
        "(tl.broadcast_to(x[:, None], 64, 1)).to(tl.int32, bitcast=True).reshape(64)",
        x,
        torch.int32,
    )
    assert torch.equal(got, x.view(torch.int32))


# --- dot ------------------------------------------------------------------------------------------

DOT = """
@triton.jit
def kernel(a_ptr, b_ptr, c_ptr, o_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
           PRECISION: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + n[:, None] * K + k[None, :])
    c = tl.load(c_ptr + m[:, None] * N + n[None, :])
    o = tl.dot(a, tl.trans(b), c, input_precision=PRECISION)
    o += tl.dot(a, b.T)
    tl.store(o_ptr + m[:, None] * N + n[None, :], o)
"""


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
def test_dot(dtype, precision):
    a, b = values(16 * 64, dtype).view(16, 64), values(32 * 64, dtype, 1).view(32, 64)
    c, o = values(16 * 32, torch.float32, 2).view(16, 32), torch.empty(16, 32)
    module(DOT).kernel[(1,)](a, b, c, o, M=16, N=32, K=64, PRECISION=precision)
    product = a.double() @ b.double().T
    bound = 2 * torch.finfo(torch.float32).eps * 64 * (2 * a.double().abs() @ b.double().abs().T)
    assert ((o - (c + 2 * product)).abs() <= bound).all()


def test_fp16_dot_accumulates_in_fp32():
    # 64 products of 2^10 * 2^10 overflow fp16 at once; 2048 + 1 would not be seen in fp16 either.
    a = torch.full((16, 64), 1024.0, dtype=torch.float16)
    c, o = torch.ones(16, 32), torch.empty(16, 32)
    module(DOT).kernel[(1,)](a, a[:, :].repeat(2, 1), c, o, M=16, N=32, K=64, PRECISION="ieee")
    assert (o == 2 * 64 * 2.0**20 + 1).all() or (o == 2 * 64 * 2.0**20).all()
    small = torch.ones(16, 64, dtype=torch.float16)
    module(DOT).kernel[(1,)](
        small, small.repeat(2, 1), c * 2048, o, M=16, N=32, K=64, PRECISION="ieee"
    )
    assert (o == 2048 + 128).all()


def test_int8_dot_is_exact():
    built = module("""
@triton.jit
def kernel(a_ptr, o_ptr):
    i = tl.arange(0, 32)
    a = tl.load(a_ptr + i[:, None] * 32 + i[None, :])
    o = tl.dot(a, a.T, out_dtype=tl.int32)
    tl.store(o_ptr + i[:, None] * 32 + i[None, :], tl.dot(a, a.T, o, out_dtype=tl.int32))
""")
    a = torch.randint(-128, 128, (32, 32), dtype=torch.int8)
    o = torch.empty(32, 32, dtype=torch.int32)
    built.kernel[(1,)](a, o)
    assert torch.equal(o, 2 * (a.int() @ a.int().T))


# --- reductions and scans -------------------------------------------------------------------------

ROWS = """
@triton.jit
def multiply(a, b):
    return a * b

@triton.jit
def affine(a1, b1, a2, b2):
    return a1 * a2, a2 * b1 + b2

@triton.jit
def kernel(x_ptr, o_ptr, i_ptr, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    at = m[:, None] * N + n[None, :]
    x = tl.load(x_ptr + at)
    {body}
"""


def rows(body: str, x: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32):
    o, i = torch.empty(shape, dtype=dtype), torch.zeros(shape, dtype=torch.int32)
    module(ROWS.format(body=body)).kernel[(1,)](x, o, i, M=x.shape[0], N=x.shape[1])
    return o, i


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_sum_max_min(dtype, axis):
    x = values(16 * 64, dtype).view(16, 64)
    line = "m" if axis else "n"
    shape = (16,) if axis else (64,)
    total, _ = rows(f"tl.store(o_ptr + {line}, tl.sum(x.to(tl.float32), {axis}))", x, shape)
    assert ((total - x.double().sum(axis)).abs() <= 1e-5 * x.double().abs().sum(axis)).all()
    for name in ("max", "min"):
        got, _ = rows(f"tl.store(o_ptr + {line}, tl.{name}(x, {axis}))", x, shape)
        assert torch.equal(got, getattr(x.float(), f"a{name}")(axis))
    native, _ = rows(f"tl.store(o_ptr + {line}, tl.sum(x, {axis}))", x, shape, dtype)
    terms = x.double().abs().sum(axis)
    assert ((native - x.double().sum(axis)).abs() <= 8 * torch.finfo(dtype).eps * terms).all()


def test_reductions_drop_nan_and_reach_all_axes():
    x = values(16 * 64, torch.float32).view(16, 64)
    x[3, 5] = math.nan
    got, _ = rows("tl.store(o_ptr + m, tl.max(x, 1))", x, (16,))
    assert torch.equal(got, torch.where(x.isnan(), -math.inf, x).amax(1))
    got, _ = rows("tl.store(o_ptr, tl.min(x))", x, (1,))
    assert got.item() == torch.where(x.isnan(), math.inf, x).min().item()
    got, _ = rows("tl.store(o_ptr + at, x - tl.max(x, 1, keep_dims=True))", x, (16, 64))
    expected = x - torch.where(x.isnan(), -math.inf, x).amax(1, keepdim=True)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_argmax_takes_the_first_of_equals(dtype, name):
    x = torch.randint(-3, 4, (16, 64), generator=torch.Generator().manual_seed(1)).to(dtype)
    _, i = rows(f"tl.store(i_ptr + m, tl.{name}(x, 1))", x, (16,))
    best = x.amax(1, keepdim=True) if name == "argmax" else x.amin(1, keepdim=True)
    assert i.tolist() == [row.index(True) for row in (x == best).tolist()]
    _, i = rows(f"tl.store(i_ptr + n, tl.{name}(x, 0))", x, (64,))
    best = x.amax(0) if name == "argmax" else x.amin(0)
    assert i.tolist() == [row.index(True) for row in (x == best).T.tolist()]


@pytest.mark.parametrize("axis", [0, 1])
def test_reduce_with_a_combine_function(axis):
    x = values(16 * 64, torch.float32).view(16, 64) + 1
    line, shape = ("m", (16,)) if axis else ("n", (64,))
    got, _ = rows(f"tl.store(o_ptr + {line}, tl.reduce(x, {axis}, multiply))", x, shape)
    close(got, x.double().prod(axis), 64)


def test_reduce_of_a_tuple_keeps_the_order_of_its_elements():
    # Composition of affine maps is associative and not commutative.
    x = values(16 * 64, torch.float32).view(16, 64)
    body = "a, b = tl.reduce((x * 0.5, x + 0.5), 1, affine)\n    tl.store(o_ptr + m, b)"
    got, _ = rows(body, x, (16,))
    b = torch.zeros(16, dtype=torch.float64)
    for j in range(64):
        b = 0.5 * x[:, j].double() * b + x[:, j].double() + 0.5
    torch.testing.assert_close(got.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_scans(axis, reverse):
    x = values(16 * 64, torch.float32).view(16, 64) * 0.3 + 1
    flip = (lambda t: t.flip(axis)) if reverse else (lambda t: t)
    y = flip(x.double())
    got, _ = rows(f"tl.store(o_ptr + at, tl.cumsum(x, {axis}, reverse={reverse}))", x, (16, 64))
    close(got, flip(y.cumsum(axis)), 64)
    got, _ = rows(f"tl.store(o_ptr + at, tl.cumprod(x, {axis}, reverse={reverse}))", x, (16, 64))
    close(got, flip(y.cumprod(axis)), 64)
    body = f"""a, b = tl.associative_scan((x * 0.5, x), {axis}, affine, reverse={reverse})
    tl.store(o_ptr + at, b)"""
    got, _ = rows(body, x, (16, 64))
    expected, carry = torch.empty_like(y), torch.zeros_like(y.select(axis, 0))
    for j in range(y.shape[axis]):
        carry = 0.5 * y.select(axis, j) * carry + y.select(axis, j)
        expected.select(axis, j).copy_(carry)
    torch.testing.assert_close(got.double(), flip(expected), rtol=1e-5, atol=1e-5)


def test_bf16_scan_is_at_least_as_good_as_bf16_addition():
    # Triton up to 3.8 computes it in fp32, later ones in bf16.
    x = values(16 * 64, torch.bfloat16, positive=True).view(16, 64)
    got, _ = rows("tl.store(o_ptr + at, tl.cumsum(x, 1))", x, (16, 64))
    exact = x.double().cumsum(1)
    assert ((got - exact).abs() <= 8 * torch.finfo(torch.bfloat16).eps * exact).all()


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gather_join_split_permute_reshape(dtype):
    x = values(16 * 64, dtype).view(16, 64)
    o, _ = rows(
        "tl.store(o_ptr + at, tl.gather(x, (n[None, :] * 5 + m[:, None]) % N, 1))",
        x,
        (16, 64),
        dtype,
    )
    index = (torch.arange(64)[None] * 5 + torch.arange(16)[:, None]) % 64
    assert torch.equal(o, x.gather(1, index))
    o, _ = rows(
        "tl.store(o_ptr + at, tl.reshape(tl.join(x, -x), M, 2 * N).reshape(2, M, N)"
        ".permute(1, 2, 0).reshape(M, 2 * N).reshape(M, N, 2).sum(2))",
        x,
        (16, 64),
    )
    joined = torch.stack([x, -x], -1).reshape(2, 16, 64).permute(1, 2, 0).reshape(16, 64, 2)
    torch.testing.assert_close(o.double(), joined.double().sum(2), rtol=2e-2, atol=2e-2)
    body = """left, right = tl.split(tl.reshape(x, M, N // 2, 2))
    back = tl.join(right, left).reshape(M, N)
    tl.store(o_ptr + at, back)"""
    o, _ = rows(body, x, (16, 64), dtype)
    assert torch.equal(o, x.view(16, 32, 2).flip(2).reshape(16, 64))
    body = "tl.store(o_ptr + n[:, None] * M + m[None, :], tl.trans(x))"
    o, _ = rows(body, x, (64, 16), dtype)
    assert torch.equal(o, x.T.contiguous())


# --- control flow, scalars, memory ----------------------------------------------------------------


def test_scalars_loops_and_branches():
    built = module("""
FOUR = tl.constexpr(4)

@triton.jit(do_not_specialize=["n", "low"])
def kernel(o_ptr, n, low, x, flag, WIDE: tl.constexpr):
    total = 0
    for i in range(low, n, 2):
        if i % 3 == 0 and not i == 6:
            total += i.to(tl.int32)
        elif WIDE or i > 100:
            total -= 1
    tl.store(o_ptr, total)
    tl.store(o_ptr + 1, -n // FOUR)
    tl.store(o_ptr + 2, -n % 4)
    tl.store(o_ptr + 3, min(n, low, 5))
    tl.store(o_ptr + 4, max(n, low))
    tl.store(o_ptr + 5, tl.cdiv(n, 4))
    j = 0
    while j * j < n:
        j += 1
    tl.store(o_ptr + 6, j)
    tl.store(o_ptr + 7, (x * 2).to(tl.int32))
    if flag:
        return
    tl.store(o_ptr + 8, 1)
    for k in tl.range(n, 0, -1, num_stages=2):
        tl.store(o_ptr + 9, k)
    for k in tl.static_range(3):
        tl.store(o_ptr + 10 + k, tl.sum(tl.arange(0, 2 ** (k + 1)), 0))
""")
    for wide in (False, True):
        o = torch.full((13,), -77)
        built.kernel[(1,)](o, 23, 1, 1.75, False, WIDE=wide)
        odd = range(1, 23, 2)
        expected = sum(i for i in odd if i % 3 == 0) - wide * sum(i % 3 != 0 for i in odd)
        assert o.tolist()[:10] == [expected, -5, -3, 1, 23, 6, 5, 3, 1, 1]
        assert o.tolist()[10:] == [1, 6, 28]
    o = torch.full((13,), -77)
    built.kernel[(1,)](o, 23, 1, 1.75, True, WIDE=wide)
    assert o[8] == -77  # an early return


def test_integers_have_tritons_widths():
    built = module("""
@triton.jit(do_not_specialize=["n", "big"])
def kernel(o_ptr, n, big):
    tl.store(o_ptr, n * n)
    tl.store(o_ptr + 1, n.to(tl.int64) * n)
    tl.store(o_ptr + 2, big + big)
    for i in range(65535, 65536):
        tl.store(o_ptr + 3, i * i)
""")
    o = torch.zeros(4, dtype=torch.int64)
    built.kernel[(1,)](o, 1 << 20, 3_000_000_000)
    assert o.tolist() == [0, 1 << 40, 6_000_000_000, (65535**2 + 2**31) % 2**32 - 2**31]


def test_programs_masks_and_offsets():
    built = module("""
@triton.jit(do_not_specialize=["n", "stride"])
def kernel(x_ptr, o_ptr, n, stride, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    x = tl.load(x_ptr + row * stride + i, mask=i < n, other=-1.0)
    y = tl.load(x_ptr + row * stride + i, mask=i < n)
    tl.store(o_ptr + row * n + i, x * 2 + tl.num_programs(0), mask=(i < n) & (y == x))
""")
    x = values(5 * 100, torch.float32).view(5, 100)[:, :77]
    o = torch.full((5, 77), -9.0)
    built.kernel[lambda meta: (5, -(-77 // meta["SIZE"]))](x, o, 77, x.stride(0), SIZE=32)
    torch.testing.assert_close(o, x * 2 + 5, rtol=0, atol=0)
    before = o.clone()
    built.kernel[(0, 3)](x, o, 77, 100, SIZE=32)
    built.kernel[(2, 0, 1)](torch.empty(0), torch.empty(0), 0, 0, SIZE=32)
    assert torch.equal(o, before)


def test_bool_tiles_in_memory():
    built = module("""
@triton.jit
def kernel(x_ptr, o_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x = tl.load(x_ptr + i)
    tl.store(o_ptr + i, x & (i % 3 == 0))
""")
    x, o = torch.arange(64) % 2 == 0, torch.zeros(64, dtype=torch.bool)
    built.kernel[(1,)](x, o, SIZE=64)
    assert o.tolist() == [i % 6 == 0 for i in range(64)]


@pytest.mark.parametrize("dtype", [torch.int32, *FLOATS], ids=str)
def test_atomic_add_with_mask_and_repeated_addresses(dtype):
    built = module("""
@triton.jit
def kernel(x_ptr, o_ptr, n, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x = tl.load(x_ptr + i)
    tl.atomic_add(o_ptr + i % 4, x, mask=i < n)
""")
    x = (torch.arange(64) % 7).to(dtype)
    o = torch.ones(4, dtype=dtype)
    built.kernel[(2,)](x, o, 51, SIZE=64)
    expected = [1 + 2 * sum(i % 7 for i in range(51) if i % 4 == r) for r in range(4)]
    assert o.tolist() == expected


def test_tensor_descriptors():
    built = module("""
@triton.jit
def kernel(x_ptr, o_ptr, M, N, B: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [M, N], [N, 1], [B, B])
    o = tl.make_tensor_descriptor(o_ptr, [M, N], [N, 1], [B, B])
    o.store([0, 16], x.load([0, 16]) + 1)
""")
    x = values(20 * 24, torch.bfloat16).view(20, 24)
    o = torch.zeros_like(x)
    built.kernel[(1,)](x, o, 20, 24, B=16)
    assert torch.equal(o[:16, 16:], x[:16, 16:] + 1) and not o[16:].any() and not o[:, :16].any()


# --- errors ---------------------------------------------------------------------------------------

BROKEN = """
@triton.jit
def helper(x):
    return x + tl.arange(0, 32)

@triton.jit
def kernel(x_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    tl.store(x_ptr + tl.arange(0, SIZE), helper(x))
"""


def test_errors_name_the_generated_line():
    built = module(BROKEN)
    with pytest.raises(KernelError) as caught:
        built.kernel[(1,)](torch.zeros(64), SIZE=64)
    error = caught.value
    line = Path(error.filename).read_text().splitlines()[error.lineno - 1]
    assert line.strip() == "return x + tl.arange(0, 32)"
    assert f"{built.__file__}:{error.lineno}:" in str(error) and "return x + tl" in str(error)
    assert isinstance(error.__cause__, ValueError)


def test_access_outside_the_arguments_is_an_error():
    built = module(BROKEN)
    with pytest.raises(KernelError, match="load touches 1 of 32 active") as caught:
        built.kernel[(1,)](torch.zeros(31), SIZE=32)
    assert isinstance(caught.value.__cause__, OutOfBounds)
    whole = torch.zeros(64)
    with pytest.raises(KernelError, match="load touches 2 of 32"):
        built.kernel[(1,)](whole[:30], SIZE=32)  # the storage goes on, the tensor does not


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if x > 0:\n        tl.store(x_ptr, 1)", "no truth value"),
        ("tl.static_assert(SIZE == 3, 'three')", "three"),
        ("tl.device_assert(x == 1, 'not one')", "not one"),
        ("tl.dot(x, x)", "ranks|2D or 3D"),
        ("libdevice.nonsense(x)", "nonsense"),
    ],
)
def test_other_errors(body, message):
    built = module(f"""
@triton.jit
def kernel(x_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    {body}
""")
    with pytest.raises(KernelError, match=message):
        built.kernel[(1,)](torch.zeros(32), SIZE=32)


def test_wrong_arguments_are_type_errors():
    built = module(BROKEN)
    for args, kwargs in [((), {"SIZE": 4}), ((torch.zeros(4),), {"SIZE": 4, "SZE": 4})]:
        with pytest.raises(TypeError):
            built.kernel[(1,)](*args, **kwargs)
    built.kernel[(1,)](torch.zeros(32), SIZE=32, num_warps=8, num_stages=2)


# --- the module and its neighbours ----------------------------------------------------------------


def test_loading_is_cached_and_the_source_is_a_file():
    first = module(BROKEN)
    assert module(BROKEN) is first and module(BROKEN, interpret=False) is not first
    assert Path(first.__file__).parent.parent == cache_dir()
    assert "return x + tl.arange(0, 32)" in inspect.getsource(first.helper.fn)
    stock = module(BROKEN, interpret=False)
    assert "return x + tl.arange(0, 32)" in inspect.getsource(stock.helper.fn)


def test_the_real_language_is_untouched():
    import triton
    import triton.language as tl

    before = {name: id(value) for name, value in vars(tl).items()}
    methods = {name: id(value) for name, value in vars(tl.tensor).items()}
    built = module(BROKEN)
    built.kernel[(1,)](torch.zeros(32), SIZE=32)
    with pytest.raises(KernelError):
        built.kernel[(1,)](torch.zeros(8), SIZE=32)
    assert before == {name: id(value) for name, value in vars(tl).items()}
    assert methods == {name: id(value) for name, value in vars(tl.tensor).items()}
    assert isinstance(module(BROKEN, interpret=False).kernel, triton.runtime.JITFunction)
    assert isinstance(tl.sum, triton.runtime.JITFunction)
    assert not os.environ.get("TRITON_INTERPRET")


def test_threads_do_not_disturb_each_other():
    built = module("""
@triton.jit
def kernel(o_ptr, base):
    tl.store(o_ptr + tl.program_id(0), base + tl.program_id(0))
""")
    outputs = [torch.zeros(40, dtype=torch.int32) for _ in range(4)]
    threads = [
        threading.Thread(target=built.kernel[(40,)], args=(o, 1000 * n))
        for n, o in enumerate(outputs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, o in enumerate(outputs):
        assert o.tolist() == [1000 * n + i for i in range(40)]


def test_no_home_and_read_only_cache(tmp_path):
    script = (
        "from codegen.module import *; import sys; m = load('x = 1', 'm', interpret=False);"
        "print(m.x, m.__file__)"
    )
    for variables in ({"TKPY_CACHE_DIR": "/proc/nowhere"}, {"HOME": "/nonexistent/home"}):
        environment = {k: v for k, v in os.environ.items() if k != "TKPY_CACHE_DIR"} | variables
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=environment,
            cwd=root,
        )
        assert done.stdout.startswith("1 /"), done.stderr


def test_a_failed_write_leaves_nothing(tmp_path):
    target = tmp_path / "deep" / "file.bin"
    assert write_atomic(target, b"\x00\x01").read_bytes() == b"\x00\x01"
    assert write_atomic(target, "text").read_text() == "text"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "folder", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "folder"]
