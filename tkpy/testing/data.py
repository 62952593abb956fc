"""Test tensors: value distributions, memory layouts, ranges. Reproducible from a seed.

Every tensor that ``check`` uses can be made again with one call of ``tensor``, which is how a
failing example is written down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

#: Value distributions, simplest first: a failing example shrinks towards the left.
KINDS = (
    "integers",  # -3 to 3: sums and products are exact
    "normal",
    "zeros",
    "ones",
    "onehot",  # a single one in every row
    "ties",  # every row is one number, repeated
    "big",  # normal, times 256 (f16: times 16, so that sums of squares stay finite)
    "tiny",  # normal, times 2**-10
    "mixed",  # normal, every row at its own power of two from -8 to 8
    "special",  # normal with a few of inf, -inf, NaN, -0.0 and subnormals
)

#: Memory layouts. The first four keep the innermost stride one.
LAYOUTS = ("contiguous", "offset", "padded", "expanded", "transposed", "strided")
UNIT_LAYOUTS = LAYOUTS[:4]

_GUARD = 7  # elements around a view; odd, so that it is not aligned to anything


def tensor(
    kind: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    seed: int,
    layout: str = "contiguous",
    low: float | torch.Tensor | None = None,
    high: float | torch.Tensor | None = None,
    sorted: bool = False,
    distinct: bool = False,
    fixed: Mapping[int, int] | None = None,
) -> torch.Tensor:
    """A test tensor of ``shape`` and ``dtype``, the same for the same arguments.

    kind: one of ``KINDS``; for integers it chooses between all-lowest ("zeros"), all-highest
        ("ones") and uniform. layout: one of ``LAYOUTS`` (see ``laid_out``). low, high:
    inclusive bounds of the values. sorted: ascending along the last axis. distinct: no value
    twice. fixed: values at some indices of the first axis.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(shape)
    if dtype.is_complex:
        made = torch.view_as_complex(_floats(kind, (*shape, 2), torch.float32, generator))
    elif dtype.is_floating_point:
        made = _floats(kind, shape, dtype, generator)
        made = _bounded(made, low, high, dtype)
    elif dtype is torch.bool:
        made = torch.rand(shape, generator=generator) < 0.5
    else:
        made = _integers(kind, shape, generator, low, high, distinct)
    if layout == "expanded" and len(shape) >= 2 and made.numel():
        made = made[:1].expand(shape).clone()
    if sorted:
        made = made.sort(dim=-1).values
    for index, value in (fixed or {}).items():
        made[index] = value
    return laid_out(made.to(dtype), layout)


def _floats(kind: str, shape: tuple[int, ...], dtype: torch.dtype, g) -> torch.Tensor:
    normal = torch.randn(shape, generator=g, dtype=torch.float64)
    row = (*shape[:-1], 1)
    match kind:
        case "integers":
            return torch.randint(-3, 4, shape, generator=g).double()
        case "normal":
            return normal
        case "zeros":
            return torch.zeros(shape, dtype=torch.float64)
        case "ones":
            return torch.ones(shape, dtype=torch.float64)
        case "onehot":
            out = torch.zeros(shape, dtype=torch.float64)
            if out.numel() and shape:
                out.scatter_(-1, torch.randint(0, shape[-1], row, generator=g), 1.0)
            return out
        case "ties":
            values = torch.randint(-2, 3, row, generator=g).double() * 0.75
            return values.expand(shape).clone() if shape else values.reshape(())
        case "big":
            return normal * (16 if dtype is torch.float16 else 256)
        case "tiny":
            return normal * 2.0**-10
        case "mixed":
            limit = 4 if dtype is torch.float16 else 8
            power = torch.randint(-limit, limit + 1, row if shape else (), generator=g)
            return normal * torch.exp2(power.double())
        case "special":
            return _special(normal, dtype, g)
    raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")


def _special(values: torch.Tensor, dtype: torch.dtype, g) -> torch.Tensor:
    info = torch.finfo(dtype)
    odd = [math.inf, -math.inf, math.nan, info.tiny / 2, -0.0]
    flat = values.reshape(-1)
    if flat.numel():
        for _ in range(int(torch.randint(1, 4, (1,), generator=g))):
            where = int(torch.randint(0, flat.numel(), (1,), generator=g))
            flat[where] = odd[int(torch.randint(0, len(odd), (1,), generator=g))]
    return values


def _bounded(values: torch.Tensor, low, high, dtype: torch.dtype) -> torch.Tensor:
    """Maps values into [low, high] smoothly, then clips what rounding to ``dtype`` moved out."""
    if low is None and high is None:
        return values
    if isinstance(low, torch.Tensor):
        low = low.double()
    if isinstance(high, torch.Tensor):
        high = high.double()
    values = values.nan_to_num(nan=0.5, posinf=math.inf, neginf=-math.inf)
    if low is not None and high is not None:
        values = low + (high - low) * torch.sigmoid(values)
    elif low is not None:
        values = low + values.abs()
    else:
        values = high - values.abs()
    values = values.to(dtype).double()
    if low is not None:
        values = torch.maximum(values, torch.as_tensor(low, dtype=torch.float64))
    if high is not None:
        values = torch.minimum(values, torch.as_tensor(high, dtype=torch.float64))
    return values


def _integers(kind: str, shape: tuple[int, ...], g, low, high, distinct: bool) -> torch.Tensor:
    low = -3 if low is None and high is None else low
    if low is None:
        low = high - 12
    if high is None:
        high = low + (12 if not distinct else max(12, 2 * math.prod(shape)))
    low_t, high_t = torch.as_tensor(low), torch.as_tensor(high)
    if distinct:
        first, last = int(low_t.max()) if low_t.numel() else 0, int(high_t.min())
        count = math.prod(shape)
        return (torch.randperm(max(last - first + 1, count), generator=g)[:count] + first).reshape(
            shape
        )
    if kind == "zeros":
        return low_t.expand(shape).clone()
    if kind == "ones":
        return high_t.expand(shape).clone()
    spread = (high_t - low_t + 1).double()
    drawn = torch.rand(shape, generator=g, dtype=torch.float64)
    return torch.minimum(low_t + (drawn * spread).long(), high_t)


# --------------------------------------------------------------------------------------------
# Layouts


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers in another memory layout. What lies between and around them is NaN
    (3 in integer tensors), so that a read outside the view shows.

    offset: starts 7 elements into its buffer. padded: rows are 7 elements apart. transposed: the
    last two axes are swapped in memory. strided: every second element of a buffer. expanded:
    stride 0 along the first axis (all of it must be equal). A layout that makes no sense for the
    rank is "contiguous" or "offset".
    """
    rank = values.dim()
    if layout == "contiguous" or rank == 0:
        return values.clone(memory_format=torch.contiguous_format)
    if layout == "expanded" and rank >= 2 and values.shape[0] >= 1:
        return values[:1].contiguous().expand(values.shape)
    shape = list(values.shape)
    if layout == "padded" and rank >= 2:
        shape[-1] += _GUARD
        out = _buffer(shape, values)[..., : values.shape[-1]]
    elif layout == "transposed" and rank >= 2:
        shape[-1], shape[-2] = shape[-2], shape[-1]
        out = _buffer(shape, values).transpose(-1, -2)
    elif layout == "strided":
        shape[-1] *= 2
        out = _buffer(shape, values)[..., ::2]
    elif layout in LAYOUTS:
        out = _buffer(shape, values)
    else:
        raise ValueError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
    out.copy_(values)
    return out


def _buffer(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory of ``shape`` inside a larger buffer of guard values."""
    count = math.prod(shape)
    real = like.dtype.is_floating_point or like.is_complex()
    guard = math.nan if real else (3 if like.dtype != torch.bool else True)
    whole = torch.full((count + 2 * _GUARD,), guard, dtype=like.dtype)
    return whole[_GUARD : _GUARD + count].view(list(shape))


def storage_bytes(t: torch.Tensor) -> torch.Tensor:
    """A copy of all of ``t``'s memory, guards included."""
    return torch.tensor([], dtype=torch.uint8).set_(t.untyped_storage()).clone()
