"""Hypothesis strategies from a signature: a ``Plan`` in, ``Example``s out.

Hypothesis supplies bytes and shrinks them; ``Choices`` reads them. The last eight seed a random
generator that makes every choice from a weighted list, so examples are spread as this file says
(an engine that favours small and repeated values would spend most of them on empty tensors). The
others are caps, a byte a choice: an option further right in its list than its cap is replaced by
the one at the cap. Lists begin with what is simplest, so bytes that shrink make examples that
shrink, one choice at a time, the others unchanged.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st

from tkpy.testing.data import KINDS, LAYOUTS, UNIT_LAYOUTS
from tkpy.testing.plan import Example, Infeasible, Plan, Recipe, Setting, _shape

_SEED_BYTES = 8
_KIND_WEIGHTS = {
    "integers": 1.5, "normal": 4.0, "zeros": 0.4, "ones": 0.5, "onehot": 0.8, "ties": 0.8,
    "big": 1.5, "tiny": 1.0, "mixed": 2.0, "special": 0.6,
}  # fmt: skip
_INTEGER_WEIGHTS = {"normal": 4.0, "zeros": 1.0, "ones": 1.0}

Option = TypeVar("Option")


class Choices:
    """Reads choices from bytes; see the module's text."""

    def __init__(self, raw: bytes):
        self.rng = random.Random(raw[-_SEED_BYTES:])
        self.caps = iter(raw[:-_SEED_BYTES])

    def pick(self, options: Sequence[Option], weights: Sequence[float] | None = None) -> Option:
        (target,) = self.rng.choices(range(len(options)), weights)
        return options[min(target, next(self.caps, 255))]


def bytes_for(plan: Plan) -> st.SearchStrategy[bytes]:
    """What ``Choices`` reads a call of ``plan.kernel`` from."""
    count = 3 + len(plan.signature.dims) + 3 * len(plan.signature.parameters)
    size = _SEED_BYTES + count
    return st.binary(min_size=size, max_size=size)


def example(plan: Plan, choices: Choices) -> Example:
    """One example, chosen by ``choices``."""
    setting = plan.setting(choices.pick(range(len(plan.drafts))))
    try:
        sizes = plan.draw_sizes(setting, choices.pick)
    except Infeasible:  # the setting was drawn with other pools; its own sizes always do
        sizes = plan.draw_sizes(setting, choices.pick, static_pool=True)
    scalars = plan.draw_scalars(setting, sizes, choices.pick)
    seed = choices.pick(range(256))
    guard = choices.pick((0, 1))
    recipes = {}
    strided = setting.unit  # whether the variant is already the one for its innermost strides
    for k, p in enumerate(plan.signature.inputs):
        if not plan.given(setting, p):
            continue
        kinds = _kinds(plan, p, setting)
        layouts = _layouts(
            plan, p, setting.unit, not strided, _shape(p.spec, {**dict(setting.constants), **sizes})
        )
        strided = strided or set(layouts) <= {"transposed", "strided"}
        kind = choices.pick(list(kinds), list(kinds.values()))
        recipes[p.name] = Recipe(kind, seed * 16 + k, choices.pick(layouts))
    return Example(setting, sizes, scalars, recipes, guard)


def _kinds(plan: Plan, p, setting: Setting) -> dict[str, float]:
    if not plan.dtype_of(p.spec, setting).inexact:
        return _INTEGER_WEIGHTS
    allowed = plan.special is True or (plan.special is not False and p.name in plan.special)
    return {k: _KIND_WEIGHTS[k] for k in KINDS if allowed or k != "special"}


def _layouts(plan: Plan, p, unit: bool, must: bool, shape: tuple[int, ...]) -> list[str]:
    """``must``: this tensor makes the variant the one for any innermost stride, if it can."""
    if must and shape and shape[-1] > 1:
        return ["transposed", "strided"] if len(shape) > 1 and shape[-2] > 1 else ["strided"]
    out = list(UNIT_LAYOUTS if unit else LAYOUTS)
    if p.spec.role == "inout" or p.name in plan.domains or len(shape) < 2:
        out.remove("expanded")
    return out
