"""Amounts of work, held against counts made while the evaluator runs the kernel."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import codegen.evaluate as ev
from codegen.cost import KINDS, Cost, cost, evaluate
from codegen.expr import FloorDiv, Min, sym
from tkpy.ahead import Setting, lower_for
from tkpy.cli.find import find


class Counting(ev._Program):
    """Counts as it goes, from the shapes of the arrays it really makes."""

    counts: ClassVar[Counter] = Counter()

    def op(self, op):
        super().op(op)
        kind, counts = op.kind, Counting.counts
        shape = [self.shape(v.type) for v in op.operands]
        out = self.shape(op.results[0].type) if op.results else ()
        if kind == "mma":
            a = shape[0][::-1] if op.attrs["ta"] else shape[0]
            b = shape[1][::-1] if op.attrs["tb"] else shape[1]
            counts["matrix"] += 2 * a[0] * min(a[1], b[0]) * b[1]
        elif kind in ("load", "store"):
            size = self.fn.param(op.attrs["param"]).dtype.bits // 8
            counts[kind] += size * int(np.prod(out if kind == "load" else shape[0]))
        elif kind in ("exp", "exp2", "div", "rsqrt", "sqrt", "log") and out:
            counts["special"] += int(np.prod(out))
        elif kind == "reduce":
            counts["vector"] += int(np.prod(shape[0]))
        elif kind in ("add", "sub", "mul", "max", "min", "where", "eq", "neg", "gt") and out:
            counts["vector"] += int(np.prod(out))


def costs(name: str, sizes: dict, constants: dict, run: dict | None = None, dtype="bf16") -> Cost:
    """The cost of a variant; with ``run``, the evaluator runs it first at these sizes."""
    found: list[Cost] = []

    def watch(stage, fn):
        if stage != "frontend":
            return
        from codegen.passes.dce import drop_dead

        found.append(cost(fn))
        if run is not None:
            drop_dead(fn)
            values = {sym(n): v for n, v in run.items()}
            shapes = {
                p.name: [int(d.subs(values)) for d in p.dims]
                for p in fn.params
                if p.role != "scalar"
            }
            scalars = {p.name: 1 for p in fn.params if p.role == "scalar"}
            Counting.counts = Counter()
            ev.evaluate(fn, {n: np.ones(s) for n, s in shapes.items()}, scalars)

    program, ev._Program = ev._Program, Counting
    try:
        lower_for(find(name).kernel, Setting(dtype, sizes, constants), watch=watch)
    finally:
        ev._Program = program
    return found[0]


CASES = [
    ("gemm", {}, {"rows": 32, "cols": 48, "depth": 16}, {"M": 70, "N": 100, "K": 41}),
    ("attention", {"D": 40}, {"causal": True}, {"B": 1, "H": 2, "G": 1, "N": 150, "M": 170}),
    ("attention", {"D": 16}, {}, {"B": 2, "H": 2, "G": 2, "N": 65, "M": 129}),
    ("softmax", {"N": 37}, {}, {"M": 19}),
    ("layernorm", {"D": 100}, {}, {"M": 33}),
]


@pytest.mark.parametrize(("name", "sizes", "constants", "run"), CASES)
def test_counts_are_those_of_a_run(name, sizes, constants, run):
    found = costs(name, sizes, constants, run)
    for kind in KINDS:
        assert found.number(kind, run) == Counting.counts[kind], kind
    assert found.notes == []


def test_a_gemm_is_2mnk():
    found = costs("gemm", {}, {})
    m, n, k = map(sym, "MNK")
    assert found.expression("matrix") == 2 * m * n * k
    assert found.bytes() == 2 * (m * k + k * n + m * n)
    assert sympy.simplify(found.intensity() - m * n * k / (m * k + k * n + m * n)) == 0


def test_attention_reads_keys_once_for_each_block_of_rows():
    found = costs("attention", {"D": 64}, {})
    b, h, n, m = map(sym, ("B", "H", "N", "M"))
    assert found.expression("matrix") == 256 * b * h * n * m
    blocks = FloorDiv(n + 63, 64)
    assert sympy.expand(found.expression("load") - 256 * b * h * m * blocks - 128 * b * h * n) == 0


def test_causal_attention_is_about_half():
    sizes = {"B": 1, "H": 1, "G": 1, "N": 8192, "M": 8192}
    whole = costs("attention", {}, {}).number("matrix", sizes)
    half = costs("attention", {}, {"causal": True}).number("matrix", sizes)
    assert half == whole * (128 + 1) / 256  # blocks on and below the diagonal of 128 x 128 blocks


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_sums_are_added_up(n, side, factor):
    i, j, size = sym("i"), sym("j"), sym("N")
    inner = sympy.Sum(Min(side, size - side * i) * (j + 1), (j, 0, i))
    e = factor * size * sympy.Sum(inner, (i, 0, FloorDiv(size + side - 1, side) - 1)) + size
    blocks = -(-n // side)
    want = sum(min(side, n - side * a) * (b + 1) for a in range(blocks) for b in range(a + 1))
    assert evaluate(e, {"N": n}) == factor * n * want + n


def test_a_missing_size_is_named():
    with pytest.raises(ValueError, match="N"):
        costs("gemm", {}, {}).number("matrix", {"M": 1, "K": 2})
