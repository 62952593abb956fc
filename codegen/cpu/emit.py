"""LLVM IR as text: values that know their shape over lanes, and a builder that hoists.

A ``Val`` is one element per lane of the current vector: a constant, a uniform scalar, an affine
ramp (``base + stride * lane``, which is how contiguity is seen without a separate analysis) or a
vector. 16-bit and 8-bit floats are carried as their bits and widened for arithmetic.

The builder's code is a tree of lists: a loop is a list inside its parent's list. Whatever does not
depend on a loop's index is appended to the parent, before the loop, which is loop-invariant code
motion by construction.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from contextlib import contextmanager

LLVM = {
    "i1": "i1", "i8": "i8", "i16": "i16", "i32": "i32", "i64": "i64", "index": "i64", "ptr": "ptr",
    "f8E4M3FN": "i8", "f8E5M2": "i8", "f16": "i16", "bf16": "i16", "f32": "float", "f64": "double",
}  # fmt: skip
INT_BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "index": 64}
NARROW_FLOATS = ("f16", "bf16", "f8E4M3FN", "f8E5M2")
FLOATS = ("f32", "f64", *NARROW_FLOATS)


def ll(ty: str, n: int = 0) -> str:
    """The LLVM type of ``n`` lanes of an element (a scalar for 0)."""
    return f"<{n} x {LLVM[ty]}>" if n else LLVM[ty]


def mangle(ty: str, n: int) -> str:
    """The suffix that LLVM gives an overloaded intrinsic: ``v16f32``."""
    base = {"float": "f32", "double": "f64", "ptr": "p0"}.get(LLVM[ty], LLVM[ty])
    return f"v{n}{base}" if n else base


def float_bits(value: float, ty: str) -> int:
    """Bits of a constant in a narrow float format, rounded to nearest even."""
    import numpy as np

    if ty == "f16":
        return int(np.float16(value).view(np.uint16))
    if ty == "bf16":
        bits = int(np.float32(value).view(np.uint32))
        if value != value:
            return 0x7FC0
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF
    raise KeyError(ty)


class Val:
    """One element per lane; see the module's text. ``level`` is the loop it was made in."""

    __slots__ = ("base", "div", "exact", "kind", "level", "n", "stride", "ty", "x")

    def __init__(self, ty, kind, x=None, *, n=0, base=None, stride=None, level=0, div=1) -> None:
        self.ty, self.kind, self.x, self.n = ty, kind, x, n
        self.base, self.stride, self.level, self.div = base, stride, level, div
        self.exact: Callable[[], Val] | None = None

    @property
    def uniform(self) -> bool:
        return self.kind in "cu"

    def is_const(self, value) -> bool:
        return self.kind == "c" and self.x == value

    def __repr__(self) -> str:
        return (
            f"Val({self.ty} {self.kind} {self.x if self.kind != 'a' else (self.base, self.stride)})"
        )


def const(ty: str, value) -> Val:
    """A constant; integers wrap to their width (signed)."""
    if ty in INT_BITS:
        bits = INT_BITS[ty]
        value = int(value) & ((1 << bits) - 1)
        if bits > 1 and value >> (bits - 1):
            value -= 1 << bits
        return Val(ty, "c", value, div=value & -value if value else 1 << 30)
    return Val(ty, "c", value)


@functools.lru_cache(1 << 12)
def counted(ty: str, n: int, step: int) -> str:
    """The vector constant ``0, step, 2 * step, ...`` of ``n`` integers."""
    return f"<{', '.join(f'{LLVM[ty]} {const(ty, k * step).x}' for k in range(n))}>"


class Scope:
    """A loop body (or the function): where its code goes and what was already evaluated in it."""

    __slots__ = ("cur", "level", "lines", "memo")

    def __init__(self, level: int) -> None:
        self.level = level
        self.cur: list = []
        self.lines: list = [self.cur]
        self.memo: dict = {}


class Emit:
    """Builds the body of one LLVM function."""

    def __init__(self, features, contract: bool = True) -> None:
        self.features = features
        self.contract = "contract " if contract else ""
        self.declared: dict[str, str] = {}
        self.globals: dict[str, str] = {}
        self.scopes = [Scope(0)]
        self.label = "entry"
        self.count = 0
        self.base_level = 0
        self.sites: list | None = None  # loops that ask for memory (codegen.cpu.lower.requests)

    # -- text ------------------------------------------------------------------------------

    @property
    def scope(self) -> Scope:
        return self.scopes[-1]

    def name(self, hint: str = "v") -> str:
        self.count += 1
        return f"%{hint}{self.count}"

    def line(self, text: str) -> None:
        self.scopes[-1].cur.append(text)

    def raw(self, text: str, hint: str = "v") -> str:
        """Append ``%name = text``."""
        name = self.name(hint)
        self.scopes[-1].cur.append(f"{name} = {text}")
        return name

    def mark(self, text: str) -> None:
        """Start a basic block in the current scope."""
        self.line(f"{text}:")
        self.label = text

    def branch(self, label: str) -> None:
        self.line(f"br label %{label}")

    def declare(self, signature: str) -> str:
        """``declare <16 x float> @llvm.fma(...)``: once per function name; gives the name."""
        name = signature.split("@", 1)[1].split("(", 1)[0]
        self.declared[name] = signature
        return "@" + name

    def intrinsic(self, name: str, ret: str, args: Sequence[tuple[str, str]]) -> str:
        """Call an LLVM intrinsic or external function with (type, operand) arguments."""
        types = ", ".join(t for t, _ in args)
        fn = self.declare(f"declare {ret} @{name}({types})")
        call = f"call {ret} {fn}({', '.join(f'{t} {v}' for t, v in args)})"
        if ret == "void":
            self.line(call)
            return ""
        return self.raw(call)

    def text(self) -> str:
        """The code of the function body."""
        out: list[str] = []

        def walk(node) -> None:
            for item in node:
                if isinstance(item, str):
                    out.append(item)
                else:
                    walk(item)

        walk(self.scopes[0].lines)
        return "\n".join(("" if s.endswith(":") else "  ") + s for s in out)

    # -- loops and hoisting ----------------------------------------------------------------

    def fresh_label(self, hint: str) -> str:
        self.count += 1
        return f"{hint}{self.count}"

    def open(self) -> Scope:
        """A nested scope whose code is placed here."""
        outer = self.scope
        inner = Scope(outer.level + 1)
        outer.lines.append(inner.lines)
        self.scopes.append(inner)
        return inner

    def close(self) -> None:
        self.scopes.pop()
        outer = self.scope
        outer.cur = []
        outer.lines.append(outer.cur)

    @contextmanager
    def at_level(self, level: int):
        """Emit into an enclosing scope, in front of the loops opened inside it."""
        keep = self.scopes
        self.scopes = keep[: max(level, self.base_level) + 1]
        try:
            yield
        finally:
            self.scopes = keep

    def loop(self, start, stop, step, body, carries=(), ty: str = "i32"):
        """``for i in range(start, stop, step)`` with carried scalars or vectors.

        ``body(i, values) -> values``; gives the values after the last iteration. Bounds are Vals
        or ints, compared signed. ``carries`` are (llvm type, operand) pairs.
        """
        start, stop, step = (const(ty, v) if isinstance(v, int) else v for v in (start, stop, step))
        t = LLVM[ty]
        pred = self.label
        head, latch, exit_ = (self.fresh_label(h) for h in ("for", "body", "end"))
        first = self.operand(start)
        bound, inc = self.operand(stop), self.operand(step)
        self.open()
        self.branch(head)
        self.mark(head)
        index = self.name("i")
        phi_at = len(self.scope.cur)
        self.line("")
        names = [self.name("c") for _ in carries]
        for _ in carries:
            self.line("")
        cond = self.raw(f"icmp slt {t} {index}, {bound}")
        self.line(f"br i1 {cond}, label %{latch}, label %{exit_}")
        heads = self.scope.cur
        self.mark(latch)
        div = min(start.div, step.div) if start.kind == "c" and step.kind == "c" else 1
        results = body(Val(ty, "u", index, level=self.scope.level, div=div), names) or []
        nxt = self.raw(f"add nsw {t} {index}, {inc}")
        back = self.label
        self.line(f"br label %{head}")
        heads[phi_at] = f"{index} = phi {t} [ {first}, %{pred} ], [ {nxt}, %{back} ]"
        for k, ((cty, init), new) in enumerate(zip(carries, results, strict=True)):
            heads[phi_at + 1 + k] = (
                f"{names[k]} = phi {cty} [ {init}, %{pred} ], [ {new}, %{back} ]"
            )
        self.mark(exit_)
        self.close()
        return names

    def branch_if(self, cond: Val, then: Callable[[], None], other: Callable | None = None) -> None:
        """``if cond: then() else: other()`` without values; constants choose at compile time."""
        if cond.kind == "c":
            if cond.x:
                then()
            elif other:
                other()
            return
        yes, no, end = (self.fresh_label(h) for h in ("then", "else", "fi"))
        self.open()
        c = self.operand(cond)
        self.line(f"br i1 {c}, label %{yes}, label %{no if other else end}")
        sites, before = self.sites, len(self.sites or ())
        for label, fn in ((yes, then), (no, other)):
            if fn is None:
                continue
            self.mark(label)
            self.open()  # what is evaluated under a condition must not be reused after it
            if fn is other and sites is not None:
                self.sites = sites[:before]
            fn()
            self.branch(end)
            self.close()
        if sites is not None and self.sites is not sites:  # one of both will run
            for one, same in zip(sites[before:], self.sites[before:], strict=False):
                one.slots += same.slots
            self.sites = sites
        self.mark(end)
        self.close()

    # -- operands --------------------------------------------------------------------------

    def literal(self, ty: str, value) -> str:
        """A constant as LLVM writes it."""
        if ty == "f32":
            value = (
                struct.unpack("<f", struct.pack("<f", value))[0]
                if abs(value) < 3.4028235677973366e38
                or value != value
                or abs(value) == float("inf")
                else (float("inf") if value > 0 else float("-inf"))
            )
        if ty in ("f32", "f64"):
            return "0x" + struct.pack(">d", value).hex().upper()
        if ty in NARROW_FLOATS:
            if isinstance(value, float):
                value = float_bits(value, ty)
            return str(value)
        if ty == "ptr":
            return "null"
        if ty == "i1":
            return "true" if value else "false"
        return str(value)

    def operand(self, v: Val, n: int = 0) -> str:
        """The operand text of a value as a scalar (``n == 0``) or as a vector of ``n`` lanes."""
        if not n:
            assert v.uniform, v
            return self.literal(v.ty, v.x) if v.kind == "c" else v.x
        if v.kind == "v":
            assert v.n == n, (v, n)
            return v.x
        if v.kind == "c":
            return (
                f"splat ({LLVM[v.ty]} {self.literal(v.ty, v.x)})"
                if v.ty != "ptr"
                else "zeroinitializer"
            )
        if v.kind == "u":
            t = ll(v.ty, n)
            one = self.raw(f"insertelement {t} poison, {LLVM[v.ty]} {v.x}, i64 0")
            return self.raw(f"shufflevector {t} {one}, {t} poison, <{n} x i32> zeroinitializer")
        if v.exact is not None:
            return self.operand(v.exact(), n)
        if v.ty == "ptr":
            offsets = self.operand(Val("i64", "a", n=n, base=const("i64", 0), stride=v.stride), n)
            return self.raw(f"getelementptr i8, ptr {self.operand(v.base)}, <{n} x i64> {offsets}")
        t = ll(v.ty, n)
        if v.stride.kind == "c":
            lanes = counted(v.ty, n, v.stride.x)
        else:
            lanes = self.raw(f"mul {t} {counted(v.ty, n, 1)}, {self.operand(v.stride, n)}")
        if v.base.is_const(0):
            return lanes
        return self.raw(f"add {t} {lanes}, {self.operand(v.base, n)}")

    def wrap(self, ty: str, name: str, n: int) -> Val:
        return Val(ty, "v" if n else "u", name, n=n)

    def widths(self, vals: Sequence[Val]) -> int:
        """Lanes that an op over these values has: 0 when all are uniform."""
        return max((v.n for v in vals if not v.uniform), default=0)

    # -- integer arithmetic that keeps constants and ramps ----------------------------------

    def add(self, a: Val, b: Val) -> Val:
        if b.kind == "c" and a.kind != "c":
            a, b = b, a
        if a.is_const(0):
            return b
        if a.kind == "c" and b.kind == "c":
            return const(a.ty, a.x + b.x)
        if a.uniform and b.uniform:
            t = LLVM[a.ty]
            v = self.wrap(a.ty, self.raw(f"add {t} {self.operand(a)}, {self.operand(b)}"), 0)
            v.div = min(a.div, b.div)
            return v
        if a.kind in "cua" and b.kind in "cua" and a.exact is None and b.exact is None:
            zero = const(a.ty, 0)
            base = self.add(a if a.uniform else a.base, b if b.uniform else b.base)
            stride = self.add(zero if a.uniform else a.stride, zero if b.uniform else b.stride)
            return Val(a.ty, "a", n=max(a.n, b.n), base=base, stride=stride)
        return self.vector_or_ramp("add", a, b)

    def sub(self, a: Val, b: Val) -> Val:
        return (
            self.add(a, self.mul(b, const(b.ty, -1)))
            if b.kind != "v"
            else self.vector_or_ramp("sub", a, b)
        )

    def mul(self, a: Val, b: Val) -> Val:
        if b.kind == "c":
            a, b = b, a
        if a.is_const(1):
            return b
        if a.is_const(0):
            return a
        if a.kind == "c" and b.kind == "c":
            return const(a.ty, a.x * b.x)
        if a.uniform and b.uniform:
            t = LLVM[a.ty]
            v = self.wrap(a.ty, self.raw(f"mul {t} {self.operand(a)}, {self.operand(b)}"), 0)
            v.div = min(a.div * b.div, 1 << 30)
            return v
        if a.uniform and b.kind == "a" and b.exact is None:
            return Val(a.ty, "a", n=b.n, base=self.mul(a, b.base), stride=self.mul(a, b.stride))
        if b.uniform and a.kind == "a":
            return self.mul(b, a)
        return self.vector_or_ramp("mul", a, b)

    def vector_or_ramp(self, op: str, a: Val, b: Val) -> Val:
        """Vector arithmetic; where the ramps behind it are known they stay known for addresses."""
        n = self.widths((a, b))
        x, y = self.operand(a, n), self.operand(b, n)
        out = self.wrap(a.ty, self.raw(f"{op} {ll(a.ty, n)} {x}, {y}"), n)
        ramp = None
        if op in ("add", "mul") and a.kind in "cua" and b.kind in "cua":
            plain = [Val(v.ty, v.kind, v.x, n=v.n, base=v.base, stride=v.stride, div=v.div)
                     for v in (a, b)]  # fmt: skip
            if op == "add" or plain[0].uniform or plain[1].uniform:
                ramp = getattr(self, op)(*plain)
        if ramp is not None and ramp.kind == "a":
            ramp.exact = lambda: out
            return ramp
        return out

    def extend(self, v: Val, ty: str, signed: bool = True) -> Val:
        """Sign- or zero-extend. A ramp stays a ramp for addresses and is exact as a value."""
        if v.ty == ty:
            return v
        if v.kind == "c":
            value = v.x if signed else v.x & ((1 << INT_BITS[v.ty]) - 1)
            return const(ty, value)
        op = "sext" if signed else "zext"
        if v.kind == "a":
            ramp = Val(ty, "a", n=v.n, base=self.extend(v.base, ty, signed),
                       stride=self.extend(v.stride, ty, True))  # fmt: skip

            def exact() -> Val:
                x = self.operand(v, v.n)
                return self.wrap(ty, self.raw(f"{op} {ll(v.ty, v.n)} {x} to {ll(ty, v.n)}"), v.n)

            ramp.exact = exact
            return ramp
        n = v.n
        x = self.operand(v, n)
        out = self.wrap(ty, self.raw(f"{op} {ll(v.ty, n)} {x} to {ll(ty, n)}"), n)
        out.div = v.div
        return out

    def offset(self, ptr: Val, count: Val, size: int) -> Val:
        """Pointer plus ``count`` elements of ``size`` bytes."""
        count = self.mul(self.extend(count, "i64"), const("i64", size))
        if count.is_const(0):
            return ptr
        if ptr.uniform and count.uniform:
            return self.wrap(
                "ptr",
                self.raw(f"getelementptr i8, ptr {self.operand(ptr)}, i64 {self.operand(count)}"),
                0,
            )
        if ptr.kind in "cua" and count.kind in "cua":
            zero = const("i64", 0)
            base = self.offset(ptr if ptr.uniform else ptr.base,
                               count if count.uniform else count.base, 1)  # fmt: skip
            stride = self.add(zero if ptr.uniform else ptr.stride,
                              zero if count.uniform else count.stride)  # fmt: skip
            if stride.is_const(0):
                return base
            return Val("ptr", "a", n=max(ptr.n, count.n), base=base, stride=stride)
        n = self.widths((ptr, count))
        offs = self.operand(count, n)
        if ptr.uniform:
            return self.wrap(
                "ptr", self.raw(f"getelementptr i8, ptr {self.operand(ptr)}, <{n} x i64> {offs}"), n
            )
        base = self.operand(ptr, n)
        return self.wrap(
            "ptr", self.raw(f"getelementptr i8, <{n} x ptr> {base}, <{n} x i64> {offs}"), n
        )

    def op(self, op: str, ty: str, *vals: Val, out: str | None = None) -> Val:
        """A lane-wise instruction: ``op('fadd', 'f32', a, b)``, ``op('icmp slt', 'i32', a, b)``."""
        n = self.widths(vals)
        args = ", ".join(self.operand(v, n) for v in vals)
        return self.wrap(out or ty, self.raw(f"{op} {ll(ty, n)} {args}"), n)

    def cast(self, op: str, v: Val, ty: str) -> Val:
        """A conversion instruction."""
        n = v.n if not v.uniform else 0
        return self.wrap(ty, self.raw(f"{op} {ll(v.ty, n)} {self.operand(v, n)} to {ll(ty, n)}"), n)

    def call(self, intrinsic: str, ty: str, *vals: Val) -> Val:
        """An overloaded lane-wise intrinsic: ``call('llvm.fma', 'f32', a, b, c)``."""
        n = self.widths(vals)
        args = [(ll(ty, n), self.operand(v, n)) for v in vals]
        return self.wrap(ty, self.intrinsic(f"{intrinsic}.{mangle(ty, n)}", ll(ty, n), args), n)

    def select(self, cond: Val, a: Val, b: Val) -> Val:
        """``cond ? a : b``."""
        if cond.kind == "c":
            return a if cond.x else b
        n = self.widths((cond, a, b))
        c = self.operand(cond, 0 if cond.uniform else n)
        ct = "i1" if cond.uniform else f"<{n} x i1>"
        t = ll(a.ty, n)
        return self.wrap(
            a.ty,
            self.raw(f"select {ct} {c}, {t} {self.operand(a, n)}, {t} {self.operand(b, n)}"),
            n,
        )
