"""Loads and stores of one vector: plain, masked, gathered. Masked-off memory is never touched."""

from __future__ import annotations

from codegen.cpu.emit import LLVM, Emit, Val, const, ll, mangle
from codegen.cpu.ttir import BYTES


def _memory_type(ty: str) -> str:
    """A boolean is a byte in memory."""
    return "i8" if ty == "i1" else ty


def contiguous(ptr: Val, ty: str) -> bool:
    """Are these the addresses of neighbouring elements?"""
    return ptr.kind == "a" and ptr.stride.is_const(BYTES[ty])


def load(e: Emit, ty: str, ptr: Val, mask: Val | None, other: Val | None) -> Val:
    """The element(s) that a pointer points at; ``other`` (or zero) where the mask is off."""
    mem = _memory_type(ty)
    size = BYTES[ty]
    if mask is not None and mask.kind == "c":
        if not mask.x:
            return other if other is not None else const(ty, 0 if ty[0] == "i" else 0.0)
        mask = None
    if other is not None and ty == "i1":
        other = e.extend(other, "i8", signed=False)
    fill = other if other is not None else const(mem, 0)
    if ptr.uniform and (mask is None or mask.uniform):
        if mask is None:
            v = e.wrap(mem, e.raw(f"load {LLVM[mem]}, ptr {e.operand(ptr)}, align {size}"), 0)
        elif fill.uniform:
            v = _masked_scalar(e, mem, ptr, mask, fill, size)
        else:
            one = _masked_scalar(e, mem, ptr, mask, const(mem, 0), size)
            v = e.select(mask, one, fill)
    else:
        n = e.widths([v for v in (ptr, mask, fill) if v is not None])
        t = ll(mem, n)
        if contiguous(ptr, ty) and mask is None:
            v = e.wrap(mem, e.raw(f"load {t}, ptr {e.operand(ptr.base)}, align {size}"), n)
        elif contiguous(ptr, ty):
            v = e.wrap(mem, e.intrinsic(
                f"llvm.masked.load.{mangle(mem, n)}.p0", t,
                [("ptr", e.operand(ptr.base)), ("i32", str(size)),
                 (f"<{n} x i1>", e.operand(mask, n)), (t, e.operand(fill, n))]), n)  # fmt: skip
        else:
            m = e.operand(mask, n) if mask is not None else "splat (i1 true)"
            v = e.wrap(mem, e.intrinsic(
                f"llvm.masked.gather.{mangle(mem, n)}.v{n}p0", t,
                [(f"<{n} x ptr>", e.operand(ptr, n)), ("i32", str(size)),
                 (f"<{n} x i1>", m), (t, e.operand(fill, n))]), n)  # fmt: skip
    return e.op("icmp ne", "i8", v, const("i8", 0), out="i1") if ty == "i1" else v


def prefetch(e: Emit, ptr: Val, near: bool = False) -> None:
    """A hint that memory will be read soon, which cannot fail; ``near``: very soon."""
    e.intrinsic("llvm.prefetch.p0", "void", [("ptr", e.operand(ptr)), ("i32", "0"),
                ("i32", "3" if near else "2"), ("i32", "1")])  # fmt: skip


def _masked_scalar(e: Emit, mem: str, ptr: Val, mask: Val, fill: Val, size: int) -> Val:
    t = ll(mem, 1)
    m = e.raw(f"insertelement <1 x i1> poison, i1 {e.operand(mask)}, i64 0")
    f = e.raw(f"insertelement {t} poison, {LLVM[mem]} {e.operand(fill)}, i64 0")
    v = e.intrinsic(f"llvm.masked.load.{mangle(mem, 1)}.p0", t,
                    [("ptr", e.operand(ptr)), ("i32", str(size)), ("<1 x i1>", m),
                     (t, f)])  # fmt: skip
    return e.wrap(mem, e.raw(f"extractelement {t} {v}, i64 0"), 0)


def store(e: Emit, ty: str, ptr: Val, value: Val, mask: Val | None, n: int = 0) -> None:
    """Store lane by lane where the mask is on; ``n`` is the width when every part is uniform."""
    mem = _memory_type(ty)
    size = BYTES[ty]
    if mask is not None and mask.kind == "c":
        if not mask.x:
            return
        mask = None
    if ty == "i1":
        value = e.extend(value, "i8", signed=False)
    n = max(n, e.widths([v for v in (ptr, mask, value) if v is not None]))
    t = ll(mem, n)
    v = e.operand(value, n)
    if not n:
        if mask is None:
            e.line(f"store {t} {v}, ptr {e.operand(ptr)}, align {size}")
            return
        m = e.raw(f"insertelement <1 x i1> poison, i1 {e.operand(mask)}, i64 0")
        one = e.raw(f"insertelement {ll(mem, 1)} poison, {t} {v}, i64 0")
        e.intrinsic(f"llvm.masked.store.{mangle(mem, 1)}.p0", "void",
                    [(ll(mem, 1), one), ("ptr", e.operand(ptr)), ("i32", str(size)),
                     ("<1 x i1>", m)])  # fmt: skip
        return
    if contiguous(ptr, ty) and mask is None:
        e.line(f"store {t} {v}, ptr {e.operand(ptr.base)}, align {size}")
    elif contiguous(ptr, ty):
        m = _never_known(e, mask, n) if size < 4 else e.operand(mask, n)
        e.intrinsic(f"llvm.masked.store.{mangle(mem, n)}.p0", "void",
                    [(t, v), ("ptr", e.operand(ptr.base)), ("i32", str(size)),
                     (f"<{n} x i1>", m)])  # fmt: skip
    else:
        m = e.operand(mask, n) if mask is not None else "splat (i1 true)"
        e.intrinsic(f"llvm.masked.scatter.{mangle(mem, n)}.v{n}p0", "void",
                    [(t, v), (f"<{n} x ptr>", e.operand(ptr, n)), ("i32", str(size)),
                     (f"<{n} x i1>", m)])  # fmt: skip


def _never_known(e: Emit, mask: Val, n: int) -> str:
    """A mask as an operand that LLVM cannot find out to be a constant.

    With AVX-512, LLVM 22 turns a truncation and a masked store of which one lane is on into a
    store of that lane before the truncation: four bytes where one or two should be written. The
    mask is combined with a truth about the grid that LLVM does not know.
    """
    if not e.features.has("avx512f"):
        return e.operand(mask, n)
    grid = Val("i32", "u", "%num.z")
    true = e.op("icmp ne", "i32", grid, const("i32", -1), out="i1")
    return e.operand(e.op("and", "i1", mask, true), n)
