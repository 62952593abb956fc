"""Loads, maps and reductions along rows are done a few rows at a time, with the same results."""

import pytest
import torch
import triton
import triton.language as tl

from codegen.cpu import rows
from codegen.cpu.lower import requests
from codegen.cpu.lower.function import lower
from codegen.cpu.lower.uses import Uses
from codegen.cpu.parser import parse
from codegen.cpu.toolchain import features


@triton.jit
def norm(x, w, g, o, stat, cols, top, M, stride, CASE: tl.constexpr, R: tl.constexpr,
         C: tl.constexpr):  # fmt: skip
    """A gradient of a norm: sums along rows, each of the last one's result, and down columns."""
    i, j = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, C)
    live = (i < M)[:, None]
    at = i[:, None] * stride + j[None, :]
    v = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
    weight = tl.load(w + j).to(tl.float32)
    centre = v - (tl.sum(v, 1) / C)[:, None]
    scale = tl.rsqrt(tl.sum(centre * centre, 1) / C + 1e-3)
    if CASE == "stat":  # a store of one number a row, before more is loaded
        tl.store(stat + i, scale, mask=i < M)
    dy = tl.load(g + at, mask=live, other=0.0).to(tl.float32)
    y = dy * weight[None, :] * scale[:, None]
    y -= (tl.sum(y * centre, 1) / C)[:, None] * centre
    tl.store(o + at, y.to(o.dtype.element_ty), mask=live)
    down = tl.sum(dy * centre * scale[:, None], 0)
    if CASE == "extremes":
        high = tl.max(tl.where(live, v, float("-inf")), 0)
        tl.store(top + tl.program_id(0) * C + j, high)
    tl.store(cols + tl.program_id(0) * C + j, down)


def _reference(x, w, g):
    x, w, g = (t.double() for t in (x, w, g))
    centre = x - x.mean(1, keepdim=True)
    scale = (centre.square().mean(1, keepdim=True) + 1e-3).rsqrt()
    y = g * w * scale
    y = y - (y * centre).mean(1, keepdim=True) * centre
    return y, scale[:, 0], (g * centre * scale)


def _found(text: str) -> list:
    """The groups that a kernel gets."""
    func = parse(text).kernel
    rows.apply(func, Uses(func))
    return [op for b in func.body.blocks for op in b.ops if op.name == "strip.either"]


def _run(x, w, g, o, case, m, r):
    c, n = x.shape[1], triton.cdiv(m, r)
    stat, cols, top = torch.full((m,), 9.0), torch.empty(n, c), torch.empty(n, c)
    kernel = norm[(n,)](x, w, g, o, stat, cols, top, m, x.stride(0), case, r, c)
    return kernel, stat, cols, top


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("case", "m", "r", "c"),
    [("plain", 75, 32, 1024), ("stat", 32, 32, 256), ("extremes", 19, 16, 4096), ("plain", 1, 64, 512)],
)  # fmt: skip
def test_the_same_numbers(case, m, r, c, dtype):
    """Programs whose last rows are dead, strips of one, two, four and eight rows."""
    x, g = torch.randn(m, c).to(dtype), torch.randn(m, c).to(dtype)
    w, o = torch.randn(c).to(dtype), torch.full((m, c), 9.0).to(dtype)
    kernel, stat, cols, top = _run(x, w, g, o, case, m, r)
    (group,) = _found(kernel.asm["ttir"])
    assert "tt.store" in [op.name for op in group.regions[1].entry.ops[0].regions[0].entry.ops]
    y, scale, terms = _reference(x, w, g)
    eps = 2.0**-9 if dtype == torch.bfloat16 else 2.0**-24
    size = y.abs() + y.abs().amax(1, keepdim=True)
    assert ((o.double() - y).abs() <= 16 * eps * size).all()
    parts = torch.stack([t.sum(0) for t in terms.split(r)])
    sums = torch.stack([t.abs().sum(0) for t in terms.split(r)])
    assert ((cols - parts).abs() <= (16 + r) * 2.0**-24 * (sums + 1)).all()
    if case == "stat":
        assert ((stat - scale).abs() <= 32 * 2.0**-24 * scale).all()
    if case == "extremes":
        assert torch.equal(top, torch.stack([t.float().amax(0) for t in x.split(r)]))


@pytest.mark.parametrize("shift", [0, 1, 7])
def test_results_over_what_is_read(shift):
    """A program loads all its rows before it stores one, wherever it stores them."""
    m, c = 32, 512
    memory = torch.randn(m + shift, c)
    x, o = memory[:m], memory[shift:]
    w, g = torch.randn(c), torch.randn(m, c)
    want, _, terms = _reference(x.clone(), w, g)
    _, _, cols, _ = _run(x, w, g, o, "plain", m, m)
    assert (o - want).abs().max() <= 1e-5
    assert (cols[0] - terms.sum(0)).abs().max() <= 1e-4


@pytest.mark.parametrize("over", ["g", "stat"])
def test_a_store_over_a_later_load(over):
    """One number a row goes where the gradient is loaded from after it."""
    m, c = 32, 256
    x, w, o = torch.randn(m, c), torch.randn(c), torch.empty(m, c)
    g = torch.randn(m, c)
    stat = g.view(-1)[:m] if over == "g" else torch.empty(m)
    cols = torch.empty(1, c)
    after = g.clone()
    scale = _reference(x, w, g)[1]
    if over == "g":
        after.view(-1)[:m] = scale
    norm[(1,)](x, w, g, o, stat, cols, cols, m, c, "stat", m, c)
    assert (o - _reference(x, w, after)[0]).abs().max() <= 1e-5


@triton.jit
def gathered(x, at, o, R: tl.constexpr, C: tl.constexpr):
    i, j = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    v = tl.load(x + tl.load(at + i * C + j))
    tl.store(o + i * C + j, v - tl.max(v, 1)[:, None])


def test_rows_from_anywhere():
    x, at, o = torch.randn(99), torch.randint(0, 99, (32, 256)), torch.empty(32, 256)
    kernel = gathered[(1,)](x, at, o, 32, 256)
    assert _found(kernel.asm["ttir"])
    assert torch.equal(o, x[at] - x[at].amax(1, keepdim=True))


@triton.jit
def wide(x, o, R: tl.constexpr, C: tl.constexpr):
    """What is computed from a row's sum is wanted whole: by the columns of its transpose."""
    i, j = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    v = tl.load(x + i * C + j)
    y = v / tl.sum(v, 1)[:, None]
    k, l = tl.arange(0, C)[:, None], tl.arange(0, R)[None, :]
    tl.store(o + k * R + l, tl.trans(y))


def test_only_where_nothing_large_comes_out():
    x, o = torch.rand(64, 256) + 1, torch.empty(256, 64)
    kernel = wide[(1,)](x, o, 64, 256)
    assert not _found(kernel.asm["ttir"])
    torch.testing.assert_close(o, (x / x.sum(1, keepdim=True)).T)


def test_names_stay_unique_when_they_are_made_so_again():
    """What was renamed once may have the name that another is given now."""
    text = """
module {
  tt.func public @f(%a: i32) attributes {noinline = false} {
    %c = arith.constant 0 : i32
    %n = arith.constant 4 : i32
    %s = arith.constant 1 : i32
    %p = scf.for %i = %c to %n step %s iter_args(%t = %a) -> (i32)  : i32 {
      %v = arith.addi %t, %a : i32
      scf.yield %v : i32
    }
    %q = scf.for %i = %c to %n step %s iter_args(%t = %p) -> (i32)  : i32 {
      %v = arith.addi %t, %p : i32
      scf.yield %v : i32
    }
    tt.return
  }
}
"""
    func = parse(text).kernel
    Uses(func)
    first, second = (op for op in func.body.entry.ops if op.name == "scf.for")
    copies = [first.regions[0].entry.ops[0], second.regions[0].entry.ops[0]]
    copies[1].results = ["%v@1"]
    second.regions[0].entry.ops[1].operands = ["%v@1"]
    extra = type(copies[0])("arith.addi", ["%v"], [*copies[0].operands], types=copies[0].types,
                            result_types=copies[0].result_types, block=copies[0].block)  # fmt: skip
    first.regions[0].entry.ops.insert(1, extra)
    uses = Uses(func)
    names = [
        r for op in (*first.regions[0].entry.ops, *second.regions[0].entry.ops) for r in op.results
    ]
    assert len(set(names)) == 3 and all(uses.defs[n] is not None for n in names)
    assert [u.name for u in uses.of(second.regions[0].entry.ops[0].results[0])] == ["scf.yield"]


@triton.jit
def twice(x, g, o, M, stride, R: tl.constexpr, C: tl.constexpr):
    """Two tensors, four passes over their rows."""
    i, j = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, C)
    at = i[:, None] * stride + j[None, :]
    a = tl.load(x + at, mask=(i < M)[:, None], other=0.0)
    a -= (tl.sum(a, 1) / C)[:, None]
    a *= tl.rsqrt(tl.sum(a * a, 1) / C + 1e-3)[:, None]
    b = tl.load(g + at, mask=(i < M)[:, None], other=0.0)
    tl.store(o + at, a * tl.sum(a * b, 1)[:, None] + b, mask=(i < M)[:, None])


def test_rows_of_the_next_strip_are_asked_for_once(monkeypatch):
    """Every line of both tensors' next rows, and none before the tensor's address is known."""
    placed = []
    place = requests.Requests.place

    def watch(self):
        sites, tensors = self.e.sites, list(self.tensors)
        place(self)
        placed.append((sites, tensors, self.shares))

    x, g, o = torch.randn(40, 1024), torch.randn(40, 1024), torch.empty(40, 1024)
    kernel = twice[(3,)](x, g, o, 40, 1024, 16, 1024)
    monkeypatch.setattr(requests.Requests, "place", watch)
    lower(parse(kernel.asm["ttir"]), features())  # which the cache may have spared the kernel
    ((sites, tensors, shares),) = placed
    assert len(tensors) == 2 and len(sites) >= 4
    for n, (since, size, *_) in enumerate(tensors):
        parts = sorted((start, part, k) for k, m, start, part in shares if m == n)
        assert [start for start, *_ in parts] == [
            sum(p for _, p, _ in parts[:k]) for k in range(len(parts))
        ]
        assert sum(part for _, part, _ in parts) == size and min(k for *_, k in parts) >= since
    assert len({k for k, *_ in shares}) >= len(sites) - 1  # the work is spread
    assert any(since > 0 for since, *_ in tensors)
