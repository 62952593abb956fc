"""The carries that a backward replays loops from: all kept, or few and the others made again.

``kernel.backward.carries`` says which; None leaves it to what follows. Keeping costs memory and the
way there and back; making again costs the loop once more, from every k-th iteration's carries:
see ``codegen.grad.tape``. What is written to memory and is larger than a cache moves at the speed
of memory; a segment is meant to stay in one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codegen.expr import text
from codegen.grad.carries import Taped
from tkpy.errors import TkError
from tkpy.pipeline.device import DEVICES, Device

#: A CPU as kernels find it: of two cores with AVX-512, at small tiles. Not measured at a call:
#: which program runs, and so the last bits of a result, must not hang on how busy a machine is.
CPU = Device(
    "cpu", "a CPU of two cores", 2, 1e9, {"f32": 150e9, "bf16": 300e9}, 30e9, 4e9, 15e9, 60e9,
    share=1.0,
)  # fmt: skip

#: Bytes that stay in the last cache.
CACHE = {"cpu": 16 << 20, "a100": 40 << 20, "h100": 50 << 20, "h200": 50 << 20, "b200": 126 << 20,
         "mi300x": 256 << 20}  # fmt: skip

#: Kept carries may take so many times what the tensors of the call take, and so many bytes anyway.
MOST_TIMES, LEAST = 2, 32 << 20


@dataclass(frozen=True)
class Choice:
    """How the carries of one loop are come by, and why.

    loop: its number among the kernel's. line: where it stands. places: its iterations. segment:
    0 if all are kept, else the iterations of a segment. saved, replayed: bytes of memory, either
    way. again: FLOPs of the loop once more. seconds: what either way takes beyond the other.
    why: in words.
    """

    loop: int
    line: int
    places: int
    segment: int
    saved: int
    replayed: int
    again: float
    seconds: tuple[float, float]
    why: str


def checked(wish: object) -> int | str | None:
    """``wish``, if it is None, "saved", "replayed" or a number of iterations; else TkError."""
    number = isinstance(wish, int) and not isinstance(wish, bool) and wish >= 1
    if not (wish is None or wish in ("saved", "replayed") or number):
        raise TkError(
            f"carries = {wish!r}\n  fix: None, 'saved', 'replayed', or after how many iterations "
            "they are kept, a number from 1 on"
        )
    return wish  # type: ignore[return-value]


def facts(loops: Sequence[Taped | Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """``loops`` as an entry of a store has them, expressions as text; or what is so already."""
    return [
        t
        if isinstance(t, Mapping)
        else {
            "loop": t.loop,
            "line": t.loc.line,
            "places": text(t.places),
            "programs": text(t.programs),
            "noted": t.noted,
            "start": t.start,
            "work": [(kind, dtype, text(e)) for (kind, dtype), e in sorted(t.work.items())],
            "cuttable": t.cuttable,
        }
        for t in loops
    ]


def choose(
    loops: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, int],
    wish: int | str | None,
    device: Device,
    tensors: int,
) -> list[Choice]:
    """A choice for each of ``loops``, which are as ``facts`` gives them.

    sizes: of the call. wish: what ``checked`` lets through. tensors: bytes of the call's tensors.
    """
    return [_choose(t, sizes, wish, device, tensors) for t in loops]


def _choose(t: Mapping[str, Any], sizes, wish, device: Device, tensors: int) -> Choice:
    def number(source: str) -> int:
        return int(eval(source, {"min": min, "max": max}, dict(sizes)))

    places, programs = max(number(t["places"]), 0), max(number(t["programs"]), 0)
    noted, start = t["noted"], t["start"]
    # Room for a segment's carries and for those at the starts of segments is least at the root.
    best = 1 << max(round(math.log2(max(places * start / noted, 1)) / 2), 0)
    k = wish if isinstance(wish, int) else best
    segments = -(-places // k)
    saved, replayed = programs * places * noted, programs * (segments * start + k * noted)
    again, seconds = 0.0, 0.0
    for kind, dtype, source in t["work"]:
        amount = programs * places * number(source)
        again += 0 if kind in ("load", "store") else amount
        seconds += amount / _rate(device, kind, dtype)
    near = CACHE.get(device.name, CACHE["h100"])
    keeping = 2 * saved / (device.l2 if saved <= near else device.dram)
    making = seconds + 2 * programs * places * noted / device.l2
    making += 2 * programs * segments * start / device.dram
    limit = max(MOST_TIMES * tensors, LEAST)
    segment, why = 0, ""
    if not t["cuttable"]:
        why = "carries that are neither floats nor integers are not kept"
    elif k >= places:
        why = "the loop is short"
    elif wish == "saved" or wish == "replayed" or isinstance(wish, int):
        segment, why = (0 if wish == "saved" else k), "asked for"
    elif saved > limit and replayed < saved:
        segment, why = k, f"more than {_bytes(limit)} would be kept"
    elif making < keeping:
        segment, why = k, "making them again is faster"
    else:
        why = "keeping them is faster"
    return Choice(
        t["loop"], t["line"], places, segment, saved, replayed, again, (keeping, making), why
    )


def _rate(device: Device, kind: str, dtype: str) -> float:
    if kind == "matrix":
        return device.products(dtype)
    return {"vector": device.vector, "special": device.special}.get(kind, device.l2)


def _bytes(n: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if n < 1024 or unit == "GB":
            return f"{n:.3g} {unit}"
        n /= 1024
    raise AssertionError


def describe(c: Choice) -> str:
    """A choice as a sentence or two."""
    how = f"one in {c.segment} kept, the others made again" if c.segment else "all kept"
    keeping, making = (f"{s * 1e3:.3g} ms" for s in c.seconds)
    return (
        f"carries of the loop in line {c.line}, {c.places} iterations: {how}: {c.why}. Kept: "
        f"{_bytes(c.saved)}, {keeping}; made again: {_bytes(c.replayed)}, {c.again:.3g} FLOPs, "
        f"{making}"
    )


def rates(target: str) -> Device:
    """What stands for the device of a call: "cpu", or a GPU of the architecture ``target``."""
    if target == "cpu":
        return CPU
    from tkpy.template.proof import DEVICES as BY_TARGET

    return DEVICES[BY_TARGET[target]]


__all__ = ["CPU", "Choice", "checked", "choose", "describe", "facts", "rates"]
