"""Correct pipelines of five kernels, and how to break one in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from codegen.ir import Loc
from tkpy.pipeline.derive import lcf, lcsf, pingpong
from tkpy.pipeline.events import (
    AsyncCopy,
    Compute,
    Event,
    Mma,
    Place,
    Read,
    StoreAsync,
    Write,
)
from tkpy.pipeline.model import Pipeline, Ring, Tile


def line(number: int, file: str = "kernel.py") -> Loc:
    return Loc(file, number, 0, "", 0)


def gemm(stages: int = 4, iterations: int = 16, tasks: int = 3, **more) -> Pipeline:
    a, b = 128 * 64 * 2, 64 * 256 * 2
    return lcf(
        "gemm",
        rings=[Ring("a", stages, a), Ring("b", stages, b)],
        load=[AsyncCopy(Place("a"), a, loc=line(5)), AsyncCopy(Place("b"), b, loc=line(6))],
        compute=[Mma(2 * 64 * 256 * 64, (Place("a"), Place("b")), loc=line(9))],
        finish=[
            Write(Place("c", split=True), loc=line(12)),
            StoreAsync(Place("c", split=True), 64 * 256 * 2, loc=line(13)),
        ],
        tiles=[Tile("c", 128 * 256 * 2, over="b")] if stages > 1 else [Tile("c", 128 * 256 * 2)],
        iterations=iterations,
        tasks=tasks,
        **more,
    )


def attention(iterations: int = 6, tasks: int = 2, groups: int = 3, d: int = 128) -> Pipeline:
    tile = 128 * d * 2
    return lcf(
        "attention",
        rings=[
            Ring("q", 1, groups * 64 * d * 2, per="task"),
            Ring("k", 2, tile),
            Ring("v", 2, tile),
        ],
        load=[
            AsyncCopy(Place("q"), groups * 64 * d * 2, loc=line(4)),
            AsyncCopy(Place("k"), tile, loc=line(5)),
            AsyncCopy(Place("v"), tile, loc=line(6)),
        ],
        compute=[
            Mma(2 * 64 * 128 * d, (Place("q"), Place("k")), loc=line(9)),
            Compute(flops=4 * 64 * 128, special=64 * 128, loc=line(10)),
            Mma(2 * 64 * 128 * d, (Place("v"),), loc=line(11)),
        ],
        finish=[
            Write(Place("o", split=True), loc=line(14)),
            StoreAsync(Place("o", split=True), 64 * d * 2, loc=line(15)),
        ],
        tiles=[Tile("o", groups * 64 * d * 2)],
        iterations=iterations,
        tasks=tasks,
        consumer_warps=4 * groups,
    )


def turns(iterations: int = 5, tasks: int = 2) -> Pipeline:
    """Attention of two consumers that take turns."""
    q, kv = 64 * 128 * 2, 128 * 128 * 2

    def consumer(i):
        return (
            (),
            (
                Mma(2 * 64 * 128 * 128, (Place(f"q{i}"), Place("k"))),
                Compute(special=64 * 128),
                Mma(2 * 64 * 128 * 128, (Place("v"),)),
            ),
            (Write(Place(f"o{i}", split=True)), StoreAsync(Place(f"o{i}"), q)),
        )

    return pingpong(
        "turns",
        rings=[
            Ring("q0", 1, q, per="task"),
            Ring("q1", 1, q, per="task"),
            Ring("k", 2, kv),
            Ring("v", 2, kv),
        ],
        load=[
            AsyncCopy(Place("q0"), q),
            AsyncCopy(Place("q1"), q),
            AsyncCopy(Place("k"), kv),
            AsyncCopy(Place("v"), kv),
        ],
        consumers=[consumer(0), consumer(1)],
        tiles=[Tile("o0", q), Tile("o1", q)],
        iterations=iterations,
        tasks=tasks,
    )


def rotary(stages: int = 3, iterations: int = 8, tasks: int = 2) -> Pipeline:
    n = 128 * 128 * 2
    return lcsf(
        "rotary",
        rings=[Ring("x", stages, n), Ring("y", stages, n)],
        load=[AsyncCopy(Place("x"), n, loc=line(4))],
        compute=[
            Read(Place("x", split=True), n // 2, loc=line(7)),
            Compute(flops=3 * 64 * 64, loc=line(8)),
            Write(Place("y", split=True), n // 2, loc=line(9)),
        ],
        store=[StoreAsync(Place("y"), n, loc=line(12))],
        iterations=iterations,
        tasks=tasks,
    )


def layernorm(iterations: int = 8, tasks: int = 2) -> Pipeline:
    n = 16 * 1024 * 2
    return lcsf(
        "layernorm",
        rings=[Ring("x", 2, n), Ring("r", 2, n), Ring("y", 1, n), Ring("s", 1, n)],
        load=[AsyncCopy(Place("x"), n, loc=line(4)), AsyncCopy(Place("r"), n, loc=line(5))],
        compute=[
            Read(Place("x", split=True), n // 2, loc=line(8)),
            Read(Place("r", split=True), n // 2, loc=line(9)),
            Write(Place("s", split=True), n // 2, loc=line(10)),
            Compute(flops=8 * 8 * 1024, loc=line(11)),
            Write(Place("y", split=True), n // 2, loc=line(12)),
        ],
        store=[StoreAsync(Place("s"), n, loc=line(15)), StoreAsync(Place("y"), n, loc=line(16))],
        iterations=iterations,
        tasks=tasks,
    )


def mamba2(iterations: int = 6, tasks: int = 2) -> Pipeline:
    """Two heads share q and k; the running sum of the decays is in scratch."""
    n = 64 * 64 * 2
    return lcsf(
        "mamba2",
        rings=[Ring("qk", 2, 2 * n), Ring("v", 2, 2 * n), Ring("a", 2, 512), Ring("o", 2, 2 * n)],
        load=[
            AsyncCopy(Place("qk", bytes=n), n, loc=line(4)),
            AsyncCopy(Place("qk", offset=n), n, loc=line(5)),
            AsyncCopy(Place("v"), 2 * n, loc=line(6)),
            AsyncCopy(Place("a"), 512, loc=line(7)),
        ],
        compute=[
            Read(Place("a"), loc=line(10)),
            Write(Place("sums", split=True), loc=line(11)),
            Read(Place("sums"), loc=line(12)),
            Mma(2 * 64**3, (Place("qk"),), loc=line(13)),
            Compute(flops=64 * 64, special=64 * 64, loc=line(14)),
            Mma(2 * 64**3, (Place("v"),), loc=line(15)),
            Write(Place("o", split=True), n, loc=line(16)),
        ],
        store=[StoreAsync(Place("o"), 2 * n, loc=line(19))],
        tiles=[Tile("sums", 256, copies=2)],
        iterations=iterations,
        tasks=tasks,
    )


CORRECT: dict[str, Callable[[], Pipeline]] = {
    "gemm": gemm,
    "attention": attention,
    "turns": turns,
    "rotary": rotary,
    "layernorm": layernorm,
    "mamba2": mamba2,
}


# Breaking one place


def drop(kind: type[Event], nth: int = 0, **fields):
    """A change that leaves out the nth event of a kind with these fields."""
    return _at(kind, nth, fields, lambda e: ())


def change(kind: type[Event], nth: int = 0, *, to: dict, **fields):
    """A change of fields of the nth event of a kind."""
    return _at(kind, nth, fields, lambda e: (replace(e, **to),))


def before(kind: type[Event], *new: Event, nth: int = 0, **fields):
    """A change that puts events before the nth event of a kind."""
    return _at(kind, nth, fields, lambda e: (*new, e))


def after(kind: type[Event], *new: Event, nth: int = 0, **fields):
    return _at(kind, nth, fields, lambda e: (e, *new))


def _at(kind, nth, fields, make):
    def edit(events: tuple[Event, ...]) -> tuple[Event, ...]:
        out, seen = [], 0
        for e in events:
            if isinstance(e, kind) and all(getattr(e, k) == v for k, v in fields.items()):
                out += make(e) if seen == nth else (e,)
                seen += 1
            else:
                out.append(e)
        assert seen > nth, f"no such {kind.__name__}"
        return tuple(out)

    return edit


def broken(pipeline: Pipeline, role: str, part: str, *edits) -> Pipeline:
    """The pipeline with edits made to one part of one role."""
    events = getattr(pipeline.role(role), part)
    for edit in edits:
        events = edit(events)
    return pipeline.with_role(role, **{part: events})
