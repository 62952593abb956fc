"""Programs as lists of typed instructions: each has Triton text and a function that does the same
on numpy arrays (``approx``)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from approx import UNKNOWN, V, exact

PROGRAMS = 2  # of the grid

PRELUDE = '''import triton
import triton.language as tl


@triton.jit
def affine(a, b, c, d):
    """Composition of x -> a * x + b with c * x + d: associative, not commutative."""
    return a * c, b * c + d


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)

'''


@dataclass(frozen=True)
class Var:
    """A value of a program."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass
class Line:
    """A line of Triton that computes no value."""

    text: str

    def lines(self) -> list[str]:
        return [self.text]

    def run(self, env: dict) -> None:
        """Nothing that the reference sees."""


@dataclass
class Instr:
    """``out = text``; ``fn`` gets the operands' ``V``s and gives the result's."""

    out: Var
    args: list[Var]
    text: str
    fn: object

    def lines(self) -> list[str]:
        return [f"{self.out.name} = {self.text.format(*[a.name for a in self.args])}"]

    def run(self, env: dict) -> None:
        """Evaluate into ``env``."""
        with np.errstate(all="ignore"):
            v = self.fn(*[env[a.name] for a in self.args])
        assert v.x.shape == v.err.shape == self.out.shape, (self, v.x.shape, v.err.shape)
        env[self.out.name] = v


@dataclass
class If:
    cond: Var
    outs: list[Var]
    sides: list[tuple[list, list[Var]]]  # instructions, what they leave in outs

    def lines(self) -> list[str]:
        out = []
        for head, (block, leave) in zip(("if " + self.cond.name, "else"), self.sides, strict=True):
            body = [s for i in block for s in i.lines()]
            body += [f"{o.name} = {v.name}" for o, v in zip(self.outs, leave, strict=True)]
            out += [head + ":", *("    " + s for s in body)]
        return out

    def run(self, env: dict) -> None:
        cond = env[self.cond.name]
        block, leave = self.sides[0 if cond.x else 1]
        inner = dict(env)
        for i in block:
            i.run(inner)
        for o, v in zip(self.outs, leave, strict=True):
            value = inner[v.name]
            env[o.name] = value if cond.known else V(value.x, np.full(value.x.shape, UNKNOWN))


@dataclass
class Loop:
    count: int
    how: str  # "for" over an argument, "while", or "static"
    index: Var
    carries: list[tuple[Var, Var, Var]]  # the carry, its first value, what the body leaves
    block: list

    def lines(self) -> list[str]:
        k, n = self.index.name, f"n{self.count}"
        body = [s for i in self.block for s in i.lines()]
        names = ", ".join(c.name for c, _, _ in self.carries)
        body.append(f"{names} = {', '.join(v.name for _, _, v in self.carries)}")
        out = [f"{c.name} = {first.name}" for c, first, _ in self.carries]
        if self.how == "while":
            out += [f"{k} = n{self.count} * 0", f"while {k} < {n}:"]
            body.append(f"{k} += 1")
        else:
            static = f"tl.static_range({self.count})"
            out.append(f"for {k} in {static if self.how == 'static' else f'range({n})'}:")
        return out + ["    " + s for s in body]

    def run(self, env: dict) -> None:
        for c, first, _ in self.carries:
            env[c.name] = env[first.name]
        for k in range(self.count):
            inner = dict(env)
            inner[self.index.name] = exact(np.int32(k))
            for i in self.block:
                i.run(inner)
            for c, _, leave in self.carries:
                env[c.name] = inner[leave.name]


@dataclass
class Output:
    """A masked, strided store of a variable to a tensor of its own."""

    var: Var
    live: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Elements of the tensor that one program owns."""
        spread = (s * (d - 1) for s, d in zip(self.strides, self.var.shape, strict=True))
        return self.start + sum(spread) + 3

    def places(self) -> np.ndarray:
        at = np.full(self.var.shape, self.start)
        for axis, s in enumerate(self.strides):
            shape = [-1 if a == axis else 1 for a in range(len(self.strides))]
            at = at + (np.arange(self.var.shape[axis]) * s).reshape(shape)
        return at

    def mask(self) -> np.ndarray:
        return index_grid(self.var.shape, self.live)


def index_grid(shape, live) -> np.ndarray:
    """True at the leading ``live`` indices of every axis."""
    ok = np.ones(shape, bool)
    for axis, n in enumerate(live):
        sides = [-1 if a == axis else 1 for a in range(len(shape))]
        ok &= (np.arange(shape[axis]) < n).reshape(sides)
    return ok


def ramps(shape) -> list[str]:
    """Triton text of the index along each axis, shaped to broadcast."""
    out = []
    for axis, d in enumerate(shape):
        where = ", ".join(":" if a == axis else "None" for a in range(len(shape)))
        out.append(f"tl.arange(0, {d})" + (f"[{where}]" if len(shape) > 1 else ""))
    return out


def place_text(shape, strides, start) -> str:
    return " + ".join(
        [str(start)] + [f"{r} * {s}" for r, s in zip(ramps(shape), strides, strict=True)]
    )


def mask_text(shape, live) -> str:
    return " & ".join(f"({r} < {n})" for r, n in zip(ramps(shape), live, strict=True))


@dataclass
class Program:
    """A whole kernel: its inputs (one tensor per dtype and random bits), body and outputs."""

    inputs: dict[str, np.ndarray]
    counts: list[int]
    body: list = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    scratch: dict[str, int] = field(default_factory=dict)  # elements of memory for round trips

    def source(self) -> str:
        args = [f"x_{d}" for d in self.inputs] + [f"n{c}" for c in self.counts]
        args += [f"s_{d}" for d in self.scratch] + [f"o{k}" for k in range(len(self.outputs))]
        lines = ["pid = tl.program_id(0)"]
        lines += [s for i in self.body for s in i.lines()]
        for k, o in enumerate(self.outputs):
            value = o.var.name + (".to(tl.int8)" if o.var.dtype == "i1" else "")
            if not o.var.shape:
                lines.append(f"tl.store(o{k} + pid * {o.size} + {o.start}, {value})")
                continue
            at = place_text(o.var.shape, o.strides, o.start)
            mask = mask_text(o.var.shape, o.live)
            lines.append(f"tl.store(o{k} + pid * {o.size} + ({at}), {value}, mask={mask})")
        text = "".join(f"    {s}\n" for s in lines)
        for d, size in self.scratch.items():
            text = text.replace(f"SIZE_{d}", str(size))
        return f"{PRELUDE}\n@triton.jit\ndef program({', '.join(args)}):\n{text}"

    def reference(self) -> list[list[V]]:
        """Per output, the value in each program of the grid."""
        values = []
        for pid in range(PROGRAMS):
            env = {"pid": exact(np.int32(pid))}
            for i in self.body:
                i.run(env)
            values.append([env[o.var.name] for o in self.outputs])
        return [list(v) for v in zip(*values, strict=True)]
