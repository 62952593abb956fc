"""Complex tiles: against complex128 under an error model, against real embeddings, and refused."""

import runpy

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import tkpy as tk
from codegen.inspect import inspect
from codegen.text import parse_function, print_function
from tkpy.ahead import Setting, compile_for
from tkpy.execution import interpreted
from tkpy.export import export_source
from tkpy.testing import check

SIZES = st.sampled_from([1, 3, 16, 17, 31, 33, 48, 65])
SIDES = st.sampled_from([17, 48])  # each is compiled for
EPS = {t: torch.finfo(t).eps for t in (torch.float32, torch.bfloat16, torch.float16)}


def drawn(*shape, seed=0, size=1.0):
    g = torch.Generator().manual_seed(seed)
    return torch.complex(torch.randn(*shape, generator=g), torch.randn(*shape, generator=g)) * size


# -- products: the 2x2 real embedding ------------------------------------------------------------


@tk.kernel
def products(
    ar: tk.Global["M K"], ai: tk.Global["M K"], br: tk.Global["K N"], bi: tk.Global["K N"],
    o: tk.Out["4 M N", tk.c64], e: tk.Out["2 M N", tk.f32],
):  # fmt: skip
    """Every form of the product, and the same by real tiles twice as high and wide."""
    i, j = tk.grid(tk.cdiv("M", 32), tk.cdiv("N", 16))
    re, im = tk.load(ar, (i, 0), shape=(32, "K")), tk.load(ai, (i, 0), shape=(32, "K"))
    sr, si = tk.load(br, (0, j), shape=("K", 16)), tk.load(bi, (0, j), shape=("K", 16))
    a, b = tk.complex(re, im), tk.complex(sr, si)
    c = tk.mm_AB(a, b)
    tk.store(o, c, (0, i, j))
    tk.store(o, tk.mma_ABt(a, b.T, c) - c, (1, i, j))
    tk.store(o, tk.mma_AtB(a.T, b), (2, i, j))
    tk.store(o, tk.mm_AtBt(a.T, b.T), (3, i, j))
    wide = tk.concat(re, tk.neg(im), axis=1)
    tk.store(e, tk.mm_AB(wide, tk.concat(sr, si, axis=0)), (0, i, j))
    tk.store(e, tk.mm_AB(tk.concat(im, re, axis=1), tk.concat(sr, si, axis=0)), (1, i, j))


@given(m=SIZES, n=SIZES, k=SIDES, dtype=st.sampled_from(list(EPS)), number=st.integers(0, 99))
@settings(max_examples=3, deadline=None, database=None)
@seed(3)
def test_products_are_the_real_embeddings(m, n, k, dtype, number):
    a, b = drawn(m, k, seed=number), drawn(k, n, seed=number + 100)
    parts = [t.to(dtype) for t in (a.real, a.imag, b.real, b.imag)]
    a, b = (torch.complex(x.double(), y.double()) for x, y in (parts[:2], parts[2:]))
    want = torch.view_as_real(a @ b)
    size = [t.real.abs() + t.imag.abs() for t in (a, b)]
    bound = 4 * EPS[torch.float32] * (size[0] @ size[1])[..., None]
    o, e = products(*parts)
    for k_ in range(4):
        got = torch.view_as_real(o[k_])
        assert ((got - want).abs() <= bound * (2 if k_ == 1 else 1)).all(), k_
    assert ((torch.stack([o[0].real, o[0].imag]) - e).abs() <= bound[..., 0]).all()


@pytest.mark.slow
def test_the_sign_of_fp16_products_is_a_sign():
    """A minus that is a bit pattern of another format (0xFB80 is -61440) shows at once."""
    one = torch.ones(16, 16, dtype=torch.float16)
    zero = torch.zeros_like(one)
    o, _ = products(zero, one, zero, one)  # i * i = -1, sixteen times
    assert torch.equal(o, torch.full_like(o, -16))


# -- maps ----------------------------------------------------------------------------------------


@tk.kernel
def maps(x: tk.Global["M N", tk.c64], y: tk.Global["M N", tk.c64], o: tk.Out["4 M N", tk.c64],
         size: tk.Out["M N", tk.f32], *, short: bool = False):  # fmt: skip
    i = tk.grid(tk.cdiv("M", 16))
    a, b = tk.load(x, (i, 0), shape=(16, "N")), tk.load(y, (i, 0), shape=(16, "N"))
    if short:
        a, b = a.to(tk.bf16), tk.cast(b, tk.bf16)
    tk.store(o, a * b, (0, i, 0))
    tk.store(o, a / b, (1, i, 0))
    tk.store(o, tk.exp(a), (2, i, 0))
    tk.store(o, 1 / a + a / (2 - 1j), (3, i, 0))
    tk.store(size, tk.abs(a) if not short else tk.cast(abs(a), tk.f32), (i, 0))


@pytest.mark.slow
@given(m=SIZES, n=SIDES, short=st.booleans(), power=st.sampled_from([0, 0, 60, -60, 62]),
       number=st.integers(0, 99))  # fmt: skip
@settings(max_examples=12, deadline=None, database=None)
@seed(4)
def test_maps_are_within_their_error_model(m, n, short, power, number):
    x, y = drawn(m, n, seed=number), drawn(m, n, seed=number + 100) * 2.0**power
    o, size = maps(x, y, short=short)
    if short:
        x, y = (torch.complex(t.real.bfloat16().float(), t.imag.bfloat16().float()) for t in (x, y))
    a, b = x.to(torch.complex128), y.to(torch.complex128)
    eps = EPS[torch.bfloat16] + EPS[torch.float32] if short else EPS[torch.float32]
    wants = [a * b, a / b, a.exp(), 1 / a + a / (2 - 1j)]
    sizes = [a.abs() * b.abs(), a.abs() / b.abs(), (1 + a.abs()) * a.exp().abs(),
             1 / a.abs() + a.abs()]  # fmt: skip
    for k, (want, scale) in enumerate(zip(wants, sizes, strict=True)):
        error = torch.view_as_real(o[k] - want).abs().amax(-1)
        assert (error <= 8 * eps * scale + 1e-37).all(), k
    assert ((size - a.abs()).abs() <= 4 * eps * a.abs()).all()


def test_abs_of_what_is_not_finite_and_of_what_is_large():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([complex(inf, nan), complex(nan, -inf), complex(nan, 1), complex(0, nan), 0,
                      complex(3e38, 1e38), complex(-1e-40, 0), complex(inf, inf), 3e-30 + 4e-30j,
                      -3e30 - 4e30j])[None]  # fmt: skip
    _, size = maps(x, torch.ones_like(x))
    assert torch.allclose(size, x.to(torch.complex128).abs().float(), rtol=3e-7, equal_nan=True)


def test_a_quotient_of_extremes_neither_overflows_nor_vanishes():
    x = torch.full((1, 4), 3e30 + 4e30j)
    y = torch.tensor([[3e30 + 4e30j, 1e38 + 1e38j, 2e30, 1e-3j]])
    o, _ = maps(x, y)
    want = x.to(torch.complex128) / y.to(torch.complex128)
    assert ((o[1] - want).abs() <= 1e-6 * want.abs()).all()


# -- the front end -------------------------------------------------------------------------------


@tk.function
def power(z, n):
    """z to the n by repeated squaring; the name is updated in a loop."""
    out = tk.ones(16, dtype=tk.c64)
    for _ in tk.range(n):
        out = out * z
    return out


@tk.function
def turned(z, times):
    for _ in tk.range(times):
        z = z * 1j
    return z


@tk.kernel
def flow(x: tk.Global["N", tk.c64], o: tk.Out["K N", tk.c64], n: tk.i32):
    i = tk.grid(tk.cdiv("N", 16))
    z = tk.load(x, i, shape=16)
    tk.store(o, power(z, n), (0, i))
    both, (re, im) = (z, z * 2), (z.real, z.imag)
    if n > 2:
        z = tk.conj(z)
        w = both[1]
    else:
        z = z + 1
        w = both[0]
    tk.store(o, z, (1, i))
    tk.store(o, w - tk.complex(re, im), (2, i))
    tk.store(o, turned(w, n), (3, i))
    tk.store(o, tk.load(x, tk.at(0)) + z * 0, (4, i))
    rotated = tk.associative_scan(tk.load(x, i, shape=16), lambda l, r: l * r)
    tk.store(o, rotated, (5, i))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_complex_values_go_round_loops_and_out_of_branches(n):
    x = drawn(37, seed=1)
    z = x.to(torch.complex128)
    w = 2 * z if n > 2 else z
    products = torch.cat([p.cumprod(0) for p in z.split(16)])
    want = [z**n, z.conj() if n > 2 else z + 1, w - z, w * 1j**n, z[0].expand(37), products]
    got = flow(x, n, o=torch.empty(6, 37, dtype=torch.complex64))
    assert torch.allclose(got.to(torch.complex128), torch.stack(want), rtol=1e-5, atol=1e-6)


@tk.kernel(where=["0 <= idx < M"])
def moves(
    x: tk.Global["M N", tk.c64],
    idx: tk.Global["R", tk.i32],
    y: tk.Out["N M", tk.c64],
    rows: tk.Out["R N", tk.c64],
    back: tk.Out["R N", tk.c64],
    total: tk.Out["M N", tk.c64],
    z: tk.InOut["M N", tk.c64],
    re: tk.Out["M N", tk.f32],
):
    i = tk.grid(tk.cdiv(tk.dim("M") + tk.dim("R"), 16))
    t = tk.load(x, (i, 0), shape=(16, "N"), policy="evict_first")
    tk.store(y, t, (0, i), axis=(1, 0))
    tk.store(z, t + tk.load(z, (i, 0), shape=(16, "N")), (i, 0))
    tk.store(re, tk.load(x.imag, (i, 0), shape=(16, "N")), (i, 0))
    which = tk.load(idx, i, shape=16)
    g = tk.gather_rows(x, which, (None, 0), "N")
    tk.store(rows, g, (i, 0))
    tk.scatter_add_rows(total, g, which, (None, 0))
    tk.scatter_rows(back, g, tk.iota(16, start=i * 16), (None, 0))


LAYOUTS = {
    "contiguous": lambda x: x,
    "conjugated": lambda x: x.conj().resolve_conj().conj(),
    "every second": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "transposed": lambda x: x.T.contiguous().T,
    "expanded": lambda x: x[:1].expand(x.shape),
    "offset": lambda x: torch.cat([x, x], 1)[:, 1 : 1 + x.shape[1]],
}


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(x, marks=[] if x in ("conjugated", "every second") else pytest.mark.slow)
        for x in LAYOUTS
    ],
)
def test_tensors_of_any_layout(layout):
    x = LAYOUTS[layout](drawn(35, 21, seed=2))
    idx = torch.tensor([3, 3, 0, 34, 7] * 4, dtype=torch.int32)
    start = drawn(35, 21, seed=3)
    for run in (False, True):
        z = start.clone()
        if run:
            with interpreted():
                y, rows, back, total, re = moves(x, idx, z)
        else:
            y, rows, back, total, re = moves(x, idx, z)
        assert torch.equal(y, x.T) and torch.equal(z, start + x) and torch.equal(re, x.imag)
        assert torch.equal(rows, x[idx.long()]) and torch.equal(back, rows)
        want = torch.zeros_like(total).index_add(0, idx.long(), x[idx.long()])
        assert torch.allclose(total, want)


def test_an_output_that_is_a_conjugated_view_is_refused():
    x = drawn(16, 16)
    idx = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="z is a lazily conjugated view"):
        moves(x, idx, drawn(16, 16).conj())


def test_text_and_export_know_pairs(tmp_path):
    x = drawn(20, 21)
    fn = maps.lower(maps.key_of(maps.binder.bind((x, x), {}))).fn
    assert print_function(parse_function(print_function(fn))) == print_function(fn)
    path = tmp_path / "exported.py"
    path.write_text(export_source(maps, Setting("f32", {"M": 20, "N": 21}, {})))
    got = runpy.run_path(str(path))["maps"](x, x.conj())
    for a, b in zip(got, maps(x, x.conj()), strict=True):
        assert torch.equal(a, b)


@tk.kernel
def gated(x: tk.Global["M N", tk.c64], g: tk.Global["M N"], o: tk.Out["M N", tk.c64]):
    """o = x * g, with x complex and g real."""
    i = tk.grid(tk.cdiv("M", 32))
    gate = tk.load(g, (i, 0), shape=(32, "N"), dtype=tk.f32)
    tk.store(o, tk.load(x, (i, 0), shape=(32, "N")) * gate, (i, 0))


@gated.reference(terms=lambda x, g: torch.complex(x.real.abs(), x.imag.abs()) * g.abs())
def gated_reference(x, g):
    return x * g


def test_check_draws_complex_tensors():
    check(gated, examples=15).raise_if_failed()


@tk.kernel
def gated_wrongly(x: tk.Global["M N", tk.c64], g: tk.Global["M N"], o: tk.Out["M N", tk.c64]):
    i = tk.grid(tk.cdiv("M", 32))
    gate = tk.load(g, (i, 0), shape=(32, "N"), dtype=tk.f32)
    tk.store(o, tk.conj(tk.load(x, (i, 0), shape=(32, "N"))) * gate, (i, 0))


@pytest.mark.slow
def test_check_finds_a_wrong_sign():
    gated_wrongly.reference(gated_reference)
    with pytest.raises(AssertionError, match="expected"):
        check(gated_wrongly, examples=15).raise_if_failed()


@pytest.mark.slow
def test_products_use_the_matrix_unit():
    compiled = compile_for(products, "sm_90", Setting("bf16", {"M": 64, "N": 64, "K": 32}, {}))
    report = inspect(compiled)
    assert report.instructions["wgmma"] + report.instructions["mma"] >= 16


# -- what is refused -----------------------------------------------------------------------------


@tk.kernel
def wrong(x: tk.Global["M N", tk.c64], o: tk.Out["M N", tk.c64], r: tk.Out["M N", tk.f32],
          g: tk.Global["M N"], *, case: str):  # fmt: skip
    tk.grid(1)
    t, s = tk.load(x, (0, 0), shape=(16, 16)), tk.zeros(16, 16)
    if case == "order":
        s = tk.where(t > 0, s, s)
    if case == "max":
        t = tk.row_max(t)
    if case == "shapes":
        t = tk.complex(s, tk.zeros(32, 16))
    if case == "dtypes":
        t = tk.complex(s, tk.load(g, (0, 0), shape=(16, 16)))
    if case == "integers":
        t = tk.complex(tk.iota(16), tk.iota(16))
    if case == "real out":
        tk.store(r, t, (0, 0))
    if case == "accumulator":
        t = tk.mma_AB(t, t, s)
    if case == "inner":
        t = t @ tk.zeros(32, 16, dtype=tk.c64)
    if case == "loop":
        for _ in tk.range(tk.cdiv("M", 16)):
            s = s * 1j
    if case == "other loop":
        for _ in tk.range(tk.cdiv("M", 16)):
            t = t.real
    if case == "truth":
        s = s + 1 if t else s
    if case == "attribute":
        s = t.phase
    if case == "imag":
        s = tk.imag(s)
    if case == "floordiv":
        t = t // 2
    if case == "branch" and tk.dim("M") > 3:
        s = t
    if case == "tensor":
        s = s + x
    tk.store(o, t, (0, 0))
    tk.store(r, s, (0, 0))


@pytest.mark.parametrize(
    "case, said",
    [
        ("order", "complex numbers have no order"),
        ("max", "complex 16x16 f32: tk.row_max takes real numbers"),
        ("shapes", "the real part is 16x16 f32 and the imaginary part 32x16 f32"),
        ("dtypes", "the real part is 16x16 f32 and the imaginary part 16x16 bf16"),
        ("integers", "the parts of a complex value are floats"),
        ("real out", "complex 16x16 f32 and r holds f32"),
        ("accumulator", r"dtype=tk.c64"),
        ("inner", "the inner sizes 16 and 32 differ"),
        ("loop", "s enters the loop real and leaves it complex"),
        ("other loop", "t enters the loop complex and leaves it real"),
        ("truth", "is not one truth value"),
        ("attribute", "complex tiles have .real"),
        ("imag", "16x16 f32 is real"),
        ("floordiv", "complex numbers have no floordiv"),
        ("branch", "would change at run time"),
        ("tensor", "the tensor x .load a tile of it first."),
    ],
)
def test_what_is_refused_is_said_at_its_line(case, said):
    x = torch.zeros(16, 16, dtype=torch.complex64)
    with pytest.raises(tk.CompileError, match=said) as e:
        wrong(x, torch.zeros(16, 16, dtype=torch.bfloat16), case=case)
    assert "test_complex.py:" in str(e.value)


def test_a_lazily_negated_view_is_refused():
    x, g = drawn(16, 16), drawn(16, 16).conj().imag
    for _ in range(2):
        with pytest.raises(tk.CallError, match=r"g is a lazily negated view.*\n.*resolve_neg"):
            gated(x, g)
        assert torch.equal(gated(x, g.resolve_neg()), x * g)


def test_other_dtypes_are_refused_at_the_call():
    for other in (torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.complex128)):
        with pytest.raises(tk.CallError, match="complex64"):
            gated(other, torch.zeros(4, 4))
