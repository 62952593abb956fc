"""Runs that are killed go on bit for bit, at any instant; runs of two processes are those of one.

All are forks of one program, so that a run costs milliseconds and not the time of an import.
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
import json, os, random, shutil, signal, socket, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports what a first one imports
from zoo.training import runs
from zoo.training.files import read_tensors
from zoo.training.processes import Processes


def settings(out, steps, *more):
    return ["train.steps=%d" % steps, "train.checkpoint_every=3", "train.checkpoint_seconds=0",
            "train.evaluate_every=4", *more]

def child(out, steps, *more, hook=None):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if hook:
            sys.addaudithook(hook)
        result = runs.train("toy_system:system", "tiny", settings=settings(out, steps, *more),
                            out=out, resume=True)
        status = 0 if result.signal is None else 128 + result.signal
    except BaseException:
        import traceback
        traceback.print_exc()
    os._exit(status)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def numbers(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

def weights(out):
    tensors, _ = read_tensors(out / "model.safetensors")
    return {name: bytes(t.view(torch.uint8).flatten().tolist()) for name, t in tensors.items()}

def leftovers(out):
    return [str(p) for p in out.rglob(".unfinished-*")]

# --- several processes, with the variables that torchrun sets ---

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

def all_ended(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]

def run(name, world, *settings, resume=False):
    assert set(all_ended(start(here / name, world, *settings, resume=resume))) == {0}, name
    return read(name)

def read(name):
    rows = [json.loads(r) for r in (here / name / "metrics.jsonl").read_text().splitlines()]
    weights, _ = read_tensors(here / name / "model.safetensors")
    return {"rows": [{k: v for k, v in r.items() if k != "seconds"} for r in rows],
            "weights": {n: t.double().flatten().tolist() for n, t in weights.items()}}
"""

_RANDOMLY = """
here = Path(sys.argv[1]) / "random"
random.seed(1)
steps, whole, cut = 60, here / "whole", here / "cut"
began = time.monotonic()
assert ended(child(whole, steps)) == 0
took = time.monotonic() - began
kills = 0
while True:
    pid = child(cut, steps)
    # Early at first: a machine that has become faster must not be done before it is killed.
    time.sleep(random.uniform(0.0, (0.4 if kills >= 3 else 0.1) * took))
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    status = ended(pid)
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    kills += 1
    assert kills < 400
found = {"kills": kills, "same": numbers(whole) == numbers(cut), "rows": len(numbers(cut)),
                  "weights": weights(whole) == weights(cut), "left": leftovers(cut)}
"""

_EVERYWHERE = """
here = Path(sys.argv[1]) / "everywhere"
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
steps, whole = 7, here / "whole"
assert ended(child(whole, steps)) == 0
expected, final = numbers(whole), weights(whole)
first, stride = int(sys.argv[2]), int(sys.argv[3])
n, wrong = first, []
while True:
    out = here / ("cut%d" % n)
    seen = 0
    def hook(event, arguments):
        global seen
        if event in EVENTS and str(out) in str(arguments):
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)
    status = ended(child(out, steps, hook=hook))
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    status = ended(child(out, steps))
    same = status == 0 and numbers(out) == expected and weights(out) == final
    if not same or leftovers(out):
        wrong.append([n, status, leftovers(out)])
    shutil.rmtree(out)
    n += stride
found = {"places": n, "wrong": wrong}
"""

_SIGNALS = """
here = Path(sys.argv[1]) / "signals"
os.environ["TOY_PAUSE"] = "0.02"
steps, whole, cut = 30, here / "whole", here / "cut"
assert ended(child(whole, steps)) == 0
found = []
for number in (signal.SIGINT, signal.SIGTERM):
    pid = child(cut, steps)
    time.sleep(0.35)
    os.kill(pid, number)
    found.append(ended(pid))
    at = sorted(p.name for p in (cut / "checkpoints").iterdir())
    found.append(at)
assert ended(child(cut, steps)) == 0
found = {"found": found, "same": numbers(whole) == numbers(cut)}
"""


_SAME = """
here = Path(sys.argv[1]) / "same"
still = "model.momentum=0.0"
found = {
    "one": run("one", 1), "ddp": run("ddp", 2),
    "fsdp": run("fsdp", 2, "train.parallel=fsdp", "train.evaluate_every=5"),
    "still": run("still", 1, still), "pieces": run("pieces", 2, still, "train.accumulate=2"),
    "sharded": run("sharded", 2, still, "train.accumulate=2", "train.parallel=fsdp"),
}
"""

_ACROSS = """
here = Path(sys.argv[1])
changed = {}
for name, first, second in (("grown", (1, "ddp"), (2, "fsdp")), ("shrunk", (2, "fsdp"), (1, "ddp"))):
    run(name, first[0], "train.parallel=" + first[1], "train.steps=7", "train.schedule=constant")
    changed[name] = run(name, second[0], "train.parallel=" + second[1], "train.steps=12", resume=True)
found = {"whole": run("flat", 1, "train.schedule=constant"), **changed}
"""

_SIGNAL = """
here = Path(sys.argv[1])
os.environ["TOY_PAUSE"] = "0.05"
pids = start(here / "a", 2, "train.steps=60")
while not (here / "a" / "metrics.jsonl").exists() or not (here / "a" / "metrics.jsonl").stat().st_size:
    time.sleep(0.02)
os.kill(pids[1], signal.SIGTERM)  # one of them is told, both stop
first = all_ended(pids)
step = [p.name for p in (here / "a" / "checkpoints").iterdir()]
os.environ["TOY_PAUSE"] = "0"
found = {"first": first, "step": step, "cut": run("a", 2, resume=True, *["train.steps=60"]),
                  "whole": run("b", 2, "train.steps=60")}
"""


def environment():
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    return {"PYTHONPATH": ":".join(paths), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}


def told(*parts: str, arguments: tuple = ()) -> list[dict]:
    """What each part of a program found; they share what it cost to import torch."""
    code = _PRELUDE + "".join(f"{part}print(json.dumps(found))\n" for part in parts)
    done = python(code, *map(str, arguments), env=environment(), timeout=200)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-len(parts) :]]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    here = tmp_path_factory.mktemp("runs")
    return told(_RANDOMLY, _EVERYWHERE, _SIGNALS, _SAME, arguments=(here, 2, 9))


def test_killed_at_random_instants(found):
    facts = found[0]
    assert facts["kills"] >= 3
    assert facts["same"] and facts["weights"] and not facts["left"]
    assert facts["rows"] == 60 + 15


def test_killed_at_some_touches_of_a_file(found):
    assert found[1]["places"] > 60 and not found[1]["wrong"]


@pytest.mark.slow
def test_killed_at_each_touch_of_a_file(tmp_path):
    """Before every opening, renaming and deleting of a file of the run, checkpoints' included."""
    (facts,) = told(_EVERYWHERE, arguments=(tmp_path, 1, 1))
    assert facts["places"] > 60 and not facts["wrong"]


def test_a_signal_lets_the_step_finish(found):
    first, at_first, second, at_second = found[2]["found"]
    assert (first, second) == (130, 143)
    assert len(at_first) == len(at_second) == 1 and at_first < at_second
    assert found[2]["same"]


# --- several processes ----------------------------------------------------------------------------


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


def test_two_are_as_one(found):
    found = found[3]
    agree(found["one"], found["ddp"])
    rows = [r for r in found["fsdp"]["rows"] if r["step"] not in (5, 10) or "loss" in r]
    agree(found["one"], found["fsdp"] | {"rows": rows})
    agree(found["still"], found["pieces"])
    agree(found["still"], found["sharded"])
    assert losses(found["one"]) != losses(found["still"])


@pytest.mark.slow
def test_checkpoints_load_on_any_number(tmp_path):
    (found,) = told(_ACROSS, arguments=(tmp_path,))
    for name in ("grown", "shrunk"):
        rows = [r for r in found[name]["rows"] if "loss" in r]
        agree({**found["whole"], "rows": [r for r in found["whole"]["rows"] if "loss" in r]},
              {**found[name], "rows": rows})  # fmt: skip


@pytest.mark.slow
def test_a_signal_to_one_stops_both(tmp_path):
    (found,) = told(_SIGNAL, arguments=(tmp_path,))
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
