"""``tkpy tune``: tile sizes for a kernel on this machine, measured and remembered."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.table import Table

from tkpy.cli.find import find
from tkpy.cli.options import AsJson, Dtype, DtypeName, KernelName
from tkpy.cli.output import console, print_json
from tkpy.cli.timeline import Values, given
from tkpy.tune import tune as choose


def tune(
    kernel: KernelName,
    values: Values = None,
    dtype: DtypeName = Dtype.f32,
    on: Annotated[
        str | None,
        typer.Option("--device", help="Choose for this device by simulation; nothing is run."),
    ] = None,
    keep: Annotated[int, typer.Option(help="Candidates that are measured.")] = 5,
    again: Annotated[bool, typer.Option(help="Choose anew if a choice is remembered.")] = False,
    as_json: AsJson = False,
) -> None:
    """Choose tile sizes by the cost model, measure the best few here, remember the fastest.

    Later calls use it through **tk.tuned(kernel)**.
    """
    found = find(kernel).kernel
    chosen, sizes = given(found, dtype, values)
    arguments: dict[str, Any] = inputs(found, chosen, sizes)
    result = choose(found, keep=keep, again=again, on=on, **arguments)
    rows: list[dict[str, Any]] = [
        {
            "choice": r.choice,
            "predicted_ms": r.predicted * 1e3 if math.isfinite(r.predicted) else None,
            "measured_ms": None if r.measured is None else r.measured * 1e3,
            "failed": r.failed,
        }
        for r in result.rows
    ]
    facts = {
        "kernel": found.name,
        "choice": result.choice,
        "remembered": result.remembered,
        "file": str(result.path) if result.path else None,
        "rows": rows,
    }
    if as_json:
        print_json(facts)
        return
    screen = console()
    said = ", ".join(f"{n}={v}" for n, v in result.choice.items())
    how = "remembered" if result.remembered else "chosen and remembered"
    screen.print(f"[bold]{found.name}[/]: {said} ({how})", soft_wrap=True)
    if rows:
        table = Table("tiles", "predicted, ms", "measured, ms", box=box.SIMPLE, pad_edge=False)
        for r in sorted(rows, key=lambda r: (r["measured_ms"] is None, r["measured_ms"] or 0)):
            measured = _number(r["measured_ms"])
            name = ", ".join(f"{n}={v}" for n, v in r["choice"].items())
            table.add_row(name, r["failed"] or _number(r["predicted_ms"]), measured)
        screen.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def inputs(kernel, chosen, sizes) -> dict[str, Any]:
    """Arguments of those sizes: normal numbers, valid indices, one for scalars."""
    from tkpy.ahead import call_of
    from tkpy.signature import TORCH_NAMES, ScalarSpec, TensorSpec

    torch.manual_seed(0)
    call = call_of(kernel, chosen, "cpu")
    out: dict[str, Any] = dict(chosen.constants)
    for p in kernel.signature.parameters:
        if isinstance(p.spec, TensorSpec) and p.spec.role != "out" and p.name in call.tensors:
            dtype = getattr(torch, TORCH_NAMES[call.dtypes[p.name].name])
            shape = tuple(call.tensors[p.name].shape)
            if dtype.is_floating_point:
                out[p.name] = torch.randn(shape).to(dtype)
            else:
                out[p.name] = torch.zeros(shape, dtype=dtype)
        elif isinstance(p.spec, ScalarSpec) and p.name in call.scalars:
            out[p.name] = 1.0 if p.spec.dtype.is_float else 1
    return out
