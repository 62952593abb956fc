"""Kernels for the verbs of integers, rounding and quantising, with what they mean in numpy."""

from __future__ import annotations

import numpy as np
import torch
from verbs import case

import tkpy as tk


def array(t):
    return t.numpy(force=True)


def bits(generator, shape, dtype):
    """Integers of any bits, and among them the ends of the range and small ones."""
    info = np.iinfo(dtype)
    words = torch.randint(-(2**63), 2**63 - 1, shape, generator=generator)
    which = torch.randint(0, 8, shape, generator=generator).numpy()
    ends = np.array([info.min, info.max, 0, 1, info.max // 2 + 1], dtype=dtype)
    out = words.numpy().astype(dtype)
    pick = np.abs(words.numpy()) % 5
    out = np.where(which == 0, ends[pick], out)
    return torch.from_numpy(np.where(which == 1, (pick * 9).astype(dtype), out))


def integers(dtype, width):
    """A kernel over two tiles of ``dtype`` that shifts, multiplies, compares and reduces."""

    def body(x, y, n, o, top):
        i = tk.grid(tk.cdiv("M", 16))
        a, b = tk.load(x, (i, 0), shape=(16, 48)), tk.load(y, (i, 0), shape=(16, 48))
        results = (
            a + b, a - b, a * b, a ^ b, a & b, a | b, ~a, a << 3, a >> 5, a << b, a >> b, a >> n,
            1 << b, tk.mulhi(a, b), tk.mulhi(a, 123457), tk.max(a, b), tk.min(a, b),
            tk.where(a > b, a, b), a // ((b | 1) >> 1 | 1), a % ((b | 1) >> 1 | 1), a << width - 1,
            a ^ tk.row_sum(b), tk.cumsum(a, 1), -a, abs(a), tk.cast(tk.cast(a, tk.i64), o.dtype),
        )  # fmt: skip
        for k, t in enumerate(results):
            tk.store(o, t, (k, i, 0))
        tk.store(top, tk.row_max(a), (0, i))
        tk.store(top, tk.row_min(a), (1, i))

    body.__annotations__ = {
        "x": tk.Global["M N", dtype], "y": tk.Global["M N", dtype], "n": tk.i32,
        "o": tk.Out["26 M N", dtype], "top": tk.Out["2 M", dtype],
    }  # fmt: skip
    body.__name__ = body.__qualname__ = f"integers_{dtype}"
    return tk.kernel(body)


def _shift(x, n, left):
    """Bits leave the word one by one, in Python's integers."""
    width, info = 8 * x.itemsize, np.iinfo(x.dtype)
    out = np.empty_like(x)
    for k, (a, c) in enumerate(zip(x.flat, np.broadcast_to(n, x.shape).flat, strict=True)):
        a, c = int(a), int(c)
        if not 0 <= c < width:
            c = width
        r = (a << c if left else a >> c) % 2**width
        out.flat[k] = r - 2**width if r > info.max else r
    return out


def _meaning(width):
    def meaning(x, y, n):
        a, b = array(x), array(y)
        wide = [v.astype(object) for v in (a, b)]
        d = (b | 1) >> 1 | 1
        kind = a.dtype

        def wrap(v):
            return (v % 2**width).astype(f"u{width // 8}").astype(kind)

        one = np.ones_like(a)
        with np.errstate(all="ignore"):
            total = wrap(wide[1].sum(1))
            out = [
                a + b, a - b, a * b, a ^ b, a & b, a | b, ~a, _shift(a, 3, True),
                _shift(a, 5, False), _shift(a, b, True), _shift(a, b, False), _shift(a, n, False),
                _shift(one, b, True), wrap(wide[0] * wide[1] >> width),
                wrap(wide[0] * 123457 >> width), np.maximum(a, b), np.minimum(a, b),
                np.maximum(a, b), a // d, a % d, _shift(a, width - 1, True), a ^ total[:, None],
                wrap(np.cumsum(wide[0], 1)), wrap(-wide[0]), np.abs(a), a,
            ]  # fmt: skip
        top = np.stack([a.max(1), a.min(1)])
        return torch.from_numpy(np.stack(out)), torch.from_numpy(top)

    return meaning


def _integers_make(dtype):
    def make(sizes, generator, _):
        shape = (sizes["M"], sizes["N"])
        x, y = bits(generator, shape, dtype), bits(generator, shape, dtype)
        n = int(torch.randint(-2, 70, (), generator=generator))
        blank = np.zeros((26, *shape), dtype)
        return [x, y, n], {"o": torch.from_numpy(blank)}

    return make


for _dtype, _numpy, _width in (
    (tk.i32, np.int32, 32), (tk.u32, np.uint32, 32), (tk.i64, np.int64, 64), (tk.u64, np.uint64, 64),
):  # fmt: skip
    case(
        integers(_dtype, _width),
        _meaning(_width),
        _integers_make(_numpy),
        limits={"N": 48},
        slow=_dtype in (tk.u32, tk.i64),
    )


@tk.kernel
def rounding(
    x: tk.Global["M N"], s: tk.Global["N", tk.f32], z: tk.Global["N", tk.i32],
    o: tk.Out["11 M N"], nan: tk.Out["M", tk.bool_], scale: tk.f32,
):  # fmt: skip
    i = tk.grid("M")
    a = tk.load(x, (tk.at(i), 0), shape=(16, 48), until=i + 1)
    sv, zv = tk.load(s, (0,), shape=(48,)), tk.load(z, (0,), shape=(48,))
    results = (
        tk.round(a), tk.floor(a), tk.ceil(a), tk.trunc(a), tk.clamp(a, -1, 2.5), tk.clamp(a, low=0),
        tk.clamp(a, high=scale), tk.clamp(a, 3, 1), tk.fake_quantize(a, 0.5, 3, -128, 127),
        tk.fake_quantize(a, sv, zv, 0, 255), tk.fake_quantize(a, scale, 0, -8, 7),
    )  # fmt: skip
    for k, r in enumerate(results):
        tk.store(o, r, (k, tk.at(i), 0))
    tk.store(nan, tk.hasnan(a), (i,))


def _rounding(x, s, z, scale):
    w, f = x.float(), torch.fake_quantize_per_tensor_affine
    one = float(torch.tensor(scale))
    out = [
        w.round(), w.floor(), w.ceil(), w.trunc(), w.clamp(-1, 2.5), w.clamp(min=0),
        w.clamp(max=torch.tensor(one, dtype=x.dtype).item()), w.clamp(3, 1), f(w, 0.5, 3, -128, 127),
        torch.fake_quantize_per_channel_affine(w, s, z, 1, 0, 255), f(w, one, 0, -8, 7),
    ]  # fmt: skip
    return torch.stack(out).to(x.dtype), torch.zeros(x.shape[0], dtype=torch.bool)


def _rounding_make(sizes, generator, dtype):
    m, n = sizes["M"], sizes["N"]
    # Halves and quarters, so that ties are common; exact in every dtype.
    x = (torch.randint(-40, 41, (m, n), generator=generator) / 4).to(dtype)
    s = 0.5 ** torch.randint(-3, 4, (n,), generator=generator).float()
    z = torch.randint(0, 256, (n,), generator=generator, dtype=torch.int32)
    scale = 0.5 ** int(torch.randint(-3, 4, (), generator=generator))
    return [x, s, z, scale], {"o": torch.zeros(11, m, n, dtype=dtype)}


case(rounding, _rounding, _rounding_make, limits={"N": 48})
