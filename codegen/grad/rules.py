"""The adjoint of every operation: one row a kind, ``RULES``. Those of scans are in ``scans.py``.

A rule gets the operation ``op`` of the forward program, the adjoint ``g`` of its result, and a
context that knows the forward values and takes the operands' adjoints:

    x.value(k), x.wide(k), x.result()   operand k as it was, in fp32, and the result in fp32
    x.gives(k, adjoint)                 adds to operand k's adjoint, summed over what broadcast

``x.wants(k)`` tells whether operand k's adjoint matters; what nobody wants is dead code anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from codegen.ir import Op, Value, f32
from codegen.ops.base import IRError

if TYPE_CHECKING:
    from codegen.grad.reverse import Context

Rule = Callable[["Context", Op, Value], None]
RULES: dict[str, Rule] = {}


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    def register(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, fn))
        return fn

    return register


# -- arithmetic --------------------------------------------------------------------------------


@rule("add")
def _add(x, op, g):
    x.gives(0, g)
    x.gives(1, g)


@rule("sub")
def _sub(x, op, g):
    x.gives(0, g)
    if x.wants(1):
        x.gives(1, x.map("neg", g))


@rule("neg")
def _neg(x, op, g):
    x.gives(0, x.map("neg", g))


@rule("mul")
def _mul(x, op, g):
    if op.operands[0] is op.operands[1]:
        x.gives(0, x.map("mul", g, x.map("mul", x.wide(0), 2.0)))
        return
    for k in (0, 1):
        if x.wants(k):
            x.gives(k, x.map("mul", g, x.wide(1 - k)))


@rule("fma")
def _fma(x, op, g):
    for k in (0, 1):
        if x.wants(k):
            x.gives(k, x.map("mul", g, x.wide(1 - k)))
    x.gives(2, g)


@rule("div", "div_rn")
def _div(x, op, g):
    part = x.map("div", g, x.wide(1))
    x.gives(0, part)
    if x.wants(1):
        x.gives(1, x.map("neg", x.map("mul", part, x.result())))


@rule("max", "min")
def _extreme(x, op, g):
    """The larger operand; of equal ones each half, as ``torch.maximum``; never a NaN."""
    a, b = x.wide(0), x.wide(1)
    if op.operands[0] is op.operands[1]:
        x.gives(0, g)
        return
    half = x.map("where", x.map("eq", a, b), 0.5, 0.0)
    for k, (mine, other) in enumerate(((a, b), (b, a))):
        if x.wants(k):
            first = x.map("gt" if op.kind == "max" else "lt", mine, other)
            first = x.map("or", first, x.map("ne", other, other))
            share = x.map("where", first, 1.0, half)
            x.gives(k, x.map("mul", g, share))


@rule("where")
def _where(x, op, g):
    condition = x.value(0)
    if x.wants(1):
        x.gives(1, x.map("where", condition, g, 0.0))
    if x.wants(2):
        x.gives(2, x.map("where", condition, 0.0, g))


@rule("abs")
def _abs(x, op, g):
    v = x.wide(0)
    x.gives(
        0,
        x.map(
            "where",
            x.map("lt", v, 0.0),
            x.map("neg", g),
            x.map("where", x.map("eq", v, 0.0), 0.0, g),
        ),
    )


@rule("relu")
def _relu(x, op, g):
    x.gives(0, x.map("where", x.map("le", x.wide(0), 0.0), 0.0, g))


# -- functions of one number -------------------------------------------------------------------


def _scaled(kind: str, factor: Callable) -> None:
    @rule(kind)
    def apply(x, op, g):
        x.gives(0, x.map("mul", g, factor(x)))


_scaled("exp", lambda x: x.result())
_scaled("exp2", lambda x: x.map("mul", x.result(), math.log(2)))
_scaled("log", lambda x: x.map("div", 1.0, x.wide(0)))
_scaled("log2", lambda x: x.map("div", 1 / math.log(2), x.wide(0)))
_scaled("sqrt", lambda x: x.map("div", 0.5, x.result()))
_scaled("rsqrt", lambda x: x.map("div", x.map("mul", x.result(), -0.5), x.wide(0)))
_scaled("sin", lambda x: x.map("cos", x.wide(0)))
_scaled("cos", lambda x: x.map("neg", x.map("sin", x.wide(0))))
_scaled("tanh", lambda x: x.map("sub", 1.0, x.map("mul", x.result(), x.result())))
_scaled("sigmoid", lambda x: x.map("mul", x.result(), x.map("sub", 1.0, x.result())))
_scaled(
    "erf",
    lambda x: x.map(
        "mul",
        x.map("exp", x.map("neg", x.map("mul", x.wide(0), x.wide(0)))),
        2 / math.sqrt(math.pi),
    ),
)


@rule("cast")
def _cast(x, op, g):
    x.gives(0, g)


# -- matrices ----------------------------------------------------------------------------------


@rule("mma")
def _mma(x, op, g):
    """d = op(a) op(b) + c: the products are made in the operands' own type, as the forward's."""
    ta, tb, precision = op.attrs["ta"], op.attrs["tb"], op.attrs["precision"]
    if len(op.operands) == 3:
        x.gives(2, g)
    if not (x.wants(0) or x.wants(1)):
        return
    dtype = op.operands[0].type.dtype
    if dtype.bits < 16:
        raise IRError(
            f"the product of {dtype} tiles has no derivative here: its gradient would be rounded "
            f"to {dtype} too",
            "tk.cast the operands to tk.bf16, or attach a backward of your own",
        )
    low = x.narrow(g, dtype)

    def product(a, b, ta, tb):
        return x.emit.value("mma", a, b, ta=ta, tb=tb, precision=precision)

    if x.wants(0):
        b = x.value(1)
        x.gives(0, product(b, low, tb, True) if ta else product(low, b, False, not tb))
    if x.wants(1):
        a = x.value(0)
        x.gives(1, product(low, a, True, ta) if tb else product(a, low, not ta, False))


@rule("transpose")
def _transpose(x, op, g):
    x.gives(0, x.emit.value("transpose", g))


@rule("row_outer")
def _row_outer(x, op, g):
    """out[n, i m + j] = a[n, i] b[n, j]: each adjoint is a sum over the other's columns."""
    for k in (0, 1):
        if x.wants(k):
            other = x.wide(1 - k)
            x.gives(k, x.emit.value("row_inner", g, other, side=k))


@rule("row_pairs")
def _row_pairs(x, op, g):
    x.gives(0, x.emit.value("row_unpair", g, x.wide(0)))


# -- shape -------------------------------------------------------------------------------------


@rule("retype", "detach")
def _retype(x, op, g):
    x.gives(0, g)


@rule("fill_dead")
def _fill_dead(x, op, g):
    x.gives(0, x.emit.value("retype", g, axes=op.operands[0].type.axes, orient=g.type.orient))


@rule("keep")
def _keep(x, op, g):
    x.gives(0, x.emit.value("keep", g, pred=op.attrs["pred"], value=0.0))


@rule("broadcast")
def _broadcast(x, op, g):
    axis = 1 if op.attrs["orient"] == "col" else 0
    x.gives(0, x.emit.value("reduce", g, op="sum", axis=axis))


@rule("splat")
def _splat(x, op, g):
    x.gives(0, x.emit.sum_all(g))


@rule("subtile")
def _subtile(x, op, g):
    x.gives(
        0,
        x.emit.value(
            "place",
            g,
            axis=op.attrs["axis"],
            start=op.attrs["start"],
            like=op.operands[0].type.axes[op.attrs["axis"]],
        ),
    )


@rule("concat")
def _concat(x, op, g):
    axis = op.attrs["axis"]
    first, second = op.operands
    begin = first.type.axes[axis].factors[0].live
    g = x.emit.shaped(g, op.result.type.like(dtype=f32))
    for k, (v, start) in enumerate(((first, 0), (second, begin))):
        if x.wants(k):
            side = v.type.axes[axis].side
            part = x.emit.value("subtile", g, axis=axis, start=_expr(start), side=side)
            x.gives(k, part)


def _expr(n):
    import sympy

    return sympy.sympify(n)


# -- reductions ----------------------------------------------------------------------------------


@rule("reduce")
def _reduce(x, op, g):
    source = op.operands[0].type.like(dtype=f32)
    word = op.attrs["op"]
    if word == "sum":
        x.gives(0, x.emit.spread(g, source))
        return
    v, out = x.wide(0), x.result()
    spread = x.emit.spread(out, source)
    if word in ("max", "min"):
        # Ties share evenly, as in torch.amax.
        hit = x.map("where", x.map("eq", v, spread), 1.0, 0.0)
        count = x.emit.value("reduce", hit, op="sum", axis=op.attrs["axis"])
        share = x.map("div", g, x.map("max", count, 1.0))
        x.gives(0, x.map("mul", hit, x.emit.spread(share, source)))
        return
    # A product: of the others, told apart by how many are zero.
    axis = op.attrs["axis"]
    zero = x.map("eq", v, 0.0)
    zeros = x.emit.value("reduce", x.map("where", zero, 1.0, 0.0), op="sum", axis=axis)
    filled = x.map("where", zero, 1.0, v)
    rest = x.emit.spread(x.emit.value("reduce", filled, op="prod", axis=axis), source)
    zeros = x.emit.spread(zeros, source)
    one = x.map("where", zero, rest, 0.0)
    others = x.map(
        "where",
        x.map("eq", zeros, 0.0),
        x.map("div", rest, filled),
        x.map("where", x.map("eq", zeros, 1.0), one, 0.0),
    )
    x.gives(0, x.map("mul", x.emit.spread(g, source), others))


# -- what has no derivative --------------------------------------------------------------------

#: Kinds through which no gradient flows, and why.
NONE: dict[str, str] = {
    **dict.fromkeys(("const", "full", "iota", "index", "cond", "argument"), "made of nothing"),
    **dict.fromkeys(("floor", "ceil", "round", "trunc"), "constant but for its steps"),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "invert", "and", "or", "xor"), "bool"),
    **dict.fromkeys(("floordiv", "mod", "shl", "shr", "mulhi"), "integers"),
    **dict.fromkeys(("argreduce", "histogram", "random"), "integers, or random"),
}
#: Kinds that are followed by ``codegen.grad.reverse`` itself.
STRUCTURE = frozenset(
    ["for", "if", "yield", "load", "gather_rows", "store", "store_add", "scatter_rows",
     "scatter_add_rows", "barrier"]
)  # fmt: skip
#: Kinds that are refused where a gradient would have to pass them.
REFUSED: dict[str, str] = {
    "rank_key": "the values that tk.topk returns",
    "largest": "the values that tk.topk returns",
    "unkey": "the values that tk.topk returns",
    "place": "a derivative: there are no second ones",
    "row_inner": "a derivative: there are no second ones",
    "row_unpair": "a derivative: there are no second ones",
    "store_min": "a minimum taken in memory",
    "store_max": "a maximum taken in memory",
}

__all__ = ["NONE", "REFUSED", "RULES", "STRUCTURE"]
