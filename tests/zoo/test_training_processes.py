"""Two processes train what one does: DDP and FSDP2, and checkpoints that any number can load.

Processes are forks of one program with torchrun's variables; one test runs torchrun itself.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from forked import python

_PRELUDE = """
import json, os, signal, socket, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
from zoo.training import runs
from zoo.training.files import read_tensors
from zoo.training.processes import Processes

here = Path(sys.argv[1])

def start(out, world, *settings, resume=False):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        status = 1
        try:
            if world > 1:
                os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), RANK=str(rank),
                                  LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
            p = Processes.joined("cpu")
            result = runs.train("toy_system:system", "calm", settings=["train.steps=12", *settings],
                                out=out, resume=resume, processes=p)
            p.leave()
            status = 0 if result.signal is None else 128 + result.signal
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(status)
    return pids

def ended(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]

def run(name, world, *settings, resume=False):
    assert set(ended(start(here / name, world, *settings, resume=resume))) == {0}, name
    return read(name)

def read(name):
    rows = [json.loads(r) for r in (here / name / "metrics.jsonl").read_text().splitlines()]
    weights, _ = read_tensors(here / name / "model.safetensors")
    return {"rows": [{k: v for k, v in r.items() if k != "seconds"} for r in rows],
            "weights": {n: t.double().flatten().tolist() for n, t in weights.items()}}
"""

_SAME = (
    _PRELUDE
    + """
still = "model.momentum=0.0"
print(json.dumps({
    "one": run("one", 1), "ddp": run("ddp", 2),
    "fsdp": run("fsdp", 2, "train.parallel=fsdp", "train.evaluate_every=5"),
    "still": run("still", 1, still), "pieces": run("pieces", 2, still, "train.accumulate=2"),
    "sharded": run("sharded", 2, still, "train.accumulate=2", "train.parallel=fsdp"),
}))
"""
)

_ACROSS = (
    _PRELUDE
    + """
whole = run("whole", 1)
changed = {}
for name, first, second in (("grown", (1, "ddp"), (2, "fsdp")), ("shrunk", (2, "fsdp"), (1, "ddp"))):
    run(name, first[0], "train.parallel=" + first[1], "train.steps=7", "train.schedule=constant")
    changed[name] = run(name, second[0], "train.parallel=" + second[1], "train.steps=12", resume=True)
print(json.dumps({"whole": run("flat", 1, "train.schedule=constant"), **changed}))
"""
)

_SIGNAL = (
    _PRELUDE
    + """
os.environ["TOY_PAUSE"] = "0.05"
pids = start(here / "a", 2, "train.steps=60")
while not (here / "a" / "metrics.jsonl").exists() or not (here / "a" / "metrics.jsonl").stat().st_size:
    time.sleep(0.02)
os.kill(pids[1], signal.SIGTERM)  # one of them is told, both stop
first = ended(pids)
step = [p.name for p in (here / "a" / "checkpoints").iterdir()]
os.environ["TOY_PAUSE"] = "0"
print(json.dumps({"first": first, "step": step, "cut": run("a", 2, resume=True, *["train.steps=60"]),
                  "whole": run("b", 2, "train.steps=60")}))
"""
)


def environment():
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    return {"PYTHONPATH": ":".join(paths), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}


def told(code: str, *arguments) -> dict:
    done = python(code, *map(str, arguments), env=environment(), timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def agree(a, b):
    """Rows and weights but for the order of sums: fp32 rounding, grown by a dozen steps."""
    assert [r.keys() for r in a["rows"]] == [r.keys() for r in b["rows"]]
    for one, two in zip(a["rows"], b["rows"], strict=True):
        for name, value in one.items():
            if isinstance(value, float):
                assert math.isclose(value, two[name], rel_tol=2e-4, abs_tol=2e-5), (one, two)
    for name, values in a["weights"].items():
        for x, y in zip(values, b["weights"][name], strict=True):
            assert abs(x - y) < 5e-4, name


def losses(run):
    return [r["loss"] for r in run["rows"] if "loss" in r]


def test_two_are_as_one(tmp_path):
    found = told(_SAME, tmp_path)
    agree(found["one"], found["ddp"])
    rows = [r for r in found["fsdp"]["rows"] if r["step"] not in (5, 10) or "loss" in r]
    agree(found["one"], found["fsdp"] | {"rows": rows})
    agree(found["still"], found["pieces"])
    agree(found["still"], found["sharded"])
    assert losses(found["one"]) != losses(found["still"])


@pytest.mark.slow
def test_checkpoints_load_on_any_number(tmp_path):
    found = told(_ACROSS, tmp_path)
    for name in ("grown", "shrunk"):
        rows = [r for r in found[name]["rows"] if "loss" in r]
        agree({**found["whole"], "rows": [r for r in found["whole"]["rows"] if "loss" in r]},
              {**found[name], "rows": rows})  # fmt: skip


@pytest.mark.slow
def test_a_signal_to_one_stops_both(tmp_path):
    found = told(_SIGNAL, tmp_path)
    assert found["first"] == [143, 143] and len(found["step"]) == 1
    assert 0 < int(found["step"][0][5:]) < 60
    assert found["cut"] == found["whole"]  # the same number of processes: bit for bit


@pytest.mark.slow
def test_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "zoo.training", "train", "toy_system:system", "--preset", "calm"]
    out = tmp_path / "run"
    done = subprocess.run(
        [*command, "--out", out, "--json", tmp_path / "found.json"],
        env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("30 steps in") == 1  # one of them prints
    (run,) = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert run["step"] == 30 and (out / "model.safetensors").is_file()
