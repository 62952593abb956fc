"""A pipeline in time: discrete events on one multiprocessor with its share of the device.

Every group of a role is an agent that does its events in order. Copies, products, arithmetic and
special functions are servers that take one piece of work after the other, so groups contend as
they do on the machine; copies have a latency besides. What an agent waits for is a stall, with its
reason. Formulas of section 2.4 of the study of ThunderKittens' templates (steady state, fill,
hidden latency) come out as special cases, and are the tests' oracle.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field, replace

from tkpy.pipeline.device import Device
from tkpy.pipeline.events import (
    Arrive,
    AsyncCopy,
    Compute,
    CopyWait,
    Event,
    Expect,
    Load,
    Mma,
    MmaWait,
    Read,
    Store,
    StoreAsync,
    StoreReadWait,
    Sync,
    Wait,
    Write,
)
from tkpy.pipeline.model import Pipeline, PipelineError, Role, Step

#: Iterations and tasks that are simulated before the rest is extrapolated.
ITERATIONS, TASKS = 64, 4


@dataclass(frozen=True)
class Span:
    """Something that lasts, in seconds. ``kind``: a server's name, "copy", "held" or "stall"."""

    lane: str
    start: float
    end: float
    kind: str
    label: str = ""

    @property
    def length(self) -> float:
        return self.end - self.start


@dataclass
class Timeline:
    """What came of a simulation.

    Attributes:
        time: seconds until the last event.
        spans: of roles (lanes ``role`` or ``role g``) and of stages (``ring[stage]``).
        busy: seconds that each server worked.
        stalls: seconds that each lane waited, by reason.
        binding: the server that works most, or "latency" where none works three quarters.
        flops: of products, all groups.
    """

    pipeline: Pipeline
    device: Device
    time: float = 0.0
    spans: list[Span] = field(default_factory=list)
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    stalls: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    flops: float = 0.0

    @property
    def binding(self) -> str:
        if not self.busy or not self.time:
            return "latency"
        name, most = max(self.busy.items(), key=lambda kv: kv[1])
        return name if most >= 0.75 * self.time else "latency"

    def used(self, server: str) -> float:
        """The share of the time that a server works."""
        return self.busy.get(server, 0.0) / self.time if self.time else 0.0


@dataclass
class _Agent:
    role: Role
    group: int
    steps: list[Step]
    at: int = 0
    now: float = 0.0
    copies: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    stores: list[float] = field(default_factory=list)

    @property
    def lane(self) -> str:
        return self.role.name if self.role.groups == 1 else f"{self.role.name} {self.group}"


@dataclass
class _Phase:
    arrived: int = 0
    expected: int = 0
    landed: int = 0
    last: float = 0.0
    done: float | None = None


def simulate(pipeline: Pipeline, device: Device, dtype: str = "bf16") -> Timeline:
    """Runs a block's tasks on one multiprocessor.

    Raises PipelineError if it deadlocks (:func:`tkpy.pipeline.check.check` says why).
    """
    return _Simulation(pipeline, device, dtype).run()


class _Simulation:
    def __init__(self, pipeline: Pipeline, device: Device, dtype: str):
        self.p, self.d = pipeline, device
        share = 1 / device.units / pipeline.blocks_per_sm
        self.rates = {
            "matrix": device.products(dtype) * share,
            "arithmetic": device.vector * share,
            "special": device.special * share,
            "dram": device.dram * share,
            "l2": device.l2 * share,
            "shared": device.shared_bandwidth * share,
        }
        self.free: dict[str, float] = defaultdict(float)
        self.out = Timeline(pipeline, device)
        self.phases: dict[tuple, _Phase] = defaultdict(_Phase)
        self.waiting: dict[tuple, list[_Agent]] = defaultdict(list)
        self.barriers: dict[int, list] = defaultdict(lambda: [0, 0.0, []])
        self.filled: dict[tuple, float] = {}
        self.order = 0

    def run(self) -> Timeline:
        agents = [
            _Agent(role, g, list(self.p.steps(role)))
            for role in self.p.roles
            for g in range(role.groups)
        ]
        self.ready: list = []
        for agent in agents:
            self._push(agent)
        while self.ready:
            agent = heapq.heappop(self.ready)[2]
            if agent.at < len(agent.steps) and self._event(agent):
                agent.at += 1
                self._push(agent)
        stuck = [a for a in agents if a.at < len(a.steps)]
        if stuck:
            where = stuck[0].steps[stuck[0].at].where
            raise PipelineError(
                f"{self.p.name}: {stuck[0].lane} waits forever in {where}"
                "\n  fix: tkpy.pipeline.check.check says what for"
            )
        ends = [a.now for a in agents] + [t for a in agents for t in (*a.stores, *a.copies)]
        self.out.time = max(ends, default=0.0)
        return self.out

    def _push(self, agent: _Agent) -> None:
        self.order += 1
        heapq.heappush(self.ready, (agent.now, self.order, agent))

    # Time passes

    def _serve(self, server: str, work: float, at: float) -> float:
        """When ``work`` that is asked for at ``at`` is done."""
        if not work:
            return at
        start = max(at, self.free[server])
        took = work / self.rates[server]
        self.free[server] = start + took
        self.out.busy[server] += took
        return start + took

    def _span(self, lane: str, start: float, end: float, kind: str, label: str = "") -> None:
        if end > start:
            self.out.spans.append(Span(lane, start, end, kind, label))

    def _until(self, agent: _Agent, when: float, reason: str) -> None:
        if when > agent.now:
            self._span(agent.lane, agent.now, when, "stall", reason)
            self.out.stalls[agent.lane, reason] += when - agent.now
            agent.now = when

    def _move(self, bytes_: int, dram: float, at: float) -> float:
        """When bytes from global memory have landed."""
        through = self._serve("l2", bytes_, at)
        far = self._serve("dram", bytes_ * dram, at)
        return max(through + self.d.l2_latency, far + self.d.latency if dram else 0.0)

    def _event(self, agent: _Agent) -> bool:
        """Does the agent's next event; False if it must wait for another agent."""
        step = agent.steps[agent.at]
        event = step.event
        warps = agent.role.warps if event.by == "each" else 1
        match event:
            case Wait():
                return self._wait(agent, step, event)
            case Sync():
                return self._sync(agent, event, warps)
            case Arrive(count=count):
                self._arrive(self._phase(step, event.sem, event.turn), agent.now, count * warps)
                self._released(step, event, agent.now)
            case Expect(bytes=n):
                self._arrive(self._phase(step, event.sem, event.turn), agent.now, warps, n)
            case AsyncCopy():
                self._copy(agent, step, event)
            case CopyWait(pending=n):
                self._drain(agent, agent.copies, n, "a copy to land")
            case MmaWait(pending=n):
                self._drain(agent, agent.products, n, "a product")
            case StoreReadWait(pending=n):
                self._drain(agent, agent.stores, n, "a store to read its source")
            case Mma():
                self._product(agent, event)
            case StoreAsync(bytes=n, dram=dram):
                through = self._serve("l2", n, agent.now)
                agent.stores.append(max(through, self._serve("dram", n * dram, agent.now)))
            case Load(bytes=n, dram=dram):
                self._until(agent, self._move(n, dram, agent.now), "a load")
            case Store(bytes=n, dram=dram):
                self._serve("l2", n, agent.now)
                self._serve("dram", n * dram, agent.now)
            case Read(bytes=n) | Write(bytes=n):
                self._work(agent, "shared", n, event)
            case Compute():
                self._work(agent, "arithmetic", event.flops, event)
                self._work(agent, "special", event.special, event)
                end = agent.now + event.cycles / self.d.clock
                self._span(agent.lane, agent.now, end, "arithmetic", event.hook)
                agent.now = end
        return True

    def _work(self, agent: _Agent, server: str, work: float, event: Event) -> None:
        if not work:
            return
        begin = max(agent.now, self.free[server])
        self._until(agent, begin, f"{server} of another group")
        end = self._serve(server, work, agent.now)
        self._span(agent.lane, agent.now, end, server, event.hook)
        agent.now = end

    def _product(self, agent: _Agent, event: Mma) -> None:
        begin = max(agent.now, self.free["matrix"])
        done = self._serve("matrix", event.flops / event.rate, agent.now)
        self.out.flops += event.flops
        self._span(agent.lane, begin, done, "matrix", event.hook)
        agent.products.append(done + self.d.mma_latency)
        if not event.asynchronous:
            agent.now = agent.products.pop()

    def _drain(self, agent: _Agent, queue: list[float], pending: int, reason: str) -> None:
        cut = max(0, len(queue) - pending)
        due, queue[:] = queue[:cut], queue[cut:]
        if due:
            end = max(due)
            busy = [s for s in self.out.spans[-8:] if s.lane == agent.lane and s.kind == "matrix"]
            # Its own product under way is work, not a stall.
            if reason == "a product" and busy and busy[-1].end > agent.now:
                stalled = max(agent.now, min(busy[-1].start, end))
                self._until(agent, stalled, "matrix of another group")
                agent.now = max(agent.now, min(end, busy[-1].end))
            self._until(agent, end, reason)

    def _copy(self, agent: _Agent, step: Step, event: AsyncCopy) -> None:
        landed = self._move(event.bytes, event.dram, agent.now)
        ring = self.p.ring(event.to.name)
        lane = event.to.name
        if ring is not None:
            fill = self.p.slot(ring.name, step.task, self.p.fill_of(ring.name, step, event.to.turn))
            lane = f"{ring.name}[{fill[0]}]"
            key = (ring.name, *fill)
            self.filled[key] = max(landed, self.filled.get(key, 0.0))
        self._span(lane, agent.now, landed, "copy", f"{event.to.name}")
        if event.sem is None:
            agent.copies.append(landed)
            return
        phase = self.phases[key := self._phase(step, event.sem, event.to.turn)]
        phase.landed += event.bytes
        phase.last = max(phase.last, landed)
        self._settle(key)

    # Agents wait for each other

    def _phase(self, step: Step, sem: str, turn: int, lag: int = 0) -> tuple:
        ring = self.p.semaphore(sem).ring
        stage, use = self.p.slot(ring, step.task, self.p.fill_of(ring, step, turn))
        return sem, stage, use - lag

    def _arrive(self, key: tuple, at: float, count: int, bytes_: int = 0) -> None:
        phase = self.phases[key]
        phase.arrived += count
        phase.expected += bytes_
        phase.last = max(phase.last, at)
        self._settle(key)

    def _settle(self, key: tuple) -> None:
        phase = self.phases[key]
        count = self.p.semaphore(key[0]).count
        if phase.done is None and phase.arrived >= count and phase.landed >= phase.expected:
            phase.done = phase.last
            for agent in self.waiting.pop(key, []):
                self._push(agent)

    def _wait(self, agent: _Agent, step: Step, event: Wait) -> bool:
        key = self._phase(step, event.sem, event.turn, event.lag)
        if key[2] < 0:
            return True
        done = self.phases[key].done
        if done is None:
            self.waiting[key].append(agent)
            return False
        if done > agent.now:
            self._until(agent, done + self.d.sync, f"{event.sem}")
        return True

    def _sync(self, agent: _Agent, event: Sync, warps: int) -> bool:
        key = event.barrier + (agent.group if event.scope == "group" else 0)
        barrier = self.barriers[key]
        barrier[0] += warps
        barrier[1] = max(barrier[1], agent.now)
        if barrier[0] < event.warps and not event.only_arrive:
            barrier[2].append(agent)
            return False
        if barrier[0] >= event.warps:
            _, at, held = barrier
            self.barriers[key] = [0, 0.0, []]
            for other in held:
                self._until(other, at + self.d.sync, f"barrier {event.barrier}")
                other.at += 1
                self._push(other)
            if not event.only_arrive:
                self._until(agent, at + self.d.sync, f"barrier {event.barrier}")
        return True

    def _released(self, step: Step, event: Arrive, now: float) -> None:
        """A stage is held from the time its copy has landed until it is released."""
        ring = self.p.semaphore(event.sem).ring
        if ring is None or not event.sem.endswith(".released"):
            return
        key = (ring, *self._phase(step, event.sem, event.turn)[1:])
        landed = self.filled.get(key)
        if landed is not None:
            self._span(f"{ring}[{key[1]}]", landed, now, "held", ring)


def lints(pipeline: Pipeline, device: Device, dtype: str = "bf16") -> list[str]:
    """What a pipeline does for nothing, as sentences.

    A ring, or two tiles, that should let copies run under work, and during whose copies the role
    that issues or uses them does none: ThunderKittens' layernorm issues the next copy and then
    waits for everything.
    """
    small = replace(pipeline, iterations=min(_longest(pipeline), ITERATIONS), tasks=1)
    out = simulate(small, device, dtype)
    work = [s for s in out.spans if s.kind in ("matrix", "arithmetic", "special", "shared")]
    found = []
    for role in pipeline.roles:
        waits = [e for e in role.body if isinstance(e, CopyWait) and e.pending == 0]
        copies = [e for e in role.body if isinstance(e, AsyncCopy) and e.sem is None]
        ahead = [c for c in copies if c.when.more or c.to.turn > 0]
        if not waits or not ahead:
            continue
        names = {c.to.name for c in ahead}
        flying = [s for s in out.spans if s.kind == "copy" and s.label in names]
        total = sum(s.length for s in flying)
        under = sum(
            max(0.0, min(s.end, w.end) - max(s.start, w.start)) for s in flying for w in work
        )
        if total and under < 0.1 * total:
            loc = waits[0].loc
            line = f"{loc.file}:{loc.line}: " if loc else ""
            found.append(
                f"{line}{role.name} copies {' and '.join(sorted(names))} ahead and then waits for "
                f"every copy: work runs under {under / total:.0%} of the copying\n"
                f"  fix: CopyWait({len(ahead)}), which leaves the copies just issued in flight"
            )
    return found


def _longest(pipeline: Pipeline) -> int:
    n = pipeline.iterations
    return n if isinstance(n, int) else max(n)
