"""The demo on odd texts, and what it finds."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import tkpy
from tkpy import TkError
from tkpy.cli import app, find
from zoo import demo as run_demo
from zoo.based.config import BasedConfig
from zoo.based.demo import Reading, read
from zoo.based.model import Attention, Based

SMALL = BasedConfig(width=16, heads=2, features=4, window=5, hidden=16)


@pytest.fixture(autouse=True, scope="module")
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return Based(SMALL)


# --- reading a text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [b"x", b"xy", bytes(range(256)), b"\0" * 5], ids=["1", "2", "binary", "zeros"]
)
def test_read_any_text(model, text):
    r = read(model, text, 0.8)
    assert r.given == len(text) and 1 <= r.read <= r.given
    assert r.start >= 1 and r.agrees and r.difference < 1e-4
    assert (r.end >= 1) == (r.read >= 2)
    assert r.state_bytes == model.start(1).bytes and r.cache_bytes == r.read * 2 * 4 * 16 * 3


def test_an_empty_text_is_refused(model):
    with pytest.raises(ValueError, match="empty"):
        read(model, b"", 1.0)


def test_a_stale_state_is_found(model, monkeypatch):
    """The comparison can fail: a ring that is written one slot too far shows."""
    keep = Attention._keep

    def late(self, kept, k, v, at):
        keep(self, kept, k, v, at)
        kept[:] = [t.roll(1, 2) for t in kept]

    monkeypatch.setattr(Attention, "_keep", late)
    r = read(model, bytes(range(40)), 6.0)
    assert not r.agrees and r.difference > 1e-3


def test_disagreement_is_an_error(monkeypatch):
    r = Reading(1, 1, 1, 0, 1.0, 1.0, 0.5, 0.0, 1.0, 1, 1)
    monkeypatch.setattr("zoo.based.demo.read", lambda *_: r)
    with pytest.raises(TkError, match=r"disagree: logits differ by 0\.5"):
        run_demo(Console(file=io.StringIO()), b"x", 1.0)


def test_nan_is_no_agreement():
    r = Reading(1, 1, 1, 0, 1.0, 1.0, float("nan"), 0.0, 1.0, 1, 1)
    assert not r.agrees


# --- the command ----------------------------------------------------------------------------------


def invoke(*arguments, status=0):
    result = CliRunner().invoke(app, ["demo", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, (result.stdout, result.stderr)
    return result


def test_texts_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.txt").touch()
    assert "is empty" in invoke(tmp_path / "empty.txt", status=2).stderr
    assert "cannot be read" in invoke(tmp_path / "absent.txt", status=2).stderr
    assert "cannot be read: Is a directory" in invoke(tmp_path, status=2).stderr


def test_the_readme_comes_with_the_distribution(tmp_path, monkeypatch):
    command = sys.modules["tkpy.cli.demo"]
    assert command.read_text(None) == (Path(tkpy.__file__).parents[1] / "README.md").read_bytes()
    monkeypatch.setattr(command.tkpy, "__file__", str(tmp_path / "tkpy" / "__init__.py"))
    assert command.read_text(None).startswith(b"# tkpy")


def test_without_a_zoo(monkeypatch):
    monkeypatch.setattr(find, "packages", lambda: [])
    assert "nothing to show" in invoke(status=2).stderr


def test_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["tkpy.cli.demo"], "_EXAMPLES", 1)
    text = tmp_path / "text.bin"
    text.write_bytes(bytes(range(256)) * 4)
    out = invoke(text, "--seconds", "1").stdout
    for words in (
        "def attention(",
        "more lines: tkpy show attention --stage tile --set causal=true",
        "tl.dot",
        "tt.dot",
        "wgmma.mma_async",
        "on 1 inputs",
        "registers",
        "of 1,024 bytes",
        "largest difference",
        "softmax KV cache",
        "learns to recall",
        "64/16",
        "make demo-train",
    ):
        assert words in out, words
    assert "\x1b[" not in out
