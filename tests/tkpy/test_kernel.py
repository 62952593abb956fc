"""Calls: variants and how few there are, strides, sizes, 64-bit offsets, the cache, hidden names."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from plain import scale, walk

HERE = Path(__file__).parent


def test_two_hundred_shapes_compile_at_most_two_variants(monkeypatch, tmp_path):
    monkeypatch.setenv("TKPY_CACHE_DIR", str(tmp_path))
    rng = random.Random(0)
    kernel = type(walk)(walk.fn)
    for _ in range(200):
        b, n = rng.randint(1, 3), rng.choice([1, 31, 32, 33, rng.randint(1, 100)])
        x = torch.randn(b, n, 24)
        if rng.random() < 0.3:  # not contiguous: rows of a wider tensor, or a transpose
            x = torch.randn(b, 24, n).transpose(1, 2)
        elif rng.random() < 0.3:
            x = torch.randn(b, n, 40)[..., 3:27]
        error = (kernel(x) - x.double().sum(1)).abs()
        bound = 2**-24 * (n + 2) * x.double().abs().sum(1)
        assert (error <= bound).all()
    assert len(kernel.variants) <= 2
    assert kernel._store.compiled <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "view",
    [
        lambda t: t,
        lambda t: t[::2],
        lambda t: t[:, ::2],
        lambda t: t.T.contiguous().T,
        lambda t: t[5:6].expand(33, -1),
        lambda t: t[:, 3:4].expand(-1, 20),
        lambda t: t[1:, 1:],
        lambda t: t[:0],
        lambda t: t[:, :0],
        lambda t: t[:1, :1],
    ],
)
def test_strides_and_sizes(view, dtype):
    x = view(torch.randn(70, 50).to(dtype))
    before = x.clone()
    y = scale(x, 0.5)
    assert torch.equal(y, (x.float() * 0.5).to(dtype))
    assert torch.equal(x, before)
    assert y.shape == x.shape


def test_output_given():
    x = torch.randn(40, 24)
    room = torch.full((42, 30), 7.0)
    y = room[1:41, 2:26]
    assert scale(x, 2.0, y=y) is y
    assert torch.equal(y, x * 2)
    room[1:41, 2:26] = 7.0
    assert (room == 7.0).all(), "wrote outside the output"


def test_offsets_past_two_to_the_31():
    """The last row lies 2^31 elements and more from the first; nothing is read to get there."""
    rows, stride = 3, 2**30 + 16
    storage = torch.empty(rows * stride, dtype=torch.bfloat16)
    x = storage.as_strided((rows, 20), (stride, 1))
    x.copy_(torch.randn(rows, 20))
    call = scale.binder.bind((x, 1.0), {})
    assert call.wide
    assert not scale.binder.bind((x[:2], 1.0), {}).wide
    assert torch.equal(scale(x, 1.0), x)
    assert ".to(tl.int64)" in scale.lower(scale.key_of(call)).source


def test_tile_side_dimension_is_static_and_others_are_not():
    key = scale.key_of(scale.binder.bind((torch.zeros(70, 50), 1.0), {}))
    assert key.static == (("D", 50),)
    source = scale.lower(key).source
    assert "50" in source
    assert "70" not in source


def test_a_grid_that_no_gpu_launches_is_refused():
    from types import SimpleNamespace

    from verbs import shifted

    key = shifted.key_of(shifted.binder.bind((torch.zeros(1, 4, 4), 1), {}))
    scope: dict = {}
    source = shifted.lower(key).source
    exec(source[source.index("def launch") :], scope)
    x = SimpleNamespace(shape=(70000, 4, 4), is_cuda=True)
    with pytest.raises(ValueError, match="65535 is the most"):
        scope["launch"](x, x, x, 1)


RUN = """
import json, sys, time
sys.path.insert(0, {here!r})
import torch, plain
from tkpy import lower
calls = []
inner = lower.lower
kernel = sys.modules["tkpy.kernel"]
kernel.lower = lambda *a, **k: calls.append(1) or inner(*a, **k)
x = torch.arange(20.0).reshape(2, 10)
{change}
print(json.dumps([len(calls), plain.shifted(x).tolist(), len(calls)]))
"""


def run(tmp_path, change=""):
    env = {**os.environ, "TKPY_CACHE_DIR": str(tmp_path)}
    code = RUN.format(here=str(HERE), change=change)
    out = forked.python(code, env=env)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def test_cache_across_processes(tmp_path):
    _, first, compiled = run(tmp_path)
    assert compiled == 1
    _, second, compiled = run(tmp_path)
    assert compiled == 0, "a second process ran the front end again"
    assert first == second
    assert first[0][0] == 1.5
    # A global that an inlined function reads has changed: the stored text does not count.
    _, third, compiled = run(tmp_path, "plain.OFFSET = 2.5")
    assert compiled == 1
    assert third[0][0] == 2.5
    # A damaged cache is a slower start, not an error.
    for path in (tmp_path / "variants").iterdir():
        path.write_text("{not json")
    _, fourth, compiled = run(tmp_path)
    assert compiled == 1
    assert fourth == first


@pytest.mark.parametrize("hidden", ["codegen", "zoo"])
def test_hidden_packages_are_named(tmp_path, hidden):
    (tmp_path / "codegen.py").write_text("" if hidden == "codegen" else "raise SystemExit(9)")
    if hidden == "zoo":
        (tmp_path / "codegen.py").unlink()
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "__init__.py").write_text("")
    out = subprocess.run(
        [sys.executable, "-c", "import tkpy"], cwd=tmp_path, capture_output=True, text=True
    )
    assert out.returncode != 0
    theirs = tmp_path / ("codegen.py" if hidden == "codegen" else "zoo/__init__.py")
    ours = HERE.parent.parent / hidden / "__init__.py"
    assert f"`import {hidden}` finds {theirs}" in out.stderr
    assert str(ours) in out.stderr
    assert "fix: rename" in out.stderr


def test_positions_past_two_to_the_31():
    """A tile coordinate times the side passes 2^31: nothing is there, and nothing is read."""
    from plain import at_tile

    x = torch.randn(130, 20)
    assert torch.equal(at_tile(x, 1)[:64], x[64:128])
    for far in (2**26, 2**26 + 1, 2**31 - 1):
        out = torch.full((64, 20), 7.0)
        at_tile(x, far, o=out)
        assert (out == 7.0).all(), "elements past the end of a tensor are dead, not element 0"
