"""Kernels for products of 8-bit integers and floats, with what they mean in numpy."""

from __future__ import annotations

import torch
from verbs import case

import tkpy as tk


def products(dtype, acc):
    def body(a, b, o):
        i, j = tk.grid(tk.cdiv("M", 32), tk.cdiv("N", 48))
        ab, abt = tk.zeros(32, 48, dtype=acc), tk.zeros(32, 48, dtype=acc)
        atb, atbt = tk.ones(32, 48, dtype=acc), tk.zeros(32, 48, dtype=acc)
        for k in tk.range(tk.cdiv("K", 32)):
            x, y = tk.load(a, (i, k), shape=(32, 32)), tk.load(b, (k, j), shape=(32, 48))
            ab = tk.mma_AB(x, y, ab)
            abt += tk.mm_ABt(x, tk.transpose(y))
            atb = tk.mma_AtB(x.T, y, atb)
            atbt = atbt + tk.mm_AtBt(x.T, y.T)
        for k, t in enumerate((ab, abt, atb, atbt)):
            tk.store(o, t, (k, i, j))

    body.__annotations__ = {
        "a": tk.Global["M K", dtype], "b": tk.Global["K N", dtype], "o": tk.Out["4 M N", acc],
    }  # fmt: skip
    body.__name__ = body.__qualname__ = f"products_{dtype}"
    return tk.kernel(body)


def _products(a, b):
    ab = a.double() @ b.double()  # exact: integers below 2**53
    return torch.stack([ab, ab, ab + 1, ab])


def _make(dtype, size):
    def make(sizes, generator, _):
        return [
            torch.randint(-size, size, s, generator=generator).to(dtype)
            for s in ((sizes["M"], sizes["K"]), (sizes["K"], sizes["N"]))
        ], {}

    return make


for _ours, _theirs, _acc, _size in (
    (tk.i8, torch.int8, tk.i32, 128), (tk.fp8e4m3, torch.float8_e4m3fn, tk.f32, 8),
    (tk.fp8e5m2, torch.float8_e5m2, tk.f32, 4),
):  # fmt: skip
    case(products(_ours, _acc), _products, _make(_theirs, _size), slow=_ours == tk.fp8e5m2)


def moves(dtype):
    """Loads, masks, slices, joins, transposes and rows by index of 8-bit floats."""

    def body(x, rows, o):
        i = tk.grid(tk.cdiv("M", 32))
        a = tk.load(x, (i, 0), shape=(32, 64))
        half = tk.concat(a[:, 32:64], a[:, 0:32])
        again = tk.concat(a[16:32, :], a[0:16, :], axis=0)
        r = tk.load(rows, (i,), shape=(32,))
        results = (
            a, tk.transpose(tk.transpose(a)), tk.tril(a, 0, i * 32, 0), tk.gather_rows(x, r, (None, 0), 64),
            tk.full((32, 64), -1.5, dtype=a.dtype), tk.zeros(32, 64, dtype=a.dtype),
        )  # fmt: skip
        for k, t in enumerate(results):
            tk.store(o, t, (k, i, 0))
        tk.store(o, half[:, 0:32], (6, i, 0))
        tk.store(o, again[0:16, :], (7, tk.at(i * 32), 0))

    body.__annotations__ = {
        "x": tk.Global["M N", dtype], "rows": tk.Global["M", tk.i32], "o": tk.Out["8 M N", tk.f32],
    }  # fmt: skip
    body.__name__ = body.__qualname__ = f"moves_{dtype}"
    return tk.kernel(body, where=["0 <= rows < M"])


def _moves(x, rows):
    f = x.float()
    m, n = f.shape
    swapped = torch.zeros(m, n)  # dead elements of a piece are not written
    swapped[:, : max(0, n - 32)] = f[:, 32:]
    joined = torch.cat([f[:, 32:], f[:, :32]], 1)[:, : min(n, 32)]
    swapped = torch.zeros(m, n)
    swapped[:, : joined.shape[1]] = joined
    slid = torch.zeros(m, n)
    for i in range(0, m, 32):
        block = f[i : i + 32]
        order = torch.cat([block[16:], block[:16]])[:16]
        slid[i : i + len(order)] = order
    fixed = [torch.full((m, n), -1.5), torch.zeros(m, n)]
    return torch.stack([f, f, f.tril(), f[rows.long()], *fixed, swapped, slid])


def _moves_make(dtype):
    def make(sizes, generator, _):
        m, n = sizes["M"], sizes["N"]
        x = torch.randint(-4, 5, (m, n), generator=generator).to(dtype)
        rows = torch.randint(0, m, (m,), generator=generator, dtype=torch.int32)
        return [x, rows], {"o": torch.zeros(8, m, n)}

    return make


for _ours, _theirs in ((tk.fp8e4m3, torch.float8_e4m3fn), (tk.fp8e5m2, torch.float8_e5m2)):
    case(moves(_ours), _moves, _moves_make(_theirs), limits={"N": 64}, slow=_ours == tk.fp8e5m2)
