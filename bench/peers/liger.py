"""How to call Liger-Kernel's autograd functions and functional forms, and the same in torch."""

from __future__ import annotations

import liger_kernel.ops as ops
import liger_kernel.transformers.functional as fun
import torch
import torch.nn.functional as F

from bench.peers.row import Case, Draw, ordered

RECIPES: dict = {}
D, CLASSES = 48, 100


def recipe(name: str, *call_names: str):
    """A recipe built from an op: the autograd function's ``apply``, and functions of ``functional``
    that take the same arguments."""

    def add(f):
        RECIPES[f"liger_kernel.ops.{name}"] = lambda d: f(d, getattr(ops, name).apply)
        for other in call_names:
            RECIPES[f"liger_kernel.transformers.functional.{other}"] = lambda d, other=other: f(
                d, getattr(fun, other)
            )
        return f

    return add


def also(name: str):
    """A recipe for one function of ``functional`` whose arguments are its own."""

    def add(f):
        RECIPES[f"liger_kernel.transformers.functional.{name}"] = lambda d: f(d, getattr(fun, name))
        return f

    return add


# -- elementwise -------------------------------------------------------------------------------


def _pair(want):
    def build(d: Draw, op) -> Case:
        return Case(ordered(op), want, {"a": d.randn(d.B, d.T, D), "b": d.randn(d.B, d.T, D)})

    return build


recipe("LigerGELUMulFunction", "liger_geglu")(
    _pair(lambda a, b: F.gelu(a, approximate="tanh") * b))  # fmt: skip
recipe("LigerSiLUMulFunction", "liger_swiglu")(_pair(lambda a, b: F.silu(a) * b))


@recipe("LigerFusedGateUpSiLUMulFunction")
def _(d, op):
    def want(x):
        a, b = x.chunk(2, -1)
        return F.silu(a) * b

    return Case(ordered(op), want, {"x": d.randn(d.B * d.T, 2 * D)})


@recipe("LigerReLUSquaredFunction", "liger_relu_squared")
def _(d, op):
    return Case(ordered(op), lambda x: F.relu(x) ** 2, {"x": d.randn(d.B, d.T, D)})


@recipe("LigerDyTFunction", "liger_dyt")
def _(d, op):
    x = {"x": d.randn(d.B, d.T, D), "alpha": d.randn(1), "gamma": d.randn(D), "beta": d.randn(D)}
    return Case(ordered(op), lambda x, alpha, gamma, beta: torch.tanh(alpha * x) * gamma + beta, x)


@recipe("LigerSoftmaxFunction", "liger_softmax")
def _(d, op):
    return Case(ordered(op), lambda x: x.softmax(-1), {"x": d.randn(d.B, d.T, CLASSES)})


def sparsemax(x):
    """Projection of rows onto the simplex."""
    z = x.sort(-1, descending=True).values
    k = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    held = (1 + k * z) > z.cumsum(-1)
    size = held.sum(-1, keepdim=True)
    tau = ((z * held).sum(-1, keepdim=True) - 1) / size
    return (x - tau).clamp(min=0)


@recipe("LigerSparsemaxFunction")
def _(d, op):
    return Case(lambda x: op(x, -1), sparsemax, {"x": d.randn(d.B, d.T, CLASSES)})


@also("liger_sparsemax")
def _(d, op):
    return Case(ordered(op), sparsemax, {"x": d.randn(d.B, d.T, CLASSES)})


@recipe("LigerEmbeddingFunction")
def _(d, op):
    at = d.labels(CLASSES, d.B, d.T)
    return Case(lambda w: op(w, at), lambda w: w[at], {"w": d.randn(CLASSES, D)})


# -- norms -------------------------------------------------------------------------------------


def rms(x, w, eps=1e-6):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * w


@recipe("LigerRMSNormFunction", "liger_rms_norm")
def _(d, op):
    return Case(lambda x, w: op(x, w, 1e-6), rms, {"x": d.randn(d.B, d.T, D), "w": d.randn(D)})


@recipe("LigerLayerNormFunction", "liger_layer_norm")
def _(d, op):
    x = {"x": d.randn(d.B, d.T, D), "w": d.randn(D), "b": d.randn(D)}
    return Case(lambda x, w, b: op(x, w, b, 1e-6),
                lambda x, w, b: F.layer_norm(x, (D,), w, b, 1e-6), x)  # fmt: skip


@recipe("LigerGroupNormFunction", "liger_group_norm")
def _(d, op):
    x = {"x": d.randn(d.B, 64, d.T), "w": d.randn(64), "b": d.randn(64)}
    return Case(lambda x, w, b: op(x, w, b, 64, 4, 1e-6),
                lambda x, w, b: F.group_norm(x, 4, w, b, 1e-6), x)  # fmt: skip


@recipe("LigerFusedAddRMSNormFunction", "liger_fused_add_rms_norm")
def _(d, op):
    x = {"x": d.randn(d.B, d.T, D), "r": d.randn(d.B, d.T, D), "w": d.randn(D)}
    return Case(lambda x, r, w: op(x, r, w, 1e-6),
                lambda x, r, w: (rms(x + r, w), x + r), x)  # fmt: skip


@recipe("LigerModulatedRMSNormFunction", "liger_modulated_rms_norm")
def _(d, op):
    x = {"x": d.randn(d.B, d.T, D), "w": d.randn(D), "scale": d.randn(d.B, D),
         "shift": d.randn(d.B, D)}  # fmt: skip
    return Case(lambda x, w, scale, shift: op(x, w, scale, shift, 1e-6),
                lambda x, w, scale, shift: rms(x, w) * (1 + scale[:, None]) + shift[:, None],
                x)  # fmt: skip


@recipe("LigerPolyNormFunction", "liger_poly_norm")
def _(d, op):
    x = {"x": d.randn(d.B, d.T, D), "w": d.randn(3), "b": d.randn(1)[0]}
    return Case(ordered(op), lambda x, w, b: sum(rms(x ** (3 - i), w[i]) for i in range(3)) + b, x)


# -- positions ---------------------------------------------------------------------------------


def _half(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def _angles(d: Draw, *lead: int):
    at = torch.arange(d.T) * 0.7
    a = torch.outer(at, 1e4 ** (-torch.arange(16) / 16))
    a = torch.cat([a, a], -1).expand(*lead, d.T, 32)
    return a.cos().to(d.dtype).contiguous(), a.sin().to(d.dtype).contiguous()


@recipe("LigerRopeFunction", "liger_rope")
def _(d, op):
    cos, sin = _angles(d, 1)
    x = {"q": d.randn(d.B, 4, d.T, 32), "k": d.randn(d.B, 2, d.T, 32)}

    def want(q, k):
        c, s = cos.double(), sin.double()
        return q * c + _half(q) * s, k * c + _half(k) * s

    return Case(lambda q, k: op(q, k, cos, sin), want, x)


@recipe("LigerQwen2VLMRopeFunction", "liger_qwen2vl_mrope")
def _(d, op):
    section = [4, 6, 6]
    at = torch.rand(3, d.B, d.T, 1, generator=d.generator) * 50
    a = at * 1e4 ** (-torch.arange(16) / 16)
    a = torch.cat([a, a], -1)
    cos, sin = a.cos().to(d.dtype), a.sin().to(d.dtype)
    x = {"q": d.randn(d.B, 4, d.T, 32), "k": d.randn(d.B, 2, d.T, 32)}

    def mixed(m):
        parts = m.double().split(section * 2, -1)
        return torch.cat([p[i % 3] for i, p in enumerate(parts)], -1)[:, None]

    def want(q, k):
        c, s = mixed(cos), mixed(sin)
        return q * c + _half(q) * s, k * c + _half(k) * s

    return Case(lambda q, k: op(q, k, cos, sin, section), want, x)


@recipe("LigerLlama4RopeFunction")
def _(d, op):
    a = torch.outer(torch.arange(d.T) * 0.7, 1e4 ** (-torch.arange(16) / 16))
    turn = torch.polar(torch.ones_like(a), a)
    x = {"q": d.randn(d.B, d.T, 4, 32), "k": d.randn(d.B, d.T, 2, 32)}

    def one(t):
        pairs = torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn.to(torch.complex128)[:, None]).flatten(-2)

    return Case(lambda q, k: op(q, k, turn), lambda q, k: (one(q), one(k)), x)


# -- losses ------------------------------------------------------------------------------------


def _target(d: Draw, rows: int):
    target = d.labels(CLASSES, rows)
    if rows > 2:
        target[rows // 2] = -100
    return target


@recipe("LigerCrossEntropyFunction")
def _(d, op):
    target = _target(d, d.B * d.T)
    return Case(lambda x: op(x, target, None, -100, 1e-4, 0.1, "mean")[0],
                lambda x: _entropy(x, target), {"x": d.randn(d.B * d.T, CLASSES)})  # fmt: skip


def _entropy(x, target):
    """Mean over the rows that count, smoothed by 0.1, with 1e-4 of the squared log-sum-exp."""
    keep = target != -100
    z = x.logsumexp(-1)[keep]
    return F.cross_entropy(x, target, label_smoothing=0.1) + 1e-4 * (z * z).mean()


@also("liger_cross_entropy")
def _(d, op):
    target = _target(d, d.B * d.T)
    return Case(lambda x: op(x, target, lse_square_scale=1e-4, label_smoothing=0.1),
                lambda x: _entropy(x, target), {"x": d.randn(d.B * d.T, CLASSES)})  # fmt: skip


def _linear(d: Draw):
    return {"x": d.randn(d.B * d.T, D), "w": d.randn(CLASSES, D, scale=D**-0.5)}


@recipe("LigerFusedLinearCrossEntropyFunction", "liger_fused_linear_cross_entropy")
def _(d, op):
    target = _target(d, d.B * d.T)

    def call(x, w, b):
        out = op(x, w, target, b)
        return out[0] if isinstance(out, tuple) else out

    return Case(call, lambda x, w, b: F.cross_entropy(F.linear(x, w, b), target),
                {**_linear(d), "b": d.randn(CLASSES)})  # fmt: skip


@recipe("LigerFusedLinearScaledCrossEntropyFunction")
def _(d, op):
    target = _target(d, d.B * d.T)

    def call(x, w):
        out = op(x, w, target)
        return out[0] if isinstance(out, tuple) else out

    return Case(call,
                lambda x, w: F.cross_entropy(F.linear(x, w), target, reduction="none"),
                _linear(d))  # fmt: skip


def divergence(q, p, beta):
    """Jensen-Shannon: beta KL(P || M) + (1 - beta) KL(Q || M) for log-probabilities, per row."""
    m = torch.log(beta * p.exp() + (1 - beta) * q.exp())
    return (beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)).sum(-1)


@recipe("LigerJSDFunction", "liger_jsd")
def _(d, op):
    n = d.B * d.T
    x = {"q": d.wide(n, CLASSES).log_softmax(-1).to(d.dtype),
         "p": d.wide(n, CLASSES).log_softmax(-1).to(d.dtype)}  # fmt: skip
    return Case(lambda q, p: op(q, p, None, 0.3), lambda q, p: divergence(q, p, 0.3).mean(), x,
                fixed=("p",))  # fmt: skip


@recipe("LigerFusedLinearJSDFunction", "liger_fused_linear_jsd")
def _(d, op):
    x = {**_linear(d), "tx": d.randn(d.B * d.T, D), "tw": d.randn(CLASSES, D, scale=D**-0.5)}

    def want(x, w, tx, tw):
        q, p = (F.linear(a, b).log_softmax(-1) for a, b in ((x, w), (tx, tw)))
        return divergence(q, p, 0.5).mean()

    return Case(lambda x, w, tx, tw: op(x, w, tx, tw), want, x, fixed=("tx", "tw"))


@recipe("LigerKLDivLossFunction")
def _(d, op):
    return _kl(d, lambda q, p: op(q, p, "batchmean"))


@also("liger_kl_div")
def _(d, op):
    return _kl(d, lambda q, p: op(q, p, reduction="batchmean"))


def _kl(d: Draw, call) -> Case:
    n = d.B * d.T
    x = {"q": d.wide(n, CLASSES).log_softmax(-1).to(d.dtype),
         "p": d.wide(n, CLASSES).softmax(-1).to(d.dtype)}  # fmt: skip
    return Case(call, lambda q, p: F.kl_div(q, p, reduction="batchmean"), x, fixed=("p",))


@recipe("LigerFusedLinearKLDivFunction", "liger_fused_linear_kl_div")
def _(d, op):
    x = {**_linear(d), "p": d.wide(d.B * d.T, CLASSES).softmax(-1).to(d.dtype)}

    def want(x, w, p):
        return F.kl_div(F.linear(x, w).log_softmax(-1), p, reduction="batchmean")

    return Case(lambda x, w, p: op(x, w, p), want, x, fixed=("p",))


@recipe("LigerTVDLossFunction")
def _(d, op):
    return _tvd(d, lambda p, q: op(p, q, None, "batchmean"))


@also("liger_tvd")
def _(d, op):
    return _tvd(d, lambda p, q: op(p, q, reduction="batchmean"))


def _tvd(d: Draw, call) -> Case:
    n = d.B * d.T
    x = {"p": d.wide(n, CLASSES).softmax(-1).to(d.dtype),
         "q": d.wide(n, CLASSES).softmax(-1).to(d.dtype)}  # fmt: skip
    # Equal elements have no derivative; in bf16 there are some.
    x["q"] = torch.where(x["p"] == x["q"], x["q"] * 1.5, x["q"])
    return Case(call, lambda p, q: 0.5 * (p - q).abs().sum() / n, x, fixed=("q",))


@recipe("LigerFusedCETVDFunction")
def _(d, op):
    n = d.B * d.T
    target = _target(d, n)

    def want(x, t):
        keep = target != -100
        tvd = 0.5 * (x.softmax(-1) - t.softmax(-1)).abs().sum(-1)
        return F.cross_entropy(x, target, reduction="none"), torch.where(keep, tvd, 0)

    return Case(lambda x, t: op(x, t, target), want,
                {"x": d.randn(n, CLASSES), "t": d.randn(n, CLASSES)}, fixed=("t",))  # fmt: skip


@recipe("LigerVocabParallelCEFunction")
def _(d, op):
    target = _target(d, d.T * d.B).view(d.T, d.B)

    def want(x):
        return F.cross_entropy(x.flatten(0, 1), target.flatten(), reduction="none").view(d.T, d.B)

    return Case(lambda x: op(x, target, None, -100, 0.0, "megatron", "mean"), want,
                {"x": d.randn(d.T, d.B, CLASSES)})  # fmt: skip


@recipe("GrpoLossFunction")
def _(d, op):
    ids = d.labels(CLASSES, d.B, d.T)
    mask = torch.ones(d.B, d.T, dtype=torch.int32)
    x = {"logits": d.randn(d.B, d.T + 1, CLASSES), "adv": d.wide(d.B)}
    base = d.wide(d.B, d.T, CLASSES).log_softmax(-1).gather(-1, ids[..., None])[..., 0]

    def want(logits, adv):
        lp = logits[:, :-1].log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        ratio = torch.exp(lp - base.double())
        a = adv[:, None]
        policy = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        kl = torch.exp(base.double() - lp) - (base.double() - lp) - 1
        return policy + 0.04 * kl

    def call(logits, adv):
        return op(logits, base, base, ids, adv, mask, 1.0, 0.04, 0.2, 0.2, False, "grpo", None,
                  False)[0]  # fmt: skip

    return Case(call, want, x, fixed=("adv",))


# -- blocks ------------------------------------------------------------------------------------


@recipe("LigerAttnResFunction", "liger_attn_res")
def _(d, op):
    x = {"v": d.randn(4, d.B, d.T, D), "q": d.randn(D, scale=0.2), "w": d.randn(D)}

    def want(v, q, w):
        s = (rms(v, w) * q).sum(-1).softmax(0)
        return (s[..., None] * v).sum(0)

    return Case(lambda v, q, w: op(v, q, w, 1e-6), want, x)


@recipe("LigerMultiTokenAttentionFunction", "liger_multi_token_attention")
def _(d, op):
    x = {"s": d.randn(d.B, 2, d.T, d.T), "w": d.randn(2, 2, 3, 3), "b": d.randn(2)}

    def want(s, w, b):
        keep = torch.ones(d.T, d.T, dtype=torch.bool).tril()
        p = s.masked_fill(~keep, float("-inf")).softmax(-1)
        return F.conv2d(p, w, b, padding=1).masked_fill(~keep, 0)

    # The filter's gradient is torch's own convolution: sums whose terms are 70 times the result.
    return Case(lambda s, w, b: op(s, w, b, 1, 1), want, x, own=2e-5)


@recipe("LigerFusedNeighborhoodAttentionFunction", "liger_fused_neighborhood_attention")
def _(d, op):
    x = {k: d.randn(d.B, d.H, d.T, 32) for k in "qkv"}

    def want(q, k, v):
        i = torch.arange(d.T)
        near = (i[:, None] - i).abs() <= 3
        s = (q @ k.mT * 32**-0.5).masked_fill(~near, float("-inf"))
        return s.softmax(-1) @ v

    return Case(lambda q, k, v: op(q, k, v, 7, 1), want, x)


@recipe("LigerFusedMoEFunction")
def _(d, op):
    experts, inner, top = 4, 32, 2
    n = d.B * d.T
    index = torch.stack([torch.randperm(experts, generator=d.generator)[:top] for _ in range(n)])
    x = {"x": d.randn(n, D), "up": d.randn(experts, 2 * inner, D, scale=D**-0.5),
         "down": d.randn(experts, D, inner, scale=inner**-0.5),
         "weights": d.wide(n, top).softmax(-1).to(d.dtype)}  # fmt: skip

    def want(x, up, down, weights):
        a, b = torch.einsum("nd,eid->nei", x, up).chunk(2, -1)
        y = torch.einsum("nei,edi->ned", F.silu(a) * b, down)
        picked = y.gather(1, index[..., None].expand(n, top, D))
        return (picked * weights[..., None]).sum(1)

    return Case(lambda x, up, down, weights: op(x, up, down, index.int(), weights), want, x)


@recipe("LigerMLPFunction")
def _(d, op):
    x = {"x": d.randn(d.B, d.T, 64), "g": d.randn(128, 64, scale=0.1),
         "u": d.randn(128, 64, scale=0.1), "d": d.randn(64, 128, scale=0.1)}  # fmt: skip
    return Case(lambda x, g, u, d: op(x, g, u, d),
                lambda x, g, u, d: F.linear(F.silu(F.linear(x, g)) * F.linear(x, u), d),
                x)  # fmt: skip


# -- hyper-connections -------------------------------------------------------------------------

STREAMS = 4


def _coefficients(x, phi, b, pre, post, res):
    flat = x.flatten(-2)
    mix = flat @ phi * torch.rsqrt((flat * flat).mean(-1, keepdim=True) + 1e-6)
    h = STREAMS
    m, bias = mix.split([h, h, h * h], -1), b.split([h, h, h * h])
    table = (res * m[2] + bias[2]).unflatten(-1, (h, h))
    table = table.softmax(-1) + 1e-6
    table = table / (table.sum(-2, keepdim=True) + 1e-6)
    for _ in range(19):
        table = table / (table.sum(-1, keepdim=True) + 1e-6)
        table = table / (table.sum(-2, keepdim=True) + 1e-6)
    return (torch.sigmoid(pre * m[0] + bias[0]), 2 * torch.sigmoid(post * m[1] + bias[1]), table)


def _coefficient_inputs(d: Draw):
    outs = STREAMS * STREAMS + 2 * STREAMS
    return {"x": d.randn(d.B, d.T, STREAMS, 32), "phi": d.randn(STREAMS * 32, outs, scale=0.1),
            "b": d.wide(outs) * 0.5, "pre": d.wide(1)[0] + 1, "post": d.wide(1)[0] + 1,
            "res": d.wide(1)[0] + 1}  # fmt: skip


@recipe("LigerMHCCoeffsFunction")
def _(d, op):
    return Case(lambda **a: op(*a.values(), True, 20, 1e-6, 0.0, 1e-6, 2.0), _coefficients,
                _coefficient_inputs(d))  # fmt: skip


@also("liger_mhc_coeffs")
def _(d, op):
    return Case(lambda **a: op(*a.values(), allow_fp32=True), _coefficients,
                _coefficient_inputs(d))  # fmt: skip


def _streams(d: Draw):
    return {"x": d.randn(d.B, d.T, STREAMS, 32), "f": d.randn(d.B, d.T, 32),
            "pre": d.part(d.B, d.T, STREAMS, wide=True),
            "post": d.part(d.B, d.T, STREAMS, wide=True),
            "res": d.part(d.B, d.T, STREAMS, STREAMS, wide=True)}  # fmt: skip


def _spread(x, f, post, res):
    return torch.einsum("btoi,btic->btoc", res, x) + post[..., None] * f[..., None, :]


@recipe("LigerMHCPreFunction", "liger_mhc_pre")
def _(d, op):
    x = _streams(d)
    return Case(
        ordered(op), lambda x, pre: (pre[..., None] * x).sum(-2), {k: x[k] for k in ("x", "pre")}
    )


@recipe("LigerMHCPostResFunction", "liger_mhc_post_res")
def _(d, op):
    x = _streams(d)
    return Case(ordered(op), _spread, {k: x[k] for k in ("x", "f", "post", "res")})


@also("liger_mhc_apply")
def _(d, op):
    return Case(lambda x, f, pre, post, res: op(x, f, pre, post, res, return_x_in=True),
                lambda x, f, pre, post, res: (_spread(x, f, post, res),
                                              (pre[..., None] * x).sum(-2)),
                _streams(d))  # fmt: skip


@also("liger_mhc_forward")
def _(d, op):
    def want(x, **a):
        pre, post, res = _coefficients(x, **a)
        return _spread(x, torch.tanh((pre[..., None] * x).sum(-2)), post, res)

    return Case(lambda x, **a: op(x, torch.tanh, *a.values(), allow_fp32=True), want,
                _coefficient_inputs(d))  # fmt: skip
