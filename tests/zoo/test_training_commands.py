"""``tkpy train``, ``eval`` and ``generate`` as a newcomer types them."""

from __future__ import annotations

import importlib.metadata
import json
import re

import pytest
import torch
from toy_system import system
from typer.testing import CliRunner

import zoo
from tkpy.cli import app, find
from zoo.training import System, registry

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "toy_system:system"
SHORT = ("--set", "train.steps=3")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The only registered package is the zoo of this tree, whatever is installed."""
    entry = importlib.metadata.EntryPoint("zoo", "zoo", find.GROUP)
    monkeypatch.setattr(find, "packages", lambda: [entry])
    monkeypatch.chdir(tmp_path)


def invoke(*arguments, status=0, **keywords):
    result = CliRunner().invoke(app, list(map(str, arguments)), **keywords)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, (result.stdout, result.stderr)
    return result


def flat(text):
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_train_eval_generate(tmp_path):
    out = invoke("train", NAME, *SHORT).stdout
    assert "3 steps in" in out and "in runs/toy_system.system/tiny" in flat(out)
    assert "held out 50" in flat(out)
    folder = tmp_path / "runs" / "toy_system.system" / "tiny"
    assert (folder / "model.safetensors").is_file()
    shown = flat(invoke("eval", folder, "--json", "found.json").stdout)
    assert "step 3" in shown and "held out 50" in shown
    (row,) = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert row == json.loads((folder / "result.json").read_text())["rows"][0]
    words = invoke("generate", folder, "7", "--tokens", "4").stdout
    assert re.fullmatch(r"(\d+ ){4}\n", words)
    assert words == invoke("generate", folder, "-", "--tokens", "4", input="7").stdout
    assert "in runs/toy_system.system/tiny-2" in flat(invoke("train", NAME, *SHORT).stdout)


def test_seeds(tmp_path):
    arguments = ("train", NAME, *SHORT, "--seeds", 3, "--out", "three")
    result = invoke(*arguments, "--json", "-")
    found = json.loads(result.stdout)
    assert [r["seed"] for r in found["runs"]] == [0, 1, 2]
    assert len({r["loss"] for r in found["runs"]}) == 3
    each = [r["rows"][0]["accuracy"] for r in found["runs"]]
    assert found["mean"][0]["accuracy"] == pytest.approx(sum(each) / 3)
    table = flat(result.stderr)
    assert "seed part items accuracy" in table and "mean held out 50" in table
    assert (tmp_path / "three" / "seed-2" / "result.json").is_file()
    again = invoke(*arguments, "--json", "again.json", "--resume")
    assert "seed part items accuracy" in flat(again.stdout)
    assert json.loads((tmp_path / "again.json").read_text()) == found


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    invoke("train", NAME, *SHORT, "--out", "a", "--tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/lr", "train/grad_norm"} <= set(events.Tags()["scalars"])
    rows = [json.loads(r) for r in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(
        [r["loss"] for r in rows if "loss" in r]
    )
    assert [e.step for e in events.Scalars("evaluation/held out/50/accuracy")] == [3]


def test_what_there_is():
    shown = flat(invoke("train").stdout)
    assert "system preset steps what it is" in shown
    assert all(name in shown for name in zoo.systems())
    assert "generate" in invoke("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "basd"), "there is no system 'basd'; did you mean based?"),
        (("train", "nowhere:system"), "there is no module nowhere"),
        (("train", "json:dumps"), "json:dumps is not a zoo.training.System"),
        (("train", NAME, "--preset", "tinny"), "no preset 'tinny' of toy; did you mean tiny?"),
        (("train", NAME, "--set", "train.stepz=3"), "did you mean train.steps?"),
        (("train", NAME, "--set", "train.batch=8", "--resume"), "fix: give --out"),
        (("eval", "."), "neither run.json nor checkpoints/"),
        (("eval", "absent"), "neither run.json nor checkpoints/"),
        (("train", NAME, "--device", "cuda"), "no GPU is visible"),
    ],
)
def test_mistakes(arguments, words):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("a GPU is visible")
    result = invoke(*arguments, status=2)
    assert words in flat(result.stderr) and "Traceback" not in result.stderr


def test_a_run_that_is_there():
    invoke("train", NAME, *SHORT, "--out", "a")
    result = invoke("train", NAME, *SHORT, "--out", "a", status=2)
    assert "holds a run already fix: --resume" in flat(result.stderr)
    assert "3 steps" in invoke("train", NAME, *SHORT, "--out", "a", "--resume").stdout


def test_a_system_that_generates_nothing(monkeypatch):
    invoke("train", NAME, *SHORT, "--out", "a")
    monkeypatch.delattr(type(system), "generate")
    assert "toy generates nothing" in invoke("generate", "a", status=1).stderr


def test_a_file_that_is_damaged(tmp_path):
    invoke("train", NAME, *SHORT, "--out", "a")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"\0" * 100)
    result = invoke("eval", "a", status=1)
    assert "model.safetensors is no whole safetensors file" in flat(result.stderr)


def test_systems_of_other_packages(monkeypatch, tmp_path):
    (tmp_path / "other_package.py").write_text(
        "def systems():\n    return {'toy': 'toy_system:system', 'based': 'x:y'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entries = [
        importlib.metadata.EntryPoint("o", "other_package", find.GROUP),
        importlib.metadata.EntryPoint("zoo", "zoo", find.GROUP),
    ]
    monkeypatch.setattr(registry, "packages", lambda: entries)
    assert registry.find("toy") is system
    assert registry.systems()["based"] == zoo.systems()["based"]
    assert isinstance(system, System)


def test_a_package_whose_commands_break(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("def commands():\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = importlib.metadata.EntryPoint("b", "broken_package", find.GROUP)
    monkeypatch.setattr(find, "packages", lambda: [entry])
    result = invoke("train", status=2)
    assert "broken_package.commands() failed: ZeroDivisionError" in result.stderr
    assert "No such command 'train'" in result.stderr
