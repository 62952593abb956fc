"""Models and runs in folders: what fits is loaded whole, what does not is told in a sentence."""

from __future__ import annotations

import fcntl
import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_system import Model, Sizes

from zoo.training import ConfigError, LoadError, runs
from zoo.training.files import read_tensors
from zoo.training.pretrained import load_weights, write_weights

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "toy_system:system"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, yours = a.state_dict(), b.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[k], yours[k]) for k in mine)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    result = runs.train(NAME, "tiny", settings=["train.steps=4"], out=out)
    return out, result


@pytest.fixture
def copied(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    return out


# --- from_pretrained ------------------------------------------------------------------------------


def test_there_and_back(tmp_path):
    model = Model(Sizes(width=6))
    model.save_pretrained(tmp_path / "a" / "b")
    before = torch.get_rng_state()
    loaded = Model.from_pretrained(tmp_path / "a" / "b")
    assert torch.equal(before, torch.get_rng_state())
    assert same(model, loaded) and not loaded.training and loaded.config == model.config
    assert loaded.out.weight is loaded.embedding.weight
    half = Model.from_pretrained(str(tmp_path / "a" / "b"), dtype=torch.bfloat16)
    assert half.hidden.weight.dtype == torch.bfloat16


def test_names_are_those_of_the_state_dict(tmp_path):
    model = Model(Sizes())
    model.save_pretrained(tmp_path)
    tensors, metadata = read_tensors(tmp_path / WEIGHTS)
    assert set(tensors) == set(model.state_dict()) - {"out.weight"}
    assert metadata == {"format": "pt", "tied:out.weight": "embedding.weight"}
    facts = json.loads((tmp_path / CONFIG).read_text())
    assert facts["model_type"] == "toy" and facts["architectures"] == ["Model"]


def test_tied_weights_that_differ_are_refused(tmp_path):
    model = Model(Sizes())
    state = model.state_dict()
    state["out.weight"] = state["out.weight"] + 1
    write_weights(tmp_path / WEIGHTS, state)
    with pytest.raises(LoadError, match=r"embedding\.weight and out\.weight differ"):
        load_weights(model, tmp_path / WEIGHTS)


def test_a_finished_run_is_a_pretrained_model(finished):
    out, _ = finished
    assert same(Model.from_pretrained(out), runs.load(out).model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("hidden.bias"), r"lacks hidden\.bias"),
        (lambda s: s.update(surplus=torch.zeros(1)), "has also surplus"),
        (lambda s: s.update({"hidden.bias": torch.zeros(9)}), r"hidden\.bias is \[9\], .*\[8\]"),
        (lambda s: s.update({"hidden.bias": torch.zeros(8).long()}), "is torch.int64"),
    ],
)
def test_nothing_is_loaded_in_part(tmp_path, change, words):
    state = {k: v.clone() for k, v in Model(Sizes()).state_dict().items()}
    change(state)
    write_weights(tmp_path / WEIGHTS, state)
    model = Model(Sizes())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(LoadError, match=words):
        load_weights(model, tmp_path / WEIGHTS)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (WEIGHTS, None, "no such file"),
        (WEIGHTS, b"", "no whole safetensors file"),
        (WEIGHTS, b"\x80\x04\x95pickle", "no whole safetensors file"),
        (CONFIG, None, "cannot be read: No such file"),
        (CONFIG, b"{", "is not JSON"),
        (CONFIG, b"\xff\xfe", "is not JSON"),
        (CONFIG, b"[]", "holds no object"),
        (CONFIG, b'{"model_type": "based"}', "is of a based, not of a toy"),
        (CONFIG, b'{"model_type": "toy", "widht": 8}', "there is no widht; did you mean width"),
        (CONFIG, b'{"model_type": "toy", "width": 16}', r"is \[8\], the model's is \[16\]"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, file, content, words):
    Model(Sizes()).save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(LoadError, match=words) as e:
        Model.from_pretrained(tmp_path)
    assert file in str(e.value) or WEIGHTS in str(e.value)


def test_cut_short_at_every_length(tmp_path):
    Model(Sizes(words=3, width=2)).save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(LoadError, match="no whole safetensors file"):
            Model.from_pretrained(tmp_path)


def test_no_folder():
    with pytest.raises(LoadError, match="downloads nothing"):
        Model.from_pretrained("someone/some-model")


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_is_not_written_over(finished):
    with pytest.raises(ConfigError, match="holds a run already\n  fix: --resume"):
        runs.train(NAME, "tiny", out=finished[0])


def test_a_finished_run_is_not_trained_again(finished):
    out, result = finished
    again = runs.train(NAME, "tiny", out=out, resume=True)
    assert again == result and again.step == 4


def test_more_steps(finished, copied):
    """A run goes on to more steps than it was given; what it is stays what it was."""
    result = runs.train(NAME, "tiny", settings=["train.steps=6"], out=copied, resume=True)
    assert result.step == 6
    rows = [json.loads(r) for r in (copied / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert runs.load(copied).run.step == 6


@pytest.mark.parametrize(
    ("name", "preset", "keywords", "words"),
    [
        (NAME, "calm", {}, "is of preset tiny, not of calm"),
        (NAME, "tiny", {"reference": True}, "is of reference False, not of True"),
        (NAME, "tiny", {"settings": ["model.width=16"]}, "sizes cannot be changed"),
        ("toy_system:", "tiny", {}, "is of system toy_system:system, not of toy_system:"),
    ],
)
def test_another_run_is_not_gone_on_with(copied, name, preset, keywords, words):
    with pytest.raises(ConfigError, match=words):
        runs.train(name, preset, out=copied, resume=True, **keywords)


@pytest.mark.parametrize("file", [WEIGHTS, "optimizer.safetensors", "random.safetensors"])
@pytest.mark.parametrize("damage", ["absent", "cut"])
def test_a_damaged_checkpoint_is_told(copied, file, damage):
    path = copied / "checkpoints" / "step-00000004" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-1])
    before = (copied / "metrics.jsonl").read_bytes()
    with pytest.raises(LoadError, match=file):
        runs.train(NAME, "tiny", settings=["train.steps=6"], out=copied, resume=True)
    assert (copied / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "not of format 1"),
        ({"step": "4"}, "step missing, unknown or of another type"),
        ({"surplus": 1}, "surplus missing, unknown"),
        ({"preset": {"model": {"widht": 1}, "data": {}}}, "did you mean model.width"),
    ],
)
def test_a_run_json_that_does_not_fit(copied, change, words):
    path = copied / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LoadError, match=words):
        runs.load(copied)


def test_an_optimizer_of_another_model(copied):
    from zoo.training.files import write_tensors

    path = copied / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    state, _ = read_tensors(path)
    for broken, words in (
        ({k: v for k, v in state.items() if k != "hidden.bias.exp_avg"}, "not all of hidden.bias"),
        (state | {"other.exp_avg": torch.zeros(1)}, "of another model"),
        (state | {"hidden.bias.exp_avg": torch.zeros(3)}, r"is \[3\], not \[8\]"),
    ):
        write_tensors(path, broken)
        with pytest.raises(LoadError, match=words):
            runs.train(NAME, "tiny", settings=["train.steps=6"], out=copied, resume=True)


def test_one_run_a_folder(tmp_path):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="in use by another process"):
            runs.train(NAME, "tiny", out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        runs.train(NAME, "tiny", out=tmp_path / "file" / "run")


def test_a_run_that_never_saved_begins_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    result = runs.train(NAME, "tiny", settings=["train.steps=2"], out=tmp_path, resume=True)
    assert result.step == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_an_unfinished_run_can_be_read(finished, copied):
    for file in ("run.json", "result.json", WEIGHTS, CONFIG):
        (copied / file).unlink()
    loaded = runs.load(copied)
    assert same(loaded.model, runs.load(finished[0]).model)
    assert loaded.folder.name == "step-00000004"
    assert loaded.evaluate() == finished[1].rows
    with pytest.raises(ConfigError, match="sizes cannot be changed"):
        loaded.evaluate(["model.width=3"])


def test_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runs.train(NAME, "tiny", settings=["train.steps=2"])
    assert result.out is None and not list(tmp_path.iterdir())
    assert replace(result, seconds=0.0).rows == result.rows
