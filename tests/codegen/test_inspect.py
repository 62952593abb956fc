"""What `inspect` reports, against the machine code, ptxas's own account and published tables."""

from __future__ import annotations

import json
import re
import subprocess

import attention_example as example
import pytest

from codegen.aot import TARGETS, find_tool
from codegen.inspect import INSTRUCTIONS, count_instructions, inspect, occupancy, spill_bytes

KINDS = ["wgmma", "tcgen05", "mma", "mfma", "bulk_copy", "mbarrier", "setmaxnreg"]
MATRIX = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}


@pytest.fixture(autouse=True, scope="module")
def _caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TKPY_CACHE_DIR", str(tmp_path_factory.mktemp("tkpy")))
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("target", TARGETS)
def test_attention_uses_the_targets_matrix_unit_and_does_not_spill(target, d):
    report = inspect(example.tuned(target, d))
    assert report.spills == 0
    for kind in ("wgmma", "tcgen05", "mma", "mfma"):
        assert (report.instructions[kind] > 0) == (kind == MATRIX[target]), report
    assert 32 < report.registers <= (512 if target == "gfx942" else 255)
    assert 0 < report.occupancy <= 1
    assert report.shared_bytes > 0


def test_the_report_as_json():
    report = inspect(example.tuned("sm_90"))
    facts = json.loads(report.to_json())
    expected = ["target", "registers", "spills", "shared_bytes", "occupancy", "instructions"]
    assert list(facts) == expected and facts["target"] == "sm_90"
    assert list(facts["instructions"]) == KINDS == list(INSTRUCTIONS)
    assert all(type(n) is int for n in facts["instructions"].values())


# What each PTX instruction becomes in NVIDIA's machine code.
@pytest.mark.parametrize(
    ("target", "kind", "sass"),
    [("sm_80", "mma", "HMMA"), ("sm_90", "wgmma", "HGMMA"), ("sm_100", "tcgen05", "UTCHMMA")],
)
def test_matrix_instructions_are_there_in_the_machine_code(target, kind, sass):
    compiled = example.tuned(target)
    in_sass = len(re.findall(rf"^\s+/\*\w+\*/\s+(?:@!?\w+\s+)?{sass}\b", compiled.sass, re.M))
    assert in_sass == inspect(compiled).instructions[kind] > 0


def test_warp_specialisation_on_hopper():
    compiled = example.specialised_gemm("sm_90")
    counts = inspect(compiled).instructions
    assert counts["setmaxnreg"] > 0 and counts["bulk_copy"] > 0 and counts["mbarrier"] > 0
    assert counts["wgmma"] > 0 == counts["mma"]
    # The tensor copies of PTX are UTMALDG (load) and UTMASTG (store) in SASS.
    assert len(re.findall(r"\bUTMA(?:LDG|STG)\b", compiled.sass)) == counts["bulk_copy"]
    assert len(re.findall(r"\bUSETMAXREG\b", compiled.sass)) == counts["setmaxnreg"]


def test_counting_reads_instructions_and_nothing_else():
    ptx = """
    // wgmma.mma_async in a comment
    @%p1 wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, 1, 1;
    { .reg .pred p; @p mma.sync.aligned.m16n8k16.row.col.f32 {%f1}, {%r1}, {%r2}, {%f1}; }
    mma.sync.aligned.m16n8k16 {a}; mma.sync.aligned.m16n8k16 {b}; wgmma.commit_group.sync.aligned;
    @!p cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r], [%r2];
    cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; cp.async.cg.shared.global [a], [b];
    waitLoop: mbarrier.try_wait.parity.shared::cta.b64 p, [%r1], 0; fence.mbarrier_init.release;
    tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%r];
    @p tcgen05.mma.cta_group::1.kind::f16 [%r], %rd, %rd, %r, p;
    setmaxnreg.dec.sync.aligned.u32 40;
    """
    expected = {"wgmma": 1, "tcgen05": 1, "mma": 3, "bulk_copy": 1, "mbarrier": 1, "setmaxnreg": 1}
    assert count_instructions(ptx) == {k: expected.get(k, 0) for k in KINDS}
    amd = "\tv_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], 0 ; v_mfma\n\ts_nop 0\n"
    assert count_instructions(amd)["mfma"] == 1


def test_spills_are_what_ptxas_says(tmp_path):
    compiled = example.attention("sm_80", 128, 64, 64, 2, 2)  # too much for 64 threads
    (tmp_path / "kernel.ptx").write_text(compiled.assembly)
    log = subprocess.run(
        [find_tool("ptxas"), "-v", "--gpu-name=sm_80", "kernel.ptx", "-o", "kernel.cubin"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    ).stderr
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log).groups()
    report = inspect(compiled)
    assert report.spills == int(stores) + int(loads) > 0
    assert report.registers == int(re.search(r"Used (\d+) registers", log)[1])


def test_spill_widths():
    sass = "STL [R1], R0 ;\n STL.64 [R1+0x8], R2 ;\n LDL.LU.128 R4, [R1] ;\n @P0 LDL.LU R4, [R1] ;"
    assert spill_bytes(sass + "\n LDS.64 R0, [R2] ;\n LDL.U8 R4, [R1] ;") == 4 + 8 + 16 + 4 + 1


# From NVIDIA's occupancy calculator; for AMD, 512 registers of a SIMD over those of a wave.
@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "expected"),
    [
        ("sm_80", 32, 0, 8, 1.0),
        ("sm_80", 33, 0, 8, 48 / 64),
        ("sm_80", 64, 0, 4, 32 / 64),
        ("sm_80", 168, 0, 4, 12 / 64),
        ("sm_80", 168, 0, 8, 8 / 64),
        ("sm_80", 255, 0, 4, 8 / 64),
        ("sm_80", 32, 0, 1, 32 / 64),
        ("sm_80", 64, 100 * 1024, 4, 4 / 64),
        ("sm_80", 64, 40 * 1024, 4, 16 / 64),  # four times 40 KB and the system's 1 KB: just 164 KB
        ("sm_80", 64, 41 * 1024, 4, 12 / 64),
        ("sm_90", 64, 100 * 1024, 4, 8 / 64),
        ("sm_90", 64, 113 * 1024, 4, 8 / 64),
        ("sm_90", 64, 114 * 1024, 4, 4 / 64),
        ("sm_100", 64, 228 * 1024, 4, 0.0),
        ("gfx942", 64, 0, 4, 1.0),
        ("gfx942", 128, 0, 4, 16 / 32),
        ("gfx942", 167, 0, 4, 12 / 32),
        ("gfx942", 512, 0, 4, 4 / 32),
        ("gfx942", 128, 33 * 1024, 4, 4 / 32),
    ],
)
def test_occupancy(target, registers, shared, warps, expected):
    assert occupancy(target, registers, shared, warps) == expected
