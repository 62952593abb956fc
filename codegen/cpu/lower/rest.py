"""Gather, histogram, assertions, printing and library functions."""

from __future__ import annotations

from codegen.cpu.emit import Val, const
from codegen.cpu.lower import permute
from codegen.cpu.lower.elementwise import vector
from codegen.cpu.lower.tensor import Const, Reindex, loops, nest
from codegen.cpu.ttir import Op

OPS: dict = {}


def gather(low, op: Op) -> None:
    """tt.gather along an axis: the source in memory, read at computed indices."""
    src = low.materialise(low.tensor(op.operands[0]))
    where = low.tensor(op.operands[1])
    axis = op.attr_int("axis")
    if where.heavy:
        where = low.materialise(where)

    def index(g, idx):
        i = vector(g.e, g.at(where, idx))
        if i.ty == "i64":
            i = g.e.cast("trunc", i, "i32")
        elif i.ty != "i32":
            i = g.e.extend(i, "i32")
        i = Val(i.ty, i.kind, i.x, n=i.n, level=max(v.level for v in idx))
        return (*idx[:axis], i, *idx[axis + 1 :])

    ty = op.result_types[0]
    known = permute.gathered(low, ty, src, where, index) if axis == 1 else None
    low.env[op.results[0]] = known or Reindex(ty, src, index)


def histogram(low, op: Op) -> None:
    """tt.histogram: counts of 0 .. bins - 1; others, and masked ones, are not counted."""
    e = low.e
    ty = op.result_types[0]
    out = low.alloc(ty)
    low.write(Const(ty, 0), out)
    src = low.tensor(op.operands[0])
    mask = low.tensor(op.operands[1]) if len(op.operands) > 1 else None
    bins = const(src.type.elem, ty.shape[0])
    with nest(e) as g:

        def body(idx) -> None:
            v = g.at(src, idx)
            ok = e.op("icmp ult", v.ty, v, bins, out="i1")
            if mask is not None:
                ok = e.op("and", "i1", ok, g.at(mask, idx))

            def count() -> None:
                place = e.offset(out.base, e.extend(v, "i64"), 4)
                p = e.operand(place)
                old = e.raw(f"load i32, ptr {p}, align 4")
                e.line(f"store i32 {e.raw(f'add i32 {old}, 1')}, ptr {p}, align 4")

            e.branch_if(ok, count)

        loops(g, src.shape, None, 1, body)
    low.env[op.results[0]] = out


def assert_(low, op: Op) -> None:
    """tt.assert: records the message and the program, then ends the program."""
    e = low.e
    message = next((w for w in op.words if w.startswith('"')), op.attrs.get("message", '""'))
    low.messages.append(f"{low.module.where(op.loc)}: {message.strip(chr(34))}")
    number = len(low.messages)

    def fail(ok: Val) -> None:
        bad = e.op("xor", "i1", ok, const("i1", 1))

        def stop() -> None:
            e.raw(f"cmpxchg ptr %status, i64 0, i64 {number} monotonic monotonic, align 8")
            e.line("ret void")
            e.mark(e.fresh_label("dead"))

        e.branch_if(bad, stop)

    cond = low.env[op.operands[0]]
    if isinstance(cond, Val):
        fail(cond)
        return
    with nest(e) as g:
        loops(g, cond.shape, None, 1, lambda idx: fail(g.at(cond, idx)))


def poison(low, op: Op) -> None:
    """ub.poison: a value that nothing may depend on; zero."""
    ty = op.result_types[0]
    zero = Const(ty, 0.0 if ty.elem in ("f32", "f64") else 0)
    low.env[op.results[0]] = zero if ty.tensor else zero.value


OPS.update(
    {"ub.poison": poison, "tt.gather": gather, "tt.histogram": histogram, "tt.assert": assert_}
)
