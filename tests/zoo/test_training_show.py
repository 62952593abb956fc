"""What people see of a run: curves, bars, lines and tables."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from toy_system import system

from zoo.training import override
from zoo.training.checkpoint import Run
from zoo.training.curve import Curve, means, plot
from zoo.training.log import Log
from zoo.training.show import Bar, Lines, line, table
from zoo.training.show import means as over_runs
from zoo.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
numbers = st.floats(-1e6, 1e6) | st.just(math.nan)


def dots(lines):
    """The set dots of a plot as (x, y), y downwards."""
    place = {0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (1, 0), 4: (1, 1), 5: (1, 2), 6: (0, 3), 7: (1, 3)}
    return {
        (2 * column + place[bit][0], 4 * row + place[bit][1])
        for row, text in enumerate(lines)
        for column, c in enumerate(text)
        for bit in range(8)
        if ord(c) - 0x2800 >> bit & 1
    }


@settings(max_examples=60, deadline=None)
@example([2.225073858507203e-309, 0.0], 1)
@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=30), st.integers(1, 5))
def test_a_plot_goes_through_every_value(values, height):
    lines = plot(values, height)
    assert len(lines) == height and all(len(x) == math.ceil(len(values) / 2) for x in lines)
    seen = dots(lines)
    known = [(k, v) for k, v in enumerate(values) if v is not None]
    assert bool(seen) == bool(known)
    if known:
        low, high = min(v for _, v in known), max(v for _, v in known)
        for k, v in known:
            at = (high - v) / ((high - low) or 1.0) * (4 * height - 1)
            assert any(x == k and abs(y - at) <= 0.5 for x, y in seen)
        assert {x for x, _ in seen} == set(range(known[0][0], known[-1][0] + 1))


def test_a_straight_fall():
    values = [float(8 - k) for k in range(8)]
    assert dots(plot(values, 2)) == {(k, k) for k in range(8)}


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, max_size=40), st.integers(1, 9))
def test_means_keep_the_sum(values, parts):
    found = means(list(enumerate(values)), parts)
    finite = [v for v in values if math.isfinite(v)]
    assert len(found) == parts
    known = [m for m in found if m is not None]
    assert bool(known) == bool(finite)
    if finite:
        assert min(finite) - 1e-6 <= min(known) and max(known) <= max(finite) + 1e-6
    if len(values) == parts:
        assert [m for m in found if m is not None] == finite


def shown(report, *settings, terminal=False):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, highlight=False)
    run = Run(
        "toy", "tiny", override(system.preset("tiny"), ["train.evaluate_every=20", *settings])
    )
    Trainer(system, run, report=report(console, "toy tiny")).fit()
    return out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_curve_of_a_run(terminal):
    text = shown(Curve, terminal=terminal)
    last = text.rstrip().splitlines()[-1]
    assert last.startswith("toy tiny: loss ") and "step 40 of 40" in last
    assert any("\u2800" < c <= "\u28ff" for c in text)
    assert (
        "step 20: held out 50 accuracy" in text.replace("\x1b[2m", "").replace("\x1b[0m", "")
    ) == terminal


def test_a_bar_and_lines(monkeypatch):
    text = shown(Bar, terminal=True)
    assert "40/40" in text and "held out 50 accuracy" in text
    monkeypatch.setattr(Lines, "every", 0.0)
    monkeypatch.setattr(Log, "every", 0.0)
    text = shown(Lines)
    assert "toy tiny: step 7 of 40, loss " in text and "ms a step" in text and "\x1b" not in text


def test_rows():
    rows = [{"part": "a", "n": 3, "accuracy": 0.5}, {"part": "b", "n": 3, "accuracy": 0.25}]
    assert line(rows) == "a 3 accuracy 0.5, b 3 accuracy 0.25"
    out = io.StringIO()
    Console(file=out, width=60).print(table([*rows, {"part": "c", "more": math.pi}]))
    assert "accuracy" in out.getvalue() and "3.142" in out.getvalue()
    other = [{**r, "accuracy": 1.0} for r in rows]
    assert [r["accuracy"] for r in over_runs([rows, other])] == [0.75, 0.625]
    assert over_runs([rows, other[:1]]) == [] == over_runs([rows, [{**r, "n": 4} for r in rows]])
