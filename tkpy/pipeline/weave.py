"""Puts the waits, arrivals and barriers between the work of one role.

What is inserted, and why:

- a stage is filled by copies: wait until it is released, expect the bytes, copy;
- a stage is filled by writes: wait until it is released, write, every warp arrives;
- a stage is read: wait until it has arrived, read, and once every product that reads it has
  retired and every store from it has read it, arrive at "released";
- a tile that one warp stores from: all warps' writes before it, its reading before theirs;
- a tile over a ring's end: no write before all warps have left the ring, no copy into the
  covered stages before the tile is free again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from tkpy.pipeline.events import (
    Arrive,
    AsyncCopy,
    Compute,
    Event,
    Expect,
    Mma,
    MmaWait,
    Store,
    StoreAsync,
    StoreReadWait,
    Sync,
    Wait,
    When,
    Write,
    places,
)
from tkpy.pipeline.model import PipelineError, Ring, Role, Tile

PARTS = ("prologue", "body", "epilogue")


@dataclass
class Touches:
    """Where one fill of a ring is touched in one part of a role."""

    ring: Ring
    turn: int
    indices: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def when(self) -> When:
        """The iterations in which it is waited for: those of its events, if they agree."""
        found = {e.when for e in self.events}
        return found.pop() if len(found) == 1 else When()

    @property
    def by(self) -> str:
        return "one" if all(e.by == "one" for e in self.events) else "each"

    @property
    def writes(self) -> list[Event]:
        return [e for e in self.events if any(w and p.name == self.ring.name for p, w in places(e))]


class Weaver:
    """One role with its synchronisation.

    Args:
        rings, tiles: of the pipeline, by name.
        role: work only.
        safe: of a ring under a tile, how many of its stages the tile leaves alone.
        barriers: the named barriers that are still free; those taken are removed.
    """

    def __init__(
        self,
        rings: dict[str, Ring],
        tiles: dict[str, Tile],
        role: Role,
        safe: dict[str, int],
        barriers: list[int],
    ):
        self.rings, self.tiles, self.safe, self.barriers = rings, tiles, safe, barriers
        self.original = role
        self.parts = {part: [_elected(e) for e in getattr(role, part)] for part in PARTS}
        self.own_barriers: dict[str, int] = {}
        self.last: list[Event] = []

    def role(self) -> Role:
        self._whole_tasks()
        inserted = {part: self._part(part) for part in PARTS}
        for part, (before, after) in inserted.items():
            events = self.parts[part]
            woven = list(before[0])
            for i, event in enumerate(events):
                woven += before[i + 1]
                woven.append(self._with_semaphore(event))
                woven += after[i + 1]
            woven += after[0]
            self.parts[part] = woven
        self._finish_of_others()
        for part in PARTS:
            self.parts[part] = _retired(self.parts[part])
        return replace(
            self.original,
            prologue=tuple(self.parts["prologue"]),
            body=tuple(self.parts["body"]),
            epilogue=tuple(self.parts["epilogue"]),
            last=self.original.last + tuple(self.last),
        )

    # Rings

    def _touches(self, part: str) -> dict[tuple[str, int], Touches]:
        found: dict[tuple[str, int], Touches] = {}
        for i, event in enumerate(self.parts[part]):
            for place, _ in places(event):
                if place.name in self.rings:
                    ring = self.rings[place.name]
                    touch = found.setdefault((ring.name, place.turn), Touches(ring, place.turn))
                    touch.indices.append(i)
                    touch.events.append(event)
        return found

    def _whole_tasks(self) -> None:
        """Rings that are filled once a task: first and last touch may lie in different parts."""
        self.task_first: dict[tuple[str, int], str] = {}
        self.task_last: dict[tuple[str, int], str] = {}
        self.task_by: dict[tuple[str, int], str] = {}
        for part in PARTS:
            for key, touch in self._touches(part).items():
                if touch.ring.per == "task":
                    self.task_first.setdefault(key, part)
                    self.task_last[key] = part
                    one = touch.by == "one" and self.task_by.get(key, "one") == "one"
                    self.task_by[key] = "one" if one else "each"

    def _part(self, part: str):
        """What goes before and after each event; index 0 is the part's start and end."""
        before: dict[int, list[Event]] = defaultdict(list)
        after: dict[int, list[Event]] = defaultdict(list)
        touches = self._touches(part)
        for key, touch in touches.items():
            first, last = min(touch.indices) + 1, max(touch.indices) + 1
            opens = touch.ring.per != "task" or self.task_first[key] == part
            closes = touch.ring.per != "task" or self.task_last[key] == part
            if opens and not (part == "body" and touch.ring.per == "task"):
                before[first] += self._opening(touch, touch.by)
            if closes and not (part == "body" and touch.ring.per == "task"):
                after[last] += self._closing(touch, touch.by)
        if part == "prologue":
            for key, first_part in self.task_first.items():
                if first_part == "body":
                    after[0] += self._opening(self._touches("body")[key], self.task_by[key])
        if part == "epilogue":
            for key, last_part in self.task_last.items():
                if last_part == "body":
                    before[0] += self._closing(self._touches("body")[key], self.task_by[key])
        self._tile_order(part, before, after)
        return before, after

    def _opening(self, touch: Touches, by: str) -> list[Event]:
        name, turn, when, like = touch.ring.name, touch.turn, self._when(touch, 0), touch.events[0]
        said: dict[str, Any] = {"hook": like.hook, "loc": like.loc, "when": when, "by": by}
        if not touch.writes:
            return [Wait(f"{name}.arrived", turn, **said)]
        wait: list[Event] = [Wait(f"{name}.released", turn, lag=1, **said)]
        copied = sum(e.bytes for e in touch.writes if isinstance(e, AsyncCopy))
        return wait + ([Expect(f"{name}.arrived", copied, turn, **said)] if copied else [])

    def _closing(self, touch: Touches, by: str) -> list[Event]:
        name, turn, like = touch.ring.name, touch.turn, touch.events[-1]
        when = self._when(touch, touch.ring.every - 1)
        said: dict[str, Any] = {"hook": like.hook, "loc": like.loc, "when": when, "by": by}
        if any(isinstance(e, AsyncCopy) for e in touch.writes):
            return []
        if touch.writes:
            return [Arrive(f"{name}.arrived", turn, **said)]
        stored = any(isinstance(e, StoreAsync) for e in touch.events)
        read: list[Event] = [StoreReadWait(0, **{**said, "by": "one"})] if stored else []
        return [*read, Arrive(f"{name}.released", turn, **said)]

    def _when(self, touch: Touches, phase: int) -> When:
        if touch.ring.every > 1 and touch.ring.per != "task":
            return When(every=touch.ring.every, phase=phase)
        return touch.when

    def _with_semaphore(self, event: Event) -> Event:
        if not isinstance(event, AsyncCopy) or event.to.name not in self.rings:
            return event
        ring = self.rings[event.to.name]
        when = When(every=ring.every) if ring.every > 1 else event.when
        return replace(event, sem=f"{event.to.name}.arrived", when=when)

    # Tiles

    def _tile_order(self, part: str, before, after) -> None:
        events = self.parts[part]
        for tile in self.tiles.values():
            at = [
                (i + 1, e, p, w)
                for i, e in enumerate(events)
                for p, w in places(e)
                if p.name == tile.name
            ]
            if not at:
                continue
            if tile.over is not None and part != "epilogue":
                raise PipelineError(
                    f"{self.original.name}: {tile.name} lies over ring {tile.over} and is touched "
                    f"in the {part}\n  fix: only finish may touch it, or give it its own memory"
                )
            self._around_tile(tile, at, before, after)

    def _around_tile(self, tile: Tile, at, before, after) -> None:
        role = self.original
        shared = any(isinstance(e, StoreAsync) or not p.split for _, e, p, _ in at)
        private = tile.copies == role.groups or all(p.split for _, _, p, _ in at)
        scope = "group" if private and role.groups > 1 else "role"
        stored = any(isinstance(e, StoreAsync) for e in role.events() if _touches(e, tile))
        first, first_event = at[0][0], at[0][1]
        said: dict[str, Any] = {"hook": first_event.hook, "loc": first_event.loc}
        if stored and tile.over is None:
            before[first].append(StoreReadWait(0, by="one", **said))
            if not any(isinstance(e, StoreReadWait) for e in self.last):
                self.last.append(StoreReadWait(0, by="one", **said))
        if tile.over is not None:
            before[first] += self._sync("role", said)
        elif shared:
            before[first] += self._sync(scope, said)
        if shared:
            for (_, _, _, wrote), (j, event, _, writes) in pairwise(at):
                if wrote != writes:
                    before[j] += self._sync(scope, {"hook": event.hook, "loc": event.loc})
        if tile.over is not None:
            end, event = at[-1][0], at[-1][1]
            said = {"hook": event.hook, "loc": event.loc, "by": event.by}
            if stored:
                after[end].append(StoreReadWait(0, **{**said, "by": "one"}))
            after[end].append(Arrive(f"{tile.name}.done", **said))

    def _sync(self, scope: str, said: dict) -> list[Event]:
        role = self.original
        warps = role.all_warps if scope == "role" else role.warps
        if warps == 1:
            return []
        if scope not in self.own_barriers:
            need = role.groups if scope == "group" else 1
            if len(self.barriers) < need:
                raise PipelineError(f"{role.name}: more than 15 named barriers are needed")
            taken = [self.barriers.pop() for _ in range(need)]
            self.own_barriers[scope] = min(taken)
        return [Sync(self.own_barriers[scope], warps, scope, **said)]  # type: ignore[arg-type]

    def _finish_of_others(self) -> None:
        """Whoever fills a ring under a tile waits, before the covered stages, until it is free."""
        for tile in self.tiles.values():
            filled = [
                e
                for part in PARTS
                for e in self.parts[part]
                if any(w and p.name == tile.over for p, w in places(e))
            ]
            if tile.over is None or not filled:
                continue
            ring, safe = self.rings[tile.over], self.safe[tile.over]
            if safe >= ring.stages:
                continue
            if ring.per == "task" or any(e in filled for e in self.parts["prologue"]):
                raise PipelineError(
                    f"{tile.name} lies over ring {ring.name}, which is filled before a task's "
                    "first iteration\n  fix: give it memory of its own (over=None)"
                )
            at = safe // ring.rate * ring.every
            said: dict[str, Any] = {
                "hook": filled[0].hook,
                "loc": filled[0].loc,
                "by": filled[0].by,
            }
            sem = f"{tile.name}.done"
            # A task too short to reach the covered stages waits before its last fill: after it,
            # this task's finish could complete the next phase, and one bit cannot tell them apart.
            short = Wait(sem, 0, 1, when=When(fewer=at, last=True), **said)
            self.parts["body"][:0] = [Wait(sem, 0, 1, when=When(at=at), **said), short]


def _touches(event: Event, tile: Tile) -> bool:
    return any(p.name == tile.name for p, _ in places(event))


def _elected(event: Event) -> Event:
    """Bulk copies and stores are issued by one thread of a group."""
    return replace(event, by="one") if isinstance(event, AsyncCopy | StoreAsync) else event


def _retired(events: list[Event]) -> list[Event]:
    """Waits for products before what needs them: arithmetic on them, releases, the part's end.

    ``Compute(needs=False)`` and the author's own ``MmaWait(n)`` leave products in flight.
    """
    out: list[Event] = []
    flying: list[Mma] = []
    for event in events:
        if isinstance(event, MmaWait):
            flying = flying[len(flying) - event.pending :] if event.pending else []
        elif _needs_products(event, flying):
            out.append(MmaWait(0, hook=event.hook, loc=event.loc))
            flying = []
        if isinstance(event, Mma) and event.asynchronous:
            flying.append(event)
        out.append(event)
    if flying:
        out.append(MmaWait(0, hook=flying[-1].hook, loc=flying[-1].loc))
    return out


def _needs_products(event: Event, flying: list[Mma]) -> bool:
    match event:
        case Compute(needs=needs):
            return bool(flying) and needs
        case Write() | Store():
            return bool(flying)
        case Arrive(sem=sem):
            ring = sem.removesuffix(".released")
            return any(p.name == ring for m in flying for p in m.reads)
    return False
