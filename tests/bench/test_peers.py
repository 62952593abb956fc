"""What the table of other people's kernels calls right, wrong, refused and failed."""

import os

import pytest
import torch
import triton
import triton.language as tl

from bench.peers import linear, table
from bench.peers.double import doubles
from bench.peers.row import Case, Draw, run


@triton.jit
def square_kernel(x, o, factor, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i, mask=i < n)
    tl.store(o + i, v * v * factor, mask=i < n)


def square(x, factor=1.0):
    out = torch.empty_like(x)
    square_kernel[(triton.cdiv(x.numel(), 64),)](x, out, factor, x.numel(), 64)
    return out


class Square(torch.autograd.Function):
    slope = 2.0

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        return square(x, factor)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad.mul_(Square.slope * x), None  # writes into what it is given, as some ops do


def recipe(factor=1.0, want=lambda x: x.square()):
    return lambda d: Case(lambda x: Square.apply(x, factor), want, {"x": d.randn(d.T, 8)})


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("length", [1, 63])
def test_what_is_right_works(length, dtype):
    row = run(recipe(), length, dtype)
    assert (row["status"], row["reason"]) == ("works", "")
    assert row["launches"] == 1 and 0 < row["ratio"] < 1


@pytest.mark.parametrize("dtype,off", [("fp32", 1e-5), ("bf16", 0.3)])
def test_a_wrong_output_is_wrong(dtype, off):
    row = run(recipe(1 + off), 63, dtype)
    assert row["status"] == "wrong" and row["reason"].startswith("out0[")


def test_a_wrong_gradient_is_wrong(monkeypatch):
    monkeypatch.setattr(Square, "slope", 2.001)
    row = run(recipe(), 63, "fp32")
    assert row["status"] == "wrong" and row["reason"].startswith("dx[")


def test_a_shape_or_nan_is_wrong():
    assert "shape" in run(recipe(want=lambda x: x.square()[:1]), 63, "fp32")["reason"]
    row = run(recipe(float("nan")), 63, "fp32")
    assert row["status"] == "wrong" and "nan" in row["reason"]


def test_without_a_launch_there_is_nothing_to_show():
    plain = Case(lambda x: x.square(), lambda x: x.square(), {"x": torch.randn(4)})
    assert run(lambda d: plain, 1, "fp32")["status"] == "no kernel"


def test_refusals_and_failures_are_rows():
    @triton.jit
    def inline(x, B: tl.constexpr):
        i = tl.arange(0, B)
        v = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tl.load(x + i)], tl.float32,
                                      is_pure=True, pack=1)  # fmt: skip
        tl.store(x + i, v)

    def call(x):
        inline[(1,)](x, 32)
        return x

    row = run(lambda d: Case(call, lambda x: x, {"x": d.randn(32)}), 1, "fp32")
    assert row["status"] == "refused" and "test_peers.py:" in row["reason"]

    def broken(x):
        return x.no_such_method()

    row = run(lambda d: Case(broken, lambda x: x, {"x": d.randn(32)}), 1, "fp32")
    assert row["status"] == "failed" and "no_such_method" in row["reason"]


def test_references_compute_in_double():
    def short(x):
        total = torch.zeros(3) + x.float().sum(-1).to(torch.bfloat16)
        return total.half(), torch.ones(2, dtype=torch.float32)

    with doubles():
        a, b = short(torch.full((3, 7), 0.1, dtype=torch.float64))
    assert a.dtype == b.dtype == torch.float64
    assert torch.allclose(a, torch.full((3,), 0.7, dtype=torch.float64), atol=1e-15)
    assert torch.zeros(1).dtype == torch.float32


def test_recurrences_agree_with_each_other():
    d = Draw(20, torch.float32)
    with doubles():
        x = {k: v.double() for k, v in d.qkv().items()}
        beta, g = d.part(d.B, d.T, d.H).double(), d.gate(d.B, d.T, d.H, d.K).double()
        key = torch.nn.functional.normalize(x["k"], dim=-1)
        o, s = linear.delta(x["q"], key, x["v"], beta, gk=g)
        step = beta[..., None]
        o2, s2 = linear.low_rank(x["q"], key, x["v"] * step, key * g.exp(), -key * step, g)
        # The delta rule's new value lies along k alone: v beta in one, k scaled in the other.
        assert torch.allclose(o, o2) and torch.allclose(s, s2)
        plain = linear.gated(**x)[0]
        scores = torch.einsum("bihd,bjhd->bhij", x["q"], x["k"]).tril() * d.K**-0.5
        assert torch.allclose(plain, torch.einsum("bhij,bjhd->bihd", scores, x["v"]))


def test_a_crash_is_one_row():
    def crash(x):
        if x.shape[0] == 63:
            os.kill(os.getpid(), 9)
        return Square.apply(x, 1.0)

    job = table.Job("crash", [(1, "fp32"), (63, "fp32"), (64, "fp32")], 60)
    made = lambda d: Case(crash, lambda x: x.square(), {"x": d.randn(d.T, 8)})  # noqa: E731
    job.start(made)
    while not job.poll(made):
        pass
    assert [r["status"] for r in job.done] == ["works", "failed", "works"]
    assert "SIGKILL" in job.done[1]["reason"]


def test_the_table_counts_every_row():
    base = {"T": 1, "dtype": "fp32", "ratio": None, "reason": ""}
    rows = [{**base, "op": f"o{i}", "status": s, "reason": f"because {i}"}
            for i, s in enumerate(["works", "works", "refused", "wrong", "no recipe",
                                   "no kernel"])]  # fmt: skip
    line = table.summary(rows)
    assert "5 rows of 5 ops: works 2, refused 1, wrong 1, no recipe 1; 40.0 % work" in line
    text = table.markdown(rows, {"p": "1"})
    assert "because 2" in text and "because 3" in text and "`o5`" in text
