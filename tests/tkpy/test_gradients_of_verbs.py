"""The derivative of every verb: derived programs, run without rounding, against autograd.

Then compiled: on small integers nothing rounds, so the comparison is all but equality, and NaN in
every dead element must change no bit.
"""

import numpy as np
import pytest
import torch
import verbs_narrow  # noqa: F401  adds to CASES
import verbs_numbers  # noqa: F401
import verbs_order  # noqa: F401
from gradients import autograd, derive, exact, run
from verbs import CASES

from codegen.grad.rules import NONE, REFUSED, RULES, STRUCTURE
from codegen.ops import TABLE
from tkpy.errors import CompileError
from tkpy.testing.model import half_ulp

#: Kernels that are refused, and what the message says.
REFUSALS = {
    "largest": "the values that tk.topk returns",
    "control": "the loop carries count",
    "products_fp8e4m3": "rounded to fp8e4m3",
    "products_fp8e5m2": "rounded to fp8e5m2",
}
#: References that autograd cannot follow.
BLIND = ("randoms", "rounding")
SMALL, ONE = {"M": 33, "N": 17, "K": 35}, {"M": 1, "N": 40, "K": 2}
QUICK = ("maps", "broadcasts", "reductions", "masks", "products", "outer", "packed_sums")


def differentiable():
    skip = {*REFUSALS, *BLIND}
    names = [n for n in CASES if n not in skip and floats(CASES[n][0])]
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


def floats(kernel):
    """Whether anything in and anything out may be a float."""

    def inexact(p):
        return isinstance(p.spec.dtype, str) or p.spec.dtype.inexact

    signature = kernel.signature
    return any(map(inexact, signature.inputs)) and any(map(inexact, signature.outputs))


def arguments(name, sizes, seed, normal):
    kernel, _, make, _ = CASES[name]
    g = torch.Generator().manual_seed(seed)
    inputs = make(sizes, g, torch.float32)
    inputs, outs = inputs if isinstance(inputs, tuple) else (inputs, {})
    if normal:  # without ties: at one the derivative is a choice
        inputs = [
            torch.randn(x.shape, generator=g, dtype=x.dtype)
            if isinstance(x, torch.Tensor) and x.is_floating_point() | x.is_complex()
            and x.element_size() > 1
            else x
            for x in inputs
        ]  # fmt: skip
    taken = {p.name for p in (*kernel.signature.inputs, *kernel.signature.scalars)}
    names = [p.name for p in kernel.signature.parameters if p.name in taken]
    return dict(zip(names, inputs, strict=False)), outs, g


def cotangents(derived, g, normal=True):
    derived.kernel._allocate(derived.call)
    out = {}
    for n in derived.outputs():
        t = derived.call.tensors[n]
        dtype = t.dtype if t.element_size() > 1 else torch.float32
        out[n] = (
            torch.randn(t.shape, generator=g, dtype=dtype)
            if normal
            else torch.randint(-2, 3, t.shape, generator=g).to(dtype)
        ).to(t.dtype)
    if derived.kernel.name == "transcendental":
        out["o"][7] = 0  # that row is of a detached value
    return out


@pytest.mark.parametrize("name", differentiable())
@pytest.mark.parametrize("sizes", [SMALL, pytest.param(ONE, marks=pytest.mark.slow)])
def test_without_rounding(name, sizes):
    kernel, meaning, _, _ = CASES[name]
    given, outs, g = arguments(name, sizes, 3, True)
    derived = derive(kernel, {**given, **outs})
    cts = cotangents(derived, g)
    got = exact(derived, cts)
    want = autograd(meaning, given, derived.wrt, cts, [p.name for p in derived.call.wanted])
    for n in derived.wrt:
        scale = 1 + np.abs(want[n]).max(initial=0)
        close = 1e-6 if "fp8" in name else 1e-12  # those references pass through fp32
        assert np.abs(got[n] - want[n]).max(initial=0) <= close * scale, n


@pytest.mark.slow
@pytest.mark.parametrize("name", differentiable())
@pytest.mark.parametrize("sizes", [SMALL, ONE])
def test_compiled_and_poisoned(name, sizes):
    kernel = CASES[name][0]
    given, outs, g = arguments(name, sizes, 5, False)
    derived = derive(kernel, {**given, **outs})
    cts = cotangents(derived, g, normal=False)
    want, got = exact(derived, cts), run(derived, cts)
    poisoned = run(derive(kernel, {**given, **outs}, poison=True), cts, blank=float("nan"))
    for n in derived.wrt:
        t = torch.view_as_real(got[n]) if got[n].is_complex() else got[n]
        scale = 1 + np.abs(want[n]).max(initial=0)
        narrow = t.element_size() == 1  # numbers that fp32 holds, rounded once as they are stored
        last = half_ulp(torch.from_numpy(want[n]).abs(), t.dtype).numpy() if narrow else 0
        assert (np.abs(t.double().numpy() - want[n]) <= 2e-6 * scale + last).all(), n
        if CASES[name][3].get("tolerance"):  # what is written down between fuses differently
            assert torch.allclose(got[n], poisoned[n], 1e-5, 1e-6 * scale), n
        else:
            assert torch.equal(got[n], poisoned[n]), f"dead elements reach d_{n}"


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name):
    kernel = CASES[name][0]
    given, outs, _ = arguments(name, SMALL, 3, False)
    with pytest.raises(CompileError) as e:
        derive(kernel, {**given, **outs})
    message = str(e.value)
    assert REFUSALS[name] in message and ".py:" in message
    assert "fix:" in message


def test_every_kind_has_a_place():
    """A new operation says what its derivative is, that it has none, or why it is refused."""
    tables = [set(RULES), set(NONE), set(REFUSED), set(STRUCTURE)]
    for k, one in enumerate(tables):
        for two in tables[:k]:
            assert not one & two
    known = set().union(*tables)
    assert set(TABLE) <= known, set(TABLE) - known
    assert known <= set(TABLE), known - set(TABLE)
