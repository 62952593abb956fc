"""Conversions between float formats, against a table of every number that a format has."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

# format: (dtype, exponent bits, mantissa bits, bias, has infinities)
FORMATS = {
    "f16": (torch.float16, 5, 10, 15, True), "bf16": (torch.bfloat16, 8, 7, 127, True),
    "e5m2": (torch.float8_e5m2, 5, 2, 15, True), "e4m3": (torch.float8_e4m3fn, 4, 3, 7, False),
}  # fmt: skip
WIDE = {"f32": (torch.float32, np.float32), "f64": (torch.float64, np.float64)}


@triton.jit
def cast(x, o, N: tl.constexpr, ROUNDING: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + i).to(o.dtype.element_ty, fp_downcast_rounding=ROUNDING))


def numbers(name: str) -> np.ndarray:
    """Every finite number >= 0 of a format in fp64, by its code (which is its order)."""
    _, exp, man, bias, infinite = FORMATS[name]
    codes = np.arange(1 << (exp + man))
    e, m = codes >> man, codes & ((1 << man) - 1)
    values = np.where(e == 0, m * 2.0 ** (1 - bias - man), (1 + m / (1 << man)) * 2.0 ** (e - bias))
    return values[e < (1 << exp) - 1] if infinite else values[:-1]


def rounded(x: np.ndarray, name: str, rounding: str) -> np.ndarray:
    """Codes of the numbers that x rounds to, from the table alone."""
    _, exp, man, _, infinite = FORMATS[name]
    values = numbers(name)
    size = np.abs(x)
    low = np.searchsorted(values, size, side="right") - 1
    if rounding == "rtz":
        code = np.where(np.isinf(size) & infinite, len(values), low)
    else:
        # Half way past the largest number is where infinity begins, were the format to go on.
        step = values[-1] - values[-2]
        more = np.append(values, values[-1] + step)
        down, up = more[low], more[np.minimum(low + 1, len(values))]
        nearer_up = size - down > up - size
        tie_up = (size - down == up - size) & (low % 2 == 1)
        code = np.where(np.isfinite(size), low + (nearer_up | tie_up), len(values))
        if not infinite:  # saturates
            code = np.minimum(code, len(values) - 1)
    if not infinite:
        code = np.where(np.isinf(size), len(values) - 1, code)
    nan = ((1 << exp) - 1) << man | ((1 << man) - 1 if not infinite else 1 << (man - 1))
    code = np.where(np.isnan(x), nan, code)
    return code | np.where(np.signbit(x) & ~np.isnan(x), 1 << (exp + man), 0)


def trials(name: str, kind) -> np.ndarray:
    """Numbers of a format, what lies half way between them and next to that, and the extremes."""
    values = numbers(name)
    if len(values) > 4096:
        values = np.unique(np.concatenate([values[:600], values[::61], values[-600:]]))
    middle = (values[1:] + values[:-1]) / 2
    with np.errstate(over="ignore"):
        base = np.concatenate([values, middle, [values[-1] * 1.01, values[-1] * 1.25, values[-1] * 4,
                                                np.inf, np.nan, 1e-30, 1e30]]).astype(kind)  # fmt: skip
        near = [base, np.nextafter(base, kind(np.inf)), np.nextafter(base, kind(-np.inf))]
    out = np.concatenate([*near, *[-x for x in near]])
    return np.pad(out, (0, -len(out) % 1024))


@pytest.mark.parametrize("rounding", ["rtne", "rtz"])
@pytest.mark.parametrize("source", WIDE)
@pytest.mark.parametrize("name", FORMATS)
def test_narrowing(name, source, rounding):
    dtype, exp, man, _, _ = FORMATS[name]
    kind = WIDE[source][1]
    x = trials(name, kind)
    out = torch.empty(len(x), dtype=dtype)
    for start in range(0, len(x), 1024):
        part = slice(start, start + 1024)
        cast[(1,)](torch.from_numpy(x[part].copy()), out[part], 1024, rounding)
    raw = out.view(torch.uint8 if exp + man == 7 else torch.int16).numpy()
    got = raw.astype(np.int64) & ((1 << (exp + man + 1)) - 1)
    want = rounded(x.astype(np.float64), name, rounding)
    nan = torch.isnan(out.float()).numpy()
    wrong = (nan != np.isnan(x)) | (~nan & (got != want))
    assert not wrong.any(), [(float(v).hex(), hex(a), hex(b)) for v, a, b in
                             zip(x[wrong][:5], got[wrong][:5], want[wrong][:5], strict=True)]  # fmt: skip


@pytest.mark.parametrize("to", [*FORMATS, *WIDE])
@pytest.mark.parametrize("name", ["e5m2", "e4m3"])
def test_every_fp8_number(name, to):
    """From each code of fp8 to every other format; all formats but the other fp8 hold them all."""
    dtype = FORMATS[name][0]
    x = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
    target = FORMATS[to][0] if to in FORMATS else WIDE[to][0]
    out = torch.empty(256, dtype=torch.float32).to(target)
    cast[(1,)](x, out, 256, None)
    wide = x.double().numpy()
    got = out.double().numpy()
    if to in ("e4m3", "e5m2"):
        exp, man = FORMATS[to][1:3]
        codes = rounded(wide, to, "rtne") & ((1 << (exp + man + 1)) - 1)
        want = torch.from_numpy(codes.astype(np.uint8)).view(target).double().numpy()
    else:
        want = wide
    assert np.array_equal(got, want, equal_nan=True)


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["e5m2", "e4m3"])
def test_to_fp8_from_narrow_types(name, source):
    dtype = FORMATS[name][0]
    x = torch.linspace(-500, 500, 1024).to(source)
    out = torch.empty(1024, dtype=torch.uint8).view(dtype)
    cast[(1,)](x, out, 1024, None)
    want = rounded(x.double().numpy(), name, "rtne")
    assert np.array_equal(out.view(torch.uint8).numpy(), want.astype(np.uint8))
