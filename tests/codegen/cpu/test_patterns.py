"""Patterns of other people's kernels that were lowered wrongly or refused once."""

import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def gather_rows(x, o, by, M: tl.constexpr, N: tl.constexpr, TYPE: tl.constexpr):
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    # An index made in the kernel, in as few bits as its author found enough.
    row = tl.full([1, N], by, TYPE) + tl.zeros([1, N], TYPE)
    tl.store(o + tl.arange(0, N)[None, :], tl.gather(tl.load(x + at), row, 0))


@pytest.mark.parametrize("kind", [tl.int8, tl.int16, tl.int32, tl.int64])
def test_gather_by_an_index_of_any_width(kind):
    x, out = torch.randn(16, 32), torch.empty(32)
    gather_rows[(1,)](x, out, 11, 16, 32, kind)
    assert torch.equal(out, x[11])


@triton.jit
def log_add(a, b):
    top = tl.maximum(a, b)
    return top + libdevice.log1p(tl.exp(-tl.abs(a - b)))


@triton.jit
def running(x, o, total, M: tl.constexpr, N: tl.constexpr, AXIS: tl.constexpr):
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    v = tl.load(x + at)
    tl.store(o + at, tl.associative_scan(v, AXIS, log_add))
    tl.store(total, tl.reduce(tl.ravel(v), 0, log_add))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_library_function_inside_of_a_combination(axis):
    x = torch.randn(16, 32) * 4
    out, total = torch.empty(16, 32), torch.empty(1)
    running[(1,)](x, out, total, 16, 32, axis)
    want = x.double().logcumsumexp(axis)
    # Each step rounds a logarithm of the size of the result, and adds one below log 2.
    bound = 32 * 2.0**-23 * (want.abs() + 1)
    assert ((out - want).abs() <= bound).all()
    assert abs(total.double() - x.double().logsumexp((0, 1))) <= 512 * 2.0**-23 * 8


@triton.jit
def pick(logits, target, hash, name, o, N: tl.constexpr):
    i = tl.program_id(0)
    tl.store(o + i, tl.load(logits + i * N + tl.load(target + i)) * hash + name)


def test_arguments_by_name_that_triton_uses_for_itself():
    x, target, out = (
        torch.randperm(128).view(8, 16).float(),
        torch.randint(16, (8,)),
        torch.empty(8),
    )
    for scale in (2, 3):
        pick[(8,)](logits=x, target=target, hash=scale, name=1, o=out, N=16)
        want = x.gather(1, target[:, None])[:, 0] * scale + 1
        assert torch.equal(out, want)
