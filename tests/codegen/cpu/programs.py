"""Random Triton programs over tiles, drawn op by op (``instructions``), with a reference of their own
(``approx``)."""

from __future__ import annotations

import itertools
import math

import numpy as np
from approx import (
    FLOATS,
    INTS,
    NAMES,
    UNKNOWN,
    V,
    convert,
    divide,
    exact,
    known_if,
    multiply,
    rounded,
    tainted,
)
from instructions import If, Instr, Line, Loop, Output, Program, Var, mask_text, place_text

LENGTH = 2048  # elements of each input
MAX_NUMEL = 512


class Generator:
    """Draws a program; ``pick(n)`` gives a number below n."""

    def __init__(self, pick, length: int) -> None:
        self.pick = pick
        self.names = itertools.count()
        rng = np.random.default_rng(pick(1 << 16))
        self.program = Program(self._inputs(rng), sorted({pick(5) for _ in range(2)}))
        self.env: list[Var] = []
        self.block = self.program.body
        self.depth = 0
        self.use(Var("pid", "i32", ()))
        for _ in range(2):
            self.load()
        while len(self.block) < length:
            self.step()
        self._finish()

    @staticmethod
    def _inputs(rng) -> dict[str, np.ndarray]:
        out = {}
        for d, np_type in INTS.items():
            info = np.iinfo(np_type)
            wild = rng.integers(info.min, info.max, LENGTH, dtype=np_type, endpoint=True)
            tame = rng.integers(0, 9, LENGTH).astype(np_type)
            out[d] = np.where(rng.random(LENGTH) < 0.5, wild, tame)
        for d, (eps, _, _) in FLOATS.items():
            x = np.where(rng.random(LENGTH) < 0.5, rng.normal(size=LENGTH),
                         rng.integers(-4, 5, LENGTH))  # fmt: skip
            out[d] = np.round(x / (2 * eps)) * (2 * eps) if d != "f64" else x
        out["f32"] = out["f32"].astype(np.float32).astype(np.float64)
        keep = out["bf16"].astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        out["bf16"] = keep.view(np.float32).astype(np.float64)
        out["f16"] = out["f16"].astype(np.float16).astype(np.float64)
        return out

    # -- drawing ---------------------------------------------------------------------------

    def choose(self, items):
        return items[self.pick(len(items))]

    def use(self, v: Var) -> Var:
        self.env.append(v)
        return v

    def new(self, dtype: str, shape) -> Var:
        return Var(f"v{next(self.names)}", dtype, tuple(shape))

    def emit(self, dtype: str, shape, args, text: str, fn) -> Var:
        out = self.new(dtype, shape)
        self.block.append(Instr(out, list(args), text, fn))
        return self.use(out)

    def some(self, ok=lambda v: True) -> Var | None:
        """A variable, late ones more often."""
        found = [v for v in self.env if ok(v)]
        if not found:
            return None
        k = max(self.pick(len(found)), self.pick(len(found)))
        return found[k]

    def same(self, a: Var) -> Var:
        """Another variable of a's type, converted if need be."""
        b = self.some(lambda v: v.shape in (a.shape, ()) and v.name != a.name)
        if b is None:
            return a
        return b if b.dtype == a.dtype else self.cast(b, a.dtype)

    def step(self) -> None:
        kinds = [self.load, self.unary, self.binary, self.binary, self.compare, self.where,
                 self.convert, self.reduce, self.scan, self.shape, self.dot, self.memory,
                 self.arg, self.trip]  # fmt: skip
        if self.depth < 2:
            kinds += [self.branch, self.loop]
        self.choose(kinds)()

    # -- memory ----------------------------------------------------------------------------

    def load(self) -> None:
        dtype = self.choose(list(self.program.inputs))
        data = self.program.inputs[dtype]
        rank = self.choose([1, 2, 2, 3])
        shape = [2 ** self.pick(6 if rank < 3 else 4) for _ in range(rank)]
        while math.prod(shape) > MAX_NUMEL:
            shape[shape.index(max(shape))] //= 2
        strides = [self.choose([1, d, d + 1, 2, 7]) for d in (*shape[1:], 1)]
        if self.pick(2):
            strides = strides[::-1]
        start = self.pick(40)
        while start + sum(s * d for s, d in zip(strides, shape, strict=True)) >= LENGTH:
            strides = [max(1, s // 2) for s in strides]
        live = [self.choose([d, d, max(0, d - 1), self.pick(d + 1)]) for d in shape]
        o = Output(Var("", dtype, tuple(shape)), tuple(live), tuple(strides), start)
        other = self.choose([0, 3])
        text = f"tl.load(x_{dtype} + ({place_text(shape, strides, start)}), mask={mask_text(shape, live)}, other={other})"
        got = np.where(o.mask(), data[o.places()], data.dtype.type(other))
        if live == shape and self.pick(2):
            text = f"tl.load(x_{dtype} + ({place_text(shape, strides, start)}))"
        self.emit(dtype, shape, [], text, lambda: exact(got))

    def memory(self) -> None:
        """A load at computed places."""
        i = self.some(lambda v: v.dtype in ("i16", "i32", "i64", "u8") and v.shape)
        if i is None:
            return
        dtype = self.choose(list(self.program.inputs))
        data = self.program.inputs[dtype]
        limit = 256 if i.dtype == "u8" else 1024
        text = (
            f"tl.load(x_{dtype} + ({{0}} & {limit - 1}))"
            if limit == 1024
            else f"tl.load(x_{dtype} + {{0}})"
        )
        self.emit(
            dtype, i.shape, [i], text, lambda v: tainted(data[(v.x & (limit - 1)).astype(int)], v)
        )

    def trip(self) -> None:
        """A store to memory of the program's own, read back in another order: in a loop the next
        iteration overwrites it."""
        a = self.some(lambda v: v.shape and v.dtype != "i1")
        if a is None:
            return
        self.program.scratch[a.dtype] = start = self.program.scratch.get(a.dtype, 0)
        self.program.scratch[a.dtype] += a.numel
        order = self.choose(list(itertools.permutations(range(len(a.shape)))))
        rows = [math.prod(a.shape[k + 1 :]) for k in range(len(a.shape))]
        shape = [a.shape[k] for k in order]
        at = f"s_{a.dtype} + pid * SIZE_{a.dtype} + "
        there = place_text(a.shape, rows, start)
        back = place_text(shape, [rows[k] for k in order], start)
        self.block.append(Line(f"tl.store({at}({there}), {a.name})"))
        self.emit(a.dtype, shape, [a], f"tl.load({at}({back}))",
                  lambda v: V(v.x.transpose(order), v.err.transpose(order)))  # fmt: skip

    # -- element-wise ----------------------------------------------------------------------

    def cast(self, a: Var, dtype: str) -> Var:
        return self.emit(dtype, a.shape, [a], f"{{0}}.to(tl.{NAMES[dtype]})",
                         lambda v: convert(v, a.dtype, dtype))  # fmt: skip

    def convert(self) -> None:
        a = self.some()
        self.cast(a, self.choose([d for d in (*INTS, *FLOATS, "i1") if d != a.dtype]))

    def unary(self) -> None:
        a = self.some(lambda v: v.dtype != "i1")
        if a.dtype in INTS:
            text, fn = self.choose([
                ("-{0}", lambda x: (0 - x.astype(np.int64)).astype(x.dtype) if x.dtype != np.uint64 else 0 - x),
                ("~{0}", lambda x: ~x), ("{0} * {0} + 1", lambda x: (x * x + x.dtype.type(1)).astype(x.dtype)),
            ])  # fmt: skip
            if a.dtype[0] == "u" and text[0] == "-":
                return
            self.emit(a.dtype, a.shape, [a], text, lambda v: tainted(fn(v.x), v))
            return
        d = a.dtype
        kinds = [("-{0}", lambda v: V(-v.x, v.err)), ("tl.abs({0})", lambda v: V(np.abs(v.x), v.err)),
                 ("{0} * {0}", lambda v: multiply(v, v, d)),
                 ("{0} + 1.5", lambda v: rounded(v.x + 1.5, v.err, d))]  # fmt: skip
        if d in ("f32", "f64"):

            def exp(v):
                e = np.exp(np.clip(v.x, -700, 80))
                ok = known_if(v, np.abs(v.x) < 80)
                grow = np.where(ok.known, np.expm1(np.minimum(ok.err, 600.0)), UNKNOWN)
                return rounded(e, e * grow, d, 8)

            def sqrt(v):
                a = np.abs(v.x)
                low = np.sqrt(np.maximum(a - np.where(v.known, v.err, 0), 0))
                err = np.where(v.known, np.sqrt(a) - low + np.sqrt(a + v.err) - np.sqrt(a), UNKNOWN)
                return rounded(np.sqrt(a), err, d, 2)

            kinds += [("tl.exp({0})", exp), ("tl.sqrt(tl.abs({0}))", sqrt),
                      ("tl.floor({0})", lambda v: known_if(
                          exact(np.floor(v.x)), np.floor(v.x - v.err) == np.floor(v.x + v.err)))]  # fmt: skip
        text, fn = self.choose(kinds)
        self.emit(d, a.shape, [a], text, fn)

    def binary(self) -> None:
        a = self.some(lambda v: v.shape != () or v.dtype != "i1")
        self.combine(a, self.same(a))

    def combine(self, a: Var, b: Var) -> Var:
        d = a.dtype
        shape = a.shape if a.shape else b.shape
        if d == "i1":
            text, fn = self.choose([("{0} & {1}", np.logical_and), ("{0} | {1}", np.logical_or),
                                    ("{0} ^ {1}", np.logical_xor)])  # fmt: skip
            return self.emit(d, shape, [a, b], text, lambda v, w: tainted(fn(v.x, w.x), v, w))
        if d in INTS:
            bits, np_type = int(d[1:]), INTS[d]

            def quotient(x, y, rest):
                y = np.where(y == 0, np_type(1), y)
                minus = (y == np_type(-1 & ((1 << bits) - 1))) if d[0] == "u" else (y == -1)
                if d[0] == "i":  # the one quotient that does not fit wraps
                    y = np.where(minus & (x == np.iinfo(np_type).min), np_type(1), y)
                r = np.fmod(x, y)
                return r if rest else ((x - r) // y).astype(np_type)

            safe = "tl.where({1} == 0, 1, {1}).to(tl." + NAMES[d] + ")"
            shift = f"({{1}} & {bits - 1})"
            text, fn = self.choose([
                ("{0} + {1}", np.add), ("{0} - {1}", np.subtract), ("{0} * {1}", np.multiply),
                ("{0} & {1}", np.bitwise_and), ("{0} | {1}", np.bitwise_or),
                ("{0} ^ {1}", np.bitwise_xor), ("tl.maximum({0}, {1})", np.maximum),
                ("tl.minimum({0}, {1})", np.minimum),
                ("{0} // " + safe, lambda x, y: quotient(x, y, False)),
                ("{0} % " + safe, lambda x, y: quotient(x, y, True)),
                ("{0} << " + shift, lambda x, y: np.left_shift(x, y & np_type(bits - 1))),
                ("{0} >> " + shift, lambda x, y: np.right_shift(x, y & np_type(bits - 1))),
            ])  # fmt: skip
            full = lambda v, w: (np.broadcast_to(v.x, shape), np.broadcast_to(w.x, shape))  # noqa: E731
            return self.emit(d, shape, [a, b], text,
                             lambda v, w: tainted(np.asarray(fn(*full(v, w))).astype(np_type), v, w))  # fmt: skip
        text, fn = self.choose([
            ("{0} + {1}", lambda v, w: rounded(v.x + w.x, v.err + w.err, d)),
            ("{0} - {1}", lambda v, w: rounded(v.x - w.x, v.err + w.err, d)),
            ("{0} * {1}", lambda v, w: multiply(v, w, d)),
            ("({0} / (tl.abs({1}) + 1.0)).to(tl." + NAMES[d] + ")", lambda v, w: divide(v, w, d)),
            ("tl.maximum({0}, {1}).to(tl." + NAMES[d] + ")", lambda v, w: V(np.maximum(v.x, w.x), np.maximum(v.err, w.err))),
            ("tl.minimum({0}, {1}).to(tl." + NAMES[d] + ")", lambda v, w: V(np.minimum(v.x, w.x), np.maximum(v.err, w.err))),
        ])  # fmt: skip
        return self.emit(d, shape, [a, b], text, fn)

    def compare(self) -> None:
        a = self.some(lambda v: v.dtype != "i1")
        b = self.same(a)
        word = self.choose(["<", "<=", ">", ">=", "==", "!="])
        fn = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
              "==": np.equal, "!=": np.not_equal}[word]  # fmt: skip

        def run(v, w):
            err = v.err + w.err
            gap = np.abs(v.x - w.x) if a.dtype in FLOATS else np.zeros(err.shape)
            ok = (err == 0) | ((a.dtype in FLOATS) & np.isfinite(err) & (gap > err))
            return known_if(exact(fn(v.x, w.x)), ok)

        self.emit("i1", a.shape or b.shape, [a, b], f"{{0}} {word} {{1}}", run)

    def where(self) -> None:
        c = self.some(lambda v: v.dtype == "i1" and v.shape)
        a = c and self.some(lambda v: v.shape == c.shape and v.dtype != "i1")
        if not a:
            return
        b = self.same(a)

        def run(m, v, w):
            out = V(np.where(m.x, v.x, w.x), np.where(m.x, v.err, w.err))
            return known_if(out, m.known)

        self.emit(a.dtype, c.shape, [c, a, b], "tl.where({0}, {1}, {2})", run)

    # -- across elements -------------------------------------------------------------------

    def wide(self, ranks=(1, 2, 3), dtypes=("i32", "i64", "u32", "f32", "f64")) -> Var | None:
        """A tensor of a type that reductions keep."""
        a = self.some(lambda v: len(v.shape) in ranks)
        if a is None or a.dtype in dtypes:
            return a
        return self.cast(
            a, self.choose([d for d in dtypes if (d in FLOATS) == (a.dtype in FLOATS)])
        )

    def reduce(self) -> None:
        a = self.wide()
        if a is None:
            return
        axis = self.pick(len(a.shape))
        shape = [d for k, d in enumerate(a.shape) if k != axis]
        kinds = [("tl.sum", np.add), ("tl.max", np.maximum), ("tl.min", np.minimum)]
        if a.dtype in INTS:
            kinds.append(("tl.xor_sum", np.bitwise_xor))
        name, fn = self.choose(kinds)

        def run(v):
            x = fn.reduce(v.x, axis=axis, dtype=v.x.dtype)
            if a.dtype in INTS:
                return V(x, v.err.sum(axis))
            if name != "tl.sum":
                return V(x, v.err.max(axis))
            n = a.shape[axis]
            terms = (np.abs(v.x) + np.where(v.known, v.err, 0)).sum(axis)
            return V(x, rounded(terms, 0.0, a.dtype, n).err + v.err.sum(axis))

        self.emit(a.dtype, shape, [a], f"{name}({{0}}, axis={axis})", run)

    def arg(self) -> None:
        a = self.wide()
        if a is None:
            return
        axis = self.pick(len(a.shape))
        shape = [d for k, d in enumerate(a.shape) if k != axis]
        name, sign = self.choose([("argmax", 1), ("argmin", -1)])

        def run(v):
            x = v.x if sign > 0 else -v.x if a.dtype in FLOATS else ~v.x
            best = x.argmax(axis)
            top = np.expand_dims(
                np.take_along_axis(x, np.expand_dims(best, axis), axis).squeeze(axis), axis
            )
            own = np.expand_dims(
                np.take_along_axis(v.err, np.expand_dims(best, axis), axis).squeeze(axis), axis
            )
            close = np.abs(top - x) <= own + v.err if a.dtype in FLOATS else v.err > 0
            sure = (v.err == 0).all(axis) | (close.sum(axis) <= (1 if a.dtype in FLOATS else 0))
            return known_if(exact(best.astype(np.int32)), sure)

        self.emit("i32", shape, [a], f"tl.{name}({{0}}, axis={axis})", run)

    def scan(self) -> None:
        a = self.wide(dtypes=("i32", "i64", "f32", "f64"))
        if a is None:
            return
        axis, reverse = self.pick(len(a.shape)), bool(self.pick(2))
        turn = (lambda x: np.flip(x, axis)) if reverse else (lambda x: x)
        how = self.choose(["sum", "max", "affine"] if a.dtype in INTS else ["sum", "max"])
        if how == "affine":

            def run(v):
                x, one = np.moveaxis(turn(v.x), axis, 0), None
                out = []
                for row in x:
                    one = (row, row) if one is None else (one[0] * row, one[1] * row + row)
                    out.append(one[1])
                taint = turn(np.maximum.accumulate(turn(v.err), axis))
                return V(turn(np.moveaxis(np.array(out), 0, axis)), taint)

            text = f"tl.associative_scan(({{0}}, {{0}}), {axis}, affine, reverse={reverse})[1]"
            self.emit(a.dtype, a.shape, [a], text, run)
            return

        def run(v):
            fn = np.add if how == "sum" else np.maximum
            x = turn(fn.accumulate(turn(v.x), axis, dtype=v.x.dtype))
            err = turn(np.maximum.accumulate(turn(v.err), axis))
            if a.dtype in FLOATS and how == "sum":
                terms = turn(
                    np.add.accumulate(turn(np.abs(v.x) + np.where(v.known, v.err, 0)), axis)
                )
                own = turn(np.add.accumulate(turn(v.err), axis))
                err = rounded(terms, 0.0, a.dtype, a.shape[axis]).err + own
            return V(x, err)

        text = (f"tl.cumsum({{0}}, {axis}, reverse={reverse})" if how == "sum" else
                f"tl.associative_scan({{0}}, {axis}, larger, reverse={reverse})")  # fmt: skip
        self.emit(a.dtype, a.shape, [a], text, run)

    def dot(self) -> None:
        def fits(v):
            return len(v.shape) == 2 and min(v.shape) >= 2 and max(v.shape) <= 32

        a = self.some(fits)
        if a is None:
            return
        if a.dtype not in ("f16", "bf16", "f32", "i8"):
            a = self.cast(a, "i8" if a.dtype in (*INTS, "i1") else "f32")
        b = self.some(lambda v: fits(v) and v.shape[0] == a.shape[1])
        if b is None:
            m, k = a.shape
            b = self.emit(a.dtype, (k, m), [a], "tl.trans({0})", lambda v: V(v.x.T, v.err.T))
        if b.dtype != a.dtype:
            b = self.cast(b, a.dtype)
        k = a.shape[1]
        shape = (a.shape[0], b.shape[1])
        if a.dtype == "i8":

            def run(v, w):
                taint = (v.err > 0).any(1)[:, None] | (w.err > 0).any(0)[None]
                return known_if(exact(v.x.astype(np.int32) @ w.x.astype(np.int32)), ~taint)

            self.emit("i32", shape, [a, b], "tl.dot({0}, {1})", run)
            return

        def run(v, w):
            va, wa = (np.where(t.known, t.err, 0) for t in (v, w))
            terms = (np.abs(v.x) + va) @ (np.abs(w.x) + wa)
            spread = np.abs(v.x) @ wa + va @ (np.abs(w.x) + wa)
            sure = v.known.all(1)[:, None] & w.known.all(0)[None]
            return known_if(V(v.x @ w.x, rounded(terms, 0.0, "f32", k + 1).err + spread), sure)

        self.emit("f32", shape, [a, b], 'tl.dot({0}, {1}, input_precision="ieee")', run)

    # -- shapes ----------------------------------------------------------------------------

    def shape(self) -> None:
        a = self.some(lambda v: v.shape)
        if a is None:
            return
        s, d = a.shape, a.dtype

        def move(fn, shape, text):
            return self.emit(d, shape, [a], text, lambda v: V(fn(v.x), fn(v.err)))

        def reshape():
            size = a.numel
            first = 2 ** self.pick(size.bit_length())
            to = self.choose([(size,), (first, size // first), (1, size)])
            move(lambda x: x.reshape(to), to, f"tl.reshape({{0}}, {to})")

        def permute():
            order = self.choose(list(itertools.permutations(range(len(s)))))
            move(lambda x: x.transpose(order), [s[k] for k in order], f"tl.permute({{0}}, {order})")

        def grow():
            if len(s) == 3:
                return
            axis, n = self.pick(len(s) + 1), self.choose([1, 2, 4])
            if a.numel * n > MAX_NUMEL:
                return
            where = ", ".join("None" if k == axis else ":" for k in range(len(s) + 1))
            to = (*s[:axis], n, *s[axis:])
            move(lambda x: np.broadcast_to(np.expand_dims(x, axis), to).copy(), to,
                 f"tl.broadcast_to({{0}}[{where}], {to})")  # fmt: skip

        def join():
            if len(s) == 3 or a.numel * 2 > MAX_NUMEL or d == "i1":
                return
            b = self.same(a)
            if b.shape != s:
                return
            self.emit(d, (*s, 2), [a, b], "tl.join({0}, {1})", lambda v, w: V(
                np.stack([v.x, w.x], -1), np.stack([v.err, w.err], -1)))  # fmt: skip

        def halves():
            if s[-1] != 2 or len(s) < 2:
                return
            side = self.pick(2)
            move(lambda x: x[..., side], s[:-1], f"tl.split({{0}})[{side}]")

        def flip():
            axis = self.pick(len(s))
            if d != "i1" and s[axis] > 1:
                move(lambda x: np.flip(x, axis).copy(), s, f"tl.flip({{0}}, {axis})")

        def gather():
            axis = self.pick(len(s))
            i = self.some(lambda v: v.shape == s and v.dtype in ("i32", "i64"))
            if i is None:
                return
            n = s[axis]

            def run(v, w):
                at = (w.x & (n - 1)).astype(int)
                got = V(np.take_along_axis(v.x, at, axis), np.take_along_axis(v.err, at, axis))
                return known_if(got, w.known)

            self.emit(d, s, [a, i], f"tl.gather({{0}}, {{1}} & {n - 1}, {axis})", run)

        def sort():
            if d in ("i32", "f32", "i16") and s[-1] <= 32 and a.numel <= 128:
                self.emit(d, s, [a], "tl.sort({0})", lambda v: V(
                    np.sort(v.x, -1), np.broadcast_to(v.err.max(-1, keepdims=True), s).copy()))  # fmt: skip

        self.choose([reshape, permute, grow, join, halves, flip, gather, sort])()

    # -- control ---------------------------------------------------------------------------

    def inside(self, make):
        """Run ``make`` with a block of its own, whose variables end with it."""
        keep = self.block, list(self.env)
        self.block, self.depth = [], self.depth + 1
        result = make()
        block = self.block
        (self.block, self.env), self.depth = keep, self.depth - 1
        return block, result

    def changed(self, a: Var) -> Var:
        """Some new value of a's type, made from it."""
        for _ in range(self.pick(3)):
            self.step()
        b = self.same(a)
        out = self.combine(a, b)
        assert (out.dtype, out.shape) == (a.dtype, a.shape)
        return out

    def branch(self) -> None:
        a = self.some(lambda v: v.shape)
        c = self.some(lambda v: v.dtype == "i1" and not v.shape)
        if a is None:
            return
        if c is None:
            n = self.some(lambda v: not v.shape and v.dtype in INTS)
            c = self.emit(
                "i1",
                (),
                [n],
                "({0} & 1) == 0",
                lambda v: tainted((v.x & v.x.dtype.type(1)) == 0, v),
            )
        sides = [self.inside(lambda: [self.changed(a)]) for _ in range(2)]
        out = self.new(a.dtype, a.shape)
        self.block.append(If(c, [out], sides))
        self.use(out)

    def loop(self) -> None:
        firsts = [
            v for v in {self.some(lambda v: v.shape or v.dtype != "i1") for _ in range(2)} if v
        ]
        if not firsts:
            return
        carries = [self.new(v.dtype, v.shape) for v in firsts]
        index = self.new("i32", ())
        how = self.choose(["for", "for", "while", "static"])

        def make():
            for v in carries:
                self.use(v)
            if how != "static":
                self.use(index)
            return [self.changed(c) for c in carries]

        block, leave = self.inside(make)
        count = self.choose(self.program.counts)
        if how == "static" and not count:
            how = "for"
        self.block.append(
            Loop(count, how, index, list(zip(carries, firsts, leave, strict=True)), block)
        )
        for c in carries:
            self.use(c)

    def _finish(self) -> None:
        """Store what is left, the last values first."""
        for v in self.env[:0:-1][:8]:
            strides, step = [], 1
            for d in reversed(v.shape):
                strides.insert(0, step)
                step = step * d + self.choose([0, 0, 1, 5])
            live = [self.choose([d, d, self.pick(d + 1)]) for d in v.shape]
            self.program.outputs.append(Output(v, tuple(live), tuple(strides), self.pick(5)))
