"""What becomes of the kernels on GPUs, read back from the compiled objects; no GPU is needed."""

import functools

import pytest

import zoo
from codegen.inspect import inspect
from tkpy.ahead import Setting, compile_for

D64, D128 = {"D": 64, "N": 1024, "M": 1024}, {"D": 128, "N": 1024, "M": 1024}
CAUSAL = {"causal": True, "lse": True}
STATE = {k + n: True for n in ("t0", "t1", "t2", "s0", "s1", "s2") for k in ("", "new_")}


@functools.cache
def report(name, target, sizes=(), constants=()):
    setting = Setting("bf16", dict(sizes), dict(constants))
    return inspect(compile_for(zoo.kernels()[name], target, setting))


def of(name, target, sizes=None, constants=None):
    return report(name, target, tuple((sizes or {}).items()), tuple((constants or {}).items()))


@pytest.mark.parametrize(
    "target, instruction, sizes",
    [
        pytest.param("sm_90", "wgmma", D64, marks=pytest.mark.slow),  # as test_template_gpu does
        pytest.param("sm_90", "wgmma", D128, marks=pytest.mark.slow),
        ("sm_100", "tcgen05", D64),
        pytest.param("sm_100", "tcgen05", D128, marks=pytest.mark.slow),
        pytest.param("sm_80", "mma", D64, marks=pytest.mark.slow),
        pytest.param("sm_80", "mma", D128, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_attention_uses_matrix_units_and_does_not_spill(target, instruction, sizes):
    r = of("attention", target, sizes, CAUSAL)
    assert r.instructions[instruction] > 0
    assert r.spills == 0
    assert r.occupancy > 0


@pytest.mark.parametrize("sizes", [D64, pytest.param(D128, marks=pytest.mark.slow)], ids=str)
def test_attention_on_amd(sizes):
    r = of("attention", "gfx942", sizes, CAUSAL)
    assert r.instructions["mfma"] > 0
    assert r.occupancy > 0, "more LDS than there is"


@pytest.mark.parametrize(
    "name, sizes, constants",
    [
        ("gemm", {}, {"bias": True, "epilogue": "gelu"}),
        ("gemm", {}, {"trans_b": True}),
        ("softmax", {"M": 1024, "N": 1024}, {}),
        ("softmax", {"M": 1024, "N": 4096}, {}),
        ("layernorm", {"M": 1024, "D": 1024}, {"bias": True, "residual": True, "total": True}),
        ("layernorm", {"M": 1024, "D": 4096}, {}),
        ("rmsnorm", {"M": 1024, "D": 1024}, {"residual": True, "total": True}),
        ("rotary", {"D": 128, "R": 64}, {}),
        ("short_conv", {"W": 4}, {"bias": True, "state": True, "new_state": True}),
        ("based", {"F": 16, "V": 64}, {}),
        ("based_decode", {"F": 16, "V": 64}, {}),
    ],
    ids=str,
)
@pytest.mark.slow
def test_no_kernel_spills_on_hopper(name, sizes, constants):
    r = of(name, "sm_90", sizes, constants)
    assert r.spills == 0
    assert r.occupancy > 0
    if name in ("gemm", "based", "based_decode"):
        assert r.instructions["wgmma"] > 0


@pytest.mark.slow
def test_based_with_its_whole_state_hardly_spills():
    assert of("based", "sm_90", {"F": 16, "V": 64}, STATE).spills <= 16


STATEFUL = {"state": True, "new_state": True}


@pytest.mark.parametrize(
    "target, unit", [("sm_90", "wgmma"), ("sm_100", "tcgen05"), ("gfx942", "mfma")]
)
@pytest.mark.parametrize(
    "name, sizes, constants, spills",
    [
        ("linear_attention", {"F": 64, "V": 64}, STATEFUL, 16),
        ("mamba2", {"S": 64, "P": 64}, STATEFUL, 64),
        ("hedgehog", {"D": 128, "E": 64, "V": 128}, {"new_state": True, "new_norm": True}, 600),
        ("linear_cross_entropy", {}, {"lse": True}, 64),
        ("flux_gelu", {}, {}, 32),
        ("flux_gate", {}, {}, 32),
    ],
    ids=str,
)
@pytest.mark.slow
def test_newer_kernels_use_matrix_units(name, sizes, constants, spills, target, unit):
    r = of(name, target, sizes, constants)
    assert r.instructions[unit] > 0
    assert r.occupancy > 0
    assert r.spills <= spills or target == "gfx942"
