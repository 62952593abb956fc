"""Matrix products of tiles. Small floats accumulate in fp32; fp32 products are exact fp32."""

from __future__ import annotations

from codegen.ir import Value
from codegen.ops.base import IRError
from tkpy.builder import current, what
from tkpy.vocabulary.verb import Verb, verb

__all__ = ["mm_AB", "mm_ABt", "mm_AtB", "mm_AtBt", "mma_AB", "mma_ABt", "mma_AtB", "mma_AtBt"]


def product(a, b, acc, ta: bool, tb: bool, precision: str):
    if precision not in ("ieee", "tf32", "tf32x3"):
        raise IRError(f"precision {precision!r} is none of 'ieee', 'tf32', 'tf32x3'")
    operands = [a, b] if acc is None else [a, b, acc]
    for v in operands:
        if not isinstance(v, Value):
            raise IRError(f"{what(v)} is not a tile", "matrix products take tiles")
    return current().op("mma", operands, {"ta": ta, "tb": tb, "precision": precision})


def _product(form: str, accumulate: bool) -> Verb:
    ta, tb = "At" in form, "Bt" in form
    shapes = f"{'KxM' if ta else 'MxK'}, {'NxK' if tb else 'KxN'}"

    if accumulate:

        def lower(a, b, acc=None, *, precision: str = "ieee"):
            return product(a, b, acc, ta, tb, precision)
    else:

        def lower(a, b, *, precision: str = "ieee"):  # type: ignore[misc]
            return product(a, b, None, ta, tb, precision)

    lower.__name__ = f"{'mma' if accumulate else 'mm'}_{form}"
    lower.__doc__ = (
        f"op(a) op(b){' + acc' if accumulate else ''} for a, b of {shapes}: an MxN tile in f32. "
        '``precision="tf32"`` allows tensor-float products of f32 operands.'
        "\n\n    8-bit operands need K of 32 or more: i8 gives i32, exactly (the sum wraps); 8-bit "
        "floats, both\n    of one type, are summed in fp32, but for 32 products at a time on "
        "Hopper, whose tensor cores\n    keep 14 bits. sm_80 has no fp8e4m3 and Triton refuses it "
        "there by name (fp8e4nv)."
    )
    return verb(lower)


mma_AB, mma_ABt = _product("AB", True), _product("ABt", True)
mma_AtB, mma_AtBt = _product("AtB", True), _product("AtBt", True)
mm_AB, mm_ABt = _product("AB", False), _product("ABt", False)
mm_AtB, mm_AtBt = _product("AtB", False), _product("AtBt", False)
