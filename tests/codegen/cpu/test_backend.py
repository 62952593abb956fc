"""Registration, stages, direct launches, feature sets."""

import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

import codegen.cpu
from codegen.cpu.parser import parse


@triton.jit
def scale(x, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, tl.exp(tl.load(x + i, mask=i < n)) * 2, mask=i < n)


@triton.jit
def product(a, b, o, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    c = tl.dot(tl.load(a + at), tl.trans(tl.load(b + at)))
    tl.store(o + at, c / tl.sum(c * c, 1)[:, None])


def test_stages_are_visible():
    x, o = torch.randn(100), torch.empty(100)
    kernel = scale[(2,)](x, o, 100, 64)
    assert torch.allclose(o, x.exp() * 2, rtol=1e-6)
    assert {"ttir", "llir", "asm", "cpuobj"} <= set(kernel.asm)
    assert "define void @kernel" in kernel.asm["llir"]


def test_direct_launch_leaves_the_active_driver_alone(monkeypatch):
    class Nothing:
        def __getattr__(self, name):
            raise AssertionError(f"the active driver was asked for {name}")

    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", Nothing())
    x, o = torch.randn(100), torch.empty(100)
    codegen.cpu.run(scale, lambda meta: (triton.cdiv(100, meta["B"]),), x, o, 100, B=64)
    assert torch.allclose(o, x.exp() * 2, rtol=1e-6)
    codegen.cpu.run(scale, (2,), x, o, 100, 64, num_warps=8)


def test_import_is_light():
    code = ("import sys, codegen.cpu; codegen.cpu.register(); import triton;"
            "assert 'llvmlite' not in sys.modules; assert 'cpu' in triton.backends.backends;"
            "print(triton.runtime.driver.active.get_active_torch_device())")  # fmt: skip
    env = {**os.environ, "TRITON_DEFAULT_BACKEND": "cpu"}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert out.stdout.strip() == "cpu"


@pytest.mark.parametrize("features", ["avx512", "avx2", "base"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_feature_sets(features, dtype, monkeypatch):
    capability = torch.backends.cpu.get_cpu_capability()
    if features == "avx512" and not capability.startswith("AVX512"):
        pytest.skip("the host has no AVX-512")
    monkeypatch.setenv("TKPY_CPU_FEATURES", features)
    a, b = torch.randn(64, 64).to(dtype), torch.randn(64, 64).to(dtype)
    o = torch.empty(64, 64)
    product[(1,)](a, b, o, 64)
    c = a.double() @ b.double().T
    assert torch.allclose(o.double(), c / (c * c).sum(1, True), rtol=1e-3, atol=1e-6)
    x, o = torch.randn(100), torch.empty(100)
    scale[(2,)](x, o, 100, 64)
    assert torch.allclose(o, x.exp() * 2, rtol=1e-6)


def test_no_programs_and_wrong_device():
    x, o = torch.randn(4), torch.zeros(4)
    scale[(0,)](x, o, 4, 64)
    assert not o.any()
    with pytest.raises(ValueError, match="not a CPU tensor"):
        scale[(1,)](torch.empty(4, device="meta"), o, 4, 64)


def test_parser_reads_nested_types_and_locations():
    text = """#loc1 = loc("k.py":3:7)
module {
  tt.func public @f(%p: !tt.ptr<bf16> loc("p"(#loc1))) {
    %0:2 = "tt.reduce"(%a, %b) <{axis = 1 : i32}> ({
    ^bb0(%x: f32, %y: i32, %z: f32, %w: i32):
      tt.reduce.return %x, %y : f32, i32 loc(#loc1)
    }) : (tensor<4x8xf32>, tensor<4x8xi32>) -> (tensor<4xf32>, tensor<4xi32>) loc(#loc1)
    %1 = tt.splat %p : !tt.ptr<bf16> -> tensor<4x!tt.ptr<bf16>> loc(#loc1)
    tt.return
  }
}
"""
    module = parse(text)
    reduce, splat, _ = module.kernel.body.entry.ops
    assert reduce.results == ["%0#0", "%0#1"] and reduce.attr_int("axis") == 1
    assert [str(t) for t in reduce.result_types] == ["4xf32", "4xi32"]
    assert str(splat.result_types[0]) == "4xptr<bf16>"
    assert module.where(reduce.loc) == "k.py:3:7"


def test_parser_reads_attributes_with_a_dialect():
    """Triton 3.9 prints the cache policy of a load in this way."""
    text = """module {
  tt.func public @f(%p: !tt.ptr<f32>) {
    %0 = tt.load %p {cachePolicy = #tt.cache_policy<cache_modifier = cg, eviction_policy = evict_last>, isVolatile = true} : !tt.ptr<f32> loc(#loc2)
    tt.return loc(#loc)
  }
}
#loc2 = loc("k.py":5:9)
"""
    module = parse(text)
    load, _ = module.kernel.body.entry.ops
    assert load.operands == ["%p"] and load.attrs["isVolatile"] == "true"
    assert str(load.result_types[0]) == "f32" and module.where(load.loc) == "k.py:5:9"


@triton.jit
def cached(x, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    v = tl.load(x + i, mask=i < n, other=0.0, eviction_policy="evict_last", cache_modifier=".cg")
    w = tl.load(x + i, eviction_policy="evict_first", volatile=True)
    tl.store(o + i, v + w, cache_modifier=".cs", eviction_policy="evict_first")
    tl.atomic_add(o + i, v, sem="relaxed", scope="cta")


def test_what_is_said_about_caches_is_ignored():
    x, o = torch.randn(16), torch.empty(16)
    cached[(1,)](x, o, 12, B=16)
    assert torch.allclose(o[:12], x[:12] * 3) and torch.equal(o[12:], x[12:])


@pytest.mark.parametrize("team", ["openmp", "own"])
def test_every_program_runs_once_in_many_short_launches(monkeypatch, team):
    from codegen.cpu import launch
    from codegen.cpu.pool import pool

    monkeypatch.setattr(launch, "_WORTH", 0)
    if team == "own":
        monkeypatch.setattr(pool(), "parallel", 0)
    elif not pool().parallel:
        pytest.skip("this PyTorch has another kind of threads")

    @triton.jit
    def count(o, k):
        tl.store(o + tl.program_id(0), tl.load(o + tl.program_id(0)) + k)

    monkeypatch.setenv("TKPY_NUM_THREADS", "4")
    o = torch.zeros(64, dtype=torch.int32)
    for k in range(2000):
        count[(1 + k % 64,)](o, 1)
    want = [sum(1 + k % 64 > p for k in range(2000)) for p in range(64)]
    assert o.tolist() == want


def test_a_launch_makes_few_python_calls():
    """What this backend adds to Triton's own launch, counted: times are the machine's mood."""
    x, o = torch.randn(64), torch.empty(64)
    scale[(1,)](x, o, 64, 64)
    calls = []

    def count(frame, event, _):
        if event == "call" and "triton" not in frame.f_code.co_filename:
            calls.append(frame.f_code.co_name)

    sys.setprofile(count)
    scale[(1,)](x, o, 64, 64)
    sys.setprofile(None)
    assert len(calls) <= 18, calls


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_launches():
    x, o = torch.randn(100), torch.empty(100)
    scale[(2,)](x, o, 100, 64)
    child = os.fork()
    if not child:
        o.zero_()
        scale[(2,)](x, o, 100, 64)
        os._exit(0 if torch.allclose(o, x.exp() * 2, rtol=1e-6) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_thread_count_may_change_between_launches(monkeypatch):
    from codegen.cpu.launch import num_threads

    before = num_threads()
    monkeypatch.setenv("TKPY_NUM_THREADS", "3")
    assert num_threads() == 3
    monkeypatch.delenv("TKPY_NUM_THREADS")
    assert num_threads() == before
