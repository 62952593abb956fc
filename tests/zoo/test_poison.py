"""NaN in every dead element of every tile of every kernel changes no bit of any output."""

import pytest
import torch
from zoo_helpers import made, outputs, poisoned, same_bits

import zoo
from tkpy.execution import strict
from zoo.kernels.codebook import owners
from zoo.kernels.fft import factors_of
from zoo.kernels.fft import tables as tables_of
from zoo.kernels.fftconv import spectrum

STATE = ("t0", "t1", "t2", "s0", "s1", "s2")


def state(b, h, f, v):
    shapes = ((), (f,), (f, f), (v,), (f, v), (f, f, v))
    return {
        n: made(b, h, *s, seed=2 * k).abs()
        for k, (n, s) in enumerate(zip(STATE, shapes, strict=True))
    }


def heads(n, m, d, g=1):
    return [made(1, h, x, d, seed=k) for k, (h, x) in enumerate(((2, n), (g, m), (g, m)))]


def based(n, f, v, **more):
    q, k, val = (made(1, 2, n, d, seed=s) for s, d in enumerate((f, f, v)))
    return "based", (q, k, val), {**{f"new_{name}": True for name in STATE}, **more}


def decayed(n, f, v, **more):
    given = (*(made(1, 2, n, d, seed=s) for s, d in enumerate((f, f, v))), torch.tensor([0.0, 0.3]))
    return "linear_attention", given, {"new_state": True, **more}


def mamba2(n, s, p, g=1, **more):
    a = torch.zeros(1, 2, n) - torch.arange(n) % 5
    x, b, c = (made(1, h, n, d, seed=k) for k, (h, d) in enumerate(((2, p), (g, s), (g, s))))
    return "mamba2", (x, a, b, c), {"new_state": True, **more}


def fftconv(rows, n):
    p, q = factors_of(n)
    tables = (spectrum(made(2, 30, seed=1), n), *tables_of(p, q, -1, torch.device("cpu")))
    return "fftconv", (made(2, 2, rows, q), *tables), {"batches": 1}


def hedgehog(n, m, d, e, v, **more):
    shapes = ((1, 2, n, d), (1, 1, m, d), (1, 1, m, v), (2, d, e), (2, d, e))
    given = (*(made(*s, seed=k) for k, s in enumerate(shapes)), torch.ones(2), torch.ones(2) / 3)
    return "hedgehog", given, {"new_state": True, "new_norm": True, **more}


def logits(m, v, d, **more):
    return "linear_cross_entropy", (made(m, d), made(v, d, seed=1), torch.arange(m) * 2), more


CLASSES = torch.arange(17) * 2
SEEN = torch.tensor([45, 0, 17])

CASES = {
    "gemm": ("gemm", (made(70, 50), made(50, 33, seed=1), made(33, seed=2)), {"epilogue": "gelu"}),
    "gemm transposed": (
        "gemm",
        (made(17, 130), made(40, 17, seed=1)),
        {"trans_a": True, "trans_b": True, "rows": 48, "cols": 80},
    ),
    "softmax": ("softmax", (made(5, 41),), {}),
    "softmax of long rows": ("softmax", (made(17, 100),), {"cols": 48}),
    "cross_entropy": ("cross_entropy", (made(5, 41), CLASSES[:5]), {"lse": True}),
    "cross_entropy of many": ("cross_entropy", (made(17, 100), CLASSES), {"cols": 48}),
    "linear_cross_entropy": logits(5, 41, 23, lse=True),
    "linear_cross_entropy, everything": logits(
        17, 100, 40, softcap=3.0, smoothing=0.1, z_loss=0.1, bias=made(100), rows=16, cols=48, depth=16
    ),
    "flux_gelu": ("flux_gelu", (made(70, 50), made(33, 50, seed=1), made(33, seed=2)), {}),
    "flux_gate": (
        "flux_gate",
        (made(70, 50), made(33, 50, seed=1), made(33, seed=2), made(33), made(70, 33, seed=3)),
        {"rows": 48, "cols": 16},
    ),
    "layernorm": (
        "layernorm",
        (made(5, 41), made(41, seed=1), made(41, seed=2)),
        {"residual": made(5, 41, seed=3), "total": True},
    ),
    "layernorm of long rows": ("layernorm", (made(17, 100), made(100, seed=1)), {"cols": 48}),
    "rmsnorm": ("rmsnorm", (made(1, 7), made(7, seed=1)), {}),
    "rmsnorm of long rows": ("rmsnorm", (made(3, 50), made(50, seed=1)), {"cols": 32}),
    "rotary": ("rotary", (made(1, 2, 70, 23, seed=1), made(70, 5), made(70, 5, seed=2)), {}),
    "short_conv": (
        "short_conv",
        (made(2, 70, 33), made(33, 4, seed=1), made(33, seed=2), made(2, 3, 33, seed=3)),
        {"activation": "silu", "new_state": True},
    ),
    "short_conv of one step": (
        "short_conv",
        (made(1, 1, 5), made(5, 3, seed=1)),
        {"state": made(1, 2, 5), "new_state": True},
    ),
    "short_conv, gated": (
        "short_conv",
        (made(2, 70, 33), made(33, 3, seed=1), made(33, seed=2)),
        {"gate": made(2, 70, 33, seed=3), "skip": True},
    ),
    "swiglu": ("swiglu", (made(21, 2, 70),), {}),
    "swiglu of wide rows": ("swiglu", (made(3, 2, 100),), {"cols": 48}),
    "fftconv": fftconv(3, 90),
    "attention": ("attention", heads(70, 45, 40), {"lse": True}),
    "attention, causal": (
        "attention",
        heads(45, 70, 8, g=2),
        {"lse": True, "causal": True, "rows": 48, "cols": 16},
    ),
    "attention, window": ("attention", heads(50, 30, 5), {"lse": True, "window": 7, "cols": 16}),
    "attention_decode": (
        "attention_decode",
        (made(3, 4, 5), made(3, 2, 45, 5, seed=1), made(3, 2, 45, 5, seed=2), SEEN),
        {"cols": 16},
    ),
    "linear_attention": decayed(41, 5, 23, chunk=16, cols=16),
    "linear_attention with state": decayed(70, 40, 23, state=made(1, 2, 40, 23, seed=4)),
    "mamba2": mamba2(41, 5, 23, chunk=16, cols=16),
    "mamba2 with state": mamba2(70, 40, 23, g=2, state=made(1, 2, 40, 23, seed=4)),
    "hedgehog": hedgehog(30, 41, 20, 5, 23, window=7, rows=16, cols=16),
    "hedgehog, sliding, with state": hedgehog(
        41, 50, 8, 16, 8, style="sliding", window=20, cols=32,
        state=made(1, 2, 32, 8), norm=made(1, 2, 32).abs(),
    ),
    "based": based(41, 5, 23, chunk=16, cols=16),
    "based with state": based(20, 16, 33, **state(1, 2, 16, 33)),
    "based of one chunk": based(3, 1, 1),
    "taylor_quadratic": ("taylor_quadratic", based(70, 5, 23)[1], {"rows": 48, "cols": 16}),
    "taylor_block": ("taylor_block", based(41, 5, 23)[1], {}),
    "based_decode": (
        "based_decode",
        (made(2, 3, 5), made(2, 3, 5, seed=1), made(2, 3, 23, seed=2)),
        state(2, 3, 5, 23),
    ),
    "nearest_code": ("nearest_code", (made(2, 41, 5), made(2, 33, 5, seed=2)), {"rows": 32, "cols": 16}),
    "vector_quantize": (
        "vector_quantize",
        (made(2, 41, 5), made(2, 33, 5, seed=2)),
        {"mask": torch.arange(41) % 3 > 0, "error": True, "metric": "cosine"},
    ),
    "vector_quantize_gradient": (
        "vector_quantize_gradient",
        (made(2, 41, 5), made(2, 41, 5, seed=2), torch.arange(82).view(2, 41) % 9 - 1),
        {"from_q": made(2, 41, 5, seed=4), "from_commitment": made(2, 41, seed=6)},
    ),
    "code_sums": (
        "code_sums",
        (made(2, 41, 5), *owners(torch.arange(82).view(2, 41) % 9 - 1, 8)),
        {"weights": made(2, 41, seed=2), "total": True},
    ),
    "ema_codebook": (
        "ema_codebook",
        (made(2, 41).abs(), made(2, 41, 5), torch.ones(2), made(2, 41).abs(), made(2, 41, 5, seed=2)),
        {"metric": "cosine"},
    ),
}  # fmt: skip


#: Cases of larger kernels of which another case, or fp32, is tried every time.
SLOW = {
    "linear_attention with state", "mamba2 with state", "hedgehog, sliding, with state",
    "linear_cross_entropy", "nearest_code", "ema_codebook",
}  # fmt: skip
LARGE = {
    "linear_attention", "mamba2", "hedgehog", "linear_cross_entropy", "flux_gelu",
    "vector_quantize", "vector_quantize_gradient", "code_sums", "taylor_quadratic",
    "attention_decode",
}  # fmt: skip
#: Cases whose kernel another case tries every time.
TWICE = {
    "based of one chunk",
    "based with state",
    "attention, window",
    "gemm transposed",
    "fftconv",
    "short_conv",
    "swiglu of wide rows",
    "taylor_block",
}
#: One type of each case is tried every time, by turns; "based with state" is shorter than a chunk
#: too.
AGAIN = {(n, (torch.bfloat16, torch.float32)[k % 2]) for k, n in enumerate(CASES)}
AGAIN |= {("based of one chunk", t) for t in (torch.float32, torch.bfloat16)}
AGAIN -= {(n, torch.float32) for n in CASES if CASES[n][0] in LARGE}
FAST_OR_SLOW = [
    pytest.param(n, marks=pytest.mark.slow if n in SLOW | TWICE or CASES[n][0] in LARGE else ())
    for n in CASES
]


@pytest.mark.parametrize(
    "case, dtype",
    [
        pytest.param(
            n,
            dtype,
            marks=pytest.mark.slow
            if n in SLOW
            or (n, dtype) in AGAIN
            or (dtype is torch.bfloat16 and CASES[n][0] in LARGE)
            else (),
        )
        for n in CASES
        for dtype in (torch.float32, torch.bfloat16)
    ],
    ids=str,
)
def test_dead_elements_do_not_matter(case, dtype):
    name, args, keywords = CASES[case]
    kernel = zoo.kernels()[name]
    if dtype is torch.bfloat16:
        keywords = dict(zip([p.name for p in kernel.binder.positional], args)) | keywords  # noqa: B905
        args = ()
        for n, x in keywords.items():
            # What the signature says is fp32, as a state, stays so.
            if isinstance(x, torch.Tensor) and isinstance(
                kernel.signature.parameter(n).spec.dtype, str
            ):
                keywords[n] = x.to(dtype)
    wanted = {p.name for p in kernel.signature.outputs if p.spec.optional} - set(keywords)
    with strict():
        want = outputs(kernel, *args, **keywords, **dict.fromkeys(wanted, False))
        got = poisoned(kernel, *args, **keywords)
    assert want.keys() == got.keys()
    for n, x in want.items():
        assert same_bits(x, got[n]), n
        assert not x.isnan().any(), n


def test_every_kernel_is_poisoned():
    assert {name for name, *_ in CASES.values()} == set(zoo.kernels())


def test_poison_that_reaches_a_result_is_seen(monkeypatch):
    """Without the pass that keeps dead elements out, this test sees them."""
    monkeypatch.setattr("codegen.passes.neutralise", lambda fn, trust: None)
    x = made(5, 41)
    assert poisoned(zoo.kernels()["softmax"], x)["y"].isnan().any()
