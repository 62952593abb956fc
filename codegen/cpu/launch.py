"""Running a compiled kernel: argument packing, scratch memory, and the pool of threads."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import re
import struct
import threading
import time
import weakref

import torch

from codegen.cpu import environment
from codegen.cpu.pool import pool
from codegen.cpu.toolchain import Library, unseal
from codegen.forks import anew

_SCALARS = {"fp32": "f4x", "fp64": "d", "i1": "?7x", "u1": "?7x", "i8": "b7x", "u8": "B7x",
            "i16": "h6x", "u16": "H6x", "i32": "i4x", "u32": "I4x", "i64": "q", "u64": "Q",
            "fp16": "e6x"}  # fmt: skip


class KernelError(RuntimeError):
    """A device_assert failed."""


_loaded: weakref.WeakValueDictionary[bytes, Library] = weakref.WeakValueDictionary()


def load(binary: bytes) -> tuple[Library, int]:
    """Sealed object code -> (what keeps it loaded, the kernel's address); loaded once."""
    key = hashlib.sha256(binary).digest()
    library = _loaded.get(key)
    if library is None:
        library = _loaded[key] = Library(unseal(binary))
    return library, library.address("kernel")


_watching: list | None = None


@contextlib.contextmanager
def watch():
    """Collect what identifies each launch: the kernel's address, grid, and argument bytes."""
    global _watching
    keep, _watching = _watching, []
    try:
        yield _watching
    finally:
        _watching = keep


_fixed_threads = environment.reader("TKPY_NUM_THREADS")


def num_threads() -> int:
    """``TKPY_NUM_THREADS``, else what torch uses."""
    fixed = _fixed_threads()
    return int(fixed) if fixed else torch.get_num_threads()


# Seconds of work that are worth waking other threads for. A team waits for all its threads, and on
# a busy machine one of them may have to wait for a processor first.
_WORTH = 40e-6


class _Scratch:
    """One growing block of memory, shared by all launches (they run one at a time)."""

    def __init__(self) -> None:
        self.size, self.address = 0, 0
        self.keep: list = []

    def need(self, size: int) -> int:
        if size > self.size:
            size = -(-size // (1 << 21)) << 21
            memory = mmap.mmap(-1, size)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):
                    memory.madvise(mmap.MADV_HUGEPAGE)
            self.keep = [memory]
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            self.size = size
        return self.address


_scratch = _Scratch()
_lock = threading.RLock()
anew(globals(), _scratch=_Scratch, _lock=threading.RLock)


def _flatten(signature) -> list[str]:
    out: list[str] = []
    for ty in signature:
        out += _flatten(ty) if isinstance(ty, tuple) else [ty]
    return out


def _bf16(value: float) -> int:
    from codegen.cpu.emit import float_bits

    return float_bits(float(value), "bf16")


def _address(pointer) -> int:
    """What a pointer argument points at: a tensor's first element, an integer, or nothing."""
    try:
        if pointer.is_cpu:
            return pointer.data_ptr()
    except AttributeError:
        return pointer.data_ptr() if hasattr(pointer, "data_ptr") else pointer or 0
    raise ValueError(f"argument is not a CPU tensor: {pointer.device}")


_ANYTHING = 1 << 63


def _span(tensor) -> tuple[int, int]:
    """Addresses that a kernel may reach through an argument: its storage, or anything at all."""
    try:
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        return start, start + storage.nbytes()
    except (AttributeError, RuntimeError):
        return 0, _ANYTHING


def descriptor_slots(ty: str, expr, flags: int) -> list[tuple[str, str]]:
    """(type, expression) of what a descriptor argument is passed as: its tensor, shape, strides
    and flags, then shape and strides again, which is how Triton rewrites the kernel."""
    ranks = range(re.match(r"[^\[]*\[([^\]]*)\]", ty)[1].count(",") + 1)
    shape = [f"{expr}.shape[{k}]" for k in ranks]
    strides = [f"{expr}.strides[{k}]" for k in ranks]
    out = [("*" + re.match(r"\w+<([^\[]*)", ty)[1], f"{expr}.base")]
    out += [("i64", e) for e in shape + strides]
    asked = [f'{expr}.padding == "nan"', f'getattr({expr}, "round_f32_to_tf32", False)']
    out += [("i1", e) for e in asked[:flags]]
    return out + [("i32", e) for e in shape] + [("i64", e) for e in strides]


def descriptor_flags(signature, slots: int | None) -> int:
    """How many flags each descriptor argument has, by the number of the kernel's arguments: one
    in older versions of Triton, two in newer ones."""
    flat = _flatten(signature)
    descriptors = [ty for ty in flat if ty.startswith("tensordesc")]
    if not descriptors or slots is None:
        return 2
    others = sum(ty != "constexpr" for ty in flat) - len(descriptors)
    known = sum(len(descriptor_slots(ty, "", 0)) for ty in descriptors)
    return (slots - others - known) // len(descriptors)


def _packer(signature, pairs=(), streams=(), slots=None):
    """(a function that writes a launch's arguments into their slots, the slots).

    It is written for a signature, and its slots are reused from launch to launch. The last slot
    has one bit per pair of arguments that the kernel asks about (``lower.alias``): set if their
    memory may overlap. Storages are compared, not views: a kernel may step outside of the view
    that it is given. Another bit for each argument in ``streams`` (``lower.stream``) is set if
    the argument's storage has at least so many bytes.
    """
    names, picks, fmt, lines, pointers = [], [], "<", [], {}
    flags = descriptor_flags(signature, slots)

    def visit(ty, expr: str) -> None:
        nonlocal fmt
        if isinstance(ty, tuple):
            for k, t in enumerate(ty):
                visit(t, f"{expr}[{k}]")
        elif ty == "constexpr":
            return
        elif ty.startswith("tensordesc"):
            for part, value in descriptor_slots(ty, expr, flags):
                visit(part, value)
        elif ty[0] == "*":
            fmt += "Q"
            name = f"p{len(picks)}"
            lines.append(f"    {name} = _address({expr})")
            pointers[len(picks)] = expr
            picks.append(name)
        elif ty == "bf16":
            fmt += "H6x"
            picks.append(f"_bf16({expr})")
        elif ty in _SCALARS:
            fmt += _SCALARS[ty]
            bits = int(ty[1:]) if ty[0] in "iu" and ty[1:].isdigit() else 0
            if bits > 1:  # wraps, as in C
                low = 1 << (bits - 1) if ty[0] == "i" else 0
                mask = (1 << bits) - 1
                expr = f"((({expr}) + {low}) & {mask}) - {low}"
            picks.append(expr)
        else:
            raise TypeError(f"an argument of type {ty} cannot be passed on the CPU")

    for k, ty in enumerate(signature):
        names.append(f"a{k}")
        visit(ty, f"a{k}")
    for k in sorted({k for pair in pairs for k in pair[:2]} | {s[0] for s in streams}):
        lines.append(f"    b{k}, e{k} = _span({pointers[k]})")
    bits = []
    for load, store, same, bit in pairs:
        apart = f"b{load} >= e{store} or b{store} >= e{load}"
        apart += f" or p{load} == p{store}" if same else ""
        bits.append(f"(0 if {apart} else {1 << bit})")
    for k, bit, large in streams:
        bits.append(f"({1 << bit} if {large} <= e{k} - b{k} < {_ANYTHING} else 0)")
    if slots not in (None, len(picks)):
        raise TypeError(f"the kernel has {slots} arguments, and {len(picks)} would be passed")
    picks.append(" | ".join(bits) or "0")
    source = [f"def pack({', '.join(names)}):", *lines, f"    _pack(_slots, 0, {', '.join(picks)})"]
    layout = struct.Struct(fmt + "q")
    slots = ctypes.create_string_buffer(layout.size)
    scope = {"_pack": layout.pack_into, "_slots": slots, "_bf16": _bf16, "_span": _span,
             "_address": _address}  # fmt: skip
    exec("\n".join(source), scope)
    return scope["pack"], slots


class Launcher:
    """Called by Triton as (gx, gy, gz, stream, function, metadata, ..., hooks, *args)."""

    def __new__(cls, src, metadata):
        if "check" in (getattr(metadata, "cpu", None) or {}):
            from codegen.cpu.check import CheckedLauncher as cls
        return object.__new__(cls)

    def __init__(self, src, metadata) -> None:
        info = getattr(metadata, "cpu", None) or {}
        self.scratch = -(-int(info.get("scratch", 0)) // 4096) * 4096 + 4096
        self.messages = info.get("messages", [])
        self.pack, self.slots = _packer(list(src.signature.values()), info.get("pairs", ()),
                                        info.get("streams", ()), info.get("slots"))  # fmt: skip
        self.slots_at = ctypes.addressof(self.slots)
        self.status = ctypes.c_int64(0) if self.messages else None
        self.status_at = ctypes.addressof(self.status) if self.messages else 0
        self.cost = 0.0  # seconds a program takes, as far as is known: the first launch runs alone

    def __call__(self, gx, gy, gz, stream, function, packed, metadata, enter, leave, *args) -> None:
        if enter is not None:
            enter(metadata)
        total = gx * gy * gz
        if total > 0:
            with _lock:
                self.pack(*args)
                threads = min(num_threads(), total) if self.cost * total >= _WORTH else 1
                if _watching is not None:
                    _watching.append((function, gx, gy, gz, self.slots.raw))
                scratch = _scratch.need(self.scratch * threads)
                begun = time.perf_counter()
                pool().run(function, self.slots_at, total, gx, gy, gz, scratch, self.scratch,
                           self.status_at, threads)  # fmt: skip
                cost = (time.perf_counter() - begun) * threads / total
                # What a team takes may be time that its threads had to wait for a processor.
                self.cost = cost if threads == 1 else min(cost, 2 * self.cost)
                if self.messages and self.status.value:
                    number, self.status.value = self.status.value, 0
                    raise KernelError(f"device_assert failed: {self.messages[number - 1]}")
        if leave is not None:
            leave(metadata)


class DeviceInterface:
    """The parts of ``torch.cuda`` that Triton's testing helpers use, with wall-clock events."""

    class Event:
        def __init__(self, enable_timing: bool = True) -> None:
            self.at = 0.0

        def record(self, *_) -> None:
            self.at = time.perf_counter()

        def elapsed_time(self, end) -> float:
            return (end.at - self.at) * 1e3

        def synchronize(self) -> None:
            """Kernels have finished when their launch returns."""

    @staticmethod
    def synchronize(*_) -> None:
        """Kernels have finished when their launch returns."""

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1
