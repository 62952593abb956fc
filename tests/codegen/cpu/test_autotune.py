"""Autotuning: what a CPU ignores is neither compiled nor timed twice."""

import itertools

import pytest
import torch
import triton
import triton.language as tl

import codegen.cpu.compiler
import codegen.cpu.timing


@pytest.fixture
def counts(monkeypatch, tmp_path):
    """How many kernels are compiled, and how many trials are timed."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    seen = {"compiled": 0, "timed": 0}
    lower, times = codegen.cpu.compiler._llir, codegen.cpu.timing._times

    def compiled(*args):
        seen["compiled"] += 1
        return lower(*args)

    def timed(*args):
        seen["timed"] += 1
        return times(*args)

    monkeypatch.setattr(codegen.cpu.compiler, "_llir", compiled)
    monkeypatch.setattr(codegen.cpu.timing, "_times", timed)
    codegen.cpu.timing._known.clear()  # an earlier test's tensors may have lain at the same place
    return seen


def tuned(configs, **options):
    @triton.autotune(configs=configs, key=["n"], **options)
    @triton.jit
    def add(x, o, n, B: tl.constexpr):
        i = tl.program_id(0) * B + tl.arange(0, B)
        old = tl.load(o + i, mask=i < n)
        tl.store(o + i, old + tl.load(x + i, mask=i < n), mask=i < n)

    return add


def grid(meta):
    return (triton.cdiv(meta["n"], meta["B"]),)


def test_configurations_that_a_cpu_cannot_tell_apart(counts):
    configs = [
        triton.Config({"B": block}, num_warps=warps, num_stages=stages, maxnreg=registers)
        for block, warps, stages, registers in itertools.product(
            (64, 128, 256), (1, 2, 4, 8), (2, 3), (None, 64)
        )
    ]
    add = tuned(configs, reset_to_zero=["o"])
    x, o = torch.randn(1000), torch.zeros(1000)
    add[grid](x, o, 1000)
    assert counts == {"compiled": 3, "timed": 3}
    assert torch.equal(o, x)
    add[grid](x, o, 1000)  # tuned already
    assert counts == {"compiled": 3, "timed": 3}
    assert torch.equal(o, x + x)
    assert len(add.configs_timings) == len(configs)


def test_other_sizes_are_timed_again(counts):
    add = tuned([triton.Config({"B": b}, num_warps=w) for b in (64, 128) for w in (1, 4)])
    for n in (1000, 1003):
        add[grid](torch.randn(n), torch.zeros(n), n)
    assert counts["timed"] == 4


def test_what_restores_its_arguments_ends_with_one_run(counts):
    add = tuned([triton.Config({"B": 64}, num_warps=w) for w in (1, 2, 4)], restore_value=["o"])
    x, o = torch.randn(1000), torch.randn(1000)
    expected = o + x
    add[grid](x, o, 1000)
    assert counts == {"compiled": 1, "timed": 1}
    assert torch.equal(o, expected)


def test_only_an_autotuner_is_given_known_times(counts):
    configs = [triton.Config({"B": 64})]
    add = tuned(configs)
    x, o = torch.randn(1000), torch.zeros(1000)
    for _ in range(2):
        codegen.cpu.timing.benchmark(lambda: add[grid](x, o, 1000))
    assert counts["timed"] == 2
