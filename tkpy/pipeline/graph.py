"""The happens-before order of a pipeline's events, by running it once.

Every wait names the phase that it means, and phases only ever advance, so which arrival serves
which wait does not depend on who is fast: one run finds the order that all runs share, provided
that every phase gets the arrivals it counts, neither fewer nor more, nor any of them early. That
is checked first, in :mod:`tkpy.pipeline.check`.

Of a group's warps, three stand for all: the elected one and two others (two, so that a race among
those that are not elected shows). They arrive with the weight of the warps they stand for.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import networkx as nx

from tkpy.pipeline.events import (
    Arrive,
    AsyncCopy,
    CopyWait,
    Expect,
    Mma,
    MmaWait,
    Place,
    StoreAsync,
    StoreReadWait,
    Sync,
    Wait,
    places,
)
from tkpy.pipeline.model import Pipeline, Role, Step

Phase = tuple[str, int, int]  # semaphore, stage, use


@dataclass
class Thread:
    """A warp, or several that do the same."""

    role: Role
    group: int
    lane: int
    lanes: int
    weight: int
    steps: list[Step]
    at: int = 0
    before: list[int] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    stores: list[int] = field(default_factory=list)
    waiting: tuple | None = None  # the barrier's generation it has come to

    @property
    def step(self) -> Step | None:
        return self.steps[self.at] if self.at < len(self.steps) else None


@dataclass(frozen=True)
class Access:
    """Shared memory touched from node ``start`` until node ``end``."""

    start: int
    end: int
    low: int
    high: int
    writes: bool
    part: str  # the ring or tile
    fill: tuple[int, int] | None  # of a ring: stage and use
    step: Step
    thread: int


@dataclass
class Barrier:
    """One generation of a named barrier."""

    warps: int
    come: int = 0
    nodes: list[int] = field(default_factory=list)
    done: int | None = None


class Run:
    """One run of ``tasks`` tasks, and the order it shows.

    Attributes:
        threads: with ``step`` set where one is stuck.
        ancestors: of each node, a bit set of the nodes that happen before it.
        accesses: all of shared memory.
        complete: the node at which each phase completed.
        phase_of: of each node that arrives or lands, the phase.
        waits: (node, phase meant) of each wait.
        early: (node, phase) of arrivals that found an earlier phase incomplete.
        barrier_faults: steps whose barrier's counts disagree.
    """

    def __init__(self, pipeline: Pipeline, tasks: int):
        self.pipeline, self.tasks = pipeline, tasks
        self.threads = _threads(pipeline, tasks)
        self.ancestors: list[int] = []
        self.steps: list[tuple[int, Step | None]] = []
        self.edges: list[tuple[int, int]] = []
        self.accesses: list[Access] = []
        self.arrivals: dict[Phase, list[int]] = defaultdict(list)
        self.arrived: dict[Phase, int] = defaultdict(int)
        self.expected: dict[Phase, int] = defaultdict(int)
        self.landed: dict[Phase, int] = defaultdict(int)
        self.complete: dict[Phase, int] = {}
        self.waits: list[tuple[int, Phase]] = []
        self.barriers: dict[int, list[Barrier]] = defaultdict(list)
        self.barrier_faults: list[tuple[Thread, Step, Barrier]] = []
        self.barrier_nodes: list[tuple[int, int, int]] = []  # node, barrier, generation
        self._run()

    @property
    def stuck(self) -> list[Thread]:
        return [t for t in self.threads if t.step is not None]

    def ordered(self, first: int, then: int) -> bool:
        """Whether node ``first`` happens before node ``then``, or is it."""
        return first == then or bool(self.ancestors[then] >> first & 1)

    def step_of(self, node: int) -> tuple[int, Step]:
        """The thread and the step of a node that is one."""
        index, step = self.steps[node]
        assert step is not None
        return index, step

    def graph(self) -> nx.DiGraph:
        """The order as a graph: nodes have ``role``, ``group``, ``warp`` and ``step``."""
        graph: nx.DiGraph = nx.DiGraph()
        for node, (thread, step) in enumerate(self.steps):
            t = self.threads[thread]
            graph.add_node(node, role=t.role.name, group=t.group, warp=t.lane, step=step)
        graph.add_edges_from(self.edges)
        return graph

    # Running

    def _node(self, thread: int, step: Step | None, before: list[int]) -> int:
        node, seen = len(self.ancestors), 0
        for b in before:
            seen |= self.ancestors[b] | 1 << b
            self.edges.append((b, node))
        self.ancestors.append(seen)
        self.steps.append((thread, step))
        return node

    def _run(self) -> None:
        moved = True
        while moved:
            moved = False
            for index, thread in enumerate(self.threads):
                while thread.step is not None and self._advance(index, thread):
                    moved = True

    def phase(self, step: Step, sem: str, turn: int, lag: int = 0) -> Phase:
        ring = self.pipeline.semaphore(sem).ring
        fill = self.pipeline.fill_of(ring, step, turn)
        stage, use = self.pipeline.slot(ring, step.task, fill)
        return sem, stage, use - lag

    def _advance(self, index: int, thread: Thread) -> bool:
        """Does the thread's next event, if nothing stands in its way."""
        step = thread.steps[thread.at]
        event, before = step.event, list(thread.before)
        if isinstance(event, Wait):
            phase = self.phase(step, event.sem, event.turn, event.lag)
            if phase[2] >= 0:
                if phase not in self.complete:
                    return False
                before.append(self.complete[phase])
        if isinstance(event, Sync):
            done = self._barrier(index, thread, step, event)
            if done is None:
                return False
            before += done
        if isinstance(event, CopyWait):
            before += _retire(thread.copies, event.pending)
        if isinstance(event, MmaWait):
            before += _retire(thread.products, event.pending)
        if isinstance(event, StoreReadWait):
            before += _retire(thread.stores, event.pending)
        node = self._node(index, step, before)
        thread.before = [node]
        thread.at += 1
        thread.waiting = None
        self._effects(index, thread, step, node)
        return True

    def _effects(self, index: int, thread: Thread, step: Step, node: int) -> None:
        event, end = step.event, node
        if isinstance(event, Wait):
            self.waits.append((node, self.phase(step, event.sem, event.turn, event.lag)))
        elif isinstance(event, Arrive):
            self._arrive(self.phase(step, event.sem, event.turn), node, event.count, thread)
        elif isinstance(event, Expect):
            phase = self.phase(step, event.sem, event.turn)
            self.expected[phase] += event.bytes * thread.weight
            self._arrive(phase, node, 1, thread)
        elif isinstance(event, AsyncCopy):
            end = self._node(index, step, [node])
            if event.sem is None:
                thread.copies.append(end)
            else:
                phase = self.phase(step, event.sem, event.to.turn)
                self.landed[phase] += event.bytes * thread.weight
                self.arrivals[phase].append(end)
                self._settle(phase, index)
        elif isinstance(event, Mma) and event.asynchronous:
            end = self._node(index, step, [node, *thread.products[-1:]])
            thread.products.append(end)
        elif isinstance(event, StoreAsync):
            end = self._node(index, step, [node])
            thread.stores.append(end)
        for place, writes in places(event):
            self._access(thread, index, step, node, end, place, writes)

    def _arrive(self, phase: Phase, node: int, count: int, thread: Thread) -> None:
        self.arrivals[phase].append(node)
        self.arrived[phase] += count * thread.weight
        self._settle(phase, self.steps[node][0])

    def _settle(self, phase: Phase, index: int) -> None:
        enough = self.arrived[phase] >= self.pipeline.semaphore(phase[0]).count
        if enough and phase not in self.complete and self.landed[phase] >= self.expected[phase]:
            self.complete[phase] = self._node(index, None, list(self.arrivals[phase]))

    def _barrier(self, index: int, thread: Thread, step: Step, event: Sync) -> list[int] | None:
        """Nodes that precede passing the barrier; None: it is not complete."""
        key = event.barrier + (thread.group if event.scope == "group" else 0)
        generations = self.barriers[key]
        if thread.waiting is None:
            if not generations or generations[-1].done is not None:
                generations.append(Barrier(event.warps))
            now = generations[-1]
            if now.warps != event.warps:
                self.barrier_faults.append((thread, step, now))
            node = self._node(index, step, list(thread.before))
            self.barrier_nodes.append((node, key, len(generations) - 1))
            now.come += thread.weight
            now.nodes.append(node)
            if now.come > now.warps:
                self.barrier_faults.append((thread, step, now))
            if now.come >= now.warps:
                now.done = self._node(index, None, now.nodes)
            thread.waiting = (key, len(generations) - 1, node)
        key, generation, node = thread.waiting
        done = generations[generation].done
        if event.only_arrive:
            return [node]
        return None if done is None else [node, done]

    def _access(self, thread, index, step, start, end, place: Place, writes: bool) -> None:
        low, high, fill = self.bytes_of(thread, step, place)
        self.accesses.append(Access(start, end, low, high, writes, place.name, fill, step, index))

    def bytes_of(self, thread: Thread, step: Step, place: Place):
        """First and last byte and, for a ring, (stage, use)."""
        p, fill = self.pipeline, None
        start = p.layout[place.name]
        ring, tile = p.ring(place.name), p.tile(place.name)
        if ring is not None:
            fill = p.slot(ring.name, step.task, p.fill_of(ring.name, step, place.turn))
            start += fill[0] * ring.stride
            size = ring.bytes
        else:
            assert tile is not None
            start += tile.stride * (thread.group % tile.copies)
            size = tile.bytes
        low = start + place.offset
        size = size - place.offset if place.bytes is None else place.bytes
        if not place.split:
            return low, low + size, fill
        groups = 1 if tile is not None and tile.copies > 1 else thread.role.groups
        group = thread.group if groups > 1 else 0
        lanes = thread.lanes if step.event.by == "each" else 1
        lane = thread.lane if step.event.by == "each" else 0
        parts, part = groups * lanes, group * lanes + lane
        return low + size * part // parts, low + size * (part + 1) // parts, fill


def _retire(queue: list[int], pending: int) -> list[int]:
    """Takes all but the last ``pending`` from the queue."""
    cut = len(queue) - pending if pending else len(queue)
    done = queue[: max(0, cut)]
    del queue[: max(0, cut)]
    return done


def _threads(pipeline: Pipeline, tasks: int) -> list[Thread]:
    threads = []
    for role in pipeline.roles:
        steps = list(pipeline.steps(role, tasks))
        lanes = min(role.warps, 3)
        for group in range(role.groups):
            for lane in range(lanes):
                weight = 1 if lane < 2 else role.warps - 2
                own = [s for s in steps if lane == 0 or s.event.by == "each"]
                threads.append(Thread(role, group, lane, lanes, weight, own))
    return [t for t in threads if t.steps]
