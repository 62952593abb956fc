"""Tile IR to Triton: one function a kernel, in the author's names, one line a thought.

The text is meant to be read. A value that the author named keeps its name and its line; one
that is used once stands inside the expression that uses it. Index vectors, base pointers and
masks are shared and placed in the outermost scope that knows their symbols.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import sympy

from codegen import helpers
from codegen.access import Access
from codegen.expr import Expr
from codegen.ir import (
    Function,
    Loc,
    Op,
    Region,
    Value,
    loop_parts,
    trip_facts,
)
from codegen.ops import TABLE
from codegen.ops.base import LOWEST
from codegen.rewrite import uses_value
from codegen.schedule import Schedule
from codegen.writer import ALIGNMENT, aligned_name, filled, rows_long, stride_name, wrapped

# Kinds whose result is worth a line of its own even when nobody named it: moving a load into a
# later expression could carry it past a store.
_OWN_LINE = {"load", "gather_rows", "for", "if"}
#: What a value without a name of the author's is called.
_NAMES = {"mma": "product", "reduce": "total"}


class Printer(Access):
    """Writes one ``Function``."""

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
        covered = op.attrs.get("covered")
        if op.kind in ("keep", "fill_dead") and op.operands[0] in self.inline and not covered:
            self._before_mask(op, region, position)
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
        if op.kind in ("const", "argument") or covered:
            self.inline[value] = produced
            return
        name = self._name_for(value, region, position)
        self.names[value] = name
        self.line(f"{name} = {produced[0]}", op.loc)
        if poisoned:
            self._poison(value, name)

    def _before_mask(self, op: Op, region: Region, position: int) -> None:
        """A product that ``op`` masks gets its own line, and the mask is made after it.

        Made before, its predicates would have to be kept while the product is under way.
        """
        value = op.operands[0]
        body = self.inline[value][0]
        if "tl.dot(" not in body:
            return
        value.hint = value.hint or op.result.hint
        name = self._name_for(value, region, position)
        del self.inline[value]
        self.names[value] = name
        self.line(f"{name} = {body}", value.op.loc if value.op else op.loc)

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
        if op.attrs.get("reverse"):
            bounds, stages = f"{self._below_one(stop)}, {self._below_one(start)}, -1", None
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

    def _below_one(self, e: Expr) -> str:
        """The text of ``e - 1``."""
        return str(int(e) - 1) if e.is_Integer else f"{self._bound(e)} - 1"

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
            # Triton sees what both branches define after them: their names are not free again.
            self.taken |= inner.released
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
        # Likewise rows: a mask that ends a row is then the same for 16 elements side by side.
        long_rows = rows_long((p.role, p.dims) for p in fn.params)
        whole = [n for n in numbers if n in strides or n in long_rows]
        lines = [f"{n} = {aligned_name(n)} * {ALIGNMENT}" for n in whole] + lines
        numbers = [aligned_name(n) if n in whole else n for n in numbers]
    kernel = f"{fn.name}_kernel"
    out = [helpers.SOURCES[h] for h in sorted(printer.helpers_used)] + printer.functions
    decorator = "@triton.jit"
    if numbers:
        decorator = filled("@triton.jit(do_not_specialize=[", [f'"{n}"' for n in numbers], "])")
    signature = filled(f"def {kernel}(", [*arguments, *numbers], "):")
    body = "\n".join(f"    {line}" for line in lines)
    out.append(f"{decorator}\n{signature}\n{body}\n")
    return Emitted(kernel, "\n\n".join(out), (*arguments, *numbers))
