"""From a template's knobs to the schedule of one machine: stages that fit, warps, persistence."""

from __future__ import annotations

from codegen.ir import Function, Op
from codegen.ops.base import IRError
from codegen.schedule import Schedule
from tkpy.errors import CompileError
from tkpy.template.knobs import USUAL_STAGES, Template

KIB = 1024
#: Shared memory that a program may have, in bytes: CUDA C++ Programming Guide, "Technical
#: Specifications per Compute Capability"; CDNA 3 ISA, 64 KB of LDS.
SHARED = {"sm_80": 163 * KIB, "sm_90": 227 * KIB, "sm_100": 227 * KIB, "gfx942": 64 * KIB}
#: Machines with bulk copies and warps that can be told apart.
ASYNCHRONOUS = ("sm_90", "sm_100")
_SLACK = 2 * KIB  # barriers and the exchange of vectors between warps


def pipelined(fn: Function) -> Op:
    """The loop of ``tk.run``."""
    return next(op for op in fn.body.walk() if "rings" in op.attrs)


def stage_bytes(fn: Function) -> dict[str, int]:
    """Bytes of one stage of every input ring, by the name of its load hook."""
    rings = {name for name, _, _ in pipelined(fn).attrs["rings"]}
    out = dict.fromkeys((name for name, _, _ in pipelined(fn).attrs["rings"]), 0)
    for op in fn.body.walk():
        if op.hook in rings and op.kind in ("load", "gather_rows") and op.result.type.rank:
            out[op.hook] += tile_bytes(op.result.type)
    return out


def tile_bytes(type_) -> int:
    """Bytes of the block that holds a tile."""
    out = type_.dtype.bits // 8 or 1
    for side in type_.block:
        out *= side
    return out


def plan(template: Template, fn: Function, machine: str, described: bool) -> Schedule:
    """How ``machine`` runs the template; ``described``: strides and addresses suit descriptors.

    Raises CompileError where rings of a stated depth pass the shared memory of the machine that
    ThunderKittens writes for (227 KB over the programs that share it).
    """
    loop = pipelined(fn)
    sizes = stage_bytes(fn)
    limit = SHARED[machine] // template.blocks
    stated = {name: stages for name, stages, _ in loop.attrs["rings"] if stages}
    notes: list[str] = []
    if machine in ASYNCHRONOUS:
        _budget(fn, loop, template, stated, sizes, limit)
    staging = _staging(fn) if described and machine in ASYNCHRONOUS else 0
    wanted = max(stated.values(), default=USUAL_STAGES)
    total = max(sum(sizes.values()), 1)
    fit = (limit - staging - _SLACK) // total
    if machine == "gfx942":
        fit += 1  # one stage is on its way in registers
    stages = max(1, min(wanted, fit))
    if stages < wanted and stated:
        held = f"; {staging:,} bytes hold what is stored" if staging else ""
        notes.append(
            f"{stages} stages, not {wanted}: a stage is {total:,} bytes and a program has "
            f"{limit:,}{held}"
        )
    if len(set(stated.values())) > 1:
        notes.append(f"one depth for all rings, {stages} stages: Triton has one a loop")
    if len(loop.attrs["roles"]) > 1 or template.consumer_groups > 1:
        notes.append("Triton itself decides which consumer warps do what")
    if machine not in ASYNCHRONOUS:
        notes.append(f"not specialised: {machine} has no bulk copies between warps of two kinds")
    elif not described:
        notes.append("pointers, not bulk copies: a stride or an address is not 16-byte aligned")
    warps = 1 << (template.consumer_warps.bit_length() - 1)
    return Schedule(
        machine,
        described=described and machine in ASYNCHRONOUS,
        specialise=described and machine in ASYNCHRONOUS,
        persistent=template.persistent and fn.tasked,
        super_m=template.super_m if fn.tasked else 1,
        stages=stages,
        warps=warps,
        blocks=template.blocks,
        notes=tuple(notes),
    )


def plan_piece(fn: Function, machine: str, warps: int, stages: int) -> Schedule:
    """How ``machine`` runs a program of a template's derived backward.

    One program a task, and no more than ``stages`` of its loops' loads on their way at a time: as
    many as shared memory holds.
    """
    loops = [op for op in fn.body.walk() if op.kind == "for"]
    total = max(map(_loaded, loops), default=0)
    fit = (SHARED[machine] - _SLACK) // max(total, 1) + (machine == "gfx942")
    notes: tuple[str, ...] = ()
    if fit < stages:
        notes = (
            f"{max(fit, 1)} stages, not {stages}: a loop loads {total:,} bytes and a program has "
            f"{SHARED[machine]:,}",
        )
    return Schedule(machine, stages=max(1, min(stages, fit)), warps=warps, notes=notes)


def _loaded(loop: Op) -> int:
    """Bytes of the tiles that one iteration of a loop loads itself."""
    loads = [op for op in loop.regions[0].ops if op.kind in ("load", "gather_rows")]
    return sum(tile_bytes(op.result.type) for op in loads if op.result.type.rank == 2)


def _budget(fn, loop: Op, template: Template, stated, sizes, limit: int) -> None:
    """Raises where the rings whose depth the author states do not fit."""
    needed = sum(stated[name] * sizes[name] for name in stated)
    if needed <= limit:
        return
    terms = " + ".join(f"{stated[n]} x {sizes[n]:,} ({n})" for n in stated)
    shared = f"227 KB / {template.blocks} blocks" if template.blocks > 1 else "227 KB"
    most = limit // max(sum(sizes[n] for n in stated), 1)
    error = IRError(
        f"the rings need {terms} = {needed:,} bytes of shared memory; a program has {limit:,} "
        f"({shared})",
        f"stages={most}, or smaller tiles" if most else "smaller tiles: not one stage fits",
    )
    raise CompileError(loop.loc, str(error))


def _staging(fn: Function) -> int:
    """Bytes in which tiles wait to be stored: the largest, since each reuses the last's place."""
    stored = [o for o in fn.body.walk() if o.kind == "store" and o.operands[0].type.rank == 2]
    out = 0
    for op in stored:
        type_ = op.operands[0].type
        out = max(out, tile_bytes(type_.like(dtype=fn.param(op.attrs["param"]).dtype)))
    return out
