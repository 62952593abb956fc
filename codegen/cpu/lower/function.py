"""One kernel: walks the op graph, decides what is written down, and emits the program function."""

from __future__ import annotations

import re
import struct

from codegen.cpu import floats, packs, rows, strips
from codegen.cpu.emit import INT_BITS, LLVM, Emit, Val
from codegen.cpu.lower import (
    alias,
    control,
    divide,
    dot,
    guard,
    keep,
    library,
    memory,
    prefix,
    printing,
    reduce,
    region,
    rest,
    scaled,
    shape,
    stream,
    strip,
    tiles,
)
from codegen.cpu.lower.elementwise import TABLE
from codegen.cpu.lower.requests import Requests
from codegen.cpu.lower.tensor import (
    Buffer,
    Const,
    Map,
    Range,
    Splat,
    Table,
    Tee,
    Tensor,
    write,
)
from codegen.cpu.lower.uses import LAZY_SHAPES, Uses
from codegen.cpu.ttir import BYTES, Block, Func, Module, Op, Type, Unsupported

ALIGN = 64
# Between two large buffers: the same element of the next lies a line before that of the last, in a
# page, so that no load seems to read what was stored just before it.
APART = 4096 - ALIGN
MASKED = 1024  # elements under masks that are worth a loop without them


class Lowering:
    """State of one function's lowering: the builder, values by name, scratch memory."""

    def __init__(self, module: Module, features, contract: bool = True) -> None:
        self.module, self.features = module, features
        self.e = Emit(features, contract)
        self.env: dict[str, Val | Tensor] = {}
        self.top = self.high = 0
        self.prologue: list[str] = []
        self.buffers = 0
        self.messages: list[str] = []
        self.func: Func | None = None
        self.uses: Uses | None = None
        self.uses_tiles = False
        self.targets: dict[str, Buffer] = {}
        self.requests: Requests | None = None  # of a strip that loads its rows
        self.places: dict[str, Buffer] = {}  # rows of a strip's results: where they are to lie
        self.own_uses: Uses | None = None
        self.pairs: dict[tuple[int, int, bool], int] = {}
        self.streams: dict[int, int] = {}  # argument: the launcher's bit for it (lower.stream)
        self.stream_facts: tuple[bool, set[str | None]] | None = None
        self.risks: dict[int, int] = {}
        self.next: Op | None = None  # a reduction to be done at once
        self.early: set[int] = set()  # reductions that were done ahead of their place
        self.made: dict[str, Buffer] = {}  # results that were written down ahead of theirs
        self.check = False  # the checking mode: what memory accesses stand for, with their places
        self.sites: list[tuple[str, str, int, int]] = []
        self.returns: tuple | None = None  # where a region that is being inlined returns to
        self.labels: dict[str, str] = {}
        self.block_slots: dict[str, list] = {}

    # -- errors ----------------------------------------------------------------------------

    def refuse(self, op: Op, why: str) -> Unsupported:
        """The error for an op that cannot be done: op, the kernel's line, reason."""
        return Unsupported(f"{self.module.where(op.loc)}: {op.name}: {why}")

    # -- values ----------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        v = self.env[name]
        if isinstance(v, Val):
            raise TypeError(f"{name} is a scalar")
        return v

    def scalar(self, name: str, env: dict | None = None) -> Val:
        if env is not None and name in env:
            return env[name]
        v = self.env[name]
        if isinstance(v, Const):
            return v.value
        return v

    def constant(self, op: Op) -> Const:
        """arith.constant as a tensor; its scalar is ``.value``."""
        ty = op.result_types[0]
        text = "".join(w for w in op.words if w)
        m = re.fullmatch(r"dense<(.*)>", text, re.S)
        if m:
            text = m[1].strip()
        if text.startswith("["):
            flat = [_number(t.strip(), ty.elem) for t in re.findall(r"[^\[\],\s]+", text)]
            return Table(ty, flat, self.e)
        if text.startswith('"'):
            return Table(ty, _packed(text, ty), self.e)
        return Const(ty, _number(text, ty.elem))

    # -- scratch memory --------------------------------------------------------------------

    def alloc(self, ty: Type, order: tuple[int, ...] | None = None) -> Buffer:
        """A buffer in the program's scratch, freed with ``release``."""
        size = BYTES[ty.elem]
        for d in ty.shape:
            size *= d
        offset = self.top
        self.top += -(-size // ALIGN) * ALIGN + (APART if size >= 2048 else ALIGN)
        self.high = max(self.high, self.top)
        name = f"%buf{self.buffers}"
        self.buffers += 1
        self.prologue.append(f"{name} = getelementptr i8, ptr %scratch, i64 {offset}")
        return Buffer(ty, Val("ptr", "u", name), order)

    def slot(self, ty: str) -> str:
        """A scalar on the stack, which LLVM turns into a register."""
        name = self.e.name("slot")
        self.prologue.append(f"{name} = alloca {LLVM[ty]}")
        return name

    def mark(self) -> int:
        return self.top

    def release(self, mark: int) -> None:
        self.top = mark

    def write(self, t: Tensor, out: Buffer) -> None:
        """Evaluate a tensor into a buffer; masks only where they may be off."""
        whole = {}
        if t.data and len(t.shape) == 2 and t.shape[0] * t.shape[1] >= MASKED:
            whole = {axis: prefix.whole(self, (t,), axis) for axis in (0, 1)}
        write(self.e, t, out, whole=whole)

    def materialise(self, t: Tensor, name: str = "") -> Buffer:
        """The tensor in memory."""
        if isinstance(t, Buffer):
            return t
        out = self.places.get(name) or self.alloc(t.type)
        self.write(t, out)
        return out

    # -- what stays lazy -------------------------------------------------------------------

    def is_lazy(self, op: Op) -> bool:
        if op.name == "tt.broadcast":
            return False
        return op.name in TABLE or op.name in LAZY_SHAPES or op.name in library.OPS

    def settle(self, name: str, t: Tensor, op: Op) -> Tensor:
        """Keep a result as a function, or write it down because that is cheaper or safer."""
        users = self.uses.of(name)
        if not users or not (t.heavy or t.reads):
            return t
        end = self.uses.terminal(name, op.block, self.is_lazy)
        if end is None:
            return keep.reduced(self, op, t, name, users) or self.materialise(t, name)
        if t.reads:
            if not self.uses.clear_between(op.block, op.index, end.index):
                return self.materialise(t, name)
            if end.name in ("tt.store", "tt.atomic_rmw", "tt.atomic_cas"):
                bits = alias.risk(self, t, end)
                if bits is None or (bits and end.name != "tt.store"):
                    return self.materialise(t)
                self.risks[id(end)] = self.risks.get(id(end), 0) | bits
        return t

    def destination(self, op: Op) -> Buffer | None:
        """The buffer that an op's result is carried in, when it may be written directly."""
        return self.destination_of(op.results[0])

    def destination_of(self, name: str) -> Buffer | None:
        """The same for a result by name."""
        return self.targets.get(name)

    def is_identity(self, t: Tensor, buf: Buffer) -> bool:
        return t is buf

    # -- walking ---------------------------------------------------------------------------

    def block(self, block: Block) -> None:
        for op in block.ops:
            self.op(op)

    def op(self, op: Op) -> None:
        name = op.name
        if id(op) in self.early:
            return
        if op.results and op.results[0] in self.made:
            self.env[op.results[0]] = self.made[op.results[0]]
            return
        if name == "arith.constant":
            c = self.constant(op)
            self.env[op.results[0]] = c if op.result_types[0].tensor else c.value
        elif name in TABLE:
            self.elementwise(op)
        elif name in OPS:
            OPS[name](self, op)
        else:
            raise self.refuse(op, REASONS.get(name, "this op is not supported on the CPU"))
        for operand in op.operands if name == "tt.reduce" else ():
            v = self.env[operand]
            if isinstance(v, Tee):
                self.env[operand] = v.buffer
        for result in op.results:
            v = self.env.get(result)
            if isinstance(v, Tensor) and not isinstance(v, Buffer) and name not in control.REGIONS:
                self.env[result] = self.settle(result, v, op)
        if self.next is not None:
            first, self.next = self.next, None
            self.op(first)
            self.early.add(id(first))

    def elementwise(self, op: Op) -> None:
        fn, heavy = TABLE[op.name]
        ty = op.result_types[0]
        if not ty.tensor:
            vals = [self.scalar(v) for v in op.operands]
            self.env[op.results[0]] = fn(self.e, op, *vals)
            return
        inputs = []
        for v in op.operands:
            x = self.env[v]
            inputs.append(Splat(Type(x.ty, ty.shape, True), x) if isinstance(x, Val) else x)
        if op.name in ("arith.divsi", "arith.remsi", "arith.divui", "arith.remui"):
            heavy = inputs[1].constant() is None
        if op.name in ("arith.divf",) and inputs[1].constant() is not None:
            heavy = False
        if op.name in ("arith.divf", "tt.precise_divf") and divide.applies(
            self.e.features, *inputs
        ):
            inputs.append(divide.reciprocal(inputs[1]))
            out = Map(ty, op.name, divide.divide, inputs, heavy)
        elif op.name == "arith.truncf" and keep.multiplied(self, op, inputs[0].type):
            out = Map(ty, op.name, lambda e, v: floats.host_bf16(e, [v]), inputs, heavy)
        else:
            out = Map(ty, op.name, lambda e, *vals: fn(e, op, *vals), inputs, heavy)
        out.word = op.words[0] if op.words else ""
        self.env[op.results[0]] = out


def _number(text: str, elem: str):
    if text in ("true", "false"):
        return text == "true"
    if elem in INT_BITS:
        return int(text, 0)
    if text.startswith(("0x", "-0x")):
        bits = int(text, 16)
        if elem == "f32":
            return struct.unpack("<f", struct.pack("<I", bits))[0]
        if elem == "f64":
            return struct.unpack("<d", struct.pack("<Q", bits))[0]
        return bits  # narrow formats are their bits
    value = float(text)
    if elem in ("f16", "bf16", "f32", "f64"):
        return value
    import torch

    kind = {"f8E5M2": torch.float8_e5m2, "f8E4M3FN": torch.float8_e4m3fn}[elem]
    return int(torch.tensor([value]).to(kind).view(torch.uint8)[0])


def _packed(text: str, ty: Type) -> list:
    """``"0x0100..."``: a hexadecimal blob of elements."""
    raw = bytes.fromhex(text.strip('"')[2:])
    size = BYTES[ty.elem]
    return [int.from_bytes(raw[k : k + size], "little", signed=ty.elem[0] == "i")
            for k in range(0, len(raw), size)]  # fmt: skip


# -- simple ops ------------------------------------------------------------------------------


def _program_id(low: Lowering, op: Op) -> None:
    axis = next((w for w in op.words if w in "xyz"), None) or op.attrs.get("axis", "x")
    low.env[op.results[0]] = Val("i32", "u", f"%pid.{axis}")


def _num_programs(low: Lowering, op: Op) -> None:
    axis = next((w for w in op.words if w in "xyz"), None) or op.attrs.get("axis", "x")
    low.env[op.results[0]] = Val("i32", "u", f"%num.{axis}")


def _make_range(low: Lowering, op: Op) -> None:
    low.env[op.results[0]] = Range(op.result_types[0], op.attr_int("start"))


def _splat(low: Lowering, op: Op) -> None:
    low.env[op.results[0]] = Splat(op.result_types[0], low.scalar(op.operands[0]))


def _unsplat(low: Lowering, op: Op) -> None:
    from codegen.cpu.lower.tensor import ZERO, nest

    t = low.tensor(op.operands[0])
    with nest(low.e) as g:
        low.env[op.results[0]] = g.at(t, tuple(ZERO for _ in t.shape))


def _expand(low: Lowering, op: Op) -> None:
    src = low.tensor(op.operands[0])
    low.env[op.results[0]] = shape.expand_dims(op.result_types[0], src, op.attr_int("axis"))


def _broadcast(low: Lowering, op: Op) -> None:
    src = low.tensor(op.operands[0])
    if src.heavy and src.shape != op.result_types[0].shape:
        src = low.materialise(src)
    low.env[op.results[0]] = shape.broadcast(op.result_types[0], src)


def _trans(low: Lowering, op: Op) -> None:
    src = low.tensor(op.operands[0])
    low.env[op.results[0]] = shape.transpose(op.result_types[0], src, op.attr_ints("order"))


def _reshape(low: Lowering, op: Op) -> None:
    src = low.tensor(op.operands[0])
    low.env[op.results[0]] = shape.reshape(op.result_types[0], src)


def _join(low: Lowering, op: Op) -> None:
    a, b = (low.tensor(v) for v in op.operands)
    low.env[op.results[0]] = shape.Join(op.result_types[0], a, b)


def _cat(low: Lowering, op: Op) -> None:
    a, b = (low.tensor(v) for v in op.operands)
    low.env[op.results[0]] = shape.Cat(op.result_types[0], a, b)


def _split(low: Lowering, op: Op) -> None:
    src = low.tensor(op.operands[0])
    if src.heavy:
        src = low.materialise(src)
    for side, name in enumerate(op.results):
        low.env[name] = shape.split(op.result_types[side], src, side)


def _nothing(low: Lowering, op: Op) -> None:
    """Barriers between the threads of a program: a program here is one thread."""


#: A program is one thread, and its loads and stores are in order.
BARRIERS = ("gpu.barrier", "ttg.barrier", "tt.debug_barrier")
REASONS = {
    "tt.elementwise_inline_asm": "inline assembly is written for a GPU's instructions",
}
OPS = {
    "tt.get_program_id": _program_id, "tt.get_num_programs": _num_programs,
    "tt.make_range": _make_range, "tt.splat": _splat, "tt.unsplat": _unsplat,
    "tt.expand_dims": _expand, "tt.broadcast": _broadcast, "tt.trans": _trans,
    "tt.reshape": _reshape, "tt.join": _join, "tt.cat": _cat, "tt.split": _split,
    "tt.reduce": reduce.reduce, "tt.scan": reduce.scan, "tt.dot": dot.dot,
    "gpu.barrier": _nothing, "ttg.barrier": _nothing, "tt.debug_barrier": _nothing,
    "llvm.intr.assume": _nothing,
    **memory.OPS, **control.OPS, **rest.OPS, **library.OPS, **region.OPS, **scaled.OPS,
    **printing.OPS, **strip.OPS,
}  # fmt: skip


# -- the module ------------------------------------------------------------------------------


def lower(module: Module, features, contract: bool = True, check: bool = False) -> tuple[str, dict]:
    """LLVM IR text of a kernel and what the launcher must know about it."""
    func = module.kernel
    low = Lowering(module, features, contract)
    low.check = check
    low.func = func
    if not check:
        for block in strips.blocks(func.body.blocks):
            block.ops = [op for op in block.ops if op.name not in BARRIERS]
            for k, op in enumerate(block.ops):
                op.index = k
    low.uses = low.own_uses = Uses(func)
    for done in () if check else (rows, strips, packs):
        if done.apply(func, low.uses):
            low.uses = low.own_uses = Uses(func)
    entry = func.body.entry
    for k, (name, ty) in enumerate(zip(entry.args, entry.arg_types, strict=True)):
        if ty.elem not in LLVM:
            raise Unsupported(f"{module.where(func.loc)}: argument {name}: type {ty} is unknown")
        low.env[name] = Val(ty.elem, "u", f"%arg{k}")
    if check:
        guard.prologue(low)
    control.function_body(low, func)
    text = _module_text(low, func, entry.arg_types)
    pairs = [(*pair, bit) for pair, bit in low.pairs.items()]
    info = {
        "slots": len(entry.args),
        "scratch": low.high + ALIGN,
        "messages": low.messages,
        "pairs": pairs,
        "streams": [(k, bit, stream.LARGE) for k, bit in low.streams.items()],
    }
    if check:
        info["check"] = {"kernel": func.name, "sites": low.sites, "foreign": guard.foreign(module)}
    return text, info


def _module_text(low: Lowering, func: Func, types: list[Type]) -> str:
    args = [f"{LLVM[t.elem]} %arg{k}" for k, t in enumerate(types)]
    axes = [f"i32 %{kind}.{axis}" for kind in ("pid", "num") for axis in "xyz"]
    params = ", ".join([*args, *axes, "ptr noalias align 64 %scratch", "ptr noalias %status",
                        "i64 %overlap"])  # fmt: skip
    loads = []
    for k, t in enumerate(types):
        loads.append(f"  %slot{k} = getelementptr i8, ptr %args, i64 {8 * k}")
        loads.append(f"  %arg{k} = load {LLVM[t.elem] if t.elem != 'i1' else 'i1'}, ptr %slot{k}")
    loads.append(f"  %slot{len(types)} = getelementptr i8, ptr %args, i64 {8 * len(types)}")
    loads.append(f"  %overlap = load i64, ptr %slot{len(types)}")
    pass_on = ", ".join([*args, "i32 %x", "i32 %y", "i32 %z", "i32 %gx", "i32 %gy", "i32 %gz",
                         "ptr %scratch", "ptr %status", "i64 %overlap"])  # fmt: skip
    attrs = (f'attributes #0 = {{ nounwind "prefer-vector-width"="{low.features.bits}" '
             f'"min-legal-vector-width"="{low.features.bits}" '
             f'"target-cpu"="{low.features.cpu}" '
             f'"target-features"="{low.features.flags}" }}')  # fmt: skip
    configure = release = ""
    if low.uses_tiles:
        configure = "  " + tiles.configure(low.e)
        low.e.declare("declare void @llvm.x86.tilerelease()")
        release = "  call void @llvm.x86.tilerelease()\n"
    if low.streams:  # stores past the caches are not ordered with the end of the launch otherwise
        release += "  fence seq_cst\n"
    helpers = ""
    if low.check:
        helpers, declared = guard.runtime(low.features)
        low.e.declared.update(declared)
    body = low.e.text()
    prologue = "\n".join("  " + p for p in low.prologue)
    return f"""; kernel {func.name}
{chr(10).join(sorted(low.e.declared.values()))}
{chr(10).join(low.e.globals.values())}
{helpers}
define internal void @program({params}) #0 {{
entry:
{prologue}
{body}
}}

; programs [begin, end) of a grid of gx * gy * gz, x fastest
define void @kernel(ptr %args, i64 %begin, i64 %end, i32 %gx, i32 %gy, i32 %gz,
                    ptr %scratch, ptr %status) #0 {{
entry:
{chr(10).join(loads)}
{configure}
  %gx64 = zext i32 %gx to i64
  %gy64 = zext i32 %gy to i64
  %any = icmp slt i64 %begin, %end
  br i1 %any, label %loop, label %done
loop:
  %p = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %rest = udiv i64 %p, %gx64
  %x64 = urem i64 %p, %gx64
  %z64 = udiv i64 %rest, %gy64
  %y64 = urem i64 %rest, %gy64
  %x = trunc i64 %x64 to i32
  %y = trunc i64 %y64 to i32
  %z = trunc i64 %z64 to i32
  call void @program({pass_on})
  %next = add i64 %p, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
{release}  ret void
}}

{attrs}
"""
