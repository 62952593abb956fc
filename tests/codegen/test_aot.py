"""Ahead-of-time compilation for four GPUs, none of which need be present."""

from __future__ import annotations

import re

import attention_example as example
import pytest
import triton

from codegen import aot
from codegen.aot import CPU, TARGETS, ToolMissing, UnknownTarget, compile_source

SCALE = """
import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def helper(x):
    return x


@triton.jit(do_not_specialize=["n"])
def scale(x_ptr, n, factor, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(x_ptr + i, helper(x) * factor, mask=i < n)


@triton.jit
def shapes(x_ptr, o_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    x = tl.load(x_ptr + at)
    x = tl.gather(x, (i[None, :] * 5 + i[:, None]) % SIZE, 1)
    y = tl.join(x, x * 2).permute(0, 2, 1).reshape(SIZE, 2 * SIZE)
    a, b = tl.split(y.reshape(SIZE, 2, SIZE).permute(0, 2, 1))
    z = libdevice.tanh(a.to(tl.float32)) + tl.erf(b.to(tl.float32)) + tl.argmax(b, 1)[:, None]
    tl.store(o_ptr + at, tl.cumsum(z, 1, reverse=True))
"""
SIGNATURE = {"x_ptr": "*fp32", "n": "i32", "factor": "fp32"}


@pytest.fixture(autouse=True, scope="module")
def _caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TKPY_CACHE_DIR", str(tmp_path_factory.mktemp("tkpy")))
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("target", TARGETS)
def test_every_stage_of_every_target(target):
    compiled = example.tuned(target)
    nvidia = target.startswith("sm_")
    last, binary = ("ptx", "cubin") if nvidia else ("amdgcn", "hsaco")
    assert set(compiled.asm) == {"ttir", "ttgir", "llir", last, binary}
    assert compiled.target == target
    assert "tt.func public @attention" in compiled.asm["ttir"]
    assert "#ttg." in compiled.asm["ttgir"]
    name = {"sm_90": "sm_90a", "sm_100": "sm_100a"}.get(target, target)
    assert re.search(
        rf"\.target {name}\b" if nvidia else rf"amdgcn_target .*{name}\b", compiled.assembly
    )
    assert compiled.binary[:4] == b"\x7fELF"
    assert compiled.metadata["name"] == "attention"
    assert compiled.metadata["num_warps"] == example.CONFIGURATIONS[target, 64][2]
    assert compiled.metadata["shared"] > 0


def test_the_processor_is_a_target_too():
    compiled = compile_source(SCALE, "scale", SIGNATURE, {"SIZE": 256}, "cpu")
    assert {"ttir", "llir", "asm", "cpuobj"} <= set(compiled.asm)
    assert "tt.func public @scale" in compiled.asm["ttir"]
    assert compiled.assembly == compiled.asm["asm"] and "kernel:" in compiled.assembly
    assert compiled.binary == compiled.asm["cpuobj"] and isinstance(compiled.binary, bytes)
    with pytest.raises(ValueError, match="cpu has no SASS"):
        _ = compiled.sass


def test_no_driver_is_asked(monkeypatch):
    def refuse(self):
        raise AssertionError("a driver was asked for")

    monkeypatch.setattr(type(triton.runtime.driver), "active", property(refuse))
    for target in (*TARGETS, CPU):
        compile_source(SCALE, "scale", SIGNATURE, {"SIZE": 512}, target)


def test_warps_and_stages_reach_the_compiler():
    few = compile_source(SCALE, "scale", SIGNATURE, {"SIZE": 256}, "sm_80", num_warps=1)
    many = compile_source(SCALE, "scale", SIGNATURE, {"SIZE": 256}, "sm_80", num_warps=8)
    assert ".reqntid 32" in few.assembly and ".reqntid 256" in many.assembly
    two, four = (example.attention("sm_80", 64, 64, 64, 4, stages) for stages in (2, 4))
    assert four.metadata["shared"] > two.metadata["shared"]


@pytest.mark.parametrize("hint", ["attribute", "stride16", "multiple_of", "none"])
def test_what_makes_loads_wide(hint):
    # `tl.multiple_of` of a scalar argument has no effect in Triton 3.7; a stride passed in units of
    # 16 elements and multiplied in the kernel is as good as the attribute.
    compiled = example.attention("sm_90", 64, 64, 64, 4, 2, hint)
    wide = len(re.findall(r"cp\.async\.cg\.shared\.global .*0x10, ", compiled.assembly))
    narrow = len(re.findall(r"\bld\.global\.b16", compiled.assembly))
    if hint in ("attribute", "stride16"):
        assert wide == 16 and narrow == 0
    elif hint == "none":
        assert wide == 0 and narrow > 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_gather_join_permute_and_libdevice_compile(target, dtype):
    signature = {"x_ptr": f"*{dtype}", "o_ptr": "*fp32"}
    compiled = compile_source(SCALE, "shapes", signature, {"SIZE": 32}, target)
    assert "tt.gather" in compiled.asm["ttir"] and "tt.scan" in compiled.asm["ttir"]


def test_sass_is_read_on_demand():
    compiled = compile_source(SCALE, "scale", SIGNATURE, {"SIZE": 256}, "sm_90")
    assert "sass" not in vars(compiled)
    assert "STG.E" in compiled.sass and "EXIT" in compiled.sass
    assert compiled.sass is compiled.sass
    amd = compile_source(SCALE, "scale", SIGNATURE, {"SIZE": 256}, "gfx942")
    with pytest.raises(ValueError, match="gfx942 has no SASS"):
        amd.sass  # noqa: B018


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(triton, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    aot.find_tool.cache_clear()
    with pytest.raises(ToolMissing, match=r"nvdisasm was not found.*TRITON_NVDISASM_PATH"):
        aot.find_tool("nvdisasm")
    aot.find_tool.cache_clear()


def test_an_unwritable_triton_cache_is_replaced(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/proc/nowhere")
    compiled = compile_source(SCALE, "scale", SIGNATURE, {"SIZE": 64}, "sm_80")
    assert compiled.binary[:4] == b"\x7fELF"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": "sm_75"}, UnknownTarget, "sm_75.*sm_80, sm_90, sm_100, gfx942"),
        ({"kernel": "scala"}, KeyError, "scala"),
        ({"constexprs": {}}, TypeError, r"missing \['SIZE'\]"),
        ({"signature": {**SIGNATURE, "SIZE": "i32"}}, TypeError, r"repeated \['SIZE'"),
        ({"signature": {**SIGNATURE, "m": "i32"}}, TypeError, r"unknown or repeated \['m'\]"),
        ({"attrs": {"n": 8}}, ValueError, "n=8"),
        ({"attrs": {"SIZE": 16}}, ValueError, "SIZE=16"),
        ({"constexprs": {"SIZE": 48}}, triton.CompilationError, "power of 2"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_errors(change, error, message):
    arguments = {
        "kernel": "scale",
        "signature": SIGNATURE,
        "constexprs": {"SIZE": 64},
        "target": "sm_80",
    }
    with pytest.raises(error, match=message):
        compile_source(SCALE, **(arguments | change))
