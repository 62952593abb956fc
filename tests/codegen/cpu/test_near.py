"""Views keep their vectors together: what is read through them is not gathered."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def outer(x, v, y, o, F: tl.constexpr, D: tl.constexpr, CASE: tl.constexpr):
    """Products of all pairs of 64 x F numbers, each time through a reshape."""
    n, f, d = tl.arange(0, 64), tl.arange(0, F), tl.arange(0, D)
    k = tl.load(x + n[:, None] * F + f[None, :])
    pairs = tl.reshape(k[:, :, None] * k[:, None, :], (64, F * F))
    g = tl.arange(0, F * F)
    if CASE == "left":
        t = tl.load(v + n[:, None] * D + d[None, :])
        out = tl.dot(tl.trans(pairs), t, input_precision="ieee")
        tl.store(o + g[:, None] * D + d[None, :], out)
    else:
        w = tl.load(y + g[:, None] * D + d[None, :])
        t = tl.load(v + n[:, None] * D + d[None, :])
        product = tl.reshape(tl.dot(t, tl.trans(w), input_precision="ieee"), (64, F, F))
        out = tl.sum(product * k[:, :, None], 1) + tl.sum(product * k[:, None, :], 2)
        tl.store(o + n[:, None] * F + f[None, :], out)


@pytest.mark.parametrize("f", [16, 8])
@pytest.mark.parametrize("case", ["left", "sums"])
def test_reshaped(case, f):
    """Sixteen numbers in a row stay a vector; of eight, a vector has two rows."""
    x, v, y = torch.randn(64, f), torch.randn(64, 32), torch.randn(f * f, 32)
    o = torch.empty(f * f, 32) if case == "left" else torch.empty(64, f)
    kernel = outer[(1,)](x, v, y, o, f, 32, case)
    k, t, w = x.double(), v.double(), y.double()
    pairs = (k[:, :, None] * k[:, None, :]).flatten(1)
    if case == "left":
        want, size = pairs.T @ t, pairs.abs().T @ t.abs()
    else:
        product, terms = (t @ w.T).unflatten(1, (f, f)), (t.abs() @ w.abs().T).unflatten(1, (f, f))
        want = (product * k[:, :, None]).sum(1) + (product * k[:, None, :]).sum(2)
        size = (terms * k.abs()[:, :, None]).sum(1) + (terms * k.abs()[:, None, :]).sum(2)
    assert ((o - want).abs() <= 64 * 2.0**-24 * size).all()
    if f == 16:
        assert "masked.gather" not in kernel.asm["llir"]


@triton.jit
def divided(x, g, w, s, R: tl.constexpr, D: tl.constexpr):
    """What is loaded before the strips is divided, in them, by a number a row."""
    r, d, c = tl.arange(0, R), tl.arange(0, D), tl.arange(0, D)
    at, weight = r[:, None] * D + d[None, :], tl.load(w + d[:, None] * D + c[None, :])
    y = tl.load(g + at)
    p = tl.dot(tl.load(x + at), weight, input_precision="ieee")
    a = y / (1.0 + tl.sum(p * p, 1))[:, None]
    q = tl.dot(a, weight, input_precision="ieee")
    tl.store(s + r, tl.sum(q, 1) + tl.sum(a * a, 1))


def test_rows_of_a_strip():
    x, g, w, s = torch.randn(128, 64), torch.randn(128, 64), torch.randn(64, 64), torch.empty(128)
    kernel = divided[(1,)](x, g, w, s, 128, 64)
    weight = w.double()
    a = g.double() / (1 + (x.double() @ weight).square().sum(1, keepdim=True))
    square, product = a.square().sum(1), (a @ weight).sum(1)
    size = (a.abs() @ weight.abs()).sum(1) + square
    assert ((s - product - square).abs() <= 256 * 2.0**-24 * size).all()
    assert "masked.scatter" not in kernel.asm["llir"]


@triton.jit
def turned(x, v, o, F: tl.constexpr, D: tl.constexpr, CASE: tl.constexpr):
    """Columns in an order that is known when compiling, multiplied in pairs, and summed up."""
    n, f, d, g = tl.arange(0, 64), tl.arange(0, F), tl.arange(0, D), tl.arange(0, F * F)
    k = tl.load(x + n[:, None] * F + f[None, :])
    if CASE == "joined":
        both = tl.reshape(tl.permute(tl.join(k, k * k), (0, 2, 1)), (64, 2 * F))
        t = tl.load(v + n[:, None] * D + d[None, :])
        out = tl.dot(tl.trans(both), t, input_precision="ieee")
        tl.store(o + tl.arange(0, 2 * F)[:, None] * D + d[None, :], out)
        return
    at = tl.broadcast_to(((g + g // F) % F)[None, :], (64, F * F))
    if CASE == "other rows":
        at = (at + n[:, None]) % F
    pairs = tl.gather(k, tl.broadcast_to((g % F)[None, :], (64, F * F)), 1) * tl.gather(k, at, 1)
    if CASE == "back":
        here = tl.broadcast_to((g // F * F + (g + F - g // F) % F)[None, :], (64, F * F))
        pairs = tl.gather(pairs, here, 1)
    tl.store(o + n[:, None] * F * F + g[None, :], pairs)


@pytest.mark.parametrize("f", [16, 32, 8])
@pytest.mark.parametrize("case", ["pairs", "back", "other rows", "joined"])
def test_permuted(case, f):
    """What is gathered within a vector is permuted; over two vectors, or by the row, it is not."""
    x, v = torch.randn(64, f), torch.randn(64, 16)
    o = torch.empty(2 * f, 16) if case == "joined" else torch.empty(64, f * f)
    kernel = turned[(1,)](x, v, o, f, 16, case)
    g, n = torch.arange(f * f), torch.arange(64)[:, None]
    if case == "joined":
        want = torch.cat([x, x * x], 1).double().T @ v.double()
        torch.testing.assert_close(o.double(), want, atol=1e-4, rtol=1e-5)
    else:
        at = (g + g // f + n * (case == "other rows")) % f
        want = x[:, g % f] * x.gather(1, at.expand(64, -1))
        if case == "back":
            want = want[:, g // f * f + (g + f - g // f) % f]
        assert torch.equal(o, want)
    width = kernel.asm["llir"].count("permvar.sf.512")
    if f == 16 and case in ("pairs", "back") and "<16 x float>" in kernel.asm["llir"]:
        assert width and "masked.gather" not in kernel.asm["llir"]
