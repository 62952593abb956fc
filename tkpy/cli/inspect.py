"""``tkpy inspect``: what a compiled kernel uses, read from the compiled object."""

from __future__ import annotations

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from codegen.inspect import Report
from codegen.inspect import inspect as read
from tkpy.ahead import compile_for, key_of, variables
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


def inspect(
    kernel: KernelName,
    target: TargetName = Target.sm_90,
    dtype: DtypeName = Dtype.bf16,
    dim: Dims = None,
    constant: Constants = None,
    as_json: AsJson = False,
) -> None:
    """Compile a kernel for a GPU that need not be present, and print what was obtained.

    Registers are of a thread, spills in bytes a thread, shared memory in bytes a block;
    occupancy is resident warps over the most that a multiprocessor holds, 0 to 1. Instructions
    are counted in the assembly, a loop's body once.
    """
    found = find(kernel)
    chosen = setting(found.kernel, dtype, dim, constant)
    report = read(compile_for(found.kernel, str(target), chosen))
    if as_json:
        typer.echo(report.to_json())
        return
    variant = ", ".join(variables(key_of(found.kernel, chosen)))
    out = console()
    out.print(f"[bold]{found.name}[/] for {target}: {variant}", soft_wrap=True)
    out.print(facts(report))


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
