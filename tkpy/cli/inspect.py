"""``tkpy inspect``: what a compiled kernel uses, read from the compiled object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from codegen.inspect import Report
from codegen.inspect import inspect as read
from codegen.ops.mma import exact
from codegen.schedule import Schedule
from tkpy.ahead import (
    backward_for,
    backward_of,
    compile_lowered,
    key_of,
    lower_for,
    variables,
)
from tkpy.cli.find import find
from tkpy.cli.options import (
    AsJson,
    Constants,
    Dims,
    Dtype,
    DtypeName,
    KernelName,
    Target,
    TargetName,
    setting,
)
from tkpy.cli.output import console

if TYPE_CHECKING:
    from tkpy.kernel import Kernel
    from tkpy.lower import Lowered


def inspect(
    kernel: KernelName,
    target: TargetName = Target.sm_90,
    dtype: DtypeName = Dtype.bf16,
    dim: Dims = None,
    constant: Constants = None,
    backward: Annotated[
        bool, typer.Option("--backward", help="The programs of its derived backward instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compile a kernel for a GPU that need not be present, and print what was obtained.

    Registers are of a thread, spills in bytes a thread, shared memory in bytes a block;
    occupancy is resident warps over the most that a multiprocessor holds, 0 to 1. Instructions
    are counted in the assembly, a loop's body once. What a template asked for and did not get is
    said, with the reason.
    """
    found = find(kernel)
    chosen = setting(found.kernel, dtype, dim, constant)
    if backward:
        made = backward_for(found.kernel, chosen, target=str(target))
        programs = [made.forward, *made.pieces]
        key, wrt, _ = backward_of(found.kernel, chosen, target=str(target))
        title = f"the gradients of {', '.join(wrt)} by {found.name}"
    else:
        programs = [lower_for(found.kernel, chosen, target=str(target))]
        key, title = key_of(found.kernel, chosen, target=str(target)), found.name
    told = [_read(found.kernel, lowered, str(target)) for lowered in programs]
    if as_json:
        facts_ = [
            json.loads(report.to_json()) | ({"remarks": said} if said else {})
            for report, said in told
        ]
        typer.echo(json.dumps(facts_ if backward else facts_[0]))
        return
    out = console()
    out.print(f"[bold]{title}[/] for {target}: {', '.join(variables(key))}", soft_wrap=True)
    for lowered, (report, said) in zip(programs, told, strict=True):
        if backward:
            out.print(f"\n{lowered.emitted.name}")
        out.print(facts(report))
        for remark in said:
            out.print(f"[yellow]{remark}[/]", soft_wrap=True)


def _read(kernel: Kernel, lowered: Lowered, target: str) -> tuple[Report, list[str]]:
    """What a program was compiled to, and what is to be said of it."""
    report = read(compile_lowered(kernel, lowered, target))
    return report, remarks(lowered.fn.schedule, report, any(map(exact, lowered.fn.body.walk())))


def remarks(schedule: Schedule | None, report: Report, fp32: bool = False) -> list[str]:
    """What a template's schedule leaves out, and what Triton did not make of the rest.

    ``fp32``: the kernel has products of exact fp32.
    """
    spilled = []
    if report.spills:
        fix = "smaller tiles or more warps"
        if fp32:
            fix = (
                "its products are exact fp32, for which Triton keeps whole operands in registers; "
                f'16-bit inputs, precision="tf32", {fix}'
            )
        spilled = [f"{report.spills} bytes a thread are spilled: {fix}"]
    if schedule is None:
        return spilled
    found = report.instructions
    out = list(schedule.notes)
    if schedule.described and not found["bulk_copy"]:
        out.append("no bulk copies: Triton made ordinary loads of the descriptors")
    if schedule.specialise and not found["setmaxnreg"]:
        out.append(
            f"not specialised: Triton left the loop whole, at {schedule.warps} warps and "
            f"{schedule.stages} stages"
        )
    return out + spilled


def facts(report: Report) -> RenderableType:
    """The report as two small tables: resources, then the instructions that occur."""
    used = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    used.add_column(style="cyan")
    used.add_column(justify="right")
    used.add_column(style="dim")
    used.add_row("registers", str(report.registers), "a thread")
    used.add_row("spills", str(report.spills), "bytes a thread")
    used.add_row("shared memory", f"{report.shared_bytes:,}", "bytes a block")
    used.add_row("occupancy", f"{report.occupancy:.1%}", "of the warps that fit")
    for kind, count in report.instructions.items():
        if count:
            used.add_row(kind, str(count), "instructions")
    absent = [kind for kind, count in report.instructions.items() if not count]
    return Group(used, f"[dim]none of: {', '.join(absent)}[/]") if absent else used
