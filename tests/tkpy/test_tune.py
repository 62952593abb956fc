"""Tile sizes chosen by the model and by a clock that tests hold in their hands."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import tkpy as tk
from tkpy.cli import app
from tkpy.tune import Memory, tune, tuned
from tkpy.tune.candidates import candidates, knobs


@tk.kernel
def scaled(
    x: tk.Global["M N"], y: tk.Out["M N"], factor: tk.f32, *, rows: int = 32, cols: int = 64,
    double: bool = False,
):  # fmt: skip
    i, j = tk.grid(tk.cdiv("M", rows), tk.cdiv("N", cols))
    k = factor * 2 if double else factor
    tk.store(y, tk.load(x, (i, j), (rows, cols)) * k, (i, j))


@tk.kernel
def added(x: tk.InOut["M"], y: tk.Global["M"], *, rows: int = 32):
    i = tk.grid(tk.cdiv("M", rows))
    tk.store(x, tk.load(x, i, rows) + tk.load(y, i, rows), i)


@tk.kernel
def fixed(x: tk.Global["M"], y: tk.Out["M"]):
    i = tk.grid(tk.cdiv("M", 16))
    tk.store(y, tk.load(x, i, 16), i)


X = torch.arange(90.0).reshape(9, 10)
SMALL = {"rows": [16, 32], "cols": [16, 64]}


def clock(times: dict[tuple[int, int], float], ran: list | None = None):
    """A timer that reads a table instead of a clock."""

    def timer(choice, run):
        run()
        if ran is not None:
            ran.append(dict(choice))
        return times.get((choice["rows"], choice["cols"]), 1.0)

    return timer


def test_the_fastest_is_chosen_and_remembered(tmp_path):
    ran: list = []
    times = {(16, 64): 0.5, (32, 64): 0.7}
    found = tune(
        scaled, X, 2.0, candidates_of=SMALL, keep=4, timer=clock(times, ran), folder=tmp_path
    )
    assert found.choice == {"rows": 16, "cols": 64} and not found.remembered
    assert len(ran) == 4 and len(found.measured) == 4
    assert [r.measured for r in found.measured] == [0.5, 0.7, 1.0, 1.0]
    again = tune(scaled, X, 2.0, candidates_of=SMALL, timer=clock({}, ran), folder=tmp_path)
    assert again.remembered and again.choice == found.choice and len(ran) == 4
    anew = tune(
        scaled, X, 2.0, candidates_of=SMALL, again=True, timer=clock({(32, 16): 0.1}),
        folder=tmp_path,
    )  # fmt: skip
    assert anew.choice == {"rows": 32, "cols": 16}


def test_few_are_measured_and_the_default_is_among_them(tmp_path):
    ran: list = []
    tune(scaled, X, 2.0, keep=2, timer=clock({}, ran), folder=tmp_path)
    assert 2 <= len(ran) <= 3 and {"rows": 32, "cols": 64} in ran


def test_tuned_uses_it(tmp_path):
    fast = tuned(scaled, tmp_path)
    assert fast.choice(X, 2.0) == {}
    assert torch.equal(fast(X, 2.0), X * 2)
    fast.tune(X, 2.0, candidates_of=SMALL, timer=clock({(16, 16): 0.1}))
    assert fast.choice(X, 2.0) == {"rows": 16, "cols": 16}
    assert torch.equal(fast(X, 2.0), X * 2)
    assert torch.equal(fast(X, 2.0, rows=48), X * 2)  # what a call says itself stands
    # The next power of two shares it; other sizes, dtypes and constants do not.
    assert fast.choice(torch.zeros(16, 16), 1.0) == {"rows": 16, "cols": 16}
    assert fast.choice(torch.zeros(17, 10), 1.0) == {}
    assert fast.choice(X.to(torch.bfloat16), 1.0) == {}
    assert fast.choice(X, 1.0, double=True) == {}
    assert tk.tuned(scaled).kernel is scaled


@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3),
        ),
        st.fixed_dictionaries(
            {
                "format": st.sampled_from([1, 2]),
                "kernel": st.sampled_from(["scaled", "other"]),
                "choice": st.dictionaries(
                    st.sampled_from(["rows", "cols", "zzz", "num_warps", "num_stages"]),
                    st.sampled_from([16, 64, 0, -16, 17, 1 << 40, True, "64", None, 4.0]),
                ),
            }
        ),
    )
)
@settings(max_examples=50, deadline=None)
def test_damaged_and_foreign_files_are_ignored(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("tuned")
    memory = Memory(scaled, folder)
    path = memory.path(scaled.binder.bind((X, 2.0), {}), frozenset())
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    choice = memory.recall(path, {"rows", "cols"})
    if choice is None:
        assert tuned(scaled, folder).choice(X, 2.0) == {}
        return
    assert content["kernel"] == "scaled" and content["format"] == 1
    assert all(type(v) is int for v in choice.values())
    sizes = [v for n, v in choice.items() if n in ("rows", "cols")]
    assert all(16 <= v <= 1 << 14 and v % 16 == 0 for v in sizes)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    tune(scaled, X, 2.0, candidates_of=SMALL, timer=clock({}), folder=tmp_path)


def test_arguments_stay_as_they_are(tmp_path):
    x, y = torch.ones(40), torch.ones(40)
    tune(added, x, y, timer=lambda c, run: run() or 1.0, folder=tmp_path)
    assert torch.equal(x, torch.ones(40))
    out = torch.full_like(X, 7.0)
    tune(scaled, X, 2.0, y=out, candidates_of=SMALL, timer=clock({}), folder=tmp_path)
    assert torch.equal(out, torch.full_like(X, 7.0))


def test_candidates():
    assert knobs(scaled) == {"rows": 32, "cols": 64}
    assert knobs(scaled, {"rows": 48}) == {"cols": 64}
    found = candidates(scaled, {})
    assert found[0] == {"rows": 32, "cols": 64}
    assert all(v % 16 == 0 for c in found for v in c.values())
    assert {"num_warps", "num_stages"} <= set(candidates(scaled, {}, gpu=True)[0])


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"depth": [16]}, "no tile size depth"),
        ({"rows": []}, "no values"),
        ({"rows": [0]}, "rows=0 is not"),
        ({"rows": [16.0]}, "rows=16.0 is not"),
        ({"cols": [True]}, "cols=True is not"),
    ],
)
def test_bad_candidates_are_refused(given_, says):
    with pytest.raises(tk.TkError, match=says):
        tune(scaled, X, 2.0, candidates_of=given_)


def test_nothing_to_choose_and_nothing_that_runs(tmp_path):
    with pytest.raises(tk.TkError, match="nothing to choose"):
        fixed.tune(torch.zeros(20))
    with pytest.raises(tk.TkError, match="no candidate runs"):
        tune(scaled, X, 2.0, candidates_of={"rows": [17]}, folder=tmp_path)
    with pytest.raises(tk.CallError):
        scaled.tune(X)


def test_a_choice_for_a_device_that_is_not_here(tmp_path):
    from zoo.kernels.gemm import gemm

    big = torch.empty(4096, 4096, dtype=torch.bfloat16)
    found = tune(
        gemm, big, big, on="h100", folder=tmp_path,
        candidates_of={"rows": [32, 128], "cols": [32, 256], "num_warps": [8]},
    )  # fmt: skip
    assert found.choice == {"rows": 128, "cols": 256, "num_warps": 8} and not found.measured


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TKPY_CACHE_DIR", str(tmp_path))
    args = ["tune", "softmax", "M=64", "N=48", "--keep", "1", "--json"]
    first = json.loads(CliRunner().invoke(app, args).stdout)
    assert not first["remembered"] and first["choice"]
    second = json.loads(CliRunner().invoke(app, args).stdout)
    assert second["remembered"] and second["choice"] == first["choice"]
