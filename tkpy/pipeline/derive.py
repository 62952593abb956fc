"""Makes a pipeline from rings and hooks: the author counts no arrivals and flips no phases.

A hook is a role whose events are work only: copies, products, arithmetic, reads, writes, stores.
From who fills a ring and who reads it follow the semaphores ``NAME.arrived`` and
``NAME.released`` (a stage may be filled again), their arrival counts, every wait and arrival, the
barriers between the warps of a role, and the waits of the block that ``finish`` stores from. So
the mistakes 1, 3 to 6, 9 to 11, 13 and 18 of ThunderKittens' list cannot be written down.

Example, a GEMM of 128 x 256 tiles, 64 deep, over four stages::

    lcf(
        "gemm",
        rings=[Ring("a", 4, 128 * 64 * 2), Ring("b", 4, 64 * 256 * 2)],
        load=[AsyncCopy(Place("a"), 128 * 64 * 2), AsyncCopy(Place("b"), 64 * 256 * 2)],
        compute=[Mma(2 * 64 * 256 * 64, reads=(Place("a"), Place("b")))],
        finish=[Write(Place("c", split=True)), StoreAsync(Place("c", split=True), 64 * 256 * 2)],
        tiles=[Tile("c", 128 * 256 * 2, over="a")],
        consumer_warps=8, iterations=64, tasks=4,
    )
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from codegen.ir import Loc
from tkpy.pipeline.events import (
    Arrive,
    AsyncCopy,
    Compute,
    Event,
    Expect,
    Mma,
    StoreAsync,
    Sync,
    Wait,
    places,
)
from tkpy.pipeline.model import (
    SHARED_PER_SM,
    Pipeline,
    PipelineError,
    Ring,
    Role,
    Semaphore,
    Tile,
)
from tkpy.pipeline.weave import Weaver

WARPGROUP = 4


def derive(
    name: str,
    rings: Sequence[Ring],
    roles: Sequence[Role],
    tiles: Sequence[Tile] = (),
    *,
    iterations: int | tuple[int, ...] = 8,
    tasks: int = 1,
    shared: int = SHARED_PER_SM,
    blocks_per_sm: int = 1,
) -> Pipeline:
    """A pipeline in which every wait, arrival, count, phase and barrier follows from the hooks.

    Args:
        name: the kernel's, for messages and pictures.
        rings, tiles: shared memory. A tile over a ring makes that ring restart at each task.
        roles: whose events are work only; ``Sync`` and ``MmaWait`` of the author's own are kept
            (ping-pong order, products left in flight).
        iterations, tasks, shared, blocks_per_sm: as in :class:`Pipeline`.

    Raises PipelineError for a ring that nobody or more than one role fills, or nobody reads; a
    tile that two roles share (it has no semaphore: make it a ring); a tile over a ring that
    several roles read; waits or arrivals in a hook; and what :class:`Pipeline` refuses.
    """
    covered = {t.over for t in tiles if t.over is not None}
    rings = [replace(r, restart=True) if r.name in covered else r for r in rings]
    plan = _Plan(name, {r.name: r for r in rings}, {t.name: t for t in tiles}, roles)
    plan.check(iterations)
    draft = Pipeline(name, tuple(rings), (), (), tuple(tiles), iterations, tasks, shared)
    safe = {ring: draft.safe_stages(ring) for ring in covered if ring is not None}
    barriers = [b for b in range(1, 16) if b not in plan.barriers_taken()]
    done = tuple(Weaver(plan.rings, plan.tiles, role, safe, barriers).role() for role in roles)
    semaphores = tuple(Semaphore(*s) for s in plan.semaphores())
    whole = Pipeline(
        name, tuple(rings), done, semaphores, tuple(tiles), iterations, tasks, shared, blocks_per_sm
    )
    return _counted(whole)


def lcf(
    name: str,
    *,
    rings: Sequence[Ring],
    load: Sequence[Event],
    compute: Sequence[Event],
    setup: Sequence[Event] = (),
    finish: Sequence[Event] = (),
    tiles: Sequence[Tile] = (),
    iterations: int | tuple[int, ...] = 8,
    tasks: int = 1,
    consumer_warps: int = 8,
    producer_warps: int = 4,
    registers: tuple[int, int] | None = None,
    shared: int = SHARED_PER_SM,
    blocks_per_sm: int = 1,
) -> Pipeline:
    """Load, compute, finish: a producer fills the rings, consumer warpgroups empty them.

    Args:
        load: copies of one iteration; those into rings with ``per="task"`` happen once a task.
        compute: one iteration of each consumer group.
        setup, finish: of each consumer group, at a task's start and end.
        registers: a thread of the producer and of a consumer; None: 24 or 40 and what remains.
        The rest: as in :func:`derive`.

    Source: ThunderKittens ``prototype/lcf``.
    """
    producer, consumer = registers or split_registers(producer_warps, consumer_warps, blocks_per_sm)
    groups, warps = _groups(consumer_warps)
    once_a_task, each = _by_rate(load, rings)
    hooks = _three(setup, compute, finish)
    roles = [
        Role("load", producer_warps, 1, once_a_task, each, registers=producer),
        Role("compute", warps, groups, *hooks, registers=consumer),
    ]
    return derive(
        name, rings, roles, tiles, iterations=iterations, tasks=tasks, shared=shared,
        blocks_per_sm=blocks_per_sm,
    )  # fmt: skip


def lcsf(
    name: str,
    *,
    rings: Sequence[Ring],
    load: Sequence[Event],
    compute: Sequence[Event],
    store: Sequence[Event],
    setup: Sequence[Event] = (),
    finish: Sequence[Event] = (),
    tiles: Sequence[Tile] = (),
    iterations: int | tuple[int, ...] = 8,
    tasks: int = 1,
    consumer_warps: int = 8,
    producer_warps: int = 4,
    registers: tuple[int, int] | None = None,
    shared: int = SHARED_PER_SM,
    blocks_per_sm: int = 1,
) -> Pipeline:
    """Load, compute, store, finish: consumers also fill rings, which a storing warp empties.

    ThunderKittens' one producer polls what it can do next, a load or a store. Here loads and
    stores are two roles of the producing warpgroup, so neither waits for the other.

    Args:
        store: stores of one iteration, from rings that ``compute`` writes.
        The rest: as in :func:`lcf`; ``producer_warps`` counts loading and storing warps.

    Source: ThunderKittens ``prototype/lcsf``.
    """
    producer, consumer = registers or split_registers(producer_warps, consumer_warps, blocks_per_sm)
    groups, warps = _groups(consumer_warps)
    once_a_task, each = _by_rate(load, rings)
    hooks = _three(setup, compute, finish)
    storing = max(1, producer_warps // 2)
    slow = {r.name for r in rings if r.per == "task"}
    stores = _hooked(store, "store")
    late = tuple(e for e in stores if isinstance(e, StoreAsync) and e.source.name in slow)
    often = tuple(e for e in stores if e not in late)
    roles = [
        Role("load", max(1, producer_warps - storing), 1, once_a_task, each, registers=producer),
        Role("compute", warps, groups, *hooks, registers=consumer),
        Role("store", storing, 1, (), often, late, registers=producer),
    ]
    return derive(
        name, rings, roles, tiles, iterations=iterations, tasks=tasks, shared=shared,
        blocks_per_sm=blocks_per_sm,
    )  # fmt: skip


def pingpong(
    name: str,
    *,
    rings: Sequence[Ring],
    load: Sequence[Event],
    consumers: Sequence[tuple[Sequence[Event], Sequence[Event], Sequence[Event]]],
    tiles: Sequence[Tile] = (),
    iterations: int | tuple[int, ...] = 8,
    tasks: int = 1,
    alternate: bool = False,
    shared: int = SHARED_PER_SM,
) -> Pipeline:
    """Consumers that take turns: while one multiplies, the other does its softmax or epilogue.

    Args:
        consumers: (setup, compute, finish) of each warpgroup. Named barriers let one at a time
            issue its products; the arithmetic between them runs during the others' turns.
        alternate: each takes whole tasks in turn (CUTLASS's ping-pong); else all work on every
            task (FlashAttention-3's).
        The rest: as in :func:`lcf`.
    """
    registers = split_registers(WARPGROUP, WARPGROUP * len(consumers), 1)
    once_a_task, each = _by_rate(load, rings)
    roles = [Role("load", WARPGROUP, 1, once_a_task, each, registers=registers[0])]
    n = len(consumers)
    for i, hooks in enumerate(consumers):
        setup, compute, finish = _three(*hooks)
        role = Role(f"compute{i}", WARPGROUP, 1, setup, compute, finish, registers=registers[1])
        if alternate:
            role = replace(role, tasks=(n, i))
        elif n > 1:
            role = _in_turn(role, i, n)
        roles.append(role)
    return derive(name, rings, roles, tiles, iterations=iterations, tasks=tasks, shared=shared)


def split_registers(producer: int, consumer: int, blocks: int = 1) -> tuple[int, int]:
    """Registers a thread for producer and consumer warps, as setmaxnreg takes them.

    Multiples of 8 up to 240; both together fit the 65536 of an SM. (0, 0), not set, where
    either is no whole number of warpgroups: setmaxnreg is for whole warpgroups only.
    """
    if producer % WARPGROUP or consumer % WARPGROUP or not consumer:
        return 0, 0
    few = 24 if consumer <= 3 * WARPGROUP else 32
    room = 65536 // blocks // 32 - few * producer
    return few, min(240, room // consumer // 8 * 8)


def _groups(warps: int) -> tuple[int, int]:
    if warps < 1:
        raise PipelineError(f"{warps} consumer warps: at least 1 is needed")
    if warps < WARPGROUP:
        return 1, warps
    if warps % WARPGROUP:
        raise PipelineError(f"{warps} consumer warps: fewer than 4, or a multiple of 4")
    return warps // WARPGROUP, WARPGROUP


def _hooked(events: Iterable[Event], hook: str) -> tuple[Event, ...]:
    return tuple(e if e.hook else replace(e, hook=hook) for e in events)


_Hook = tuple[Event, ...]


def _three(setup, compute, finish) -> tuple[_Hook, _Hook, _Hook]:
    return _hooked(setup, "setup"), _hooked(compute, "compute"), _hooked(finish, "finish")


def _by_rate(load: Sequence[Event], rings: Sequence[Ring]):
    """Loads of a task, and loads of an iteration."""
    slow = {r.name for r in rings if r.per == "task"}
    events = _hooked(load, "load")
    once = tuple(e for e in events if isinstance(e, AsyncCopy) and e.to.name in slow)
    return once, tuple(e for e in events if e not in once)


def _in_turn(role: Role, i: int, n: int) -> Role:
    """Named barriers so that products are issued in turn: role ``i`` goes after ``i - 1`` of ``n``.

    Products ``S``, arithmetic, products ``P``: the turn is P and the next S, so that the arithmetic
    between them runs during the others' turns. Products in one piece are the turn themselves.
    """
    products = [k for k, e in enumerate(role.body) if isinstance(e, Mma)]
    if not products:
        raise PipelineError(f"{role.name}: ping-pong consumers must multiply")
    both = 2 * role.all_warps
    mine = Sync(_TURN + i, both, hook="compute")
    pass_on = Sync(_TURN + (i + 1) % n, both, only_arrive=True, hook="compute")
    body = list(role.body)
    breaks = [k for k, e in enumerate(body) if isinstance(e, Compute) and e.needs]
    split = [b for b in breaks if products[0] < b < products[-1]]
    if split:
        body.insert(next(k for k in products if k > split[0]), mine)
        body.insert(max(k for k in products if k < split[0]) + 1, pass_on)
        first = (mine,) if i > 0 else ()
        end = (pass_on,) if i < n - 1 else ()
        return replace(
            role, body=tuple(body), prologue=first + role.prologue, epilogue=end + role.epilogue
        )
    body.insert(products[-1] + 1, pass_on)
    body.insert(products[0], mine)
    # The last role lets the first one in; the barrier it leaves armed at the end harms nobody.
    return replace(role, body=tuple(body), once=(pass_on,) if i == n - 1 else ())


_TURN = 2  # the named barriers of ping-pong turns begin here


@dataclass
class _Plan:
    """Who fills and who reads each ring, and which role owns each tile."""

    name: str
    rings: dict[str, Ring]
    tiles: dict[str, Tile]
    roles: Sequence[Role]

    def touching(self, part: str, written: bool) -> list[Role]:
        """The roles that write (or read) a ring or tile."""
        return [
            role
            for role in self.roles
            if any(p.name == part and w == written for e in role.events() for p, w in places(e))
        ]

    def by_copy(self, ring: str) -> bool:
        """Whether a ring is filled by asynchronous copies."""
        return any(
            isinstance(e, AsyncCopy) and e.to.name == ring for r in self.roles for e in r.events()
        )

    def semaphores(self):
        for ring in self.rings:
            yield f"{ring}.arrived", 1, ring
            yield f"{ring}.released", 1, ring
        for tile in self.tiles.values():
            if tile.over is not None:
                yield f"{tile.name}.done", 1, None

    def barriers_taken(self) -> set[int]:
        syncs = [(e, r) for r in self.roles for e in r.events() if isinstance(e, Sync)]
        groups = {e.barrier + g for e, r in syncs if e.scope == "group" for g in range(r.groups)}
        return {e.barrier for e, _ in syncs} | groups

    def check(self, iterations: int | tuple[int, ...]) -> None:
        for role in self.roles:
            for event in role.events():
                if isinstance(event, Wait | Arrive | Expect):
                    self._refuse(
                        f"{role.name} has a {type(event).__name__} of {event.sem}",
                        "leave it out: waits and arrivals follow from the rings",
                        event.loc,
                    )
        for ring in self.rings.values():
            self._check_ring(ring, (iterations,) if isinstance(iterations, int) else iterations)
        for tile in self.tiles.values():
            self._check_tile(tile)

    def _check_ring(self, ring: Ring, iterations: tuple[int, ...]) -> None:
        fills, reads = self.touching(ring.name, True), self.touching(ring.name, False)
        exclusive = len({(r.tasks[0], r.tasks[1]) for r in fills}) == len(fills) > 1
        if not fills or (len(fills) > 1 and not (exclusive and fills[0].tasks[0] == len(fills))):
            who = " and ".join(r.name for r in fills) or "no role"
            self._refuse(f"{who} fills ring {ring.name}", "one role fills a ring", ring.loc)
        if not reads:
            self._refuse(f"nobody reads ring {ring.name}", "leave it out", ring.loc)
        if any(r.name == f.name for r in reads for f in fills):
            self._refuse(
                f"{fills[0].name} fills ring {ring.name} and reads it",
                "a ring goes from one role to another; what one role keeps is a tile",
                ring.loc,
            )
        if any(n % ring.every for n in iterations):
            self._refuse(
                f"ring {ring.name} is filled every {ring.every} iterations, of {iterations}",
                "a number of iterations that it divides",
                ring.loc,
            )

    def _check_tile(self, tile: Tile) -> None:
        touch = {r.name: r for w in (True, False) for r in self.touching(tile.name, w)}
        if len(touch) > 1:
            self._refuse(
                f"tile {tile.name} is shared by {' and '.join(touch)}, and nothing orders them",
                "make it a ring, filled by one and read by the other",
                tile.loc,
            )
        if tile.over is not None:
            readers = self.touching(tile.over, False)
            if [r.name for r in readers] != list(touch):
                self._refuse(
                    f"{tile.name} lies over ring {tile.over}, which "
                    f"{' and '.join(r.name for r in readers)} read{'s' * (len(readers) == 1)}",
                    "give it memory of its own (over=None)",
                    tile.loc,
                )

    def _refuse(self, what: str, fix: str, loc: Loc | None) -> None:
        place = f"{loc.file}:{loc.line}: " if loc else ""
        raise PipelineError(f"{place}{self.name}: {what}\n  fix: {fix}")


def _counted(whole: Pipeline) -> Pipeline:
    """The same with each semaphore's arrival count: what really arrives in one phase of it.

    Raises PipelineError if that differs from phase to phase.
    """
    period = math.lcm(*(r.tasks[0] for r in whole.roles))
    every = math.lcm(*(r.every for r in whole.rings))
    enough = math.lcm(every, *(r.stages for r in whole.rings)) * 2 + every
    counts = (whole.iterations,) if isinstance(whole.iterations, int) else whole.iterations
    short = tuple(min(n, max(enough, every)) for n in counts[: 4 * period])
    sample = replace(whole, iterations=short, tasks=2 * period * len(short))
    arrived: dict[str, Counter] = {s.name: Counter() for s in whole.semaphores}
    for role in sample.roles:
        for step in sample.steps(role):
            event = step.event
            if not isinstance(event, Arrive | Expect):
                continue
            ring = sample.semaphore(event.sem).ring
            fill = sample.slot(ring, step.task, sample.fill_of(ring, step, event.turn))
            warps = role.all_warps if event.by == "each" else role.groups
            arrived[event.sem][fill] += warps * (event.count if isinstance(event, Arrive) else 1)
    semaphores = []
    for s in whole.semaphores:
        found = set(arrived[s.name].values())
        if len(found) != 1:
            seen = "nothing arrives" if not found else f"{min(found)} or {max(found)} arrivals"
            raise PipelineError(
                f"{whole.name}: {s.name} gets {seen} in a phase, depending on the iteration\n"
                "  fix: touch a ring in every iteration, or under the same condition everywhere"
            )
        semaphores.append(replace(s, count=found.pop()))
    return replace(whole, semaphores=tuple(semaphores))
