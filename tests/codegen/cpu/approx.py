"""Values that a program may have: numbers next to a bound of the error that its precision allows.

Floats are evaluated in fp64, and the bound is carried from op to op: rounding adds to it, exp
magnifies it, and whatever a decision within that error could turn (a comparison, a truncation to an
integer, an argmax) is unknown from there on. So exact ops are held exactly and others to what
rounding permits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INTS = {"i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "u8": np.uint8,
        "u16": np.uint16, "u32": np.uint32, "u64": np.uint64}  # fmt: skip
# (half the spacing at 1, half the smallest subnormal, largest number)
FLOATS = {"f16": (2.0**-11, 2.0**-25, 65504.0), "bf16": (2.0**-8, 2.0**-134, 3.38e38),
          "f32": (2.0**-24, 2.0**-150, 3.4e38), "f64": (2.0**-52, 0.0, 1e300)}  # fmt: skip
NAMES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "i1": "int1"}
NAMES |= {k: k.replace("u", "uint").replace("i", "int", 1) if k[0] == "i" else "uint" + k[1:]
          for k in INTS}  # fmt: skip
UNKNOWN = np.inf


@dataclass
class V:
    """What a variable may be: within ``err`` of ``x``, elementwise; unknown where err is inf."""

    x: np.ndarray
    err: np.ndarray

    @property
    def known(self) -> np.ndarray:
        return np.isfinite(self.err)


def exact(x) -> V:
    x = np.asarray(x)
    return V(x, np.zeros(x.shape))


def rounded(x, err, dtype: str, ops: float = 1.0) -> V:
    """A float result of ``ops`` roundings of size |x|."""
    eps, tiny, top = FLOATS[dtype]
    x, err = np.asarray(x, np.float64), np.asarray(err, np.float64)
    err = err + ops * (eps * (np.abs(x) + err) + tiny)
    bad = ~np.isfinite(x) | ~np.isfinite(err) | (np.abs(x) + err > top)
    return V(np.where(bad, 0.0, x), np.where(bad, UNKNOWN, err))


def tainted(x, *sources: V) -> V:
    """An exact result that is unknown where any source is not certain to the last bit."""
    err = np.zeros(np.shape(x))
    for s in sources:
        err = err + np.where(s.err > 0, UNKNOWN, 0.0)
    return V(np.asarray(x), np.broadcast_to(err, np.shape(x)).copy())


def known_if(v: V, ok) -> V:
    return V(v.x, np.where(ok, v.err, UNKNOWN))


def multiply(v: V, w: V, dtype: str) -> V:
    sure = v.known & w.known
    a, b = (np.where(t.known, t.err, 0.0) for t in (v, w))
    err = np.abs(v.x) * b + np.abs(w.x) * a + a * b
    return known_if(rounded(v.x * w.x, err, dtype), sure)


def divide(v: V, w: V, dtype: str) -> V:
    """v / (|w| + 1), which is narrow floats' division in fp32 and rounded last."""
    sure = v.known & w.known
    a, b = (np.where(t.known, t.err, 0.0) for t in (v, w))
    below = rounded(np.abs(w.x) + 1, b, dtype)
    low = np.maximum(below.x - np.where(below.known, below.err, 0), 0.5)
    err = (a + np.abs(v.x) * np.where(below.known, below.err, 0) / low) / low
    return known_if(rounded(v.x / below.x, err, dtype, 2), sure & below.known)


def convert(v: V, src: str, dst: str) -> V:
    """``.to()`` between any two types."""
    if dst == "i1":
        return known_if(exact(v.x != 0), (v.err == 0) | (np.abs(v.x) > v.err))
    if src not in FLOATS:
        if dst in INTS:
            return V(v.x.astype(INTS[dst]), v.err)
        wide = v.x.astype(np.float64)
        whole = exact(wide)
        small = np.abs(wide) <= 1 / FLOATS[dst][0] / 2
        loose = rounded(wide, np.abs(wide) * 2.0**-53, dst)
        out = V(np.where(small, wide, loose.x), np.where(small, whole.err, loose.err))
        return known_if(out, v.known)
    if dst in FLOATS:
        if FLOATS[dst][0] < FLOATS[src][0] and FLOATS[dst][2] >= FLOATS[src][2]:
            return v
        return rounded(v.x, v.err, dst)
    info = np.iinfo(INTS[dst])
    low, high = np.trunc(v.x - v.err), np.trunc(v.x + v.err)
    fits = (low >= max(info.min, -(2.0**62))) & (high <= min(info.max, 2.0**62)) & (low == high)
    return known_if(exact(np.where(fits, v.x, 0).astype(INTS[dst])), fits)
