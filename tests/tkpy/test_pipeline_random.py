"""Random small pipelines, whole and broken: the checker says what every interleaving shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from explorer import Explorer, TooMany
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tkpy.pipeline.check import bound, check, check_once, enough_tasks
from tkpy.pipeline.derive import derive
from tkpy.pipeline.events import (
    Arrive,
    AsyncCopy,
    Expect,
    Mma,
    MmaWait,
    Place,
    Read,
    StoreAsync,
    StoreReadWait,
    Sync,
    Wait,
    Write,
)
from tkpy.pipeline.model import Ring, Role, Tile

N = 12  # bytes of a stage: every number of warps here divides it


@st.composite
def pipelines(draw):
    """One to three roles in a row, rings between them; then finish stores from a tile."""
    stages = [draw(st.integers(1, 2)) for _ in range(2)]
    stores = draw(st.booleans())
    rings = [Ring("x", stages[0], N, align=4)]
    use = draw(st.sampled_from(["mma", "read", "both"]))
    body = []
    if use != "read":
        body.append(Mma(1, (Place("x"),)))
    if use != "mma":
        body.append(Read(Place("x", split=draw(st.booleans()))))
    finish, tiles = (), ()
    if stores:
        rings.append(Ring("y", stages[1], N, align=4))
        body.append(Write(Place("y", split=True)))
    elif draw(st.booleans()):
        over = draw(st.sampled_from([None, "x"]))
        tiles = (Tile("t", N, over=over, align=4),)
        finish = (Write(Place("t", split=True)), StoreAsync(Place("t"), N))
    warps = draw(st.integers(1, 2))
    roles = [
        Role("load", 1, body=(AsyncCopy(Place("x"), N),)),
        Role("compute", warps, body=tuple(body), epilogue=finish),
    ]
    if stores:
        roles.append(Role("store", 1, body=(StoreAsync(Place("y"), N),)))
    made = derive("random", rings, roles, tiles, iterations=draw(st.integers(1, 3)), tasks=1)
    return replace(made, tasks=draw(st.integers(1, 2)))


@st.composite
def broken(draw):
    """A pipeline with one event left out, moved, repeated or changed."""
    whole = draw(pipelines())
    places = [
        (role.name, part, i)
        for role in whole.roles
        for part in ("body", "epilogue", "last")
        for i in range(len(getattr(role, part)))
    ]
    name, part, i = draw(st.sampled_from(places))
    events = list(getattr(whole.role(name), part))
    event = events[i]
    how = draw(st.sampled_from(["drop", "swap", "again", "change"]))
    if how == "drop":
        del events[i]
    elif how == "swap":
        assume(i + 1 < len(events))
        events[i : i + 2] = events[i + 1], events[i]
    elif how == "again":
        assume(not isinstance(event, AsyncCopy))
        events.insert(i, event)
    else:
        events[i] = draw(changes(event))
    return whole.with_role(name, **{part: tuple(events)})


def changes(event):
    match event:
        case Wait(lag=lag):
            return st.sampled_from([replace(event, lag=k) for k in (0, 1, 2) if k != lag])
        case Arrive():
            return st.just(replace(event, count=2))
        case Expect(bytes=n):
            return st.just(replace(event, bytes=n // 2))
        case MmaWait() | StoreReadWait():
            return st.just(replace(event, pending=1))
        case Sync():
            return st.just(replace(event, warps=event.warps + 1))
        case Write(place=place) | Read(place=place):
            return st.just(replace(event, place=replace(place, split=not place.split)))
    return st.nothing()


def agree(pipeline):
    try:
        shown = Explorer(pipeline, pipeline.tasks).fault()
    except TooMany:
        assume(False)
    found = check_once(pipeline, pipeline.tasks)
    assert bool(found) == (shown is not None), (shown, [str(f) for f in found])


quiet = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@given(pipelines())
@settings(quiet, max_examples=8)
def test_what_is_derived_has_no_fault(pipeline):
    assert check_once(pipeline, pipeline.tasks) == []
    agree(pipeline)


@given(broken())
@settings(quiet, max_examples=30)
def test_checker_and_explorer_agree(pipeline):
    agree(pipeline)


def enough(pipeline):
    """``check`` looks at a few lengths; every length up to twice its bound shows nothing else."""
    few = bool(check(pipeline))
    more = any(
        check_once(replace(pipeline, iterations=n), tasks)
        for n in range(1, 2 * bound(pipeline))
        for tasks in (1, enough_tasks(pipeline) + 1)
    )
    assert few == more


@given(broken())
@settings(quiet, max_examples=20)
def test_the_lengths_that_are_checked_are_enough(pipeline):
    enough(pipeline)


@pytest.mark.slow
@given(broken())
@settings(quiet, max_examples=1000)
def test_the_lengths_that_are_checked_are_enough_at_length(pipeline):
    enough(pipeline)


@pytest.mark.slow
@given(broken())
@settings(quiet, max_examples=3000)
def test_checker_and_explorer_agree_at_length(pipeline):
    agree(pipeline)


def test_the_generator_breaks_things():
    """Most changes are faults, and some are not: otherwise the comparison shows nothing."""
    seen = []

    @given(broken())
    @settings(quiet, max_examples=60, derandomize=True, database=None)
    def look(pipeline):
        seen.append(bool(check_once(pipeline, pipeline.tasks)))

    look()
    assert 0.3 < sum(seen) / len(seen) < 0.99
