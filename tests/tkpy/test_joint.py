"""Gradients that share a loop nest: each from programs of its own, or all from one."""

import numpy as np
import pytest
import torch
from gradients import autograd, derive, exact, native

from codegen.cost import cost, evaluate
from zoo.kernels.attention import attention
from zoo.kernels.linear_cross_entropy import linear_cross_entropy


def _attention(n=35, m=50, heads=4, groups=2, d=16, causal=True, **options):
    torch.manual_seed(0)
    q = torch.randn(1, heads, n, d)
    k, v = torch.randn(2, 1, groups, m, d).unbind()
    return {"q": q, "k": k, "v": v, "causal": causal, "rows": 16, "cols": 16, **options}


def _entropy():
    torch.manual_seed(0)
    target = torch.tensor([3, 39, -100, 0, *range(16)])
    sides = {"rows": 16, "cols": 16, "depth": 16}
    return {"x": torch.randn(20, 40), "weight": torch.randn(40, 40), "target": target, **sides}


CASES = {
    "causal": (attention, _attention(20, 35)),
    "whole": (attention, _attention(20, 20, causal=False)),
    "long queries": (attention, _attention(n=35, m=20)),
    "window": (attention, _attention(30, 40, window=9)),
    "cross entropy": (linear_cross_entropy, _entropy()),
}


def _want(kernel, arguments, derived, cts):
    tensors = {n: x for n, x in arguments.items() if isinstance(x, torch.Tensor)}
    rest = {n: arguments[n] for n in ("causal", "window") if n in arguments}

    def meaning(*values):
        out = kernel.reference_fn(**dict(zip(tensors, values, strict=True)), **rest)
        return out[0] if isinstance(out, tuple) else out

    return autograd(meaning, tensors, derived.wrt, cts, derived.outputs())


#: Like the others, and dear; of attention both forms are also held against each other below.
SLOW = [(n, j) for n in CASES for j in (False, True) if "cross" not in n]
FORMS = [
    pytest.param(n, j, marks=pytest.mark.slow) if (n, j) in SLOW else (n, j)
    for n in CASES
    for j in (False, True)
]


@pytest.mark.parametrize(("name", "joint"), FORMS)
def test_without_rounding(name, joint):
    kernel, arguments = CASES[name]
    derived = derive(kernel, arguments, joint=joint)
    programs = [p.fn.name for p in derived.made.pieces if "vectors" not in p.fn.name]
    assert len(programs) == (1 if joint else 2)
    torch.manual_seed(1)
    outs = kernel.backward.forward(arguments, derived.wrt)[0]
    cts = {derived.outputs()[0]: torch.randn_like(outs[0])}
    got, want = exact(derived, cts), _want(kernel, arguments, derived, cts)
    for n in derived.wrt:
        assert np.abs(got[n] - want[n]).max() <= 1e-6 * np.abs(want[n]).max(), n


def test_forms_agree_where_they_run(monkeypatch):
    arguments = _attention(n=70, m=90, d=32)
    cts = {"o": torch.randn(1, 4, 70, 32)}
    found = []
    for joint in (False, True):
        monkeypatch.setattr(attention.backward, "joint", joint)
        found.append(native(attention, arguments, ["k", "q", "v"], cts))
    for n in "qkv":
        size = found[0][n].abs().max()
        assert (found[0][n] - found[1][n]).abs().max() <= 64 * 2**-24 * size


def test_products():
    """Of attention: two forward, seven backward where every gradient is owned, five jointly."""
    sizes = {"B": 1, "H": 4, "G": 4, "N": 1024, "M": 1024}
    flops = {}
    for joint in (False, True):
        made = derive(attention, _attention(64, 64, 4, 4, 64, False), joint=joint).made
        programs = {"forward": [made.forward], joint: made.pieces}
        for key, several in programs.items():
            flops[key] = sum(evaluate(cost(p.fn).flops(), sizes) for p in several)
    assert flops[False] <= 3.6 * flops["forward"]
    assert flops[True] <= 2.6 * flops["forward"]
