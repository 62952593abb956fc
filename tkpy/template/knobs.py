"""The knobs of a template: ThunderKittens' names in lower case, and their meaning.

Arrival counts, phases, alignment and the shared-memory budget are not among them: they follow from
the hooks. ThunderKittens 2.0, ``prototype/lcf.cuh`` and ``prototype/lcsf.cuh``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tkpy.errors import TkError

#: Stages that a ring may have; ThunderKittens keeps their phases in a word of 32 bits.
MOST_STAGES = 16
#: Stages of a ring whose depth is left open, where they fit.
USUAL_STAGES = 4


@dataclass(frozen=True)
class Template:
    """What ``tk.lcf`` or ``tk.lcsf`` was given.

    kind: "lcf" (load, compute, finish) or "lcsf" (load, compute, store, finish).
    stages: depth of the input rings (INPUT_PIPE_STAGES), None for as many as fit, up to 4.
    output_stages: depth of the output ring (OUTPUT_PIPE_STAGES).
    consumer_warps, producer_warps: NUM_CONSUMER_WARPS, NUM_PRODUCER_WARPS.
    consumer_groups: groups that share the consumer warps; 2 take turns ("ping-pong").
    blocks: programs on a multiprocessor at a time (NUM_BLOCKS).
    super_m: rows of tiles that are walked together, for operands that stay in L2.
    persistent: as many programs as the device holds walk over the tasks.
    """

    kind: str
    stages: int | None = None
    output_stages: int = 1
    consumer_warps: int = 8
    producer_warps: int = 4
    consumer_groups: int = 1
    blocks: int = 1
    super_m: int = 1
    persistent: bool = True

    def __post_init__(self):
        def number(name: str, low: int, high: int, none: bool = False) -> None:
            value = getattr(self, name)
            if none and value is None:
                return
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise TkError(f"tk.{self.kind}: {name} is {value!r}; it is {low} to {high}")

        number("stages", 1, MOST_STAGES, none=True)
        number("output_stages", 1, MOST_STAGES)
        number("blocks", 1, 32)
        number("super_m", 1, 1 << 16)
        number("consumer_groups", 1, 4)
        for name in ("consumer_warps", "producer_warps"):
            value = getattr(self, name)
            if value not in (4, 8, 12, 16):
                raise TkError(
                    f"tk.{self.kind}: {name} is {value!r}; it is 4, 8, 12 or 16\n"
                    "  fix: whole groups of four warps, which is what shares registers out"
                )
        if self.consumer_warps % self.consumer_groups or self.consumer_warps < 4 * (
            self.consumer_groups
        ):
            raise TkError(
                f"tk.{self.kind}: {self.consumer_warps} consumer warps do not make "
                f"{self.consumer_groups} groups\n  fix: consumer_warps="
                f"{4 * self.consumer_groups} or a multiple of it"
            )


@dataclass(frozen=True)
class Ring:
    """``@tk.ring`` on a load hook: its own depth, and iterations that one load serves."""

    stages: int | None = None
    every: int = 1


@dataclass(frozen=True)
class Role:
    """``@tk.role`` on a compute hook: whose values it reads, its state and its warps."""

    reads: tuple = ()
    setup: object = None
    warps: int | None = None
    stages: int = 1
