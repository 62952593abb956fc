"""``@tk.lcf`` and ``@tk.lcsf``: kernels written as hooks over rings of stages."""

from __future__ import annotations

from collections.abc import Callable

from tkpy.errors import TkError
from tkpy.kernel import Kernel, conditions
from tkpy.sides import Sides
from tkpy.template.knobs import Template


def _decorator(kind: str, fn, where, autocast: bool, sides, knobs: dict) -> Callable:
    template = Template(kind, **knobs)

    def decorate(f: Callable) -> Kernel:
        warps, stages = template.consumer_warps, template.stages or 3
        return Kernel(f, conditions(where), warps, stages, template, autocast, *sides)

    return decorate(fn) if fn is not None else decorate


def lcf(
    fn: Callable | None = None,
    *,
    where: str | list[str] | tuple[str, ...] = (),
    stages: int | None = None,
    input_stages: int | None = None,
    consumer_warps: int = 8,
    producer_warps: int = 4,
    consumer_groups: int = 1,
    blocks: int = 1,
    super_m: int = 1,
    persistent: bool = True,
    autocast: bool = False,
    gpu: Sides | None = None,
    gpu_backward: Sides | None = None,
):
    """Decorator: a kernel of load, compute and finish over rings of stages; see ``tk.run``.

    Args:
        where: preconditions, as for ``tk.kernel``.
        stages, input_stages: depth of the input rings (INPUT_PIPE_STAGES), 1 to 16; as many as
            fit, up to 4, if left open.
        consumer_warps, producer_warps: NUM_CONSUMER_WARPS, NUM_PRODUCER_WARPS.
        consumer_groups: groups among the consumer warps; 2 take turns on the matrix unit.
        blocks: programs on a multiprocessor (NUM_BLOCKS), which divide its shared memory.
        super_m: rows of tasks that are walked together, so that operands stay in L2.
        persistent: as many programs as the device holds walk over the tasks.
        autocast: as for ``tk.kernel``.
        gpu, gpu_backward: as for ``tk.kernel``.

    Raises:
        TkError: for a knob out of its range, and as ``tk.kernel`` does.
    """
    knobs = dict(
        stages=_one("lcf", stages, input_stages), consumer_warps=consumer_warps,
        producer_warps=producer_warps, consumer_groups=consumer_groups, blocks=blocks,
        super_m=super_m, persistent=persistent,
    )  # fmt: skip
    return _decorator("lcf", fn, where, autocast, (gpu, gpu_backward), knobs)


def lcsf(
    fn: Callable | None = None,
    *,
    where: str | list[str] | tuple[str, ...] = (),
    stages: int | None = None,
    input_stages: int | None = None,
    output_stages: int = 1,
    consumer_warps: int = 8,
    producer_warps: int = 4,
    consumer_groups: int = 1,
    blocks: int = 1,
    super_m: int = 1,
    persistent: bool = True,
    autocast: bool = False,
    gpu: Sides | None = None,
    gpu_backward: Sides | None = None,
):
    """Decorator: ``tk.lcf`` that also stores, every iteration, what compute returns.

    ``output_stages`` is the depth of the output ring (OUTPUT_PIPE_STAGES), 1 to 16.
    """
    knobs = dict(
        stages=_one("lcsf", stages, input_stages), output_stages=output_stages,
        consumer_warps=consumer_warps, producer_warps=producer_warps,
        consumer_groups=consumer_groups, blocks=blocks, super_m=super_m, persistent=persistent,
    )  # fmt: skip
    return _decorator("lcsf", fn, where, autocast, (gpu, gpu_backward), knobs)


def _one(kind: str, stages: int | None, input_stages: int | None) -> int | None:
    if stages is not None and input_stages is not None:
        raise TkError(f"tk.{kind}: stages and input_stages are one knob; give one of them")
    return stages if stages is not None else input_stages
