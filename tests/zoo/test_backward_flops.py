"""FLOPs of the zoo's derived backwards over their forwards': counted, nothing runs.

At most 3.6 where every gradient is owned, and 3 where some are partial sums.
"""

import pytest

from codegen.cost import cost
from tkpy.ahead import Setting, backward_of, call_of
from tkpy.lower import derivation_of
from zoo import kernels

ALL = kernels()
#: Without a derivative: no floats go in or come out, or a tensor is changed in place; or how much
#: work it is only a run tells.
NONE = {"based_decode", "nearest_code", "code_sums", "ema_codebook", "attention_decode"}
#: Large programs, dear to derive.
SLOW = {"linear_attention", "mamba2", "hedgehog", "based", "fftconv", "short_conv"}
SLOW |= {"taylor_quadratic", "vector_quantize", "flux_gelu", "flux_gate"}
#: Softmax in a window has two products of the forward and seven of the backward, as attention has;
#: what it adds up are the weights' gradients, which are small.
MORE = {"hedgehog": 3.4}
#: On a GPU a joint program would be one of few; see docs/gradients.md.
APART = {"linear_cross_entropy": 4.0}

CASES = [
    pytest.param(n, p, marks=pytest.mark.slow) if n in SLOW or p == "cuda" else (n, p)
    for n in ALL
    if n not in NONE
    for p in ("cpu", "cuda")
]


@pytest.mark.parametrize(("name", "place"), CASES)
def test_flops(name, place):
    kernel = ALL[name]
    target = "cpu" if place == "cpu" else "sm_90"
    setting = Setting("bf16", {d.name: 2 for d in kernel.signature.dims if d.name in ("B", "G")})
    call = call_of(kernel, setting, place, target)
    key, wrt, given = backward_of(kernel, setting, place, target)
    joint = kernel.backward.jointly(key, wrt, given, True, call)
    how = (kernel.fn, kernel.signature, key, wrt, given, kernel.template)
    made = derivation_of(*how, joint=joint)[0]
    taped = kernel.backward.choose(made.taped, call)
    assert not any(c.segment for c in taped)
    forward, *programs = [cost(f) for f in (made.forward, *(p.fn for p in made.pieces))]
    kinds = ("matrix",) if forward.number("matrix", call.sizes) else ("vector", "special")

    def work(c):
        return sum(c.number(k, call.sizes) for k in kinds)

    owned = not any(g.parts for g in made.gradients.values())
    limit = MORE.get(name, 3.6 if owned else 3.0)
    if place == "cuda":
        limit = APART.get(name, limit)
    assert sum(map(work, programs)) <= limit * work(forward), limit


def test_every_kernel_is_counted():
    assert set(ALL) >= NONE and len(CASES) == 2 * (len(ALL) - len(NONE))
