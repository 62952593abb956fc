"""Errors of the elementary functions in units of the last place, by sweeping fp32.

``python tests/codegen/cpu/ulp.py`` prints the table of worst errors over a sample, ``--all`` over
every float there is. The reference is the same function in fp64 (of numpy, erf of torch), whose
own error is a billionth of what is measured; an input is exact in both.
"""

import argparse
import os

import numpy as np
import torch
import triton
import triton.language as tl

MANTISSAS = 1 << 14  # of each sign and exponent
_CHUNK = 1 << 18


@triton.jit
def apply(x, o, OP: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i)
    if OP == "exp":
        v = tl.exp(v)
    elif OP == "exp2":
        v = tl.exp2(v)
    elif OP == "log":
        v = tl.log(v)
    elif OP == "log2":
        v = tl.log2(v)
    elif OP == "sin":
        v = tl.sin(v)
    elif OP == "cos":
        v = tl.cos(v)
    elif OP == "tanh":
        v = tl.extra.libdevice.tanh(v)
    elif OP == "erf":
        v = tl.erf(v)
    elif OP == "rsqrt":
        v = tl.rsqrt(v)
    elif OP == "sqrt":
        v = tl.sqrt_rn(v)
    tl.store(o + i, v)


FUNCTIONS = {
    "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2, "sin": np.sin, "cos": np.cos,
    "tanh": np.tanh, "erf": lambda x: torch.special.erf(torch.from_numpy(x)).numpy(),
    "rsqrt": lambda x: 1 / np.sqrt(x), "sqrt": np.sqrt,
}  # fmt: skip
BOUND = dict.fromkeys(FUNCTIONS, 2.0) | {"tanh": 4.0, "erf": 4.0, "sqrt": 0.5}


def sample(mantissas: int = MANTISSAS) -> np.ndarray:
    """Bits of floats: of every sign and exponent as many mantissas, one at random in each of equal
    ranges, and the ends of the exponent. Subnormals, infinities and NaN are among them."""
    rng = np.random.default_rng(0)
    step = (1 << 23) // mantissas
    low = np.arange(mantissas, dtype=np.uint32) * np.uint32(step)
    parts = []
    for top in range(512):
        at = low + rng.integers(0, step, mantissas, dtype=np.uint32)
        at[0], at[-1] = 0, (1 << 23) - 1
        parts.append(at + np.uint32(top << 23))
    return np.concatenate(parts)


def errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Per element |got - want| in the spacing of fp32 at ``want``; infinite where a NaN, a pole or
    the sign of a zero is wrong. An fp32 infinity counts as 2**128, where it would be the next."""
    top = 2.0**128
    nan = np.isnan(want)
    with np.errstate(invalid="ignore"):
        bound = np.clip(want, -top, top)
        exponent = (np.abs(bound).view(np.int64) >> 52) - 1023
        spacing = ((np.clip(exponent, -126, 127) - 23 + 1023) << 52).view(np.float64)
        out = np.abs(np.clip(got.astype(np.float64), -top, top) - bound) / spacing
        wrong = nan != np.isnan(got)
        wrong |= np.isinf(want) & (got != want)
        wrong |= (want == 0) & (np.signbit(want) != np.signbit(got))
    out[nan] = 0
    out[wrong] = np.inf
    return out


def worst(op: str, bits: np.ndarray) -> tuple[float, float]:
    """(the largest error of an operation over inputs given by their bits, the input it is at)."""
    x = bits.view(np.float32)
    got = torch.empty(len(x))
    block = 1 << 12
    assert len(x) % block == 0
    apply[(len(x) // block,)](torch.from_numpy(x), got, op, block)
    got = got.numpy()
    found = (0.5, 0.0)
    with np.errstate(all="ignore"):
        for start in range(0, len(x), _CHUNK):
            some, out = x[start : start + _CHUNK], got[start : start + _CHUNK]
            want = FUNCTIONS[op](some.astype(np.float64))
            near = want.astype(np.float32)
            rounded = (near.view(np.int32) == out.view(np.int32)) | (np.isnan(near) & np.isnan(out))
            if not rounded.all():  # an exact result rounded once is off by half a place at most
                err = errors(out[~rounded], want[~rounded])
                k = int(err.argmax())
                found = max(found, (float(err[k]), float(some[~rounded][k])))
    return found


def worst_of_all(op: str) -> tuple[float, float]:
    """``worst`` over the whole of fp32."""
    size = 1 << 24
    parts = (np.arange(k * size, (k + 1) * size, dtype=np.uint32) for k in range((1 << 32) // size))
    return max(worst(op, bits) for bits in parts)


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true", help="every fp32 number, not a sample")
    parser.add_argument("--features", default="avx512,avx2,base")
    parser.add_argument("--ops", default=",".join(FUNCTIONS))
    args = parser.parse_args()
    sets = args.features.split(",")
    print(f"| function | at most | {' | '.join(sets)} | at |\n|---|---|{'---|' * len(sets)}---|")
    for op in args.ops.split(","):
        found = []
        for name in sets:
            os.environ["TKPY_CPU_FEATURES"] = name
            found.append(worst_of_all(op) if args.all else worst(op, sample()))
        cells = " | ".join(f"{err:.3f}" for err, _ in found)
        places = ", ".join(float(x).hex() for _, x in found)
        print(f"| {op} | {BOUND[op]:g} | {cells} | {places} |", flush=True)


if __name__ == "__main__":
    os.environ["TRITON_DEFAULT_BACKEND"] = "cpu"
    import codegen.cpu

    codegen.cpu.register()
    main()
