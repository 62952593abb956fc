"""Tile IR as text: a printer, and a parser that reads back exactly what was printed.

    kernel scale(x: in f32[N 40], y: out f32[N 40], factor: scalar f32) {
      dims N
      grid i = `(N + 63) // 64`
      range N: `0` .. none
      %0 = load() {param = "x", start = (`i * 64`, `0`), ...}
          : tile<64[N - i * 64] x 48[40], f32> @7
      ...
    }

Index expressions stand in backquotes. A tile side is followed by the bounds on its live extent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import sympy

from codegen.expr import Boolean, Expr, parse, sym, text
from codegen.ir import (
    DTYPES,
    Axis,
    DType,
    Function,
    Loc,
    Op,
    Param,
    Region,
    Type,
    Value,
    factor,
)

# --------------------------------------------------------------------------------------------
# Printing


def print_function(fn: Function) -> str:
    """The text of ``fn``; ``parse_function`` reads it back."""
    return _Writer().function(fn)


_WITH_REGIONS = ("for", "if", "associative_scan")


class _Writer:
    def __init__(self):
        self.names: dict[Value, str] = {}
        self.taken: dict[str, int] = {}

    def function(self, fn: Function) -> str:
        params = ",\n    ".join(_param(p) for p in fn.params)
        wide = " wide" if fn.wide else ""
        lines = [f"kernel {fn.name}(\n    {params}\n){wide} {{"]
        lines.append(f"  dims {' '.join(s.name for s in fn.dims)}".rstrip())
        lines += [f"  grid {s.name} = {_expr(count)}" for s, count in fn.grid]
        lines += [
            f"  range {s.name}: {_maybe(low)} .. {_maybe(high)}"
            for s, (low, high) in fn.facts.ranges.items()
        ]
        lines += [f"  equal {s.name} = {_expr(e)}" for s, e in fn.facts.equal.items()]
        lines += self.region(fn.body, 1)
        return "\n".join([*lines, "}"]) + "\n"

    def region(self, region: Region, depth: int) -> list[str]:
        pad = "  " * depth
        out = []
        if region.args:
            out.append(f"{pad}^({', '.join(f'{self.define(a)}: {a.type}' for a in region.args)})")
        for op in region.ops:
            out += self.op(op, depth)
        return out

    def op(self, op: Op, depth: int) -> list[str]:
        pad = "  " * depth
        operands = ", ".join(self.names[v] for v in op.operands)
        attrs = ", ".join(f"{k} = {_attr(v)}" for k, v in op.attrs.items())
        head = f"{op.kind}({operands})" + (f" {{{attrs}}}" if attrs else "")
        inner: list[str] = []
        for k, region in enumerate(op.regions):
            inner += [f"{pad}{'} else {' if k else '{'}"] if k else []
            inner += self.region(region, depth + 1)
        types = ", ".join(str(v.type) for v in op.results)
        line = f" @{op.loc.line}" if op.loc.line else ""
        tail = (f" : {types}" if types else "") + line
        if op.results:
            head = f"{', '.join(self.define(v) for v in op.results)} = {head}"
        if op.regions:
            return [f"{pad}{head}{tail} {{", *inner, f"{pad}}}"]
        return [f"{pad}{head}{tail}"]

    def define(self, value: Value) -> str:
        base = re.sub(r"\W", "_", value.hint)
        k = self.taken.get(base, -1) + 1
        self.taken[base] = k
        self.names[value] = f"%{base}{f'.{k}' if k else ''}" if base else f"%{k}"
        symbol = f"[{value.symbol.name}]" if value.symbol is not None else ""
        return self.names[value] + symbol


def _param(p: Param) -> str:
    dims = " ".join(_expr(d) for d in p.dims)
    labels = f" as {' '.join(x.replace(' ', '') for x in p.labels)}" if p.labels else ""
    flags = ("" if p.unit_inner else " strided") + (" zeroed" if p.zeroed else "")
    flags += " pair" if p.pair else ""
    shape = f"[{dims}{labels}]" if p.role != "scalar" else ""
    return f"{p.name}: {p.role} {p.dtype}{shape}{flags}"


def _expr(e: Expr | Boolean) -> str:
    return f"`{text(e)}`"


def _maybe(e: Expr | None) -> str:
    return "none" if e is None else _expr(e)


def _attr(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, DType):
        return f"!{value}"
    if isinstance(value, Axis):
        return f"axis<{str(Type(DTYPES['f32'], (value,)))[5:-6]}>"
    if isinstance(value, Expr | Boolean):
        return _expr(value)
    if isinstance(value, tuple):
        inner = ", ".join(map(_attr, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    raise TypeError(f"attribute {value!r} has no text")


# --------------------------------------------------------------------------------------------
# Parsing


class ParseError(ValueError):
    """Text that is not tile IR; says the line and what was expected."""


_TOKEN = re.compile(
    r"\s*(?:(?P<expr>`[^`]*`)|(?P<str>\"[^\"]*\")|(?P<type>(?:tile|axis)<[^<>]*>)"
    r"|(?P<value>%[\w.]+)|(?P<num>-?(?:inf|nan|\d[\w.+-]*))|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<dots>\.\.)|(?P<punct>[{}()\[\]=,:@!^*]))"
)


def parse_function(source: str) -> Function:
    """The function that ``source`` describes.

    Raises:
        ParseError: with the line number, for anything that ``print_function`` does not write.
    """
    return _Reader(source).function()


@dataclass
class _Reader:
    source: str
    at: int = 0
    values: dict[str, Value] = field(default_factory=dict)

    # -- tokens ----------------------------------------------------------------------------

    def peek(self) -> tuple[str, str]:
        match = _TOKEN.match(self.source, self.at)
        if not match:
            rest = self.source[self.at :].strip()
            return ("end", "") if not rest else ("bad", rest[:20])
        kind = match.lastgroup or ""
        return kind, match.group(kind)

    def take(self, *expected: str) -> str:
        kind, word = self.peek()
        if expected and word not in expected and kind not in expected:
            line = self.source.count("\n", 0, self.at + 1) + 1
            raise ParseError(f"line {line}: expected {' or '.join(expected)}, found {word!r}")
        match = _TOKEN.match(self.source, self.at)
        if not match:
            raise ParseError("unexpected end of the text")
        self.at = match.end()
        return word

    def accept(self, word: str) -> bool:
        if self.peek()[1] == word:
            self.take()
            return True
        return False

    def expr(self) -> Expr:
        return parse(self.take("expr")[1:-1])  # type: ignore[return-value]

    # -- the function ----------------------------------------------------------------------

    def function(self) -> Function:
        self.take("kernel")
        fn = Function(self.take("word"))
        self.take("(")
        while not self.accept(")"):
            fn.params.append(self.param())
            self.accept(",")
        fn.wide = self.accept("wide")
        self.take("{")
        self.take("dims")
        while self.peek()[0] == "word" and self.peek()[1] not in ("grid", "range", "equal"):
            if self.source[self.at :].split("\n", 1)[0].strip() == "":
                break
            fn.dims.append(sym(self.take("word")))
        while self.accept("grid"):
            name = sym(self.take("word"))
            self.take("=")
            fn.grid.append((name, self.expr()))
        while self.accept("range"):
            name = sym(self.take("word"))
            self.take(":")
            low = self.maybe()
            self.take("..")
            fn.facts.ranges[name] = (low, self.maybe())
        while self.accept("equal"):
            name = sym(self.take("word"))
            self.take("=")
            fn.facts.equal[name] = self.expr()
        fn.body = self.region()
        return fn

    def maybe(self) -> Expr | None:
        return None if self.accept("none") else self.expr()

    def param(self) -> Param:
        name = self.take("word")
        self.take(":")
        role, dtype = self.take("in", "out", "inout", "scalar"), DTYPES[self.take("word")]
        dims, labels = [], []
        if self.accept("["):
            while self.peek()[0] == "expr":
                dims.append(self.expr())
            if self.accept("as"):
                end = self.source.index("]", self.at)
                labels = self.source[self.at : end].split()
                self.at = end
            self.take("]")
        p = Param(name, role, dtype, tuple(dims), labels=tuple(labels))
        p.unit_inner = not self.accept("strided")
        p.zeroed = self.accept("zeroed")
        p.pair = self.accept("pair")
        return p

    def region(self) -> Region:
        region = Region()
        if self.accept("^"):
            self.take("(")
            while not self.accept(")"):
                value = self.define()
                self.take(":")
                value.type = self.type()
                region.args.append(value)
                self.accept(",")
        while not self.accept("}"):
            region.ops.append(self.op())
        return region

    def define(self) -> Value:
        name = self.take("value")
        base = name[1:].partition(".")[0]
        hint = "" if base.isdigit() else base
        value = Value(Type(DTYPES["f32"]), hint)
        if self.accept("["):
            value.symbol = sym(self.take("word"))
            self.take("]")
        self.values[name] = value
        return value

    def op(self) -> Op:
        results = []
        while self.peek()[0] == "value":
            results.append(self.define())
            if not self.accept(","):
                self.take("=")
        op = Op(self.take("word"), results=results)
        for v in results:
            v.op = op
        self.take("(")
        while not self.accept(")"):
            op.operands.append(self.use(self.take("value")))
            self.accept(",")
        if op.kind not in _WITH_REGIONS or self.attrs_follow():
            self.attrs(op)
        if self.accept(":"):
            for k, v in enumerate(results):
                if k:
                    self.take(",")
                v.type = self.type()
        if self.accept("@"):
            op.loc = Loc(line=int(self.take("num")))
        if op.kind in _WITH_REGIONS:
            self.take("{")
            op.regions.append(self.region())
            if self.accept("else"):
                self.take("{")
                op.regions.append(self.region())
        return op

    def attrs_follow(self) -> bool:
        return re.match(r"\s*\{\w+ = ", self.source[self.at :]) is not None

    def attrs(self, op: Op) -> None:
        if not self.attrs_follow():
            return
        self.take("{")
        while not self.accept("}"):
            key = self.take("word")
            self.take("=")
            op.attrs[key] = self.attr()
            self.accept(",")

    def use(self, name: str) -> Value:
        if name not in self.values:
            raise ParseError(f"{name} is used before it is defined")
        return self.values[name]

    def attr(self) -> object:
        kind, word = self.peek()
        if kind == "expr":
            return self.expr()
        if kind == "str":
            return self.take()[1:-1]
        if kind == "type":
            return _axes(self.take()[5:-1])[0]
        if word == "!":
            self.take()
            return DTYPES[self.take("word")]
        if word == "(":
            self.take()
            items = []
            while not self.accept(")"):
                items.append(self.attr())
                self.accept(",")
            return tuple(items)
        self.take()
        if word in ("none", "true", "false"):
            return {"none": None, "true": True, "false": False}[word]
        return float(word) if re.search(r"[.einf]", word) else int(word)

    def type(self) -> Type:
        kind, word = self.peek()
        self.take()
        if kind == "word":
            return Type(DTYPES[word])
        axes, *rest = word[5:-1].rsplit(", ", 2 if word.endswith((", col>", ", row>")) else 1)
        return Type(DTYPES[rest[0]], _axes(axes), rest[1] if len(rest) > 1 else None)


def _axes(source: str) -> tuple[Axis, ...]:
    return tuple(
        Axis(tuple(_factor(f) for f in re.findall(r"\d+(?:\[[^\]]*\])?", part)))
        for part in _split(source)
    )


def _split(source: str) -> list[str]:
    """Axes are separated by `` x `` outside brackets."""
    out, depth, begin = [], 0, 0
    for k, c in enumerate(source):
        depth += (c == "[") - (c == "]")
        if depth == 0 and source.startswith(" x ", k):
            out.append(source[begin:k])
            begin = k + 3
    return [*out, source[begin:]]


def _factor(source: str):
    side, _, bounds = source.partition("[")
    parts = [parse(b) for b in bounds.rstrip("]").split(";")] if bounds else []
    return factor(int(side), [sympy.sympify(b) for b in parts])
