"""Control flow: scf.for, scf.if, scf.while, cf branches, calls and returns.

A scalar that a loop carries is a phi. A tensor it carries lives in one buffer, written at the end
of the body; a tensor that only moves by a scalar each time (pointers, offsets) is that scalar.
"""

from __future__ import annotations

from codegen.cpu.emit import LLVM, Val, const
from codegen.cpu.lower.tensor import Buffer, Const, Fresh, Ramp, Tensor
from codegen.cpu.ttir import BYTES, Block, Func, Op

REGIONS = ("scf.for", "scf.if", "scf.while", "tt.call")


def _leaves(t: Tensor, found: set[int], seen: set[int], same: bool = True) -> None:
    """Buffers that evaluating a tensor reads; (id, read at the same index?)."""
    if id(t) in seen:
        return
    seen.add(id(t))
    if isinstance(t, Buffer):
        found.add(id(t))
    for x in t.inputs:
        _leaves(x, found, seen)


def _same_place(t: Tensor, buf: Buffer) -> bool:
    """Is every read of ``buf`` inside ``t`` at the index being evaluated?"""
    from codegen.cpu.lower.tensor import Map

    if t is buf:
        return True
    found: set[int] = set()
    _leaves(t, found, set())
    if id(buf) not in found:
        return True
    return isinstance(t, Map) and all(_same_place(x, buf) for x in t.inputs)


def assign(low, buffers: list[Buffer], values: list[Tensor]) -> None:
    """``buffers = values`` all at once: values may read the buffers."""
    mark = low.mark()
    todo = [(b, v) for b, v in zip(buffers, values, strict=True) if v is not b]
    while todo:
        for k, (buf, value) in enumerate(todo):
            others = set()
            for j, (_, v) in enumerate(todo):
                if j != k:
                    _leaves(v, others, set())
            if id(buf) not in others and _same_place(value, buf):
                low.write(value, buf)
                todo.pop(k)
                break
        else:  # a cycle: break it by a copy
            buf, value = todo[0]
            copy = low.alloc(value.type)
            low.write(value, copy)
            todo[0] = (buf, copy)
            rest = {id(b) for b, _ in todo}
            if all(_reads_any(v, rest) for _, v in todo):
                continue
    low.release(mark)


def _reads_any(t: Tensor, ids: set[int]) -> bool:
    found: set[int] = set()
    _leaves(t, found, set())
    return bool(found & ids)


# -- scf.for ---------------------------------------------------------------------------------


def _yielded(block: Block) -> list[str]:
    """What a body hands on; a yield of nothing is not printed."""
    last = block.ops[-1] if block.ops else None
    return last.operands if last is not None and last.name == "scf.yield" else []


def _uniform_step(low, op: Op, k: int) -> tuple[str, str] | None:
    """(how, name) if carry ``k`` only moves by a loop-invariant or scalar amount each iteration."""
    body = op.regions[0].entry
    arg, new = op.binds[1 + k], body.ops[-1].operands[k]
    if new == arg:
        return ("fixed", "")
    owner = low.uses.defs.get(new)
    if not isinstance(owner, Op) or owner.name not in ("tt.addptr", "arith.addi"):
        return None
    if owner.block is not body:
        return None
    for a, b in (owner.operands, owner.operands[::-1]):
        if a == arg:
            source = low.uses.defs.get(b)
            if isinstance(source, Op) and source.name in ("tt.splat", "arith.constant"):
                return ("moves", b)
        if owner.name == "tt.addptr":
            break
    return None


def for_(low, op: Op) -> None:
    """scf.for."""
    e = low.e
    lb, ub, step, *inits = op.operands
    body = op.regions[0].entry
    start, stop, by = (low.scalar(v) for v in (lb, ub, step))
    yielded = _yielded(body)
    plan = []  # per carry: ("scalar" | "fixed" | "moves" | "buffer", ...)
    phis = []
    for k, name in enumerate(inits):
        v = low.env[name]
        if isinstance(v, Val):
            plan.append(("scalar", v.ty))
            phis.append((LLVM[v.ty], e.operand(v)))
            continue
        how = _uniform_step(low, op, k)
        if how and how[0] == "fixed":
            if v.reads:  # the body may write what it reads
                v = low.materialise(v)
            plan.append(("fixed", v))
        elif how:
            if v.heavy or v.reads:
                v = low.materialise(v)
            kind = "i64" if v.type.elem == "ptr" else v.type.elem
            plan.append(("moves", v, how[1], kind))
            phis.append((LLVM[kind], "0"))
        else:
            buf = v if _dies_here(low, op, name, v) else low.alloc(v.type)
            summed = _forward(low, op, k, buf)
            late = summed and isinstance(v, Const)
            if buf is not v and not late:
                low.write(v, buf)
            plan.append(("buffer", buf, v if late else None))
    ty = start.ty
    inner = low.mark()

    def iterate(i: Val, names: list[str]) -> list[str]:
        low.env[op.binds[0]] = Val(ty, "u", i.x)
        it = iter(names)
        for arg, item in zip(op.binds[1:], plan, strict=True):
            if item[0] == "scalar":
                low.env[arg] = Val(item[1], "u", next(it))
            elif item[0] == "moves":
                low.env[arg] = Ramp(item[1], Val(item[3], "u", next(it)))
            elif item[0] == "buffer" and item[2] is not None:
                first = e.op("icmp eq", ty, low.env[op.binds[0]], start, out="i1")
                low.env[arg] = Fresh(item[1], item[2], first)
            else:
                low.env[arg] = item[1]
        low.block(body)
        out = []
        it = iter(names)
        buffers, values = [], []
        for item, new in zip(plan, yielded, strict=True):
            if item[0] == "scalar":
                next(it)
                out.append(e.operand(low.scalar(new)))
            elif item[0] == "moves":
                old = Val(item[3], "u", next(it))
                out.append(e.operand(_moved(low, old, item)))
            elif item[0] == "buffer":
                buffers.append(item[1])
                values.append(low.tensor(new))
        assign(low, buffers, values)
        return out

    names = e.loop(start, stop, by, iterate, phis, ty=ty)
    late = [item for item in plan if item[0] == "buffer" and item[2] is not None]
    if late:
        none = e.op("icmp sge", ty, start, stop, out="i1")
        e.branch_if(none, lambda: [low.write(value, buf) for _, buf, value in late])
    it = iter(names)
    for result, item in zip(op.results, plan, strict=True):
        if item[0] == "scalar":
            low.env[result] = Val(item[1], "u", next(it))
        elif item[0] == "moves":
            low.env[result] = Ramp(item[1], Val(item[3], "u", next(it)))
        else:
            low.env[result] = item[1]
    low.release(inner)


def _dies_here(low, op: Op, name: str, v: Tensor) -> bool:
    """Is this loop the only reader of what another loop left in its buffer, and run but once for
    it? Then it goes on in that buffer."""
    owner = low.uses.defs.get(name)
    return (type(v) is Buffer and isinstance(owner, Op) and owner.name == "scf.for"
            and owner.block is op.block and name in owner.results
            and low.uses.of(name) == [op] and op.operands.count(name) == 1)  # fmt: skip


def _moved(low, old: Val, item) -> Val:
    """The running offset after one more step (bytes for pointers)."""
    e = low.e
    amount = low.tensor(item[2])
    step = amount.value
    if item[1].type.elem == "ptr":
        step = e.mul(e.extend(step, "i64"), const("i64", BYTES.get(item[1].type.pointee, 1)))
    return e.add(old, step)


def _forward(low, op: Op, k: int, buf: Buffer) -> bool:
    """Let a dot that is yielded write its carry's buffer, if the old value dies in that dot; is
    it what the dot adds to, and nothing else?"""
    body = op.regions[0].entry
    arg, new = op.binds[1 + k], body.ops[-1].operands[k]
    owner = low.uses.defs.get(new)
    if not isinstance(owner, Op) or owner.block is not body:
        return False
    if body.ops[-1].operands.count(new) != 1:
        return False
    if owner.name == "strip.for":  # row by row: nobody else may want the old rows
        if low.uses.of(arg) == [owner] and owner.operands.count(arg) == 1:
            low.targets[new] = buf
        return False
    if owner.name != "tt.dot" or len(low.uses.of(new)) != 1 or not dies_in(low, arg, owner):
        return False
    low.targets[new] = buf
    return arg == owner.operands[2]


def dies_in(low, arg: str, dot: Op) -> bool:
    """Is a value read by nothing but a dot's accumulator, element by element?"""
    end = low.uses.terminal(arg, dot.block, low.is_lazy)
    if end is not dot or arg in dot.operands[:2]:
        return False
    # The path from the value to the dot's accumulator must be element-wise.
    name = arg
    while name != dot.operands[2]:
        user = low.uses.of(name)[0]
        if user is dot or user.name in (
            "tt.trans",
            "tt.reshape",
            "tt.join",
            "tt.cat",
            "tt.split",
        ):
            return False
        name = user.results[0]
    return True


# -- scf.if ----------------------------------------------------------------------------------


def if_(low, op: Op) -> None:
    """scf.if: scalars join in slots, tensors in buffers."""
    e = low.e
    cond = low.scalar(op.operands[0])
    regions = op.regions
    if cond.kind == "c":
        if not cond.x and len(regions) < 2:
            return
        block = regions[0 if cond.x else 1].entry
        low.block(block)
        if op.results:
            for result, v in zip(op.results, block.ops[-1].operands, strict=True):
                low.env[result] = low.env[v]
        return
    outs = []
    for ty in op.result_types:
        if ty.tensor:
            outs.append(low.alloc(ty))
        else:
            outs.append((low.slot(ty.elem), ty.elem))

    def side(block: Block):
        def emit() -> None:
            mark = low.mark()
            low.block(block)
            names = block.ops[-1].operands if op.results else []
            for out, v in zip(outs, names, strict=True):
                if isinstance(out, Buffer):
                    low.write(low.tensor(v), out)
                else:
                    e.line(f"store {LLVM[out[1]]} {e.operand(low.scalar(v))}, ptr {out[0]}")
            low.release(mark)

        return emit

    other = side(regions[1].entry) if len(regions) > 1 and regions[1].blocks[0].ops else None
    e.branch_if(cond, side(regions[0].entry), other)
    for result, out in zip(op.results, outs, strict=True):
        if isinstance(out, Buffer):
            low.env[result] = out
        else:
            low.env[result] = e.wrap(out[1], e.raw(f"load {LLVM[out[1]]}, ptr {out[0]}"), 0)


# -- scf.while -------------------------------------------------------------------------------


def _slots(low, values: list) -> list:
    """A place per carried value: a buffer, or a stack slot with its element."""
    out = []
    for v in values:
        if isinstance(v, Tensor):
            out.append(low.alloc(v.type))
        else:
            out.append((low.slot(v.ty), v.ty))
    return out


def _fill(low, slots: list, values: list) -> None:
    e = low.e
    pairs = [(s, v) for s, v in zip(slots, values, strict=True) if isinstance(s, Buffer)]
    scalars = [(s, e.operand(v)) for s, v in zip(slots, values, strict=True)
               if not isinstance(s, Buffer)]  # fmt: skip
    assign(low, [s for s, _ in pairs], [v for _, v in pairs])
    for (name, ty), text in scalars:
        e.line(f"store {LLVM[ty]} {text}, ptr {name}")


def read_slots(low, slots: list, names: list[str]) -> None:
    """Bind names to what their places hold."""
    e = low.e
    for slot, name in zip(slots, names, strict=True):
        low.env[name] = slot if isinstance(slot, Buffer) else e.wrap(
            slot[1], e.raw(f"load {LLVM[slot[1]]}, ptr {slot[0]}"), 0)  # fmt: skip


def while_(low, op: Op) -> None:
    """scf.while: the first region decides and hands values to the second."""
    e = low.e
    before, after = op.regions[0].entry, op.regions[1].entry
    inits = [low.env[v] for v in op.operands]
    carried = _slots(low, inits)
    _fill(low, carried, inits)
    head, body, end = (e.fresh_label(h) for h in ("while", "do", "done"))
    e.open()
    e.branch(head)
    e.mark(head)
    read_slots(low, carried, op.binds or before.args)
    for inner in before.ops[:-1]:
        low.op(inner)
    cond, *passed = before.ops[-1].operands
    values = [low.env[v] for v in passed]
    handed = _slots(low, values)
    _fill(low, handed, values)
    e.line(f"br i1 {e.operand(low.scalar(cond))}, label %{body}, label %{end}")
    e.mark(body)
    e.open()
    read_slots(low, handed, after.args)
    low.block(after)
    _fill(low, carried, [low.env[v] for v in _yielded(after)])
    e.branch(head)
    e.close()
    e.mark(end)
    e.close()
    read_slots(low, handed, op.results)


# -- blocks, calls, returns ------------------------------------------------------------------


def placeholders(low, block: Block) -> list:
    """Places for the arguments of a block."""
    fake = [Const(t, 0) if t.tensor else Val(t.elem, "u", "") for t in block.arg_types]
    return _slots(low, fake)


def function_body(low, func: Func) -> None:
    """The blocks of a function; block arguments go through slots."""
    blocks = func.body.blocks
    low.labels = {b.label: f"bb{k}" for k, b in enumerate(blocks)}
    low.block_slots = {}
    for b in blocks[1:]:
        if b.args:
            low.block_slots[b.label] = placeholders(low, b)
    for k, b in enumerate(blocks):
        if k:
            low.e.mark(low.labels[b.label])
            if b.args:
                read_slots(low, low.block_slots[b.label], b.args)
        low.block(b)


def br(low, op: Op) -> None:
    """cf.br."""
    label, values = op.successors[0]
    if values:
        _fill(low, low.block_slots[label], [low.env[v] for v in values])
    low.e.branch(low.labels[label])


def cond_br(low, op: Op) -> None:
    """cf.cond_br: arguments are written on the edge that is taken."""
    e = low.e
    (yes, yes_args), (no, no_args) = op.successors
    targets = []
    for label, values in ((yes, yes_args), (no, no_args)):
        targets.append(e.fresh_label("edge") if values else low.labels[label])
    cond = e.operand(low.scalar(op.operands[0]))
    e.line(f"br i1 {cond}, label %{targets[0]}, label %{targets[1]}")
    for (label, values), target in zip(op.successors, targets, strict=True):
        if values:
            e.mark(target)
            _fill(low, low.block_slots[label], [low.env[v] for v in values])
            e.branch(low.labels[label])


def call(low, op: Op) -> None:
    """A call that Triton's inliner left alone (noinline): inlined here."""
    from codegen.cpu.lower import region
    from codegen.cpu.lower.uses import Uses

    name = next(w for w in op.words if w.startswith("@"))[1:].strip('"')
    callee = low.module.funcs[name]
    if len(callee.body.blocks) > 1:
        region.call(low, op, callee)
        return
    block = callee.body.entry
    keep_env, keep_uses = low.env, low.uses
    args = [keep_env[v] for v in op.operands]
    args = [
        low.materialise(a) if isinstance(a, Tensor) and (a.heavy or a.reads) else a for a in args
    ]
    if not hasattr(callee, "uses"):
        callee.uses = Uses(callee)
    low.env, low.uses = dict(zip(block.args, args, strict=True)), callee.uses
    for inner in block.ops[:-1]:
        low.op(inner)
    results = [low.env[v] for v in block.ops[-1].operands]
    low.env, low.uses = keep_env, keep_uses
    for result, v in zip(op.results, results, strict=True):
        low.env[result] = low.materialise(v) if isinstance(v, Tensor) and v.heavy else v


OPS = {"scf.for": for_, "scf.if": if_, "scf.while": while_, "cf.br": br, "cf.cond_br": cond_br,
       "tt.call": call, "scf.yield": lambda low, op: None}  # fmt: skip
