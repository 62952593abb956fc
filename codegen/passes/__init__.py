"""Passes over tile IR, in the order a kernel goes through them."""

from __future__ import annotations

from collections.abc import Callable

from codegen.ir import Function
from codegen.passes.attach import drop_detached
from codegen.passes.bounds import drop_proven_checks
from codegen.passes.cse import share_common
from codegen.passes.dce import drop_dead
from codegen.passes.describe import describe_accesses
from codegen.passes.fold import fold
from codegen.passes.licm import hoist_invariant
from codegen.passes.masks import join_masks
from codegen.passes.neutral import neutralise
from codegen.passes.once import inline_single_trips
from codegen.passes.split import split_ragged

#: (name, pass) in order; ``tkpy show --stage tile`` prints what the last one leaves.
PIPELINE: list[tuple[str, Callable[[Function], None]]] = [
    ("attach", drop_detached),
    ("fold", fold),
    ("once", inline_single_trips),
    ("cse", share_common),
    ("bounds", drop_proven_checks),
    ("licm", hoist_invariant),
    ("describe", describe_accesses),
    ("split", split_ragged),
    ("bounds", drop_proven_checks),
    ("cse", share_common),
    ("masks", join_masks),
    ("dce", drop_dead),
]


def optimise(
    fn: Function,
    poison: bool = False,
    watch: Callable[[str, Function], None] | None = None,
) -> Function:
    """Run the pipeline on ``fn`` in place; ``watch`` is called with each pass's name after it.

    With ``poison`` no knowledge of what dead elements hold is used, so every neutral element
    that a result depends on is put there explicitly.
    """
    for name, run in PIPELINE:
        run(fn)
        if watch:
            watch(name, fn)
    neutralise(fn, trust=not poison)
    if watch:
        watch("neutral", fn)
    share_common(fn)
    drop_dead(fn)
    if watch:
        watch("dce", fn)
    return fn
