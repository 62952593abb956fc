"""How to call the ops of ``fla.ops`` that replace what they read: delta rules and their kin."""

from __future__ import annotations

import fla.ops as ops
import torch
import torch.nn.functional as F
from fla.ops.atk import chunk_atk_bwd, chunk_atk_fwd, recompute_atk_fwd
from fla.ops.comba.naive import naive_chunk_comba
from fla.ops.cyfa.naive import naive_recurrent_cyfa
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_product import chunk_gated_delta_product
from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gated_oja_rule import chunk_gated_oja_rule, fused_recurrent_gated_oja_rule
from fla.ops.gdn2 import chunk_gdn2, fused_recurrent_gdn2
from fla.ops.gdn2.naive import naive_recurrent_gdn2
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.generalized_delta_rule.iplr.naive import iplr_recurrence
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.mesa_net import mesa_net_decoding_one_step
from fla.ops.mesa_net.naive import naive_mesa_net_decoding_one_step, naive_mesa_net_exact
from fla.ops.momentum_delta_rule import recurrent_momentum_delta_rule_ref
from fla.ops.precond_gated_delta_rule.naive import naive_recurrent_precond_gated_delta_rule
from fla.ops.precond_kda.naive import naive_recurrent_precond_kda
from fla.ops.rwkv7 import fused_mul_recurrent_rwkv7
from fla.ops.ttt import chunk_ttt_linear, fused_chunk_ttt_linear
from fla.ops.ttt.naive import chunk_ttt_linear_ref

from bench.peers import linear
from bench.peers.fla_ops import recipe, state, swap
from bench.peers.row import Case, Draw

LAST = {"output_final_state": True}


def keyed(d: Draw) -> dict[str, torch.Tensor]:
    """q, k, v with keys of length one, as the delta rule wants them."""
    return {**d.qkv(), "k": d.unit(d.B, d.T, d.H, d.K)}


def first(d: Draw) -> torch.Tensor:
    return state(d, d.B, d.H, d.K, d.V)


def _delta(op):
    def build(d: Draw) -> Case:
        x = {**keyed(d), "beta": d.part(d.B, d.T, d.H), "h0": first(d)}

        def want(q, k, v, beta, h0):
            o, s = delta_rule_recurrence(*swap(q, k, v, beta), h0)
            return swap(o), s

        return Case(lambda q, k, v, beta, h0: op(q, k, v, beta, initial_state=h0, **LAST), want, x)

    return build


recipe("delta_rule.chunk_delta_rule")(_delta(ops.chunk_delta_rule))
recipe("delta_rule.fused_recurrent_delta_rule")(_delta(ops.fused_recurrent_delta_rule))


def _gated(op, backward=True):
    def build(d: Draw) -> Case:
        x = {**keyed(d), "g": d.gate(d.B, d.T, d.H), "beta": d.part(d.B, d.T, d.H), "h0": first(d)}
        return Case(
            lambda q, k, v, g, beta, h0: op(q=q, k=k, v=v, g=g, beta=beta, initial_state=h0,
                                            **LAST),
            lambda q, k, v, g, beta, h0: naive_recurrent_gated_delta_rule(
                q, k, v, beta, g, initial_state=h0, **LAST),
            x, grad=backward)  # fmt: skip

    return build


recipe("gated_delta_rule.chunk_gated_delta_rule")(_gated(ops.chunk_gated_delta_rule))
recipe("gated_delta_rule.fused_recurrent_gated_delta_rule")(
    _gated(ops.fused_recurrent_gated_delta_rule, backward=False))  # fmt: skip


@recipe("gated_delta_product.chunk_gated_delta_product")
def _(d):
    n = 2
    x = {"q": d.randn(d.B, d.T, d.H, d.K), "k": d.unit(d.B, d.T * n, d.H, d.K),
         "v": d.randn(d.B, d.T * n, d.H, d.V), "g": d.gate(d.B, d.T, d.H),
         "beta": d.part(d.B, d.T * n, d.H), "h0": first(d)}  # fmt: skip
    return Case(
        lambda q, k, v, g, beta, h0: chunk_gated_delta_product(
            q, k, v, g, beta, n, initial_state=h0, **LAST),
        lambda q, k, v, g, beta, h0: naive_recurrent_gated_delta_product(
            q, k, v, g, beta, d.K**-0.5, initial_state=h0, num_householder=n),
        x)  # fmt: skip


def _oja(op, backward=True):
    def build(d: Draw) -> Case:
        x = {**d.qkv(), "v": d.unit(d.B, d.T, d.H, d.V), "gv": d.gate(d.B, d.T, d.H, d.V),
             "beta": d.part(d.B, d.T, d.H), "h0": first(d)}  # fmt: skip

        def want(q, k, v, gv, beta, h0):
            # The same rule with keys and values, and the state's sides, exchanged.
            s, out = h0, []
            for t in range(d.T):
                s = s * gv[:, t, :, None, :].exp()
                step = (k[:, t] - (s * v[:, t, :, None, :]).sum(-1)) * beta[:, t, :, None]
                s = s + step[..., None] * v[:, t, :, None, :]
                out.append(((q[:, t] * d.K**-0.5)[..., None] * s).sum(-2))
            return torch.stack(out, 1), s

        return Case(
            lambda q, k, v, gv, beta, h0: op(q, k, v, gv=gv, beta=beta, initial_state=h0, **LAST),
            want, x, grad=backward)  # fmt: skip

    return build


recipe("gated_oja_rule.chunk_gated_oja_rule")(_oja(chunk_gated_oja_rule))
recipe("gated_oja_rule.fused_recurrent_gated_oja_rule")(
    _oja(fused_recurrent_gated_oja_rule, backward=False))  # fmt: skip


def _kda(op, backward=True):
    def build(d: Draw) -> Case:
        x = {**keyed(d), "g": d.gate(d.B, d.T, d.H, d.K), "beta": d.part(d.B, d.T, d.H),
             "h0": first(d)}  # fmt: skip
        return Case(
            lambda q, k, v, g, beta, h0: op(q, k, v, g, beta, initial_state=h0, **LAST),
            lambda q, k, v, g, beta, h0: naive_recurrent_kda(
                q, k, v, g, beta, initial_state=h0, **LAST),
            x, grad=backward)  # fmt: skip

    return build


recipe("kda.chunk_kda")(_kda(ops.chunk_kda))
recipe("kda.fused_recurrent_kda")(_kda(ops.fused_recurrent_kda, backward=False))


def _gdn2(op, backward=True):
    def build(d: Draw) -> Case:
        x = {**keyed(d), "g": d.gate(d.B, d.T, d.H, d.K), "b": d.part(d.B, d.T, d.H, d.K),
             "w": d.part(d.B, d.T, d.H, d.V), "h0": first(d)}  # fmt: skip
        return Case(
            lambda q, k, v, g, b, w, h0: op(q, k, v, g, b, w, initial_state=h0, **LAST),
            lambda q, k, v, g, b, w, h0: naive_recurrent_gdn2(
                q, k, v, g, b, w, initial_state=h0, **LAST),
            x, grad=backward)  # fmt: skip

    return build


recipe("gdn2.chunk_gdn2")(_gdn2(chunk_gdn2))
recipe("gdn2.fused_recurrent_gdn2")(_gdn2(fused_recurrent_gdn2, backward=False))


def _comba(op, backward=True):
    def build(d: Draw) -> Case:
        x = {**keyed(d), "p": d.unit(d.B, d.T, d.H, d.K), "g": d.gate(d.B, d.T, d.H),
             "beta": d.part(d.B, d.T, d.H), "h0": first(d)}  # fmt: skip
        return Case(
            lambda q, k, v, p, g, beta, h0: op(q=q, k=k, v=v, p=p, g=g, beta=beta,
                                               initial_state=h0, **LAST),
            # Their naive_recurrent_comba reads the state after its decay, all others before it.
            lambda q, k, v, p, g, beta, h0: naive_chunk_comba(
                q, k, v, p, g, beta, initial_state=h0, **LAST),
            x, grad=backward)  # fmt: skip

    return build


recipe("comba.chunk_comba")(_comba(ops.chunk_comba))
recipe("comba.fused_recurrent_comba")(
    _comba(ops.fused_recurrent_comba, backward=False))  # fmt: skip


def _cyfa(op):
    def build(d: Draw) -> Case:
        slots = 15
        x = {**d.qkv(), "g": d.gate(d.B, d.T, d.H), "delta": d.wide(d.B, d.T, d.H),
             "beta": d.part(d.B, d.T, d.H, wide=True), "readout": d.wide(d.H, slots, slots),
             "qw": d.randn(d.K), "kw": d.randn(d.K)}  # fmt: skip
        return Case(lambda **a: op(*a.values(), 1e-6, 1e-6)[0],
                    lambda **a: naive_recurrent_cyfa(*a.values(), 1e-6, 1e-6)[0], x)  # fmt: skip

    return build


recipe("cyfa.chunk_cyfa")(_cyfa(ops.chunk_cyfa))
recipe("cyfa.fused_recurrent_cyfa")(_cyfa(ops.fused_recurrent_cyfa))


def _low_rank(op, naive, gate, backward=True):
    def build(d: Draw) -> Case:
        d.K = d.V = 32
        a = d.unit(d.B, d.T, d.H, d.K)
        x = {**d.qkv(), "a": a, "b": -a * d.part(d.B, d.T, d.H, 1)}
        if gate:
            x["gk"] = d.gate(d.B, d.T, d.H, d.K)
        x["h0"] = first(d)

        def want(q, k, v, a, b, h0, gk=None):
            o, s = naive(*swap(q, k, v, a, b, *([gk] if gate else [])), initial_state=h0)
            return swap(o), s

        return Case(lambda h0, **x: op(**x, initial_state=h0, **LAST), want, x, grad=backward)

    return build


recipe("generalized_delta_rule.chunk_dplr_delta_rule")(
    _low_rank(ops.chunk_dplr_delta_rule, dplr_recurrence, True))  # fmt: skip
recipe("generalized_delta_rule.fused_recurrent_dplr_delta_rule")(
    _low_rank(ops.fused_recurrent_dplr_delta_rule, dplr_recurrence, True, backward=False)
)
recipe("generalized_delta_rule.chunk_iplr_delta_rule")(
    _low_rank(ops.chunk_iplr_delta_rule, iplr_recurrence, False, backward=False))  # fmt: skip
recipe("generalized_delta_rule.fused_recurrent_iplr_delta_rule")(
    _low_rank(ops.fused_recurrent_iplr_delta_rule, iplr_recurrence, False))  # fmt: skip


def _rwkv7(op, backward=True):
    def build(d: Draw) -> Case:
        kk = d.unit(d.B, d.T, d.H, d.K)
        x = {"r": d.randn(d.B, d.T, d.H, d.K),
             "w": -0.6065 * d.part(d.B, d.T, d.H, d.K, wide=True),
             "k": d.randn(d.B, d.T, d.H, d.K), "v": d.randn(d.B, d.T, d.H, d.V),
             "a": -kk, "b": kk * d.part(d.B, d.T, d.H, d.K), "h0": first(d)}  # fmt: skip
        x["w"] = x["w"].to(d.dtype)
        return Case(
            lambda r, w, k, v, a, b, h0: op(r, w, k, v, a, b, scale=1.0, initial_state=h0, **LAST),
            lambda r, w, k, v, a, b, h0: linear.low_rank(r, k, v, a, b, w, h0, 1.0),
            x, grad=backward)  # fmt: skip

    return build


recipe("rwkv7.chunk_rwkv7")(_rwkv7(ops.chunk_rwkv7))
recipe("rwkv7.fused_recurrent_rwkv7")(_rwkv7(ops.fused_recurrent_rwkv7, backward=False))


@recipe("rwkv7.fused_mul_recurrent_rwkv7")
def _(d):
    x = {"r": d.randn(d.B, d.T, d.H, d.K), "w": d.gate(d.B, d.T, d.H, d.K, wide=False),
         "k": d.randn(d.B, d.T, d.H, d.K), "v": d.randn(d.B, d.T, d.H, d.V),
         "kk": d.unit(d.B, d.T, d.H, d.K), "a": d.part(d.B, d.T, d.H, d.K),
         "h0": first(d)}  # fmt: skip
    return Case(
        lambda r, w, k, v, kk, a, h0: fused_mul_recurrent_rwkv7(r, w, k, v, kk, a,
                                                               initial_state=h0, **LAST),
        lambda r, w, k, v, kk, a, h0: linear.low_rank(r, k, v, -kk, kk * a, w, h0, 1.0),
        x, grad=False)  # fmt: skip


def _momentum(op):
    def build(d: Draw) -> Case:
        x = {**keyed(d), "log_alpha": d.gate(d.B, d.T, d.H), "log_mu": d.gate(d.B, d.T, d.H),
             "p": d.unit(d.B, d.T, d.H, d.K), "beta": d.part(d.B, d.T, d.H),
             "eta": d.part(d.B, d.T, d.H)}  # fmt: skip
        return Case(
            lambda **a: op(**a, use_qk_l2norm_in_kernel=False, use_p_times_alpha=False)[0],
            lambda **a: recurrent_momentum_delta_rule_ref(**a)[0], x)  # fmt: skip

    return build


recipe("momentum_delta_rule.chunk_momentum_delta_rule")(_momentum(ops.chunk_momentum_delta_rule))
recipe("momentum_delta_rule.fused_recurrent_momentum_delta_rule")(
    _momentum(ops.fused_recurrent_momentum_delta_rule))  # fmt: skip


def _precond(op, naive, features, backward=True, **options):
    def build(d: Draw) -> Case:
        g = d.gate(d.B, d.T, d.H, d.K) if features else d.gate(d.B, d.T, d.H)
        x = {**keyed(d), "q": d.unit(d.B, d.T, d.H, d.K), "g": g,
             "g_atk": d.gate(d.B, d.T, d.H), "beta_atk": d.part(d.B, d.T, d.H),
             "beta": d.part(d.B, d.T, d.H)}  # fmt: skip
        return Case(lambda **a: op(**a, **options)[0], lambda **a: naive(**a)[0], x,
                    grad=backward)  # fmt: skip

    return build


# Both of these normalise q and k, and so does the reference of the first.
recipe("precond_gated_delta_rule.chunk_precond_gated_delta_rule")(
    _precond(ops.chunk_precond_gated_delta_rule, naive_recurrent_precond_gated_delta_rule, False)
)
recipe("precond_kda.chunk_precond_kda")(
    _precond(ops.chunk_precond_kda,
             lambda q, k, **a: naive_recurrent_precond_kda(
                 F.normalize(q, dim=-1), F.normalize(k, dim=-1), **a), True))  # fmt: skip
recipe("precond_gated_delta_rule.fused_recurrent_precond_gated_delta_rule")(
    _precond(ops.fused_recurrent_precond_gated_delta_rule,
             naive_recurrent_precond_gated_delta_rule, False, backward=False))  # fmt: skip
recipe("precond_kda.fused_recurrent_precond_kda")(
    _precond(ops.fused_recurrent_precond_kda, naive_recurrent_precond_kda, True, backward=False,
             use_qk_l2norm_in_kernel=False))  # fmt: skip


def _atk(k, beta, log_g, x=1.5, eps=1e-6, center=-0.2):
    """Keys scaled by how often their features were written, as in the package's recurrences."""
    a, out = torch.zeros_like(k[:, 0]), []
    for t in range(k.shape[1]):
        a = log_g[:, t, :, None].exp() * a + beta[:, t, :, None] * k[:, t] ** 2
        r = torch.log(a + eps) - center
        out.append(k[:, t] * torch.exp(-torch.log(torch.tensor(x).to(k)) * r / (1 + r.abs())))
    return torch.stack(out, 1), a


def _atk_inputs(d: Draw):
    return {"k": d.unit(d.B, d.T, d.H, d.K), "beta": d.part(d.B, d.T, d.H),
            "log_g": d.gate(d.B, d.T, d.H)}  # fmt: skip


@recipe("atk.chunk_atk_fwd")
def _(d):
    return Case(chunk_atk_fwd, _atk, _atk_inputs(d), grad=False)


@recipe("atk.recompute_atk_fwd")
def _(d):
    return Case(lambda **a: recompute_atk_fwd(**a)[0], lambda **a: _atk(**a)[0], _atk_inputs(d),
                grad=False)  # fmt: skip


@recipe("atk.chunk_atk_bwd")
def _(d):
    x = {**_atk_inputs(d), "dk": d.randn(d.B, d.T, d.H, d.K)}

    def call(k, beta, log_g, dk):
        _, ac, a, sa = recompute_atk_fwd(k, beta, log_g)
        return chunk_atk_bwd(k, log_g, beta, dk, ac, a, sa)[:3]

    def want(k, beta, log_g, dk):
        leaves = [x.detach().requires_grad_() for x in (k, beta, log_g)]
        return torch.autograd.grad(_atk(*leaves)[0], leaves, dk)

    return Case(call, want, x, grad=False)


def _ttt(op):
    def build(d: Draw) -> Case:
        x = {"q": d.randn(d.B, d.T, d.H, d.K), "k": d.unit(d.B, d.T, d.H, d.K),
             "v": d.randn(d.B, d.T, d.H, d.K), "w": d.randn(d.H, d.K), "b": d.randn(d.H, d.K),
             "eta": d.part(d.B, d.T, d.H, 1) * 0.05}  # fmt: skip
        return Case(lambda q, k, v, w, b, eta: op(q, k, v, w, b, eta, chunk_size=16)[0],
                    lambda **a: chunk_ttt_linear_ref(**a, mini_batch_size=16)[0], x)  # fmt: skip

    return build


recipe("ttt.chunk_ttt_linear")(_ttt(chunk_ttt_linear))
recipe("ttt.fused_chunk_ttt_linear")(_ttt(fused_chunk_ttt_linear))


@recipe("mesa_net.chunk_mesa_net")
def _(d):
    # Conjugate gradients whose steps divide by |p A p| + 1e-5 stop at a residual of about 3e-3.
    d.V = d.K
    x = {**keyed(d), "q": d.unit(d.B, d.T, d.H, d.K), "g": d.gate(d.B, d.T, d.H),
         "beta": d.part(d.B, d.T, d.H), "lamb": d.part(d.H, d.K, wide=True) + 0.5}  # fmt: skip
    return Case(lambda q, k, v, g, beta, lamb: ops.chunk_mesa_net(q, k, v, g, beta, lamb)[0],
                lambda q, k, v, g, beta, lamb: naive_mesa_net_exact(q, k, v, g, lamb, beta)[0],
                x, own=8e-3)  # fmt: skip


@recipe("mesa_net.mesa_net_decoding_one_step")
def _(d):
    n = d.T  # a step has no length: as many sequences
    root = d.wide(n, d.H, d.K, d.K) * 0.2
    x = {"q": d.unit(n, d.H, d.K), "k": d.unit(n, d.H, d.K), "v": d.randn(n, d.H, d.K),
         "g": d.gate(n, d.H), "lamb": d.part(d.H, d.K, wide=True) + 0.5, "beta": d.part(n, d.H),
         "kk": root @ root.mT, "kv": d.wide(n, d.H, d.K, d.K)}  # fmt: skip
    return Case(
        lambda **a: mesa_net_decoding_one_step(*a.values()),
        lambda **a: naive_mesa_net_decoding_one_step(*a.values()),
        x,
        grad=False,
    )
