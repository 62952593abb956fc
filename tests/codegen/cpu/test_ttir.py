"""Ops that Triton's front end does not make today, or only its passes do: TTIR written by hand."""

import ctypes
import math

import numpy as np
import pytest

from codegen.cpu import parser
from codegen.cpu.lower.function import lower
from codegen.cpu.pool import pool
from codegen.cpu.toolchain import Library, features, optimise

N = 64
ELEMENTS = {"i32": np.int32, "i64": np.int64, "f32": np.float32}


def run(body: str, sources: list[np.ndarray], result: np.ndarray) -> np.ndarray:
    """What a kernel gives that loads %a, %b, ..., computes %r and stores it."""
    out = result.copy()
    names = {v: k for k, v in ELEMENTS.items()}
    types = [names[x.dtype.type] for x in (*sources, result)]
    args = ", ".join(f"%p{k}: !tt.ptr<{t}>" for k, t in enumerate(types))
    lines = [f"%i = tt.make_range {{end = {N} : i32, start = 0 : i32}} : tensor<{N}xi32>"]
    for k, t in enumerate(types):
        lines += [f"%s{k} = tt.splat %p{k} : !tt.ptr<{t}> -> tensor<{N}x!tt.ptr<{t}>>",
                  f"%q{k} = tt.addptr %s{k}, %i : tensor<{N}x!tt.ptr<{t}>>, tensor<{N}xi32>"]  # fmt: skip
    for k, _ in enumerate(sources):
        lines.append(f"%{'abc'[k]} = tt.load %q{k} : tensor<{N}x!tt.ptr<{types[k]}>>")
    lines += body.strip().splitlines()
    last = len(sources)
    lines += [f"tt.store %q{last}, %r : tensor<{N}x!tt.ptr<{types[last]}>>", "tt.return"]
    text = "\n".join("    " + s.strip() for s in lines)
    launch(f"module {{\n  tt.func public @kernel({args}) {{\n{text}\n  }}\n}}\n", [*sources, out])
    return out


def launch(text: str, arrays: list[np.ndarray]) -> str:
    """Compile TTIR as it stands, without Triton's passes, run one program; gives the LLVM IR."""
    code, info = lower(parser.parse(text), features())
    library = Library(optimise(code, features())[2])
    slots = (ctypes.c_int64 * (len(arrays) + 1))(*[x.ctypes.data for x in arrays], -1)
    scratch = np.zeros(info["scratch"] + 64, np.uint8)
    at = -(-scratch.ctypes.data // 64) * 64
    pool().run(library.address("kernel"), ctypes.addressof(slots), 1, 1, 1, 1, at, 0, 0, 1)
    return code


def integers(kind=np.int32):
    rng = np.random.default_rng(0)
    a, b = rng.integers(-99, 99, N).astype(kind), rng.integers(1, 9, N).astype(kind)
    b[::3] *= -1
    a[:4] = 0, 12, -12, 12
    b[:4] = 5, 4, 4, -4
    return a, b


def reals():
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=N) * 4).astype(np.float32), rng.normal(size=N).astype(np.float32)
    a[:8] = 0.5, 1.5, 2.5, -0.5, -2.5, -0.0, np.inf, np.nan
    b[8] = np.nan
    return a, b


def _half_away(x):
    return np.copysign(np.floor(np.abs(x) + np.float32(0.5)), x)


BINARY = {
    "arith.ceildivsi": lambda a, b: [math.ceil(x / y) for x, y in zip(a.tolist(), b.tolist(), strict=True)],
    "arith.floordivsi": lambda a, b: a // b,
    "arith.remf": np.fmod, "arith.minimumf": np.minimum, "arith.maximumf": np.maximum,
    "math.copysign": np.copysign,
}  # fmt: skip
UNARY = {
    "arith.negf": np.negative, "math.ceil": np.ceil, "math.floor": np.floor, "math.trunc": np.trunc,
    "math.roundeven": np.rint, "math.round": _half_away, "math.absf": np.abs, "math.absi": np.abs,
    "math.tanh": np.tanh, "math.ctpop": lambda a: [int(v & 0xFFFFFFFF).bit_count() for v in a.tolist()],
    "math.ctlz": lambda a: [32 - int(v & 0xFFFFFFFF).bit_length() for v in a.tolist()],
    "math.cttz": lambda a: [32 if v == 0 else (v & -v).bit_length() - 1 for v in a.tolist()],
}  # fmt: skip


def of_integers(op: str) -> bool:
    return op.endswith(("i", "ctpop", "ctlz", "cttz"))


@pytest.mark.parametrize("op", BINARY)
def test_binary(op):
    a, b = integers() if of_integers(op) else reals()
    ty = "i32" if of_integers(op) else "f32"
    got = run(f"%r = {op} %a, %b : tensor<{N}x{ty}>", [a, b], np.zeros_like(a))
    with np.errstate(invalid="ignore"):
        want = np.asarray(BINARY[op](a, b), a.dtype)
    assert (
        np.array_equal(got, want, equal_nan=True)
        and (np.signbit(got) == np.signbit(want))[~np.isnan(want)].all()
    )


@pytest.mark.parametrize("op", UNARY)
def test_unary(op):
    a, _ = integers() if of_integers(op) else reals()
    ty = "i32" if of_integers(op) else "f32"
    got = run(f"%r = {op} %a : tensor<{N}x{ty}>", [a], np.zeros_like(a))
    want = np.asarray(UNARY[op](a.astype(np.float64) if op == "math.tanh" else a))
    if op == "math.tanh":
        spacing = np.spacing(np.abs(want.astype(np.float32))).astype(np.float64)
        assert (np.isnan(want) | (np.abs(got - want) <= 4 * spacing)).all()
        assert np.array_equal(np.isnan(got), np.isnan(want))
    else:
        assert np.array_equal(got, want, equal_nan=True)


def test_conversions_of_integers():
    a = np.array([0.5, 3e9, 4294967040.0, -1.5, 7.9] + [1.0] * (N - 5), np.float32)
    got = run(
        f"%r = arith.fptoui %a : tensor<{N}xf32> to tensor<{N}xi32>", [a], np.zeros(N, np.int32)
    )
    assert got.view(np.uint32)[:5].tolist() == [0, 3000000000, 4294967040, 0, 7]
    b, _ = integers()
    for op in ("index_cast", "index_castui"):
        body = f"""%m = arith.{op} %a : tensor<{N}xi32> to tensor<{N}xindex>
                   %r = arith.{op} %m : tensor<{N}xindex> to tensor<{N}xi64>"""
        got = run(body, [b], np.zeros(N, np.int64))
        want = b.astype(np.int64) if op == "index_cast" else b.view(np.uint32).astype(np.int64)
        assert np.array_equal(got, want)


def test_the_same_bits():
    a, _ = reals()
    got = run(
        f"%r = arith.bitcast %a : tensor<{N}xf32> to tensor<{N}xi32>", [a], np.zeros(N, np.int32)
    )
    assert np.array_equal(got, a.view(np.int32))


def test_a_tensor_of_one_as_a_scalar():
    a, _ = integers()
    body = f"""%one = "tt.reduce"(%a) <{{axis = 0 : i32}}> ({{
               ^bb0(%x: i32, %y: i32):
                 %z = arith.maxsi %x, %y : i32
                 tt.reduce.return %z : i32
               }}) : (tensor<{N}xi32>) -> i32
               %t = tt.splat %one : i32 -> tensor<1xi32>
               %u = tt.unsplat %t : tensor<1xi32>
               %r = tt.splat %u : i32 -> tensor<{N}xi32>"""
    assert (run(body, [a], np.zeros(N, np.int32)) == a.max()).all()


def test_poison_is_a_value():
    a, _ = integers()
    body = f"""%p = ub.poison : tensor<{N}xi32>
               %t = arith.constant dense<true> : tensor<{N}xi1>
               %r = arith.select %t, %a, %p : tensor<{N}xi1>, tensor<{N}xi32>"""
    assert np.array_equal(run(body, [a], np.zeros(N, np.int32)), a)


@pytest.mark.parametrize("op", ["gpu.barrier", "ttg.barrier all", "tt.debug_barrier"])
def test_barriers_are_nothing(op):
    """A program is one thread."""
    text = f"module {{\n  tt.func public @kernel(%p: !tt.ptr<i32>) {{\n    {op}\n    tt.return\n  }}\n}}\n"
    code = launch(text, [np.zeros(1, np.int32)])
    assert (
        "call" not in code.split("define internal void @program")[1].split("define void @kernel")[0]
    )
