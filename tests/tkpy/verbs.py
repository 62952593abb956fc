"""One small kernel for each family of verbs, with what it means in PyTorch."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

import tkpy as tk

CASES: dict[str, tuple] = {}


def case(kernel, meaning, make, **options):
    CASES[kernel.name] = (kernel, meaning, make, options)


def names():
    """Of all cases, for parametrising; of those that differ in a type only one is quick."""
    slow = [n for n in CASES if CASES[n][3].get("slow")]
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in CASES]


def tile(*names):
    """Inputs named by dimensions: small integers, exact in every dtype."""

    def make(sizes, generator, dtype):
        return [
            torch.randint(-4, 5, [sizes[n] for n in dims.split()], generator=generator).to(dtype)
            for dims in names
        ]

    return make


# -- maps ------------------------------------------------------------------------------------


@tk.kernel
def maps(x: tk.Global["M N"], y: tk.Global["M N"], o: tk.Out["K M N"], *, rows: int = 32):
    i, j = tk.grid(tk.cdiv("M", rows), tk.cdiv("N", 48))
    a = tk.load(x, (i, j), shape=(rows, 48))
    b = tk.load(y, (i, j), shape=(rows, 48))
    results = (
        a + b, a - b, a * b, tk.max(a, b), tk.min(a, b), -a, abs(a), tk.relu(a),
        tk.where(a > b, a, b * 2), tk.where((a >= 0) & ~(b == 1), a, 7.0), a * 2 + 1, 3 - a,
        tk.fma_AxBtC(a, b, a), tk.fma_AxCtB(a, b, a), tk.copy(a), tk.maximum(a, 1),
        tk.apply(a, lambda r, c, v: tk.where(r > c, v, v + 1)),
    )  # fmt: skip
    for k, r in enumerate(results):
        tk.store(o, r, (k, i, j))


def _maps(x, y, rows=32):
    m, n = x.shape
    r = torch.arange(m)[:, None] % rows
    c = torch.arange(n)[None, :] % 48
    return torch.stack(
        [
            x + y, x - y, x * y, torch.maximum(x, y), torch.minimum(x, y), -x, x.abs(), x.relu(),
            torch.where(x > y, x, y * 2), torch.where((x >= 0) & ~(y == 1), x, 7.0), x * 2 + 1,
            3 - x, x * y + x, x * x + y, x, x.clamp(min=1), torch.where(r > c, x, x + 1),
        ]
    )  # fmt: skip


def _with_k(make, k):
    def out(sizes, generator, dtype):
        inputs = make(sizes, generator, dtype)
        return inputs, {"o": torch.empty(k, *inputs[0].shape, dtype=dtype)}

    return out


case(maps, _maps, _with_k(tile("M N", "M N"), 17))


@tk.kernel
def transcendental(x: tk.Global["M N"], o: tk.Out["K M N", tk.f32]):
    i = tk.grid(tk.cdiv("M", 16))
    a = tk.cast(tk.load(x, (i, 0), shape=(16, "N")), tk.f32)
    p = abs(a) + 1
    results = (
        tk.exp(a), tk.exp2(a), tk.log(p), tk.log2(p), tk.sqrt(p), tk.rsqrt(p), tk.sin(a),
        tk.cos(tk.detach(a)), tk.erf(a), tk.tanh(a * 0.3), tk.sigmoid(a), tk.silu(a), tk.gelu(a),
        a / p, p**0.5, p**-0.5, a**3,
    )  # fmt: skip
    for k, r in enumerate(results):
        tk.store(o, r, (k, i, 0))


def _transcendental(x):
    x = x.double()
    p = x.abs() + 1
    f = torch.nn.functional
    return torch.stack(
        [
            x.exp(), x.exp2(), p.log(), p.log2(), p.sqrt(), p.rsqrt(), x.sin(), x.cos(), x.erf(),
            (x * 0.3).tanh(), x.sigmoid(), f.silu(x), f.gelu(x), x / p, p**0.5, p**-0.5, x**3,
        ]
    )  # fmt: skip


def _transcendental_make(sizes, generator, dtype):
    x = tile("M N")(sizes, generator, dtype)
    return x, {"o": torch.empty(17, *x[0].shape, dtype=torch.float32)}


case(transcendental, _transcendental, _transcendental_make, tolerance=4e-6)


# -- broadcasts, reductions, scans -------------------------------------------------------------


@tk.kernel
def broadcasts(x: tk.Global["M N"], r: tk.Global["N"], c: tk.Global["M"], o: tk.Out["K M N"]):
    i = tk.grid(tk.cdiv("M", 16))
    a = tk.load(x, (i, 0), shape=(16, "N"))
    rv = tk.load(r, (0,), shape=("N",))
    cv = tk.load(c, (i,), shape=(16,))
    results = (
        a + rv, a * tk.col_vec(cv), tk.add_row(a, cv), tk.sub_row(a, cv), tk.mul_row(a, cv),
        tk.add_col(a, rv), tk.sub_col(a, rv), tk.mul_col(a, rv), tk.broadcast_row(cv, "N"),
        tk.broadcast_col(rv, 16), tk.col_vec(cv) * tk.row_vec(rv), tk.row_max(a) + a,
    )  # fmt: skip
    for k, t in enumerate(results):
        tk.store(o, t, (k, i, 0))


def _broadcasts(x, r, c):
    cv = c[:, None]
    ones = torch.ones_like(x)
    return torch.stack(
        [
            x + r, x * cv, x + cv, x - cv, x * cv, x + r, x - r, x * r, cv * ones, r * ones,
            cv * r, x.amax(1, keepdim=True) + x,
        ]
    )  # fmt: skip


case(broadcasts, _broadcasts, _with_k(tile("M N", "N", "M"), 12))


@tk.kernel
def reductions(
    x: tk.Global["M N"],
    rows: tk.Out["K M", tk.f32],
    cols: tk.Out["K N", tk.f32],
    whole: tk.Out["K", tk.f32],
):
    tk.grid(1)
    a = tk.load(x, (0, 0), shape=("M", "N"), dtype=tk.f32)
    along = (
        tk.row_sum(a), tk.row_max(a), tk.row_min(a), tk.row_prod(a * 0.5), tk.row_sum(a, tk.row_max(a)),
        tk.cast(tk.row_argmax(a), tk.f32), tk.cast(tk.row_argmin(a), tk.f32), tk.sum(a, axis=1),
    )  # fmt: skip
    down = (
        tk.col_sum(a), tk.col_max(a), tk.col_min(a), tk.col_prod(a * 0.5), tk.col_max(a, tk.col_sum(a)),
        tk.cast(tk.col_argmax(a), tk.f32), tk.cast(tk.col_argmin(a), tk.f32), tk.max(a, axis=0),
    )  # fmt: skip
    v = tk.row_sum(a)
    total = (tk.sum(v), tk.max(v), tk.min(v), tk.prod(v * 0.25), v * 0 + tk.sum(v))
    for k, t in enumerate(along):
        tk.store(rows, t, (k, 0))
    for k, t in enumerate(down):
        tk.store(cols, t, (k, 0))
    for k in range(4):
        tk.store(whole, total[k], (k,))
    for k in range(4, 8):
        tk.store(whole, tk.cast(tk.argmax(v), tk.f32), (k,))


def _reductions(x):
    x = x.double()

    def along(d):
        big, total = x.amax(d), x.sum(d)
        return torch.stack(
            [
                total, big, x.amin(d), (x * 0.5).prod(d),
                total + big if d == 1 else torch.maximum(big, total),
                x.argmax(d).double(), x.argmin(d).double(), total if d == 1 else big,
            ]
        )  # fmt: skip

    v = x.sum(1)
    whole = [v.sum(), v.max(), v.min(), (v * 0.25).prod(), *[v.argmax().double()] * 4]
    return along(1), along(0), torch.stack(whole)


def _reductions_make(sizes, generator, dtype):
    x = tile("M N")(sizes, generator, dtype)
    m, n = x[0].shape
    f = torch.float32
    return x, {"rows": torch.empty(8, m, dtype=f), "cols": torch.empty(8, n, dtype=f),
               "whole": torch.empty(8, dtype=f)}  # fmt: skip


case(reductions, _reductions, _reductions_make, tolerance=1e-5, limits={"M": 40, "N": 40})


@tk.kernel
def scans(x: tk.Global["M N"], o: tk.Out["K M N", tk.f32]):
    tk.grid(1)
    a = tk.load(x, (0, 0), shape=("M", "N"), dtype=tk.f32)
    results = (
        tk.cumsum(a, 1), tk.cumsum(a, 0), tk.cumsum(a, 1, reverse=True),
        tk.cumsum(a, axis=0, reverse=True), tk.cumprod(a * 0.5, 1),
    )  # fmt: skip
    for k, t in enumerate(results):
        tk.store(o, t, (k, 0, 0))


def _scans(x):
    x = x.double()
    return torch.stack(
        [
            x.cumsum(1), x.cumsum(0), x.flip(1).cumsum(1).flip(1), x.flip(0).cumsum(0).flip(0),
            (x * 0.5).cumprod(1),
        ]
    )  # fmt: skip


def _scans_make(sizes, generator, dtype):
    x = tile("M N")(sizes, generator, dtype)
    return x, {"o": torch.empty(5, *x[0].shape, dtype=torch.float32)}


case(scans, _scans, _scans_make, tolerance=1e-5, limits={"M": 40, "N": 40})


@tk.function
def affine(left, right):
    """The composition of y = a x + b with a later one; it does not commute."""
    return left[0] * right[0], left[1] * right[0] + right[1]


@tk.kernel
def operators(x: tk.Global["M N"], o: tk.Out["K M N"], last: tk.Out["L N"]):
    tk.grid(1)
    b = tk.load(x, (0, 0), shape=("M", "N"))
    a = tk.cast(b > 0, x.dtype)
    flag = tk.cast(b == 1, tk.i32)
    results = (
        tk.associative_scan((a, b), affine, axis=1)[1],
        tk.associative_scan((a, b), affine, axis=0)[1],
        tk.associative_scan((a, b), affine, axis=1, reverse=True)[1],
        tk.associative_scan((a, b), affine, axis=0, reverse=True)[1],
        tk.associative_scan(b, lambda l, r: tk.maximum(l, r), 1),
        # A sum that starts anew where the flag is set.
        tk.associative_scan(
            (flag, b), lambda l, r: (l[0] | r[0], tk.where(r[0] == 1, r[1], l[1] + r[1])), axis=1
        )[1],
    )
    for k, t in enumerate(results):
        tk.store(o, t, (k, 0, 0))
    v, w = tk.col_max(b), tk.col_min(b)
    up = tk.associative_scan((tk.cast(v > 0, x.dtype), w), affine)
    down = tk.associative_scan((tk.cast(v > 0, x.dtype), w), affine, 0, reverse=True)
    tk.store(last, up[1], (0, 0))
    tk.store(last, down[1], (1, 0))


def _recurrence(a, b, axis, reverse=False):
    a, b = (t.movedim(axis, 0) for t in (a, b))
    state, out = torch.zeros_like(b[0]), torch.empty_like(b)
    for t in reversed(range(len(b))) if reverse else range(len(b)):
        state = out[t] = a[t] * state + b[t]
    return out.movedim(0, axis)


def _operators(x):
    x = x.double()
    a = (x > 0).double()
    v, w = x.amax(0), x.amin(0)
    return torch.stack(
        [
            _recurrence(a, x, 1), _recurrence(a, x, 0), _recurrence(a, x, 1, True),
            _recurrence(a, x, 0, True), x.cummax(1).values, _recurrence((x != 1).double(), x, 1),
        ]
    ), torch.stack([_recurrence((v > 0).double(), w, 0, up) for up in (False, True)])  # fmt: skip


def _operators_make(sizes, generator, dtype):
    x = tile("M N")(sizes, generator, dtype)
    return x, {"o": torch.empty(6, *x[0].shape, dtype=dtype),
               "last": torch.empty(2, x[0].shape[1], dtype=dtype)}  # fmt: skip


case(operators, _operators, _operators_make, limits={"M": 40, "N": 40})


@tk.kernel
def applied(x: tk.Global["M N"], o: tk.Out["M N"], v: tk.Out["I N"], *, rows: int = 32,
            cols: int = 48):  # fmt: skip
    i, j = tk.grid(tk.cdiv("M", rows), tk.cdiv("N", cols))
    a = tk.load(x, (i, j), shape=(rows, cols))
    t = tk.apply(
        a, lambda r, c, e: tk.where((r * 3 + c) % 5 < 2, e, -e), row=i * rows, col=j * cols
    )
    tk.store(o, t, (i, j))
    line = tk.apply(tk.col_max(a), lambda c, e: tk.where(c % 7 == 3, e * 2, e), start=j * cols)
    tk.store(v, line, (i, j))


def _applied(x, rows=32, cols=48):
    r, c = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None, :]
    most = torch.stack([t.amax(0) for t in x.split(rows)])
    return torch.where((r * 3 + c) % 5 < 2, x, -x), torch.where(c % 7 == 3, most * 2, most)


def _applied_make(sizes, generator, dtype):
    x = tile("M N")(sizes, generator, dtype)[0]
    return [x], {"v": torch.empty(-(-x.shape[0] // 32), x.shape[1], dtype=dtype)}


case(applied, _applied, _applied_make)


# -- structure and masks -----------------------------------------------------------------------


@tk.kernel
def structure(x: tk.Global["M N"], t: tk.Out["N M"], o: tk.Out["K M 32"], both: tk.Out["M L"]):
    i = tk.grid(tk.cdiv("M", 64))
    a = tk.load(x, (i, 0), shape=(64, "N"))
    tk.store(t, tk.transpose(a), (0, i))
    pieces = (
        tk.subtile(a, (64, 32), (0, 0)), tk.subtile(a, (64, 32), (0, 1)),
        tk.subtile(a, (64, 32), (0, tk.at(16))), a[:, 32:64], a[0:64, 48:80],
    )  # fmt: skip
    for k, p in enumerate(pieces):
        tk.store(o, p, (k, i, 0))
    low, high = a[0:32, :], a[32:64, :]
    tk.store(o, tk.concat(low, high, axis=0)[:, 0:32], (5, i, 0))
    tk.store(both, tk.concat(a, a[:, 0:16]), (i, 0))


def _structure(x):
    m, n = x.shape
    wide = torch.zeros(m, 96, dtype=x.dtype)
    wide[:, :n] = x
    parts = []
    for start in (0, 32, 16, 32, 48):
        part = torch.zeros(m, 32, dtype=x.dtype)
        have = x[:, start : start + 32]
        part[:, : have.shape[1]] = have
        parts.append(part)
    first = torch.zeros(m, 32, dtype=x.dtype)
    first[:, : min(32, n)] = x[:, :32]
    return x.T.contiguous(), torch.stack([*parts, first]), torch.cat([x, x[:, :16]], 1)


def _structure_make(sizes, generator, dtype):
    x = torch.randint(-4, 5, (sizes["M"], 65 + sizes["N"] % 16), generator=generator).to(dtype)
    m, n = x.shape
    zeros = torch.zeros(6, m, 32, dtype=dtype)  # dead elements of a piece are not written
    return [x], {"o": zeros, "both": torch.empty(m, n + 16, dtype=dtype)}


case(structure, _structure, _structure_make)


@tk.kernel
def masks(
    x: tk.Global["M N"], o: tk.Out["K M N"], shift: tk.i32, *, rows: int = 32, cols: int = 16
):
    i, j = tk.grid(tk.cdiv("M", rows), tk.cdiv("N", cols))
    a = tk.load(x, (i, j), shape=(rows, cols))
    r, c = i * rows, j * cols
    results = (
        tk.causal(a, r, c, fill=9), tk.tril(a, 0, r, c), tk.tril(a, shift, r, c, fill=1),
        tk.triu(a, -2, r, c), tk.triu(a, shift, r, c), tk.right_fill(a, 20, 5, col=c),
        tk.left_fill(a, shift, 5, col=c), tk.upper_fill(a, 7, 5, row=r),
        tk.lower_fill(a, shift, 5, row=r), tk.upper_right_fill(a, 9, 4, 3, row=r, col=c),
        tk.make_causal(a), tk.make_causal_t(a, 2), tk.tril(a, 1) + tk.triu(a, 2) - a,
    )  # fmt: skip
    for k, t in enumerate(results):
        tk.store(o, t, (k, i, j))


def _masks(x, shift, rows=32, cols=16):
    m, n = x.shape
    r, c = torch.arange(m)[:, None], torch.arange(n)[None, :]
    lr, lc = r % rows, c % cols

    def keep(mask, fill=0.0):
        return torch.where(mask.expand(m, n), x, torch.tensor(fill, dtype=x.dtype))

    return torch.stack(
        [
            keep(c <= r, 9), keep(c <= r), keep(c <= r + shift, 1), keep(c >= r - 2),
            keep(c >= r + shift), keep(c < 20, 5), keep(c >= shift, 5), keep(r >= 7, 5),
            keep(r < shift, 5), keep(~((r < 9) & (c >= 4)), 3), keep(lc <= lr), keep(lc >= lr, 2),
            torch.zeros_like(x),
        ]
    )  # fmt: skip


def _masks_make(sizes, generator, dtype):
    x = tile("M N")(sizes, generator, dtype)
    shift = int(torch.randint(-20, 40, (), generator=generator))
    return [*x, shift], {"o": torch.empty(13, *x[0].shape, dtype=dtype)}


case(masks, _masks, _masks_make)


# -- complex values ----------------------------------------------------------------------------


@tk.kernel
def complex_maps(
    x: tk.Global["M N", tk.c64],
    y: tk.Global["M N", tk.c64],
    s: tk.Global["M N"],
    v: tk.Global["N", tk.c64],
    o: tk.Out["K M N", tk.c64],
    t: tk.Out["N M", tk.c64],
    size: tk.Out["L M N", tk.f32],
    *,
    rows: int = 16,
):
    i = tk.grid(tk.cdiv("M", rows))
    a, b = tk.load(x, (i, 0), shape=(rows, "N")), tk.load(y, (i, 0), shape=(rows, "N"))
    real = tk.load(s, (i, 0), shape=(rows, "N"), dtype=tk.f32)
    r = tk.load(v, 0, shape="N")
    c = tk.complex(tk.row_sum(real), 2)
    results = (
        a + b, a - b, a * b, -a, tk.conj(a), a + real, real - a, a * real, a + (1 - 2j), 2j * a,
        a * r, tk.mul_row(a, c), tk.add_col(a, r), tk.sub_row(a, tk.row_sum(real)), a**2,
        tk.where(real > 0, a, b), tk.tril(a, 1), tk.complex(a.imag, a.real), tk.row_vec(r) * c, a + r,
        tk.fma_AxBtC(a, b, 1j), tk.zeros(rows, "N", dtype=tk.c64) + 3, tk.copy(a), real * 1j,
        tk.cumsum(a, 1), tk.fill_dead(a, 5j), a - tk.ones(rows, "N", dtype=tk.c64),
        tk.full((rows, "N"), 2 - 1j, tk.c64), tk.where(a == b, a, 1j) + tk.real(b) + tk.imag(b),
    )  # fmt: skip
    for k, e in enumerate(results):
        tk.store(o, e, (k, i, 0))
    tk.store(t, a.T, (0, i))
    tk.store(size, tk.cast(a != b, tk.f32), (0, i, 0))
    tk.store(size, a.real * 2 + b.imag, (1, i, 0))
    tk.store(size, tk.broadcast_row(tk.row_sum(a).imag, "N"), (2, i, 0))


def _complex_maps(x, y, s, v, rows=16):
    x, y, v, s = x.to(torch.complex128), y.to(torch.complex128), v.to(torch.complex128), s.double()
    c = s.sum(1, keepdim=True) + 2j
    n = x.shape[1]
    results = [
        x + y, x - y, x * y, -x, x.conj(), x + s, s - x, x * s, x + (1 - 2j), 2j * x, x * v, x * c,
        x + v, x - s.sum(1, keepdim=True), x * x, torch.where(s > 0, x, y),
        torch.cat([p.tril(1) for p in x.split(rows)]), x.imag + 1j * x.real, v * c, x + v,
        x * y + 1j, torch.full_like(x, 3), x, s * 1j, x.cumsum(1), x, x - 1,
        torch.full_like(x, 2 - 1j), torch.where(x == y, x, 1j) + y.real + y.imag,
    ]  # fmt: skip
    sizes = [(x != y).double(), x.real * 2 + y.imag, x.imag.sum(1, keepdim=True).expand(-1, n)]
    return torch.stack(results), x.T, torch.stack(sizes)


def complex_tile(*shape, generator):
    parts = torch.randint(-3, 4, (2, *shape), generator=generator).float()
    return torch.complex(parts[0], parts[1])


def _complex_maps_make(sizes, generator, dtype):
    m, n = sizes["M"], 17  # each width is compiled for
    x, y, v = (complex_tile(*d, generator=generator) for d in ((m, n), (m, n), (n,)))
    s = torch.randint(-3, 4, (m, n), generator=generator).to(dtype)
    outs = {"o": torch.empty(29, m, n, dtype=torch.complex64), "size": torch.empty(3, m, n)}
    return [x, y, s, v], outs


case(complex_maps, _complex_maps, _complex_maps_make, limits={"N": 1}, dtypes=(torch.float32,))


@tk.kernel
def complex_products(
    a: tk.Global["M K", tk.c64],
    b: tk.Global["K N", tk.c64],
    r: tk.Global["K N"],
    o: tk.Out["P M N", tk.c64],
    *,
    step: Literal[16, 48] = 16,
):
    i, j = tk.grid(tk.cdiv("M", 32), tk.cdiv("N", 16))
    ab, abt = tk.ones(32, 16, dtype=tk.c64), tk.zeros(32, 16, dtype=tk.c64)
    half = tk.zeros(32, 16, dtype=tk.c64)
    for k in tk.range(tk.cdiv("K", step)):
        x, y = tk.load(a, (i, k), shape=(32, step)), tk.load(b, (k, j), shape=(step, 16))
        z = tk.load(r, (k, j), shape=(step, 16), dtype=tk.f32)
        ab = tk.mma_AB(x, y, ab)
        abt += tk.mm_ABt(tk.cast(x, tk.bf16), y.T.to(tk.bf16))
        half += x @ z
    for k, t in enumerate((ab, abt, half)):
        tk.store(o, t, (k, i, j))


def _complex_products(a, b, r, step=16):
    a, b = a.to(torch.complex128), b.to(torch.complex128)
    ab = a @ b
    return torch.stack([ab + 1, ab, a @ r.to(torch.complex128)])


def _complex_products_make(sizes, generator, dtype):
    m, k, n = sizes["M"], sizes["K"], sizes["N"]
    a, b = complex_tile(m, k, generator=generator), complex_tile(k, n, generator=generator)
    r = torch.randint(-3, 4, (k, n), generator=generator).to(dtype)
    return [a, b, r], {"o": torch.empty(3, m, n, dtype=torch.complex64)}


case(complex_products, _complex_products, _complex_products_make, dtypes=(torch.float32,))


# -- products ----------------------------------------------------------------------------------


@tk.kernel
def products(
    a: tk.Global["M K"],
    b: tk.Global["K N"],
    o: tk.Out["P M N", tk.f32],
    *,
    step: Literal[16, 48] = 16,
):
    i, j = tk.grid(tk.cdiv("M", 32), tk.cdiv("N", 80))
    ab, abt = tk.zeros(32, 80), tk.zeros(32, 80)
    atb, atbt = tk.ones(32, 80), tk.zeros(32, 80)
    for k in tk.range(tk.cdiv("K", step)):
        x, y = tk.load(a, (i, k), shape=(32, step)), tk.load(b, (k, j), shape=(step, 80))
        ab = tk.mma_AB(x, y, ab)
        abt += tk.mm_ABt(x, tk.transpose(y))
        atb = tk.mma_AtB(x.T, y, atb)
        atbt = atbt + tk.mm_AtBt(x.T, y.T)
    for k, t in enumerate((ab, abt, atb, atbt)):
        tk.store(o, t, (k, i, j))


def _products(a, b, step=16):
    ab = a.double() @ b.double()
    return torch.stack([ab, ab, ab + 1, ab])


def _products_make(sizes, generator, dtype):
    a, b = tile("M K", "K N")(sizes, generator, dtype)
    return [a, b], {"o": torch.empty(4, a.shape[0], b.shape[1], dtype=torch.float32)}


case(products, _products, _products_make)


@tk.kernel
def outer(
    x: tk.Global["T A"],
    y: tk.Global["T B"],
    w: tk.Global["A B C"],
    o: tk.Out["T C", tk.f32],
    s: tk.Out["A B C", tk.f32],
):
    tk.grid(1)
    s_t = tk.zeros(("A", "B"), "C")
    for i in tk.range(tk.cdiv("T", 16)):
        xt, yt = tk.load(x, (i, 0), shape=(16, "A")), tk.load(y, (i, 0), shape=(16, "B"))
        wt = tk.load(w, (0, 0, 0), shape=(("A", "B"), "C"))
        both = tk.row_outer(xt, yt)
        o_t = tk.mm_AB(both, wt)
        tk.store(o, o_t, (i, 0))
        s_t = tk.mma_AtB(both, tk.fill_dead(tk.cast(o_t, x.dtype), 0), s_t)
    tk.store(s, s_t, (0, 0, 0))


def _outer(x, y, w):
    x, y, w = x.double(), y.double(), w.double()
    o = torch.einsum("ta,tb,abc->tc", x, y, w)
    return o, torch.einsum("ta,tb,tc->abc", x, y, o)


def _outer_make(sizes, generator, dtype):
    t, a, b, c = sizes["M"], sizes["N"] % 17 + 1, sizes["K"] % 17 + 1, 5
    made = [torch.randint(-1, 2, s, generator=generator).to(dtype)
            for s in ((t, a), (t, b), (a, b, c))]  # fmt: skip
    return made, {}


case(outer, _outer, _outer_make, dtypes=(torch.float32,))


@tk.kernel
def pairs(x: tk.Global["T A"], y: tk.Global["S A"], o: tk.Out["T S", tk.f32]):
    """Half of what the square of a product has beyond that of the squares."""
    tk.grid(1)
    for i in tk.range(tk.cdiv("T", 16)):
        xt = tk.row_pairs(tk.load(x, (i, 0), shape=(16, "A")))
        for j in tk.range(tk.cdiv("S", 16)):
            yt = tk.row_pairs(tk.load(y, (j, 0), shape=(16, "A")))
            tk.store(o, tk.mma_ABt(xt, yt), (i, j))


def _pairs(x, y):
    x, y = x.double(), y.double()
    return ((x @ y.T) ** 2 - x**2 @ (y**2).T) / 2


def _pairs_make(sizes, generator, dtype):
    t, s, a = sizes["M"], sizes["N"], sizes["K"] % 33 + 1
    made = [torch.randint(-1, 2, (n, a), generator=generator).to(dtype) for n in (t, s)]
    return made, {}


case(pairs, _pairs, _pairs_make)


# -- memory ------------------------------------------------------------------------------------


@tk.kernel(where=["0 <= idx < V"])
def rows_by_index(
    table: tk.Global["V D"],
    idx: tk.Global["N", tk.i64],
    got: tk.Out["N D"],
    total: tk.Out["V D", tk.f32],
    back: tk.Out["N D"],
):
    i = tk.grid(tk.cdiv("N", 32))
    rows = tk.load(idx, (i,), shape=(32,))
    t = tk.gather_rows(table, rows, (None, 0), "D")
    tk.store(got, t, (i, 0))
    tk.scatter_add_rows(total, t, rows, (None, 0))
    tk.scatter_rows(back, t, tk.iota(32, start=i * 32), (None, 0))


def _rows(table, idx):
    got = table[idx]
    total = torch.zeros(table.shape, dtype=torch.float64).index_add(0, idx, got.double())
    return got, total, got


def _rows_make(sizes, generator, dtype):
    table = torch.randint(-4, 5, (sizes["M"], sizes["N"]), generator=generator).to(dtype)
    idx = torch.randint(0, sizes["M"], (sizes["K"],), generator=generator)
    return [table, idx], {}


case(rows_by_index, _rows, _rows_make)


@tk.kernel(where=["sorted(cu)", "0 <= cu <= T", "cu[0] == 0", "cu[-1] == T"])
def packed_sums(x: tk.Global["T D"], cu: tk.Global["S+1", tk.i32], o: tk.Out["S D", tk.f32],
                longest: tk.i32):  # fmt: skip
    s = tk.grid("S")
    start, end = tk.load(cu, (s,)), tk.load(cu, (s + 1,))
    total = tk.zeros("D")
    for i in tk.range(tk.cdiv(end - start, 16)):
        t = tk.load(x, (tk.at(start + i * 16), 0), shape=(16, "D"), until=end, dtype=tk.f32)
        total = total + tk.col_sum(t)
    if end - start > longest:
        total = total * 0.0
    tk.store(o, total, (s, 0))


def _packed(x, cu, longest):
    parts = []
    for a, b in zip(cu.tolist(), cu.tolist()[1:], strict=False):
        total = x[a:b].double().sum(0)
        parts.append(total * 0 if b - a > longest else total)
    return torch.stack(parts) if parts else torch.zeros(0, x.shape[1])


def _packed_make(sizes, generator, dtype):
    x = tile("M N")(sizes, generator, dtype)[0]
    cuts = torch.randint(0, sizes["M"] + 1, (sizes["K"] % 5,), generator=generator)
    cu = torch.cat([torch.tensor([0]), cuts.sort().values, torch.tensor([sizes["M"]])])
    return [x, cu.to(torch.int32), 30], {}


case(packed_sums, _packed, _packed_make)


@tk.kernel
def shifted(x: tk.Global["B T D"], o: tk.Out["B T D"], n: tk.Out["B", tk.i32], back: tk.i32):
    b, i, d = tk.grid("B", tk.cdiv("T", 32), tk.cdiv("D", 16))
    t = tk.load(x, (b, tk.at(i * 32 - back), d), shape=(32, 16))
    tk.store(o, t, (b, i, d))
    tk.store_add(n, 1, (b,))


def _shifted(x, back):
    b, t, d = x.shape
    out = torch.zeros_like(x)
    if back < t:
        out[:, back:] = x[:, : t - back]
    counts = torch.full((b,), -(-t // 32) * -(-d // 16), dtype=torch.int32)
    return out, counts


def _shifted_make(sizes, generator, dtype):
    x = torch.randint(-4, 5, (2, sizes["M"], sizes["N"]), generator=generator).to(dtype)
    return [x, int(torch.randint(0, 40, (), generator=generator))], {}


case(shifted, _shifted, _shifted_make)


@tk.kernel
def axes(
    x: tk.Global["A B C"],
    swapped: tk.Out["B C A"],
    planes: tk.Out["C A B"],
    most: tk.InOut["B C", tk.f32],
    least: tk.InOut["B C", tk.f32],
    line: tk.Out["A"],
):
    """Tiles over any two axes of a tensor, and extremes over the programs of a grid."""
    b, i, j = tk.grid("B", tk.cdiv("A", 16), tk.cdiv("C", 32))
    tk.prefetch(x, (i, b, j), shape=(16, 32), axis=0)
    t = tk.load(x, (i, b, j), shape=(16, 32), axis=0, policy="evict_first", layout="row")
    tk.store(swapped, t, (b, j, i), axis=(2, 1), policy="EVICT_LAST")
    u = tk.load(x, (i, b, j), shape=(32, 16), axis=(2, 0), layout="col")
    tk.store(planes, tk.swap_layout(u), (j, i, b), axis=(0, 1))
    tk.store_max(most, tk.col_max(tk.cast(t, tk.f32)), (b, j))
    tk.store_min(least, tk.col_min(tk.cast(t, tk.f32)), (b, j))
    if b == 0:
        v = tk.load(x, (i, 0, 0), shape=16, axis=0)
        tk.store(line, v + tk.zeros(16, dtype=x.dtype, layout="ortho"), i)


def _axes(x, most, least):
    return x.permute(1, 2, 0), x.permute(2, 0, 1), x[:, 0, 0]


def _axes_make(sizes, generator, dtype):
    a, b, c = sizes["M"], sizes["K"] % 3 + 1, sizes["N"]
    x = torch.randint(-4, 5, (a, b, c), generator=generator).to(dtype)
    start = torch.randint(-3, 3, (2, b, c), generator=generator).float()
    return [x, start[0], start[1]], {}


case(axes, _axes, _axes_make)


@tk.function
def _clipped(x, low, high):
    return tk.minimum(tk.maximum(x, low), high)


@tk.kernel
def control(x: tk.Global["B N"], o: tk.Out["B N", tk.f32], n: tk.i32, gain: tk.f32 | None = None):
    b = tk.grid("B")
    best = tk.neg_infty(48)
    count = 0
    low = 0.0
    for j in tk.range(tk.cdiv("N", 48)):
        v = tk.load(x, (b, j), shape=(48,), dtype=tk.f32)
        v = _clipped(v, -3, 3) if gain is None else v * gain
        m = tk.max(v)
        if m > 2.0:
            low = low + m
            count = count + j
        else:
            low = low - 1.0
        best = tk.maximum(best, tk.fill_dead(v, -float("inf")))
        if j < n:
            tk.store(o, v + low, (b, j))
        else:
            tk.store(o, v * 0 + count, (b, j))


def _control(x, n, gain=None):
    x = x.double()
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        low, count = 0.0, 0
        for j in range(-(-x.shape[1] // 48)):
            v = x[b, j * 48 : j * 48 + 48]
            v = v.clamp(-3, 3) if gain is None else v * gain
            m = float(v.max())
            low, count = (low + m, count + j) if m > 2.0 else (low - 1.0, count)
            out[b, j * 48 : j * 48 + 48] = v + low if j < n else count
    return out


def _control_make(sizes, generator, dtype):
    x = torch.randint(-4, 5, (3, sizes["M"] + 60), generator=generator).to(dtype)
    gain = None if sizes["N"] % 2 else 0.5
    return [x, int(sizes["K"] % 4)] + ([] if gain is None else [gain]), {}


case(control, _control, _control_make)
