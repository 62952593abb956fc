"""Kernels that torch's own compiler writes: a transformer block through Inductor's Triton."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bench.peers.row import Case, Draw

WIDTH, HEADS = 32, 2


def transformer_block(x, norm, qkv, out, between, up, down):
    """A pre-norm block: layer norm, causal attention written out, rms norm, a gelu network.

    x: [B, T, 32]; norm, between: [32]; the others as in ``torch.nn.functional.linear``.
    """
    b, t, d = x.shape
    y = F.linear(F.layer_norm(x, (d,), norm), qkv).view(b, t, 3, HEADS, d // HEADS)
    q, k, v = y.permute(2, 0, 3, 1, 4)
    s = q @ k.transpose(-1, -2) * (d // HEADS) ** -0.5
    below = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
    y = s.masked_fill(~below, float("-inf")).softmax(-1) @ v
    x = x + F.linear(y.transpose(1, 2).reshape(b, t, d), out)
    return x + F.linear(F.gelu(F.linear(F.rms_norm(x, (d,), between, 1e-5), up)), down)


def compiled_transformer_block(**inputs):
    """The same under ``torch.compile``, with ``torch._inductor.config.cpu_backend = "triton"``."""
    import torch._inductor.config as config

    options = {"cpu_backend": "triton", "compile_threads": 1, "fx_graph_cache": False}
    with config.patch(options):
        return torch.compile(transformer_block, fullgraph=True, dynamic=False)(**inputs)


NAME = "torch.compile.transformer_block"


def _block(d: Draw) -> Case:
    def matrix(rows: int, columns: int) -> torch.Tensor:
        return d.randn(rows, columns, scale=columns**-0.5)

    inputs = {
        "x": d.randn(d.B, d.T, WIDTH),
        "norm": d.randn(WIDTH),
        "qkv": matrix(3 * WIDTH, WIDTH),
        "out": matrix(WIDTH, WIDTH),
        "between": d.randn(WIDTH),
        "up": matrix(4 * WIDTH, WIDTH),
        "down": matrix(WIDTH, 4 * WIDTH),
    }
    return Case(compiled_transformer_block, transformer_block, inputs)


RECIPES = {NAME: _block}
