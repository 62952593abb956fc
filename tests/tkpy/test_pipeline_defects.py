"""Four defects of published kernels, each of a kind that the pipeline's checks find.

Numbers are those of the ten defects in ThunderKittens' kernels that are worth a regression test;
4, 6, 7 and 10 are about pipelines.
"""

from __future__ import annotations

from dataclasses import replace

import pipelines as p
import pytest
from test_timeline import prefetching

from tkpy.pipeline.check import check
from tkpy.pipeline.derive import lcf
from tkpy.pipeline.device import device
from tkpy.pipeline.events import (
    Arrive,
    AsyncCopy,
    Mma,
    MmaWait,
    Place,
    StoreAsync,
    Sync,
    Wait,
    Write,
)
from tkpy.pipeline.model import PipelineError, Ring, Tile
from tkpy.pipeline.simulate import lints


def finish(bytes_: int, stages: int = 2):
    return lcf(
        "finish",
        rings=[Ring("x", stages, 1024)],
        load=[AsyncCopy(Place("x"), 1024)],
        compute=[Mma(1, (Place("x"),))],
        finish=[Write(Place("c", split=True)), StoreAsync(Place("c"), bytes_)],
        tiles=[Tile("c", bytes_, over="x")],
        consumer_warps=4,
        iterations=6,
        tasks=3,
    )


def test_4_a_finish_block_over_the_ring():
    """Theirs divides a negative space by an unsigned size: every stage counts as safe."""
    fits = finish(1024)
    assert fits.safe_stages("x") == 1 and check(fits) == []
    covers = finish(2048)
    assert covers.safe_stages("x") == 0 and check(covers) == []
    with pytest.raises(PipelineError, match="lies over x, which has 2048"):
        finish(2049)  # more than the ring: theirs wraps round, ours is refused
    # The same with every stage taken for safe, as theirs does: the producer never waits.
    eager = p.broken(covers, "load", "body", p.drop(Wait, sem="c.done"), p.drop(Wait, sem="c.done"))
    said = [f for f in check(eager) if f.kind == "race"]
    assert said and "c lies over x" in said[0].message


def test_6_a_stage_released_before_its_product_has_retired():
    late = p.broken(p.gemm(), "compute", "body", p.drop(MmaWait), p.after(Arrive, MmaWait(), nth=1))
    found = [f for f in check(late) if f.kind == "race"]
    assert any("before the product that reads it has retired" in f.message for f in found)


def test_6_a_stage_released_twice():
    twice = p.broken(
        p.gemm(), "compute", "body", p.after(Arrive, Arrive("a.released"), sem="a.released")
    )
    (found,) = check(twice)
    assert found.kind == "arrivals" and "a.released counts 8" in found.message


def test_7_every_warp_changes_a_shared_tile_in_place():
    """Decay vectors are multiplied by all four warps: once each, so four times."""
    whole = p.mamba2()
    sums = Place("sums")
    bad = p.broken(whole, "compute", "body", p.change(Write, to={"place": sums}))
    found = [f for f in check(bad) if f.kind == "race"]
    assert found and "sums" in found[0].message and "kernel.py:11" in found[0].message
    assert check(whole) == []


def test_5_a_store_without_a_barrier():
    bare = p.broken(p.gemm(), "compute", "epilogue", p.drop(Sync, 1))
    assert any("barrier is missing before the store" in f.message for f in check(bare))


def test_10_a_wait_for_everything_defeats_the_double_buffer():
    bad = prefetching(0)
    (said,) = lints(bad, device("h100"))
    assert "waits for every copy" in said
    assert lints(replace(prefetching(1), iterations=32), device("h100")) == []
