"""What ``python -m bench cpu`` measures: the zoo's kernels beside PyTorch, and JAX if it is there.

Every row has its own inputs, outputs that are allocated beforehand where both sides allow it, the
limit that the machine sets it, and a comparison of results, because a fast wrong kernel is none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from zoo.kernels.attention import attention
from zoo.kernels.based import based
from zoo.kernels.cross_entropy import cross_entropy
from zoo.kernels.gemm import gemm
from zoo.kernels.norm import layernorm, rmsnorm
from zoo.kernels.rotary import rotary
from zoo.kernels.softmax import softmax

F = torch.nn.functional
EPS = {"fp32": 2.0**-24, "bf16": 2.0**-9}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Work:
    """One row: ``ours``, its rivals by name, and its limit.

    flops and dtype: a limit by multiply-adds; moved: else one by memory, in bytes read and written.
    agree: raises AssertionError if the results of ours and the first rival differ.
    slow: the rival takes seconds a call, so few calls are made; interpret: also timed in Triton's
    interpreter (there ``ours`` is run once).
    """

    ours: Callable[[], object]
    rivals: dict[str, Callable[[], object]]
    agree: Callable[[], None]
    flops: float = 0
    dtype: str = "fp32"
    moved: float = 0
    slow: bool = False
    interpret: bool = False
    keep: list = field(default_factory=list)


def _near(got: torch.Tensor, want: torch.Tensor, dtype: str, terms: float) -> None:
    """|got - want| of two results, each within ``terms`` roundings of the largest element."""
    error = (got.double() - want.double()).abs().max() / want.double().abs().max()
    if not error <= 2 * terms * EPS[dtype]:
        raise AssertionError(f"relative error {error:.3g} exceeds {2 * terms * EPS[dtype]:.3g}")


def _jax(fn: Callable, *tensors: torch.Tensor) -> dict[str, Callable[[], object]]:
    """``fn(jnp, *arrays)`` under ``jax.jit``, if JAX is installed."""
    if importlib.util.find_spec("jax") is None:
        return {}
    import jax
    import jax.numpy as jnp

    arrays = [jnp.asarray(t.float().numpy(), jnp.bfloat16 if t.dtype == torch.bfloat16 else None)
              for t in tensors]  # fmt: skip
    run = jax.jit(lambda *a: fn(jnp, *a))
    return {"jax": lambda: run(*arrays).block_until_ready()}


def _gemm(m: int, n: int, k: int, name: str, interpret: bool = False) -> Work:
    dtype = DTYPES[name]
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    c, ref = torch.empty(m, n, dtype=dtype), torch.empty(m, n, dtype=dtype)
    blocks = {"rows": 512, "cols": 512, "depth": 256 if k < 2048 else 512}
    if name == "bf16":
        blocks = {"rows": 512, "cols": 512, "depth": 512}
    return Work(
        lambda: gemm(a, b, c=c, **blocks),
        {"torch": lambda: torch.mm(a, b, out=ref), **_jax(lambda j, x, y: j.matmul(x, y), a, b)},
        lambda: _near(c, ref, name, k**0.5 if name == "fp32" else 2),
        flops=2 * m * n * k,
        dtype=name,
        interpret=interpret,
    )


def _attention(n: int, causal: bool, name: str) -> Work:
    q, k, v = (torch.randn(1, 4, n, 64).to(DTYPES[name]) for _ in range(3))
    o = torch.empty_like(q)
    blocks = {"rows": 128, "cols": 64}
    if name == "bf16" and n < 4096:
        blocks = {"rows": 128 if causal else 256, "cols": 128}
    elif name == "bf16":
        blocks = {"rows": 512, "cols": 256 if causal else 512}

    def rival():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return Work(
        lambda: attention(q, k, v, o=o, causal=causal, **blocks),
        {"torch": rival},
        lambda: _near(o, rival(), name, 32 if name == "fp32" else 4),
        flops=4 * 4 * n * (n + 1 if causal else 2 * n) * 64 / 2,
        dtype=name,
        interpret=n == 1024 and name == "fp32",
    )


def _row(kind: str) -> Work:
    x, o = torch.randn(4096, 1024), torch.empty(4096, 1024)
    w, b = torch.randn(1024), torch.randn(1024)
    ref = torch.empty_like(x)
    ours, eager = {
        "softmax": (lambda: softmax(x, y=o), lambda x: torch.softmax(x, -1)),
        "layernorm": (
            lambda: layernorm(x, w, bias=b, y=o),
            lambda x: F.layer_norm(x, (1024,), w, b),
        ),
        "rmsnorm": (lambda: rmsnorm(x, w, y=o), lambda x: F.rms_norm(x, (1024,), w, 1e-5)),
    }[kind]
    rivals = {"torch": lambda: eager(x)}
    if kind == "softmax":
        rivals["torch"] = lambda: torch.softmax(x, -1, out=ref)
    compiled = torch.compile(lambda x, out: out.copy_(eager(x)))
    rivals["torch.compile"] = lambda: compiled(x, ref)
    return Work(ours, rivals, lambda: _near(o, eager(x), "fp32", 32),
                moved=2 * x.numel() * 4, interpret=True)  # fmt: skip


def _residual() -> Work:
    x, r = torch.randn(4096, 1024), torch.randn(4096, 1024)
    o, total, w = torch.empty_like(x), torch.empty_like(x), torch.randn(1024)

    def rival():
        h = x + r
        return F.rms_norm(h, (1024,), w, 1e-5), h

    return Work(lambda: rmsnorm(x, w, residual=r, y=o, total=total), {"torch": rival},
                lambda: _near(o, rival()[0], "fp32", 32), moved=4 * x.numel() * 4)  # fmt: skip


def _rotary() -> Work:
    x, angle = torch.randn(1, 8, 4096, 64), torch.randn(4096, 32)
    y, cos, sin = torch.empty_like(x), angle.cos(), angle.sin()
    wide_cos, wide_sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)

    def rival():  # as in transformers' LLaMA
        one, two = x.chunk(2, -1)
        return x * wide_cos + torch.cat([-two, one], -1) * wide_sin

    return Work(lambda: rotary(x, cos, sin, y=y), {"torch": rival},
                lambda: _near(y, rival(), "fp32", 4), moved=2 * x.numel() * 4)  # fmt: skip


def _cross_entropy() -> Work:
    x, target = torch.randn(1024, 32000), torch.randint(0, 32000, (1024,))
    loss = torch.empty(1024)

    def rival():
        return F.cross_entropy(x, target, reduction="none")

    return Work(lambda: cross_entropy(x, target, loss=loss), {"torch": rival},
                lambda: _near(loss, rival(), "fp32", 64), moved=x.numel() * 4)  # fmt: skip


def _based(n: int) -> Work:
    """Against exact attention with heads as wide as BASED's values, which is what it replaces."""
    q, k, v = torch.randn(1, 4, n, 16), torch.randn(1, 4, n, 16), torch.randn(1, 4, n, 64)
    wide_q, wide_k = torch.randn(1, 4, n, 64), torch.randn(1, 4, n, 64)
    y = torch.empty_like(v)

    def ours():
        return based(q, k, v, y=y, chunk=64, cols=64)

    def agree():
        # The first 512 positions do not know how many follow.
        s = (q[:, :, :512].double() @ k[:, :, :512].double().mT) / 4
        a = (1 + s + s * s / 2).tril()
        want = a @ v[:, :, :512].double() / a.sum(-1, keepdim=True)
        _near(y[:, :, :512], want, "fp32", 256)

    # flops: the state's two products of F (F + 1) / 2 x V a position; all else is below a third.
    def rival():
        return F.scaled_dot_product_attention(wide_q, wide_k, v, is_causal=True)

    return Work(ours, {"torch": rival}, agree, flops=4 * 4 * n * 136 * 64, slow=True)


def work() -> dict[str, Callable[[], Work]]:
    """Every row by name; nothing is allocated before a row is called."""
    rows: dict[str, Callable[[], Work]] = {
        "gemm fp32 1024": lambda: _gemm(1024, 1024, 1024, "fp32", True),
        "gemm fp32 2048": lambda: _gemm(2048, 2048, 2048, "fp32"),
        "gemm fp32 1000x1100x900": lambda: _gemm(1000, 1100, 900, "fp32"),
        "gemm bf16 2048": lambda: _gemm(2048, 2048, 2048, "bf16"),
    }
    for name in DTYPES:
        for n in (1024, 4096):
            for causal in (False, True):
                title = f"attention {name} {'causal ' if causal else ''}{n}"
                rows[title] = lambda n=n, causal=causal, name=name: _attention(n, causal, name)
    for kind in ("softmax", "layernorm", "rmsnorm"):
        rows[f"{kind} 4096x1024"] = lambda kind=kind: _row(kind)
    rows["rmsnorm residual 4096x1024"] = _residual
    rows["rotary 8x4096x64"] = _rotary
    rows["cross entropy 1024x32000"] = _cross_entropy
    for n in (8192, 32768):
        rows[f"based {n}"] = lambda n=n: _based(n)
    from bench import sequence  # which takes Work from here

    rows["linear attention 8192"] = lambda: sequence.linear(8192)
    rows["mamba2 4096"] = lambda: sequence.ssd(4096)
    rows["hedgehog 4096"] = lambda: sequence.hybrid(4096)
    rows["linear cross entropy 1024x1024x32000"] = lambda: sequence.projected(1024, 1024, 32000)
    rows["flux gelu 1024x1024x4096"] = lambda: sequence.gelu(1024, 1024, 4096)
    return rows
