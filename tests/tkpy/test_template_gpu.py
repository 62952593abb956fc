"""What a GPU gets of a template: the same values, and what Triton made of it, read from the PTX."""

from __future__ import annotations

from dataclasses import replace

import pytest
import template_kernels as kernels
import torch

import tkpy as tk
from codegen.inspect import inspect
from tkpy.ahead import Setting, backward_for, call_of, compile_lowered, key_of, lower_for
from tkpy.execution import launcher, strict
from tkpy.template.plan import SHARED
from zoo.kernels.attention import attention
from zoo.kernels.gemm import gemm

MACHINES = ["sm_80", "sm_90", "sm_100", "gfx942"]


def on_cpu(kernel, machine, described, *args, poison=False, **constants):
    """The text that ``machine`` would get, run by the CPU backend; and that text."""
    call = kernel.binder.bind(args, constants)
    key = replace(kernel.key_of(call), machine=machine, described=described)
    kernel._allocate(call)
    source = kernel.lower(key, poison=poison).source
    names = [p.name for p in kernel.signature.tensors if p.name in call.tensors]
    scalars = [call.scalars[p.name] for p in kernel.signature.scalars if p.name in call.scalars]
    launcher(source, kernel.name, call.device)(*[call.tensors[n] for n in names], *scalars)
    return call.tensors[call.wanted[0].name], source


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("machine", MACHINES)
def test_every_schedule_computes_the_same_bits(machine, described):
    a, b = torch.randn(100, 72).bfloat16(), torch.randn(72, 136).bfloat16()
    got, source = on_cpu(kernels.gemm, machine, described, a, b)
    assert torch.equal(got, kernels.plain(a, b))
    bulk = described and machine in ("sm_90", "sm_100")
    assert ("make_tensor_descriptor" in source) == bulk == ("warp_specialize=True" in source)
    assert bulk == ("triton.set_allocator" in source)
    assert "tl.num_programs(0)" in source and "raster(" in source


@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 8), (33, 40, 200), (64, 64, 64), (300, 16, 8)])
def test_super_m_visits_every_task_once(m, n, k):
    a, b = torch.randn(m, k), torch.randn(k, n)
    got, _ = on_cpu(kernels.gemm, "sm_90", True, a, b)
    assert torch.equal(got, kernels.plain(a, b))


@pytest.mark.parametrize(
    ("machine", "causal"),
    [
        ("sm_80", False),
        ("sm_90", True),
        # Each machine and each mask is tried above.
        pytest.param("sm_80", True, marks=pytest.mark.slow),
        pytest.param("sm_90", False, marks=pytest.mark.slow),
    ],
)
def test_attention_through_descriptors(machine, causal):
    q, k, v = torch.randn(1, 2, 70, 40), torch.randn(1, 1, 90, 40), torch.randn(1, 1, 90, 40)
    got, source = on_cpu(attention, machine, True, q, k, v, causal=causal)
    want = attention(q, k, v, causal=causal)
    assert (got - want).abs().max() < 2e-6
    with strict():
        exact, _ = on_cpu(attention, machine, True, q, k, v, causal=causal)
        poisoned, _ = on_cpu(attention, machine, True, q, k, v, causal=causal, poison=True)
    assert torch.equal(poisoned, exact)
    assert source.count("for ") == 2  # whole tiles and the ragged one: fp32 is not split by warp
    if machine == "sm_90":
        _, source = on_cpu(attention, machine, True, *(x.bfloat16() for x in (q, k, v)))
        assert source.count("for ") == 1


def test_dead_elements_are_zero_or_masked():
    """A side of 48 in a block of 64 of a wider tensor is more than a descriptor can cut off."""
    x = torch.randn(32, 128)

    @tk.lcf
    def some(x: tk.Global["M N"], y: tk.Out["M"]):
        i = tk.tasks(tk.cdiv("M", 16))

        def setup():
            return tk.zeros(16)

        def load(k):
            return tk.load(x, (i, k), (16, 48))

        def compute(k, acc, xt):
            return acc + tk.row_sum(xt)

        def finish(acc):
            tk.store(y, acc, i)

        tk.run(tk.cdiv("N", 48), setup, load, compute, finish)

    got, source = on_cpu(some, "sm_90", True, x)
    assert ((got - x.double().sum(1)).abs() <= 1e-5 * x.abs().sum(1)).all()
    assert "make_tensor_descriptor" not in source
    notes = some.lower(replace(some.key_of(some.binder.bind((x,), {})), machine="sm_90",
                               described=True)).fn.schedule.notes  # fmt: skip
    assert any("not specialised" in n and "x in line" in n for n in notes)


def test_descriptors_need_sixteen_bytes():
    suits = call_of(gemm, Setting(sizes={"M": 64, "N": 64, "K": 64}))
    assert gemm.key_of(suits).described
    assert not key_of(gemm, Setting(sizes={"K": 12})).described
    assert not key_of(gemm, Setting(sizes={"N": 12})).described  # the output's own stride
    assert key_of(gemm, Setting(sizes={"N": 8})).described
    assert not key_of(gemm, Setting(), target="sm_80").described
    assert key_of(gemm, Setting(), device="cpu").machine == ""
    moved = torch.zeros(8 * 64 + 4, dtype=torch.bfloat16)[4:].view(8, 64)
    call = gemm.binder.bind((moved, torch.zeros(64, 64, dtype=torch.bfloat16)), {})
    call.device, call.machine = torch.device("cuda"), "sm_90"
    assert gemm.key_of(call).described == (moved.data_ptr() % 16 == 0) is False


@pytest.mark.parametrize(
    ("stages", "side", "words"),
    [
        (4, 128, ["4 x 131,072 (load) = 524,288 bytes", "232,448 (227 KB)", "stages=1"]),
        (2, 256, ["not one stage fits"]),
    ],
)
def test_a_budget_over_shared_memory_is_refused_with_its_numbers(stages, side, words):
    key = key_of(kernels.staged(stages), Setting("f32", {}, {"side": side}))
    with pytest.raises(tk.CompileError) as info:
        kernels.staged(stages).lower(key)
    for word in words:
        assert word in str(info.value)
    # Nothing of that matters on a CPU, or where the depth is left open.
    kernels.staged(stages).lower(replace(key, machine="", described=False))


def test_fewer_stages_than_asked_are_reported():
    key = key_of(kernels.staged(16), Setting("bf16", {}, {"side": 64}), target="gfx942")
    schedule = kernels.staged(16).lower(key).fn.schedule
    assert schedule.stages == 4 and any("4 stages, not 16" in n for n in schedule.notes)


@pytest.mark.parametrize("n", [64, 70])
def test_filling_one_axis_leaves_the_other_dead(n):
    @tk.kernel
    def sums(x: tk.Global["M N"], y: tk.Out["M"], *, width: int = 32):
        i = tk.grid(tk.cdiv("M", 16))
        acc = tk.zeros(16)
        for j in tk.range(tk.cdiv("N", width)):
            acc += tk.row_sum(tk.fill_dead(tk.load(x, (i, j), (16, width)), 1.0, axis=1))
        tk.store(y, acc, i)

    x = torch.randn(21, n)
    dead = -n % 32
    assert ((sums(x) - x.double().sum(1) - dead).abs() <= 1e-5 * (x.abs().sum(1) + dead)).all()
    # Whole tiles are not touched, and rows past the end are nobody's to fill.
    source = sums.lower(sums.key_of(sums.binder.bind((x,), {}))).source
    assert source.count("tl.where(") == 1 and "tl.where((offs_n < N)[None, :]" in source


@pytest.mark.parametrize(("kernel", "target"), [(gemm, "sm_90"), (attention, "sm_90")])
def test_what_was_asked_for_is_in_the_ptx(kernel, target):
    lowered = lower_for(kernel, Setting(), target=target)
    report = inspect(compile_lowered(kernel, lowered, target))
    found = report.instructions
    for kind in ("wgmma", "bulk_copy", "mbarrier", "setmaxnreg"):
        assert found[kind] > 0, found
    assert report.spills == 0 and lowered.fn.schedule.notes == ()


@pytest.mark.parametrize(("target", "stages"), [("gfx942", 2), ("sm_90", 3)])
def test_a_derived_backward_has_the_stages_that_shared_memory_holds(target, stages):
    made = backward_for(gemm, Setting("bf16"), target=target)
    loops = [piece for piece in made.pieces if "tl.dot" in piece.source]
    assert len(loops) == 2  # of a and of b: tiles of 128x128 and 128x64 an iteration, 48 KB
    for piece in loops:
        schedule = piece.fn.schedule
        assert schedule.stages == stages and f"num_stages={stages}" in piece.source
        assert bool(schedule.notes) == (stages < 3)
    if stages < 3:
        assert "2 stages, not 3: a loop loads 49,152 bytes" in schedule.notes[0]
        report = inspect(compile_lowered(gemm, loops[0], target))
        assert 0 < report.shared_bytes <= SHARED[target]
