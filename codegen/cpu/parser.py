"""TTIR text -> op graph. The printed form is regular: one scanner serves every op.

An op is ``%results = name operands words {attributes} : types loc(...)`` on one line; only regions
span lines, and a region's brace is the last thing on its line while an attribute's never is.
"""

from __future__ import annotations

import re

from codegen.cpu.ttir import Block, Func, Module, Op, Region, Type, parse_type

_TOKEN = re.compile(
    r"""(?P<skip>[ \t]+|//[^\n]*)
    |(?P<nl>\n)
    |(?P<str>"(?:[^"\\]|\\.)*")
    |(?P<val>%[\w$.\-]+(?:\#\d+)?)
    |(?P<block>\^\w+)
    |(?P<sym>@(?:[\w$.\-]+|"[^"]*"))
    |(?P<loc>\#\w+(?![\w.]))
    |(?P<num>-?0x[0-9A-Fa-f]+|-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)
    |(?P<punct><\{|\}>|->|[(){}\[\],:=*<>+])
    |(?P<word>[!\#]?[A-Za-z_][\w$.]*)""",
    re.X,
)


class ParseError(Exception):
    """Text that does not have the form this parser knows."""


def _balanced(text: str, start: int) -> int:
    """Index after the ``>`` that closes the ``<`` at ``start``."""
    depth, i = 0, start
    while i < len(text):
        c = text[i]
        if c == '"':
            i = text.index('"', i + 1)
        elif c == "<":
            depth += 1
        elif c == ">" and text[i - 1] != "-":
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    raise ParseError(f"unclosed '<' at {text[start : start + 60]!r}")


def tokenize(text: str) -> list[tuple[str, str]]:
    """(kind, text) pairs; a type such as ``tensor<4x!tt.ptr<f32>>`` is one word."""
    out: list[tuple[str, str]] = []
    i, n = 0, len(text)
    while i < n:
        m = _TOKEN.match(text, i)
        if not m:
            raise ParseError(f"cannot read {text[i : i + 60]!r}")
        kind, tok, i = m.lastgroup, m.group(), m.end()
        if kind == "skip":
            continue
        opens_type = kind == "word" and i < n and text[i] == "<" and text[i + 1 : i + 2] != "{"
        if opens_type or tok == "<":  # `<f32>` alone is a type with its prefix left out
            start = i if opens_type else i - 1
            i = _balanced(text, start)
            kind, tok = "word", (tok if opens_type else "") + text[start:i]
        out.append((kind, tok))
    out.append(("nl", "\n"))
    return out


class _Parser:
    def __init__(self, text: str) -> None:
        self.toks = tokenize(text)
        self.i = 0

    def peek(self, ahead: int = 0) -> str:
        return self.toks[self.i + ahead][1] if self.i + ahead < len(self.toks) else ""

    def kind(self, ahead: int = 0) -> str:
        return self.toks[self.i + ahead][0] if self.i + ahead < len(self.toks) else "end"

    def next(self) -> str:
        self.i += 1
        return self.toks[self.i - 1][1]

    def expect(self, tok: str) -> None:
        got = self.next()
        if got != tok:
            around = " ".join(t for _, t in self.toks[max(0, self.i - 8) : self.i + 4])
            raise ParseError(f"expected {tok!r}, found {got!r} in: {around}")

    def skip_newlines(self) -> None:
        while self.kind() == "nl":
            self.i += 1

    def parens(self) -> str:
        """The text of a balanced parenthesis, the opening one being next."""
        parts, depth = [], 0
        while True:
            tok = self.next()
            depth += (tok == "(") - (tok == ")")
            parts.append(tok)
            if depth == 0:
                return "".join(parts)

    def location(self) -> str:
        self.expect("loc")
        return self.parens()

    def attributes(self, close: str) -> dict[str, str]:
        """``k = v : i32, unit, ...`` up to ``close``."""
        attrs: dict[str, str] = {}
        while self.peek() != close:
            name = self.next()
            if self.peek() == "=":
                self.next()
                parts, depth = [], 0
                while depth or self.peek() not in (",", close):
                    tok = self.next()
                    depth += (tok in "([{") - (tok in ")]}")
                    parts.append(tok)
                attrs[name] = " ".join(parts)
            else:
                attrs[name] = "true"
            if self.peek() == ",":
                self.next()
        self.next()
        return attrs

    # -- structure -------------------------------------------------------------------------

    def module(self) -> dict[str, Func]:
        funcs: dict[str, Func] = {}
        depth = 0
        while self.i < len(self.toks):
            tok = self.peek()
            if tok == "tt.func":
                func = self.func()
                funcs[func.name] = func
                continue
            depth += (tok == "{") - (tok == "}")
            self.i += 1
        return funcs

    def func(self) -> Func:
        self.expect("tt.func")
        public = False
        while self.kind() == "word":
            public |= self.next() == "public"
        name = self.next()[1:].strip('"')
        args, types = self.block_args()
        results: list[Type] = []
        loc = ""
        if self.peek() == "->":
            self.next()
            group = self.peek() == "("
            while True:
                tok = self.next()
                if tok not in ("(", ")", ","):
                    results.append(parse_type(tok))
                if not group or tok == ")":
                    break
        if self.peek() == "attributes":
            self.next()
            self.expect("{")
            self.attributes("}")
        body = self.region()
        body.entry.args, body.entry.arg_types = args, types
        if self.peek() == "loc":
            loc = self.location()
        return Func(name, args, types, results, body, public, loc)

    def block_args(self) -> tuple[list[str], list[Type]]:
        """``(%a: type loc(..) {attrs}, ...)``."""
        names: list[str] = []
        types: list[Type] = []
        self.expect("(")
        while self.peek() != ")":
            names.append(self.next())
            self.expect(":")
            types.append(parse_type(self.next()))
            while self.peek() in ("loc", "{"):
                if self.peek() == "loc":
                    self.location()
                else:
                    self.next()
                    self.attributes("}")
            if self.peek() == ",":
                self.next()
        self.expect(")")
        return names, types

    def region(self) -> Region:
        self.expect("{")
        region = Region([Block()])
        while True:
            self.skip_newlines()
            tok = self.peek()
            if tok == "}":
                self.next()
                return region
            if self.kind() == "block":
                block = region.entry
                if block.ops or block.label or len(region.blocks) > 1:
                    block = Block()
                    region.blocks.append(block)
                block.label = self.next()
                if self.peek() == "(":
                    block.args, block.arg_types = self.block_args()
                self.expect(":")
                continue
            block = region.blocks[-1]
            op = self.op()
            op.block, op.index = block, len(block.ops)
            for child in op.regions:
                for inner in child.blocks:
                    inner.parent = op
            block.ops.append(op)

    def results(self) -> list[str]:
        names: list[str] = []
        while self.kind() == "val":
            name = self.next()
            if self.peek() == ":":
                self.next()
                names += [f"{name}#{k}" for k in range(int(self.next()))]
            else:
                names.append(name)
            if self.peek() == ",":
                self.next()
        self.expect("=")
        return names

    def op(self) -> Op:
        names = self.results() if self.kind() == "val" else []
        op = Op(self.next().strip('"'), names)
        colon = False
        depth = 0
        while True:
            kind, tok = self.kind(), self.peek()
            if kind == "nl" and depth <= 0:
                self.next()
                break
            if tok == "loc" and self.peek(1) == "(":
                op.loc = self.location()
            elif tok == "<{":
                self.next()
                op.attrs.update(self.attributes("}>"))
            elif tok == "{" and self.kind(1) == "nl":
                op.regions.append(self.region())
                colon = False
            elif tok == "{":
                self.next()
                op.attrs.update(self.attributes("}"))
            elif kind == "block":
                self.successor(op)
            elif kind == "val" and self.peek(1) == "=":
                op.binds.append(self.next())
                self.next()
            elif kind == "val":
                op.operands.append(self.next())
            elif tok == ":" and op.name != "tt.call_intrinsic":
                colon = True
                self.next()
            else:
                depth += (tok in ("(", "[")) - (tok in (")", "]"))
                (op.types if colon else op.words).append(self.next())
        op.result_types = _result_types(op)
        return op

    def successor(self, op: Op) -> None:
        label, values = self.next(), []
        if self.peek() == "(":
            self.next()
            while self.peek() != ")":
                if self.kind() == "val":
                    values.append(self.next())
                else:
                    self.next()
            self.next()
        op.successors.append((label, values))


def _type_words(words: list[str]) -> list[Type]:
    return [parse_type(w) for w in words if w not in ("(", ")", ",", "*", "+")]


def _result_types(op: Op) -> list[Type]:
    """Where the types of an op's results stand in what it printed after the colon."""
    if not op.results:
        return []
    words = op.types
    for arrow in ("->", "to"):
        if arrow in words:
            types = _type_words(words[len(words) - words[::-1].index(arrow) :])
            return types * len(op.results) if len(types) == 1 else types
    if op.name.startswith("scf.") and "->" in op.words:  # the arrow stands before the region
        tail = op.words[op.words.index("->") + 1 :]
        return _type_words(tail[: len(tail)])[: len(op.results)]
    types = _type_words(words)
    if not types and op.name == "arith.constant":
        return [Type("i1")]  # `arith.constant true` prints no type
    if op.name in ("arith.cmpi", "arith.cmpf"):
        return [types[0].with_elem("i1")]
    if op.name == "arith.select":
        return [types[-1]]
    if op.name == "tt.load":
        ptr = types[0]
        return [Type(ptr.pointee, ptr.shape, ptr.tensor) if ptr.pointee[:6] != "tensor" else
                parse_type(ptr.pointee)]  # fmt: skip
    return types[:1] * len(op.results)


def parse(text: str) -> Module:
    """Read a printed Triton module."""
    locs = dict(re.findall(r"^(#loc\d*) = (loc\(.*\))$", text, re.M))
    body = re.sub(r"^#\w+ = .*$", "", text, flags=re.M)
    return Module(_Parser(body).module(), locs)
