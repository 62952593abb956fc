"""Random numbers by counter: Philox-4x32-10 of a seed and an offset, with no state in between.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
The key is the seed's two halves, the counter (low, high, 0, 0) of the offset's two halves, as in
``triton.language.rand``; a number depends on nothing but the two.
"""

from __future__ import annotations

import numpy as np

from codegen.ir import Function, Op, Type, f32, u32
from codegen.ops.base import ATOM, LOWEST, IRError, OpDef, Text, says

#: What the words become: (Triton's function, the dtype). "word0" to "word3" are the words as such.
WORDS = tuple(f"word{k}" for k in range(4))
FORMS = {"uniform": ("tl.rand", f32), "normal": ("tl.randn", f32)}


def philox(counter, key):
    """The four words of Philox-4x32-10.

    Args:
        counter: four uint32 arrays of one shape. key: two uint32 arrays that broadcast with them.
    """
    c = [np.asarray(x, np.uint64) for x in counter]
    k = [np.asarray(x, np.uint64) for x in key]
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> half) ^ c[1] ^ k[0], b & low, (a >> half) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return [x.astype(np.uint32) for x in c]


def _infer(fn: Function, op: Op) -> list[Type]:
    seed, offset = op.operands
    if seed.type.rank or seed.type.dtype.kind != "int":
        raise IRError(
            f"a seed is an integer scalar: {says(seed, 'it')}", "a parameter seed: tk.i64, say"
        )
    if not offset.type.rank or offset.type.dtype.kind != "int" or offset.type.dtype.bits < 32:
        raise IRError(
            f"offsets are a tile or vector of 32- or 64-bit integers: {says(offset, 'it')}",
            "tk.offsets(x, coord, shape=...) numbers the elements of a tensor",
        )
    form = op.attrs["form"]
    return [offset.type.like(dtype=u32 if form in WORDS else FORMS[form][1])]


def _emit(e, op: Op) -> Text:
    seed, offset = op.operands
    arguments = f"{e.ref(seed, LOWEST)}, {e.ref(offset, LOWEST)}"
    form = op.attrs["form"]
    if form in FORMS:
        return f"{FORMS[form][0]}({arguments})", ATOM
    return f"tl.randint4x({arguments})[{WORDS.index(form)}]", ATOM


def _unit(word):
    """[0, 1) from a word, as Triton makes it: the sign folds over, 31 bits remain."""
    signed = word.astype(np.int32).astype(np.int64)
    folded = np.where(signed < 0, -signed - 1, signed).astype(np.float32)
    return folded * np.float32(4.6566127342e-10)


def _numpy(op: Op, seed, offset):
    low = np.uint64(0xFFFFFFFF)
    wide = offset.dtype.itemsize == 8
    counter = offset.astype(np.uint64)
    high = counter >> np.uint64(32) if wide else np.zeros_like(counter)
    number = int(seed) % 2**64
    zero = np.zeros_like(counter)
    key = (np.uint64(number & 0xFFFFFFFF), np.uint64(number >> 32))
    words = philox((counter & low, high, zero, zero), key)
    form = op.attrs["form"]
    if form in WORDS:
        return words[WORDS.index(form)]
    u1, u2 = _unit(words[0]).astype(np.float64), _unit(words[1]).astype(np.float64)
    if form == "uniform":
        return u1
    return np.sqrt(-2 * np.log(np.maximum(1e-7, u1))) * np.cos(6.283185307179586 * u2)


RANDOM = OpDef("random", _infer, _emit, _numpy)
