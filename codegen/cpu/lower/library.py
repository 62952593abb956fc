"""libdevice functions that have a meaning on a CPU, by their NVIDIA names.

``__nv_tanhf`` and ``__nv_fast_tanhf`` are ``tanh`` in fp32, ``__nv_tanh`` in fp64. Vector code of
our own comes first, then LLVM's intrinsics, then the C library lane by lane.
"""

from __future__ import annotations

from codegen.cpu import mathlib
from codegen.cpu.emit import Val, const
from codegen.cpu.lower import devlib
from codegen.cpu.lower.elementwise import TABLE, libm, vector
from codegen.cpu.lower.tensor import Map
from codegen.cpu.ttir import Op

INTRINSICS = {"sqrt": "sqrt", "sqrt_rn": "sqrt", "fsqrt_rn": "sqrt", "dsqrt_rn": "sqrt",
              "fabs": "fabs", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint",
              "nearbyint": "rint", "round": "round", "fma": "fma", "fmaf_rn": "fma",
              "fma_rn": "fma",
              "copysign": "copysign"}  # fmt: skip
LIBM = {"acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cosh", "erfc", "exp10",
        "expm1", "fdim", "fmod", "hypot", "lgamma", "log10", "log1p", "logb", "nextafter", "pow",
        "remainder", "sinh", "tan", "tgamma", "j0", "j1", "y0", "y1"}  # fmt: skip
BINARY = {"fadd_rn": "fadd", "fsub_rn": "fsub", "fmul_rn": "fmul", "fdiv_rn": "fdiv",
          "dadd_rn": "fadd", "dsub_rn": "fsub", "dmul_rn": "fmul", "ddiv_rn": "fdiv",
          "fdivide": "fdiv", "div_rn": "fdiv", "add_rn": "fadd", "mul_rn": "fmul"}  # fmt: skip


def _predicate(kind: str):
    def fn(e, x: Val) -> Val:
        if kind == "isnan":
            hit = e.op("fcmp uno", x.ty, x, x, out="i1")
        else:
            size = e.call("llvm.fabs", x.ty, x)
            inf = const(x.ty, float("inf"))
            hit = e.op(f"fcmp {'oeq' if kind == 'isinf' else 'olt'}", x.ty, size, inf, out="i1")
        return e.extend(hit, "i32", signed=False)

    return fn


def _signbit(e, x: Val) -> Val:
    ty = "i32" if x.ty == "f32" else "i64"
    return e.extend(e.op("icmp slt", ty, e.cast("bitcast", x, ty), const(ty, 0), out="i1"), "i32",
                    signed=False)  # fmt: skip


def _saturate(e, x: Val) -> Val:
    low = e.select(e.op("fcmp ogt", x.ty, x, const(x.ty, 0.0), out="i1"), x, const(x.ty, 0.0))
    return e.select(e.op("fcmp olt", x.ty, low, const(x.ty, 1.0), out="i1"), low, const(x.ty, 1.0))


OTHERS = {
    "isnan": _predicate("isnan"), "isinf": _predicate("isinf"), "finite": _predicate("finite"),
    "isfinited": _predicate("finite"), "isnand": _predicate("isnan"), "isinfd": _predicate("isinf"),
    "signbit": _signbit, "signbitd": _signbit, "saturate": _saturate, "rsqrt": mathlib.rsqrt,
    "rsqrt_rn": mathlib.rsqrt, "frsqrt_rn": mathlib.rsqrt,
    "rcp_rn": lambda e, x: e.op("fdiv", x.ty, const(x.ty, 1.0), x),
    "drcp_rn": lambda e, x: e.op("fdiv", x.ty, const(x.ty, 1.0), x),
    "frcp_rn": lambda e, x: e.op("fdiv", x.ty, const(x.ty, 1.0), x),
}  # fmt: skip


def function(symbol: str, double: bool):
    """The implementation of a libdevice symbol on Vals, or None."""
    name = symbol.removeprefix("__nv_").removeprefix("fast_")
    for base in dict.fromkeys((name.removesuffix("f") if not double else name, name)):
        if base in mathlib.FUNCTIONS and not double:
            return lambda e, x, base=base: mathlib.FUNCTIONS[base](e, x)
        if base in mathlib.FUNCTIONS:
            return lambda e, x, base=base: libm(e, base, x)
        if base in INTRINSICS:
            return lambda e, *xs, base=base: e.call("llvm." + INTRINSICS[base], xs[0].ty, *xs)
        if base in BINARY:
            return lambda e, a, b, base=base: e.op(BINARY[base], a.ty, a, b)
        if base in OTHERS:
            return OTHERS[base]
        if base in ("fmax", "fmin"):
            op = "arith.maxnumf" if base == "fmax" else "arith.minnumf"
            return lambda e, a, b, op=op: TABLE[op][0](e, None, a, b)
        if base in LIBM:
            return lambda e, *xs, base=base: libm(e, base, *xs)
    return None


def named(low, op: Op, elem: str):
    """What computes the function that an op names, for operands of a type; refused without one."""
    symbol = op.attrs.get("symbol", "").strip('" ')
    fn = devlib.lookup(symbol, elem)
    if fn is None and elem in ("f32", "f64"):
        fn = function(symbol, elem == "f64")
    if fn is None:
        raise low.refuse(op, f"the library function {symbol} has no counterpart on the CPU")
    return fn


def extern_elementwise(low, op: Op) -> None:
    """tt.extern_elementwise."""
    operands = [low.env[v] for v in op.operands]
    first = operands[0]
    fn = named(low, op, first.ty if isinstance(first, Val) else first.type.elem)
    out = op.result_types[0]
    if not out.tensor:
        low.env[op.results[0]] = fn(low.e, *operands)
        return
    low.env[op.results[0]] = Map(
        out, op.name, lambda e, *vals: fn(e, *[vector(e, v) for v in vals]), operands, True
    )


OPS = {"tt.extern_elementwise": extern_elementwise}
