"""The demo's model against plain PyTorch and against itself, and the demo on odd texts."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from typer.testing import CliRunner

import tkpy
from tkpy import TkError
from tkpy.cli import app, find
from zoo import demo as run_demo
from zoo.based import model as based_model
from zoo.based.demo import Reading, read
from zoo.based.model import Based, Config

SMALL = Config(width=16, heads=2, features=4, window=5, hidden=16)


@pytest.fixture(autouse=True, scope="module")
def _no_gradients():
    with torch.no_grad():
        yield


# --- the model in plain PyTorch, quadratic and in float64 -----------------------------------------


def rms(x):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def heads(x, weight, count):
    return (x @ weight.double().T).unflatten(-1, (count, -1)).transpose(1, 2)


def conv(m, c, x):
    u = x @ m.into.double().T
    one, two = u[..., : 2 * c.width], u[..., 2 * c.width :]
    past = F.pad(one, (0, 0, 2, 0))
    y = sum(past[:, k : k + x.shape[1]] * m.taps.double()[:, k] for k in range(3))
    return (F.silu(y) * two) @ m.out.double().T


def linear(m, c, x):
    q, k, v = (heads(x, w, c.heads) for w in (m.q, m.k, m.v))
    s = q @ k.mT * c.features**-0.5
    a = (1 + s + s * s / 2).tril()
    y = a @ v / a.sum(-1, keepdim=True)
    return y.transpose(1, 2).flatten(2) @ m.out.double().T


def window(m, c, x):
    q, k, v = (heads(x, w, c.heads) for w in (m.q, m.k, m.v))
    half, n = q.shape[-1] // 2, x.shape[1]
    angle = torch.arange(n)[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)

    def turn(t):
        a, b = t[..., :half], t[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    s = turn(q) @ turn(k).mT * q.shape[-1] ** -0.5
    back = torch.arange(n)[:, None] - torch.arange(n)
    s = s.masked_fill((back < 0) | (back >= c.window), -torch.inf)
    y = s.softmax(-1) @ v
    return y.transpose(1, 2).flatten(2) @ m.out.double().T


def plain(model, tokens):
    c, mixers = model.config, {"conv": conv, "linear": linear, "window": window}
    r = model.embedding.double()[tokens]
    for kind, (mixer, mlp) in zip(c.layers, model.blocks, strict=True):
        r = r + mixers[kind](mixer, c, rms(r))
        value, gate = (rms(r) @ mlp.into.double().T).chunk(2, -1)
        r = r + (value * F.silu(gate)) @ mlp.out.double().T
    return rms(r) @ model.embedding.double().T


def bytewise(model, tokens, state=None):
    out = []
    for k in range(tokens.shape[1]):
        logits, state = model(tokens[:, k : k + 1], state)
        out.append(logits)
    return torch.cat(out, 1), state


@pytest.fixture(scope="module")
def model():
    return Based(SMALL, seed=1)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 256, (2, 70), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole(model, tokens):
    return model(tokens)


def test_at_once_it_is_the_plain_model(model, tokens, whole):
    torch.testing.assert_close(whole[0].double(), plain(model, tokens), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["conv", "linear", "window"])
def test_each_mixer_matters(kind, tokens):
    """Each layer alone agrees with its plain form, and moves the logits."""
    short = tokens[:, :9]
    one = Based(replace(SMALL, layers=(kind,)), seed=2)
    logits, _ = one(short)
    torch.testing.assert_close(logits.double(), plain(one, short), atol=2e-5, rtol=1e-4)
    one.blocks[0][0].out.zero_()
    assert (one(short)[0] - logits).abs().max() > 1e-2


def test_byte_by_byte_from_nothing(model, tokens, whole):
    logits, state = bytewise(model, tokens[:, :8])
    torch.testing.assert_close(logits, whole[0][:, :8], atol=2e-5, rtol=1e-4)
    assert state.position == 8


@pytest.mark.parametrize("split", [1, 4, 5, 66])
def test_hand_over(model, tokens, whole, split):
    """At once, then byte by byte, then at once again: every split gives the same logits."""
    first, state = model(tokens[:, :split])
    second, state = bytewise(model, tokens[:, split : split + 2], state)
    third, state = model(tokens[:, split + 2 :], state)
    torch.testing.assert_close(torch.cat([first, second, third], 1), whole[0], atol=2e-5, rtol=1e-4)
    assert state.position == 70
    for layer, kept in zip(state.layers, whole[1].layers, strict=True):
        for a, b in zip(layer, kept, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_past_does_not_see_the_future(model, tokens, whole):
    changed = tokens.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 256
    logits, _ = model(changed)
    assert torch.equal(logits[:, :40], whole[0][:, :40])
    assert not torch.equal(logits[:, 40:], whole[0][:, 40:])


def test_the_state_is_not_changed_in_place(model, tokens):
    _, state = model(tokens[:, :9])
    before = [t.clone() for layer in state.layers for t in layer]
    one, _ = model(tokens[:, 9:10], state)
    again, _ = model(tokens[:, 9:10], state)
    assert torch.equal(one, again)
    after = [t for layer in state.layers for t in layer]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_state_bytes_do_not_grow(model, tokens, whole):
    c = SMALL
    v = c.width // c.heads
    sums = 1 + c.features + c.features**2
    elements = 2 * 2 * c.width + c.heads * sums * (v + 1) + 2 * c.width * c.window
    for length in (1, 2, 7):
        assert model(tokens[:1, :length])[1].bytes == 4 * elements
    assert whole[1].bytes == 2 * 4 * elements  # two sequences
    assert model.cache_bytes(70) == 70 * 2 * 4 * c.width * 3


# --- reading a text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [b"x", b"xy", bytes(range(256)), b"\0" * 5], ids=["1", "2", "binary", "zeros"]
)
def test_read_any_text(model, text):
    r = read(model, text, 0.8)
    assert r.given == len(text) and 1 <= r.read <= r.given
    assert r.start >= 1 and r.agrees and r.difference < 1e-4
    assert (r.end >= 1) == (r.read >= 2)
    assert r.state_bytes == model(torch.zeros(1, 1, dtype=torch.long))[1].bytes


def test_an_empty_text_is_refused(model):
    with pytest.raises(ValueError, match="empty"):
        read(model, b"", 1.0)


def test_a_stale_state_is_found(model, monkeypatch):
    """The comparison can fail: a ring that is written one slot too far shows."""
    put = based_model._put
    monkeypatch.setattr(based_model, "_put", lambda ring, new, at: put(ring, new, at + (at > 0)))
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
    ):
        assert words in out, words
    assert "\x1b[" not in out
