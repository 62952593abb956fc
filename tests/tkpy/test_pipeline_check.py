"""The checker finds each of ThunderKittens' static mistakes, injected into a correct pipeline.

Its numbers are those of the list of nineteen mistakes that authors of its templates can make.
Five of them have no place in this model, and why:

| mistake | why it cannot be injected |
|---|---|
| 8, a cluster's block leaves while a peer copies into it | blocks do not share memory here |
| 12, a stage reinterpreted as a wider tile | a stage's tiles are laid out by the compiler; reading more bytes than a stage got is found |
| 17, coordinates run off the end | live extents: what lies beyond an edge is dead |
| 19, a missing descriptor, or 132 multiprocessors everywhere | made and asked by the launcher |
| 5 (second half), iterations left unset | a pipeline always has a number of them |
"""

from __future__ import annotations

import time
from dataclasses import replace

import pipelines as p
import pytest
from pipelines import after, before, broken, change, drop

from tkpy.pipeline.check import bound, check, check_once, enough_tasks, verify
from tkpy.pipeline.derive import derive, lcf
from tkpy.pipeline.events import (
    Arrive,
    AsyncCopy,
    CopyWait,
    Expect,
    Mma,
    MmaWait,
    Place,
    Read,
    StoreAsync,
    StoreReadWait,
    Sync,
    Wait,
    When,
    Write,
)
from tkpy.pipeline.graph import Run
from tkpy.pipeline.model import Pipeline, PipelineError, Ring, Role, Tile

G, A, R, M = p.gemm(), p.attention(), p.rotary(), p.mamba2()


@pytest.mark.parametrize("name", p.CORRECT)
def test_derived_pipelines_are_clean(name):
    assert [str(f) for f in check(p.CORRECT[name]())] == []


@pytest.mark.parametrize("stages", range(1, 7))
def test_any_number_of_stages_is_clean(stages):
    assert check(p.rotary(min(stages, 3))) == []
    if stages <= 4:
        assert check(p.gemm(stages)) == []


def test_derived_counts():
    counts = {s.name: s.count for s in G.semaphores}
    assert counts == {"a.arrived": 1, "b.arrived": 1, "a.released": 8, "b.released": 8, "c.done": 2}


# number: (kind, hook or role that must be named, broken pipeline)
FAULTS = {
    "1 too few arrivals": ("arrivals", "load", G.with_semaphore("a.arrived", count=4)),
    "1 too many arrivals": ("arrivals", "load", broken(G, "load", "body", change(Expect, by="one", to={"by": "each"}))),
    "2 fewer bytes than expected": ("bytes", "load", broken(G, "load", "body", change(AsyncCopy, to={"bytes": 100}))),
    "2 more bytes than expected": ("bytes", "load", broken(G, "load", "body", change(Expect, to={"bytes": 100}))),
    "2 conditional load": ("bytes", "load", broken(G, "load", "body", change(AsyncCopy, to={"when": When(2, 1)}))),
    "3 a path without arrival": ("deadlock", "load", broken(G, "compute", "body", change(Arrive, to={"when": When(2, 0)}, sem="b.released"))),
    "3 no arrival at all": ("deadlock", "load", broken(G, "compute", "body", drop(Arrive, sem="b.released"))),
    "3 every lane arrives": ("arrivals", "compute", broken(G, "compute", "body", change(Arrive, to={"count": 32}))),
    "4 no arrival from finish": ("deadlock", "load", broken(G, "compute", "epilogue", drop(Arrive, sem="c.done"))),
    "5 producer does fewer iterations": ("deadlock", "compute", G.with_role("load", iterations=2)),
    "5 consumer does fewer iterations": ("deadlock", "load", G.with_role("compute", iterations=2)),
    "6 barrier id reused": ("barrier", "finish", broken(G, "compute", "epilogue", change(Sync, 1, to={"barrier": 15, "scope": "role"}))),
    "9 released before the product retired": ("race", "compute", broken(G, "compute", "body", drop(MmaWait), after(Arrive, MmaWait(), nth=1))),
    "9 released twice": ("arrivals", "compute", broken(G, "compute", "body", after(Arrive, Arrive("a.released"), sem="a.released"))),
    "10 finish reused before it was read": ("race", "finish", broken(G, "compute", "epilogue", drop(StoreReadWait))),
    "10 block ends before it was read": ("exit", "finish", broken(A, "compute", "last", drop(StoreReadWait))),
    "11 store without a barrier": ("race", "finish", broken(G, "compute", "epilogue", drop(Sync, 1))),
    "12 more bytes than were copied": ("unwritten", "compute", broken(G, "load", "body", change(AsyncCopy, to={"to": Place("a", bytes=64)}))),
    "13 scratch shared by roles": ("race", "load", broken(M, "load", "body", before(AsyncCopy, Read(Place("sums"), hook="load")))),
    "14 whole tile written by every warp": ("race", "compute", broken(M, "compute", "body", change(Write, to={"place": Place("sums")}))),
    "15 store by every warp": ("duplicate", "finish", broken(G, "compute", "epilogue", change(StoreAsync, to={"by": "each", "adds": True}))),
    "18 parity of arrived": ("race", "compute", broken(G, "compute", "body", change(Wait, to={"lag": 1}, sem="a.arrived"))),
    "18 parity of released": ("deadlock", "load", broken(G, "load", "body", change(Wait, to={"lag": 0}, sem="a.released"))),
    "18 two uses early": ("race", "load", broken(G, "load", "body", change(Wait, to={"lag": 2}, sem="a.released"))),
    "read before it arrived": ("race", "compute", broken(G, "compute", "body", drop(Wait, sem="b.arrived"))),
    "overwritten before release": ("race", "load", broken(G, "load", "body", drop(Wait, sem="b.released"))),
    "finish over live stages": ("race", "load", broken(G, "load", "body", drop(Wait, sem="c.done"))),
    "finish while a warp multiplies": ("race", "finish", broken(G, "compute", "epilogue", drop(Sync))),
    "copy stored before all have written": ("race", "store", broken(R, "compute", "body", change(Arrive, to={"by": "one", "count": 8}, sem="y.arrived")).with_semaphore("y.arrived", count=16)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault):
    kind, who, pipeline = FAULTS[fault]
    found = check(pipeline)
    assert kind in {f.kind for f in found}, found
    said = next(f for f in found if f.kind == kind)
    assert who in said.message, said.message
    with pytest.raises(PipelineError, match=kind):
        verify(pipeline)


def test_findings_name_hook_and_line():
    found = check(FAULTS["9 released before the product retired"][2])
    race = next(f for f in found if f.kind == "race")
    assert "kernel.py:9" in race.message and "retired" in race.message
    assert {loc.line for loc in race.locs} & {5, 9} and "compute" in race.hooks


@pytest.mark.parametrize(
    ("number", "make", "says"),
    [
        (7, lambda: G.with_role("compute", registers=248), "65536"),
        (7, lambda: G.with_role("load", warps=3), "whole warpgroups"),
        (7, lambda: G.with_role("load", registers=25), "multiple of 8"),
        (0, lambda: p.gemm(5), "227|232448"),
        (0, lambda: replace(G, rings=(Ring("a", 17, 16), *G.rings[1:])), "17 stages"),
        (0, lambda: replace(G, tiles=(Tile("c", 2**20, over="b"),)), "lies over b"),
        (0, lambda: p.gemm(consumer_warps=6), "multiple of 4"),
        (0, lambda: G.with_role("load", body=(Wait("zzz"),)), "no such semaphore"),
        (0, lambda: G.with_role("load", body=(Read(Place("zzz")),)), "neither a ring"),
    ],
)
def test_what_does_not_fit_is_refused(number, make, says):
    with pytest.raises(PipelineError, match=says):
        make()


RING = [Ring("x", 2, 1024)]
LOAD, USE = (AsyncCopy(Place("x"), 1024),), (Mma(1, (Place("x"),)),)


@pytest.mark.parametrize(
    ("roles", "tiles", "says"),
    [
        ([Role("a", 1, body=USE)], (), "no role fills ring x"),
        ([Role("a", 1, body=LOAD)], (), "nobody reads ring x"),
        ([Role("a", 1, body=LOAD + USE)], (), "fills ring x and reads it"),
        ([Role("a", 1, body=LOAD), Role("b", 1, body=LOAD), Role("c", 1, body=USE)], (), "a and b fills"),
        ([Role("a", 1, body=LOAD), Role("b", 1, body=(*USE, Wait("x.arrived")))], (), "leave it out"),
        ([Role("a", 1, body=(*LOAD, Write(Place("t")))), Role("b", 1, body=(*USE, Read(Place("t"))))], (Tile("t", 16),), "shared by a and b"),
        ([Role("a", 1, body=LOAD), Role("b", 1, body=(*USE, Write(Place("t"))))], (Tile("t", 16, over="x"),), "touched"),
        ([Role("a", 1, body=LOAD), Role("b", 1, body=USE, epilogue=(Write(Place("t")),)), Role("c", 1, body=USE)], (Tile("t", 16, over="x"),), "memory of its own"),
        ([Role("a", 1, body=LOAD), Role("b", 1, body=(Mma(1, (Place("x"),), when=When(2, 1)),))], (), "depending on the iteration|nobody|gets"),
    ],
)  # fmt: skip
def test_hooks_that_cannot_be_derived_are_refused(roles, tiles, says):
    with pytest.raises(PipelineError, match=says):
        made = derive("bad", RING, roles, tiles)
        verify(made)


def test_a_short_task_cannot_lose_a_phase():
    """ThunderKittens' producer waits for the last finish after its loop: then one bit may lie.

    With fewer iterations than safe stages, this task's finish can complete before the wait for
    the last one, and the producer waits forever.
    """
    late = broken(G, "load", "body", drop(Wait, 1, sem="c.done"))
    late = late.with_role("load", epilogue=(Wait("c.done", 0, 1, by="one", when=When(fewer=2)),))
    assert check(G) == []
    assert any(f.kind == "phase" and "c.done" in f.message for f in check(late))


def test_order_is_a_graph():
    import networkx as nx

    graph = Run(replace(G, iterations=3), 1).graph()
    assert nx.is_directed_acyclic_graph(graph)
    assert {d["role"] for _, d in graph.nodes(data=True)} == {"load", "compute"}


def test_a_larger_unrolling_finds_nothing_new():
    for fault, (_, _, pipeline) in FAULTS.items():
        if len(pipeline.roles) > 2:
            continue
        far = replace(pipeline, iterations=bound(pipeline) + 3)
        more = {f.kind for f in check_once(far, enough_tasks(pipeline) + 1)}
        assert more <= {f.kind for f in check(pipeline)} | {"race", "phase"}, fault
        assert more, fault
    assert check_once(replace(G, iterations=bound(G) * 2), enough_tasks(G) + 1) == []


def test_cp_async_without_a_wait_is_a_race():
    copy = AsyncCopy(Place("x", split=True), 64)
    body = (copy, CopyWait(), Sync(1, 2), Read(Place("x")), Sync(1, 2))
    role = Role("all", 2, body=body)
    whole = Pipeline("copies", (), (role,), (), (Tile("x", 1024),))
    assert check(whole) == []
    assert [f.kind for f in check(broken(whole, "all", "body", drop(CopyWait)))] != []
    assert [f.kind for f in check(broken(whole, "all", "body", drop(Sync)))] != []


def test_a_slow_ring_and_a_prefetch():
    rings = [Ring("x", 3, 1024), Ring("w", 2, 1024, every=2)]
    load = [AsyncCopy(Place("x"), 1024), AsyncCopy(Place("w"), 1024)]
    compute = [Mma(1, (Place("x"), Place("w")))]
    slow = lcf("slow", rings=rings, load=load, compute=compute, iterations=6)
    assert check(slow) == []
    assert sum(1 for s in slow.steps(slow.role("load"), 1) if isinstance(s.event, AsyncCopy)) == 9
    with pytest.raises(PipelineError, match="every 2"):
        lcf("slow", rings=rings, load=load, compute=compute, iterations=5)


def test_checking_is_quick():
    start = time.process_time()
    check(p.attention())
    assert time.process_time() - start < 5
