"""The host side of an emitted kernel: sizes and strides in, grid out, one launch.

The same text runs under ``tkpy`` and in an exported file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from codegen.emit import Emitted
from codegen.expr import Expr, Symbol, text
from codegen.ir import Function, Param
from codegen.schedule import Schedule
from codegen.writer import ALIGNMENT, aligned_name, filled, rows_long, stride_name


def dimension_sources(params: Sequence[Param]) -> dict[Symbol, tuple[str, int, Expr]]:
    """For each dimension where to read it: (tensor, axis, its size there as an expression).

    A size that is the bare name comes first; otherwise one that is linear in the name, such as
    ``S + 1`` or ``2 * D``.
    """
    found: dict[Symbol, tuple[str, int, Expr]] = {}
    for wanted_bare in (True, False):
        for p in params:
            for axis, size in enumerate(p.dims):
                free = size.free_symbols
                if len(free) != 1:
                    continue
                (s,) = free
                if s in found or wanted_bare != isinstance(size, Symbol):
                    continue
                if wanted_bare or (size.is_polynomial(s) and size.coeff(s, 2) == 0):
                    found[s] = (p.name, axis, size)
    return found


def solve_text(s: Symbol, size: Expr, value: str) -> str:
    """Python text of ``s`` given that ``size``, linear in ``s``, is ``value``."""
    if size == s:
        return value
    slope, offset = size.coeff(s, 1), size.coeff(s, 0)
    inner = value if offset == 0 else f"({value} - {text(offset)})"
    return inner if slope == 1 else f"{inner} // {text(slope)}"


def launcher(fn: Function, emitted: Emitted, num_warps: int, num_stages: int) -> str:
    """Source of ``launch(tensors..., scalars...)``, which reads sizes and starts the grid."""
    schedule = fn.schedule
    if schedule is not None:
        num_warps, num_stages = schedule.warps, schedule.stages
    tensors = [p for p in fn.params if p.role != "scalar"]
    scalars = [p.name for p in fn.params if p.role == "scalar"]
    used = set(emitted.arguments)
    needed = {s for s in fn.dims if s.name in used or aligned_name(s.name) in used}
    needed |= {s for _, count in fn.grid for s in count.free_symbols if s in set(fn.dims)}
    lines = complex_views(tensors)
    sources = dimension_sources(tensors)
    for s in fn.dims:
        if s in needed:
            tensor, axis, size = sources[s]
            lines.append(f"{s.name} = {solve_text(s, size, f'{tensor}.shape[{axis}]')}")
    counts = [text(count) for _, count in reversed(fn.grid)] or ["1"]
    if schedule is not None:
        counts = _scheduled(schedule, tensors[0].name, counts, lines)
    grid = "(" + ", ".join(counts) + ("," if len(counts) == 1 else "") + ")"
    lines += [f"grid = {grid}", "if min(grid) <= 0:", "    return"]
    if len(counts) > 1:
        # CUDA and HIP allow 2^31 - 1 blocks along the first axis and 65535 along the others.
        lines += [
            f"if {tensors[0].name}.is_cuda and max(grid[1:]) > 65535:",
            f'    raise ValueError(f"{fn.name}: a grid of {{grid}}: 65535 is the most along "',
            '                     "all but the last of its named dimensions")',
        ]
    arguments = []
    strides = _strides(
        tensors, emitted.arguments, {p.name for p in fn.params} | {s.name for s in fn.dims}
    )
    lines += [f"{strides[p.name]} = {p.name}.stride()" for p in tensors if p.name in strides]
    whole = rows_long((p.role, p.dims) for p in tensors) if fn.aligned else ()
    of_stride: dict[str, str] = {}
    for p in tensors:
        for d in range(len(p.dims)) if p.name in strides else ():
            name, place = stride_name(p, d), f"{strides[p.name]}[{d}]"
            of_stride.setdefault(name, place)
            of_stride.setdefault(aligned_name(name), f"{place} // {ALIGNMENT}")
    for name in emitted.arguments:
        stride = of_stride.get(name)
        size = next((s.name for s in fn.dims if name == aligned_name(s.name)), None)
        size = f"{size} // {ALIGNMENT}" if size in whole else None
        arguments.append(stride or size or re.sub(r"_ptr$", "", name))
    call = [*arguments, f"num_warps={num_warps}", f"num_stages={num_stages}"]
    lines += filled(f"{emitted.name}[grid](", call, ")").splitlines()
    head = ", ".join([p.name for p in tensors] + scalars)
    body = "\n    ".join(lines)
    return f"def launch({head}):\n    {body}\n"


def _strides(tensors: Sequence[Param], arguments: Sequence[str], taken: set[str]) -> dict[str, str]:
    """What to call the strides of those tensors of which the kernel takes some.

    Asking a tensor for all of its strides takes no longer than asking for one.
    """
    out = {}
    for p in tensors:
        every = {stride_name(p, d) for d in range(len(p.dims))}
        if every.union(map(aligned_name, every)) & set(arguments):
            name = f"{p.name}_strides"
            while name in taken:
                name += "_"
            out[p.name] = name
    return out


def complex_views(params: Sequence[Param]) -> list[str]:
    """Lines that turn complex tensors into real ones over the same memory."""
    lines = []
    for p in params:
        if p.pair and p.role == "in":
            lines.append(f"{p.name} = torch.view_as_real({p.name}.resolve_conj())")
        elif p.pair:
            lines += [
                f"if {p.name}.is_conj():",
                f'    raise ValueError("{p.name} is a lazily conjugated view: .resolve_conj()")',
                f"{p.name} = torch.view_as_real({p.name})",
            ]
    return lines


def _scheduled(schedule: Schedule, first: str, counts: list[str], lines: list[str]) -> list[str]:
    """The grid of a schedule; ``lines`` grows by what the launcher does for it.

    ``first`` is a tensor, and ``counts`` what the tasks number along each axis.
    """
    if schedule.described:
        memory = f"lambda size, _, __: torch.empty(size, dtype=torch.int8, device={first}.device)"
        lines += [
            f"if {first}.is_cuda:",
            "    # Descriptors are made in memory that Triton asks for.",
            f"    triton.set_allocator({memory})",
        ]
    if not schedule.persistent and schedule.super_m == 1:
        return counts
    lines.append(f"tasks = {' * '.join(f'({c})' for c in counts)}")
    if not schedule.persistent:
        return ["tasks"]
    lines += [
        "# As many programs as the device holds at a time; each walks over tasks.",
        f"held = torch.cuda.get_device_properties({first}.device).multi_processor_count "
        f"if {first}.is_cuda else 4",
    ]
    held = "held" if schedule.blocks == 1 else f"held * {schedule.blocks}"
    return [f"min(tasks, {held})"]


def _imports(fn: Function) -> str:
    s = fn.schedule
    scheduled = s is not None and (s.described or s.persistent)  # for memory; for the device
    return "import torch\n" if scheduled or any(p.pair for p in fn.params) else ""


def module_source(fn: Function, emitted: Emitted, num_warps: int, num_stages: int) -> str:
    """A whole module: imports, helpers, the kernel and its launcher."""
    origin = f"{fn.loc.file.rsplit('/', 1)[-1]}:{fn.loc.line}" if fn.loc.line else "tile IR"
    return (
        f'"""{fn.name}, written by tkpy from {origin}."""\n\n'
        f"{_imports(fn)}import triton\nimport triton.language as tl\n\n\n"
        f"{emitted.source}\n\n{launcher(fn, emitted, num_warps, num_stages)}"
    )
