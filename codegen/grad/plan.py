"""The programs that together are a kernel's backward, and what its forward has to save for them.

A gradient that each program owns is computed by a program of the forward's grid. One that several
programs contribute to inside a loop gets a program of its own, in which that loop is the grid
(``codegen.grad.turn``); what cannot be turned is added up in parts (``codegen.grad.settle``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from codegen.grad.carries import Taped, taped
from codegen.grad.clean import clean
from codegen.grad.emit import Emit
from codegen.grad.errors import NoGradient
from codegen.grad.memory import memory_like, place_like
from codegen.grad.own import exclusive, owner, untold
from codegen.grad.reverse import Reverse
from codegen.grad.settle import Gradient, settle
from codegen.grad.turn import turn, turnable
from codegen.ir import Function, Op, Param, Region, Value
from codegen.passes.attach import drop_detached
from codegen.passes.bounds import drop_proven_checks
from codegen.passes.cse import share_common
from codegen.passes.dce import drop_dead
from codegen.passes.fold import fold
from codegen.passes.licm import hoist_invariant
from codegen.passes.once import inline_single_trips

#: Before a kernel is differentiated: what is the same is one value, what does not change in a loop
#: stands before it, and a loop of one trip is none.
PREPARATION = (
    fold,
    inline_single_trips,
    share_common,
    drop_proven_checks,
    hoist_invariant,
    share_common,
    drop_dead,
)


#: How many programs a joint backward is cut into, where it has not as many by itself.
PROGRAMS = 8


@dataclass
class Piece:
    """One program of a backward, and the gradients that it writes.

    guests: those of them that the loop nest was not turned for: they are there to share what the
        others need too.
    """

    fn: Function
    gradients: list[Gradient] = field(default_factory=list)
    guests: list[str] = field(default_factory=list)


@dataclass
class Derivation:
    """A kernel's backward.

    forward: the kernel itself, writing ``saved`` as well.
    pieces: programs to run one after the other. Their parameters: inputs and outputs of the
        kernel by name, ``d_<output>``, ``d_<input>``, ``saved``, and scratch memory.
    taped: the loops whose carries it asks for.
    """

    forward: Function
    saved: list[Param]
    pieces: list[Piece]
    taped: list[Taped] = field(default_factory=list)

    @property
    def gradients(self) -> dict[str, Gradient]:
        return {g.name: g for piece in self.pieces for g in piece.gradients}


def prepare(fn: Function) -> Function:
    """``fn`` as the front end has left it, made ready to be differentiated; in place."""
    for run in PREPARATION:
        run(fn)
    return fn


def derive(
    fn: Function,
    wrt: Iterable[str],
    given: Iterable[str],
    deterministic: bool = True,
    joint: bool = False,
    segments: Mapping[int, int] | None = None,
) -> Derivation:
    """The backward of ``fn``, a prepared kernel, for the inputs ``wrt`` from the outputs ``given``.

    With ``joint`` a loop nest that is turned for some gradients computes the others too, each of
    its programs a partial sum: what they have in common is made once, but few programs remain.
    ``segments``: of loops, by their numbers as in ``Taped``, that are cut where their carries are
    asked for, how many iterations a segment has.

    Raises:
        NoGradient: if a gradient would have to flow through what has none.
    """
    wrt, given = list(wrt), list(given)
    _check(fn)
    _check_stores(fn, given)
    saver = _Saver(fn)
    noted = _Carries(fn, segments or {})
    dtypes = {p.name: p.dtype for p in fn.params}
    turned = _turned(fn, wrt, given, saver, joint, noted) if deterministic else []
    done = {g.name for piece in turned for g in piece.gradients}
    # First what needs scratch memory: it is free again when memory for the others is asked for.
    pieces: list[Piece] = list(turned)
    rest = [n for n in wrt if n not in done]
    if rest:
        reverse = noted.reversed(rest, given, f"{fn.name}_backward")
        saver.save(reverse)
        noted.used(reverse)
        pieces.append(Piece(reverse.fn, settle(reverse.fn, reverse.sites, dtypes, deterministic)))
    for piece in pieces:
        _finish(piece)
    read = {p.name for piece in pieces for p in piece.fn.params}
    saved = saver.into(fn, read)
    return Derivation(fn, saved, [p for p in pieces if p.fn.body.ops[:-1]], noted.found)


def _check(fn: Function) -> None:
    written: dict[str, list[Op]] = {}
    for op in fn.body.walk():
        if op.kind.startswith(("store", "scatter")):
            written.setdefault(op.attrs["param"], []).append(op)
    for op in fn.body.walk():
        if op.kind in ("load", "gather_rows") and op.attrs["param"] in written:
            raise NoGradient(
                op,
                f"{op.attrs['param']} is read and written: what it held is gone by the backward",
                "declare an input and an output of its own",
            )


def _check_stores(fn: Function, given: list[str]) -> None:
    """Refuses outputs whose places are written again: a cotangent would count for each writer."""
    for name in given:
        stores = [op for op in fn.body.walk() if op.kind == "store" and op.attrs["param"] == name]
        for op in stores:
            again = [s for s in untold(fn, op) if all(s != p for p, _ in fn.grid)]
            if again:
                raise NoGradient(
                    op,
                    f"{name} is written in the same place for every {again[0]}: which of these "
                    "its gradient belongs to is not told",
                    "store it once, after the loop",
                )
        for k, op in enumerate(stores):
            for other in stores[:k]:
                if op.attrs["start"] == other.attrs["start"] and not exclusive(fn.body, op, other):
                    raise NoGradient(
                        op,
                        f"{name} is stored twice in the same place: which of the two its gradient "
                        "belongs to is not told",
                        "store the last value only, tk.where chooses between two",
                    )


class _Carries:
    """Reverse programs of ``fn`` whose loops are cut as ``segments`` says, where that is of use."""

    def __init__(self, fn: Function, segments: Mapping[int, int]):
        self.fn, self.segments, self.found = fn, segments, list[Taped]()
        self._of: dict[Reverse, list[Taped]] = {}

    def reversed(self, wrt, given, name: str, scatter: bool = False) -> Reverse:
        out = Reverse(self.fn, wrt, given, name, scatter)
        out.run()
        noted = taped(out)  # only now is it known which carries adjoints ask for
        cut = {
            op: self.segments[t.loop]
            for op, t in noted.items()
            if t.cuttable and t.loop in self.segments
        }
        if cut:
            out = Reverse(self.fn, wrt, given, name, scatter, cut)
            out.run()
        self._of[out] = list(noted.values())
        return out

    def used(self, reverse: Reverse) -> None:
        """One of those is a part of the backward."""
        self.found += [t for t in self._of[reverse] if t not in self.found]


def _turned(
    fn: Function, wrt: list[str], given: list[str], saver: _Saver, joint: bool, noted: _Carries
) -> list[Piece]:
    """Programs for those gradients that the loop nest can be turned for."""
    whole = noted.reversed(wrt, given, "whole")
    groups: dict[tuple, list[str]] = {}
    for name in wrt:
        owners = [owner(whole.fn, s) for s, _ in whole.sites if s.attrs["param"] == f"d_{name}"]
        if not owners or not all(o.loops and o.shared_programs(whole.fn) for o in owners):
            continue
        if any(s.kind != "store" for s, _ in whole.sites if s.attrs["param"] == f"d_{name}"):
            continue  # rows chosen by an index: any program may meet any other
        first = owners[0]
        key = (id(first.loops[0]), tuple(map(str, first.shared_programs(whole.fn))))
        groups.setdefault(key, []).append(name)
    out = []
    for names in groups.values():
        piece = None
        if joint and len(groups) == 1:
            piece = _turn_one(fn, names, wrt, given, saver, noted)
        if piece is None:
            piece = _turn_one(fn, names, names, given, saver, noted)
        out += piece or []
    return out


def _turn_one(
    fn: Function,
    names: list[str],
    wrt: list[str],
    given: list[str],
    saver: _Saver,
    noted: _Carries,
) -> list[Piece] | None:
    """Programs that compute ``wrt``, with the loop nest turned for ``names``."""
    joint = len(wrt) > len(names)
    tag = "" if joint else "_" + "_".join(names)
    reverse = noted.reversed(wrt, given, f"{fn.name}_backward{tag}", joint)
    mine = {f"d_{n}" for n in names}
    stores = [s for s, _ in reverse.sites if s.attrs["param"] in mine]
    loop = turnable(reverse.fn, stores) if stores else None
    if loop is None:
        forward = _only_forward(reverse)
        if not forward:
            return None
    saver.save(reverse)
    hoist_invariant(reverse.fn)
    clean(reverse.fn)
    loop = turnable(reverse.fn, stores)
    if loop is None:
        return None
    noted.used(reverse)
    made = turn(reverse.fn, stores, reverse.sites, loop, reverse.fn.name)
    dtypes = {p.name: p.dtype for p in fn.params}
    pieces = [Piece(made.before)] if made.before is not None else []
    clean(made.fn)
    alive = {id(op) for op in made.fn.body.walk()}
    sites = [(s, load) for s, load in made.sites if id(s) in alive]
    settled = settle(made.fn, sites, dtypes, True, PROGRAMS)
    return [*pieces, Piece(made.fn, settled, [n for n in wrt if n not in names])]


def _only_forward(reverse: Reverse) -> bool:
    """True if loops of the forward stand in the way of turning: their results are saved."""
    return any(
        op.kind == "for" and any(r in reverse.finals for r in op.results)
        for op in reverse.fn.body.ops
    )


def _finish(piece: Piece) -> None:
    clean(piece.fn)
    hoist_invariant(piece.fn)
    clean(piece.fn)
    used = {op.attrs["param"] for op in piece.fn.body.walk() if "param" in op.attrs}
    bare = _sources(piece.fn)
    piece.fn.params = [p for p in piece.fn.params if p.name in used or p.name in bare]


def _sources(fn: Function) -> set[str]:
    """Parameters that tell the sizes, or numbers, that the program asks for."""
    needed = {s for _, count in fn.grid for s in count.free_symbols}
    for op in fn.body.walk():
        needed |= op.attr_symbols()
        for v in (*op.results, *(a for r in op.regions for a in r.args)):
            needed |= v.type.free_symbols()
    keep = {s.name for s in needed}
    for s in sorted(needed & set(fn.dims), key=str):
        for p in fn.params:
            if p.role == "in" and s in p.dims:
                keep.add(p.name)
                break
        else:
            keep |= {p.name for p in fn.params if any(s in d.free_symbols for d in p.dims)}
    return keep | {p.name for p in fn.params if p.role == "scalar"}


class _Saver:
    """Results of the forward's loops that a backward asks for: what the forward is to save.

    A loop that multiplies matrices is not run again for its results.
    """

    def __init__(self, fn: Function):
        self.fn = fn
        self.params: dict[Value, Param] = {}

    def save(self, reverse: Reverse) -> None:
        fn = reverse.fn
        for loop in [op for op in fn.body.ops if op.kind == "for"]:
            finals = [r for r in loop.results if r in reverse.finals]
            inside = {op.kind for op in loop.regions[0].walk()}
            if len(finals) < len(loop.results) or "store" in inside or "mma" not in inside:
                continue
            emit = Emit(fn, Region())
            mapping = {r: self._load(emit, reverse.finals[r], r) for r in finals}
            at = next(k for k, op in enumerate(fn.body.ops) if op is loop)
            fn.body.ops = [*fn.body.ops[:at], *emit.regions[0].ops, *fn.body.ops[at + 1 :]]
            for op in fn.body.walk():
                op.operands = [mapping.get(v, v) for v in op.operands]
        clean(fn)

    def _load(self, emit: Emit, original: Value, final: Value) -> Value:
        fn = emit.fn
        if original not in self.params:
            counts = [count for _, count in self.fn.grid]
            name = f"saved_{original.hint or 'value'}_{len(self.params)}"
            self.params[original] = memory_like(name, "in", counts, original.type)
        p = self.params[original]
        if all(q.name != p.name for q in fn.params):
            fn.params.append(Param(p.name, "in", p.dtype, p.dims))
        where = [s for s, _ in self.fn.grid]
        return emit.shaped(emit.op("load", [], place_like(p, where, final.type)).result, final.type)

    def into(self, fn: Function, read: set[str]) -> list[Param]:
        """Lets the forward write what has been asked for, and is read."""
        emit = Emit(fn, Region())
        where = [s for s, _ in fn.grid]
        wanted = {v: p for v, p in self.params.items() if p.name in read}
        saved = [Param(p.name, "out", p.dtype, p.dims) for p in wanted.values()]
        fn.params += saved
        for v, p in wanted.items():
            emit.op("store", [v], place_like(p, where, v.type))
        fn.body.ops = [*fn.body.ops[:-1], *emit.regions[0].ops, fn.body.ops[-1]]
        drop_detached(fn)
        return saved
