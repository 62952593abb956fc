"""Hypothesis strategies from a signature: a ``Plan`` in, ``Example``s out."""

from __future__ import annotations

from hypothesis import strategies as st

from tkpy.testing.data import KINDS, LAYOUTS, UNIT_LAYOUTS
from tkpy.testing.plan import Example, Infeasible, Plan, Recipe, Setting, _shape

_FLOAT_KINDS = [*KINDS[:2], *KINDS, "normal"]
_INTEGER_KINDS = ["normal", "zeros", "ones", "normal"]


@st.composite
def examples(draw, plan: Plan) -> Example:
    """Calls of ``plan.kernel``. Everything is drawn from short lists whose first entry is the
    simplest, so that a failing example shrinks to a small and plain one."""
    setting = draw(st.sampled_from(plan.settings))
    pick = lambda options, name: draw(st.sampled_from(options), label=name)  # noqa: E731
    try:
        sizes = plan.draw_sizes(setting, pick)
    except Infeasible:  # the setting was drawn with other pools; its own sizes always do
        sizes = plan.draw_sizes(setting, pick, static_pool=[v for _, v in setting.static] or None)
    scalars = plan.draw_scalars(setting, sizes, pick)
    seed = draw(st.sampled_from(range(4096)), label="seed")
    recipes = {}
    open_ = not setting.unit  # no tensor is strided within its rows yet
    for k, p in enumerate(plan.signature.inputs):
        if not plan.given(setting, p):
            continue
        shape = _shape(p.spec, sizes)
        kinds = _kinds(plan, p, setting)
        layouts = _layouts(plan, p, setting.unit, open_, shape)
        open_ = open_ and not set(layouts) <= {"transposed", "strided"}
        recipes[p.name] = Recipe(
            draw(st.sampled_from(kinds)), seed * 16 + k, draw(st.sampled_from(layouts))
        )
    return Example(setting, sizes, scalars, recipes, draw(st.sampled_from((0, 1))))


def _kinds(plan: Plan, p, setting: Setting) -> list[str]:
    if not plan.dtype_of(p.spec, setting).is_float:
        return _INTEGER_KINDS
    allowed = plan.special is True or (plan.special is not False and p.name in plan.special)
    return _FLOAT_KINDS if allowed else [k for k in _FLOAT_KINDS if k != "special"]


def _layouts(plan: Plan, p, unit: bool, must: bool, shape: tuple[int, ...]) -> list[str]:
    """``must``: this tensor makes the variant the one for any innermost stride, if it can."""
    if must and shape and shape[-1] > 1:
        return ["transposed", "strided"] if len(shape) > 1 and shape[-2] > 1 else ["strided"]
    out = list(UNIT_LAYOUTS if unit else LAYOUTS)
    if p.spec.role == "inout" or p.name in plan.domains or len(shape) < 2:
        out.remove("expanded")
    return out
