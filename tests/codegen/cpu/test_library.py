"""Every libdevice function that Triton's front end knows: right, or refused by name.

The functions and their types are read from Triton's own list. Reference: mpmath to 30 digits.
"""

import inspect
import math
import re
import struct

import mpmath
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as listed

from codegen.cpu.ttir import Unsupported
from codegen.module import load

N = 32
KINDS = {"fp32": np.float32, "fp64": np.float64, "int32": np.int32, "uint32": np.uint32,
         "int64": np.int64, "uint64": np.uint64}  # fmt: skip


def _listed() -> list[tuple[str, tuple[str, ...], str]]:
    """(function, types of its operands, type of its result) of all that libdevice offers."""
    found = []
    for d in re.finditer(
        r"def (\w+)\(.*?_semantic=None\):\n(.*?)(?=\n@core|\Z)", inspect.getsource(listed), re.S
    ):
        pattern = r'\(((?:core\.dtype\("\w+"\),?\s*)+)\):\s*\("\w+", core\.dtype\("(\w+)"\)\)'
        for types, result in re.findall(pattern, d[2]):
            found.append((d[1], tuple(re.findall(r'dtype\("(\w+)"\)', types)), result))
    return found


ALL = _listed()
DIRECTED = re.compile(
    r"(add|sub|mul|div|rcp|sqrt|fma)_r[zdu]$|(int|ll|ull|double)2(float|double)_r[zdu]$"
)
REFUSED = {"rcp64h", "cyl_bessel_i0", "cyl_bessel_i1", "erfinv", "erfcinv", "erfcx", "normcdfinv"}
mp = mpmath.mp


def _round(fn):
    return lambda x, *_: float(fn(float(x)))


def _half_away(x):
    return math.copysign(math.floor(abs(x) + 0.5), x)


def _signed(v, bits):
    v &= (1 << bits) - 1
    return v - (1 << bits) if v >> (bits - 1) else v


def _gamma_ln(x):
    return mpmath.log(abs(mpmath.gamma(x)))


FLOATS = {
    "abs": abs, "acos": mpmath.acos, "acosh": mpmath.acosh, "asin": mpmath.asin, "asinh": mpmath.asinh,
    "atan": mpmath.atan, "atan2": mpmath.atan2, "atanh": mpmath.atanh,
    "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)), "ceil": _round(np.ceil), "floor": _round(np.floor),
    "trunc": _round(np.trunc), "rint": _round(np.rint), "nearbyint": _round(np.rint), "round": _round(_half_away),
    "copysign": lambda x, y: mpmath.mpf(math.copysign(float(x), float(y))), "cos": mpmath.cos, "cosh": mpmath.cosh,
    "add_rn": lambda x, y: x + y, "sub_rn": lambda x, y: x - y, "mul_rn": lambda x, y: x * y,
    "div_rn": lambda x, y: x / y, "fast_dividef": lambda x, y: x / y, "rcp_rn": lambda x: 1 / x,
    "erf": mpmath.erf, "erfc": mpmath.erfc, "exp": mpmath.exp, "exp10": lambda x: mpmath.mpf(10) ** x,
    "exp2": lambda x: mpmath.mpf(2) ** x, "expm1": mpmath.expm1, "fdim": lambda x, y: max(x - y, mpmath.mpf(0)),
    "fma": lambda x, y, z: x * y + z, "fma_rn": lambda x, y, z: x * y + z,
    "fmod": lambda x, y: mpmath.mpf(math.fmod(float(x), float(y))), "hypot": mpmath.hypot,
    "j0": lambda x: mpmath.besselj(0, x), "j1": lambda x: mpmath.besselj(1, x), "jn": lambda n, x: mpmath.besselj(n, x),
    "y0": lambda x: mpmath.bessely(0, x), "y1": lambda x: mpmath.bessely(1, x), "yn": lambda n, x: mpmath.bessely(n, x),
    "lgamma": _gamma_ln, "log": mpmath.log, "log10": mpmath.log10, "log1p": mpmath.log1p,
    "log2": lambda x: mpmath.log(x, 2), "logb": lambda x: mpmath.floor(mpmath.log(abs(x), 2)),
    "pow": lambda x, y: mpmath.power(x, y), "remainder": lambda x, y: mpmath.mpf(math.remainder(float(x), float(y))),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x), "rsqrt_rn": lambda x: 1 / mpmath.sqrt(x), "sin": mpmath.sin,
    "sinh": mpmath.sinh, "sqrt": mpmath.sqrt, "sqrt_rn": mpmath.sqrt, "tan": mpmath.tan, "tanh": mpmath.tanh,
    "tgamma": mpmath.gamma, "saturatef": lambda x: min(max(x, mpmath.mpf(0)), mpmath.mpf(1)),
    "sinpi": mpmath.sinpi, "cospi": mpmath.cospi, "rhypot": lambda x, y: 1 / mpmath.hypot(x, y),
    "norm3d": lambda *v: mpmath.norm(v), "norm4d": lambda *v: mpmath.norm(v),
    "rnorm3d": lambda *v: 1 / mpmath.norm(v), "rnorm4d": lambda *v: 1 / mpmath.norm(v),
    "rcbrt": lambda x: mpmath.sign(x) / mpmath.cbrt(abs(x)), "normcdf": mpmath.ncdf,
    "ldexp": lambda x, n: mpmath.ldexp(x, n), "scalbn": lambda x, n: mpmath.ldexp(x, n),
}  # fmt: skip
FLOATS |= {
    f"fast_{n}f": FLOATS[n]
    for n in ("cos", "exp10", "exp", "log10", "log2", "log", "pow", "sin", "tan")
}
# Roundings of the result that a function may be off by, where one is not enough.
ULPS = {"pow": 4, "fast_powf": 4, "tgamma": 8, "lgamma": 8, "jn": 8, "yn": 8}
INTEGERS = {
    "finitef": math.isfinite, "isfinited": math.isfinite, "isinf": math.isinf, "isnan": math.isnan,
    "signbit": lambda x: math.copysign(1, x) < 0, "ilogb": lambda x: math.frexp(x)[1] - 1,
    "llrint": np.rint, "llround": _half_away, "abs": abs,
    "hadd": lambda x, y: (x + y) >> 1, "rhadd": lambda x, y: (x + y + 1) >> 1,
    "sad": lambda x, y, z: abs(x - y) + z, "popc": lambda x, bits: (x & ((1 << bits) - 1)).bit_count(),
    "clz": lambda x, bits: bits - (x & ((1 << bits) - 1)).bit_length(),
    "ffs": lambda x, bits: (x & -x).bit_length(),
    "brev": lambda x, bits: int(f"{x & ((1 << bits) - 1):0{bits}b}"[::-1], 2),
    "mulhi": lambda x, y, bits: (x * y) >> bits,
    "float_as_int": lambda x: struct.unpack("<i", struct.pack("<f", x))[0],
    "float_as_uint": lambda x: struct.unpack("<i", struct.pack("<f", x))[0],
    "double_as_longlong": lambda x: struct.unpack("<q", struct.pack("<d", x))[0],
    "double2loint": lambda x: struct.unpack("<ii", struct.pack("<d", x))[0],
    "double2hiint": lambda x: struct.unpack("<ii", struct.pack("<d", x))[1],
}  # fmt: skip
MODES = {"rn": np.rint, "rz": np.trunc, "rd": np.floor, "ru": np.ceil}
BITS = {
    "int_as_float": ("<i", "<f"),
    "uint_as_float": ("<I", "<f"),
    "longlong_as_double": ("<q", "<d"),
}


@triton.jit
def _unused(x):
    return libdevice.abs(x)


def kernel(name: str, count: int):
    """A kernel that maps a function of ``count`` tensors."""
    args = ", ".join(f"x{k}" for k in range(count))
    loads = ", ".join(f"tl.load(x{k} + i)" for k in range(count))
    text = (f"import triton\nimport triton.language as tl\nfrom triton.language.extra import libdevice\n\n\n"
            f"@triton.jit\ndef program({args}, o, N: tl.constexpr):\n    i = tl.arange(0, N)\n"
            f"    tl.store(o + i, libdevice.{name}({loads}))\n")  # fmt: skip
    return load(text, "program", interpret=False).program


def inputs(name: str, types, rng) -> list[np.ndarray]:
    out = []
    for k, ty in enumerate(types):
        kind = KINDS[ty]
        if ty[:2] == "fp":
            x = rng.normal(size=N) * 2
            if name in ("acosh",):
                x = 1 + np.abs(x)
            elif name in ("asin", "acos", "atanh"):
                x = x / (np.abs(x).max() * 1.01)
            elif name in ("log", "log2", "log10", "sqrt", "rsqrt", "y0", "y1", "yn", "fast_logf", "fast_log2f",
                          "fast_log10f", "sqrt_rn", "rsqrt_rn", "tgamma") or ("pow" in name and k == 0):  # fmt: skip
                x = np.abs(x) + 0.01
            elif name == "log1p":
                x = np.abs(x) - 0.9
            elif "2" in name and name[-3:-1] == "_r":
                x = x * 10
                x[:4] = 0.5, 1.5, 2.5, 3.5
                if "2u" in name:
                    x = np.abs(x)
            out.append(x.astype(kind))
        elif name in ("ldexp", "scalbn", "pow"):
            out.append(rng.integers(-9, 9, N).astype(kind))
        elif name in ("jn", "yn"):
            out.append(rng.integers(0, 5, N).astype(kind))
        else:
            info = np.iinfo(kind)
            x = rng.integers(info.min, info.max, N, dtype=kind, endpoint=True)
            x[:3] = 0, 1, info.max
            out.append(x)
    return out


def expected(name, types, result, values):
    """The exact value at one place."""
    if name in BITS:
        a, b = BITS[name]
        return struct.unpack(b, struct.pack(a, values[0]))[0]
    if name == "hiloint2double":
        return struct.unpack("<d", struct.pack("<ii", values[1], values[0]))[0]
    if name == "byte_perm":
        raw = struct.pack("<ii", *values[:2])
        return int.from_bytes(bytes(raw[(values[2] >> (4 * k)) & 7] for k in range(4)), "little")
    if name == "mul24":
        low = [(v & 0xFFFFFF) if types[0][0] == "u" else _signed(v << 8, 32) >> 8 for v in values]
        return low[0] * low[1]
    cast = re.fullmatch(r"(\w+?)2(\w+?)_(r[nzdu])", name)
    if cast:
        return values[0] if result[:2] == "fp" else int(MODES[cast[3]](values[0]))
    if name in INTEGERS and (name not in FLOATS or types[0][:2] != "fp"):
        fn = INTEGERS[name]
        if "bits" in inspect.signature(fn).parameters:
            return fn(*values, bits=int(types[0].strip("uint")))
        return int(fn(*values))
    given = [
        mpmath.mpf(float(v)) if t[:2] == "fp" else int(v)
        for t, v in zip(types, values, strict=True)
    ]
    return FLOATS[name](*given)


def is_refused(name) -> bool:
    return name in REFUSED or bool(DIRECTED.search(name))


@pytest.mark.parametrize("case", ALL, ids=lambda c: f"{c[0]}-{'-'.join(c[1])}")
def test_functions(case):
    name, types, result = case
    if name == "nextafter":
        pytest.skip("tested below")
    rng = np.random.default_rng(len(name))
    data = inputs(name, types, rng)
    program = kernel(name, len(types))
    out = torch.from_numpy(np.zeros(N, KINDS[result]))
    run = lambda: program[(1,)](*[torch.from_numpy(x) for x in data], out, N)  # noqa: E731
    if is_refused(name):
        with pytest.raises(
            Unsupported, match=r"tt.extern_elementwise: the library function __nv_\w+ has no"
        ):
            run()
        return
    run()
    got = out.numpy()
    with mpmath.workdps(30):
        for k in range(N):
            values = [x[k].item() for x in data]
            want = expected(name, types, result, values)
            if result[:2] != "fp":
                bits = int(result.strip("uint"))
                assert _signed(int(got[k]), bits) == _signed(int(want), bits), (
                    values,
                    got[k],
                    want,
                )
                continue
            eps, tiny = (2.0**-23, 2.0**-149) if result == "fp32" else (2.0**-52, 2.0**-1074)
            if mpmath.isnan(want):
                assert np.isnan(got[k])
                continue
            scale = abs(want)
            if name in ("j0", "j1", "jn", "y0", "y1", "yn", "lgamma"):
                scale = max(
                    scale, 1
                )  # they cross zero: what is lost there is relative to their size
            ulps = ULPS.get(name, 2)
            if name == "normcdf":  # whose argument's last place weighs as the argument's square
                ulps += values[0] ** 2
            bound = ulps * eps * scale + tiny
            if math.isinf(got[k]):  # beyond the largest number
                assert scale > (3.4e38 if result == "fp32" else 1.79e308)
                continue
            assert abs(mpmath.mpf(float(got[k])) - want) <= bound, (values, got[k], want)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_nextafter(kind):
    x = np.array([0.0, 1, -1, 3.5, np.inf, 1e-40, -0.0, 2] * 4, kind)
    y = np.array([1.0, 2, 0, -1, 0, 0, 1, 2] * 4, kind)
    out = torch.from_numpy(np.zeros(N, kind))
    kernel("nextafter", 2)[(1,)](torch.from_numpy(x), torch.from_numpy(y), out, N)
    assert np.array_equal(out.numpy(), np.nextafter(x, y))


def test_the_list_is_whole():
    """Most of what libdevice has is there, and what is refused is refused for a reason."""
    refused = {name for name, _, _ in ALL if is_refused(name)}
    assert len(ALL) > 250 and len(refused) < len({n for n, _, _ in ALL}) / 3


@triton.jit
def counts(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(o + i, libdevice.popc(v) * 10000 + libdevice.clz(v) * 100 + libdevice.ffs(v))


def test_counts_of_bits():
    x = torch.tensor([0, 1, -1, 2**31 - 1, -(2**31), 12] + [7] * 26, dtype=torch.int32)
    o = torch.empty_like(x)
    counts[(1,)](x, o, N)
    assert o[:6].tolist() == [3200, 13101, 320001, 310101, 10032, 22803]


@triton.jit
def hinted(x, o, n, N: tl.constexpr):
    tl.assume(n > 0)
    i = tl.max_contiguous(tl.multiple_of(tl.arange(0, N), 8), 8)
    tl.store(o + i, tl.load(x + i) + 1)
    tl.debug_barrier()
    tl.store(o + i, tl.load(o + (N - 1 - i)) * 2)


def test_hints_and_barriers():
    x, o = torch.randn(N), torch.empty(N)
    hinted[(1,)](x, o, 3, N)
    assert torch.equal(o, (x + 1).flip(0) * 2)
