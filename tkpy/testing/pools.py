"""What sizes, scalars and constants are drawn from: short lists, the simplest first."""

from __future__ import annotations

from collections.abc import Iterable

from codegen.ir import DTYPES
from tkpy.errors import TkError
from tkpy.signature import FLOATS, REQUIRED, TORCH_NAMES, DType
from tkpy.testing.domains import Range

#: Sizes that no tile side is known for.
SMALL = [1, 2, 3, 5, 0]
#: Sizes that may be tile sides, and so are compiled in.
STATIC = [16, 1, 40, 17, 64, 7, 33, 48, 80]


def float_types(given: Iterable[object] | None) -> list[DType]:
    names = {f"torch.{TORCH_NAMES[d.name]}": d for d in FLOATS}
    if given is None:
        return list(FLOATS)
    found = [d if isinstance(d, DType) else names.get(str(d), DTYPES.get(str(d))) for d in given]
    if not found or any(d not in FLOATS for d in found):
        raise TkError(f"dtypes are float32, bfloat16 and float16, not {list(given)}")
    return found  # type: ignore[return-value]


def constant_values(p) -> list[object]:
    spec, default = p.spec, p.default
    first = [] if default is REQUIRED else [default]
    if spec.choices:
        more: list[object] = list(spec.choices)
    elif spec.type is bool:
        more = [False, True]
    elif spec.type is int and (spec.optional or default is None):
        more = [None, 16, 32]
    elif spec.type is int and not first:
        more = [16, 32, 64]
    elif spec.type is float and not first:
        more = [1.0, 0.5]
    else:
        more = []
    if spec.optional:
        more = [None, *more]
    return list(dict.fromkeys([*first, *more])) or [spec.type()]


def around(sides: set[int]) -> list[int]:
    """Small numbers, then one less, equal and one more than each side, then several sides."""
    out = [1, 2, 3, 7]
    for s in sorted(sides):
        out += [s - 1, s, s + 1]
    largest = max(sides)
    out += [2 * largest, 2 * largest + 3, 0] if largest <= 64 else [0]
    return list(dict.fromkeys(out))


def weight(size: int) -> float:
    """Empty tensors are legal but say little; two tiles say more than one."""
    return 0.08 if size == 0 else 2.0 if size > 64 else 1.0


def float_options(p, range_: Range) -> list[float]:
    default = [p.default] if isinstance(p.default, int | float) else []
    base = [*default, 1.0, 0.5, 0.125, 2.0, -1.5, 0.0, 1e-5]
    low, high = range_.low, range_.high
    fits = [v for v in base if (low is None or v >= low) and (high is None or v <= high)]
    if low is not None and high is not None:
        fits += [(low + high) / 2, low, high]
    elif low is not None:
        fits += [low + 1.0, low]
    elif high is not None:
        fits += [high - 1.0, high]
    return list(dict.fromkeys(float(v) for v in fits))
