"""Integers, rounding and quantising: every bit, special values, other targets, what is refused."""

import numpy as np
import pytest
import torch
import verbs_numbers  # noqa: F401  adds to CASES
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from verbs import CASES

import tkpy as tk
from tkpy.ahead import Setting, compile_for

SLOW = pytest.mark.slow
OURS = [
    "integers_i32", pytest.param("integers_u32", marks=SLOW), "rounding",
    pytest.param("integers_i64", marks=SLOW), pytest.param("integers_u64", marks=SLOW),
]  # fmt: skip


@pytest.mark.parametrize("target", ["sm_90", pytest.param("gfx942", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OURS)
def test_compiles_for_gpus(name, target):
    assert compile_for(CASES[name][0], target, Setting("f32", {"N": 40})).binary


@tk.kernel
def rounded(x: tk.Global["N", tk.f32], o: tk.Out["4 N", tk.f32], c: tk.Out["N", tk.f32]):
    i = tk.grid(tk.cdiv("N", 64))
    a = tk.load(x, (i,), shape=(64,))
    for k, r in enumerate((tk.round(a), tk.floor(a), tk.ceil(a), tk.trunc(a))):
        tk.store(o, r, (k, i))
    tk.store(c, tk.clamp(a, -2, 2), (i,))


def test_rounding_of_every_kind_of_float():
    """Bit for bit, the signs of zeros too: ties, the neighbours of ties, huge, tiny, not finite."""
    exponents = np.arange(256, dtype=np.uint32) << 23
    mantissas = np.array([0, 1, 2, 0x3FFFFF, 0x400000, 0x400001, 0x7FFFFE, 0x7FFFFF], np.uint32)
    words = (exponents[:, None] | mantissas[None]).ravel()
    ties = np.concatenate([np.arange(-40, 40) + d for d in (0.5, 0.25, np.nextafter(0.5, 0))])
    values = np.concatenate([words, words | 0x80000000]).view(np.float32)
    x = torch.from_numpy(np.concatenate([values, ties.astype(np.float32)]))
    got, clamped = rounded(x)
    for row, want in zip(got, (x.round(), x.floor(), x.ceil(), x.trunc()), strict=True):
        assert torch.equal(row.isnan(), x.isnan())
        some = ~x.isnan()
        assert torch.equal(row[some].view(torch.int32), want[some].view(torch.int32))
    torch.testing.assert_close(clamped, x.clamp(-2, 2), rtol=0, atol=0, equal_nan=True)


@tk.kernel
def quantised(
    x: tk.Global["M N"], s: tk.Global["N", tk.f32], z: tk.Global["N", tk.i32],
    one: tk.Out["M N"], many: tk.Out["M N"], scale: tk.f32, zero: tk.i32,
    *, low: int = -128, high: int = 127,
):  # fmt: skip
    i = tk.grid(tk.cdiv("M", 16))
    a = tk.load(x, (i, 0), shape=(16, 48))
    sv, zv = tk.load(s, (0,), shape=(48,)), tk.load(z, (0,), shape=(48,))
    tk.store(one, tk.fake_quantize(a, scale, zero, low, high), (i, 0))
    tk.store(many, tk.fake_quantize(a, sv, zv, low, high), (i, 0))


@given(number=st.integers(0, 2**31), m=st.integers(1, 40), n=st.integers(1, 48),
       size=st.sampled_from([1e-3, 1.0, 30.0, 1e5]),
       ends=st.sampled_from([(-128, 127), (0, 255), (-8, 7), (0, 15)]))  # fmt: skip
@settings(max_examples=20, deadline=None, database=None)
@seed(3)
def test_fake_quantize_is_torchs(number, m, n, size, ends):
    g = torch.Generator().manual_seed(number)
    x = torch.randn(m, n, generator=g) * size
    s = torch.rand(n, generator=g) * size / 50 + 1e-4
    z = torch.randint(ends[0], ends[1] + 1, (n,), generator=g, dtype=torch.int32)
    scale, zero = float(s[0]), int(z[0])
    # Some values that lie on a tie, or next to one, in fp32.
    x[:, 0] = (torch.randint(-30, 30, (m,), generator=g) + 0.5) * scale
    one, many = quantised(x, s, z, scale, zero, low=ends[0], high=ends[1])
    f = torch.fake_quantize_per_tensor_affine
    assert torch.equal(one, f(x, scale, zero, *ends))
    assert torch.equal(many, torch.fake_quantize_per_channel_affine(x, s, z, 1, *ends))


def test_fake_quantize_beyond_the_integers():
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1e30, -1e30]])
    one, _ = quantised(x, torch.ones(5), torch.zeros(5, dtype=torch.int32), 0.5, 1)
    assert one[0, 0].isnan()
    assert one[0, 1:].tolist() == [63.0, -64.5, 63.0, -64.5]


@tk.kernel
def nans(x: tk.Global["M N"], tiles: tk.Out["M", tk.bool_], vectors: tk.Out["M", tk.i32]):
    i = tk.grid("M")
    a = tk.load(x, (tk.at(i), 0), shape=(16, "N"), until=i + 1)
    tk.store(tiles, tk.hasnan(a), (i,))
    v = tk.load(x, (i, 0), shape=("N",))
    count = 0
    if tk.hasnan(v):
        count = count + 1
    tk.store(vectors, count, (i,))


@pytest.mark.parametrize("n", [1, 16, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hasnan(n, dtype):
    x = torch.randn(9, n).to(dtype)
    x[2, 0] = x[5, n - 1] = float("nan")
    x[3, 0] = float("inf")
    wide = torch.full((11, n + 5), float("nan"), dtype=dtype)  # NaN around the tensor
    wide[1:10, 2 : n + 2] = x
    tiles, vectors = nans(wide[1:10, 2 : n + 2])
    assert torch.equal(tiles, x.isnan().any(1))
    assert torch.equal(vectors, x.isnan().any(1).int())


BODY = """
import tkpy as tk

@tk.kernel
def k(x: tk.Global["M N", tk.{dtype}], o: tk.Out["M N", tk.{dtype}], n: tk.f32):
    i = tk.grid(tk.cdiv("M", 16))
    a = tk.load(x, (i, 0), shape=(16, 16))
    r = {line}
    tk.store(o, r, (i, 0))
"""
REFUSED = [
    ("i32", "a << 32", "<<: a shift by 32 of 16x16 i32: the count must be 0 to 31"),
    ("i64", "a >> -1", ">>: a shift by -1 of 16x16 i64: the count must be 0 to 63"),
    ("f32", "a << 2", "<< takes tiles of 32- or 64-bit integers, and a is 16x16 f32"),
    ("i16", "a << 2", "<< takes tiles of 32- or 64-bit integers, and a is 16x16 i16"),
    ("i32", "a << 1.5", "does not mix with a float scalar"),
    ("i32", "a << tk.cast(a, tk.i64)", "element types differ"),
    ("i8", "tk.mulhi(a, a)", "mulhi takes tiles of 32- or 64-bit integers, and a is 16x16 i8"),
    ("i32", "a + 4294967296", "4294967296 is no i32: 16x16 i32 holds"),
    ("u32", "a * -1", "-1 is no u32: 16x16 u32 holds 0 to 4294967295"),
    ("i32", "tk.round(a)", "round takes float, and a is 16x16 i32"),
    ("f32", "tk.clamp(a)", "tk.clamp with no bound"),
    ("f32", "tk.clamp(a, tk.cast(a, tk.bf16))", "element types differ"),
    ("f32", "tk.fake_quantize(a, 0.0, 0, 0, 255)", "scale 0.0: it must be positive"),
    ("f32", "tk.fake_quantize(a, 0.5, 0, 255, 0)", "qmin must be below qmax"),
    ("f32", "tk.fake_quantize(a, 0.5, 0, n, 255)", "qmin must be a number"),
    ("i32", "tk.fake_quantize(a, 0.5, 0, 0, 255)", "takes a tile of floats"),
    ("i32", "tk.hasnan(a)", "only floats have a NaN"),
    ("f32", "tk.hasnan(n)", "hasnan takes a tile or a vector"),
]


@pytest.mark.parametrize(("dtype", "line", "says"), REFUSED)
def test_refused_with_the_place_and_the_reason(tmp_path, dtype, line, says):
    path = tmp_path / "body.py"
    source = BODY.format(dtype=dtype, line=line)
    path.write_text(source)
    scope: dict = {}
    exec(compile(source, str(path), "exec"), scope)
    kernel = scope["k"]
    with pytest.raises(tk.CompileError) as e:
        compile_for(kernel, "cpu", Setting("f32", {"M": 16, "N": 16}))
    assert says in str(e.value)
    assert f"{path}:8" in str(e.value)
