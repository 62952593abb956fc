"""8-bit floats and products of 8 bits: every code, PyTorch's rounding, exact sums, other targets."""

import re

import numpy as np
import pytest
import torch
import verbs_narrow  # noqa: F401  adds to CASES
from verbs import CASES

import tkpy as tk
from tkpy.ahead import Setting, compile_for
from tkpy.execution import interpreted

KINDS = {"fp8e4m3": torch.float8_e4m3fn, "fp8e5m2": torch.float8_e5m2}


def converter(source, target):
    def body(x, o):
        i = tk.grid(tk.cdiv("N", 64))
        a = tk.load(x, (i,), shape=(64,))
        tk.store(o, tk.cast(a, target), (0, i))
        tk.store(o, a, (1, i))

    body.__annotations__ = {"x": tk.Global["N", source], "o": tk.Out["2 N", target]}
    body.__name__ = body.__qualname__ = f"convert_{source}_{target}"
    return tk.kernel(body)


def same_bytes(a, b):
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def wide_values(dtype):
    """Floats of ``dtype`` of every size, around every 8-bit float and halfway between them."""
    g = torch.Generator().manual_seed(0)
    out = [torch.randint(-(2**31), 2**31, (6000,), generator=g).int().view(torch.float32)]
    for kind in KINDS.values():
        codes = torch.arange(256, dtype=torch.uint8).view(kind).float()
        known = codes[codes.isfinite()].sort().values
        half = (known[1:] + known[:-1]) / 2
        for x in (known, half):
            bits = x.view(torch.int32)
            out += [x, (bits + 1).view(torch.float32), (bits - 1).view(torch.float32)]
    inf = float("inf")
    out.append(torch.tensor([464, 464.01, 480, 57344, 61439.99, 61440, 1e30, inf, float("nan")]))
    x = torch.cat([*out, -torch.cat(out)])
    return x.to(dtype)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", ["f32", "bf16", pytest.param("f16", marks=pytest.mark.slow)])
def test_narrowing_is_torchs(source, target):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[source]
    x = wide_values(dtype)
    kernel = converter(getattr(tk, source), getattr(tk, target))
    want = x.to(KINDS[target])
    nan = x.isnan()
    for got in (*kernel(x), *([] if source != "f32" else interpreted_call(kernel, x))):
        assert same_bytes(got[~nan], want[~nan])
        assert bool(got.float()[nan].isnan().all())
    if source == "f32":  # the sign of a NaN too
        assert same_bytes(kernel(x)[0], want)


def interpreted_call(kernel, x):
    """The interpreter's answers for the last thousand; PyTorch's stand for the rest."""
    with interpreted():
        got = kernel(x[-1000:].contiguous())
    return [torch.cat([x[:-1000].to(g.dtype), g]) for g in got]


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", ["f32", "bf16", "fp8e4m3", "i32",
                                    *(pytest.param(t, marks=pytest.mark.slow) for t in ("f16", "fp8e5m2"))])  # fmt: skip
def test_widening_every_code(source, target):
    x = torch.arange(256, dtype=torch.uint8).view(KINDS[source])
    if target == "i32":
        x = x.view(torch.uint8)[x.float().isfinite() & (x.float().abs() < 2**31)].view(x.dtype)
        kernel = only_cast(getattr(tk, source))
        assert torch.equal(kernel(x), x.float().to(torch.int32))
        return
    got = converter(getattr(tk, source), getattr(tk, target))(x)
    dtype = (
        KINDS.get(target)
        or {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[target]
    )
    want = x.float().to(dtype)
    for row in got:
        assert torch.equal(row.float().isnan(), want.float().isnan())
        assert torch.equal(row.float().nan_to_num(5), want.float().nan_to_num(5))
        some = ~want.float().isnan()
        assert torch.equal(row.float().signbit()[some], want.float().signbit()[some])


def only_cast(source):
    def to_integers(x, o):
        i = tk.grid(tk.cdiv("N", 64))
        tk.store(o, tk.cast(tk.load(x, (i,), shape=(64,)), tk.i32), (i,))

    to_integers.__annotations__ = {"x": tk.Global["N", source], "o": tk.Out["N", tk.i32]}
    return tk.kernel(to_integers)


def test_products_of_bytes_are_exact_at_their_ends():
    """-128 * -128 summed 1024 times, which no 16-bit or saturating sum survives."""
    kernel = CASES["products_i8"][0]
    for x, y in ((-128, -128), (-128, 127), (127, 127)):
        a, b = (
            torch.full((33, 1024), x, dtype=torch.int8),
            torch.full((1024, 17), y, dtype=torch.int8),
        )
        assert (kernel(a, b)[0] == x * y * 1024).all()


@pytest.mark.parametrize("name", ["fp8e4m3", pytest.param("fp8e5m2", marks=pytest.mark.slow)])
def test_products_of_8_bit_floats_are_sums_in_fp32(name):
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(s, generator=g).to(KINDS[name]) for s in ((37, 300), (300, 50)))
    got = CASES[f"products_{name}"][0](a, b)[0].double()
    x, y = a.double(), b.double()
    bound = 2**-22 * 17 * (x.abs() @ y.abs())
    assert bool(((got - x @ y).abs() <= bound).all())


OURS = ["products_i8", "products_fp8e4m3", "moves_fp8e4m3",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("products_fp8e5m2", "moves_fp8e5m2"))]  # fmt: skip


@pytest.mark.parametrize("target", ["sm_90", pytest.param("gfx942", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OURS)
def test_compiles_for_gpus(name, target):
    assert compile_for(CASES[name][0], target, Setting("f32", {"M": 96, "N": 64})).binary


def test_integers_multiply_on_the_tensor_cores_of_an_older_gpu():
    text = compile_for(CASES["products_i8"][0], "sm_80", Setting("f32")).assembly
    assert re.search(r"mma\.sync\.aligned\.m16n8k32\S*\.s32\.s8\.s8\.s32", text)


def test_no_e4m3_on_an_older_gpu():
    with pytest.raises(tk.TkError, match="fp8e4nv not supported in this architecture"):
        compile_for(CASES["products_fp8e4m3"][0], "sm_80", Setting("f32"))


def test_sums_on_hopper_are_fp32_beyond_32_products():
    @tk.kernel
    def big(
        a: tk.Global["M K", tk.fp8e4m3], b: tk.Global["N K", tk.fp8e4m3], o: tk.Out["M N", tk.f32]
    ):
        i, j = tk.grid(tk.cdiv("M", 64), tk.cdiv("N", 64))
        acc = tk.zeros(64, 64)
        for k in tk.range(tk.cdiv("K", 64)):
            x, y = tk.load(a, (i, k), shape=(64, 64)), tk.load(b, (j, k), shape=(64, 64))
            acc = tk.mma_ABt(x, y, acc)
        tk.store(o, acc, (i, j))

    compiled = compile_for(big, "sm_90", Setting("f32"))
    assert re.search(r"wgmma\.mma_async\S*\.f32\.e4m3\.e4m3", compiled.assembly)
    assert "maxNumImpreciseAcc = 32" in compiled.asm["ttir"]
    adds = re.findall(r"add(?:\.rn)?\.f32", compiled.assembly)
    assert len(adds) >= 32  # what a thread holds of the sum, added after every 32 products


BODY = """
import tkpy as tk

@tk.kernel
def k(x: tk.Global["M N", tk.{dtype}], o: tk.Out["M N", tk.{dtype}], f: tk.InOut["M N", tk.f32]):
    i = tk.grid(tk.cdiv("M", 32))
    a = tk.load(x, (i, 0), shape=(32, 32))
    r = {line}
    tk.store(o, a, (i, 0))
"""
REFUSED = [
    ("fp8e4m3", "a + a", "a is 32x32 fp8e4m3: tiles of 8-bit floats are moved, converted and"),
    ("fp8e5m2", "tk.row_max(a)", "tk.cast(x, tk.f32) first"),
    ("fp8e5m2", "tk.cumsum(a, 1)", "and scan is none of these"),
    ("fp8e4m3", "tk.where(tk.cast(a, tk.f32) > 0, a, a)", "and where is none of these"),
    ("fp8e4m3", "tk.row_outer(a, a)", "and row_outer is none of these"),
    ("fp8e4m3", "tk.row_pairs(a)", "pairs are made of the columns of a tile of floats of 16"),
    ("i32", "tk.row_pairs(a)", "pairs are made of floats"),
    ("f32", "tk.row_pairs(5)", "5 is no tile"),
    ("fp8e4m3", "tk.topk(a, 3)", "topk orders f32, bf16, f16, i32, not fp8e4m3"),
    ("fp8e4m3", "tk.mm_AB(a, tk.cast(a, tk.fp8e5m2))", "the element types differ"),
    ("fp8e4m3", "tk.mm_ABt(a[:, 0:16], a[:, 0:16])", "inner size of 8-bit products is at least 32"),
    ("i8", "tk.mm_AB(a[:, 0:16], a[0:16, :])", "inner size of 8-bit products is at least 32"),
    ("i8", "tk.mma_AB(a, a, tk.zeros(32, 32))", "tk.zeros(32, 32, dtype=tk.i32)"),
    ("i32", "tk.mm_AB(a, a)", "products take floats or i8"),
    ("fp8e4m3", "tk.full((16, 16), 449, dtype=tk.fp8e4m3)", "449, which is no fp8e4m3"),
    ("fp8e5m2", "tk.neg_infty(16, dtype=tk.fp8e5m2)", "-inf, which is no fp8e5m2"),
    ("fp8e4m3", "tk.hasnan(a)", "and ne is none of these"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "line", "says"), REFUSED)
def test_refused(tmp_path, dtype, line, says):
    path = tmp_path / "k.py"
    source = BODY.format(dtype=dtype, line=line)
    path.write_text(source)
    scope: dict = {}
    exec(compile(source, str(path), "exec"), scope)
    with pytest.raises(tk.CompileError) as e:
        compile_for(scope["k"], "cpu", Setting("f32", {"M": 32, "N": 32}))
    assert says in str(e.value) and f"{path}:8" in str(e.value)


def test_random_products_of_bytes_are_numpys():
    g = np.random.default_rng(2)
    a, b = (
        torch.from_numpy(g.integers(-128, 128, s, dtype=np.int8)) for s in ((70, 129), (129, 31))
    )
    got = CASES["products_i8"][0](a, b)
    want = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64)
    for k, more in enumerate((0, 0, 1, 0)):
        assert np.array_equal(got[k].numpy(), want + more)
