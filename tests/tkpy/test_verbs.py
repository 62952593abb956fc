"""Every verb against PyTorch and against the evaluator of tile IR, over shapes and dtypes.

Inputs are small integers, so that sums and products are exact in every dtype and the comparison
can be equality; transcendental functions have a bound on their relative error.
"""

import numpy as np
import pytest
import torch
import verbs_narrow  # noqa: F401  adds to CASES
import verbs_numbers  # noqa: F401
import verbs_order  # noqa: F401
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from verbs import CASES, names

from codegen.evaluate import evaluate
from codegen.verify import verify
from tkpy.execution import launcher
from tkpy.vocabulary import VERBS

SIZES = st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 65, 97])


def expected(meaning, inputs):
    wanted = meaning(*inputs)
    return wanted if isinstance(wanted, tuple) else (wanted,)


def close(got, want, tolerance):
    if got.is_complex():
        got, want = torch.view_as_real(got), torch.view_as_real(want)
    if not got.is_floating_point():
        assert got.shape == want.shape
        assert np.array_equal(got.numpy(), want.numpy().astype(got.numpy().dtype))
        return
    got, want = got.double(), want.to(got.dtype).double() if tolerance == 0 else want.double()
    assert got.shape == want.shape
    assert torch.equal(torch.isnan(got), torch.isnan(want))
    error = (got - want).abs() - tolerance * (1 + want.abs())
    assert (error.nan_to_num(-1.0) <= 0).all(), f"off by {error.max()}"


def live_array(t):
    """``t`` as the evaluator takes it: floats in fp64, integers as they are."""
    return (t.double() if t.is_floating_point() else t).numpy(force=True).copy()


#: (M, N, K) and the number of a dtype. Sides are static, so that each row compiles every verb; the
#: rows with the types and sizes of other tests, here and in test_execution.py, compile nothing.
#: One, a tile exactly, one less and one more than a tile of 16, 32 and 48 occur on both axes.
ROWS = [
    ((33, 17, 35), 0), ((1, 40, 2), 0), ((33, 17, 35), 1), ((16, 48, 32), 2), ((47, 31, 64), 1),
    ((49, 1, 17), 2),
]  # fmt: skip


def agrees_with_pytorch(name, m, n, k, which, numbers):
    kernel, meaning, make, options = CASES[name]
    limits = options.get("limits", {})
    sizes = {"M": min(m, limits.get("M", m)), "N": min(n, limits.get("N", n)), "K": k}
    dtypes = options.get("dtypes", (torch.float32, torch.bfloat16, torch.float16))
    dtype = dtypes[which % len(dtypes)]
    for number in numbers:
        inputs = make(sizes, torch.Generator().manual_seed(number), dtype)
        inputs, outs = inputs if isinstance(inputs, tuple) else (inputs, {})
        tolerance = options.get("tolerance", 0)
        got = kernel(*inputs, **outs)
        got = got if isinstance(got, tuple) else (got,)
        for a, b in zip(got, expected(meaning, inputs), strict=True):
            close(a, b, tolerance)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("sizes", "which"), ROWS)
def test_verbs(name, sizes, which):
    agrees_with_pytorch(name, *sizes, which, numbers=range(4))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@given(m=SIZES, n=SIZES, k=SIZES, which=st.integers(0, 2), number=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@seed(7)
def test_verbs_of_any_size(name, m, n, k, which, number):
    agrees_with_pytorch(name, m, n, k, which, [number])


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("sizes", [{"M": 33, "N": 17, "K": 35}, {"M": 1, "N": 40, "K": 2}])
def test_evaluator_and_poison_agree(name, sizes):
    """Compiled code, the evaluator on live elements, and NaN in all dead ones: one answer."""
    kernel, _, make, options = CASES[name]
    inputs = make(sizes, torch.Generator().manual_seed(3), torch.float32)
    inputs, outs = inputs if isinstance(inputs, tuple) else (inputs, {})
    call = kernel.binder.bind(tuple(inputs), outs)
    key = kernel.key_of(call)
    got = kernel(*inputs, **{n: t.clone() for n, t in outs.items()})
    got = got if isinstance(got, tuple) else (got,)

    poisoned = kernel.lower(key, poison=True, watch=lambda _, fn: verify(fn))
    launch = launcher(poisoned.source, kernel.name, torch.device("cpu"))
    fresh = kernel.binder.bind(tuple(inputs), {n: t.clone() for n, t in outs.items()})
    kernel._allocate(fresh)
    tensors = {p.name: fresh.tensors[p.name] for p in kernel.signature.tensors}
    launch(*tensors.values(), *fresh.scalars.values())
    for p, want in zip(fresh.wanted, got, strict=True):
        assert torch.equal(fresh.tensors[p.name], want), f"dead elements reach {p.name}"

    tensors = {n: torch.view_as_real(t) if t.is_complex() else t for n, t in tensors.items()}
    arrays = {n: live_array(t) for n, t in tensors.items()}
    for p in fresh.wanted:
        start = outs[p.name] if p.name in outs else torch.zeros(tensors[p.name].shape)
        start = torch.view_as_real(start) if start.is_complex() else start
        floats = tensors[p.name].is_floating_point()
        arrays[p.name] = live_array(start if p.name in outs or floats else start.long())
    evaluate(kernel.lower(key).fn, arrays, fresh.scalars)
    for p, want in zip(fresh.wanted, got, strict=True):
        want = torch.view_as_real(want) if want.is_complex() else want
        close(want, torch.from_numpy(arrays[p.name]), max(options.get("tolerance", 0), 1e-6))


def test_every_verb_is_used():
    """The kernels above are compiled from source; every word of the language stands in them."""
    from pathlib import Path

    text = "".join(p.read_text() for p in Path(__file__).parent.glob("verbs*.py"))
    elsewhere = {  # operators and forms that stand for the word
        "add", "sub", "mul", "div", "neg", "abs", "eq", "ne", "lt", "le", "gt", "ge", "full",
        "zero", "one", "pos_infty", "dim", "static", "causal_limit", "div_row", "div_col",
        "argmin", "prod", "col_argmin", "mma_ABt", "mma_AtBt", "mm_AtB",
        "ring", "role", "run", "tasks",  # pipelines have tests of their own
    }  # fmt: skip
    missing = [v for v in VERBS if f"tk.{v}(" not in text and v not in elsewhere]
    assert not missing
