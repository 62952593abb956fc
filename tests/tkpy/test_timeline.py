"""Simulated time against the formulas that the templates' overlap obeys."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import pipelines as p
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkpy.ahead import Setting
from tkpy.cli import app
from tkpy.cli.find import find
from tkpy.cli.timeline import worth_drawing
from tkpy.pipeline.derive import lcf, lcsf
from tkpy.pipeline.device import DEVICES, Device, device
from tkpy.pipeline.events import (
    Arrive,
    AsyncCopy,
    Compute,
    CopyWait,
    Mma,
    Place,
    Read,
    StoreAsync,
    Sync,
    When,
    Write,
)
from tkpy.pipeline.model import Pipeline, PipelineError, Ring, Role, Tile
from tkpy.pipeline.simulate import lints, simulate

#: One second a byte from memory, one a FLOP, no latency: times are counts.
UNIT = Device(
    "unit", "unit", 1, 1.0, {"bf16": 1.0}, 1.0, 1.0, 1.0, 1e9, 1e9, share=1.0, latency=0.0,
    l2_latency=0.0, mma_latency=0.0, sync=0.0,
)  # fmt: skip


def loads(load: int, compute: float, stages: int, n: int, tasks: int = 1, finish: float = 0):
    return lcf(
        "loads",
        rings=[Ring("x", stages, max(16, load), align=16)],
        load=[AsyncCopy(Place("x"), load)],
        compute=[Mma(compute, (Place("x"),), asynchronous=False)],
        finish=[Compute(cycles=finish)] if finish else [],
        consumer_warps=1,
        iterations=n,
        tasks=tasks,
    )


@given(st.integers(1, 50), st.integers(1, 50), st.integers(2, 5), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_steady_state_is_the_slower_of_load_and_compute(load, compute, stages, n):
    time = simulate(loads(load, compute, stages, n), UNIT).time
    assert time == pytest.approx(load + (n - 1) * max(load, compute) + compute)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 30))
def test_one_stage_alternates(load, compute, n):
    assert simulate(loads(load, compute, 1, n), UNIT).time == pytest.approx(n * (load + compute))


@given(st.integers(1, 20), st.integers(1, 200), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_latency_is_hidden_by_stages(compute, latency, stages):
    far = dataclasses.replace(UNIT, dram=1e9, latency=float(latency))
    n = 120  # half of it is a whole number of rounds
    long, short = (simulate(loads(16, compute, stages, k), far).time for k in (n, n // 2))
    each = (long - short) / (n - n // 2)
    hidden = (stages - 1) * compute >= latency
    assert each == pytest.approx(compute if hidden else (latency + compute) / stages, rel=1e-3)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_loads_and_stores_share_the_memory(load, compute, store, stages):
    def made(n):
        return lcsf(
            "moves",
            rings=[Ring("x", stages, 64, align=16), Ring("y", stages, 64, align=16)],
            load=[AsyncCopy(Place("x"), load)],
            compute=[Mma(compute, (Place("x"),), asynchronous=False), Write(Place("y"))],
            store=[StoreAsync(Place("y"), store)],
            consumer_warps=1,
            producer_warps=2,
            iterations=n,
        )

    each = (simulate(made(60), UNIT).time - simulate(made(20), UNIT).time) / 40
    assert each == pytest.approx(max(load + store, compute), rel=0.06)


def test_one_output_stage_makes_the_next_compute_wait():
    def made(stages):
        return lcsf(
            "moves",
            rings=[Ring("x", 2, 64, align=16), Ring("y", stages, 64, align=16)],
            load=[AsyncCopy(Place("x"), 1)],
            compute=[
                Read(Place("x")),
                Write(Place("y")),
                Mma(10, asynchronous=False),
                Write(Place("y")),
            ],
            store=[StoreAsync(Place("y"), 10)],
            consumer_warps=1,
            iterations=20,
        )

    assert simulate(made(1), UNIT).time > 1.6 * simulate(made(2), UNIT).time


def test_fill_hides_under_the_finish_of_the_task_before():
    n, load, compute, finish = 6, 5, 5, 30
    one, three = (simulate(loads(load, compute, 4, n, k, finish), UNIT).time for k in (1, 3))
    assert one == load + n * compute + finish
    task = (three - one) / 2
    assert task == pytest.approx(n * compute + finish)  # no fill but the first


def test_a_finish_over_the_ring_hides_less():
    def made(over):
        return lcf(
            "finish",
            rings=[Ring("x", 4, 16, align=16)],
            load=[AsyncCopy(Place("x"), 5)],
            compute=[Mma(5, (Place("x"),), asynchronous=False)],
            finish=[Compute(cycles=30), Write(Place("c", split=True)), StoreAsync(Place("c"), 1)],
            tiles=[Tile("c", 48, over=over, align=16)],
            iterations=8,
            tasks=4,
        )

    assert made("x").safe_stages("x") == 1
    assert simulate(made(None), UNIT).time < simulate(made("x"), UNIT).time


def test_what_binds_is_named():
    assert simulate(loads(9, 1, 3, 40), UNIT).binding == "dram"
    assert simulate(loads(1, 9, 3, 40), UNIT).binding == "matrix"
    slow = dataclasses.replace(UNIT, latency=1000.0)
    late = simulate(loads(1, 1, 1, 10), slow)
    assert late.binding == "latency"
    assert max(late.stalls, key=lambda k: late.stalls[k]) == ("compute", "x.arrived")


def test_groups_share_the_machine():
    a = simulate(p.attention(groups=1), device("h100"))
    b = simulate(p.attention(groups=2), device("h100"))
    assert 1.2 < (b.flops / b.time) / (a.flops / a.time) <= 2.0


def test_taking_turns_runs_softmax_under_products():
    line = simulate(p.turns(iterations=12, tasks=1), dataclasses.replace(UNIT, l2=1e12, dram=1e12))
    special = [s for s in line.spans if s.kind == "special"]
    matrix = [s for s in line.spans if s.kind == "matrix"]
    under = sum(
        max(0.0, min(a.end, b.end) - max(a.start, b.start))
        for a in special
        for b in matrix
        if a.lane != b.lane
    )
    assert under > 0.7 * sum(s.length for s in special)


@pytest.mark.parametrize("name", p.CORRECT)
def test_correct_pipelines_end(name):
    line = simulate(p.CORRECT[name](), device("h100"))
    assert 0 < line.time < 1e-3
    for server, busy in line.busy.items():
        assert busy <= line.time * (1 + 1e-9), server
    for lane in {s.lane for s in line.spans if s.kind not in ("held", "copy")}:
        spans = sorted((s.start, s.end) for s in line.spans if s.lane == lane and s.kind == "stall")
        assert all(a[1] <= b[0] + 1e-12 for a, b in pairwise(spans))


def test_a_deadlock_is_told():
    stuck = p.broken(p.gemm(), "compute", "body", p.drop(Arrive, sem="b.released"))
    with pytest.raises(PipelineError, match="waits forever"):
        simulate(stuck, device("h100"))


def test_latencies_matter_little_once_hidden():
    d = device("h100")
    far = dataclasses.replace(d, latency=1.3 * d.latency, l2_latency=1.3 * d.l2_latency)
    whole = p.gemm(iterations=64, tasks=2)
    assert simulate(whole, far).time < 1.05 * simulate(whole, d).time


def prefetching(pending: int) -> Pipeline:
    """ThunderKittens' layernorm: copy the next rows, wait, work on these."""
    ring = Ring("x", 2, 4096)
    here, next_ = Place("x", split=True), Place("x", 1, split=True)
    role = Role(
        "all",
        2,
        prologue=(AsyncCopy(here, 4096),),
        body=(
            Sync(1, 2),
            AsyncCopy(next_, 4096, when=When(more=1), hook="load", loc=p.line(31)),
            CopyWait(pending, when=When(more=1), hook="load", loc=p.line(32)),
            CopyWait(0, when=When(last=True)),
            Sync(1, 2),
            Read(here, 4096),
            Compute(cycles=3000),
        ),
    )
    return Pipeline("layernorm", (ring,), (role,), iterations=16)


def test_waiting_for_everything_is_told():
    """It issues the next copy and waits for all of them: two stages that never overlap."""
    from tkpy.pipeline.check import check

    good, bad = prefetching(1), prefetching(0)
    assert check(good) == [] and check(bad) == []  # right answers both
    d = device("h100")
    assert lints(good, d) == []
    (said,) = lints(bad, d)
    assert "kernel.py:32" in said and "CopyWait(1)" in said and "x" in said
    assert simulate(bad, d).time > 1.3 * simulate(good, d).time


def test_devices():
    for d in DEVICES.values():
        assert 0.5 < d.share < 1 and d.matrix["bf16"] > d.vector > d.special
    with pytest.raises(Exception, match="h100"):
        device("h1000")


# The command line


@pytest.fixture
def run():
    from typer.testing import CliRunner

    return lambda *args: CliRunner().invoke(app, list(map(str, args)))


def test_timeline_draws(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = run("timeline", "gemm", "M=1024", "N=1024", "K=512", "--json", "-o", tmp_path / "gemm")
    assert out.exit_code == 0, out.output
    facts = json.loads(out.stdout)
    assert 0 < facts["of_matrix_peak"] < 1 and facts["seconds"] > 0
    assert (tmp_path / "gemm.png").read_bytes()[:4] == b"\x89PNG"
    svg = (tmp_path / "gemm.svg").read_text()
    assert "compute" in svg or "<path" in svg
    assert facts["rings"].keys() == {"at", "bt"}


def test_cost_prints(run, tmp_path):
    pytest.importorskip("matplotlib")
    args = ("cost", "gemm", "M=256", "N=512", "K=128", "--device", "a100", "-o", tmp_path / "r")
    facts = json.loads(run(*args, "--json").stdout)
    assert facts["amounts"]["FLOPs of products"]["number"] == 2 * 256 * 512 * 128
    assert (tmp_path / "r.png").exists()
    said = run(*args).stdout
    assert "FLOPs of products" in said and "bound by" in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("cost", "gemm", "Z=3"), "Z"),
        (("cost", "gemm", "M"), "NAME=VALUE"),
        (("cost", "gemm", "M=0"), "positive"),
        (("timeline", "gemm", "--device", "h1"), "h100"),
        (("timeline", "gemm", "rows=4096"), "shared memory"),
    ],
)
def test_bad_requests_are_refused(run, args, says):
    out = run(*args)
    assert out.exit_code in (1, 2), out.output
    assert out.exception is None or isinstance(out.exception, SystemExit)
    assert says in out.output


def test_what_only_the_running_kernel_knows_is_said(run, tmp_path):
    file = tmp_path / "ragged.py"
    file.write_text(
        """import tkpy as tk

@tk.kernel
def ragged(x: tk.Global["N D"], many: tk.Global["S", tk.i32], y: tk.Out["S D"]):
    s = tk.grid("S")
    total = tk.zeros("D")
    for j in tk.range(tk.cdiv(tk.load(many, s), 32)):
        total += tk.col_sum(tk.load(x, (j, 0), (32, "D"), dtype=tk.f32))
    tk.store(y, total, (s, 0))
"""
    )
    name = f"{file}:ragged"
    said = run("cost", name, "S=3")
    assert said.exit_code == 0 and "at run time" in said.output
    for args in (("timeline", name, "S=3"), ("cost", name, "--device", "h100")):
        out = run(*args, "-o", tmp_path / "p")
        assert out.exit_code == 1 and "known to the running kernel only" in out.output


@pytest.mark.parametrize("name, known, sizes", [
    ("gemm", {}, {"M": 4096, "N": 4096, "K": 4096}),
    ("gemm", {"K": 48}, {"M": 4096, "N": 4096, "K": 48}),
    ("attention", {}, {"B": 16, "H": 16, "G": 16, "N": 4096, "M": 4096, "D": 64}),
    ("attention", {"H": 6}, {"H": 6, "G": 2}),
    ("rotary", {}, {"B": 16, "H": 16, "N": 4096, "D": 64}),
    ("softmax", {}, {"M": 4096, "N": 1024}),
])  # fmt: skip
def test_sizes_nobody_gave_are_a_real_problem(name, known, sizes):
    kernel = find(name).kernel
    chosen = worth_drawing(kernel, Setting(sizes=known))
    assert chosen | sizes == chosen and set(chosen) == {d.name for d in kernel.signature.dims}
