"""The typed op graph that TTIR text is read into: types, ops, blocks and source locations."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Bytes that one element occupies in memory. A boolean is a byte, as Triton stores it.
BYTES = {
    "i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "index": 8, "ptr": 8,
    "f8E4M3FN": 1, "f8E5M2": 1, "f16": 2, "bf16": 2, "f32": 4, "f64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Type:
    """A scalar (``shape == ()`` and ``tensor`` false) or a tensor of ``elem``.

    ``elem`` is the MLIR name of the element, or ``ptr``, whose pointee is then ``pointee``.
    """

    elem: str
    shape: tuple[int, ...] = ()
    tensor: bool = False
    pointee: str = ""

    def __str__(self) -> str:
        elem = f"ptr<{self.pointee}>" if self.elem == "ptr" else self.elem
        return f"{'x'.join(map(str, self.shape))}x{elem}" if self.tensor else elem

    def with_elem(self, elem: str) -> Type:
        """The same shape with another element."""
        return Type(elem, self.shape, self.tensor)


def parse_type(text: str) -> Type:
    """``tensor<64x32x!tt.ptr<bf16>>`` -> Type. An unknown type keeps its text as ``elem``."""
    text = text.strip()
    if text.startswith("tensor<") and text.endswith(">"):
        inner = text[7:-1]
        dims = re.match(r"(?:\d+x)*", inner).group()
        elem = parse_type(inner[len(dims) :])
        shape = tuple(int(d) for d in dims.split("x") if d)
        return Type(elem.elem, shape, True, elem.pointee)
    if text.startswith("!tt.ptr<"):
        inner = re.sub(r",\s*\d+$", "", text[8:-1])  # an address space changes nothing here
        return Type("ptr", pointee=inner)
    return Type(text)


@dataclass(eq=False)
class Op:
    """One operation. Values are named by their printed names (``%x``, ``%x#1``)."""

    name: str
    results: list[str] = field(default_factory=list)
    operands: list[str] = field(default_factory=list)
    attrs: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)  # the words after the colon, arrows included
    regions: list[Region] = field(default_factory=list)
    binds: list[str] = field(default_factory=list)  # region arguments named in the op's head
    successors: list[tuple[str, list[str]]] = field(default_factory=list)
    result_types: list[Type] = field(default_factory=list)
    loc: str = ""
    block: Block | None = None
    index: int = 0

    def attr_int(self, name: str, default: int | None = None) -> int:
        """Integer attribute: ``axis = 0 : i32`` -> 0."""
        if name not in self.attrs:
            if default is None:
                raise KeyError(f"{self.name} has no attribute {name}")
            return default
        text = self.attrs[name].split(":")[0].strip()
        return {"true": 1, "false": 0}.get(text) if text in ("true", "false") else int(text)

    def attr_bool(self, name: str) -> bool:
        """A unit attribute or ``name = true``."""
        return name in self.attrs and self.attrs[name] != "false"

    def attr_ints(self, name: str) -> list[int]:
        """``order = array<i32: 1, 0>`` -> [1, 0]."""
        text = self.attrs[name]
        return [int(n) for n in re.findall(r"-?\d+", text.split(":", 1)[1])] if ":" in text else []


@dataclass(eq=False)
class Block:
    """A straight line of ops with arguments."""

    label: str = ""
    args: list[str] = field(default_factory=list)
    arg_types: list[Type] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    parent: Op | None = None


@dataclass(eq=False)
class Region:
    """A list of blocks, the first of which is the entry."""

    blocks: list[Block] = field(default_factory=list)

    @property
    def entry(self) -> Block:
        return self.blocks[0]


@dataclass(eq=False)
class Func:
    """A function: its arguments are those of the entry block."""

    name: str
    args: list[str]
    arg_types: list[Type]
    result_types: list[Type]
    body: Region
    public: bool
    loc: str = ""


@dataclass
class Module:
    """All functions of one kernel, with the table of source locations."""

    funcs: dict[str, Func]
    locs: dict[str, str]

    @property
    def kernel(self) -> Func:
        """The function that is launched."""
        return next(f for f in self.funcs.values() if f.public)

    def where(self, loc: str) -> str:
        """``#loc12`` -> ``file.py:10:20``, through names, fusions and call sites."""
        for _ in range(32):
            place = re.search(r'"([^"]+)":(\d+):(\d+)', loc)
            if place:
                return f"{place[1]}:{place[2]}:{place[3]}"
            ref = re.search(r"#loc\d*", loc)
            if not ref or ref[0] not in self.locs:
                break
            loc = self.locs[ref[0]]
        return "unknown location"


class Unsupported(Exception):
    """An op that this backend cannot do: names the op, the kernel's source line and why."""
