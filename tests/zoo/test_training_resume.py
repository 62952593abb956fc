"""Runs that are killed, at any instant, go on to the same numbers bit for bit.

The runs are forks of one program, so that each costs milliseconds and not the time of an import.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import python

_PRELUDE = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports what a first one imports
from zoo.training import runs
from zoo.training.files import read_tensors


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
    time.sleep(random.uniform(0.0, 0.4 * took))
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


def told(*parts: str, arguments: tuple = ()) -> list[dict]:
    """What each part of a program found; they share what it cost to import torch."""
    code = _PRELUDE + "".join(f"{part}print(json.dumps(found))\n" for part in parts)
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    env = {"PYTHONPATH": ":".join(paths), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    done = python(code, *map(str, arguments), env=env, timeout=200)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-len(parts) :]]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    here = tmp_path_factory.mktemp("killed")
    return told(_RANDOMLY, _EVERYWHERE, _SIGNALS, arguments=(here, 2, 9))


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
