"""What all text that is printed needs: fresh names, scopes, and values that are shared in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import sympy

from codegen import helpers
from codegen.expr import Expr, Symbol, text
from codegen.facts import Facts
from codegen.ir import (
    DType,
    Function,
    Loc,
    Type,
    Value,
    f32,
)
from codegen.ops.base import ATOM, LOWEST, Text
from codegen.ops.convert import converted


@dataclass
class Scope:
    """Lines of one indentation level, and what has been defined for sharing in it."""

    lines: list[str] = field(default_factory=list)
    symbols: set[Symbol] = field(default_factory=set)
    shared: dict[object, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    released: set[str] = field(default_factory=set)  # names of scopes in it that are over


class Writer:
    """Writes one ``Function``. ``poison`` overwrites every dead element with NaN (for tests)."""

    def __init__(self, fn: Function, poison: bool = False):
        self.fn, self.poison = fn, poison
        self.scopes = [Scope(facts=fn.facts)]
        self.names: dict[Value, str] = {}
        self.inline: dict[Value, Text] = {}
        self.helpers_used: set[str] = set()
        self.functions: list[str] = []  # what the kernel calls besides helpers
        # Run-time integers may be 64 bits wide: then those that are joined all are.
        self.long = fn.wide or any(p.role == "scalar" and p.dtype.bits == 64 for p in fn.params)
        self.long |= any(
            op.kind == "load" and op.result.symbol and fn.param(op.attrs["param"]).dtype.bits == 64
            for op in fn.body.walk()
        )
        self.taken = {"tl", "triton", "torch", "min", "max", "range", "float", "tanh"}
        self.symbol_names: dict[Symbol, str] = {}
        self.last_line: tuple[str, int] | None = None
        self.uses = count_uses(fn)
        self.own: list[set[Value]] = []  # what the regions being written define, outer first
        root = self.scopes[0]
        for p in fn.params:
            self.taken |= {p.name, f"{p.name}_ptr"}
            strides = {stride_name(p, d) for d in range(len(p.dims))}
            self.taken |= strides | {aligned_name(s) for s in strides}
        if fn.aligned:
            self.taken |= {aligned_name(s.name) for s in fn.dims}
        for s in fn.dims:
            root.symbols.add(s)
            self.symbol_names[s] = self.fresh(s.name)
        for p in fn.params:
            if p.role == "scalar":
                self.symbol_names[sympy.Symbol(p.name, integer=True)] = p.name
                root.symbols.add(sympy.Symbol(p.name, integer=True))

    # -- names -----------------------------------------------------------------------------

    def fresh(self, wanted: str, level: int | None = None) -> str:
        """A name for the scope ``level``, the innermost if none is given.

        In a loop's iteration the names of loops inside it that are over are free again, but not for
        what lies outside the loop: the next iteration would overwrite that.
        """
        wanted = re.sub(r"\W", "_", wanted) or "t"
        inside = self.scopes[level + 1 :] if level is not None else []
        used = set().union(self.taken, *(s.released for s in inside))
        name, k = wanted, 0
        while name in used or name in helpers.SOURCES:
            k += 1
            name = f"{wanted}_{k}"
        self.taken.add(name)
        return name

    def ref(self, value: Value, strength: int) -> str:
        """The text that denotes ``value``, in parentheses if it binds looser than ``strength``."""
        body, own = self.inline[value] if value in self.inline else (self.names[value], ATOM)
        return f"({body})" if own < strength else body

    def joined(self, value: Value, want: Value) -> str:
        """The text of ``value`` where loops and branches hand it on: always of one type."""
        body = self.ref(value, LOWEST)
        if want.symbol is not None and self.long:
            return f"tl.full((), {body}, tl.int64)"
        return body

    def strength(self, value: Value) -> int:
        return self.inline[value][1] if value in self.inline else ATOM

    def index(self, expr: Expr, strength: int = LOWEST) -> str:
        body = text(expr, self._symbol, self.scopes[-1].facts.nonnegative)
        return f"({body})" if strength > LOWEST and re.search(r"[^\w.]", body) else body

    def _symbol(self, s: Symbol) -> str:
        return self.symbol_names[s]

    def dtype(self, dtype: DType) -> str:
        return f"tl.{dtype.triton}"

    def shape(self, type_: Type) -> str:
        inner = ", ".join(map(str, type_.block))
        return f"({inner},)" if type_.rank == 1 else f"({inner})"

    def literal(self, value: float, dtype: DType) -> str:
        if dtype.kind == "bool":
            return str(bool(value))
        if not dtype.is_float:
            return str(int(value))
        number = float(value)
        text_ = repr(number) if abs(number) < float("inf") else f'float("{number}")'
        if dtype.is_fp8 and number != 0:  # Triton has no constants of 8-bit floats
            return converted(self, f"tl.full((), {text_}, tl.float32)", f32, dtype)
        return text_

    def helper(self, word: str) -> None:
        if word in helpers.SOURCES:
            self.helpers_used.add(word)

    # -- lines -----------------------------------------------------------------------------

    def line(self, body: str, loc: Loc | None = None) -> None:
        if loc is not None:
            self.scopes[-1].lines += self.comment(loc)
        self.scopes[-1].lines += wrapped(body)

    @contextmanager
    def scope(self, symbols: Iterable[Symbol], facts: Facts, keep: Iterable[str] = ()):
        """A deeper level. The caller places its lines, after what was shared outwards meanwhile."""
        inner = Scope(symbols=set(symbols), facts=facts)
        self.scopes.append(inner)
        before = set(self.names)
        yield inner
        self.scopes.pop()
        # What was named inside cannot be seen from outside; its names are free again.
        # Those in ``keep`` were there before: variables that a loop rebinds.
        for value in [v for v in self.names if v not in before]:
            name = self.names.pop(value)
            if name not in keep:
                self.taken.discard(name)
                inner.released.add(name)
        self.taken -= set(inner.shared.values())
        self.scopes[-1].released |= inner.released | set(inner.shared.values())
        inner.lines = [f"    {line}" for line in inner.lines or ["pass"]]

    def comment(self, loc: Loc) -> list[str]:
        """The author's line, once, above the first line that it turns into."""
        if not loc.line or (loc.file, loc.line) == self.last_line:
            return []
        self.last_line = (loc.file, loc.line)
        return [f"# {loc.source.strip()}"] if loc.source.strip() else []

    def share(self, key: object, wanted: str, body: str, symbols: Iterable[Symbol]) -> str:
        """The name of a shared value, defined once in the outermost scope that can compute it."""
        for s in self.scopes:
            if key in s.shared:
                return s.shared[key]
        missing = set(symbols)
        for level, s in enumerate(self.scopes):  # noqa: B007
            missing -= s.symbols
            if not missing:
                break
        name = self.fresh(wanted, level)
        s.lines += wrapped(f"{name} = {body}")
        s.shared[key] = name
        return name

    def share_text(self, body: str, wanted: str) -> str:
        """``body`` under a name, in the outermost scope that knows all names in it."""
        words = set(re.findall(r"[A-Za-z_]\w*", body)) - {"tl", "None", "min", "max", "float"}
        level = 0
        for k, s in enumerate(self.scopes):
            known = set(s.shared.values()) | {self.symbol_names[x] for x in s.symbols}
            if words & known:
                level = k
        everywhere = {n for s in self.scopes for n in s.shared.values()}
        everywhere |= {self.symbol_names[x] for s in self.scopes for x in s.symbols}
        if not {w for w in words if w in self.taken} <= everywhere:
            level = len(self.scopes) - 1  # a tile's name: only this scope is sure to have it
        # A tile's name may pass to another tile: the same text is then another mask.
        held = tuple(id(v) for v, n in self.names.items() if n in words)
        key = ("text", body, held)
        for s in self.scopes[: level + 1]:
            if key in s.shared:
                return s.shared[key]
        name = self.fresh(wanted, level)
        self.scopes[level].lines += wrapped(f"{name} = {body}")
        self.scopes[level].shared[key] = name
        return name

    # -- index vectors and masks ------------------------------------------------------------


def filled(head: str, items: list[str], tail: str, width: int = 100) -> str:
    """``head item, item, ... tail`` on one line, or filled into as many as it needs."""
    if len(head) + sum(len(i) + 2 for i in items) + len(tail) <= width:
        return f"{head}{', '.join(items)}{tail}"
    lines = [""]
    for item in items:
        if len(lines[-1]) + len(item) + 6 > width:
            lines.append("")
        lines[-1] += f"{item}, "
    return "\n".join([head, *(f"    {line.rstrip()}" for line in lines), tail])


def wrapped(line: str, width: int = 96) -> list[str]:
    """``line``, broken at the top-level commas of its outermost call if it is long."""
    opening = line.find("(")
    if len(line) <= width or opening < 0 or not line.endswith(")") or line.startswith("#"):
        return [line]
    parts, depth, begin = [], 0, opening + 1
    for k in range(opening, len(line)):
        depth += (line[k] in "([{") - (line[k] in ")]}")
        if depth == 0 and k < len(line) - 1:
            return [line]  # the first call is not the whole line
        if line[k] == "," and depth == 1:
            parts.append(line[begin : k + 1].strip())
            begin = k + 1
    # A comma after the one part of a parenthesis that is no call would make it a tuple.
    call = bool(re.search(r"\w$", line[:opening]))
    parts.append(line[begin:-1].strip() + ("," if call or parts else ""))
    return [line[: opening + 1], *(f"    {p}" for p in parts), ")"]


def count_uses(fn: Function) -> dict[Value, int]:
    counts: dict[Value, int] = {}
    for op in fn.body.walk():
        for v in op.operands:
            counts[v] = counts.get(v, 0) + 1
    return counts


def stride_name(param, d: int) -> str:
    label = param.label(d)
    tail = label.lower() if label.isidentifier() else str(d)
    same = [k for k in range(len(param.dims)) if param.label(k) == label]
    if len(same) > 1:
        tail += str(same.index(d))
    return f"stride_{param.name}_{tail}"


#: Elements that strides and rows are multiples of in an aligned variant.
ALIGNMENT = 16


def aligned_name(number: str) -> str:
    """The argument that holds a sixteenth of ``number``, a stride or a dimension."""
    if number.startswith("stride_"):
        return number.replace("stride_", "stride16_", 1)
    return f"{number}_by_{ALIGNMENT}"


def rows_long(params: Iterable[tuple[str, Sequence[Expr]]]) -> set[str]:
    """Dimensions that count the elements of a row: innermost sizes of tensors that have rows.

    ``params``: role and sizes of each parameter.
    """
    return {
        dims[-1].name
        for role, dims in params
        if role != "scalar" and len(dims) > 1 and isinstance(dims[-1], Symbol)
    }
