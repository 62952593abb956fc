"""``tkpy list``."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from tkpy.cli.find import GROUP, Found, registered
from tkpy.cli.options import AsJson
from tkpy.cli.output import console, print_json
from tkpy.signature import ConstSpec, TensorSpec


def list_kernels(as_json: AsJson = False) -> None:
    """Name every registered kernel, with its arguments.

    Tensors are shown with their named dimensions; what follows the arrow is returned.
    """
    found = registered()
    if as_json:
        print_json([_facts(f) for f in found.values()])
        return
    if not found:
        console().print(f"no kernels: no package registers any under the entry point {GROUP}")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kernel", style="bold", no_wrap=True)
    table.add_column("arguments")
    table.add_column("what it does")
    for f in found.values():
        table.add_row(f.name, Text(arguments(f)), Text(f.summary))
    console().print(table)


def arguments(found: Found) -> str:
    """The signature in a line, such as ``q[B H N D], k[B H M D], scale; causal -> o[B H N D]``."""
    tensors: list[str] = []
    others: list[str] = []
    out: list[str] = []
    for p in found.kernel.signature.parameters:
        if isinstance(p.spec, TensorSpec):
            text = f"{p.name}[{p.spec.sizes}]" + ("?" if p.spec.optional else "")
            (out if p.spec.role == "out" else tensors).append(text)
        elif isinstance(p.spec, ConstSpec):
            others.append(p.name)
        else:
            tensors.append(p.name)
    tail = f"; {', '.join(others)}" if others else ""
    return f"{', '.join(tensors)}{tail} -> {', '.join(out)}"


def _facts(found: Found) -> dict[str, object]:
    file, line = found.place
    return {
        "name": found.name,
        "origin": found.origin,
        "file": file,
        "line": line,
        "summary": found.summary,
        "arguments": [
            {"name": p.name, "kind": _kind(p), "type": _type(p)}
            for p in found.kernel.signature.parameters
        ],
        "where": [c.source for c in found.kernel.signature.conditions],
    }


def _kind(p) -> str:
    if isinstance(p.spec, TensorSpec):
        return p.spec.role
    return "constant" if isinstance(p.spec, ConstSpec) else "scalar"


def _type(p) -> str:
    if isinstance(p.spec, TensorSpec):
        return str(p.spec)
    return p.spec.type.__name__ if isinstance(p.spec, ConstSpec) else str(p.spec.dtype)
