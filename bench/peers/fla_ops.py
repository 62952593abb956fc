"""How to call the ops of ``fla.ops``: linear attention by gates, and its close relatives."""

from __future__ import annotations

from collections.abc import Callable

import fla.ops as ops
import fla.ops.abc.naive as abc_naive
import fla.ops.based.naive as based_naive
import fla.ops.gsa.naive as gsa_naive
import fla.ops.hgrn.naive as hgrn_naive
import fla.ops.rebased.naive as rebased_naive
import fla.ops.retention.naive as retention_naive
import torch
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.hgrn import chunk_hgrn
from fla.ops.lightnet import chunk_lightnet, fused_recurrent_lightnet
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.rebased import parallel_rebased
from fla.ops.rwkv4 import fused_recurrent_rwkv4
from fla.ops.simple_gla.naive import naive_parallel_simple_gla, naive_recurrent_simple_gla

from bench.peers import linear
from bench.peers.row import Case, Draw

RECIPES: dict[str, Callable[[Draw], Case]] = {}


def recipe(*names: str):
    """Register a recipe for one or more ops, ``module.function`` below ``fla.ops``."""

    def add(f):
        for name in names:
            RECIPES[f"fla.ops.{name}"] = f
        return f

    return add


def state(d: Draw, *shape) -> torch.Tensor:
    """An initial state, which FLA keeps in float32."""
    return d.wide(*shape) * 0.5


def swap(*tensors):
    """(batch, time, head, ...) <-> (batch, head, time, ...)"""
    out = tuple(t.transpose(1, 2) for t in tensors)
    return out if len(out) > 1 else out[0]


# -- a scalar decay per head -------------------------------------------------------------------


def _simple(op):
    def build(d: Draw) -> Case:
        x = {**d.qkv(), "g": d.gate(d.B, d.T, d.H), "h0": state(d, d.B, d.H, d.K, d.V)}
        return Case(
            lambda q, k, v, g, h0: op(q, k, v, g=g, initial_state=h0, output_final_state=True),
            lambda q, k, v, g, h0: naive_recurrent_simple_gla(q, k, v, g, initial_state=h0),
            x)  # fmt: skip

    return build


for _name in ("chunk_simple_gla", "fused_chunk_simple_gla", "fused_recurrent_simple_gla"):
    recipe(f"simple_gla.{_name}")(_simple(getattr(ops, _name)))


@recipe("simple_gla.parallel_simple_gla")
def _(d):
    x = {**d.qkv(), "g": d.gate(d.B, d.T, d.H)}
    return Case(lambda q, k, v, g: ops.parallel_simple_gla(q, k, v, g)[0],
                lambda q, k, v, g: naive_parallel_simple_gla(q, k, v, g)[0], x)  # fmt: skip


def _fixed(op, decay, *args):
    """A decay that depends on nothing but the head."""

    def build(d: Draw) -> Case:
        x = {**d.qkv(), "h0": state(d, d.B, d.H, d.K, d.V)}

        def want(q, k, v, h0):
            g = decay(d.H).to(q.dtype)[None, None, :, None].expand(d.B, d.T, d.H, 1)
            return linear.gated(q, k, v, g, h0=h0)

        return Case(lambda q, k, v, h0: op(q, k, v, *args, initial_state=h0,
                                           output_final_state=True), want, x)  # fmt: skip

    return build


def _retention_decay(heads: int):
    return torch.log(1 - 2.0 ** (-5.0 - torch.arange(heads, dtype=torch.float64)))


def _lightning_decay(heads: int, layer: int = 3, layers: int = 4):
    at = torch.arange(heads, dtype=torch.float64)
    return -(8 / heads * (1 - layer / layers)) * at


for _name in ("chunk_retention", "fused_chunk_retention", "fused_recurrent_retention"):
    recipe(f"retention.{_name}")(_fixed(getattr(ops, _name), _retention_decay))
for _name in ("chunk_lightning_attn", "fused_recurrent_lightning_attn"):
    recipe(f"lightning_attn.{_name}")(_fixed(getattr(ops, _name), _lightning_decay, 3, 4))


@recipe("retention.parallel_retention")
def _(d):
    return Case(lambda q, k, v: ops.parallel_retention(q, k, v)[0],
                lambda q, k, v: swap(retention_naive.naive_retention(*swap(q, k, v))),
                d.qkv())  # fmt: skip


# -- no decay ----------------------------------------------------------------------------------


def _linear(op):
    def build(d: Draw) -> Case:
        x = {**d.qkv(), "h0": state(d, d.B, d.H, d.K, d.V)}
        options = {"output_final_state": True, "normalize": False}
        return Case(
            lambda q, k, v, h0: op(q, k, v, initial_state=h0, **options),
            lambda q, k, v, h0: naive_recurrent_linear_attn(q, k, v, initial_state=h0, **options),
            x)  # fmt: skip

    return build


for _name in ("chunk_linear_attn", "fused_chunk_linear_attn", "fused_recurrent_linear_attn"):
    recipe(f"linear_attn.{_name}")(_linear(getattr(ops, _name)))


def _based(op, naive, size):
    def build(d: Draw) -> Case:
        d.K = size
        return Case(op, lambda q, k, v: swap(naive(*swap(q, k, v))),
                    {k: x * (0.5 if k != "v" else 1) for k, x in d.qkv().items()})  # fmt: skip

    return build


for _name in ("fused_chunk_based", "parallel_based"):
    recipe(f"based.{_name}")(_based(getattr(ops, _name), based_naive.naive_parallel_based, 16))
recipe("rebased.parallel_rebased")(
    _based(lambda q, k, v: parallel_rebased(q, k, v, eps=1e-6),
           rebased_naive.naive_parallel_rebased, 16))  # fmt: skip


# -- a decay per feature -----------------------------------------------------------------------


@recipe("gla.chunk_gla")
def _(d):
    x = {**d.qkv(), "g": d.gate(d.B, d.T, d.H, d.K), "h0": state(d, d.B, d.H, d.K, d.V)}
    return Case(
        lambda q, k, v, g, h0: ops.chunk_gla(q, k, v, g, initial_state=h0,
                                             output_final_state=True),
        lambda q, k, v, g, h0: naive_recurrent_gla(q, k, v, g, h0, True), x)  # fmt: skip


@recipe("gla.fused_recurrent_gla")
def _(d):
    x = {**d.qkv(), "gk": d.gate(d.B, d.T, d.H, d.K), "gv": d.gate(d.B, d.T, d.H, d.V),
         "h0": state(d, d.B, d.H, d.K, d.V)}  # fmt: skip
    return Case(
        lambda q, k, v, gk, gv, h0: ops.fused_recurrent_gla(
            q, k, v, gk, gv, initial_state=h0, output_final_state=True),
        linear.gated, x)  # fmt: skip


def _lightnet(op):
    def build(d: Draw) -> Case:
        def want(q, k, v):
            z = k.logcumsumexp(1)
            g = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1] - z[:, 1:]], 1)
            return (*linear.gated(q, (k - z).exp(), v, g), z[:, -1:])

        return Case(lambda q, k, v: op(q, k, v, output_final_state=True), want, d.qkv(),
                    )  # fmt: skip

    return build


recipe("lightnet.chunk_lightnet")(_lightnet(chunk_lightnet))
recipe("lightnet.fused_recurrent_lightnet")(_lightnet(fused_recurrent_lightnet))


def _rwkv6(op, last=True):
    def build(d: Draw) -> Case:
        x = {**d.qkv(), "w": d.gate(d.B, d.T, d.H, d.K), "u": d.randn(d.H, d.K),
             "h0": state(d, d.B, d.H, d.K, d.V)}  # fmt: skip
        pick = (lambda out: out) if last else (lambda out: (out[0], out[1].detach()))
        return Case(
            lambda q, k, v, w, u, h0: pick(op(q, k, v, w, u, initial_state=h0,
                                              output_final_state=True)),
            lambda q, k, v, w, u, h0: pick(linear.gated(q, k, v, w, u=u, h0=h0)), x)  # fmt: skip

    return build


recipe("rwkv6.chunk_rwkv6")(_rwkv6(ops.chunk_rwkv6))
# Its backward never reads the gradient of the last state.
recipe("rwkv6.fused_recurrent_rwkv6")(_rwkv6(ops.fused_recurrent_rwkv6, last=False))


@recipe("rwkv4.fused_recurrent_rwkv4")
def _(d):
    c = 32
    x = {"w": d.randn(c), "u": d.randn(c), "k": d.randn(d.B, d.T, c), "v": d.randn(d.B, d.T, c)}

    def want(w, u, k, v):
        a = b = torch.zeros_like(k[:, 0])
        decay, out = torch.exp(-torch.exp(w)), []
        for t in range(d.T):
            now = torch.exp(u + k[:, t])
            out.append((a + now * v[:, t]) / (b + now))
            a = decay * a + torch.exp(k[:, t]) * v[:, t]
            b = decay * b + torch.exp(k[:, t])
        return torch.stack(out, 1)

    def call(w, u, k, v):
        start = torch.zeros(d.B, 3, 1, c, dtype=d.dtype)
        start[:, 2] = -1e38
        return fused_recurrent_rwkv4(w, u, k, v, start)[0]

    return Case(call, want, x)


def _hgrn(op):
    def build(d: Draw) -> Case:
        x = {"x": d.randn(d.B, d.T, 64), "g": d.gate(d.B, d.T, 64, wide=False)}
        return Case(lambda x, g: op(x, g)[0],
                    lambda x, g: hgrn_naive.naive_recurrent_hgrn(x, g)[0], x)  # fmt: skip

    return build


recipe("hgrn.chunk_hgrn")(_hgrn(chunk_hgrn))
recipe("hgrn.fused_recurrent_hgrn")(_hgrn(ops.fused_recurrent_hgrn))


@recipe("abc.chunk_abc")
def _(d):
    # The op's layout follows the others; its reference is head-first.
    x = {**d.qkv(), "s": d.randn(d.B, d.T, d.H, 32)}
    return Case(lambda q, k, v, s: ops.chunk_abc(q, k, v, s)[0],
                lambda q, k, v, s: swap(abc_naive.naive_recurrent_abc(*swap(q, k, v, s))[0]),
                x)  # fmt: skip


def _gsa(op):
    def build(d: Draw) -> Case:
        x = {**d.qkv(), "s": d.randn(d.B, d.T, d.H, 32), "g": d.gate(d.B, d.T, d.H, 32)}
        return Case(lambda q, k, v, s, g: op(q, k, v, s, g)[0],
                    lambda q, k, v, s, g: gsa_naive.naive_recurrent_gsa(q, k, v, s, g)[0],
                    x)  # fmt: skip

    return build


recipe("gsa.chunk_gsa")(_gsa(ops.chunk_gsa))
recipe("gsa.fused_recurrent_gsa")(_gsa(ops.fused_recurrent_gsa))


def removed(op):
    """An op that its package has withdrawn: calling it says so."""
    return lambda d: Case(lambda x: op(x=x), lambda x: x, {"x": d.randn(d.T)})


recipe("gla.fused_chunk_gla")(removed(ops.fused_chunk_gla))
recipe("delta_rule.fused_chunk_delta_rule")(removed(ops.fused_chunk_delta_rule))
