"""Tile IR to Triton: one function a kernel, in the author's names, one line a thought.

The text is meant to be read. A value that the author named keeps its name and its line; one
that is used once stands inside the expression that uses it. Index vectors, base pointers and
masks are shared and placed in the outermost scope that knows their symbols.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

import sympy

from codegen import helpers
from codegen.expr import And, Expr, Facts, Not, Or, Symbol, text
from codegen.ir import (
    Axis,
    DType,
    Factor,
    Function,
    Loc,
    Op,
    Region,
    Type,
    Value,
    f32,
    loop_parts,
    trip_facts,
)
from codegen.ops import TABLE
from codegen.ops.base import ADD, ATOM, LOWEST, MUL, Text
from codegen.ops.convert import converted
from codegen.ops.mask import COL, ROW
from codegen.rewrite import uses_value
from codegen.schedule import Schedule

# Kinds whose result is worth a line of its own even when nobody named it: moving a load into a
# later expression could carry it past a store.
_OWN_LINE = {"load", "gather_rows", "for", "if"}
#: What a value without a name of the author's is called.
_NAMES = {"mma": "product", "reduce": "total"}


@dataclass
class Scope:
    """Lines of one indentation level, and what has been defined for sharing in it."""

    lines: list[str] = field(default_factory=list)
    symbols: set[Symbol] = field(default_factory=set)
    shared: dict[object, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    released: set[str] = field(default_factory=set)  # names of scopes in it that are over


class Printer:
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

    def vector(self, start: Expr, block: int, wanted: str) -> str:
        """The name of ``start + arange(0, block)``."""
        start = sympy.expand(start)
        lanes = f"tl.arange(0, {block})" + (".to(tl.int64)" if self.fn.wide else "")
        body = (
            lanes
            if start == 0
            else f"{self.index(start, ADD) if start.is_Add else self.index(start)} + {lanes}"
        )
        return self.share(("vector", start, block), wanted, body, start.free_symbols)

    def factor_vectors(self, axis: Axis, starts: list[Expr], wanted: list[str]) -> list[str]:
        """One index vector a factor; those of a flattened axis count within it."""
        if axis.simple:
            return [self.vector(starts[0], axis.block, wanted[0])]
        out, stride = [], axis.block
        flat = self.vector(sympy.Integer(0), axis.block, "flat")
        for k, (f, start, want) in enumerate(zip(axis.factors, starts, wanted, strict=True)):
            stride //= f.block
            body = flat if stride == 1 else f"{flat} // {stride}"
            if k:
                body = f"{body} % {f.block}" if stride == 1 else f"({body}) % {f.block}"
            if start != 0:
                body = f"{self.index(start, ADD)} + {body}"
            blocks = tuple(g.block for g in axis.factors)
            key = ("factor", start, blocks, k)
            out.append(self.share(key, want, body, start.free_symbols))
        return out

    def _below(self, bound: Expr, axis: Axis, k: int, names: list[str]) -> str:
        """The condition that element ``bound`` of factor ``k`` has not been reached."""
        bound = sympy.expand(bound)
        start = sympy.Integer(0)
        for term in sympy.Add.make_args(bound):
            if term.free_symbols and term.as_coeff_Mul()[0] < 0:
                start -= term
        limit = sympy.expand(bound + start)
        if not axis.simple:
            blocks = [sympy.Integer(0)] * len(axis.factors)
            return f"{self.factor_vectors(axis, blocks, names)[k]} < {self.index(bound)}"
        return f"{self.vector(start, axis.block, names[0])} < {self.index(limit)}"

    def axis_mask(self, axis: Axis, names: list[str] | None = None) -> list[str]:
        """Conditions, as vectors along ``axis``, under which an element is live."""
        names = names or ["lane"] * len(axis.factors)
        out = []
        for k, f in enumerate(axis.factors):
            bounds = list(f.bounds)
            if f.side < f.block and not any(b.is_Integer for b in bounds):
                bounds.append(sympy.Integer(f.side))
            out += [self._below(b, axis, k, names) for b in bounds]
        return out

    def live_mask(self, type_: Type, axes: tuple[int, ...] | None = None) -> str:
        """The mask of live elements, along ``axes`` only if they are given."""
        conditions = [
            (c, k)
            for k, a in enumerate(type_.axes)
            if axes is None or k in axes
            for c in self.axis_mask(a)
        ]
        return self._join(conditions, type_.rank, [])

    def _join(self, conditions: list[tuple[str, int]], rank: int, scalars: list[str]) -> str:
        """Conditions a (text, axis) joined along each axis, then across axes, then scalars."""
        parts = []
        for k in range(rank):
            mine = list(dict.fromkeys(c for c, axis in conditions if axis == k))
            if not mine:
                continue
            body = " & ".join(f"({c})" for c in mine) if len(mine) > 1 else mine[0]
            spread = "" if rank == 1 else ("[:, None]" if k == 0 else "[None, :]")
            parts.append(f"({body}){spread}" if spread else body)
        parts += [f"({c})" for c in scalars]
        if len(parts) == 1:
            return parts[0]
        body = " & ".join(p if p.startswith("(") and " & " not in p else f"({p})" for p in parts)
        return self.share_text(body, "live") if len(body) > 30 else body

    def relation(self, pred, type_: Type) -> str:
        """The mask tile of a predicate over ``_r`` and ``_c``."""
        if isinstance(pred, And | Or):
            glue = " & " if isinstance(pred, And) else " | "
            parts = sorted((self.relation(a, type_) for a in pred.args), key=str)
            return glue.join(f"({p})" for p in parts)
        if isinstance(pred, Not):
            return f"~({self.relation(pred.args[0], type_)})"
        if pred in (sympy.true, sympy.false):
            return f"tl.full({self.shape(type_)}, {int(pred == sympy.true)}, tl.int1)"
        word = pred.rel_op
        diff = sympy.expand(pred.lhs - pred.rhs)
        c, r = diff.coeff(COL), diff.coeff(ROW)
        rest = sympy.expand(diff - c * COL - r * ROW)
        if not {c, r} <= {-1, 0, 1} or rest.has(ROW, COL):
            raise ValueError(f"mask predicate is not affine in row and column: {pred}")
        if c == -1 or (c == 0 and r == -1):
            c, r, rest = -c, -r, -rest
            word = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}[word]
        terms = sympy.Add.make_args(sympy.expand(rest))
        down = -sympy.Add(*[t for t in terms if t.as_coeff_Mul()[0] < 0])
        up = sympy.expand(rest + down)
        rows, cols = type_.block
        if c and r == -1:
            left = self.vector(up, cols, "col") + "[None, :]"
            return f"{left} {word} {self.vector(down, rows, 'row')}[:, None]"
        if c and r == 1:
            left = f"{self.vector(up, cols, 'col')}[None, :]"
            right = f"{self.vector(sympy.Integer(0), rows, 'row')}[:, None]"
            return f"{left} + {right} {word} {self.index(down)}"
        if c:
            return f"({self.vector(up, cols, 'col')} {word} {self.index(down)})[None, :]"
        return f"({self.vector(up, rows, 'row')} {word} {self.index(down)})[:, None]"

    # -- memory ----------------------------------------------------------------------------

    def stride(self, param: str, d: int) -> str | None:
        """The text of a stride, or None where it is known to be one."""
        p = self.fn.param(param)
        if p.pair and d >= len(p.dims) - 2 and (p.unit_inner or d == len(p.dims) - 1):
            return "2" if d == len(p.dims) - 2 else None
        if d == len(p.dims) - 1 and p.unit_inner:
            return None
        return stride_name(p, d)

    def _base(self, op: Op, tiled: set[int]) -> tuple[str, list[str]]:
        """The pointer to the tile's first row and column, and the scalar conditions it needs."""
        param = self.fn.param(op.attrs["param"])
        terms, symbols, conditions = [f"{param.name}_ptr"], set(), []
        for d, start in enumerate(op.attrs["start"]):
            if d in tiled:
                continue
            low, high = op.attrs["checks"][d]
            if low:
                conditions.append(f"{self.index(start)} >= 0")
            if high:
                conditions.append(f"{self.index(start)} < {self.index(param.dims[d])}")
            if start == 0:
                continue
            stride = self.stride(param.name, d)
            terms.append(
                f"{self.index(start, MUL)} * {stride}" if stride else self.index(start, MUL)
            )
            symbols |= start.free_symbols
        if len(terms) == 1:
            return terms[0], conditions
        key = (
            "base",
            param.name,
            tuple(op.attrs["start"][d] if d not in tiled else None for d in range(len(param.dims))),
        )
        return self.share(key, f"{param.name}_base", " + ".join(terms), symbols), conditions

    def _vector_name(self, param, d: int) -> str:
        label = param.label(d)
        return f"offs_{label.lower()}" if label.isidentifier() else f"offs_{param.name}{d}"

    def _offset(self, vector: str, param: str, d: int, spread: str) -> str:
        stride = self.stride(param, d)
        return f"{vector}{spread}" + (f" * {stride}" if stride else "")

    def _axis_access(self, op: Op, a: int, axis: Axis, spread: str):
        """Offsets and conditions of tile axis ``a`` of an access."""
        param = self.fn.param(op.attrs["param"])
        which, limit = op.attrs["tile"][a], op.attrs["limit"][a]
        starts = [op.attrs["start"][d] for d in which]
        names = [self._vector_name(param, d) for d in which]
        vectors = self.factor_vectors(axis, starts, names)
        offsets, conditions = [], []
        for k, (d, v) in enumerate(zip(which, vectors, strict=True)):
            offsets.append(self._offset(v, param.name, d, spread))
            low, high = op.attrs["checks"][d]
            covered = set()
            if low:
                conditions.append(f"{v} >= 0")
            if high:
                conditions.append(f"{v} < {self.index(param.dims[d])}")
                covered.add(sympy.expand(param.dims[d] - starts[k]))
            if limit is not None:
                conditions.append(f"{v} < {self.index(limit)}")
                covered.add(sympy.expand(limit - starts[k]))
            f = axis.factors[k]
            bounds = [b for b in f.bounds if b not in covered]
            padded = f.side < f.block and not any(b.is_Integer for b in bounds)
            if padded and not (high and _reaches(param.dims[d] - starts[k], f.side)):
                bounds.append(sympy.Integer(f.side))
            for b in bounds:
                if high and sympy.expand(b + starts[k]) == param.dims[d]:
                    continue
                conditions.append(self._below(b, axis, k, names))
        return offsets, [(c, a) for c in conditions]

    def access(self, op: Op, tile, type_: Type) -> tuple[str, str | None]:
        """Pointer and mask of a load or store of ``type_`` (a scalar has no tile axes)."""
        tiled = {d for which in tile for d in which}
        base, scalars = self._base(op, tiled)
        rank = len(tile)
        parts, conditions = [base], []
        axes = type_.axes or tuple(
            Axis(tuple(Factor(s) for s in sides)) for sides in op.attrs["sides"]
        )
        for a in range(rank):
            spread = "" if rank == 1 else ("[:, None]" if a == 0 else "[None, :]")
            offsets, conds = self._axis_access(op, a, axes[a], spread)
            parts += offsets
            conditions += conds
        mask = self._join(conditions, rank, scalars) if conditions or scalars else None
        if mask and rank and not conditions:
            mask = f"tl.full({self.shape(type_)}, 1, tl.int1) & {mask}"
        return " + ".join(parts), mask

    def described(self, op: Op, type_: Type) -> tuple[str, str]:
        """The tensor descriptor of an access, made once, and the coordinates of its block."""
        param = self.fn.param(op.attrs["param"])
        dims = [which[0] for which in op.attrs["tile"]]
        base, _ = self._base(op, set(dims))
        ends = [
            param.dims[d] if limit is None else limit
            for d, limit in zip(dims, op.attrs["limit"], strict=True)
        ]
        shape = ", ".join(self.index(e) for e in ends)
        strides = ", ".join(self.stride(param.name, d) or "1" for d in dims)
        block = ", ".join(map(str, type_.block))
        body = f"tl.make_tensor_descriptor({base}, [{shape}], [{strides}], [{block}])"
        starts = [s for d, s in enumerate(op.attrs["start"]) if d not in dims]
        symbols = {x for e in (*starts, *ends) for x in e.free_symbols}
        name = self.share(("descriptor", body), f"{param.name}_desc", body, symbols)
        return name, ", ".join(self.index(op.attrs["start"][d]) for d in dims)

    def access_rows(self, op: Op, rows: Value, type_: Type) -> tuple[str, str]:
        """Pointer and mask of rows chosen by an index vector."""
        param, d = self.fn.param(op.attrs["param"]), op.attrs["row_dim"]
        tiled = {d} | {x for which in op.attrs["tile"] for x in which}
        base, scalars = self._base(op, tiled)
        names = self.ref(rows, ATOM)
        offset = f"{names}[:, None]"
        stride = self.stride(param.name, d)
        wide = ".to(tl.int64)" if self.fn.wide else ""
        offset = f"{offset}{wide} * {stride}" if stride else offset + wide
        conditions = [(c, 0) for c in self.axis_mask(type_.axes[0])]
        conditions += [(c, 0) for c in self.axis_mask(rows.type.axes[0])]
        conditions += [(f"{names} >= 0", 0), (f"{names} < {self.index(param.dims[d])}", 0)]
        # The access describes only the columns; seen from it they are its first tile axis.
        offsets, conds = self._axis_access(op, 0, type_.axes[1], "[None, :]")
        conditions += [(c, 1) for c, _ in conds]
        return " + ".join([base, offset, *offsets]), self._join(conditions, 2, scalars)

    # -- operations ------------------------------------------------------------------------

    def region(self, region: Region) -> None:
        self.own.append({*region.args, *(v for op in region.ops for v in op.results)})
        for position, op in enumerate(region.ops):
            if op.kind == "yield":
                continue
            self.op(op, region, position)
        self.own.pop()

    def op(self, op: Op, region: Region, position: int) -> None:
        definition = TABLE[op.kind]
        if op.kind in ("for", "if"):
            definition.emit(self, op)
            return
        produced = definition.emit(self, op)
        if not op.results or produced is None:
            return
        value = op.result
        if value.symbol is not None:
            name = self.fresh(value.symbol.name)
            self.symbol_names[value.symbol] = name
            self.scopes[-1].symbols.add(value.symbol)
            self.names[value] = name
            self.line(f"{name} = {produced[0]}", op.loc)
            return
        poisoned = self.poison and not value.type.full and op.kind not in ("retype",)
        if op.kind == "fill_dead":
            poisoned = False
        if (
            op.kind == "retype"
            and op.operands[0] in self.names
            and op.operands[0] in self.own[-1]
            and self.uses[op.operands[0]] == 1
        ):
            # Only the type knows: the same variable goes on.
            self.names[value] = self.names.pop(op.operands[0])
            return
        if (
            not poisoned
            and not value.hint
            and op.kind not in _OWN_LINE
            and self.uses.get(value, 0) <= 1
            and len(produced[0]) < 90
        ):
            self.inline[value] = produced
            return
        if op.kind in ("const", "argument"):
            self.inline[value] = produced
            return
        name = self._name_for(value, region, position)
        self.names[value] = name
        self.line(f"{name} = {produced[0]}", op.loc)
        if poisoned:
            self._poison(value, name)

    def _poison(self, value: Value, name: str) -> None:
        junk = {"float": float("nan"), "int": 1234567, "bool": True}[value.type.dtype.kind]
        if value.type.dtype.kind == "int" and value.type.dtype.bits < 32:
            junk = 77
        fill = self.literal(junk, value.type.dtype)
        self.line(f"{name} = tl.where({self.live_mask(value.type)}, {name}, {fill})")

    def define(self, op: Op, body: str, casts: list[str], unread: int = 0) -> None:
        """Writes ``a, b = body`` for the results of ``op``; ``unread`` more are not looked at."""
        names = [self.fresh(v.hint or "t") for v in op.results]
        targets = names + [self.fresh("unread") for _ in range(unread)]
        single = len(targets) == 1
        self.line(f"{', '.join(targets)} = {body}{casts[0] if single else ''}", op.loc)
        for value, name, cast in zip(op.results, names, casts, strict=True):
            self.names[value] = name
            if cast and not single:
                self.line(f"{name} = {name}{cast}")
            if self.poison and not value.type.full:
                self._poison(value, name)

    def function(self, wanted: str, region: Region, around, loc: Loc) -> str:
        """The name of a jitted function that computes ``region``, an isolated one, of scalars.

        ``around(parameters, results, fresh)`` gives the parameters, extra lines and results of
        a function that does more.
        """
        inner = Printer(Function(wanted, body=region))
        inner.long, inner.last_line = self.long, (loc.file, loc.line)
        parameters = [inner.fresh(a.hint or "x") for a in region.args]
        inner.names = dict(zip(region.args, parameters, strict=True))
        inner.region(region)
        results = []
        for v in region.terminator.operands:
            body = inner.ref(v, LOWEST)
            if v.op is not None and v.op.kind in ("const", "index"):
                body = f"tl.full((), {body}, {self.dtype(v.type.dtype)})"
            results.append(body)
        lines = inner.scopes[0].lines
        if around is not None:
            parameters, more, results = around(parameters, results, inner.fresh)
            lines = lines + more
        self.helpers_used |= inner.helpers_used
        name = self.fresh(wanted)
        # The name is the module's: nothing in the kernel may be called so, now or later.
        text_ = "\n".join(f"    {x}" for x in [*lines, *wrapped(f"return {', '.join(results)}")])
        self.functions.append(f"@triton.jit\ndef {name}({', '.join(parameters)}):\n{text_}\n")
        return name

    def _name_for(self, value: Value, region: Region, position: int) -> str:
        """The author's name if whatever holds it now is not needed any more, else a fresh one."""
        wanted = value.hint or _NAMES.get(value.op.kind if value.op else "", "t")
        holders = [v for v, name in self.names.items() if name == wanted]
        if not holders and wanted not in self.taken:
            return self.fresh(wanted)
        mine = set(region.args) | {r for op in region.ops for r in op.results}
        # A run-time integer may be asked for by any mask that is yet to be written.
        if holders and all(
            v in mine and v.symbol is None and self._last_use(v, region) <= position
            for v in holders
        ):
            return wanted
        return self.fresh(wanted)

    def _last_use(self, value: Value, region: Region) -> int:
        """The position in ``region`` of the last line that names ``value``.

        An inlined expression over it is text yet to be written, wherever its own users stand.
        """
        last = -1
        for position, op in enumerate(region.ops):
            if uses_value(op, value):
                inlined = [r for r in op.results if r in self.inline]
                last = max([last, position, *(self._last_use(r, region) for r in inlined)])
        return last

    def loop(self, op: Op) -> None:
        symbol, start, stop = loop_parts(op)
        body = op.regions[0]
        carried: list[str] = []
        for arg, init, result in zip(body.args, op.operands, op.results, strict=True):
            name = self.names.get(init, "")
            hint = arg.hint or init.hint or "carry"
            reusable = (
                bool(name) and self.uses[init] == 1 and name not in carried and init in self.own[-1]
            )
            if not reusable:
                source = self.joined(init, arg)
                name = self.fresh(hint)
                if init.op is not None and init.op.kind == "const":
                    # A bare Python number would change type on the first trip.
                    source = f"tl.full((), {source}, {self.dtype(init.type.dtype)})"
                self.line(f"{name} = {source}", op.loc)
            else:
                del self.names[init]  # nobody else reads it: the loop may overwrite it
            carried.append(name)
            self.names[arg] = name
            if arg.symbol is not None:
                self.symbol_names[arg.symbol] = name
                self.symbol_names[result.symbol] = name
        self.symbol_names[symbol] = self.fresh(symbol.name)
        bounds = self._bound(stop) if start == 0 else f"{self._bound(start)}, {self._bound(stop)}"
        stages = op.attrs.get("num_stages")
        if stages == 1:
            self.line("# what is left: tiles at an edge or under a mask")
        word = f"tl.range({bounds}, num_stages={stages})" if stages else f"range({bounds})"
        if self.fn.schedule is not None and "rings" in op.attrs and stages is None:
            split = ", warp_specialize=True" if self.fn.schedule.specialise else ""
            word = f"tl.range({bounds}, num_stages={self.fn.schedule.stages}{split})"
        head = [*self.comment(op.loc), f"for {self.symbol_names[symbol]} in {word}:"]
        inner_symbols = {symbol} | {a.symbol for a in body.args if a.symbol is not None}
        facts = trip_facts(op, self.scopes[-1].facts)
        with self.scope(inner_symbols, facts, carried) as inner:
            self.region(body)
            self._rebind(carried, body)
        self.scopes[-1].lines += head + inner.lines
        for arg in body.args:
            self.names.pop(arg, None)  # a loop inside may have taken it over
        for result, name in zip(op.results, carried, strict=True):
            self.names[result] = name
            if result.symbol is not None:
                self.scopes[-1].symbols.add(result.symbol)

    def _bound(self, e: Expr) -> str:
        """The text of a loop bound; a long one gets a name, which later bounds may mention."""
        for scope in self.scopes:
            for key, name in scope.shared.items():
                if isinstance(key, tuple) and key[0] == "bound" and e.has(key[1]):
                    named = sympy.Symbol(f"_{name}", integer=True)
                    self.symbol_names[named] = name
                    e = e.xreplace({key[1]: named})
        body = self.index(e)
        if len(body) <= 40:
            return body
        names = {s for s in e.free_symbols if s.name.startswith("_")}
        return self.share(("bound", e), "stop", body, e.free_symbols - names)

    def _rebind(self, carried: list[str], body: Region) -> None:
        pairs = [
            (name, self.joined(value, arg) if self.ref(value, LOWEST) != name else name)
            for name, value, arg in zip(carried, body.terminator.operands, body.args, strict=True)
        ]
        pairs = [(a, b) for a, b in pairs if a != b]
        if pairs:
            left, right = zip(*pairs, strict=True)
            self.line(f"{', '.join(left)} = {', '.join(right)}")

    def branch(self, op: Op) -> None:
        cond = op.attrs.get("cond")
        word = self.index(cond) if cond is not None else self.ref(op.operands[0], LOWEST)
        names = []
        for result in op.results:
            name = self.fresh(result.hint or "picked")
            names.append(name)
        out = self.comment(op.loc)
        for k, region in enumerate(op.regions):
            if k == 1 and not names and len(region.ops) == 1:
                continue
            out.append(f"if {word}:" if k == 0 else "else:")
            with self.scope((), self.scopes[-1].facts, names) as inner:
                self.region(region)
                for name, value, result in zip(
                    names, region.terminator.operands, op.results, strict=True
                ):
                    text_ = self.joined(value, result)
                    if value.op is not None and value.op.kind == "const":
                        text_ = f"tl.full((), {text_}, {self.dtype(value.type.dtype)})"
                    self.line(f"{name} = {text_}")
            out += inner.lines
        self.scopes[-1].lines += out
        for result, name in zip(op.results, names, strict=True):
            self.names[result] = name
            if result.symbol is not None:
                self.symbol_names[result.symbol] = name
                self.scopes[-1].symbols.add(result.symbol)

    # -- the whole -------------------------------------------------------------------------

    def body(self) -> list[str]:
        root = self.scopes[0]
        if self.fn.schedule is not None and (
            self.fn.schedule.persistent or self.fn.schedule.super_m > 1
        ):
            self._tasks(self.fn.schedule)
            return root.lines
        cast = ".to(tl.int64)" if self.fn.wide else ""
        # The last name of the grid varies fastest: neighbouring tiles run side by side.
        for k, (symbol, _) in enumerate(reversed(self.fn.grid)):
            self.symbol_names[symbol] = self.fresh(symbol.name)
            root.symbols.add(symbol)
            root.lines.append(f"{self.symbol_names[symbol]} = tl.program_id({k}){cast}")
        self.region(self.fn.body)
        return root.lines

    def _tasks(self, schedule: Schedule) -> None:
        """The body of one task, in a loop over tasks where programs are persistent."""
        root = self.scopes[0]
        symbols = [s for s, _ in self.fn.grid]
        counts = [
            self.share(("tasks", k), f"tasks_{s.name}", self.index(count), count.free_symbols)
            for k, (s, count) in enumerate(self.fn.grid)
        ]
        for s in symbols:
            self.symbol_names[s] = self.fresh(s.name)
        names = [self.symbol_names[s] for s in symbols]
        task = self.fresh("task")
        lines = self._place(schedule, task, names, counts)
        if self.fn.wide:
            lines += [f"{n} = {n}.to(tl.int64)" for n in names]
        if not schedule.persistent:
            root.lines += [f"{task} = tl.program_id(0)", *lines]
            root.symbols |= set(symbols)
            self.region(self.fn.body)
            return
        with self.scope(symbols, self.fn.facts) as inner:
            inner.lines += lines
            self.region(self.fn.body)
        total = " * ".join(counts)
        root.lines.append(f"for {task} in tl.range(tl.program_id(0), {total}, tl.num_programs(0)):")
        root.lines += inner.lines

    def _place(
        self, schedule: Schedule, task: str, names: list[str], counts: list[str]
    ) -> list[str]:
        """Lines that tell where a task lies: the last two counts in groups of ``super_m`` rows."""
        if len(names) == 1:
            return [f"{names[0]} = {task}"]
        lines = []
        if len(names) == 3:
            lines.append(f"{names[0]} = {task} // ({counts[1]} * {counts[2]})")
        row, column, rows, columns = *names[-2:], *counts[-2:]
        within = f"{task} % ({rows} * {columns})" if len(names) == 3 else task
        if schedule.super_m == 1:
            within = f"({within})" if len(names) == 3 else within
            lines.append(f"{column} = {within} % {columns}")
            lines.append(f"{row} = {within} // {columns}")
        else:
            self.helper("raster")
            call = f"raster({within}, {rows}, {columns}, {schedule.super_m})"
            lines.append(f"{row}, {column} = {call}")
        return lines


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


def _reaches(bound: Expr, side: int) -> bool:
    """True if the tensor's own bound already stops at the side."""
    bound = sympy.expand(bound)
    return bool(bound.is_Integer and int(bound) <= side)


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


#: Elements that a stride is a multiple of in an aligned variant.
ALIGNMENT = 16


def aligned_name(stride: str) -> str:
    """The argument that holds ``stride / 16``."""
    return stride.replace("stride_", "stride16_", 1)


@dataclass(frozen=True)
class Emitted:
    """``source`` of the jitted function and its helpers; ``arguments`` in order of the call."""

    name: str
    source: str
    arguments: tuple[str, ...]


def emit(fn: Function, poison: bool = False) -> Emitted:
    """Triton source of ``fn``: helpers and one ``@triton.jit`` function, no imports."""
    printer = Printer(fn, poison)
    lines = printer.body()
    used = set(re.findall(r"\w+", "\n".join(lines)))
    arguments = [f"{p.name}_ptr" for p in fn.params if p.role != "scalar"]
    numbers = [p.name for p in fn.params if p.role == "scalar"]
    numbers += [s.name for s in fn.dims]
    for p in fn.params:
        if p.role != "scalar":
            numbers += [stride_name(p, d) for d in range(len(p.dims))]
    numbers = [n for n in numbers if n in used]
    strides = [n for n in numbers if n.startswith("stride_")]
    if fn.wide:
        # Numbers that need 64 bits: make every product of an index and another a 64-bit one.
        integers = {p.name for p in fn.params if p.role == "scalar" and not p.dtype.is_float}
        long = [n for n in numbers if n in strides or n in integers]
        lines = [f"{n} = {n}.to(tl.int64)" for n in long] + lines
    if fn.aligned:
        # The launcher divides: Triton sees from the product that the stride is a multiple of 16,
        # which is what wide and asynchronous copies need, without compiling for every value.
        lines = [f"{n} = {aligned_name(n)} * {ALIGNMENT}" for n in strides] + lines
        numbers = [aligned_name(n) if n in strides else n for n in numbers]
    kernel = f"{fn.name}_kernel"
    out = [helpers.SOURCES[h] for h in sorted(printer.helpers_used)] + printer.functions
    decorator = "@triton.jit"
    if numbers:
        decorator = filled("@triton.jit(do_not_specialize=[", [f'"{n}"' for n in numbers], "])")
    signature = filled(f"def {kernel}(", [*arguments, *numbers], "):")
    body = "\n".join(f"    {line}" for line in lines)
    out.append(f"{decorator}\n{signature}\n{body}\n")
    return Emitted(kernel, "\n\n".join(out), (*arguments, *numbers))
