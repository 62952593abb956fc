"""``tkpy timeline`` and ``tkpy cost``: what a kernel will do on a device, before it runs there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.table import Table

from codegen.cost import KINDS, Cost, RunTime, evaluate
from codegen.cost import cost as count
from codegen.expr import FloorDiv, text
from codegen.writer import rows_long
from tkpy.ahead import SIZES, Setting, call_of, choose_sizes, lower_for
from tkpy.cli.app import NotFound
from tkpy.cli.find import find
from tkpy.cli.options import AsJson, Dtype, DtypeName, KernelName, setting
from tkpy.cli.output import console, print_json
from tkpy.errors import TkError
from tkpy.kernel import Kernel
from tkpy.pipeline.device import DEVICES, Device, device
from tkpy.pipeline.of_kernel import estimate, front_end, plan

Values = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=VALUE]...",
        help="Sizes of named dimensions and values of constants: N=4096 causal=true.",
    ),
]
DeviceName = Annotated[
    str, typer.Option("--device", help=f"One of {', '.join(DEVICES)}, or cpu: this one, measured.")
]
Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="Where to draw: STEM.png and STEM.svg.")
]

_SAYS = {
    "matrix": "FLOPs of products",
    "vector": "FLOPs of arithmetic",
    "special": "special functions",
    "load": "bytes loaded by programs",
    "store": "bytes stored by programs",
}


#: Sizes of a problem worth a picture, and smaller ones where preconditions ask for them: of a
#: dimension that tiles walk over, of one counted singly (batch, heads), of a matrix' rows.
_WALKED, _COUNTED, _ROW = (4096, 2048, 1024, 512, 256, *SIZES), (16, 8, 4, 2, 1), (1024, *SIZES)


def worth_drawing(kernel: Kernel, chosen: Setting) -> dict[str, int]:
    """Sizes for all dimensions: those given, and others as a real problem would have them.

    The innermost dimension of a tensor with heads is the size of a head, a usual tile side.
    """
    given = {p.name: p.default for p in kernel.signature.constants} | dict(chosen.constants)
    fn = lower_for(kernel, chosen, device="cpu").fn
    bounds = [number for _, number in fn.grid]
    bounds += [op.attrs["stop"] for op in fn.body.walk() if op.kind == "for"]
    walked = {s.name for e in bounds for d in e.atoms(FloorDiv) for s in d.free_symbols}
    free = {s.name for s in fn.dims}
    specs = [p.spec for p in kernel.signature.settled(dict(given)).tensors]
    outer = {x.name for s in specs for d in s.dims[:-1] for x in d.free_symbols}
    heads = rows_long((s.role, s.dims) for s in specs if len(s.dims) > 2) - outer
    rows = rows_long((s.role, s.dims) for s in specs) - heads - outer
    tried = {
        d.name: SIZES if d.name in heads
        else _WALKED if d.name in walked
        else _COUNTED if d.name in free
        else _ROW if d.name in rows
        else SIZES
        for d in kernel.signature.dims
    }  # fmt: skip
    return choose_sizes(kernel.signature, chosen.sizes, given, tried)


def given(kernel: Kernel, dtype: Dtype, values: Sequence[str] | None):
    """The setting that ``NAME=VALUE`` texts describe, and sizes for all dimensions."""
    sizes, constants = [], []
    dims = {d.name for d in kernel.signature.dims}
    for item in values or ():
        name, equals, value = item.partition("=")
        if not equals or not value:
            raise NotFound(f"{item!r} is not NAME=VALUE")
        if name in dims:
            if not value.isascii() or not value.isdigit() or int(value) == 0:
                raise NotFound(f"{item}: a size is a positive number of elements")
            sizes.append((name, int(value)))
        else:
            constants.append((name, value))
    chosen = setting(kernel, dtype, sizes, constants)
    return chosen, dict(call_of(kernel, chosen).sizes)


def timeline(
    kernel: KernelName,
    values: Values = None,
    device_name: DeviceName = "h100",
    dtype: DtypeName = Dtype.bf16,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a kernel's pipeline on a device, check it, and draw it.

    One lane for each role and each stage; hatched where a role waits. Without -o the picture is
    KERNEL-DEVICE.png and .svg here. A dimension without a value gets one as in a real problem:
    4096 where tiles walk over it, 16 where it counts batches or heads, 64 for a head's own size.
    """
    from tkpy.pipeline.check import verify
    from tkpy.pipeline.picture import draw
    from tkpy.pipeline.simulate import lints

    found = find(kernel).kernel
    machine = device(device_name)
    chosen, _ = given(found, dtype, values)
    sizes = worth_drawing(found, chosen)
    chosen = replace(chosen, sizes=sizes)
    try:
        planned = plan(found, machine, sizes, chosen)
    except RunTime as e:
        raise TkError(f"{found.name} cannot be simulated: {e}") from None
    verify(planned.pipeline)
    result = estimate(planned, machine)
    line = result.timeline
    peak = machine.products(planned.dtype) / machine.share
    facts: dict[str, Any] = {
        "kernel": found.name,
        "device": machine.name,
        "sizes": sizes,
        "seconds": result.seconds,
        "of_matrix_peak": result.flops / peak,
        "binding": line.binding,
        "busy": {k: line.used(k) for k in line.busy},
        "stalls": {f"{a}: {b}": s / line.time for (a, b), s in line.stalls.items()},
        "rings": {r.name: r.stages for r in line.pipeline.rings},
        "shared": line.pipeline.shared_used,
    }
    said = ", ".join(f"{n}={v}" for n, v in sizes.items())
    title = (
        f"{found.name} on {machine.title} ({said}): {_time(result.seconds)}, "
        f"{result.flops / peak:.0%} of the matrix peak, bound by {line.binding}"
    )
    stem = out.with_suffix("") if out else Path(f"{found.name}-{machine.name}")
    facts["lints"] = lints(line.pipeline, machine, planned.dtype)
    facts["pictures"] = [str(p) for p in draw(line, title, stem)]
    if as_json:
        print_json(facts)
        return
    screen = console()
    screen.print(f"[bold]{title}[/]", soft_wrap=True)
    table = Table("", "share of the time", box=box.SIMPLE, pad_edge=False)
    for name, share in sorted(facts["busy"].items(), key=lambda kv: -kv[1]):
        table.add_row(f"{name} works", f"{share:.0%}")
    for name, share in sorted(facts["stalls"].items(), key=lambda kv: -kv[1])[:8]:
        table.add_row(
            f"{name.partition(': ')[0]} waits for {name.partition(': ')[2]}", f"{share:.0%}"
        )
    screen.print(table)
    for said in facts["lints"]:
        screen.print(f"slow: {said}", soft_wrap=True)
    screen.print(f"drawn: {' '.join(facts['pictures'])}", soft_wrap=True)


def cost(
    kernel: KernelName,
    values: Values = None,
    device_name: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="Add its roofline time; draws with -o. With --backward: whose form and rates.",
        ),
    ] = None,
    dtype: DtypeName = Dtype.bf16,
    out: Out = None,
    as_json: AsJson = False,
    backward: Annotated[
        bool, typer.Option("--backward", help="Of its derived backward, beside the forward.")
    ] = False,
) -> None:
    """FLOPs, bytes and intensity of a kernel, as expressions and as numbers.

    Sizes that are tile sides, and those that are not given, are chosen as for **tkpy show**.
    """
    found = find(kernel).kernel
    chosen, sizes = given(found, dtype, values)
    _, amounts = front_end(found, chosen)
    if backward:
        _backward(found, chosen, amounts, sizes, str(dtype), device_name, as_json)
        return
    rows = _rows(amounts, sizes)
    facts: dict = {
        "kernel": found.name,
        "sizes": sizes,
        "amounts": {n: {"expression": e, "number": v} for n, e, v in rows},
        "notes": amounts.notes,
    }
    if device_name is not None:
        machine = device(device_name)
        facts["device"] = _roofline(found, chosen, amounts, sizes, machine, str(dtype), out)
    if as_json:
        print_json(facts)
        return
    said = ", ".join(f"{n}={v}" for n, v in sizes.items())
    screen = console()
    screen.print(f"[bold]{found.name}[/] {said}, {dtype}", soft_wrap=True)
    table = Table("", "number", "expression", box=box.SIMPLE, pad_edge=False)
    for name, expression, number in rows:
        shown = "at run time" if number is None else f"{number:,.4g}"
        table.add_row(name, shown, expression)
    screen.print(table)
    for note in amounts.notes:
        screen.print(f"bounded from above: {note}", soft_wrap=True)
    for name, value in facts.get("device", {}).items():
        screen.print(f"{name}: {value}", soft_wrap=True)


def _backward(
    found, chosen: Setting, amounts: Cost, sizes, dtype: str, device_name, as_json: bool
) -> None:
    """FLOPs of the forward and of each program of the backward, how they compare, and carries."""
    from tkpy.ahead import backward_of
    from tkpy.carries import describe
    from tkpy.lower import derivation_of

    machine = None if device_name is None else device(device_name)
    here = torch.cuda.is_available() if machine is None else machine.name != "cpu"
    place = ("cuda", "sm_90") if here else ("cpu", "cpu")
    key, wrt, outs = backward_of(found, chosen, *place)
    call = call_of(found, chosen, *place)
    joint = found.backward.jointly(key, wrt, outs, True, call)

    def derived(segments):
        kernel = (found.fn, found.signature, key, wrt, outs, found.template)
        return derivation_of(*kernel, joint=joint, segments=segments)[0]

    made = derived(None)
    choices = found.backward.choose(made.taped, call, machine)
    cut = {c.loop: c.segment for c in choices if c.segment}
    made = derived(cut) if cut else made
    programs = [(piece.fn.name, count(piece.fn)) for piece in made.pieces]
    kinds = ("matrix", "vector", "special")
    table = Table("", *kinds, "all", box=box.SIMPLE, pad_edge=False)
    rows = []
    for name, c in [("forward", amounts), *programs]:
        numbers = [_known(partial(c.number, k, sizes)) for k in kinds]
        rows.append((name, [*numbers, None if None in numbers else sum(numbers)]))  # type: ignore
    totals = [
        None if any(r[1][k] is None for r in rows[1:]) else sum(r[1][k] for r in rows[1:])  # type: ignore
        for k in range(4)
    ]
    ratios = [
        t / f if t is not None and f else None for t, f in zip(totals, rows[0][1], strict=True)
    ]
    if as_json:
        print_json(
            {
                "kernel": found.name,
                "sizes": sizes,
                "programs": {n: dict(zip((*kinds, "all"), v, strict=True)) for n, v in rows},
                "backward / forward": dict(zip((*kinds, "all"), ratios, strict=True)),
                "carries": [asdict(c) for c in choices],
            }
        )
        return
    said = ", ".join(f"{n}={v}" for n, v in sizes.items())
    screen = console()
    screen.print(f"[bold]{found.name}[/] {said}, {dtype}: FLOPs", soft_wrap=True)
    for name, numbers in rows:
        table.add_row(name, *("-" if v is None else f"{v:,.4g}" for v in numbers))
    table.add_row("backward / forward", *("-" if v is None else f"{v:.2f}" for v in ratios))
    screen.print(table)
    for c in choices:
        screen.print(describe(c), soft_wrap=True)


def _rows(amounts: Cost, sizes: dict[str, int]) -> list[tuple[str, str, float | None]]:
    rows: list[tuple[str, str, float | None]] = []
    for kind in KINDS:
        e = amounts.expression(kind)
        if e != 0:
            rows.append((_SAYS[kind], _text(e), _known(partial(amounts.number, kind, sizes))))
    once = amounts.bytes()
    bytes_ = evaluate(once, sizes)
    flops = _known(lambda: sum(amounts.number(k, sizes) for k in ("matrix", "vector", "special")))
    rows.append(("bytes, each tensor once", _text(once), bytes_))
    if flops is not None:
        rows.append(("FLOPs a byte", "all FLOPs / bytes", flops / bytes_ if bytes_ else 0.0))
    return rows


def _known(number: Callable[[], float]) -> float | None:
    """A number, or None where the running kernel alone knows it."""
    try:
        return number()
    except RunTime:
        return None


def _text(e) -> str:
    try:
        return text(e)
    except (TypeError, ValueError, KeyError, AttributeError):
        return str(e)


def _roofline(found, chosen: Setting, amounts: Cost, sizes, machine: Device, dtype, out) -> dict:
    from tkpy.pipeline.predict import roofline_seconds

    try:
        seconds, bound = roofline_seconds(amounts, sizes, machine)
    except RunTime as e:
        raise TkError(f"{found.name} has no roofline: {e}") from None
    flops = sum(amounts.number(k, sizes) for k in ("matrix", "vector", "special"))
    bytes_ = evaluate(amounts.bytes(), sizes)
    facts = {"device": machine.title, "at best": _time(seconds), "bound by": bound}
    if out is not None:
        from tkpy.pipeline.picture import roofline

        points = {found.name: (flops / bytes_, flops / seconds)}
        drawn = roofline(points, machine, dtype, out.with_suffix(""))
        facts["drawn"] = " ".join(map(str, drawn))
    return facts


def _time(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-9:.3g} ns"
