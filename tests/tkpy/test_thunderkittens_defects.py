"""The published defects of ThunderKittens' vocabulary and kernels, each as a property that holds here.

Test names begin with the number in the list of ten defects found by reading the library (``lib``)
or in the list of ten that are worth a test (``top``). Those of pipelines, top 4, 5, 6, 7 and 10 and
lib 10, are in test_pipeline_defects.py.
"""

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import tkpy as tk
from zoo.kernels.fft import tables
from zoo.kernels.fftconv import fftconv, spectrum
from zoo.kernels.gemm import gemm

TILES = [(16, 16), (80, 48)]


def numbers(*shape, number=0):
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(number)).float()


# -- lib 1, top 1: apply at group scope uses another definition of "my rows" than load -------------


@tk.kernel
def coordinates(x: tk.Global["M N"], o: tk.Out["M N"], *, rows: int, cols: int):
    i, j = tk.grid(tk.cdiv("M", rows), tk.cdiv("N", cols))
    t = tk.load(x, (i, j), shape=(rows, cols))
    t = tk.apply(
        t,
        lambda r, c, v: v + tk.cast(r * 1000 + c, tk.f32),
        row=i * rows,
        col=j * cols,
    )
    tk.store(o, t, (i, j))


@pytest.mark.parametrize("rows, cols", TILES)
def test_lib_1_coordinates_do_not_depend_on_how_tiles_are_cut(rows, cols):
    x = numbers(100, 70)
    want = x + torch.arange(100)[:, None] * 1000 + torch.arange(70)
    assert torch.equal(coordinates(x, rows=rows, cols=cols), want)


# -- lib 2, top 2 and lib 3, top 3: fills that leave the result unwritten, or depend on layout -----


@tk.kernel
def fills(x: tk.Global["M N"], o: tk.Out["6 M N"], t: tk.Out["6 N M"], r: tk.i32, c: tk.i32,
          *, layout: str = "row"):  # fmt: skip
    tk.grid(1)
    a = tk.load(x, (0, 0), shape=("M", "N"), layout=layout)
    both = (
        (tk.right_fill(a, c, 7), tk.lower_fill(a.T, c, 7)),
        (tk.left_fill(a, c, 7), tk.upper_fill(a.T, c, 7)),
        (tk.upper_fill(a, r, 7), tk.left_fill(a.T, r, 7)),
        (tk.lower_fill(a, r, 7), tk.right_fill(a.T, r, 7)),
        (tk.upper_right_fill(a, r, c, 7), tk.apply(
            a.T, lambda i, j, v: tk.where((j < r) & (i >= c), 7, v)
        )),
        (tk.swap_layout(a, "col"), a.T),
    )  # fmt: skip
    for k, (one, two) in enumerate(both):
        tk.store(o, one, (k, 0, 0))
        tk.store(t, two, (k, 0, 0))


@given(r=st.integers(-3, 40), c=st.integers(-3, 40), layout=st.sampled_from(["row", "col"]))
@settings(max_examples=25, deadline=None, database=None)
@seed(2)
def test_lib_2_and_3_fills_are_functions_of_their_tile_alone(r, c, layout):
    """Trivial indices (nothing or everything is filled) too; and the transpose's fill agrees."""
    x = numbers(20, 33)
    o, t = fills(x, r, c, layout=layout)
    i, j = torch.arange(20)[:, None], torch.arange(33)[None]
    keep = [j < c, j >= c, i >= r, i < r, ~((i < r) & (j >= c)), j > -1]
    want = torch.stack([torch.where(k.expand(20, 33), x, 7.0) for k in keep])
    assert torch.equal(o, want) and torch.equal(t, want.mT)


# -- lib 4: complex exp, div and swap_layout are written but were never instantiated ----------------


@tk.kernel
def complex_maps(x: tk.Global["N N", tk.c64], o: tk.Out["3 N N", tk.c64]):
    tk.grid(1)
    a = tk.load(x, (0, 0), shape=("N", "N"))
    tk.store(o, tk.exp(a), (0, 0, 0))
    tk.store(o, a / tk.swap_layout(a).T, (1, 0, 0))
    tk.store(o, tk.transpose(tk.swap_layout(a, "col")), (2, 0, 0))


def test_lib_4_complex_maps_write_both_components():
    x = torch.complex(numbers(21, 21), numbers(21, 21, number=1) + 0.5) / 4
    o = complex_maps(x)
    wide = x.to(torch.complex128)
    for got, want in zip(o, (wide.exp(), wide / wide.T, wide.T), strict=True):
        assert (got - want).abs().max() <= 1e-6 * want.abs().max()


# -- lib 5: -1 as the bit pattern of another format ------------------------------------------------


@tk.kernel
def squares(x: tk.Global["M K", "T"], o: tk.Out["M M", tk.c64]):
    tk.grid(1)
    a = tk.load(x, (0, 0), shape=("M", "K"))
    i = tk.complex(a * 0.0, a)
    tk.store(o, tk.mm_ABt(i, i), (0, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_lib_5_i_times_i_is_minus_one_in_every_dtype(dtype):
    x = numbers(20, 17).to(dtype)
    assert torch.equal(squares(x), torch.complex(-(x.float() @ x.float().T), torch.zeros(20, 20)))


# -- lib 6: a view's own columns used as its stride ------------------------------------------------


@tk.kernel
def parts(x: tk.Global["48 N"], o: tk.Out["16 32"], s: tk.Out["16"], *, i: int, j: int):
    tk.grid(1)
    a = tk.load(x, (0, 0), shape=(48, "N"))
    view = tk.subtile(a, (16, 32), (i, tk.at(j * 16)))
    tk.store(o, view, (0, 0))
    tk.store(s, tk.row_sum(view * 2), 0)


@pytest.mark.parametrize("i, j", [(0, 0), (1, 1), (2, 3), (0, 4)])
def test_lib_6_an_operation_on_a_part_is_the_part_of_the_operation(i, j):
    x = numbers(48, 96)
    o, s = parts(x, i=i, j=j)
    want = x[16 * i : 16 * i + 16, 16 * j : 16 * j + 32]
    assert torch.equal(o, want) and torch.equal(s, (2 * want).sum(1))


# -- lib 7: tril and triu with an explicit diagonal only at one scope ------------------------------


@tk.kernel
def triangles(x: tk.Global["M N"], o: tk.Out["3 M N"], d: tk.i32, *, rows: int, cols: int):
    i = tk.grid(tk.cdiv("M", rows))
    for j in tk.range(tk.cdiv("N", cols)):
        t = tk.load(x, (i, j), shape=(rows, cols))
        low = tk.tril(t, d, row=i * rows, col=j * cols)
        high = tk.triu(t, d + 1, row=i * rows, col=j * cols)
        tk.store(o, low, (0, i, j))
        tk.store(o, high, (1, i, j))
        tk.store(o, tk.tril(t, diagonal=-3, row=i * rows, col=j * cols), (2, i, j))


@pytest.mark.parametrize("rows, cols", TILES)
@pytest.mark.parametrize("d", [-50, 5])
def test_lib_7_triangles_take_a_diagonal_for_tiles_of_any_shape(rows, cols, d):
    x = numbers(70, 50)
    o = triangles(x, d, rows=rows, cols=cols)
    assert torch.equal(o[0], x.tril(d)) and torch.equal(o[1], x.triu(d + 1))
    assert torch.equal(o[0] + o[1], x) and torch.equal(o[2], x.tril(-3))


# -- lib 8: templates that do not compile for the newest GPU ---------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_lib_8_one_template_compiles_for_every_generation(target):
    from codegen.inspect import inspect
    from tkpy.ahead import Setting, compile_for

    report = inspect(compile_for(gemm, target, Setting("bf16", {"M": 512, "N": 512, "K": 512}, {})))
    assert report.instructions["wgmma" if target == "sm_90" else "tcgen05"] > 0


# -- lib 9: an order of memory accesses that stands in no type -------------------------------------


@tk.kernel
def ordered(x: tk.InOut["N"], o: tk.Out["3 N"]):
    i = tk.grid(tk.cdiv("N", 16))
    before = tk.load(x, i, shape=16)
    tk.store(x, before * 2, i)
    between = tk.load(x, i, shape=16)
    tk.store(x, between + 1, i)
    after = tk.load(x, i, shape=16)
    for k, t in enumerate((before, between, after)):
        tk.store(o, t, (k, i))


def test_lib_9_loads_and_stores_of_one_tensor_keep_their_order():
    x = numbers(37)
    start = x.clone()
    assert torch.equal(ordered(x), torch.stack([start, start * 2, start * 2 + 1]))
    assert torch.equal(x, start * 2 + 1)


# -- top 8: the filter of a convolution switched at the wrong head ---------------------------------


def test_top_8_every_head_has_its_own_filter():
    """150 heads, and batches that do not fill the last program: head h delays by h samples."""
    k = torch.zeros(150, 32)
    k[torch.arange(150), torch.arange(150) % 32] = 1.0
    u = numbers(5, 150, 32)
    p = fftconv(u.unflatten(-1, (4, 8)), spectrum(k, 64), *tables(8, 8, -1, u.device), batches=2)
    y = p.flatten(-2)
    for h in range(150):
        d = h % 32
        want = torch.cat([torch.zeros(5, d), u[:, h, : 32 - d]], 1)
        assert (y[:, h] - want).abs().max() < 1e-4, h


# -- top 9: a bias that is copied into the accumulator and then zeroed ------------------------------


def test_top_9_the_bias_reaches_the_result():
    a, b = numbers(20, 33), numbers(33, 17, number=1)
    for bias in (numbers(17, number=2), torch.full((17,), 1000.0)):
        assert torch.equal(gemm(a, b, bias=bias), a @ b + bias)
