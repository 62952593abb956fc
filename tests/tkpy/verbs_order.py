"""Kernels for random numbers, histograms and the k largest, with what they mean in numpy."""

from __future__ import annotations

import numpy as np
import torch
from verbs import case

import tkpy as tk


@tk.kernel
def randoms(
    x: tk.Global["M N"], o: tk.Out["2 M N", tk.i32], u: tk.Out["3 M N", tk.f32], key: tk.i32
):
    i, j = tk.grid(tk.cdiv("M", 16), tk.cdiv("N", 48))
    place = tk.offsets(x, (i, j), shape=(16, 48))
    w = tk.philox(key, place)
    tk.store(o, tk.cast(w[0] ^ w[3], tk.i32), (0, i, j))
    tk.store(o, tk.randint(key, place, 5, 9), (1, i, j))
    t = tk.load(x, (i, j), shape=(16, 48), dtype=tk.f32)
    r = (tk.rand(key, place), tk.randn(key, place), tk.dropout(t, 0.5, key, place))
    for k, v in enumerate(r):
        tk.store(u, v, (k, i, j))


def _randoms(x, key):
    from codegen.ops.random import _unit, philox

    place = np.arange(x.numel(), dtype=np.uint64).reshape(x.shape)
    zero = np.zeros_like(place)
    key %= 2**64
    w = philox((place, zero, zero, zero), (key & 0xFFFFFFFF, key >> 32))
    u, v = _unit(w[0]).astype(np.float64), _unit(w[1]).astype(np.float64)
    g = np.sqrt(-2 * np.log(np.maximum(u, 1e-7))) * np.cos(2 * np.pi * v)
    n = 5 + (w[0].astype(np.int64) * 4 >> 32)
    kept = np.where(u >= 0.5, 2 * x.double().numpy(), 0)
    o = np.stack([(w[0] ^ w[3]).astype(np.int32), n.astype(np.int32)])
    return torch.from_numpy(o), torch.from_numpy(np.stack([u, g, kept]))


def _randoms_make(sizes, generator, dtype):
    x = torch.randint(-4, 5, (sizes["M"], sizes["N"]), generator=generator).to(dtype)
    return [x, int(torch.randint(-(2**31), 2**31, (), generator=generator))], {}


case(randoms, _randoms, _randoms_make, tolerance=4e-6, dtypes=(torch.float32,))


@tk.kernel
def counts(x: tk.Global["M N", tk.i32], tiles: tk.Out["M 10", tk.i32], cols: tk.Out["N 33", tk.i32],
           bytes: tk.Out["M 256", tk.i32]):  # fmt: skip
    i = tk.grid(tk.cdiv("M", 16))
    a = tk.load(x, (i, 0), shape=(16, 48)) + 1  # dead elements come to be a bin's number
    tk.store(tiles, tk.histogram(a, 10), (tk.at(i), 0))
    tk.store(bytes, tk.histogram(tk.cast(a, tk.u8), 256), (tk.at(i), 0))
    for j in tk.range("N"):
        v = tk.load(x, (0, tk.at(j)), shape=("M",), axis=0) + 1
        tk.store(cols, tk.histogram(tk.cast(v, tk.i64), 33), (j, 0))


def _count(x, bins):
    x = x[(x >= 0) & (x < bins)]
    return torch.bincount(x.ravel().long(), minlength=bins).int()


def _counts(x):
    rows = [x[r : r + 16] + 1 for r in range(0, len(x), 16)]
    tiles, bytes = torch.zeros(len(x), 10).int(), torch.zeros(len(x), 256).int()
    for k, r in enumerate(rows):
        tiles[k], bytes[k] = _count(r, 10), _count(r % 256, 256)
    return tiles, torch.stack([_count(c + 1, 33) for c in x.T]), bytes


def _counts_make(sizes, generator, _):
    m, n = sizes["M"], sizes["N"]
    x = torch.randint(-3, 12, (m, n), generator=generator, dtype=torch.int32)
    x[0, 0] = 2**31 - 2
    blank = torch.zeros(m, 256, dtype=torch.int32)  # a row a tile is written
    return [x], {"tiles": torch.zeros(m, 10, dtype=torch.int32), "bytes": blank}


case(counts, _counts, _counts_make, limits={"N": 48})


@tk.kernel
def largest(
    x: tk.Global["M N"], v: tk.Out["M 10"], p: tk.Out["M 10", tk.i32], one: tk.Out["M 3"],
    n: tk.Out["M 10", tk.i32], *, cols: int = 32,
):  # fmt: skip
    i = tk.grid(tk.cdiv("M", 16))
    best, at = tk.topk_start(16, 10, dtype=x.dtype)
    for j in tk.range(tk.cdiv("N", cols)):
        t = tk.load(x, (i, j), shape=(16, cols))
        best, at = tk.topk_merge(best, at, t, j * cols)
    tk.store(v, best, (i, 0))
    tk.store(p, at, (i, 0))
    t = tk.load(x, (i, 0), shape=(16, cols))
    few, _ = tk.topk(t + 1, 3)
    tk.store(one, few, (i, 0))
    whole, _ = tk.topk(tk.cast(t, tk.i32), 10, first=5)
    tk.store(n, whole, (i, 0))


def ranked(x, k, least=-np.inf):
    """Values and positions by a stable sort; NaN first; filled up with (least, -1)."""
    a = x.double().numpy()
    order = np.argsort(np.where(np.isnan(a), -np.inf, -a), axis=1, kind="stable")
    # A NaN is above an infinity: put NaNs first, in their own order.
    order = np.take_along_axis(
        order, np.argsort(~np.isnan(np.take_along_axis(a, order, 1)), axis=1, kind="stable"), 1
    )
    values = np.take_along_axis(a, order, 1)
    fill = ((0, 0), (0, max(0, k - a.shape[1])))
    return (
        torch.from_numpy(np.pad(values, fill, constant_values=least)[:, :k]),
        torch.from_numpy(np.pad(order, fill, constant_values=-1)[:, :k].astype(np.int32)),
    )


def _largest(x, cols=32):
    v, p = ranked(x, 10)
    whole, _ = ranked(x[:, :cols].int(), 10, -(2.0**31))
    return v.to(x.dtype), p, ranked(x[:, :cols] + 1, 3)[0].to(x.dtype), whole.int()


def _largest_make(sizes, generator, dtype):
    return [torch.randint(-4, 5, (sizes["M"], sizes["N"]), generator=generator).to(dtype)], {}


case(largest, _largest, _largest_make)
