"""Gathers along the columns in an order that is known when compiling: vectors are permuted.

An index made of ranges and constants is worked out column by column. Where every vector of the
result comes from one vector of the source, that is loaded whole and its lanes change places.
"""

from __future__ import annotations

from codegen.cpu.emit import Val, const, ll
from codegen.cpu.lower.tensor import ZERO, Buffer, Reindex, Table, Tensor, nest
from codegen.cpu.ttir import Type

MOST = 4096  # columns that are worked out while compiling
PERMUTE = {16: ("avx512f", "llvm.x86.avx512.permvar.sf.512"), 8: ("avx2", "llvm.x86.avx2.permps")}


class Permuted(Reindex):
    """``columns[c]`` of the source at column c, for all rows."""

    def __init__(self, e, ty: Type, src: Buffer, index, columns: list[int], step: int) -> None:
        super().__init__(ty, src, index, near=(0, 1))
        n = e.features.width
        self.order = Table(Type("i32", (len(columns),), True), [c % n for c in columns], e)
        self.first = self._ramp(const("i32", columns[0] // n * n), n)
        self.step = step

    def _ramp(self, base: Val, n: int) -> Val:
        return Val("i32", "a", n=n, base=base, stride=const("i32", 1), level=base.level)

    def at(self, g, idx):
        row, column = idx
        e, n = g.e, g.e.features.width
        whole = column.kind == "a" and column.stride.is_const(1) and column.n == n
        if not (whole and row.uniform and column.base.div % n == 0):
            return super().at(g, idx)
        source = self._ramp(column.base, n) if self.step else self.first
        order = e.operand(g.at(self.order, (column,)), n)
        out = e.operand(g.at(self.src, (row, source)), n)
        t, name = ll("f32", n), PERMUTE[n][1]
        out = e.intrinsic(name, t, [(t, out), (ll("i32", n), order)])
        return e.wrap("f32", out, n)


def columns_of(e, where: Tensor) -> list[int] | None:
    """The index of every column, if it is known and that of all rows."""
    if len(where.shape) != 2 or where.data or where.reads or where.shape[1] > MOST:
        return None
    if where.stride(0) != 0:
        return None
    out = []
    with nest(e) as g:
        for c in range(where.shape[1]):
            v = g.at(where, (ZERO, const("i32", c)))
            if v.kind != "c":
                return None
            out.append(v.x)
    return out


def gathered(low, ty: Type, src: Buffer, where: Tensor, index) -> Tensor | None:
    """A gather along axis 1 without one, or None."""
    n = low.e.features.width
    known = n in PERMUTE and low.e.features.has(PERMUTE[n][0])
    if not known or ty.elem != "f32" or ty.shape[1] % n or src.shape[1] % n or src.steps[1] != 1:
        return None
    columns = columns_of(low.e, where)
    if columns is None or min(columns) < 0 or max(columns) >= src.shape[1]:
        return None
    if columns == list(range(src.shape[1])):
        return src
    vectors = [{c // n for c in columns[k : k + n]} for k in range(0, len(columns), n)]
    if all(v == {k} for k, v in enumerate(vectors)):
        return Permuted(low.e, ty, src, index, columns, 1)
    if all(v == vectors[0] and len(v) == 1 for v in vectors):
        return Permuted(low.e, ty, src, index, columns, 0)
    return None
