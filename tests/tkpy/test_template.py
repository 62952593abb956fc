"""The templates' hooks: what they compute, for any knobs, and what is refused, with hook and line."""

from __future__ import annotations

from pathlib import Path

import pytest
import template_kernels as kernels
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tkpy as tk
from tkpy.ahead import Setting, lower_for


def lines(kernel):
    """The kernel's Triton text without comments."""
    source = lower_for(kernel, Setting(dtype="f32"), "cpu").emitted.source
    return [x for x in source.splitlines() if not x.strip().startswith("#")]


def bound(a, b):
    """Largest error of a product of fp32 sums."""
    return 2 * a.shape[-1] * torch.finfo(torch.float32).eps * (a.abs().double() @ b.abs().double())


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 100), st.integers(0, 2**31))
def test_gemm_is_the_product(m, n, k, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(m, k, generator=g), torch.randn(k, n, generator=g)
    got = kernels.gemm(a, b).double()
    assert ((got - a.double() @ b.double()).abs() <= bound(a, b)).all()


def test_a_template_is_the_loop_it_stands_for():
    one = [x.replace("gemm", "plain") for x in lines(kernels.gemm)]
    assert one == lines(kernels.plain)


@pytest.mark.parametrize("stages", [1, 2, 3, 7, 16])
def test_no_number_of_stages_changes_a_bit(stages):
    a, b = torch.randn(50, 90), torch.randn(90, 40)
    assert torch.equal(kernels.staged(stages)(a, b), kernels.plain(a, b))


def test_lcsf_stores_every_iteration_and_finishes():
    x = torch.randn(37, 100)
    y, total = kernels.scaled(x)
    assert torch.equal(y, x * 2)
    assert ((total - x.double().sum(1)).abs() <= 1e-5 * x.abs().sum(1)).all()


def test_rings_of_different_rates():
    x, w = torch.randn(40, 200), torch.randn(200)
    # A weight tile of 32 serves two tiles of 16 columns.
    weight = torch.zeros(224).double()
    weight[:200] = w
    weight = weight.view(7, 32).sum(1).repeat_interleave(32)[:200]
    want, size = x.double() @ weight, x.double().abs() @ weight.abs()
    assert ((kernels.rated(x, w) - want).abs() <= 1e-5 * (size + 1)).all()


def test_three_roles_are_one_role_in_order():
    q, k, v = (torch.randn(n, 32) for n in (40, 70, 70))
    want = torch.softmax(q.double() @ k.double().T, -1) @ v.double()
    assert (kernels.roles(q, k, v) - want).abs().max() < 1e-4


def test_a_run_within_a_loop_gives_its_state():
    a, b = torch.randn(40, 50), torch.randn(50, 70)
    want = a.double() @ b.double()
    error = (kernels.nested()(a, b) - want.amax(1)).abs()
    assert (error <= bound(a, b).amax(1)).all()
    for kernel, args, words in (
        (kernels.nested(runs=2), (a, b), "a template has one tk.run"),
        (kernels.nested(finish=False), (a,), "the hook finish of tk.lcf is missing"),
    ):
        with pytest.raises(tk.CompileError, match=words):
            kernel(*args)


def test_a_nested_function_is_a_helper_in_any_kernel():
    x = torch.randn(20, 20)
    assert torch.equal(kernels.helped(x), x * 4 + 1)


@pytest.mark.parametrize("name", list(kernels.WRONG))
def test_what_is_wrong_is_said_with_the_hook_and_its_line(name):
    make, words, marker = kernels.WRONG[name]
    with pytest.raises(tk.CompileError) as info:
        make(torch.randn(32, 32))
    message = str(info.value)
    for word in words:
        assert word in message, message
    source = Path(kernels.__file__).read_text().splitlines()
    assert marker in source[info.value.loc.line - 1], message
    assert "fix:" in message or "reads" in message


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"stages": 0}, "stages is 0; it is 1 to 16"),
        ({"stages": 17}, "stages is 17"),
        ({"stages": 2.0}, "stages is 2.0"),
        ({"stages": 2, "input_stages": 2}, "one knob"),
        ({"consumer_warps": 6}, "consumer_warps is 6"),
        ({"producer_warps": 1}, "producer_warps is 1"),
        ({"consumer_warps": 4, "consumer_groups": 2}, "do not make 2 groups"),
        ({"super_m": 0}, "super_m is 0"),
        ({"blocks": 0}, "blocks is 0"),
    ],
)
def test_knobs_out_of_range(knobs, words):
    with pytest.raises(tk.TkError, match=words):
        tk.lcf(**knobs)


def test_run_belongs_to_a_template_and_a_template_runs():
    x = torch.randn(16, 16)
    with pytest.raises(tk.CompileError, match=r"tk\.run belongs to a template"):
        kernels.untemplated(x)
    with pytest.raises(tk.CompileError, match="runs no hooks"):
        kernels.idle(x)
