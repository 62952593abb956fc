"""A kernel as a pipeline: its loads as rings, its loop as a body, its stores as a finish.

Read from tile IR before its loops are split. The loop of a template (``tk.run``) has its rings
and hooks by name; a plain kernel's main loop, the one with the most work, is seen as the template
that it would be: each load in it a ring, each load before it a ring that is filled once a task. A
kernel without a loop has one iteration a task and stores through a ring of its own. A loop around
the main one is flattened into it: what it does before and after happens in the first and the last
of every so many iterations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import sympy

from codegen.cost import Cost, Work, cost, evaluate
from codegen.expr import Expr, Symbol
from codegen.ir import Function, Op, Value, loop_parts
from tkpy.ahead import Setting, key_of
from tkpy.kernel import Kernel
from tkpy.lower import VariantKey
from tkpy.pipeline.derive import WARPGROUP, derive, split_registers
from tkpy.pipeline.device import Device
from tkpy.pipeline.events import (
    AsyncCopy,
    Compute,
    Event,
    Load,
    Mma,
    Place,
    Read,
    Store,
    StoreAsync,
    When,
    Write,
    places,
)
from tkpy.pipeline.model import Pipeline, PipelineError, Ring, Role, Tile
from tkpy.pipeline.simulate import Timeline, simulate

USUAL_STAGES = 4
_VIEWS = ("transpose", "retype", "subtile", "cast", "keep", "fill_dead", "broadcast")
_FEW = 4  # tasks that are simulated; the rest is as many times the last


@dataclass(frozen=True)
class Planned:
    """A kernel's pipeline on a device, for sizes.

    Attributes:
        pipeline: what one block does, with as many tasks as were asked for.
        tasks: of the whole grid.
        blocks: that run at a time on the device.
        cost: of the whole grid.
        dtype: of the products' operands.
    """

    pipeline: Pipeline
    tasks: int
    blocks: int
    cost: Cost
    dtype: str

    @property
    def waves(self) -> float:
        """Tasks of the busiest block."""
        return -(-self.tasks // self.blocks)


@dataclass(frozen=True)
class Estimate:
    """The time of a whole grid, and the timeline of the first tasks of one block.

    Attributes:
        seconds: of the grid, without the launch.
        timeline: of the tasks that were simulated.
        planned: what was simulated.
    """

    seconds: float
    timeline: Timeline
    planned: Planned

    @property
    def flops(self) -> float:
        """Products a second, of the whole device, over all that the blocks execute."""
        line = self.timeline
        return line.flops * self.planned.tasks / line.pipeline.tasks / self.seconds


def front_end(kernel: Kernel, setting: Setting) -> tuple[Function, Cost]:
    """A variant's tile IR with its cost, before loops are split into whole tiles and the rest.

    What is computed twice and can be shared is shared already (softmax of a row that fits a tile).
    """
    return front_end_of(kernel, key_of(kernel, setting))


def front_end_of(kernel: Kernel, key: VariantKey) -> tuple[Function, Cost]:
    """The same of a variant."""
    found: list[Cost] = []
    plans: list[Function] = []

    def watch(stage: str, fn: Function) -> None:
        if stage == "licm":
            found.append(cost(fn))
            plans.append(fn)
            raise _Enough

    with contextlib.suppress(_Enough):
        kernel.lower(key, watch=watch, split=True)
    return plans[0], found[0]


class _Enough(Exception):
    pass


def plan(kernel: Kernel, device: Device, sizes: Mapping[str, int], setting: Setting) -> Planned:
    """The pipeline of a kernel on a device.

    Args:
        sizes: of all named dimensions. setting: dtype, constants, and sizes of tile sides.

    Raises TkError for a size that is missing or for what the pipeline's parts do not allow
    (shared memory, for one).
    """
    fn, amounts = front_end(kernel, setting)
    return plan_of(kernel, fn, amounts, device, sizes)


def plan_of(
    kernel: Kernel, fn: Function, amounts: Cost, device: Device, sizes: Mapping[str, int]
) -> Planned:
    """The same from what :func:`front_end` gave."""
    return _Reader(kernel, fn, amounts, device, sizes).planned()


def estimate(planned: Planned, device: Device) -> Estimate:
    """Simulates the first tasks of the busiest block, and goes on as the last of them went."""
    waves = int(planned.waves)
    few = min(waves, _FEW)
    line = simulate(replace(planned.pipeline, tasks=few), device, planned.dtype)
    seconds = line.time
    if waves > few:
        shorter = simulate(replace(planned.pipeline, tasks=few - 1), device, planned.dtype)
        seconds += (waves - few) * (line.time - shorter.time)
    return Estimate(seconds, line, planned)


class _Reader:
    def __init__(self, kernel, fn: Function, amounts: Cost, device: Device, sizes):
        self.kernel, self.fn, self.cost, self.device = kernel, fn, amounts, device
        self.sizes = {Symbol(n, integer=True): v for n, v in sizes.items()}
        self.names = dict(sizes)
        self.works: dict[Op, list[Work]] = {}
        for w in amounts.works:
            self.works.setdefault(w.op, []).append(w)
        self.loop = self._main_loop()
        self.around = next((o for o in fn.body.ops if self._directly(o)), None)
        self.inner = self._inner()
        self.rings: dict[str, Ring] = {}
        self.of_op: dict[Op, str] = {}
        self.every = 1  # iterations that a fill of a ring lasts

    # What is there

    def _main_loop(self) -> Op | None:
        loops = [op for op in self.fn.body.walk() if op.kind == "for"]
        for op in loops:
            if "rings" in op.attrs:
                return op
        inside = {
            op: sum(w.scale * _product(w.factors) for o in op.regions[0].ops for w in self._of(o))
            for op in loops
        }
        return max(inside, key=lambda op: inside[op], default=None)

    def _of(self, op: Op) -> list[Work]:
        return self.works.get(op, [])

    def planned(self) -> Planned:
        template = self.kernel.template
        warps = template.consumer_warps if template else max(WARPGROUP, self.kernel.num_warps)
        self.groups, self.warps = max(1, warps // WARPGROUP), min(warps, WARPGROUP)
        producers = template.producer_warps if template else WARPGROUP
        blocks = template.blocks if template else 1
        before, body, after = self._parts()
        loads, setup = self._split(before, per="task")
        each, compute = self._in_order(body)
        tail, finish = self._split(after, per="task")
        loads += tail
        stores = self._stores() if self.loop is None or self._lcsf() else []
        finish, tiles = self._finish(finish)
        helpers = producers + (WARPGROUP if stores else 0)
        registers = split_registers(helpers, self.groups * self.warps, blocks)
        roles = [
            Role("load", producers, 1, tuple(loads), tuple(each), registers=registers[0]),
            Role(
                "compute", self.warps, self.groups, tuple(setup), tuple(compute), tuple(finish),
                registers=registers[1],
            ),
        ]  # fmt: skip
        if stores:
            roles.append(Role("store", WARPGROUP, 1, (), tuple(stores), registers=registers[0]))
        if not loads and not each:
            roles = roles[1:]
        tasks = int(evaluate(sympy.Mul(*[n for _, n in self.fn.grid]), self.names))
        at_once = self.device.units * blocks
        pipeline = self._fitted(roles, tiles, template, tasks, at_once, blocks)
        matrix = [w.dtype.name for w in self.cost.works if w.kind == "matrix"]
        return Planned(pipeline, tasks, at_once, self.cost, matrix[0] if matrix else "f32")

    def _parts(self) -> tuple[list[Op], list[Op], list[Op]]:
        top = [op for op in self.fn.body.ops if op.kind != "yield"]
        if self.loop is None:
            return [], top, []
        at = next(i for i, op in enumerate(top) if op is self.loop or self._holds(op))
        body = [op for op in self.loop.regions[0].ops if op.kind != "yield"]
        return top[:at], body, top[at + 1 :]

    def _directly(self, op: Op) -> bool:
        """Is this a loop around the main one, with nothing between?"""
        return op.kind == "for" and any(o is self.loop for o in op.regions[0].ops)

    def _inner(self) -> int:
        """Trips of the main loop for one of the loop around it."""
        if self.around is None or self.loop is None:
            return 1
        _, start, stop = loop_parts(self.loop)
        stated = max((every for _, _, every in self.loop.attrs.get("rings", ())), default=1)
        return stated if stated > 1 else max(1, self._typical(stop - start))

    def _in_order(self, body: list[Op]) -> tuple[list[Event], list[Event]]:
        """The events of an iteration, those of the loop around the main one with theirs."""
        if self.around is None:
            return self._split(body, per="iteration")
        ops = [op for op in self.around.regions[0].ops if op.kind != "yield"]
        at = next(i for i, op in enumerate(ops) if op is self.loop)
        loads: list[Event] = []
        work: list[Event] = []
        for part, phase in ((ops[:at], 0), (body, None), (ops[at + 1 :], self.inner - 1)):
            self.every = 1 if phase is None else self.inner
            more, then = self._split(part, per="iteration")
            if phase is not None:
                more = [e.at(when=When(self.inner)) for e in more]
                then = [e.at(when=When(self.inner, phase)) for e in then]
            loads, work = loads + more, work + then
        self.every = 1
        return loads, work

    def _holds(self, op: Op) -> bool:
        return any(inner is self.loop for r in op.regions for inner in r.walk())

    # Events

    def _split(self, ops: list[Op], per: str) -> tuple[list[Event], list[Event]]:
        """Copies into rings, and what the consumers do, in order."""
        loads: list[Event] = []
        work: list[Event] = []
        for op in ops:
            found = self._of(op)
            said = {"hook": op.hook or ("setup" if per == "task" else "compute"), "loc": op.loc}
            if op.kind == "load" and op.result.type.rank:
                loads.append(self._ring(op, per))
            elif op.kind == "mma" and found:
                work.append(self._mma(op, found[0], said))
            elif op.kind == "store" and op.operands[0].type.rank:
                work += self._store(op, per, said)
            elif op.regions:
                work += self._nested(op, said)
            elif found:
                work += self._arithmetic(op, found, said)
        return loads, _joined(work)

    def _ring(self, op: Op, per: str) -> Event:
        stated = dict.fromkeys(()) if self.loop is None else self.loop.attrs.get("rings", ())
        known = {name: (stages, every) for name, stages, every in stated}
        hook = op.hook if op.hook in known else ""
        stages, every = known.get(hook, (None, self.every))
        param = op.attrs["param"]
        name = op.result.hint or param
        while name in self.rings:
            name += "_"
        size = _bytes(op.result)
        fixed = stages or (1 if per == "task" else 0)
        self.rings[name] = Ring(name, fixed or 1, size, 1, every, per, align=128, loc=op.loc)
        self.open = [*getattr(self, "open", []), *([] if fixed else [name])]
        self.of_op[op] = name
        return AsyncCopy(
            Place(name), size, dram=self._from_dram(param), hook=op.hook or "load", loc=op.loc
        )

    def _from_dram(self, param: str) -> float:
        """The share of a tensor's loads that is not in the cache: each byte comes once."""
        moved = sum(
            evaluate(w.total(), self.names)
            for w in self.cost.works
            if w.kind in ("load", "store") and w.op.attrs.get("param") == param
        )
        once = evaluate(self.cost.tensors.get(param, sympy.Integer(0)), self.names)
        return min(1.0, once / moved) if moved else 1.0

    def _sources(self, value: Value) -> list[str]:
        """The rings that a value is a view of."""
        op = value.op
        while op is not None and op.kind in _VIEWS:
            op = op.operands[0].op
        return [self.of_op[op]] if op in self.of_op else []

    def _mma(self, op: Op, work: Work, said: dict) -> Event:
        reads = tuple(Place(n) for v in op.operands[:2] for n in self._sources(v))
        flops = work.scale * _product(work.factors) / self.groups
        return Mma(flops, tuple(dict.fromkeys(reads)), **said)

    def _arithmetic(self, op: Op, found: list[Work], said: dict) -> list[Event]:
        out: list[Event] = [
            Read(Place(name, split=True), self.rings[name].bytes // self.groups, **said)
            for v in op.operands
            for name in self._sources(v)
        ]
        amount = {k: 0.0 for k in ("vector", "special")}
        for w in found:
            if w.kind in amount:
                amount[w.kind] += w.scale * _product(w.factors) / self.groups
            elif w.kind == "load":
                out.append(Load(w.scale * _product(w.factors) // self.groups, **said))
            elif w.kind == "store":
                out.append(Store(w.scale * _product(w.factors) // self.groups, **said))
        if any(amount.values()):
            # A device's vector rate counts a multiply-add as two, these come one by one.
            out.append(Compute(2 * amount["vector"], amount["special"], **said))
        return out

    def _nested(self, op: Op, said: dict) -> list[Event]:
        """A loop or a branch beside the main loop, as one lump."""
        out: list[Event] = []
        trips = 1
        if op.kind == "for":
            _, start, stop = loop_parts(op)
            trips = max(1, self._typical(stop - start))
        for region in op.regions:
            for inner in region.ops:
                if inner.regions:
                    out += self._nested(inner, said)
                for w in self._of(inner):
                    amount = trips * w.scale * _product(w.factors) / self.groups
                    out.append(_lump(w, amount, said, self._from_dram(w.op.attrs.get("param", ""))))
        return out

    def _typical(self, e: Expr) -> int:
        e = sympy.sympify(e).subs(self.sizes)
        middle = {s: int(n.subs(self.sizes)) // 2 for s, n in self.fn.grid if n.subs(self.sizes)}
        e = e.subs(middle)
        return int(e) if e.is_Integer else 1

    def _store(self, op: Op, per: str, said: dict) -> list[Event]:
        size = _bytes(op.operands[0], self.fn.param(op.attrs["param"]).dtype.bits)
        if self.loop is None or (per == "iteration" and op.hook and self._lcsf()):
            name = f"{op.attrs['param']}_out"
            while name in self.rings:
                name += "_"
            stages = 1 if self.loop is None else self.kernel.template.output_stages
            self.rings[name] = Ring(name, stages, size, align=128, loc=op.loc)
            if self.loop is None:
                self.open = [*getattr(self, "open", []), name]
            return [Write(Place(name, split=True), size // self.groups, **said)]
        if per == "iteration":
            return [Store(size // self.groups, **said)]
        return [
            Write(Place(f"{op.attrs['param']}_tile", split=True), size // self.groups, **said),
            StoreAsync(Place(f"{op.attrs['param']}_tile", split=True), size // self.groups, **said),
        ]

    def _lcsf(self) -> bool:
        """Has the kernel a hook that stores every iteration?"""
        return self.kernel.template is not None and self.kernel.template.kind == "lcsf"

    def _stores(self) -> list[Event]:
        names = [n for n in self.rings if n not in self.of_op.values()]
        return [StoreAsync(Place(n), self.rings[n].bytes, hook="store") for n in names]

    def _finish(self, events: list[Event]) -> tuple[list[Event], list[Tile]]:
        sizes: dict[str, int] = {}
        for e in events:
            if isinstance(e, StoreAsync):
                sizes[e.source.name] = max(sizes.get(e.source.name, 0), e.bytes * self.groups)
        return events, [Tile(n, s, align=128) for n, s in sizes.items()]

    # Depth and length

    def _iterations(self, tasks: int) -> int | tuple[int, ...]:
        if self.loop is None:
            return 1
        _, start, stop = loop_parts(self.around or self.loop)
        trips = sympy.sympify(stop - start).subs(self.sizes)
        free = sorted(trips.free_symbols, key=str)
        if not free:
            return max(0, int(trips)) * self.inner
        counts = {s: int(sympy.sympify(n).subs(self.sizes)) for s, n in self.fn.grid}
        if any(s not in counts for s in free) or len(free) > 1:
            return max(1, self._typical(stop - start)) * self.inner
        f = sympy.lambdify(free[0], trips, [{"FloorDiv": np.floor_divide}, "numpy"])
        each = np.broadcast_to(f(np.arange(counts[free[0]])), (counts[free[0]],))
        return max(1, round(float(each.mean()))) * self.inner

    def _reading(self, role: Role) -> Role:
        """The consumers with a read of each ring whose use is in nothing that is modelled."""
        for name, ring in self.rings.items():
            if name in self.of_op.values() and not _read([role], name):
                read = Read(Place(name, split=True), ring.bytes // self.groups, hook="compute")
                if ring.per == "task":
                    role = replace(role, prologue=(*role.prologue, read))
                else:
                    role = replace(role, body=(read, *role.body))
        return role

    def _fitted(self, roles, tiles, template, tasks, at_once, blocks) -> Pipeline:
        """Rings of open depth as deep as fits, up to 4; the usual depth of Triton otherwise."""
        shared = self.device.shared // blocks
        most = (template.stages if template else None) or (
            USUAL_STAGES if template else max(1, self.kernel.num_stages)
        )
        deepest = None
        iterations = self._iterations(tasks)
        roles = [self._reading(r) if r.name == "compute" else r for r in roles]
        for stages in range(1, most + 1):
            rings = [
                replace(r, stages=stages) if r.name in getattr(self, "open", []) else r
                for r in self.rings.values()
            ]
            try:
                deepest = derive(
                    self.fn.name, rings, [r for r in roles if r.events()], tiles,
                    iterations=iterations, tasks=max(1, -(-tasks // at_once)), shared=shared,
                    blocks_per_sm=blocks,
                )  # fmt: skip
            except PipelineError:
                if deepest is None:
                    raise
                break
        assert deepest is not None
        return deepest


def _product(factors) -> float:
    out = 1.0
    for f in factors:
        out *= f.side
    return out


def _bytes(value: Value, bits: int | None = None) -> int:
    out = bits or value.type.dtype.bits
    for side in value.type.shape:
        out *= side
    return max(16, out // 8)


def _lump(w: Work, amount: float, said: dict, dram: float) -> Event:
    if w.kind == "matrix":
        return Mma(amount, **said)
    if w.kind == "vector":
        return Compute(flops=2 * amount, **said)
    if w.kind == "special":
        return Compute(special=amount, **said)
    return (Load if w.kind == "load" else Store)(int(amount), dram, **said)


def _joined(events: list[Event]) -> list[Event]:
    """Arithmetic that follows arithmetic of the same hook is one event."""
    out: list[Event] = []
    for e in events:
        last = out[-1] if out else None
        if isinstance(e, Compute) and isinstance(last, Compute) and last.hook == e.hook:
            out[-1] = replace(last, flops=last.flops + e.flops, special=last.special + e.special)
        else:
            out.append(e)
    return out


def _read(roles: list[Role], ring: str) -> bool:
    return any(not w and p.name == ring for r in roles for e in r.events() for p, w in places(e))
