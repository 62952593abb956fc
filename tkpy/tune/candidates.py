"""What can be chosen in a kernel: keyword-only integers such as ``rows``, warps and stages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from tkpy.errors import TkError
from tkpy.kernel import Kernel
from tkpy.signature import ConstSpec

#: Factors of a default that are tried, nearest first.
_STEPS = (1, 2, 0.5, 4, 0.25, 8)
SMALLEST, LARGEST = 16, 1024
WARPS, STAGES = (4, 8), (2, 3, 4)
#: More candidates than this are not modelled; those nearest to the defaults are.
MOST = 48

Choice = dict[str, int]


def knobs(kernel: Kernel, taken: Mapping[str, object] = {}) -> dict[str, int]:
    """The tile sizes of a kernel that a call leaves open, with their defaults.

    They are the keyword-only ``int`` parameters whose default is a multiple of 16.
    """
    return {
        p.name: p.default
        for p in kernel.signature.constants
        if isinstance(p.spec, ConstSpec)
        and p.spec.type is int
        and not p.spec.choices
        and isinstance(p.default, int)
        and not isinstance(p.default, bool)
        and p.default >= SMALLEST
        and p.default % 16 == 0
        and p.name not in taken
    }


def candidates(
    kernel: Kernel,
    taken: Mapping[str, object],
    given: Mapping[str, Sequence[int]] | None = None,
    gpu: bool = False,
) -> list[Choice]:
    """Choices, the defaults first and then those that differ least from them.

    Args:
        taken: what the call gives itself.
        given: values to try, of knobs or of ``num_warps`` and ``num_stages``; None: powers of two
            around each default, and on a GPU the usual warps and stages.

    Raises TkError for a name that is no knob, or for no knobs at all.
    """
    open_ = knobs(kernel, taken)
    extra = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages}
    if given:
        unknown = sorted(set(given) - set(open_) - set(extra))
        if unknown:
            there = ", ".join(open_) or "none"
            raise TkError(f"{kernel.name} has no tile size {unknown[0]}; it leaves open: {there}")
        empty = [n for n, v in given.items() if not v]
        if empty:
            raise TkError(f"{kernel.name}: no values to try for {empty[0]}")
        for name, tried in given.items():
            wrong = [v for v in tried if isinstance(v, bool) or not isinstance(v, int) or v < 1]
            if wrong:
                raise TkError(f"{kernel.name}: {name}={wrong[0]!r} is not a positive whole number")
        values = {n: list(dict.fromkeys(v)) for n, v in given.items()}
        default = {n: {**open_, **extra}[n] for n in values}
    else:
        default = dict(open_)
        values = {n: list(_around(d)) for n, d in open_.items()}
        if gpu and kernel.template is None:
            default |= extra
            values |= {"num_warps": list(WARPS), "num_stages": list(STAGES)}
    if not values:
        raise TkError(
            f"{kernel.name} leaves nothing to choose\n"
            "  fix: a keyword-only tile size, such as rows: int = 64"
        )
    every = [dict(zip(values, c, strict=True)) for c in itertools.product(*values.values())]
    every.sort(key=lambda c: _distance(c, default))
    return every[:MOST]


def _around(default: int) -> Iterator[int]:
    for step in _STEPS:
        value = int(default * step)
        if SMALLEST <= value <= LARGEST and value % 16 == 0:
            yield value


def _distance(choice: Choice, default: Mapping[str, int]) -> float:
    return sum(abs(math.log2(v / default[n])) for n, v in choice.items())
