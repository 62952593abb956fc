"""The checking mode: every access to memory asks before it happens and is written down.

A checked program reads a block where its load stands, one element at a time, in program order. An
access that lies outside of the tensor its pointer was made from does not happen (a load gives
zero). Every other one goes into shadow memory: per granule of a tensor (the smallest access of the
kernel) the last program that wrote, the last two that read, and when. ``codegen.cpu.check`` makes
these tables for a launch and turns what was found into an error.

Programs run one after another, so order between two of them has to be earned: a program is ordered
behind what happened before the last release of a location that it acquires by an atomic operation
whose result it uses (one that ignores the result cannot know who came first). Two accesses of
different programs, not both atomic, without that order are a race if one writes; programs that
write the same value do not race with each other.
"""

from __future__ import annotations

from codegen.cpu.emit import LLVM, Emit, Val, const, ll
from codegen.cpu.lower import access
from codegen.cpu.lower.tensor import Tensor, loops, nest
from codegen.cpu.ttir import BYTES, Op

# What the launcher hands over, in 8-byte words: status of assertions, table of regions, their
# number, region per argument, records, log2 of the granule, the clock (it ticks at each release),
# up to when the running program is ordered, and whether a pointer without bounds was passed.
STATUS, REGIONS, COUNT, ARGUMENTS, RECORDS, SHIFT, CLOCK, ORDERED, OPEN = range(9)
WORDS = 9
REGION_BYTES = 32  # start, end, start of its shadow's segment, first cell
BARE, NOTHING = -1, -2  # regions of arguments that have none
RECORD_BYTES = 32  # count (8 bytes), program, other program, other site, unused, address (8)
KINDS = ("bounds", "unwritten", "write-write", "read-write", "write-read")
OUTSIDE, UNWRITTEN, TWO_WRITES, READS_WRITTEN, WRITES_READ = range(len(KINDS))
# A cell, in 4-byte words: (program + 1, when, site) of the last writer, the other writer before
# it, the last reader and the other reader before it; the last release. ATOMIC marks atomics' sites.
WRITER, WRITER2, READER, READER2, RELEASE = 0, 3, 6, 9, 12
CELL_BYTES = 52
ATOMIC = 1 << 30
POISON = 0x7FA5C3E1  # fills memory that nobody wrote: a NaN as fp32 and in its upper 16 bits


def _i(value: int) -> Val:
    return const("i32", value)


class _Function:
    """One function of the checks' run-time part, written with the kernel's own builder."""

    def __init__(self, features, head: str) -> None:
        self.e, self.head = Emit(features), head

    def word(self, number: int) -> Val:
        """A word of the launch's table."""
        at = self.e.raw(f"getelementptr i8, ptr %ctx, i64 {8 * number}")
        return self.e.wrap("i64", self.e.raw(f"load i64, ptr {at}, align 8"), 0)

    def at(self, base: Val, offset: int) -> str:
        """Pointer to base + offset bytes, base being an integer."""
        sum_ = self.e.add(base, const("i64", offset))
        return self.e.raw(f"inttoptr i64 {self.e.operand(sum_)} to ptr")

    def get(self, base: Val, offset: int, ty: str = "i32") -> Val:
        p = self.at(base, offset)
        return self.e.wrap(ty, self.e.raw(f"load {LLVM[ty]}, ptr {p}, align 4"), 0)

    def put(self, base: Val, offset: int, value: Val) -> None:
        text = self.e.operand(value)
        self.e.line(f"store {LLVM[value.ty]} {text}, ptr {self.at(base, offset)}, align 4")

    def test(self, kind: str, a: Val, b: Val) -> Val:
        return self.e.op(f"icmp {kind}", a.ty, a, b, out="i1")

    def both(self, a: Val, b: Val) -> Val:
        return self.e.op("and", "i1", a, b)

    def note(self, kind: int, other: Val, other_site: Val) -> None:
        """Count a fault of the running access, keeping the first one's particulars."""
        args = f"i32 {kind}, i32 {self.e.operand(other)}, i32 {self.e.operand(other_site)}"
        self.e.line(
            f"call void @guard.note(ptr %ctx, i32 %site, i32 %program, i64 %address, {args})"
        )

    def text(self) -> str:
        return f"define internal {self.head} nounwind noinline {{\nentry:\n{self.e.text()}\n}}"


def _param(name: str, ty: str = "i32") -> Val:
    return Val(ty, "u", f"%{name}")


def _note(features) -> _Function:
    f = _Function(features, "void @guard.note(ptr %ctx, i32 %site, i32 %program, i64 %address, "
                  "i32 %kind, i32 %other, i32 %theirs)")  # fmt: skip
    e = f.e
    number = e.add(e.mul(_param("site"), _i(len(KINDS))), _param("kind"))
    record = e.add(f.word(RECORDS), e.mul(e.extend(number, "i64"), const("i64", RECORD_BYTES)))
    count = f.get(record, 0, "i64")
    f.put(record, 0, e.add(count, const("i64", 1)))

    def first() -> None:
        f.put(record, 8, _param("program"))
        f.put(record, 12, _param("other"))
        f.put(record, 16, _param("theirs"))
        f.put(record, 24, _param("address", "i64"))

    e.branch_if(f.test("eq", count, const("i64", 0)), first)
    e.line("ret void")
    return f


def _find(features) -> _Function:
    """The first cell of an access; 1 for memory without bounds; 0 (and a note) if it is outside."""
    f = _Function(features, "i64 @guard.find(ptr %ctx, i32 %site, i32 %program, i64 %address, "
                  "i64 %size, i32 %argument)")  # fmt: skip
    e, address, size = f.e, _param("address", "i64"), _param("size", "i64")
    argument = _param("argument")
    e.line("%found = alloca i64")
    e.line("store i64 0, ptr %found")

    def attempt(number: Val) -> None:
        """Sets %found if the access lies inside the region."""
        region = e.add(f.word(REGIONS), e.mul(number, const("i64", REGION_BYTES)))
        start, end = f.get(region, 0, "i64"), f.get(region, 8, "i64")
        past = e.add(e.sub(address, start), size)
        fits = f.both(f.test("ult", e.sub(address, start), e.sub(end, start)),
                      f.test("ule", past, e.sub(end, start)))  # fmt: skip

        def hit() -> None:
            granule = e.op("lshr", "i64", e.sub(address, f.get(region, 16, "i64")), f.word(SHIFT))
            cell = e.add(f.get(region, 24, "i64"), e.mul(granule, const("i64", CELL_BYTES)))
            e.line(f"store i64 {e.operand(cell)}, ptr %found")

        e.branch_if(fits, hit)

    def anywhere() -> None:
        e.line(f"store i64 {e.operand(f.word(OPEN))}, ptr %found")
        e.loop(0, f.word(COUNT), 1, lambda k, _: attempt(k), ty="i64")

    def one() -> None:
        place = e.add(f.word(ARGUMENTS), e.mul(e.extend(argument, "i64"), const("i64", 4)))
        region = f.get(place, 0)
        e.branch_if(f.test("sge", region, _i(0)), lambda: attempt(e.extend(region, "i64")))
        e.branch_if(f.test("eq", region, _i(BARE)), lambda: e.line("store i64 1, ptr %found"))

    e.branch_if(f.test("slt", argument, _i(0)), anywhere, one)
    found = e.wrap("i64", e.raw("load i64, ptr %found"), 0)
    e.branch_if(f.test("eq", found, const("i64", 0)), lambda: f.note(OUTSIDE, _i(0), _i(0)))
    e.line(f"ret i64 {e.operand(found)}")
    return f


def _marker(features, name: str, extra: str, body, before=None) -> _Function:
    """A function that visits the cells of an access."""
    f = _Function(features, f"void @guard.{name}(ptr %ctx, i32 %site, i32 %program, i64 %address, "
                  f"i64 %size, i64 %cell{extra})")  # fmt: skip
    e = f.e
    cells = e.op("lshr", "i64", _param("size", "i64"), f.word(SHIFT))
    shadowed = f.test("ne", _param("cell", "i64"), const("i64", 1))

    def visit(k: Val, _) -> None:
        cell = e.add(_param("cell", "i64"), e.mul(k, const("i64", CELL_BYTES)))
        body(f, cell)

    def run() -> None:
        if before:
            before(f)
        e.loop(0, cells, 1, visit, ty="i64")

    e.branch_if(shadowed, run)
    e.line("ret void")
    return f


def _conflict(f: _Function, cell: Val, who: int, only: Val | None = None) -> Val:
    """Is there another program at ``who`` whose access the running one is not ordered behind?"""
    other = f.get(cell, 4 * who)
    hit = f.both(f.test("ne", other, _i(0)), f.test("ne", other, _param("program")))
    late = f.test("ugt", f.e.extend(f.get(cell, 4 * who + 4), "i64", False), f.word(ORDERED))
    hit = f.both(hit, late)
    return hit if only is None else f.both(hit, only)


def _plain(f: _Function, cell: Val, who: int) -> Val:
    """Was the access at ``who`` no atomic one?"""
    bit = f.e.op("and", "i32", f.get(cell, 4 * who + 8), _i(ATOMIC))
    return f.test("eq", bit, _i(0))


def _report(f: _Function, cell: Val, kind: int, pair, only=None) -> None:
    """Note a conflict with either of two accesses."""
    a, b = pair

    def note(who: int) -> None:
        f.note(kind, f.get(cell, 4 * who), f.get(cell, 4 * who + 8))

    def second() -> None:
        hit = _conflict(f, cell, b, only(b) if only else None)
        f.e.branch_if(hit, lambda: note(b))

    f.e.branch_if(_conflict(f, cell, a, only(a) if only else None), lambda: note(a), second)


def _enter(f: _Function, cell: Val, who: int, site: Val, keep: Val) -> None:
    """The running access becomes the last one; another program's moves on if ``keep``."""
    e = f.e
    other = f.test("ne", f.get(cell, 4 * who), _param("program"))

    def move() -> None:
        for k in range(3):
            f.put(cell, 4 * (who + 3 + k), f.get(cell, 4 * (who + k)))

    e.branch_if(f.both(other, keep), move)
    f.put(cell, 4 * who, _param("program"))
    f.put(cell, 4 * who + 4, e.cast("trunc", f.word(CLOCK), "i32"))
    f.put(cell, 4 * who + 8, site)


def _read_cell(f: _Function, cell: Val) -> None:
    _report(f, cell, READS_WRITTEN, (WRITER, WRITER2))
    _enter(f, cell, READER, _param("site"), const("i1", 1))


def _poisoned(f: _Function) -> None:
    """Note a read of the pattern that unwritten memory is filled with: the element's own bytes, or
    the four around a smaller one."""
    e, address, size = f.e, _param("address", "i64"), _param("size", "i64")

    def word(at: Val) -> Val:
        return f.test("eq", f.get(at, 0), _i(POISON))

    aligned = e.op("and", "i64", address, const("i64", -4))
    # Storage of torch begins at multiples of 64 bytes and what it was allocated in ends there.
    bad = word(aligned)
    end = e.op("and", "i64", e.sub(e.add(address, size), const("i64", 1)), const("i64", -4))
    bad = f.both(bad, word(end))
    e.branch_if(bad, lambda: f.note(UNWRITTEN, _i(0), _i(0)))


def _write_cell(f: _Function, cell: Val) -> None:
    differs = _param("differs", "i1")

    def matters(who: int) -> Val:
        plain = _plain(f, cell, who)
        return f.e.op("or", "i1", differs, f.e.op("xor", "i1", plain, const("i1", 1)))

    _report(f, cell, TWO_WRITES, (WRITER, WRITER2), matters)
    _report(f, cell, WRITES_READ, (READER, READER2))
    _enter(f, cell, WRITER, _param("site"), differs)


def _atomic_cell(f: _Function, cell: Val) -> None:
    e = f.e
    clock = e.cast("trunc", f.word(CLOCK), "i32")

    def acquire() -> None:
        last = e.extend(f.get(cell, 4 * RELEASE), "i64", False)
        now = e.call("llvm.umax", "i64", last, f.word(ORDERED))
        p = e.raw(f"getelementptr i8, ptr %ctx, i64 {8 * ORDERED}")
        e.line(f"store i64 {e.operand(now)}, ptr {p}, align 8")

    def release() -> None:
        f.put(cell, 4 * RELEASE, clock)
        p = e.raw(f"getelementptr i8, ptr %ctx, i64 {8 * CLOCK}")
        more = e.add(f.word(CLOCK), const("i64", 1))
        e.line(f"store i64 {e.operand(more)}, ptr {p}, align 8")

    e.branch_if(_param("acquires", "i1"), acquire)
    _report(f, cell, TWO_WRITES, (WRITER, WRITER2), lambda who: _plain(f, cell, who))
    _report(f, cell, WRITES_READ, (READER, READER2))
    # A program's own plain write keeps being one.
    mine = f.test("eq", f.get(cell, 4 * WRITER), _param("program"))
    keeps = f.both(mine, _plain(f, cell, WRITER))
    mark = e.select(keeps, _i(0), _i(ATOMIC))
    _enter(f, cell, WRITER, e.op("or", "i32", _param("site"), mark), const("i1", 1))
    e.branch_if(_param("releases", "i1"), release)


def runtime(features) -> tuple[str, dict[str, str]]:
    """The text of the run-time functions and the intrinsics that they declare."""
    functions = [
        _note(features), _find(features), _marker(features, "read", "", _read_cell, _poisoned),
        _marker(features, "write", ", i1 %differs", _write_cell),
        _marker(features, "atomic", ", i1 %acquires, i1 %releases", _atomic_cell)]  # fmt: skip
    declared = {}
    for f in functions:
        declared.update(f.e.declared)
    return "\n".join(f.text() for f in functions), declared


# -- accesses --------------------------------------------------------------------------------


class _Access:
    """One op's accesses: its site, the argument behind its pointer, its element."""

    def __init__(self, low, op: Op, elem: str) -> None:
        self.low, self.e = low, low.e
        self.elem, self.size = elem, BYTES[elem]
        args = low.func.body.entry.args
        root = low.uses.root(op.operands[0]) if low.uses is low.own_uses else None
        self.argument = args.index(root) if root in args else -1
        low.sites.append((low.module.where(op.loc), op.name, self.argument, self.size))
        self.site = len(low.sites) - 1

    def _common(self, address: str) -> str:
        return (f"ptr %status, i32 {self.site}, i32 %program, i64 {address}, "
                f"i64 {self.size}")  # fmt: skip

    def allowed(self, p: Val, then) -> None:
        """Run ``then(mark)`` if the access may happen; ``mark(name, extra)`` writes it down."""
        e = self.e
        address = e.raw(f"ptrtoint ptr {e.operand(p)} to i64")
        common = self._common(address)
        cell = e.raw(f"call i64 @guard.find({common}, i32 {self.argument})")

        def mark(name: str, extra: str = "") -> None:
            e.line(f"call void @guard.{name}({common}, i64 {cell}{extra})")

        inside = e.op("icmp ne", "i64", e.wrap("i64", cell, 0), const("i64", 0), out="i1")
        e.branch_if(inside, lambda: then(mark))


def _where(e: Emit, mask: Val | None, then) -> None:
    if mask is None:
        then()
    else:
        e.branch_if(mask, then)


def load(low, op: Op) -> None:
    """tt.load, here and now."""
    ty, e = op.result_types[0], low.e
    ptr, mask, other = ([low.env[v] for v in op.operands] + [None, None])[:3]
    check = _Access(low, op, ty.elem)
    kind = LLVM[ty.elem]

    def one(p: Val, m: Val | None, fill: Val | None) -> Val:
        slot = low.slot(ty.elem)
        zero = "zeroinitializer" if fill is None else e.operand(fill)
        e.line(f"store {kind} {zero}, ptr {slot}")

        def go(mark) -> None:
            mark("read")
            got = access.load(e, ty.elem, p, None, None)
            e.line(f"store {kind} {e.operand(got)}, ptr {slot}")

        _where(e, m, lambda: check.allowed(p, go))
        return e.wrap(ty.elem, e.raw(f"load {kind}, ptr {slot}"), 0)

    if not ty.tensor:
        low.env[op.results[0]] = one(ptr, mask, other)
        return
    out = low.alloc(ty)
    with nest(e) as g:

        def body(idx) -> None:
            parts = [None if t is None else g.at(t, idx) if isinstance(t, Tensor) else t
                     for t in (ptr, mask, other)]  # fmt: skip
            out.put(g, idx, one(*parts))

        loops(g, ty.shape, None, 1, body)
    low.env[op.results[0]] = out


def store(low, op: Op) -> None:
    """tt.store."""
    e = low.e
    ptr, value, mask = ([low.env[v] for v in op.operands] + [None])[:3]
    elem = value.ty if isinstance(value, Val) else value.type.elem
    check = _Access(low, op, elem)
    word = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}[check.size]

    def one(p: Val, v: Val, m: Val | None) -> None:
        def go(mark) -> None:
            old = e.wrap(word, e.raw(f"load {word}, ptr {e.operand(p)}, align {check.size}"), 0)
            new = e.extend(v, "i8", signed=False) if elem == "i1" else v
            text = e.operand(new)
            if ll(new.ty) == "ptr":
                text = e.raw(f"ptrtoint ptr {text} to {word}")
            elif ll(new.ty) != word:
                text = e.raw(f"bitcast {ll(new.ty)} {text} to {word}")
            differs = e.raw(f"icmp ne {word} {old.x}, {text}")
            mark("write", f", i1 {differs}")
            access.store(e, elem, p, v, None)

        _where(e, m, lambda: check.allowed(p, go))

    if isinstance(ptr, Val):
        one(ptr, value, mask)
        return
    with nest(e) as g:
        loops(g, ptr.shape, None, 1, lambda idx: one(
            *[None if t is None else g.at(t, idx) for t in (ptr, value, mask)]))  # fmt: skip


def atomic(low, op: Op, act):
    """``act(pointer, values) -> old value`` of an atomic op, behind its checks."""
    e = low.e
    elem = op.result_types[0].elem
    check = _Access(low, op, elem)
    order = next((w for w in op.words if w in ("relaxed", "acquire", "release")), "acq_rel")
    acquires = order in ("acquire", "acq_rel") and bool(low.uses.of(op.results[0]))
    releases = order in ("release", "acq_rel")
    flags = f", i1 {str(acquires).lower()}, i1 {str(releases).lower()}"

    def one(p: Val, vals: list[Val]) -> Val:
        slot = low.slot(elem)
        e.line(f"store {LLVM[elem]} zeroinitializer, ptr {slot}")

        def go(mark) -> None:
            mark("atomic", flags)
            e.line(f"store {LLVM[elem]} {e.operand(act(p, vals))}, ptr {slot}")

        check.allowed(p, go)
        return e.wrap(elem, e.raw(f"load {LLVM[elem]}, ptr {slot}"), 0)

    return one


def prologue(low) -> None:
    """At the start of a program: its number in the grid (from 1), ordered behind nobody."""
    e = low.e
    x, y, z, nx, ny = (
        Val("i32", "u", f"%{v}") for v in ("pid.x", "pid.y", "pid.z", "num.x", "num.y")
    )
    number = e.add(x, e.mul(nx, e.add(y, e.mul(ny, z))))
    e.line(f"%program = add i32 {e.operand(number)}, 1")
    p = e.raw(f"getelementptr i8, ptr %status, i64 {8 * ORDERED}")
    e.line(f"store i64 0, ptr {p}, align 8")


def foreign(module) -> bool:
    """Does a kernel take pointers from memory or make them from integers?"""

    def walk(block) -> bool:
        for op in block.ops:
            pointers = any(t.elem == "ptr" for t in op.result_types)
            if pointers and op.name in ("tt.int_to_ptr", "tt.load", "arith.bitcast"):
                return True
            if any(walk(b) for r in op.regions for b in r.blocks):
                return True
        return False

    return any(walk(b) for f in module.funcs.values() for b in f.body.blocks)
