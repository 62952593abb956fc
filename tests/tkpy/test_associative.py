"""Scans with the author's operator: against fp64 recurrences, and what is refused."""

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import tkpy as tk
from codegen.inspect import inspect
from codegen.text import parse_function, print_function
from tkpy.ahead import Setting, compile_for
from tkpy.execution import interpreted

SIZES = st.sampled_from([1, 2, 15, 16, 17, 33, 47, 64, 65])


@tk.function
def affine(left, right):
    return left[0] * right[0], left[1] * right[0] + right[1]


@tk.kernel
def recurrence(
    a: tk.Global["M N"], b: tk.Global["M N"], h: tk.Out["M N"], *, axis: int, reverse: bool
):
    tk.grid(1)
    at = tk.load(a, (0, 0), shape=("M", "N"))
    bt = tk.load(b, (0, 0), shape=("M", "N"))
    tk.store(h, tk.associative_scan((at, bt), affine, axis, reverse=reverse)[1], (0, 0))


def sequential(a, b, axis, reverse):
    a, b = (t.double().movedim(axis, 0) for t in (a, b))
    state, out = torch.zeros_like(b[0]), torch.empty_like(b)
    for t in reversed(range(len(b))) if reverse else range(len(b)):
        state = out[t] = a[t] * state + b[t]
    return out.movedim(0, axis)


@given(m=SIZES, n=SIZES, axis=st.integers(0, 1), reverse=st.booleans(), short=st.booleans(),
       number=st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=12, deadline=None, database=None)
@seed(11)
def test_a_linear_recurrence_is_within_its_error_model(m, n, axis, reverse, short, number):
    dtype = torch.bfloat16 if short else torch.float32
    g = torch.Generator().manual_seed(number)
    a = (torch.rand(m, n, generator=g) * 2 - 1).to(dtype)
    b = torch.randn(m, n, generator=g).to(dtype)
    want = sequential(a, b, axis, reverse)
    terms = sequential(a.abs(), b.abs(), axis, reverse)
    # Each term is a product of at most as many factors as the axis is long, in fp32.
    steps = 2 * (m, n)[axis] * torch.finfo(torch.float32).eps
    bound = terms * (steps + (torch.finfo(dtype).eps if short else 0))
    got = recurrence(a, b, axis=axis, reverse=reverse).double()
    assert ((got - want).abs() <= bound).all()


@tk.kernel
def rotations(angle: tk.Global["M N"], o: tk.Out["4 M N"], *, reverse: bool = False):
    i = tk.grid(tk.cdiv("M", 16))
    t = tk.load(angle, (i, 0), shape=(16, "N"))
    c, s = tk.cos(t), tk.sin(t)
    scanned = tk.associative_scan(
        (c, -s, s, c + t),  # not quite a rotation, so that no two orders agree
        lambda x, y: (
            x[0] * y[0] + x[1] * y[2], x[0] * y[1] + x[1] * y[3],
            x[2] * y[0] + x[3] * y[2], x[2] * y[1] + x[3] * y[3],
        ),
        axis=1,
        reverse=reverse,
    )  # fmt: skip
    for k in range(4):
        tk.store(o, scanned[k], (k, i, 0))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n", [1, 21, 32])
def test_products_of_matrices_keep_their_order(n, reverse):
    angle = torch.rand(19, n, generator=torch.Generator().manual_seed(n)) - 0.5
    t = angle.double()
    each = torch.stack([t.cos(), -t.sin(), t.sin(), t.cos() + t], -1).unflatten(-1, (2, 2))
    product, want = torch.eye(2).double().expand(19, 2, 2), torch.empty(4, 19, n).double()
    for k in reversed(range(n)) if reverse else range(n):
        product = product @ each[:, k]
        want[..., k] = product.flatten(1).T
    got = rotations(angle, reverse=reverse)
    assert (got - want).abs().max() <= 8 * n * torch.finfo(torch.float32).eps * want.abs().max()
    with interpreted():
        other = rotations(angle, reverse=reverse)
    assert (got - other).abs().max() <= 8 * n * torch.finfo(torch.float32).eps * want.abs().max()


@tk.kernel
def flags(x: tk.Global["N", tk.i32], first: tk.Out["N", tk.i32], any_: tk.Out["N", tk.i32]):
    """Position of the last set flag so far, and whether there has been one, of bools."""
    tk.grid(1)
    t = tk.load(x, 0, shape="N")
    at = tk.where(t > 0, tk.iota("N"), -1)
    tk.store(first, tk.associative_scan(at, lambda l, r: tk.where(r >= 0, r, l)), 0)
    seen = tk.associative_scan(t > 0, lambda l, r: l | r, reverse=True)
    tk.store(any_, tk.cast(seen, tk.i32), 0)


@pytest.mark.parametrize("n", [1, 5, 16, 37])
def test_integers_and_bools(n):
    x = (torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.2).int()
    at = torch.where(x > 0, torch.arange(n), -1).cummax(0).values
    first, any_ = flags(x)
    assert torch.equal(first, at.int())
    assert torch.equal(any_, x.flip(0).cummax(0).values.flip(0))


def lowered(kernel, *inputs, **constants):
    return kernel.lower(kernel.key_of(kernel.binder.bind(inputs, constants)))


def test_the_text_of_tile_ir_is_read_back():
    x = torch.ones(19, 21)
    for reverse in (False, True):
        fn = lowered(recurrence, x, x, axis=1, reverse=reverse).fn
        text = print_function(fn)
        assert "associative_scan" in text
        assert print_function(parse_function(text)) == text


def test_flags_are_scanned_along_only_where_dead_elements_come_first():
    ragged, whole = torch.ones(32, 21), torch.ones(32, 32)
    assert "_live" not in lowered(recurrence, ragged, ragged, axis=1, reverse=False).source
    assert "_live" not in lowered(recurrence, whole, whole, axis=1, reverse=True).source
    assert "_live" in lowered(recurrence, ragged, ragged, axis=1, reverse=True).source


def test_it_compiles_for_a_gpu():
    setting = Setting("bf16", {"M": 16, "N": 20}, {"axis": 1, "reverse": True})
    report = inspect(compile_for(recurrence, "sm_90", setting))
    assert report.registers > 0


# -- what is refused -----------------------------------------------------------------------------


@tk.kernel
def wrong(x: tk.Global["M N"], o: tk.Out["M N"], decay: tk.f32, n: tk.i32, *, case: str):
    tk.grid(1)
    t = tk.load(x, (0, 0), shape=("M", "N"))
    v = tk.row_sum(t)
    if case == "outside":
        t = tk.associative_scan(t, lambda l, r: l * decay + r, 1)
    if case == "index":
        t = tk.associative_scan(t, lambda l, r: tk.where(l > n, l, r), 1)
    if case == "few":
        t = tk.associative_scan((t, t), lambda l, r: l[0], 1)[0]
    if case == "shapes":
        t = tk.associative_scan((t, v), lambda l, r: (l[0], r[1]), 1)[0]
    if case == "bool":
        t = tk.associative_scan(t, lambda l, r: l > r, 1)
    if case == "axis":
        t = tk.associative_scan(t, lambda l, r: l + r)
    if case == "operator":
        t = tk.associative_scan(t, 3, 1)
    if case == "reduction":
        t = tk.associative_scan(t, lambda l, r: tk.sum(l) + r, 1)
    if case == "tile":
        t = tk.associative_scan(t, lambda l, r: t, 1)
    if case == "complex":
        z = tk.complex(t, t)
        t = tk.associative_scan(z, lambda l, r: tk.abs(l * r), 1).real
    if case == "scalar":
        t = tk.associative_scan(decay, lambda l, r: l + r)
    if case == "apply":
        t = tk.apply(t, lambda r, c, e: e, start=3)
    if case == "apply vector":
        t = t + tk.apply(v, lambda i, e: e, row=3)
    if case == "apply nothing":
        t = tk.apply(t, 3)
    tk.store(o, t, (0, 0))


@pytest.mark.parametrize(
    "case, said",
    [
        ("outside", "the operator reads decay, which is not one of its elements"),
        ("index", "the operator reads n, which is not one of its elements"),
        ("few", "returns 1 numbers for 2 operands"),
        ("shapes", "what is scanned together has one shape"),
        ("bool", "gives .bool. for elements of .f32."),
        ("axis", "along which axis"),
        ("operator", "3 is not an operator"),
        ("reduction", "there is nothing to reduce|takes a tile or a vector"),
        ("tile", "the operator reads t"),
        ("complex", "gives f32 scalar for elements of complex 32x32 f32"),
        ("scalar", "takes a tile, a vector or a tuple"),
        ("apply", "its offsets are row= and col="),
        ("apply vector", "its offsets are start="),
        ("apply nothing", "is not a function"),
    ],
)
def test_what_is_refused_is_said_at_its_line(case, said):
    with pytest.raises(tk.CompileError, match=said) as e:
        wrong(torch.zeros(20, 20), 1.0, 3, case=case)
    assert "test_associative.py:" in str(e.value)


def test_apply_does_not_depend_on_the_tiling():
    """Coordinates are those of the tensor, whatever the tile's shape and place."""

    @tk.kernel
    def chequered(x: tk.Global["M N"], o: tk.Out["M N"], *, rows: int, cols: int):
        i, j = tk.grid(tk.cdiv("M", rows), tk.cdiv("N", cols))
        t = tk.load(x, (i, j), shape=(rows, cols))
        t = tk.apply(
            t, lambda r, c, e: tk.where((r ^ c) % 3 == 0, e, -2 * e), row=i * rows, col=j * cols
        )
        tk.store(o, t, (i, j))

    x = torch.randn(70, 83, generator=torch.Generator().manual_seed(0))
    r, c = torch.arange(70)[:, None], torch.arange(83)[None]
    want = torch.where((r ^ c) % 3 == 0, x, -2 * x)
    for rows, cols in ((16, 16), (64, 48), (80, 96)):
        assert torch.equal(chequered(x, rows=rows, cols=cols), want)
