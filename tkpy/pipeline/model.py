"""A pipeline written out: rings of stages, roles of warps, semaphores, and who does what when.

This is the form that the checker, the timeline and the cost model read. It is explicit: every
arrival count, phase and byte is a field, so that each can also be wrong, and a checker that never
sees a wrong one cannot be tested. Nobody writes it by hand: :mod:`tkpy.pipeline.derive` makes it
from rings and hooks.

Source: ThunderKittens' templates lcf and lcsf, their mbarriers, phases and named barriers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from codegen.ir import Loc
from tkpy.errors import TkError
from tkpy.pipeline.events import Event, places

KIB = 1024
SHARED_PER_SM = 227 * KIB  # Hopper and Blackwell
MAX_STAGES = 16
REGISTERS_PER_SM = 65536
MAX_WARPS = 32


class PipelineError(TkError):
    """A pipeline that is not legal; the message names the ring or role, and the fix."""


@dataclass(frozen=True)
class Ring:
    """A queue of equal stages in shared memory.

    Args:
        name: unique among rings and tiles.
        stages: how many fills can be under way, 1 to 16.
        bytes: of one stage.
        rate: fills an iteration.
        every: a fill only each so many iterations (then ``rate`` of them).
        per: ``"task"``: one fill a task, not an iteration (a query tile, say).
        restart: stage 0 again at each task's start, as ThunderKittens does; else it goes on.
        align: of its start and of each stage.
        loc: the author's line.
    """

    name: str
    stages: int
    bytes: int
    rate: int = 1
    every: int = 1
    per: str = "iteration"
    restart: bool = False
    align: int = 1024
    loc: Loc | None = None

    @property
    def stride(self) -> int:
        return -(-self.bytes // self.align) * self.align

    def fills(self, iterations: int) -> int:
        """How many fills a task of so many iterations makes."""
        return 1 if self.per == "task" else -(-iterations // self.every) * self.rate

    def fill(self, i: int, turn: int) -> int:
        """The fill of the task that an event of iteration ``i`` means by ``turn``."""
        return turn if self.per == "task" else i // self.every * self.rate + turn


@dataclass(frozen=True)
class Tile:
    """Shared memory that is not a ring: scratch, or the block that ``finish`` stores from.

    Args:
        bytes: of one copy.
        copies: one for each group of a role, which then sees only its own.
        over: the ring onto whose last bytes it is laid; None: it has its own.
    """

    name: str
    bytes: int
    copies: int = 1
    over: str | None = None
    align: int = 1024
    loc: Loc | None = None

    @property
    def stride(self) -> int:
        return -(-self.bytes // self.align) * self.align


@dataclass(frozen=True)
class Semaphore:
    """An mbarrier a stage: a phase completes with ``count`` arrivals and no bytes outstanding.

    Args:
        ring: whose turns and stages it has; None: one stage, one turn a task.
    """

    name: str
    count: int
    ring: str | None = None


@dataclass(frozen=True)
class Role:
    """Warps that do the same: ``groups`` groups of ``warps`` each.

    Args:
        name: unique; shown as a lane.
        warps: of one group (4 is a warpgroup).
        groups: how many; each has its own copy of tiles with ``copies`` and its own products.
        prologue, epilogue: events of each task, before and after its iterations.
        body: events of each iteration.
        once: events before the first task.
        last: events after the last task.
        registers: a thread, as setmaxnreg sets them; 0: not set.
        tasks: ``(stride, first)``: does tasks ``first, first + stride, ...`` only (ping-pong).
        iterations: its own idea of how many there are; None: the pipeline's.
    """

    name: str
    warps: int
    groups: int = 1
    prologue: tuple[Event, ...] = ()
    body: tuple[Event, ...] = ()
    epilogue: tuple[Event, ...] = ()
    once: tuple[Event, ...] = ()
    last: tuple[Event, ...] = ()
    registers: int = 0
    tasks: tuple[int, int] = (1, 0)
    iterations: int | None = None

    @property
    def all_warps(self) -> int:
        return self.warps * self.groups

    def events(self) -> tuple[Event, ...]:
        return self.once + self.prologue + self.body + self.epilogue + self.last


@dataclass(frozen=True)
class Step:
    """An event at one time of a run: in task ``task``, iteration ``i`` (of ``iterations``)."""

    event: Event
    task: int
    i: int
    iterations: int
    part: str

    @property
    def where(self) -> str:
        inside = f"iteration {self.i}" if self.part == "body" else self.part
        return f"{inside} of task {self.task}"


@dataclass(frozen=True)
class Pipeline:
    """The program of one block of threads (a CTA).

    Args:
        name: the kernel's.
        rings, tiles, semaphores, roles: of this block.
        iterations: of each task; a tuple is repeated (causal attention: 1, 2, 3, ...).
        tasks: how many tasks one block does (persistent grids: more than 1).
        shared: bytes of shared memory this block may use.
        blocks_per_sm: that run at once.

    Raises PipelineError where names, stages, warps, registers or shared memory do not fit.
    """

    name: str
    rings: tuple[Ring, ...]
    roles: tuple[Role, ...]
    semaphores: tuple[Semaphore, ...] = ()
    tiles: tuple[Tile, ...] = ()
    iterations: int | tuple[int, ...] = 8
    tasks: int = 1
    shared: int = SHARED_PER_SM
    blocks_per_sm: int = 1

    def __post_init__(self):
        self._check_names()
        self._check_sizes()

    # Looking things up

    @cached_property
    def _rings(self) -> dict[str, Ring]:
        return {r.name: r for r in self.rings}

    @cached_property
    def _tiles(self) -> dict[str, Tile]:
        return {t.name: t for t in self.tiles}

    @cached_property
    def _semaphores(self) -> dict[str, Semaphore]:
        return {s.name: s for s in self.semaphores}

    def ring(self, name: str) -> Ring | None:
        return self._rings.get(name)

    def tile(self, name: str) -> Tile | None:
        return self._tiles.get(name)

    def semaphore(self, name: str) -> Semaphore:
        return self._semaphores[name]

    def role(self, name: str) -> Role:
        return next(r for r in self.roles if r.name == name)

    def iterations_of(self, task: int) -> int:
        n = self.iterations
        return n if isinstance(n, int) else n[task % len(n)]

    # Memory

    @cached_property
    def layout(self) -> dict[str, int]:
        """The first byte of each ring and tile: rings, own tiles, and tiles over a ring's end."""
        offset, starts = 0, {}
        own: list[Ring | Tile] = [*self.rings, *(t for t in self.tiles if t.over is None)]
        for part in own:
            offset = -(-offset // part.align) * part.align
            starts[part.name] = offset
            offset += part.stride * (part.stages if isinstance(part, Ring) else part.copies)
        for tile in self.tiles:
            if tile.over is not None:
                under = self._rings[tile.over]
                end = starts[under.name] + under.stages * under.stride
                starts[tile.name] = end - tile.copies * tile.stride
        return starts

    @property
    def shared_used(self) -> int:
        """Bytes of shared memory, with 16 for each semaphore's stage."""
        own = [r.stages * r.stride + self.layout[r.name] for r in self.rings]
        own += [t.copies * t.stride + self.layout[t.name] for t in self.tiles if t.over is None]
        barriers = 16 * sum(self._stages(s) for s in self.semaphores)
        return max(own, default=0) + barriers

    def _stages(self, semaphore: Semaphore) -> int:
        return 1 if semaphore.ring is None else self._rings[semaphore.ring].stages

    def safe_stages(self, ring: str) -> int:
        """How many of a ring's first stages no tile lies over."""
        r = self._rings[ring]
        start = self.layout[ring]
        over = [self.layout[t.name] for t in self.tiles if t.over == ring]
        free = min([r.stages * r.stride, *(o - start for o in over)])
        return max(0, free // r.stride)

    # Time

    def slot(self, ring: str | None, task: int, fill: int) -> tuple[int, int]:
        """The stage of a task's fill, and how often that stage was filled before.

        ``ring`` None is a semaphore of one stage and one turn a task: (0, task + fill).
        """
        if ring is None:
            return 0, task + fill
        r = self._rings[ring]
        if r.per == "task":
            n = task + fill
            return n % r.stages, n // r.stages
        before = [r.fills(self.iterations_of(t)) for t in range(task)]
        if not r.restart:
            n = sum(before) + fill
            return n % r.stages, n // r.stages
        stage = fill % r.stages
        used = sum(max(0, -(-(f - stage) // r.stages)) for f in before)
        return stage, used + fill // r.stages

    def steps(self, role: Role, tasks: int | None = None) -> Iterator[Step]:
        """What a warp of ``role`` does, in order, over ``tasks`` tasks (None: all of them)."""
        tasks = self.tasks if tasks is None else tasks
        for event in role.once:
            yield Step(event, 0, 0, self.iterations_of(0), "start")
        stride, first = role.tasks
        mine = range(first, tasks, stride)
        for task in mine:
            n = self.iterations_of(task) if role.iterations is None else role.iterations
            yield from (
                Step(e, task, 0, n, "prologue") for e in role.prologue if e.when.holds(0, n)
            )
            for i in range(n):
                yield from (Step(e, task, i, n, "body") for e in role.body if e.when.holds(i, n))
            yield from (Step(e, task, n, n, "epilogue") for e in role.epilogue if _at_end(e, n))
        for event in role.last:
            yield Step(event, max(mine, default=0), 0, 0, "end")

    def fill_of(self, ring: str | None, step: Step, turn: int) -> int:
        """The fill, within the step's task, that ``turn`` means there."""
        if ring is None:
            return turn
        r = self._rings[ring]
        if r.per == "task":
            return turn
        if step.part == "epilogue":
            return r.fills(step.iterations) + turn
        return r.fill(step.i, turn)

    # Changing one thing, to see it found

    def with_role(self, name: str, **changes) -> Pipeline:
        """A copy in which a role's fields are changed."""
        roles = tuple(replace(r, **changes) if r.name == name else r for r in self.roles)
        return replace(self, roles=roles)

    def with_semaphore(self, name: str, **changes) -> Pipeline:
        """A copy in which a semaphore's fields are changed."""
        kept = tuple(replace(s, **changes) if s.name == name else s for s in self.semaphores)
        return replace(self, semaphores=kept)

    # What cannot be

    def _check_names(self) -> None:
        names = [r.name for r in self.rings] + [t.name for t in self.tiles]
        for kind, found in (
            ("ring or tile", names),
            ("semaphore", [s.name for s in self.semaphores]),
            ("role", [r.name for r in self.roles]),
        ):
            twice = sorted({n for n in found if found.count(n) > 1})
            if twice:
                raise PipelineError(f"{self.name}: two {kind}s are called {twice[0]}")
        semaphores = {s.name for s in self.semaphores}
        for role in self.roles:
            for event in role.events():
                used = getattr(event, "sem", None)
                if used is not None and used not in semaphores:
                    raise PipelineError(f"{self.name}: {role.name} uses no such semaphore: {used}")
                for place, _ in places(event):
                    if place.name not in names:
                        raise PipelineError(
                            f"{self.name}: {role.name} touches {place.name}, which is neither a "
                            f"ring nor a tile\n  fix: one of {', '.join(names)}"
                        )
        for tile in self.tiles:
            if tile.over is not None and tile.over not in {r.name for r in self.rings}:
                raise PipelineError(f"{self.name}: {tile.name} lies over no ring: {tile.over}")

    def _check_sizes(self) -> None:
        for ring in self.rings:
            if not 1 <= ring.stages <= MAX_STAGES:
                raise PipelineError(
                    f"{self.name}: ring {ring.name} has {ring.stages} stages; 1 to {MAX_STAGES}"
                )
            if ring.bytes <= 0 or ring.rate < 1 or ring.every < 1:
                raise PipelineError(f"{self.name}: ring {ring.name} has no bytes or no rate")
        for tile in self.tiles:
            if tile.over is None:
                continue
            under = self._rings[tile.over]
            room, need = under.stages * under.stride, tile.copies * tile.stride
            if need > room:  # in signed arithmetic: a negative room is not a large one
                raise PipelineError(
                    f"{self.name}: {tile.name} needs {need} bytes and lies over {under.name}, "
                    f"which has {room}\n  fix: give it memory of its own, or more stages"
                )
        if self.shared_used > self.shared:
            sizes = ", ".join(f"{r.name} {r.stages} x {r.stride}" for r in self.rings)
            raise PipelineError(
                f"{self.name}: {self.shared_used} bytes of shared memory are needed and "
                f"{self.shared} are there ({sizes})\n  fix: fewer stages or smaller tiles"
            )
        warps = sum(r.all_warps for r in self.roles)
        if warps > MAX_WARPS:
            raise PipelineError(f"{self.name}: {warps} warps in a block; at most {MAX_WARPS}")
        self._check_registers()

    def _check_registers(self) -> None:
        """setmaxnreg: whole warpgroups, multiples of 8 from 24 to 240, 65536 on an SM."""
        set_ = [r for r in self.roles if r.registers]
        for value in sorted({r.registers for r in set_}):
            alike = [r for r in set_ if r.registers == value]
            if value % 8 or not 24 <= value <= 256:
                raise PipelineError(
                    f"{self.name}: {alike[0].name} asks for {value} registers a thread\n"
                    "  fix: a multiple of 8 from 24 to 240"
                )
            warps = sum(r.all_warps for r in alike)
            if warps % 4:
                raise PipelineError(
                    f"{self.name}: {' and '.join(r.name for r in alike)} set the registers of "
                    f"{warps} warps\n  fix: whole warpgroups of 4 warps"
                )
        used = self.blocks_per_sm * sum(r.all_warps * 32 * r.registers for r in set_)
        if used > REGISTERS_PER_SM:
            raise PipelineError(
                f"{self.name}: {used} registers an SM are asked for; there are {REGISTERS_PER_SM}"
                "\n  fix: fewer registers a thread, fewer warps or fewer blocks an SM"
            )


def _at_end(event: Event, iterations: int) -> bool:
    """Of an epilogue's conditions, only the number of iterations of the task counts."""
    return event.when.fewer is None or iterations <= event.when.fewer
