"""Groups of ops whose rows do not know each other, made into loops over strips of rows.

Attention's scores are the example: ``s = q k^T``, a row maximum, ``exp``, a row sum and ``p v``.
Row i of each needs row i of the others only, and all of k and v. Done one op after the other,
256 x 256 scores are written and read four times through the second-level cache; done for 32 rows
at a time, scores and weights stay in the first. The pass turns

    %s = tt.dot %q, %kt, ...            %b = strip.pack %kt           (once for all strips)
    %m = tt.reduce %s ...        ->     %c = strip.pack %v
    %o = tt.dot %p, %v, %acc            %o = strip.for (%r = 0, 32, ...) (%q' = %q, %acc' = %acc) {
                                            %s = tt.dot %q', %b ...   : 32 rows
                                            strip.yield %o' }

``strip.for`` binds its row and, for each operand, the strip's rows of it. Index arithmetic that
depends on the row is done anew inside, so that masks stay comparisons of ramps.
"""

from __future__ import annotations

from collections.abc import Iterable

from codegen.cpu.lower.elementwise import TABLE
from codegen.cpu.lower.uses import Uses, writes
from codegen.cpu.ttir import BYTES, Block, Func, Op, Region, Type

SHORT, TALL = 32, 64  # rows: two matrix tiles of bf16; else panels are read half as often
NEAR = 32 << 10  # bytes of several products that are used up inside: the first-level cache
LEAST_BYTES = 24 << 10  # of a product that is used up inside: less stays near anyway
_INTEGER = ("i1", "i8", "i16", "i32", "i64", "ptr")
FOLDS = ("tt.reduce", "tt.scan")
ENDS = ("tt.return", "scf.yield", "scf.condition", "strip.yield")


def apply(func: Func, uses: Uses) -> bool:
    """Form strips in every block of a function; has anything changed?"""
    found = [_block(b, uses) for b in list(blocks(func.body.blocks))]
    return any(found)


def blocks(of: Iterable[Block]):
    """Blocks and those inside them, but for what reductions combine by."""
    for b in of:
        yield b
        for op in b.ops:
            if op.name not in FOLDS:
                for region in op.regions:
                    yield from blocks(region.blocks)


def _block(block: Block, uses: Uses) -> bool:
    """Strips in the stretches of a block between ops that write memory or branch."""
    ops, out, stretch, changed = block.ops, [], [], False
    for op in [*ops, None]:
        if op is not None and (op.name in FOLDS or plain(op)):
            stretch.append(op)
            continue
        done = _stretch(stretch, block, uses)
        changed = changed or done is not stretch
        out += done
        if op is not None:
            out.append(op)
        stretch = []
    for k, op in enumerate(out):
        op.index = k
    block.ops = out
    return changed


def plain(op: Op) -> bool:
    """Does an op neither branch nor write memory nor end its block?"""
    return not (op.name in ENDS or op.regions or op.successors or writes(op))


class Types:
    """Types of values by name."""

    def __init__(self, uses: Uses) -> None:
        self.uses = uses

    def of(self, name: str) -> Type | None:
        owner = self.uses.defs.get(name)
        if isinstance(owner, Block):
            return owner.arg_types[owner.args.index(name)]
        if owner is None:
            return None
        if name in owner.results:
            return owner.result_types[owner.results.index(name)]
        if owner.name == "scf.for":
            k = owner.binds.index(name)
            return owner.result_types[k - 1] if k else None
        return None


def _stretch(ops: list[Op], block: Block, uses: Uses) -> list[Op]:
    types = Types(uses)
    for seed in ops:
        if seed.name != "tt.dot" or len(seed.result_types[0].shape) != 2:
            continue
        m = seed.result_types[0].shape[0]
        rows = SHORT if any("xbf16>" in t or "xf16>" in t for t in seed.types) else TALL
        if m < 2 * rows or m % rows:
            continue
        alone = [op for op in ops if rows == SHORT and _in_place(op, uses)]
        group, later = _grow(ops, m, types, alone)
        group, later = _trim(ops, group, later, uses)
        if rows == TALL and _used_up(group, uses) * TALL > NEAR:
            rows = SHORT
        if _pays(group, uses):
            return _rewrite(ops, group, later, (m, rows), block, uses, types)
    return ops


def _in_place(op: Op, uses: Uses) -> bool:
    """Is a product only added to memory? In matrix tiles that is done where it lies."""
    if op.name != "tt.dot":
        return False
    there = uses.defs.get(op.operands[2])
    loaded = isinstance(there, Op) and there.name == "tt.load"
    return loaded and [u.name for u in uses.of(op.results[0])] == ["tt.store"]


def _grow(
    ops: list[Op], m: int, types: Types, alone: Iterable[Op] = ()
) -> tuple[list[Op], list[Op]]:
    """The group that begins with the first product of ``m`` rows, and the ops that follow it.

    Those ``alone`` stay out of it.
    """
    apart = {id(op) for op in alone}
    rows: set[str] = set()
    after: set[str] = set()
    group, later = [], []
    for op in ops:
        inside = any(v in rows for v in op.operands)
        if any(v in after for v in op.operands):
            after.update(op.results)
            later.append(op)
        elif (
            id(op) not in apart and (inside or op.name == "tt.dot") and by_rows(op, m, rows, types)
        ):
            rows.update(op.results)
            group.append(op)
        elif inside:
            after.update(op.results)
            later.append(op)
    return group, later


def by_rows(op: Op, m: int, rows: set[str], types: Types) -> bool:
    """Does row i of an op's results depend on row i of its operands only?"""
    if not op.results or any(not t.tensor or not t.shape or t.shape[0] != m
                             for t in op.result_types):  # fmt: skip
        return False
    shapes = [types.of(v) for v in op.operands]
    if op.name in TABLE:
        shape = op.result_types[0].shape
        return all(t is not None and (not t.tensor or t.shape == shape) for t in shapes)
    if op.name == "tt.expand_dims":
        return op.attr_int("axis") > 0
    if op.name == "tt.broadcast":
        return shapes[0] is not None and shapes[0].shape[0] == m
    if op.name in FOLDS:
        plain = all(t is not None and t.shape[0] == m for t in shapes)
        return plain and op.attr_int("axis") > 0
    if op.name == "tt.dot":
        return (len(op.result_types[0].shape) == 2 and op.operands[1] not in rows
                and len(op.operands) == 3 and None not in shapes)  # fmt: skip
    return False


def _trim(ops: list[Op], group: list[Op], later: list[Op], uses: Uses):
    """Leave element-wise ops at the end to those who read them, unless a loop carries them."""
    kept = list(group)
    for op in reversed(group):
        inside = {id(o) for o in kept}
        users = [u for r in op.results for u in uses.of(r)]
        if op.name in ("tt.dot", *FOLDS) or any(id(u) in inside for u in users):
            continue
        if not any(u.name == "scf.yield" for u in users):
            kept.remove(op)
    gone = {id(o) for o in group} - {id(o) for o in kept} | {id(o) for o in later}
    return kept, [op for op in ops if id(op) in gone]


def _pays(group: list[Op], uses: Uses) -> bool:
    """Is a large product used up by another product, a reduction or a scan of the group?"""
    inside = {id(op) for op in group}
    for op in group:
        ty = op.result_types[0]
        if op.name != "tt.dot" or ty.shape[0] * ty.shape[1] * BYTES[ty.elem] < LEAST_BYTES:
            continue
        users = uses.of(op.results[0])
        if users and all(id(u) in inside for u in users) and _ends(op, inside, uses):
            return True
    return False


def _used_up(group: list[Op], uses: Uses) -> int:
    """Bytes in a row of products that nobody reads outside, where there are two or more."""
    inside = {id(op) for op in group}
    types = [op.result_types[0] for op in group if op.name == "tt.dot"
             and all(id(u) in inside for u in uses.of(op.results[0]))]  # fmt: skip
    return sum(t.shape[1] * BYTES[t.elem] for t in types) if len(types) > 1 else 0


def _ends(op: Op, inside: set[int], uses: Uses) -> bool:
    pending, seen = [op], set()
    while pending:
        here = pending.pop()
        for r in here.results:
            for u in uses.of(r):
                if id(u) in inside and id(u) not in seen:
                    if u.name in ("tt.dot", *FOLDS):
                        return True
                    seen.add(id(u))
                    pending.append(u)
    return False


def _rewrite(ops, group, later, rows, block: Block, uses: Uses, types: Types) -> list[Op]:
    inside, follow = {id(op) for op in group}, {id(op) for op in later}
    before = [op for op in ops if id(op) not in inside and id(op) not in follow]
    strip = Strip(group, rows, block, uses, types)
    return [*before, *strip.packs, strip.op, *later]


class Strip:
    """Builds one ``strip.for`` out of a group of ops."""

    def __init__(self, group, rows: tuple[int, int], block, uses: Uses, types: Types) -> None:
        (self.m, self.count), self.block, self.uses, self.types = rows, block, uses, types
        self.mark = next(r for op in group for r in op.results) + "'"
        self.made: dict[str, str] = {}  # a value: the rows of it that belong to the strip
        self.packs: list[Op] = []
        self.folds: list[str] = []  # results that have columns only (codegen.cpu.rows)
        self.row = f"{self.mark}.strip"
        first = group[0]
        self.op = Op("strip.for", binds=[self.row], block=block, loc=first.loc)
        body = Block(label="strip", parent=self.op)
        self.body = body
        self.op.regions = [Region([body])]
        self.own = {r for op in group for r in op.results}
        for op in group:
            self.take(op)
        inside = {id(op) for op in group}
        out = [(r, t) for op in group for r, t in zip(op.results, op.result_types, strict=True)
               if self.comes_out(r, inside)]  # fmt: skip
        self.op.results = [r for r, _ in out]
        self.op.result_types = [t if r in self.folds else self.tall(t) for r, t in out]
        self.op.attrs = {"rows": str(self.m), "step": str(self.count)}
        if self.folds:
            self.op.attrs["folds"] = "true"
        renamed = {r: f"{r}'" for r, _ in out}
        for op in body.ops:
            op.results = [renamed.get(r, r) for r in op.results]
            op.operands = [renamed.get(v, v) for v in op.operands]
        self.add(Op("strip.yield", operands=[renamed[r] for r, _ in out]))

    def comes_out(self, name: str, inside: set[int]) -> bool:
        """Is a result of the group wanted outside of it?"""
        return any(id(u) not in inside for u in self.uses.of(name))

    def add(self, op: Op) -> None:
        op.block, op.index = self.body, len(self.body.ops)
        self.body.ops.append(op)

    def short(self, ty: Type) -> Type:
        return Type(ty.elem, (self.count, *ty.shape[1:]), True, ty.pointee)

    def tall(self, ty: Type) -> Type:
        return Type(ty.elem, (self.m, *ty.shape[1:]), True, ty.pointee)

    def take(self, op: Op) -> None:
        """Move an op of the group into the strip."""
        right = op.operands[1] if op.name == "tt.dot" else None
        op.operands = [v if k == 1 and right is not None else self.rows(v)
                       for k, v in enumerate(op.operands)]  # fmt: skip
        if right is not None:
            op.operands[1] = self.pack(op, right)
        op.result_types = [self.short(t) for t in op.result_types]
        self.add(op)

    def pack(self, op: Op, right: str) -> str:
        """The right operand, brought into the order that the product reads, once for all strips."""
        name = f"{op.results[0]}'packed"
        ty = self.types.of(right)
        left = self.types.of(op.operands[0]) or self.types.of(self.origin(op.operands[0]))
        attrs = {"a": left.elem, "out": op.result_types[0].elem, "rows": str(self.count)}
        self.packs.append(Op("strip.pack", [name], [right], attrs, result_types=[ty],
                             block=self.block, loc=op.loc))  # fmt: skip
        return name

    def origin(self, name: str) -> str:
        return next((v for v, s in self.made.items() if s == name), name)

    def rows(self, name: str) -> str:
        """The strip's rows of a value: made in the strip, made anew there, or bound by it."""
        ty = self.types.of(name)
        if name in self.own or ty is None or not ty.tensor:
            return name
        if name not in self.made:
            self.made[name] = self.again(name) or self.bind(name)
        return self.made[name]

    def bind(self, name: str) -> str:
        self.op.operands.append(name)
        self.op.binds.append(f"{self.mark}{name[1:]}")
        return self.op.binds[-1]

    def again(self, name: str) -> str | None:
        """Index arithmetic and constants for the strip's rows."""
        op = self.uses.defs.get(name)
        if not isinstance(op, Op) or name not in op.results:
            return None
        ty = op.result_types[0]
        new = f"{self.mark}{name[1:]}"
        if op.name == "arith.constant":
            return self.clone(op, new, []) if "[" not in "".join(w for w in op.words if w) else None
        if op.name == "tt.splat":
            return self.clone(op, new, op.operands)
        if op.name == "tt.make_range":
            i32 = Type(ty.elem, (self.count,), True)
            start = op.attr_int("start")
            attrs = {"start": f"{start} : i32", "end": f"{start + self.count} : i32"}
            self.add(Op("tt.make_range", [f"{new}.a"], [], attrs, result_types=[i32], loc=op.loc))
            self.add(Op("tt.splat", [f"{new}.b"], [self.row], result_types=[i32], loc=op.loc))
            self.add(Op("arith.addi", [new], [f"{new}.a", f"{new}.b"], result_types=[i32],
                        loc=op.loc))  # fmt: skip
            return new
        if ty.elem not in _INTEGER or not self.index(op):
            return None
        if op.name == "tt.broadcast" and self.types.of(op.operands[0]).shape[0] == 1:
            return self.clone(op, new, op.operands)
        return self.clone(op, new, [self.rows(v) for v in op.operands])

    def index(self, op: Op) -> bool:
        """Is this arithmetic on indices, whose operands have the rows that the result has?"""
        if op.name == "tt.expand_dims":
            return op.attr_int("axis") > 0
        if op.name == "tt.broadcast":
            return True
        operands = [self.types.of(v) for v in op.operands]
        return op.name in TABLE and all(t is not None and t.elem in _INTEGER for t in operands)

    def clone(self, op: Op, name: str, operands: list[str]) -> str:
        self.add(Op(op.name, [name], list(operands), dict(op.attrs), list(op.words),
                    list(op.types), result_types=[self.short(op.result_types[0])],
                    loc=op.loc))  # fmt: skip
        return name
