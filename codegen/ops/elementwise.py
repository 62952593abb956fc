"""Maps: one value for one element. Vectors broadcast by orientation, scalars everywhere."""

from __future__ import annotations

import numpy as np

from codegen.ir import Axis, DType, Function, Op, Type, Value, bool_, index
from codegen.ops.base import ADD, AND, ATOM, CMP, MUL, OR, UNARY, IRError, OpDef, Text, no_fp8, says


def broadcast_types(operands: list[Value]) -> tuple[tuple[Axis, ...], str | None]:
    """Axes and orientation of an elementwise result.

    A col_vec spreads along rows' elements, a row_vec along columns', an undecided vector along
    the last axis as in PyTorch; a col_vec with a row_vec makes a tile.
    """
    tiles = [v for v in operands if v.type.rank == 2]
    vectors = [v for v in operands if v.type.rank == 1]
    if tiles:
        rows, cols = tiles[0].type.axes
        for v in tiles[1:]:
            if not (rows.same_shape(v.type.axes[0]) and cols.same_shape(v.type.axes[1])):
                raise IRError(
                    f"shapes differ: {says(tiles[0], 'the left operand')} and "
                    f"{says(v, 'the right operand')}",
                    "tiles of one operation have equal shapes; transpose, subtile or load to match",
                )
            rows, cols = rows.meet(v.type.axes[0]), cols.meet(v.type.axes[1])
        for v in vectors:
            if v.type.orient == "?":
                continue
            along_rows = v.type.orient == "col"
            target = rows if along_rows else cols
            if not target.same_shape(v.type.axes[0]):
                other = cols if along_rows else rows
                hint = (
                    "it has one element a row: mark it with tk.col_vec(v)"
                    if other.same_shape(v.type.axes[0]) and not along_rows
                    else "the vector's length must be the tile's number of "
                    + ("rows" if along_rows else "columns")
                )
                raise IRError(
                    f"{says(tiles[0], 'the tile')} and {says(v, 'the vector')} do not broadcast",
                    hint,
                )
            if along_rows:
                rows = rows.meet(v.type.axes[0])
            else:
                cols = cols.meet(v.type.axes[0])
        return (rows, cols), None
    if not vectors:
        return (), None
    orients = {v.type.orient for v in vectors} - {None}
    if {"col", "row"} <= orients:
        cols_ = [v for v in vectors if v.type.orient == "col"]
        rows_ = [v for v in vectors if v.type.orient != "col"]
        return (_meet_vectors(cols_), _meet_vectors(rows_)), None
    orient = orients.pop() if len(orients) == 1 else ("?" if orients else None)
    if "?" in {v.type.orient for v in vectors}:
        orient = next((o for o in ("col", "row") if o in {v.type.orient for v in vectors}), "?")
    return (_meet_vectors(vectors),), orient


def _meet_vectors(vectors: list[Value]) -> Axis:
    out = vectors[0].type.axes[0]
    for v in vectors[1:]:
        if not out.same_shape(v.type.axes[0]):
            raise IRError(
                f"lengths differ: {says(vectors[0], 'the left operand')} and "
                f"{says(v, 'the right operand')}",
                "vectors of one operation have equal lengths",
            )
        out = out.meet(v.type.axes[0])
    return out


def common_dtype(operands: list[Value]) -> DType:
    """Tiles and vectors decide and must agree; scalars adapt to them."""
    strong = [v for v in operands if v.type.rank] or operands
    first = strong[0]
    for v in strong[1:]:
        if v.type.dtype != first.type.dtype:
            if not first.type.rank:  # scalars among themselves: float beats int
                first = max(first, v, key=lambda s: (s.type.dtype.is_float, s.type.dtype.bits))
                continue
            wide = max(first.type.dtype, v.type.dtype, key=lambda d: (d.is_float, d.bits))
            raise IRError(
                f"element types differ: {says(first, 'the left operand')} and "
                f"{says(v, 'the right operand')}",
                f"convert one of them, for example with tk.cast(x, tk.{wide})",
            )
    for v in operands:
        if not v.type.rank and v.type.dtype.is_float and not first.type.dtype.is_float:
            raise IRError(
                f"{says(first, 'the tile')} does not mix with a float scalar",
                "convert the tile with tk.cast(x, tk.f32)",
            )
    return first.type.dtype


def integers(dtype: DType) -> type[np.generic]:
    """The numpy type in which arithmetic on ``dtype`` wraps as on the machine.

    Numbers that index expressions know have no width of their own.
    """
    return np.int64 if dtype == index else np.dtype(dtype.triton).type


def _infer(fn: Function, op: Op, result: str, allowed: str) -> list[Type]:
    values = op.operands
    axes, orient = broadcast_types(values)
    no_fp8(op)
    if op.kind == "where":
        if values[0].type.dtype != bool_:
            raise IRError(
                f"the condition of where must be bool: {says(values[0], 'it')}",
                "compare first, for example tk.where(x > 0, a, b)",
            )
        dtype = common_dtype(values[1:])
    else:
        dtype = common_dtype(values)
        kinds = {"f": "float", "i": "int", "b": "bool"}
        if dtype.kind not in {kinds[k] for k in allowed}:
            names = " or ".join(kinds[k] for k in allowed)
            fix = {
                "div": "use // for integers, or tk.cast(x, tk.f32)",
                "neg": "use ~ for bool",
            }.get(op.kind, f"convert with tk.cast(x, tk.{'f32' if 'f' in allowed else 'i32'})")
            raise IRError(f"{op.kind} takes {names}, and {says(values[0], 'its operand')}", fix)
    out = bool_ if result == "bool" else dtype
    return [Type(out, axes, orient)]


def operand_text(e, op: Op, value: Value, strength: int, widen: bool) -> str:
    """An operand as it stands in the expression: subscripted to broadcast, 16-bit floats in f32.

    Arithmetic on bf16 and fp16 is done in fp32 and rounded once, on every target alike.
    """
    rank = op.result.type.rank
    suffix = ""
    if rank == 2 and value.type.rank == 1:
        suffix = "[:, None]" if value.type.orient == "col" else "[None, :]"
    own = value.type.dtype
    if widen and own.is_float and own.bits == 16:
        suffix += ".to(tl.float32)"
    elif rank and not value.type.rank and value.op is not None and value.op.kind != "const":
        # To Triton a run-time scalar is a tensor like any other and would widen the tile.
        tile = op.operands[-2 if op.kind == "where" and value is op.operands[-1] else -1]
        tile = next((v for v in op.operands[op.kind == "where" :] if v.type.rank), tile)
        want, condition = tile.type.dtype, op.kind == "where" and value is op.operands[0]
        long = own.kind == "int" and (own.bits == 64 or e.long)
        narrow = own.kind == want.kind and (want.bits < own.bits or (long and want.bits < 64))
        if narrow and not condition and want.kind != "bool" and not (widen and want.is_float):
            suffix += f".to({e.dtype(want)})"
    return e.ref(value, ATOM) + suffix if suffix else e.ref(value, strength)


def _emit(e, op: Op, form: str, strength: int, widen: bool) -> Text:
    inner = {"call": 0}.get(form.split(":")[0], strength)
    parts = []
    for k, v in enumerate(op.operands):
        # The right operand of - and / needs its parentheses at equal strength.
        parts.append(operand_text(e, op, v, inner + (k > 0 and inner > 0), widen))
    dtype = op.operands[-1].type.dtype if op.kind == "where" else op.result.type.dtype
    if op.kind != "where" and op.result.type.dtype == bool_:
        widened = False
    else:
        widened = widen and dtype.is_float and dtype.bits == 16
    body = form.split(":", 1)[1].format(*parts)
    e.helper(body.split("(")[0])
    if widened:
        return f"({body}).to({e.dtype(op.result.type.dtype)})", ATOM
    return body, strength


def _row(kind, form, strength, numpy, allowed="f", result="same", widen=True) -> OpDef:
    return OpDef(
        kind,
        lambda fn, op: _infer(fn, op, result, allowed),
        lambda e, op: _emit(e, op, form, strength, widen),
        numpy,
        elementwise=True,
    )


def _erf(x):
    import math

    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _max(a, b):
    return np.fmax(a, b)  # IEEE maxNum, as on a GPU: a NaN operand is ignored


def _min(a, b):
    return np.fmin(a, b)


def _tanh_emit(e, op: Op) -> Text:
    # tanh through exp(-2|x|): exact to fp32 rounding error for large |x|; near zero, where the
    # quotient would cancel, an odd polynomial.
    x = operand_text(e, op, op.operands[0], ATOM, True)
    e.helper("tanh")
    text = f"tanh({x})"
    if op.result.type.dtype.bits == 16:
        return f"{text}.to({e.dtype(op.result.type.dtype)})", ATOM
    return text, ATOM


#        kind, Triton text, strength, meaning, operand kinds
ROWS = [
    _row("exp", "call:tl.exp({0})", ATOM, np.exp),
    _row("exp2", "call:tl.exp2({0})", ATOM, np.exp2),
    _row("log", "call:tl.log({0})", ATOM, np.log),
    _row("log2", "call:tl.log2({0})", ATOM, np.log2),
    _row("sqrt", "call:tl.sqrt({0})", ATOM, np.sqrt),
    _row("rsqrt", "call:tl.rsqrt({0})", ATOM, lambda x: 1 / np.sqrt(x)),
    _row("sin", "call:tl.sin({0})", ATOM, np.sin),
    _row("cos", "call:tl.cos({0})", ATOM, np.cos),
    _row("erf", "call:tl.erf({0})", ATOM, _erf),
    _row("sigmoid", "call:tl.sigmoid({0})", ATOM, lambda x: 1 / (1 + np.exp(-x))),
    OpDef(
        "tanh", lambda fn, op: _infer(fn, op, "same", "f"), _tanh_emit, np.tanh, elementwise=True
    ),
    _row("abs", "call:tl.abs({0})", ATOM, np.abs, "fi"),
    _row(
        "relu", "call:tl.maximum({0}, 0.0, tl.PropagateNan.ALL)", ATOM, lambda x: np.maximum(x, 0)
    ),
    _row("floor", "call:tl.floor({0})", ATOM, np.floor),
    _row("ceil", "call:tl.ceil({0})", ATOM, np.ceil),
    _row("round", "call:round_even({0})", ATOM, np.round),
    _row("trunc", "call:truncate({0})", ATOM, np.trunc),
    _row("div_rn", "call:tl.div_rn({0}, {1})", ATOM, np.divide),
    _row("neg", "op:-{0}", UNARY, np.negative, "fi"),
    _row("invert", "op:~{0}", UNARY, np.invert, "ib"),
    _row("add", "op:{0} + {1}", ADD, np.add, "fi"),
    _row("sub", "op:{0} - {1}", ADD, np.subtract, "fi"),
    _row("mul", "op:{0} * {1}", MUL, np.multiply, "fi"),
    _row("div", "op:{0} / {1}", MUL, np.divide),
    _row("floordiv", "call:floordiv({0}, {1})", ATOM, np.floor_divide, "i"),
    _row("mod", "call:floormod({0}, {1})", ATOM, np.mod, "i"),
    _row("max", "call:tl.maximum({0}, {1})", ATOM, _max, "fi"),
    _row("min", "call:tl.minimum({0}, {1})", ATOM, _min, "fi"),
    _row("and", "op:{0} & {1}", AND, np.bitwise_and, "ib"),
    _row("or", "op:{0} | {1}", OR, np.bitwise_or, "ib"),
    _row("xor", "op:{0} ^ {1}", OR, np.bitwise_xor, "ib"),
    _row("eq", "op:{0} == {1}", CMP, np.equal, "fib", "bool"),
    _row("ne", "op:{0} != {1}", CMP, np.not_equal, "fib", "bool"),
    _row("lt", "op:{0} < {1}", CMP, np.less, "fi", "bool"),
    _row("le", "op:{0} <= {1}", CMP, np.less_equal, "fi", "bool"),
    _row("gt", "op:{0} > {1}", CMP, np.greater, "fi", "bool"),
    _row("ge", "op:{0} >= {1}", CMP, np.greater_equal, "fi", "bool"),
    _row("where", "call:tl.where({0}, {1}, {2})", ATOM, np.where, "fib", widen=False),
    _row("fma", "op:{0} * {1} + {2}", ADD, lambda a, b, c: a * b + c, "fi"),
]
