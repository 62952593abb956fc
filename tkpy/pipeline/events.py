"""What the warps of a role do in a pipeline, one event at a time.

An event belongs to a :class:`~tkpy.pipeline.model.Role` and happens once a task (prologue,
epilogue) or once an iteration (body). It says what is touched and what is waited for, never how
long it takes: bytes, FLOPs and calls of special functions are amounts of work *of one group* of
the role, which a device turns into time.

Turns. A ring's fills are numbered within a task: an event in iteration ``i`` with turn ``k`` means
fill ``i // every * rate + k`` (in a prologue ``i`` is 0, in an epilogue it is the number of fills
made in the task, so -1 is the last one). A fill's *slot* is its stage and how often the stage has
been used before, see :meth:`tkpy.pipeline.model.Pipeline.slot`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from codegen.ir import Loc


@dataclass(frozen=True)
class Place:
    """Bytes of shared memory: a stage of a ring, a tile, or a part of either.

    Args:
        name: a ring or a tile of the pipeline.
        turn: for a ring, which fill (see above); no meaning for a tile.
        offset, bytes: a part of it, counted from its start; None is all of it.
        split: each warp touches its own slice (a cooperative move), not all of it.
    """

    name: str
    turn: int = 0
    offset: int = 0
    bytes: int | None = None
    split: bool = False


@dataclass(frozen=True)
class When:
    """In which iterations an event happens. The default is all of them.

    Args:
        every, phase: iterations ``i`` with ``i % every == phase``.
        at: iteration ``at`` only (the first if ``at`` is 0).
        more: only where at least this many iterations follow (a prefetch of the next one: 1).
        fewer: only in tasks of at most this many iterations.
        last: the last iteration only.
    """

    every: int = 1
    phase: int = 0
    at: int | None = None
    more: int = 0
    fewer: int | None = None
    last: bool = False

    def holds(self, i: int, iterations: int) -> bool:
        return (
            i % self.every == self.phase
            and (self.at is None or i == self.at)
            and iterations - 1 - i >= self.more * (self.more > 0)
            and (self.fewer is None or iterations <= self.fewer)
            and (not self.last or i == iterations - 1)
        )


@dataclass(frozen=True, kw_only=True)
class Event:
    """Common to all events.

    Args:
        by: ``"each"`` warp of the role does it, or ``"one"`` of each group (an elected thread).
        when: the iterations in which it happens.
        hook: the author's hook it comes from (load, compute, store, finish, ...), for messages.
        loc: the author's line.
    """

    by: Literal["each", "one"] = "each"
    when: When = When()
    hook: str = ""
    loc: Loc | None = None

    def at(self, **changes) -> Event:
        """This event with fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Wait(Event):
    """Blocks until the semaphore's phase for this turn is complete.

    Args:
        sem: the semaphore.
        turn: the fill whose stage and use are meant.
        lag: how many uses earlier: 0 for "it has arrived", 1 for "its previous use is released"
            (which holds at once in a stage's first use). The hardware sees only the parity of
            ``use - lag``.
    """

    sem: str
    turn: int = 0
    lag: int = 0


@dataclass(frozen=True)
class Arrive(Event):
    """Adds ``count`` arrivals (for each warp that does it) to the phase of this turn."""

    sem: str
    turn: int = 0
    count: int = 1


@dataclass(frozen=True)
class Expect(Event):
    """One arrival, and ``bytes`` more bytes that must land before the phase completes."""

    sem: str
    bytes: int
    turn: int = 0


@dataclass(frozen=True)
class AsyncCopy(Event):
    """Global to shared memory, in the background (TMA; cp.async where ``sem`` is None).

    Args:
        to: where it lands.
        bytes: how many bytes land (by one group: all of them).
        sem: the semaphore that counts the landed bytes, at the turn of ``to``; None: the copy
            joins the issuing warp's queue, for :class:`CopyWait`.
        dram: the share of the bytes that comes from DRAM, not from L2.
    """

    to: Place
    bytes: int
    sem: str | None = None
    dram: float = 1.0


@dataclass(frozen=True)
class CopyWait(Event):
    """Until at most ``pending`` of this warp's copies without a semaphore are in flight."""

    pending: int = 0


@dataclass(frozen=True)
class Load(Event):
    """Global memory to registers, waited for at once."""

    bytes: int
    dram: float = 1.0


@dataclass(frozen=True)
class Read(Event):
    """Shared memory to registers."""

    place: Place
    bytes: int = 0


@dataclass(frozen=True)
class Write(Event):
    """Registers to shared memory."""

    place: Place
    bytes: int = 0


@dataclass(frozen=True)
class Mma(Event):
    """A matrix product of one group.

    Args:
        flops: 2 M N K.
        reads: operands in shared memory; those in registers are not named.
        asynchronous: runs in the background until :class:`MmaWait` (wgmma), and reads until then.
        rate: of the device's bf16 matrix rate (2 for fp8, 0.5 for tf32).
    """

    flops: float
    reads: tuple[Place, ...] = ()
    asynchronous: bool = True
    rate: float = 1.0


@dataclass(frozen=True)
class MmaWait(Event):
    """Until at most ``pending`` asynchronous products of this warp have not retired."""

    pending: int = 0


@dataclass(frozen=True)
class StoreAsync(Event):
    """Shared to global memory in the background: reads ``source`` until it is waited for.

    Args:
        adds: it adds to global memory, so that doing it twice is wrong.
    """

    source: Place
    bytes: int
    dram: float = 1.0
    adds: bool = False


@dataclass(frozen=True)
class StoreReadWait(Event):
    """Until at most ``pending`` of this warp's stores still read their source."""

    pending: int = 0


@dataclass(frozen=True)
class Store(Event):
    """Registers to global memory; nobody waits for it."""

    bytes: int
    dram: float = 1.0


@dataclass(frozen=True)
class Sync(Event):
    """A named barrier: waits until ``warps`` warps have come to it.

    Args:
        barrier: its id, 1 to 15 (0 is ``__syncthreads``).
        warps: how many warps it waits for.
        scope: ``"role"``: one barrier for all groups; ``"group"``: ids ``barrier + group``.
        only_arrive: comes to it and does not wait.
    """

    barrier: int
    warps: int
    scope: Literal["role", "group"] = "role"
    only_arrive: bool = False


@dataclass(frozen=True)
class Compute(Event):
    """Arithmetic on registers.

    Args:
        flops: fp32 operations (a multiply-add is 2).
        special: exponentials, reciprocals, roots, sines.
        cycles: anything else.
        needs: it uses the products issued before it, so these are waited for first.
    """

    flops: float = 0
    special: float = 0
    cycles: float = 0
    reads: tuple[Place, ...] = ()
    needs: bool = True


def places(event: Event) -> tuple[tuple[Place, bool], ...]:
    """The shared memory an event touches, each with whether it is written."""
    match event:
        case AsyncCopy(to=to):
            return ((to, True),)
        case Write(place=place):
            return ((place, True),)
        case Read(place=place) | StoreAsync(source=place):
            return ((place, False),)
        case Mma(reads=reads) | Compute(reads=reads):
            return tuple((r, False) for r in reads)
    return ()
