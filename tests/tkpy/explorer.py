"""Every interleaving of a small pipeline, executed on barriers as the hardware has them.

Written apart from the checker: each warp is a thread, a semaphore is a phase counter whose parity
waits test, copies land and products retire whenever they like. A fault is a state that shows one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tkpy.pipeline import events as ev
from tkpy.pipeline.model import Pipeline


class TooMany(Exception):
    """More states than were asked for."""


@dataclass
class World:
    """A state; everything in it is a tuple or a dict of tuples so that it can be remembered."""

    at: list[int]
    phases: dict = field(default_factory=dict)  # (sem, stage) -> (phase, pending, bytes)
    content: dict = field(default_factory=dict)  # byte -> tag
    flying: tuple = ()  # (thread, kind, index of step)
    queues: dict = field(default_factory=dict)  # (thread, kind) -> not yet waited for
    barriers: dict = field(default_factory=dict)  # id -> (generation, come)
    inside: dict = field(default_factory=dict)  # thread -> generation it waits for

    def copy(self) -> World:
        return World(
            list(self.at), dict(self.phases), dict(self.content), self.flying,
            dict(self.queues), dict(self.barriers), dict(self.inside),
        )  # fmt: skip

    def key(self):
        parts = (self.phases, self.content, self.queues, self.barriers, self.inside)
        return (tuple(self.at), self.flying, *(tuple(sorted(d.items())) for d in parts))


class Explorer:
    def __init__(self, pipeline: Pipeline, tasks: int, limit: int = 8000):
        self.p, self.limit = pipeline, limit
        self.threads = [
            (role, group, warp, [s for s in pipeline.steps(role, tasks) if warp == 0 or s.event.by == "each"])
            for role in pipeline.roles
            for group in range(role.groups)
            for warp in range(role.warps)
        ]  # fmt: skip

    def fault(self) -> str | None:
        """The first fault that any interleaving shows."""
        seen, todo = set(), [World([0] * len(self.threads))]
        while todo:
            world = todo.pop()
            key = world.key()
            if key in seen:
                continue
            seen.add(key)
            if len(seen) > self.limit:
                raise TooMany
            race = self.races(world)
            if race:
                return race
            moves = []
            for t in range(len(self.threads)):
                moves += self.advance(world, t)
            for k in range(len(world.flying)):
                moves += self.land(world, k)
            for move in moves:
                if isinstance(move, str):
                    return move
            if not moves:
                end = self.ended(world)
                if end:
                    return end
            todo += moves
        return None

    def step(self, world, t):
        steps = self.threads[t][3]
        return steps[world.at[t]] if world.at[t] < len(steps) else None

    def meant(self, step, sem, turn):
        ring = self.p.semaphore(sem).ring
        return self.p.slot(ring, step.task, self.p.fill_of(ring, step, turn))

    def passes(self, world, t):
        """Whether thread t can do its next event now; a string is a fault."""
        step = self.step(world, t)
        if step is None:
            return False
        e = step.event
        if isinstance(e, ev.Wait):
            stage, use = self.meant(step, e.sem, e.turn)
            wanted = use - e.lag
            phase = world.phases.get((e.sem, stage), (0, 0, 0))[0]
            if phase >= wanted + 2:
                return "a phase was missed"
            if phase % 2 != wanted % 2 and phase <= wanted:
                return "a wait passed early"
            return phase % 2 != wanted % 2
        for kind, cls in (("copy", ev.CopyWait), ("mma", ev.MmaWait), ("store", ev.StoreReadWait)):
            if isinstance(e, cls):
                queue = world.queues.get((t, kind), ())
                due = queue[: max(0, len(queue) - e.pending)]
                return not any((t, kind, i) in world.flying for i in due)
        if isinstance(e, ev.Sync) and t in world.inside:
            key, generation = world.inside[t]
            return world.barriers[key][0] > generation
        return True

    def advance(self, world, t):
        ok = self.passes(world, t)
        if isinstance(ok, str):
            return [ok]
        if not ok:
            return []
        _, group, _, steps = self.threads[t]
        index = world.at[t]
        step, new = steps[index], world.copy()
        e = step.event
        if isinstance(e, ev.Sync):
            key = e.barrier + (group if e.scope == "group" else 0)
            if t not in world.inside:
                generation, come = new.barriers.get(key, (0, 0))
                come += 1
                new.barriers[key] = (generation + 1, 0) if come == e.warps else (generation, come)
                if not e.only_arrive:
                    new.inside[t] = (key, generation)
                    return [new]
            else:
                del new.inside[t]
        new.at[t] += 1
        for kind, cls in (("copy", ev.CopyWait), ("mma", ev.MmaWait), ("store", ev.StoreReadWait)):
            if isinstance(e, cls):
                queue = new.queues.get((t, kind), ())
                new.queues[t, kind] = queue[max(0, len(queue) - e.pending) :]
        if isinstance(e, ev.Arrive):
            bad = self.arrive(new, step, e.sem, e.turn, e.count, 0)
        elif isinstance(e, ev.Expect):
            bad = self.arrive(new, step, e.sem, e.turn, 1, e.bytes)
        else:
            bad = self.touch(new, t, index, step)
        return [bad or new]

    def arrive(self, new, step, sem, turn, count, more):
        stage, use = self.meant(step, sem, turn)
        need = self.p.semaphore(sem).count
        phase, come, due = new.phases.get((sem, stage), (0, 0, 0))
        if phase != use:
            return "an arrival was counted in another phase"
        come, due = come + count, due + more
        if come > need:
            return "more arrivals than counted"
        new.phases[sem, stage] = (
            (phase + 1, 0, 0) if (come, due) == (need, 0) else (phase, come, due)
        )
        return None

    def touch(self, new, t, index, step):
        e = step.event
        background = {ev.AsyncCopy: "copy", ev.StoreAsync: "store"}.get(type(e))
        if isinstance(e, ev.Mma) and e.asynchronous:
            background = "mma"
        if background:
            new.flying = tuple(sorted((*new.flying, (t, background, index))))
            if not (background == "copy" and e.sem is not None):
                new.queues[t, background] = (*new.queues.get((t, background), ()), index)
        for place, writes in ev.places(e):
            low, high, tag = self.bytes_of(t, step, place)
            for b in range(low, high):
                if writes and background is None:
                    new.content[b] = tag
                elif not writes and new.content.get(b) != tag:
                    return f"reads {new.content.get(b)} for {tag}"
        return None

    def land(self, world, k):
        t, kind, index = world.flying[k]
        if kind == "mma" and any(f[:2] == (t, "mma") and f[2] < index for f in world.flying):
            return []
        new = world.copy()
        new.flying = world.flying[:k] + world.flying[k + 1 :]
        step = self.threads[t][3][index]
        e = step.event
        if kind == "copy":
            low, high, tag = self.bytes_of(t, step, e.to)
            new.content.update({b: tag for b in range(low, high)})
            if e.sem is not None:
                bad = self.arrive(new, step, e.sem, e.to.turn, 0, -e.bytes)
                if bad:
                    return [bad]
        return [new]

    def bytes_of(self, t, step, place):
        role, group, warp, _ = self.threads[t]
        ring, tile = self.p.ring(place.name), self.p.tile(place.name)
        start, tag = self.p.layout[place.name], (place.name, -1, -1)
        if ring:
            stage, use = self.p.slot(
                ring.name, step.task, self.p.fill_of(ring.name, step, place.turn)
            )
            start, size, tag = start + stage * ring.stride, ring.bytes, (ring.name, stage, use)
        else:
            start, size = start + group % tile.copies * tile.stride, tile.bytes
        size = place.bytes or size
        start += place.offset
        if place.split:
            whole = tile is not None and tile.copies > 1
            parts = 1 if whole else role.groups
            part = 0 if whole else group
            if step.event.by == "each":
                parts, part = parts * role.warps, part * role.warps + warp
            start, size = start + size * part // parts, size // parts
        return start, start + size, tag

    def races(self, world):
        now = []
        for t in range(len(self.threads)):
            if self.passes(world, t) is True:
                step = self.step(world, t)
                now += [
                    (("next", t), *self.bytes_of(t, step, q)[:2], w)
                    for q, w in ev.places(step.event)
                ]
        for t, kind, index in world.flying:
            step = self.threads[t][3][index]
            now += [
                ((kind, t, index), *self.bytes_of(t, step, q)[:2], w)
                for q, w in ev.places(step.event)
            ]
        for i, (who, low, high, writes) in enumerate(now):
            for other, low2, high2, writes2 in now[i + 1 :]:
                if who != other and (writes or writes2) and low < high2 and low2 < high:
                    return f"race of {who} and {other}"
        return None

    def ended(self, world):
        if any(self.step(world, t) is not None for t in range(len(self.threads))):
            return "deadlock"
        if any(queue for (_, _), queue in world.queues.items()):
            return "left in flight"
        if any(come or due for _, come, due in world.phases.values()):
            return "a phase was left incomplete"
        return None
