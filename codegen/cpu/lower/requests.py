"""Asking for the rows of the next strip while those of this one are worked on.

A strip (see codegen.cpu.rows) passes over its rows several times, and only the first pass over a
tensor waits for memory. If that pass asked for all of the next strip's rows, memory would be at
rest during the others. So every loop over the strip's columns asks for a share: as large as the
loop's own of all columns that follow, of the tensors whose addresses are known by then.

How many loops there are is known when the strip has been written. Each of them leaves a slot for
instructions at the top of its body, and ``Requests.place`` fills the slots in the end.
"""

from __future__ import annotations

from codegen.cpu.emit import Emit, Val, const
from codegen.cpu.lower import access
from codegen.cpu.ttir import BYTES, Type

LINE = 64  # bytes
SHORT = 256  # bytes of a row: fewer have arrived before anybody asks


class Site:
    """A loop over the columns ``first`` to ``size`` of a strip, for one row at a time or for all.

    It may be written more than once, for masks that hold and for those that may not. ``slots``:
    where instructions go, the row (None: all), the column, and how many columns are done there.
    """

    def __init__(self, first: int, size: int) -> None:
        self.first, self.size = first, size
        self.slots: list[tuple[list, Val | None, Val, int]] = []

    def here(self, e: Emit, row: Val | None, column: Val, step: int) -> None:
        slot: list = []
        e.scope.cur.append(slot)
        self.slots.append((slot, row, column, step))


def site(e: Emit, size: int, first: int = 0) -> Site | None:
    """The loop over columns that follows, if there is anything to ask for."""
    if e.sites is None or size <= first:
        return None
    e.sites.append(Site(first, size))
    return e.sites[-1]


class Requests:
    """The rows of the next strip, and who asks for them.

    ``tensors``: the first site that comes after the load, bytes of a row, address of the first
    row, bytes to the second. ``shares``: site, tensor, first byte of every row, how many.
    """

    def __init__(self, e: Emit, rows: int) -> None:
        self.e, self.rows = e, rows
        self.tensors: list[tuple[int, int, Val, Val]] = []
        self.shares: list[tuple[int, int, int, int]] = []
        e.sites = []

    def load(self, g, ptr, ty: Type) -> None:
        """A tensor is loaded here, whose next rows lie where ``ptr`` says."""
        size = BYTES[ty.elem]
        if ptr.reads or len(ty.shape) != 2 or ty.shape[1] * size < SHORT or ptr.stride(1) != size:
            return
        zero = const("i32", 0)
        first, second = (g.at(ptr, (const("i32", self.rows + k), zero)) for k in (0, 1))
        ends = [self.e.raw(f"ptrtoint ptr {self.e.operand(p)} to i64") for p in (first, second)]
        pitch = self.e.wrap("i64", self.e.raw(f"sub i64 {ends[1]}, {ends[0]}"), 0)
        self.tensors.append((len(self.e.sites), ty.shape[1] * size, first, pitch))

    def place(self) -> None:
        """Fill the slots."""
        sites, self.e.sites = self.e.sites, None
        left = [size for _, size, *_ in self.tensors]
        ahead = sum(s.size - s.first for s in sites)  # columns
        for k, s in enumerate(sites):
            columns = s.size - s.first
            share, ahead = -(-sum(left) * columns // ahead), ahead - columns
            for n, (since, size, *_) in enumerate(self.tensors):
                part = min(left[n], -(-share // LINE) * LINE) if since <= k else 0
                if part > 0:
                    self.shares.append((k, n, size - left[n], part))
                    left[n], share = left[n] - part, share - part
        for k, n, start, part in self.shares:
            self._ask(sites[k], *self.tensors[n][2:], start, part)

    def _ask(self, s: Site, first: Val, pitch: Val, start: int, part: int) -> None:
        """Ask for ``part`` bytes of each row from ``start`` on, evenly over the loop."""
        e, keep = self.e, self.e.scope.cur
        rate = -(-(part << 16) // (s.size - s.first))
        for slot, row, column, step in s.slots:
            e.scope.cur = slot
            at = e.mul(e.add(e.extend(column, "i64"), const("i64", -s.first)), const("i64", rate))
            at = e.op("lshr", "i64", at, const("i64", 16))
            for r in [row] if row is not None else [const("i32", r) for r in range(self.rows)]:
                where = e.offset(first, e.mul(e.extend(r, "i64"), pitch), 1)
                for line in range(start, start + max(1, rate * step >> 16), LINE):
                    access.prefetch(e, e.offset(e.offset(where, at, 1), const("i64", line), 1))
        e.scope.cur = keep


__all__ = ["Requests", "Site", "site"]
