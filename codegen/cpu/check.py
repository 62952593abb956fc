"""``TKPY_CPU_CHECK=1``: find in a kernel what a GPU hides.

With the variable set, kernels are compiled once more with every load, store and atomic operation
checked (``lower.guard``), and a launch runs its programs in order on one thread. Afterwards it
raises ``CheckError`` if there was

- ``bounds``: an access outside of the storage of the tensor that its pointer was made from (of
  every tensor passed in where that is not known). It does not happen; a load gives zero.
- ``unwritten``: a read of memory from ``torch.empty`` and its kin that neither the host nor a
  kernel wrote (``codegen.cpu.poison`` says how that is known and for which other memory).
- ``write-write``, ``read-write``, ``write-read``: two programs use one place, not both atomically,
  without an order between them, and one writes it: another value than the other program wrote,
  what the other read, or what is then read.

Each is reported once per source line, with the kernel, the line, the first program, the tensor and
the place in it. Bounds are those of storages: a kernel may step outside of a view. A bare address
has no bounds and is not checked. A kernel that makes pointers from integers may reach every tensor
of the process. Without the variable nothing of this is compiled in.
"""

from __future__ import annotations

import bisect
import ctypes
import gc
import mmap
from dataclasses import dataclass, field

import torch

from codegen.cpu import launch
from codegen.cpu.lower import guard


@dataclass(frozen=True)
class Fault:
    """One kind of fault at one source line: the first time it happened, and how often it did."""

    kind: str
    kernel: str
    where: str
    op: str
    program: tuple[int, int, int]
    argument: str  # "" if the address lies in no tensor that was passed
    offset: int  # bytes from where the argument points
    address: int
    count: int
    text: str
    other: tuple[int, int, int] | None = None  # the other program of a race, and its line
    other_where: str = ""

    def __str__(self) -> str:
        again = f" ({self.count} such accesses)" if self.count > 1 else ""
        return f"{self.where}: {self.op}: program {self.program} {self.text}{again}"


class CheckError(launch.KernelError):
    """A checked launch found faults; ``faults`` has them in the order of the kernel's lines."""

    def __init__(self, kernel: str, faults: list[Fault], extra: str = "") -> None:
        self.faults = faults
        lines = [f"kernel {kernel}: {len(faults)} faults" if len(faults) > 1 else
                 f"kernel {kernel}:", *map(str, faults)]  # fmt: skip
        super().__init__("\n  ".join(lines + [extra] * bool(extra)))


@dataclass
class _Argument:
    """A pointer argument: its name, where it points, and its tensor's storage if it has one."""

    name: str
    value: object
    start: int = 0
    end: int = 0
    at: int = 0
    region: int = guard.NOTHING

    def describe(self, address: int) -> str:
        """Where an address lies, seen from this argument."""
        offset = address - self.at
        size = self.value.element_size()
        place = f"{self.name} {'-' if offset < 0 else '+'} {abs(offset)} bytes"
        if offset % size == 0:
            place += f", element {offset // size}"
            if self.value.is_contiguous() and 0 <= offset < self.value.numel() * size:
                index, left = [], offset // size
                for extent in reversed(self.value.shape):
                    left, k = divmod(left, extent)
                    index.append(k)
                place = f"{self.name}[{', '.join(map(str, reversed(index)))}], {place}"
        return f"{place}, address {address:#x}"


def _pointers(names, types, values, flags):
    """(type, name, value) of every scalar slot of a kernel, tuples and descriptors opened."""
    for name, ty, value in zip(names, types, values, strict=True):
        if isinstance(ty, tuple):
            yield from _pointers([f"{name}[{k}]" for k in range(len(ty))], ty, value, flags)
        elif ty.startswith("tensordesc"):
            for part, _ in launch.descriptor_slots(ty, name, flags):
                yield part, name, value.base if part[0] == "*" else None
        elif ty != "constexpr":
            yield ty, name, value


def _live_tensors():
    """Storages of every CPU tensor that Python knows of."""
    seen = {}
    for x in gc.get_objects():
        if issubclass(type(x), torch.Tensor):
            try:
                if x.device.type == "cpu" and x.layout is torch.strided:
                    s = x.untyped_storage()
                    seen[s.data_ptr()] = s.data_ptr() + s.nbytes()
            except (RuntimeError, NotImplementedError):  # one without storage
                continue
    return [(a, b) for a, b in seen.items() if a]


@dataclass
class _Tables:
    """What one launch's checks read and write: see the words in ``lower.guard``."""

    arguments: list[_Argument]
    info: dict
    keep: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spans = spans = []
        for a in self.arguments:
            if a.region == 0:
                spans.append((a.start, a.end))
        if self.info["foreign"]:
            spans += _live_tensors()
        spans[:] = sorted(set(spans))
        for a in self.arguments:
            if a.region == 0:
                a.region = spans.index((a.start, a.end))
        self.shift = self._granule()
        self.records = bytearray(guard.RECORD_BYTES * len(guard.KINDS) * len(self.info["sites"]))
        words = (ctypes.c_int64 * guard.WORDS)()
        words[guard.REGIONS] = self._hold(self._regions())
        words[guard.COUNT] = len(spans)
        regions = [a.region for a in self.arguments] or [0]
        words[guard.ARGUMENTS] = self._hold((ctypes.c_int32 * len(regions))(*regions))
        records = (ctypes.c_char * max(1, len(self.records))).from_buffer(
            self.records or bytearray(1)
        )
        words[guard.RECORDS] = self._hold(records)
        words[guard.SHIFT] = self.shift
        words[guard.CLOCK] = 1
        words[guard.OPEN] = any(a.region == guard.BARE for a in self.arguments)
        self.words = words
        self.address = self._hold(words)

    def _hold(self, memory) -> int:
        self.keep.append(memory)
        return ctypes.addressof(memory)

    def _granule(self) -> int:
        """log2 of the bytes per cell: the smallest access, if every pointer is a multiple of it."""
        size = min((s[3] for s in self.info["sites"]), default=1)
        starts = [start for start, _ in self._segments()]
        for a in self.arguments:
            if a.region >= 0 and (a.at - starts[bisect.bisect_right(starts, a.at) - 1]) % size:
                return 0
        return size.bit_length() - 1

    def _segments(self) -> list[list[int]]:
        """The regions' union: regions that share memory share cells."""
        out: list[list[int]] = []
        for start, end in self.spans:
            if out and start < out[-1][1]:
                out[-1][1] = max(out[-1][1], end)
            else:
                out.append([start, end])
        return out

    def _regions(self):
        cells = []
        segments = self._segments()
        for start, end in segments:
            count = ((end - start) >> self.shift) + 8
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            memory = mmap.mmap(-1, count * guard.CELL_BYTES, flags=flags)
            cells.append(self._hold(ctypes.c_char.from_buffer(memory)))
        starts = [s for s, _ in segments]
        table = []
        for start, end in self.spans:
            k = bisect.bisect_right(starts, start) - 1
            table += [start, end, starts[k], cells[k]]
        return (ctypes.c_int64 * max(1, len(table)))(*table)

    def found(self) -> list[tuple[int, int, list[int]]]:
        """(site, kind, [count, program, other, other site, address]) of what was noted."""
        out = []
        view = memoryview(self.records)
        for k in range(len(self.records) // guard.RECORD_BYTES):
            raw = view[k * guard.RECORD_BYTES : (k + 1) * guard.RECORD_BYTES]
            count = int.from_bytes(raw[:8], "little")
            if count:
                small = [int.from_bytes(raw[at : at + 4], "little") for at in (8, 12, 16)]
                address = int.from_bytes(raw[24:32], "little")
                out.append((k // len(guard.KINDS), k % len(guard.KINDS), [count, *small, address]))
        return out


class CheckedLauncher(launch.Launcher):
    """Launches a kernel that was compiled with checks."""

    def __init__(self, src, metadata) -> None:
        super().__init__(src, metadata)
        self.info = metadata.cpu["check"]
        self.names, self.types = list(src.signature), list(src.signature.values())
        self.flags = launch.descriptor_flags(self.types, metadata.cpu.get("slots"))

    def _arguments(self, values) -> list[_Argument]:
        out = []
        for ty, name, value in _pointers(self.names, self.types, values, self.flags):
            a = _Argument(name, value)
            if ty[0] == "*" and value is not None:
                a.at = launch._address(value)
                try:
                    storage = value.untyped_storage()
                    a.start, a.end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
                    a.region = 0 if a.end > a.start else guard.NOTHING
                except (AttributeError, RuntimeError):
                    a.region = guard.BARE
            out.append(a)
        return out

    def __call__(self, gx, gy, gz, stream, function, packed, metadata, enter, leave, *args) -> None:
        if enter is not None:
            enter(metadata)
        total = gx * gy * gz
        if total > 0:
            with launch._lock:
                self.pack(*args)
                tables = _Tables(self._arguments(args), self.info)
                if launch._watching is not None:
                    launch._watching.append((function, gx, gy, gz, self.slots.raw))
                scratch = launch._scratch.need(self.scratch)
                launch.pool().run(function, self.slots_at, total, gx, gy, gz, scratch, self.scratch,
                                  tables.address, 1)  # fmt: skip
            self._report(tables, gx, gy)
        if leave is not None:
            leave(metadata)

    def _report(self, tables: _Tables, gx: int, gy: int) -> None:
        number = tables.words[guard.STATUS]
        failed = f"device_assert failed: {self.messages[number - 1]}" if number else ""
        faults = [self._fault(tables, gx, gy, *f) for f in tables.found()]
        if faults:
            raise CheckError(self.info["kernel"], faults, failed)
        if failed:
            raise launch.KernelError(failed)

    def _fault(self, tables: _Tables, gx: int, gy: int, site: int, kind: int, data) -> Fault:
        count, program, other, other_site, address = data

        def place(number: int) -> tuple[int, int, int]:
            rest, x = divmod(number - 1, gx)
            return (x, rest % gy, rest // gy)

        where, op, root, size = self.info["sites"][site]
        known = [a for a in tables.arguments if a.region >= 0]
        inside = [a for a in known if a.start <= address < a.end]
        owner = tables.arguments[root] if root >= 0 else None
        if owner is None or owner.region < 0:
            owner = min(inside, key=lambda a: abs(a.at - address)) if inside else None
        name = guard.KINDS[kind]
        text = self._text(name, op, size, owner, inside, address, root, tables)
        extra = {}
        if other:
            theirs = self.info["sites"][other_site & (guard.ATOMIC - 1)]
            extra = {"other": place(other), "other_where": theirs[0]}
            verb = "read" if name == "write-read" else "wrote"
            how = " atomically" if other_site & guard.ATOMIC else ""
            what = " another value" if name == "write-write" and not how else ""
            text += f", where program {place(other)} {verb}{what}{how} at {theirs[0]}"
        return Fault(name, self.info["kernel"], where, op, place(program),
                     owner.name if owner else "", address - owner.at if owner else 0, address,
                     count, text, **extra)  # fmt: skip

    def _text(self, kind, op, size, owner, inside, address, root, tables) -> str:
        verb = {"tt.load": "reads", "tt.store": "writes"}.get(op, "updates")
        if kind == "bounds":
            if owner is None:
                name = tables.arguments[root].name if root >= 0 else ""
                whose = f"through {name}, which is empty" if name else "in no tensor passed in"
                return f"{verb} {size} bytes at address {address:#x}, {whose}"
            side = f"{owner.start - address} bytes before its storage begins"
            if address >= owner.start:
                side = f"{address + size - owner.end} bytes past the end of its storage"
            hit = next((f", inside {a.name}" for a in inside if a is not owner), "")
            return f"{verb} {size} bytes at {owner.describe(address)}: {side}{hit}"
        place = owner.describe(address) if owner else f"address {address:#x}"
        if kind == "unwritten":
            return f"{verb} {place}: nobody wrote it"
        return f"{verb} {place}"
