"""``tkpy export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tkpy.cli.find import find
from tkpy.cli.options import AnyTarget, Constants, Dims, Dtype, DtypeName, KernelName, setting
from tkpy.cli.output import console, print_code
from tkpy.export import export_source, write
from tkpy.export_backward import export_backward


def export(
    kernel: KernelName,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to; standard output if absent or -."
        ),
    ] = None,
    dtype: DtypeName = Dtype.bf16,
    dim: Dims = None,
    constant: Constants = None,
    target: Annotated[
        AnyTarget, typer.Option("--target", help="Whose schedule a template gets.")
    ] = AnyTarget.cpu,
    backward: Annotated[
        bool, typer.Option("--backward", help="With its derived backward, as two functions.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace FILE, whatever it holds.")
    ] = False,
) -> None:
    """Write a kernel as a Python file that needs only triton and torch.

    The function in it has the kernel's name and arguments. One variant is compiled into it: its
    dtypes, its constants and the sizes of the dimensions that are tile sides are asserted. A file
    runs wherever Triton does; a template for a GPU also asserts what that schedule needs.
    With --backward the function also returns what its gradients need, and NAME_backward gives them.
    """
    found = find(kernel)
    chosen = setting(found.kernel, dtype, dim, constant)
    write_out = export_backward if backward else export_source
    source = write_out(found.kernel, chosen, str(target))
    if output is None or str(output) == "-":
        print_code(source, "python")
        return
    write(output, source, force)
    console().print(f"{output}: {found.name}, {len(source.splitlines())} lines", soft_wrap=True)
