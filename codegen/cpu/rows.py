"""Loads, maps, reductions along rows and stores, done for a few rows at a time.

A layer norm's backward is the example: of 16 rows of 1024 numbers it takes a mean, a variance and
two more sums, and for each it reads all rows again. 16 rows do not fit into the first-level cache;
two do. The groups are those of ``codegen.cpu.strips`` without products, but with the loads that
they begin with and the stores that they end in. A reduction down the columns takes part: it adds
the rows of one strip after those of the last. All the while the rows of the next strip are asked
for (codegen.cpu.lower.requests).

A program loads all of its rows before it stores any; strips store some before they load others.
That is the same only if what they store is nowhere near what they load, which is known at the
launch (``codegen.cpu.lower.alias``). So there are two ways through:

    strip.either { the ops as they were }, { strip.for ... { the ops for two rows } }
"""

from __future__ import annotations

from codegen.cpu import strips
from codegen.cpu.lower.uses import Uses
from codegen.cpu.ttir import BYTES, Block, Func, Op, Region

CACHED = 8 << 10  # bytes of one tensor's rows in a strip: half a dozen tensors are in use at once


def apply(func: Func, uses: Uses) -> bool:
    """Form strips in every block of a function; has anything changed?"""
    arguments = set(func.body.entry.args)
    found = [_block(b, uses, arguments) for b in list(strips.blocks(func.body.blocks))]
    return any(found)


def _block(block: Block, uses: Uses, arguments: set[str]) -> bool:
    types = strips.Types(uses)
    out: list[Op] = []
    rest, changed = block.ops, False
    while rest:
        size = next((k for k, op in enumerate(rest) if not _goes(op)), len(rest))
        group = _group(rest[:size], types, uses, arguments) if size else None
        if group is None:
            out += rest[: size + 1]
            rest = rest[size + 1 :]
            continue
        changed = True
        out += [*group.before, _either(group, block, uses, types), *group.after]
        rest = rest[group.length :]
    if changed:
        for k, op in enumerate(out):
            op.index = k
        block.ops = out
    return changed


def _goes(op: Op) -> bool:
    return op.name in strips.FOLDS or op.name == "tt.store" or strips.plain(op)


class _Group:
    """The ops of a stretch that go into strips, those before and those after them.

    ``length``: of the stretch, which ends where an op may not change places with the group.
    """

    def __init__(self, m: int, rows: int) -> None:
        self.m, self.rows, self.length = m, rows, 0
        self.apart: list[tuple[str, str]] = []
        self.names: set[str] = set()  # what a strip has rows of
        self.inside: list[Op] = []
        self.before: list[Op] = []
        self.after: list[Op] = []
        self.behind: set[str] = set()  # what is known after the strips only

    def grow(self, ops: list[Op], types: strips.Types, uses: Uses) -> None:
        for op in ops:
            if not self._takes(op, types, uses):
                return
            self.length += 1

    def _takes(self, op: Op, types: strips.Types, uses: Uses) -> bool:
        late = any(v in self.behind for v in op.operands)
        if op.name == "tt.store":
            if late or any(o.name == "tt.load" for o in self.after) or not self._stores(op, types):
                return False
            self.inside.append(op)
        elif late:
            self._later(op)
        elif _loads(op, self.m):
            self._add(op)
        elif op.name == "tt.load":
            if any(o.name == "tt.store" for o in self.inside):
                return False
            self.before.append(op)
        elif any(v in self.names for v in op.operands):
            if strips.by_rows(op, self.m, self.names, types):
                self._add(op)
            elif self._down(op, types):
                self.inside.append(op)
                self.behind.update(op.results)
            else:
                self._later(op)
        else:
            self.before.append(op)
        return True

    def _add(self, op: Op) -> None:
        self.names.update(op.results)
        self.inside.append(op)

    def _later(self, op: Op) -> None:
        self.behind.update(op.results)
        self.after.append(op)

    def _stores(self, op: Op, types: strips.Types) -> bool:
        of = [types.of(v) for v in op.operands]
        tall = all(t is not None and t.tensor and t.shape[:1] == (self.m,) for t in of)
        return tall and op.operands[1] in self.names

    def _down(self, op: Op, types: strips.Types) -> bool:
        """Is this a reduction down the columns of what a strip has rows of?"""
        if op.name != "tt.reduce" or op.attr_int("axis") != 0 or len(op.operands) != 1:
            return False
        of = types.of(op.operands[0])
        # The first rows are combined with what lies in memory, and that is thrown away.
        safe = not any(o.name.startswith(("arith.div", "arith.rem")) for o in _combined(op))
        return safe and len(of.shape) == 2 and of.shape[0] == self.m and of.elem != "i1"

    def trim(self, uses: Uses) -> None:
        """Leave maps at the end to those who read them."""
        for op in reversed(list(self.inside)):
            inside = {id(o) for o in self.inside}
            users = [u for r in op.results for u in uses.of(r)]
            last = not any(id(u) in inside for u in users)
            if op.results and last and op.name not in (*strips.FOLDS, "tt.load"):
                self.inside.remove(op)
                self.after.insert(0, op)

    def pays(self, seed: Op, uses: Uses) -> bool:
        """Does nothing as large as what a strip works on come out of it but by its stores?"""
        inside = {id(op) for op in self.inside}
        for op in self.inside:
            for r, t in zip(op.results, op.result_types, strict=True):
                wide = len(t.shape) == 2 and t.shape[1] > 1 and op.name != "tt.reduce"
                if wide and any(id(u) not in inside for u in uses.of(r)):
                    return False
        return id(seed) in inside

    def pairs(self, uses: Uses, arguments: set[str]) -> list[tuple[str, str]] | None:
        """Arguments that may not overlap: what is stored, and what else is loaded or stored."""
        roots = {
            name: [uses.root(op.operands[0]) for op in self.inside if op.name == name]
            for name in ("tt.load", "tt.store")
        }
        stored = roots["tt.store"]
        if stored and (
            len(set(stored)) < len(stored)
            or set(stored) & set(roots["tt.load"])
            or not {*stored, *roots["tt.load"]} <= arguments
        ):
            return None
        apart = {(a, b) for a in roots["tt.load"] for b in stored}
        return sorted(apart | {(a, b) for a in stored for b in stored if a < b})


def _combined(op: Op) -> list[Op]:
    return [o for region in op.regions for b in region.blocks for o in b.ops]


def _loads(op: Op, m: int) -> bool:
    if op.name != "tt.load" or "isVolatile" in op.attrs:
        return False
    ty = op.result_types[0]
    return ty.tensor and len(ty.shape) == 2 and ty.shape[0] == m


def _group(ops: list[Op], types: strips.Types, uses: Uses, arguments: set[str]) -> _Group | None:
    """The first group that pays."""
    if any(op.name == "tt.dot" for op in ops):
        return None
    for seed in ops:
        if seed.name != "tt.reduce" or seed.attr_int("axis") != 1 or len(seed.operands) != 1:
            continue
        of = types.of(seed.operands[0])
        if len(of.shape) != 2:
            continue
        m, row = of.shape[0], of.shape[1] * BYTES["f32"]
        rows = 1 << (max(1, CACHED // row).bit_length() - 1)
        if m < 2 * rows or m % rows or m * row < strips.LEAST_BYTES:
            continue
        group = _Group(m, rows)
        group.grow(ops, types, uses)
        group.trim(uses)
        apart = group.pairs(uses, arguments)
        if group.pays(seed, uses) and apart is not None:
            group.apart = apart
            return group
    return None


def _either(group: _Group, block: Block, uses: Uses, types: strips.Types) -> Op:
    """Both ways through a group."""
    strip = _Rows([_copy(op) for op in group.inside], group, block, uses, types).op
    out = Op("strip.either", list(strip.results), block=block, loc=strip.loc,
             result_types=list(strip.result_types))  # fmt: skip
    out.attrs = {"apart": " ".join(f"{a}/{b}" for a, b in group.apart)}
    ways = group.inside if group.apart else [], [strip]
    for ops in ways:
        body = Block(label="way", parent=out)
        body.ops = [*ops, Op("strip.yield", operands=list(strip.results))] if ops else []
        for k, op in enumerate(body.ops):
            op.block, op.index = body, k
        out.regions.append(Region([body]))
    return out


def _copy(op: Op) -> Op:
    """An op, and what it combines by."""
    new = Op(op.name, list(op.results), list(op.operands), dict(op.attrs), list(op.words),
             list(op.types), result_types=list(op.result_types), loc=op.loc)  # fmt: skip
    for region in op.regions:
        blocks = []
        for b in region.blocks:
            block = Block(b.label, list(b.args), list(b.arg_types), [_copy(o) for o in b.ops], new)
            for k, o in enumerate(block.ops):
                o.block, o.index = block, k
            blocks.append(block)
        new.regions.append(Region(blocks))
    return new


class _Rows(strips.Strip):
    """Builds one ``strip.for`` of copies of a group's ops."""

    def __init__(self, ops: list[Op], group: _Group, *rest) -> None:
        self.outside = {r: _outside(r, group, rest[1]) for op in ops for r in op.results}
        super().__init__(ops, (group.m, group.rows), *rest)

    def comes_out(self, name: str, inside: set[int]) -> bool:
        return self.outside[name]

    def take(self, op: Op) -> None:
        if op.name != "tt.reduce" or op.attr_int("axis") != 0:
            super().take(op)
            return
        op.name = "strip.fold"
        op.operands = [*op.operands, self.row]
        self.folds += op.results
        self.add(op)


def _outside(name: str, group: _Group, uses: Uses) -> bool:
    inside = {id(op) for op in group.inside}
    return any(id(u) not in inside for u in uses.of(name))
