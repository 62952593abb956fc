"""How a GPU runs a kernel's tasks and loops: what the printer writes beyond what is computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Decided for one variant and one machine.

    machine: "sm_80", "sm_90", "sm_100", "gfx942".
    described: tiles move through tensor descriptors (bulk copies) where their places allow it.
    specialise: the pipelined loop is split by warp into a producer and consumers.
    persistent: the grid has as many programs as the device holds; each walks over tasks.
    super_m: rows of tasks that are walked together.
    stages, warps: of the pipelined loop, and of a program.
    blocks: programs on a multiprocessor.
    notes: what was asked for and is not done on this machine, and why.
    """

    machine: str
    described: bool = False
    specialise: bool = False
    persistent: bool = False
    super_m: int = 1
    stages: int = 1
    warps: int = 4
    blocks: int = 1
    notes: tuple[str, ...] = ()
