"""Objects live in Triton's own cache, where processes share them."""

import json
import os
import time
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).resolve().parents[3]

KERNEL = """
import triton, triton.language as tl

@triton.jit
def smooth(x, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i, mask=i < n, other=-float("inf"))
    tl.store(o + i, tl.exp(v) / tl.sum(tl.exp(v)), mask=i < n)
"""
PROGRAM = """
import json, os, sys, time
import torch
import codegen.cpu
from codegen.cpu import compiler
stages = []
for name in ("_ttir", "_llir", "_asm", "_object"):
    def counted(*a, name=name, stage=getattr(compiler, name)):
        stages.append(name)
        return stage(*a)
    setattr(compiler, name, counted)
from user import smooth
gate = sys.argv[1] if len(sys.argv) > 1 else None
if gate:
    open(f"{gate}.{os.getpid()}", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.001)
x = torch.linspace(-2, 2, 60)
o = torch.empty(60)
kernel = smooth[(1,)](x, o, 60, B=64)
assert torch.allclose(o, x.softmax(0), rtol=1e-5)
codegen.cpu.run(smooth, (1,), x, o.zero_(), 60, B=64)  # the other road finds the same object
assert torch.allclose(o, x.softmax(0), rtol=1e-5)
print(json.dumps({"stages": stages, "bits": o.tolist(), "hash": kernel.hash}))
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a process which runs PROGRAM with a cache of this test's own."""
    (tmp_path / "user.py").write_text(KERNEL)
    running = []

    def process(*arguments, **env):
        variables = {**os.environ, "TRITON_DEFAULT_BACKEND": "cpu",
                     "TRITON_CACHE_DIR": str(tmp_path / "cache"),
                     "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), **env}  # fmt: skip
        running.append(forked.start(PROGRAM, *arguments, env=variables))
        return running[-1]

    yield process
    for p in running:
        p.kill()


def result(process) -> dict:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


ALL = ["_ttir", "_llir", "_asm", "_object"]


def test_a_second_process_does_not_compile_and_other_features_do(start):
    first, second = result(start()), result(start())
    assert first["stages"] == ALL and second["stages"] == []
    assert first["bits"] == second["bits"] and first["hash"] == second["hash"]
    other = result(start(TKPY_CPU_FEATURES="base"))
    assert other["stages"] == ALL and other["hash"] != first["hash"]


def test_processes_that_compile_at_once_do_no_harm(start, tmp_path):
    gate = tmp_path / "gate"
    both = [start(gate), start(gate)]
    while len(list(tmp_path.glob("gate.*"))) < 2:
        for p in both:
            assert p.poll() is None, p.communicate()[1]
        time.sleep(0.01)
    gate.touch()
    one, two = map(result, both)
    assert ALL in (one["stages"], two["stages"])
    assert one["bits"] == two["bits"]
    third = result(start())
    assert third["stages"] == [] and third["bits"] == one["bits"]


@pytest.mark.parametrize("damage", ["cpuobj", "json"])
def test_a_damaged_entry_is_an_error_not_a_wrong_number(start, tmp_path, damage):
    result(start())
    files = list((tmp_path / "cache").rglob(f"*.{damage}"))
    assert files
    for f in files:
        if not f.name.startswith("__grp__"):
            f.write_bytes(f.read_bytes()[: f.stat().st_size // 3])
    process = start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1  # an exception, not a crash
    assert "damaged" in err if damage == "cpuobj" else "JSONDecodeError" in err
