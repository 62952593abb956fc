"""Races and deadlocks of a pipeline, found before anything is compiled, said as sentences.

How many iterations are enough. Stages of a ring are alike, so an event of iteration ``i`` and one
of iteration ``j`` are ordered or not by ``j - i`` alone once every ring has been filled for the
first time; and what is ordered against the next use of a stage is ordered against all later ones.
So it is enough to look at one long task, of twice the iterations that fill the largest ring plus
how far any event looks ahead (:func:`bound`), and at tasks of every length that ends before the
ring has been filled (:func:`lengths`); all in as many tasks as it takes to use each ring that is
filled once a task twice, and one more. A tile over a ring makes stages unlike, but
that ring restarts with each task, so its tasks are alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import networkx as nx

from codegen.ir import Loc
from tkpy.pipeline.events import (
    Arrive,
    AsyncCopy,
    Event,
    Expect,
    Mma,
    StoreAsync,
    Sync,
    Wait,
    places,
)
from tkpy.pipeline.graph import Access, Phase, Run, Thread
from tkpy.pipeline.model import Pipeline, PipelineError, Step


@dataclass(frozen=True)
class Finding:
    """One mistake.

    Attributes:
        kind: race, deadlock, arrivals, bytes, phase, barrier, unwritten, exit or duplicate.
        message: a sentence that names roles, hooks and lines, and the fix.
        hooks: the hooks that cause it.
        locs: their lines, where known.
    """

    kind: str
    message: str
    hooks: tuple[str, ...] = ()
    locs: tuple[Loc, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def verify(pipeline: Pipeline) -> None:
    """Raises PipelineError that lists what :func:`check` finds."""
    found = check(pipeline)
    if found:
        raise PipelineError(f"{pipeline.name}: " + "\n".join(map(str, found)))


def check(pipeline: Pipeline) -> list[Finding]:
    """What is wrong with a pipeline for any number of iterations; an empty list if nothing is.

    Where a count of arrivals or bytes is wrong, that is all that is reported: everything else
    would follow from it.
    """
    found: dict[tuple, Finding] = {}
    for n in lengths(pipeline):
        for finding in check_once(replace(pipeline, iterations=n), enough_tasks(pipeline)):
            found.setdefault((finding.kind, finding.hooks, finding.locs, _shape(finding)), finding)
        if found:
            break
    return list(found.values())


def check_once(pipeline: Pipeline, tasks: int) -> list[Finding]:
    """What is wrong in a run of so many tasks with the pipeline's own number of iterations."""
    duplicates = list(_duplicates(pipeline))
    if duplicates:
        return duplicates
    run = Run(pipeline, tasks)
    counted = list(_counts(run))
    if counted:
        return counted
    found = list(_barriers(run)) or list(_deadlocks(run))
    found += list(_phases(run))
    races = list(_races(run))
    found += races
    found += [f for f in _contents(run) if not races]
    found += list(_exits(run)) if not run.stuck else []
    return found


def lengths(pipeline: Pipeline) -> list[int]:
    """The numbers of iterations that are looked at, the longest first."""
    longest, every = bound(pipeline), _every(pipeline)
    short = longest // 2 + every
    return [longest, *range(short // every * every, 0, -every)]


def _every(pipeline: Pipeline) -> int:
    events = [e for role in pipeline.roles for e in role.events()]
    return math.lcm(*(r.every for r in pipeline.rings), *(e.when.every for e in events))


def bound(pipeline: Pipeline) -> int:
    """How many iterations of a task are enough to see every mistake (see this module)."""
    rings = [r for r in pipeline.rings if r.per != "task"]
    fill = max((-(-r.stages // r.rate) * r.every for r in rings), default=1)
    events = [e for role in pipeline.roles for e in role.events()]
    turns = [abs(t) for e in events for t in _turns(e)]
    ahead = max([*turns, *(e.when.more for e in events), 0])
    every = _every(pipeline)
    at = max((e.when.at or 0 for e in events), default=0)
    enough = 2 * fill + ahead + max(every, at + 1)
    return -(-enough // every) * every


def enough_tasks(pipeline: Pipeline) -> int:
    slow = [r.stages for r in pipeline.rings if r.per == "task"]
    return 2 * math.lcm(max(slow, default=1), *(r.tasks[0] for r in pipeline.roles)) + 1


def _turns(event: Event) -> Iterator[int]:
    for place, _ in places(event):
        yield place.turn
    if isinstance(event, Wait | Arrive | Expect):
        yield event.turn


def _shape(finding: Finding) -> str:
    return "".join(c for c in finding.message if not c.isdigit())


# Sentences


def _who(thread: Thread, step: Step) -> str:
    event = step.event
    hook = event.hook or step.part
    line = f" ({event.loc.file}:{event.loc.line})" if event.loc else ""
    role = thread.role.name
    return f"{role}'s {hook}{line}" if hook != role else f"{role}{line}"


def _finding(kind: str, message: str, *steps: Step) -> Finding:
    hooks = tuple(dict.fromkeys(s.event.hook or s.part for s in steps))
    locs = tuple(dict.fromkeys(s.event.loc for s in steps if s.event.loc))
    return Finding(kind, message, hooks, locs)


def _deed(access: Access) -> str:
    match access.step.event:
        case AsyncCopy():
            return "copies into"
        case Mma(asynchronous=True):
            return "multiplies from"
        case StoreAsync():
            return "stores from"
    return "writes" if access.writes else "reads"


def _thing(access: Access) -> str:
    if access.fill is None:
        return access.part
    return f"stage {access.fill[0]} of {access.part}"


# Checks


def _duplicates(pipeline: Pipeline) -> Iterator[Finding]:
    for role in pipeline.roles:
        for event in role.events():
            one = isinstance(event, StoreAsync) or (
                isinstance(event, AsyncCopy) and event.sem is not None
            )
            if one and event.by == "each" and role.warps > 1:
                what = "adds its tile" if getattr(event, "adds", False) else "is issued"
                line = f" ({event.loc.file}:{event.loc.line})" if event.loc else ""
                yield Finding(
                    "duplicate",
                    f"{role.name}'s {event.hook or 'copy'}{line} {what} {role.warps} times, once "
                    'for each warp\n  fix: by="one", an elected thread',
                    (event.hook,),
                    (event.loc,) if event.loc else (),
                )


def _counts(run: Run) -> Iterator[Finding]:
    """Each phase must get exactly the arrivals it counts and the bytes it expects."""
    arrivals: dict[Phase, list[tuple[Thread, Step, int]]] = {}
    expected: dict[Phase, int] = {}
    copied: dict[Phase, int] = {}
    causes: dict[Phase, list[tuple[Thread, Step]]] = {}
    for thread in run.threads:
        for step in thread.steps:
            event = step.event
            if isinstance(event, Arrive | Expect):
                phase = run.phase(step, event.sem, event.turn)
                count = event.count if isinstance(event, Arrive) else 1
                arrivals.setdefault(phase, []).append((thread, step, count * thread.weight))
                if isinstance(event, Expect):
                    expected[phase] = expected.get(phase, 0) + event.bytes * thread.weight
            elif isinstance(event, AsyncCopy) and event.sem is not None:
                phase = run.phase(step, event.sem, event.to.turn)
                copied[phase] = copied.get(phase, 0) + event.bytes * thread.weight
                causes.setdefault(phase, []).append((thread, step))
    waited = {
        run.phase(s, s.event.sem, s.event.turn, s.event.lag)
        for t in run.threads
        for s in t.steps
        if isinstance(s.event, Wait)
    }
    told = set()
    for phase in sorted(set(arrivals) | set(copied) | waited):
        sem, _, use = phase
        came = sum(n for *_, n in arrivals.get(phase, ()))
        count = run.pipeline.semaphore(sem).count
        by = [(t, s) for t, s, _ in arrivals.get(phase, ())] + causes.get(phase, [])
        who = " and ".join(dict.fromkeys(_who(t, s) for t, s in by)) or "nobody"
        steps = [s for _, s in by]
        if use < 0 or sem in told or (came == count and _same(phase, expected, copied)):
            continue
        if came == 0 and phase not in copied:
            continue  # nobody arrives: the wait is a deadlock and is told as one
        told.add(sem)
        if came != count:
            then = "who waits for it waits forever" if came < count else "it completes early"
            yield _finding(
                "arrivals",
                f"{sem} counts {count} arrivals a phase and gets {came}, from {who}: "
                f"{then}\n  fix: {came} arrivals, or one for each of {count}",
                *steps,
            )
        else:
            want, got = expected.get(phase, 0), copied.get(phase, 0)
            yield _finding(
                "bytes",
                f"{sem} expects {want} bytes and {got} are copied, by {who}: "
                + ("it never completes" if got < want else "it completes before they have landed")
                + f"\n  fix: expect {got}",
                *steps,
            )


def _same(phase: Phase, expected: dict, copied: dict) -> bool:
    return expected.get(phase, 0) == copied.get(phase, 0)


def _barriers(run: Run) -> Iterator[Finding]:
    for thread, step, barrier in run.barrier_faults[:1]:
        event = step.event
        assert isinstance(event, Sync)
        yield _finding(
            "barrier",
            f"named barrier {event.barrier}: {_who(thread, step)} comes to it for {event.warps} "
            f"warps, while {barrier.come} have come to it for {barrier.warps}\n"
            "  fix: an id of its own for each set of warps",
            step,
        )
    for node, key, generation in run.barrier_nodes:
        if generation == 0:
            continue
        done = run.barriers[key][generation - 1].done
        if done is not None and not run.ordered(done, node):
            index, step = run.step_of(node)
            yield _finding(
                "barrier",
                f"named barrier {key}: {_who(run.threads[index], step)} may come to it again "
                "before all have left it\n  fix: an id of its own for each set of warps",
                step,
            )
            return


def _deadlocks(run: Run) -> Iterator[Finding]:
    stuck = run.stuck
    if not stuck:
        return
    waits = nx.DiGraph()
    for thread in stuck:
        waits.add_node(thread.role.name)
        for other in _needed(run, thread):
            waits.add_edge(thread.role.name, other)
    told = set()
    for thread in stuck:
        step = thread.steps[thread.at]
        if thread.role.name in told:
            continue
        told.add(thread.role.name)
        event = step.event
        what = (
            f"{event.sem} ({_meaning(event)})"
            if isinstance(event, Wait)
            else f"barrier {getattr(event, 'barrier', '?')}"
        )
        others = sorted(set(waits.successors(thread.role.name)))
        why = f"which needs {' and '.join(others)}" if others else "at which nobody arrives"
        yield _finding(
            "deadlock",
            f"{_who(thread, step)} waits forever in {step.where} for {what}, {why}",
            step,
        )
    try:
        cycle = [a for a, _ in nx.find_cycle(waits)]
    except nx.NetworkXNoCycle:
        return
    if len(cycle) > 1:
        yield Finding("deadlock", f"{' waits for '.join([*cycle, cycle[0]])}", tuple(cycle))


def _meaning(event: Wait) -> str:
    return "a stage to be released" if event.lag else "a stage to arrive"


def _needed(run: Run, thread: Thread) -> Iterator[str]:
    """Roles whose later events the thread waits for."""
    step = thread.step
    assert step is not None
    event = step.event
    for other in run.threads:
        for later in other.steps[other.at :]:
            then = later.event
            if isinstance(event, Wait) and isinstance(then, Arrive | Expect):
                meant = run.phase(step, event.sem, event.turn, event.lag)
                serves = run.phase(later, then.sem, then.turn) == meant
            else:
                here = getattr(event, "barrier", None)
                serves = other is not thread and getattr(then, "barrier", -1) == here
            if serves:
                yield other.role.name


def _phases(run: Run) -> Iterator[Finding]:
    """The hardware sees one bit of a phase: two too early or too late looks the same."""
    for node, (sem, stage, use) in run.waits:
        earlier, later = (sem, stage, use - 1), (sem, stage, use + 1)
        index, step = run.step_of(node)
        if (
            use - 1 >= 0
            and earlier in run.complete
            and not run.ordered(run.complete[earlier], node)
        ):
            yield _finding(
                "phase",
                f"{_who(run.threads[index], step)} may wait for {sem} two uses early and pass at "
                "once: a phase is one bit\n  fix: wait for each use of a stage",
                step,
            )
        # Before its first use a stage counts as released once, and not twice.
        gone = later in run.complete and not run.ordered(node, run.complete[later])
        if gone or use < -1:
            yield _finding(
                "phase",
                f"{_who(run.threads[index], step)} may find that {sem} has gone on by two phases, "
                "and wait forever: a phase is one bit\n  fix: release a stage after waiting for it",
                step,
            )
    for phase, nodes in run.arrivals.items():
        earlier = (phase[0], phase[1], phase[2] - 1)
        if phase[2] < 1:
            continue
        for node in nodes:
            index, step = run.step_of(node)
            late = earlier not in run.complete or not run.ordered(run.complete[earlier], node)
            if late and not run.stuck:
                yield _finding(
                    "phase",
                    f"{_who(run.threads[index], step)} may arrive at {phase[0]} before its "
                    "previous phase is complete, and be counted there\n"
                    "  fix: wait for the stage before arriving for its next use",
                    step,
                )
                break


def _races(run: Run) -> Iterator[Finding]:
    """Two touches of the same bytes, one of them a write, neither before the other."""
    told = set()
    by_start = sorted(run.accesses, key=lambda a: a.low)
    for i, a in enumerate(by_start):
        for b in by_start[i + 1 :]:
            if b.low >= a.high:
                break
            if not (a.writes or b.writes) or (a.thread == b.thread and a.step is b.step):
                continue
            if run.ordered(a.end, b.start) or run.ordered(b.end, a.start):
                continue
            first, then = (a, b) if (a.start, a.thread) <= (b.start, b.thread) else (b, a)
            key = (id(first.step.event), id(then.step.event))
            if key in told or key[::-1] in told:
                continue
            told.add(key)
            yield _finding("race", _race(run, first, then), first.step, then.step)


def _race(run: Run, first: Access, then: Access) -> str:
    a, b = run.threads[first.thread], run.threads[then.thread]
    while_ = (
        f"{_who(b, then.step)} {_deed(then)} {_thing(then)} in {then.step.where} while "
        f"{_who(a, first.step)} may still be at it: it {_deed(first)} {_thing(first)} "
        f"in {first.step.where}"
    )
    return f"{while_}\n  {_cause(run, first, then)}"


def _cause(run: Run, first: Access, then: Access) -> str:
    issued = run.ordered(first.start, then.start)
    one, two = first.step.event, then.step.event
    if first.part != then.part:
        return f"{then.part} lies over {first.part}: one must be free before the other is written"
    if issued and isinstance(one, Mma):
        return "the stage is released before the product that reads it has retired: wait for it"
    if issued and isinstance(one, StoreAsync):
        return "the store still reads its source: wait until it has read it"
    if issued and isinstance(one, AsyncCopy):
        return "the copy has not landed: wait for the stage to arrive"
    if isinstance(one, AsyncCopy) and not then.writes:
        return "nothing makes the reader wait until the copy has landed"
    if (
        first.thread != then.thread
        and run.threads[first.thread].role is run.threads[then.thread].role
    ):
        stored = isinstance(one, StoreAsync) or isinstance(two, StoreAsync)
        between = "the store" if stored else "the next touch"
        return f"the warps of a role are not in step: a barrier is missing before {between}"
    if first.fill is None:
        return "a tile has no semaphore, and two roles share it: make it a ring"
    return "the stage is written again before it is released"


def _contents(run: Run) -> Iterator[Finding]:
    """A read must find the fill it means, whole."""
    told = set()
    writes = [a for a in run.accesses if a.writes]
    for read in run.accesses:
        if read.writes or id(read.step.event) in told:
            continue
        seen = [
            w
            for w in writes
            if w.low < read.high and read.low < w.high and run.ordered(w.end, read.start)
        ]
        mine = [w for w in seen if (w.part, w.fill) == (read.part, read.fill)]
        after = [
            w
            for w in seen
            if w not in mine and mine and all(run.ordered(m.end, w.start) for m in mine)
        ]
        who = _who(run.threads[read.thread], read.step)
        if after:
            told.add(id(read.step.event))
            last = after[-1]
            yield _finding(
                "race",
                f"{who} reads {_thing(read)} in {read.step.where}, which "
                f"{_who(run.threads[last.thread], last.step)} has overwritten with {_thing(last)}",
                last.step,
                read.step,
            )
        elif not _covered(read, mine):
            told.add(id(read.step.event))
            some = "parts of " if mine else ""
            yield _finding(
                "unwritten",
                f"{who} reads {some}{_thing(read)} in {read.step.where} that nobody has written\n"
                "  fix: read the fill that has arrived, and no more bytes than it has",
                read.step,
            )


def _covered(read: Access, writes: list[Access]) -> bool:
    at = read.low
    for w in sorted(writes, key=lambda w: w.low):
        if w.low > at:
            return False
        at = max(at, w.high)
    return at >= read.high


def _exits(run: Run) -> Iterator[Finding]:
    for thread in run.threads:
        for queue, what, wait in (
            (thread.stores, "a store that still reads its source", "StoreReadWait"),
            (thread.products, "a product in flight", "MmaWait"),
            (thread.copies, "a copy in flight", "CopyWait"),
        ):
            if queue:
                _, step = run.step_of(queue[-1])
                yield _finding(
                    "exit",
                    f"{_who(thread, step)} leaves {what} when the block ends\n"
                    f"  fix: {wait}(0) at the end",
                    step,
                )
                return
