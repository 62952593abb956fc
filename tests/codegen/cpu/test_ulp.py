"""Elementary functions in fp32 hold their bounds in units of the last place, everywhere."""

import numpy as np
import pytest
import torch
from ulp import BOUND, FUNCTIONS, errors, sample, worst, worst_of_all


@pytest.fixture(scope="module")
def inputs():
    return sample()


@pytest.mark.parametrize("features", ["avx512", "avx2", "base"])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_every_exponent(op, features, inputs, monkeypatch):
    """2^14 mantissas of every sign and exponent; with ``make test-all``, every float there is."""
    if features == "avx512" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        pytest.skip("the host has no AVX-512")
    monkeypatch.setenv("TKPY_CPU_FEATURES", features)
    err, at = worst(op, inputs)
    assert err <= BOUND[op], f"{op} is off by {err} ulp at {at.hex()}"


@pytest.mark.slow
@pytest.mark.parametrize("op", FUNCTIONS)
def test_every_float(op):
    err, at = worst_of_all(op)
    assert err <= BOUND[op], f"{op} is off by {err} ulp at {at.hex()}"


def test_the_measure():
    """Errors are seen where they are, and special results are held exactly."""
    want = np.array([1.0, 1.0, 0.75, 2.0**-149, 2.0**128, 0.0, np.inf, np.nan, 1.0, 1e300])
    got = np.array([1 + 2.0**-23, 1 - 2.0**-23, 0.75, 0.0, 3.4028235e38, -0.0, 1.0, 1.0, np.nan,
                    np.inf], np.float32)  # fmt: skip
    inf = np.inf
    assert errors(got, want).tolist() == [1, 1, 0, 1, 1, inf, inf, inf, inf, 0]


def test_the_sample():
    """Each pair of sign and exponent has its mantissas, the first and the last included."""
    bits = sample(1 << 6)
    assert len(np.unique(bits)) == 512 << 6
    assert (np.bincount(bits >> 23) == 1 << 6).all()
    assert {0, 0x80000000, 0x7F800000, 0x7F7FFFFF, 1 << 23} <= set(bits.tolist())
