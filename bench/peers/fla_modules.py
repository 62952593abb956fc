"""How to call what ``fla.modules`` offers, and the same in torch."""

from __future__ import annotations

import fla.modules as modules
import fla.modules.activations as act
import fla.modules.causal_conv1d as conv
import fla.modules.feature_map as maps
import fla.modules.fused_bitlinear as bit
import fla.modules.norm as norm
import fla.modules.token_shift as shift
import torch
import torch.nn.functional as F
from fla.modules.fused_cross_entropy import cross_entropy_loss
from fla.modules.fused_kl_div import fused_kl_div_loss
from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss
from fla.modules.grpo import fused_grpo_loss, grpo_loss_with_old_logps
from fla.modules.grpo.ops import grpo_loss_torch
from fla.modules.mlp import SwiGLULinear
from fla.modules.rotary import rotary_embedding
from fla.modules.rotary.ops import rotary_embedding_ref
from fla.modules.token_shift import token_shift_ref
from torch.func import functional_call

from bench.peers.row import Case, Draw, ordered

RECIPES: dict = {}
D = 48  # features: a multiple of 16, no power of two


def recipe(*names: str):
    """Register a recipe for one or more names below ``fla.modules``."""

    def add(f):
        for name in names:
            RECIPES[f"fla.modules.{name}"] = f
        return f

    return add


def through(module, **options):
    """A module as a function of its inputs and its parameters, by name.

    A dot cannot be part of a Python name: ``layer.weight`` is ``layer__weight``.
    """

    def call(**x):
        own = {k.replace(".", "__") for k, _ in module.named_parameters()}
        params = {k.replace("__", "."): v for k, v in x.items() if k in own}
        args = tuple(v for k, v in x.items() if k not in own)
        return functional_call(module, params, args, options)

    return call


def parameters(d: Draw, module, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Random parameters, around one for the weights of norms."""
    out = {}
    for name, p in module.named_parameters():
        value = d.wide(*p.shape) * (scale if p.dim() == 1 else p.shape[-1] ** -0.5)
        out[name.replace(".", "__")] = (value + (p.dim() == 1)).to(d.dtype)
    return out


# -- activations -------------------------------------------------------------------------------


def _unary(op, want):
    return lambda d: Case(ordered(op), ordered(want), {"x": d.randn(d.B, d.T, D)})


for _name, _want in {
    "elu_p1": lambda x: F.elu(x) + 1,
    "fast_gelu_impl": lambda x: F.gelu(x, approximate="tanh"),
    "logsigmoid": F.logsigmoid,
    "sigmoid": torch.sigmoid,
    "sqrelu": lambda x: F.relu(x) ** 2,
    "swish": F.silu,
}.items():
    recipe(f"activations.{_name}")(_unary(getattr(act, _name), _want))


def power(x, y, p=3.0):
    """y times x^(p sigmoid-like exponent): as the package defines it for a positive power."""
    up = x.clamp(min=0)
    exponent = p / (up.sqrt() + 1)
    safe = torch.where(x > 0, x, torch.ones_like(x))
    return torch.where(x > 0, safe**exponent * torch.sigmoid(x), x * torch.sigmoid(x)) * y


_PAIRS = {
    "swiglu": lambda x, y: F.silu(x) * y,
    "sigmoidglu": lambda x, y: torch.sigmoid(x) * y,
    "powglu": power,
}
for _name, _want in _PAIRS.items():

    def _pair(d, name=_name, want=_want):
        return Case(
            ordered(getattr(act, name)),
            want,
            {"x": d.randn(d.B, d.T, D), "y": d.randn(d.B, d.T, D)},
        )

    def _pair_linear(d, name=_name, want=_want):
        op = getattr(act, f"{name}_linear")
        x = {"x": d.randn(d.B, d.T, D), "y": d.randn(d.B, d.T, D),
             "weight": d.randn(40, D, scale=D**-0.5), "bias": d.randn(40)}  # fmt: skip
        return Case(ordered(op), lambda x, y, weight, bias: F.linear(want(x, y), weight, bias), x)

    recipe(f"activations.{_name}")(_pair)
    recipe(f"activations.{_name}_linear")(_pair_linear)


@recipe("mlp.SwiGLULinear")
def _(d):
    x = {"x": d.randn(d.B, d.T, D), "y": d.randn(d.B, d.T, D),
         "weight": d.randn(40, D, scale=D**-0.5), "bias": d.randn(40)}  # fmt: skip
    return Case(SwiGLULinear(), lambda x, y, weight, bias: F.linear(F.silu(x) * y, weight, bias), x)


@recipe("mlp.GatedMLP")
def _(d):
    m = modules.GatedMLP(D, intermediate_size=64)
    x = {"x": d.randn(d.B, d.T, D), **parameters(d, m)}

    def want(x, gate_proj__weight, up_proj__weight, down_proj__weight):
        y = F.silu(F.linear(x, gate_proj__weight)) * F.linear(x, up_proj__weight)
        return F.linear(y, down_proj__weight)

    return Case(through(m), want, x)


# -- feature maps ------------------------------------------------------------------------------


def _map(module, want):
    def build(d: Draw) -> Case:
        torch.manual_seed(0)
        m = module()
        return Case(through(m), want, {"x": d.randn(d.B, d.T, d.H, 16), **parameters(d, m)})

    return build


def _squares(x):
    a, b = maps.flatten_diag_outer_product_off1(x, x)
    return torch.cat([b * 16**-0.5, a * (2 / 16) ** 0.5], -1)


recipe("feature_map.RebasedFeatureMap")(
    _map(lambda: maps.RebasedFeatureMap(16),
         lambda x, gamma, beta: _squares(F.layer_norm(x, (16,), gamma, beta))))  # fmt: skip
recipe("feature_map.SquaredReLUFeatureMap")(
    _map(maps.SquaredReLUFeatureMap, lambda x: F.relu(x) ** 2))  # fmt: skip
recipe("feature_map.GELUFeatureMap")(
    _map(maps.GELUFeatureMap, lambda x: F.gelu(x, approximate="tanh")))  # fmt: skip
recipe("feature_map.SwishFeatureMap")(_map(maps.SwishFeatureMap, lambda x: F.silu(x)))
recipe("feature_map.SigmoidFeatureMap")(_map(maps.SigmoidFeatureMap, lambda x: torch.sigmoid(x)))


@recipe("feature_map.LearnablePolySketchNonNegativeFeatureMap")
def _(d):
    torch.manual_seed(0)
    m = maps.LearnablePolySketchNonNegativeFeatureMap(16)

    def want(x, gamma, beta, sketches1__0__weight, sketches2__0__weight):
        y = F.layer_norm(x, (16,), gamma, beta)
        y = F.linear(y, sketches1__0__weight) * F.linear(y, sketches2__0__weight) * 16**-0.5
        return maps.flatten_diag_outer_product(y, y)

    return Case(through(m), want, {"x": d.randn(d.B, d.T, d.H, 16), **parameters(d, m)})


# -- norms -------------------------------------------------------------------------------------


def _layer(x, weight=None, bias=None, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _rms(x, weight=None, bias=None, eps=1e-5):
    y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _group(x, weight, bias, groups=4, eps=1e-5):
    y = _layer(x.unflatten(-1, (groups, -1)), eps=eps).flatten(-2)
    return y * weight + (0 if bias is None else bias)


def _norm(make, want):
    def build(d: Draw) -> Case:
        m = make()
        return Case(through(m), want, {"x": d.randn(d.B, d.T, D), **parameters(d, m, 0.2)})

    return build


recipe("norm.LayerNorm")(_norm(lambda: norm.LayerNorm(D, bias=True), _layer))
recipe("norm.RMSNorm")(_norm(lambda: norm.RMSNorm(D, bias=True), _rms))
recipe("norm.GroupNorm")(_norm(lambda: norm.GroupNorm(4, D, bias=True), _group))
recipe("norm.L2Norm")(
    _norm(norm.L2Norm, lambda x: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6))
)


def _norm_linear(make, f):
    def build(d: Draw) -> Case:
        m = make()
        x = {"x": d.randn(d.B, d.T, D), "w": d.randn(40, D, scale=D**-0.5), "b": d.randn(40),
             **parameters(d, m, 0.2)}  # fmt: skip
        return Case(through(m), lambda x, w, b, **p: F.linear(f(x, *p.values()), w, b), x)

    return build


recipe("norm.LayerNormLinear")(_norm_linear(lambda: norm.LayerNormLinear(D, bias=True), _layer))
recipe("norm.RMSNormLinear")(_norm_linear(lambda: norm.RMSNormLinear(D, bias=True), _rms))
recipe("norm.GroupNormLinear")(
    _norm_linear(lambda: norm.GroupNormLinear(4, D, bias=True), _group))  # fmt: skip


def _gated(make, f, linear=False):
    def build(d: Draw) -> Case:
        m = make()
        x = {"x": d.randn(d.B, d.T, D), "g": d.randn(d.B, d.T, D)}
        if linear:
            x |= {"w": d.randn(40, D, scale=D**-0.5), "b": d.randn(40)}
        x |= parameters(d, m, 0.2)

        def want(x, g, w=None, b=None, **p):
            y = f(x, *p.values()) * F.silu(g)
            return F.linear(y, w, b) if linear else y

        return Case(through(m), want, x)

    return build


for _kind, _f in (("Layer", _layer), ("RMS", _rms)):
    for _gate in ("Gated", "SwishGate"):
        _make = getattr(norm, f"Fused{_kind}Norm{_gate}")
        recipe(f"norm.Fused{_kind}Norm{_gate}")(_gated(lambda m=_make: m(D), _f))
        _make = getattr(norm, f"Fused{_kind}Norm{_gate}Linear")
        recipe(f"norm.Fused{_kind}Norm{_gate}Linear")(_gated(lambda m=_make: m(D), _f, True))


@recipe("norm.LayerNormGated")
def _(d):
    m = norm.LayerNormGated(D)
    x = {"x": d.randn(d.B, d.T, D), "z": d.randn(d.B, d.T, D), **parameters(d, m, 0.2)}
    return Case(through(m), lambda x, z, weight, bias: _layer(x, weight, bias) * F.silu(z), x)


@recipe("norm.RMSNormGated")
def _(d):
    m = norm.RMSNormGated(D)
    x = {"x": d.randn(d.B, d.T, D), "z": d.randn(d.B, d.T, D), **parameters(d, m, 0.2)}
    return Case(through(m), lambda x, z, weight: _rms(x * F.silu(z), weight), x)


# -- linear layers with few-bit weights --------------------------------------------------------


def quantised(x, weight, bias=None, norm_weight=None, norm_bias=None, f=_rms, eps=1e-8):
    """What a BitLinear computes; gradients pass the rounding unchanged."""
    y = f(x, norm_weight, norm_bias, eps)
    y = y + (bit.activation_quant(y) - y).detach()
    s = weight.abs().mean().clamp(min=1e-5)
    return F.linear(y, weight + ((weight / s).round().clamp(-1, 1) * s - weight).detach(), bias)


def _grid(d: Draw, rows: int) -> torch.Tensor:
    """Weights that are far from where rounding jumps."""
    w = torch.randint(-1, 2, (rows, D), generator=d.generator).to(torch.float32)
    return (w * 0.5).to(d.dtype)


def _ticks(d: Draw) -> torch.Tensor:
    """Rows whose normalised elements lie on the 8-bit grid, so that rounding cannot flip."""
    n = torch.randint(-127, 128, (d.B, d.T, D), generator=d.generator).to(torch.float32)
    n[..., 0] = 127.0
    return (n / 64).to(d.dtype)


# A quantised row is exact only up to its grid: inputs on it, and one tick more in the bound.
def _bit(op, f, eps, names=("norm_weight", "norm_bias", "weight", "bias")):
    def build(d: Draw) -> Case:
        x = {"x": _ticks(d), "weight": _grid(d, 32), "bias": d.randn(32)}
        return Case(
            lambda x, weight, bias: op(x, weight, bias),
            lambda x, weight, bias: quantised(x, weight, bias, f=f, eps=eps),
            x,
        )

    return build


recipe("fused_bitlinear.layer_norm_linear_quant")(
    _bit(lambda x, w, b: bit.layer_norm_linear_quant(x, None, None, w, b), _layer, 1e-6)
)
recipe("fused_bitlinear.rms_norm_linear_quant")(
    _bit(lambda x, w, b: bit.rms_norm_linear_quant(x, None, None, w, b), _rms, 1e-5)
)
recipe("fused_bitlinear.bit_linear")(_bit(bit.bit_linear, _rms, 1e-8))


def _bit_module(make, grad=True):
    def build(d: Draw) -> Case:
        m = make(D, 32)
        x = {"x": _ticks(d), "weight": _grid(d, 32), "norm__weight": torch.ones(D, dtype=d.dtype)}
        return Case(through(m),
                    lambda x, weight, norm__weight: quantised(
                        x, weight, norm_weight=norm__weight),
                    x)  # fmt: skip

    return build


recipe("fused_bitlinear.BitLinear")(_bit_module(bit.BitLinear))
recipe("fused_bitlinear.FusedBitLinear")(_bit_module(bit.FusedBitLinear))


# -- losses ------------------------------------------------------------------------------------

CLASSES = 100


def _labelled(d: Draw, rows: int):
    target = d.labels(CLASSES, rows)
    if rows > 2:
        target[rows // 2] = -100
    return target


def _entropy(logits, target, smooth=0.1, square=1e-4):
    z = logits.logsumexp(-1)
    keep = target != -100
    loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=smooth)
    return torch.where(keep, loss + square * z * z, 0), torch.where(keep, square * z * z, 0)


@recipe("fused_cross_entropy.cross_entropy_loss")
def _(d):
    target = _labelled(d, d.B * d.T)
    x = {"logits": d.randn(d.B * d.T, CLASSES, scale=2)}
    return Case(lambda logits: cross_entropy_loss(logits, target, 0.1, lse_square_scale=1e-4)[0],
                lambda logits: _entropy(logits, target)[0], x)  # fmt: skip


@recipe("fused_cross_entropy.FusedCrossEntropyLoss")
def _(d):
    target = _labelled(d, d.B * d.T)
    m = modules.FusedCrossEntropyLoss(label_smoothing=0.1)
    x = {"input": d.randn(d.B * d.T, CLASSES, scale=2)}
    return Case(lambda input: m(input, target),
                lambda input: F.cross_entropy(input, target, label_smoothing=0.1), x)  # fmt: skip


def _linear_entropy(op):
    def build(d: Draw) -> Case:
        target = _labelled(d, d.B * d.T)
        x = {"x": d.randn(d.B * d.T, D), "weight": d.randn(CLASSES, D, scale=D**-0.5),
             "bias": d.randn(CLASSES)}  # fmt: skip
        return Case(
            lambda x, weight, bias: op(x, target, weight, bias),
            lambda x, weight, bias: F.cross_entropy(F.linear(x, weight, bias), target),
            x)  # fmt: skip

    return build


recipe("fused_linear_cross_entropy.fused_linear_cross_entropy_loss")(
    _linear_entropy(fused_linear_cross_entropy_loss))  # fmt: skip
recipe("fused_linear_cross_entropy.FusedLinearCrossEntropyLoss")(
    _linear_entropy(modules.FusedLinearCrossEntropyLoss()))  # fmt: skip


def _divergence(op):
    def build(d: Draw) -> Case:
        n = d.B * d.T
        x = {"x": d.randn(n, D), "target_x": d.randn(n, D),
             "weight": d.randn(CLASSES, D, scale=D**-0.5),
             "target_weight": d.randn(CLASSES, D, scale=D**-0.5)}  # fmt: skip

        def want(x, target_x, weight, target_weight):
            p = F.linear(target_x, target_weight).log_softmax(-1)
            q = F.linear(x, weight).log_softmax(-1)
            return F.kl_div(q, p, reduction="batchmean", log_target=True)

        return Case(op, want, x, fixed=("target_x", "target_weight"))

    return build


recipe("fused_kl_div.fused_kl_div_loss")(_divergence(fused_kl_div_loss))
recipe("fused_kl_div.FusedKLDivLoss")(_divergence(lambda **a: modules.FusedKLDivLoss()(**a)))


@recipe("grpo.fused_grpo_loss")
def _(d):
    ids = d.labels(CLASSES, d.B, d.T + 3)
    mask = torch.randint(0, 2, (d.B, d.T), generator=d.generator).float()
    x = {"logits": d.randn(d.B, d.T + 1, CLASSES),
         "ref": d.wide(d.B, d.T, CLASSES).log_softmax(-1)[..., 0], "adv": d.wide(d.B)}  # fmt: skip
    return Case(
        lambda logits, ref, adv: fused_grpo_loss(logits, ref, ids, adv, completion_mask=mask),
        lambda logits, ref, adv: grpo_loss_torch(logits, ref, ids, adv, completion_mask=mask), x,
        fixed=("ref", "adv"))  # fmt: skip


# -- rotary, convolution, token shift ----------------------------------------------------------


def _angles(d: Draw, width: int, dtype=None):
    a = torch.outer(torch.arange(d.T), 1e4 ** (-torch.arange(width) / width))
    return a.cos().to(dtype or torch.float32), a.sin().to(dtype or torch.float32)


@recipe("rotary.rotary_embedding")
def _(d):
    cos, sin = _angles(d, 16, d.dtype)
    return Case(lambda x: rotary_embedding(x, cos, sin),
                lambda x: rotary_embedding_ref(x, cos.double(), sin.double()),
                {"x": d.randn(d.B, d.T, d.H, 48)})  # fmt: skip


@recipe("rotary.RotaryEmbedding")
def _(d):
    m = modules.RotaryEmbedding(32)
    cos, sin = (x.to(d.dtype).double() for x in _angles(d, 16))
    x = {"q": d.randn(d.B, d.T, d.H, 32), "k": d.randn(d.B, d.T, d.H, 32)}
    return Case(lambda q, k: m(q, k),
                lambda q, k: tuple(rotary_embedding_ref(t, cos, sin) for t in (q, k)), x,
                )  # fmt: skip


def convolved(x, weight, bias=None, residual=None, before=None):
    """A causal convolution per feature, with silu -> (outputs, last ``W`` inputs)."""
    w = weight.shape[-1]
    before = x.new_zeros(x.shape[0], w, x.shape[2]) if before is None else before.transpose(1, 2)
    full = torch.cat([before, x], 1)
    y = F.conv1d(full[:, 1:].transpose(1, 2), weight[:, None], bias, groups=x.shape[2])
    y = F.silu(y).transpose(1, 2)
    return y if residual is None else y + residual, full[:, -w:].transpose(1, 2)


def _conv_inputs(d: Draw):
    return {"x": d.randn(d.B, d.T, D), "weight": d.randn(D, 4), "bias": d.randn(D),
            "residual": d.randn(d.B, d.T, D), "before": d.randn(d.B, D, 4)}  # fmt: skip


def _conv(op):
    def used(out):
        """The oldest of the W inputs that are handed on is read by nothing, and has no gradient."""
        return out[0], out[1].detach()[..., :1], out[1][..., 1:]

    return lambda d: Case(
        lambda x, weight, bias, residual, before: used(
            op(x, weight, bias, residual, before, True, "silu")),
        lambda **a: used(convolved(**a)), _conv_inputs(d))  # fmt: skip


recipe("causal_conv1d.causal_conv1d")(_conv(conv.causal_conv1d))
recipe("causal_conv1d.CausalConv1dFunction")(_conv(conv.CausalConv1dFunction.apply))


@recipe("causal_conv1d.causal_conv1d_fwd")
def _(d):
    return Case(
        lambda x, weight, bias, residual, before: conv.causal_conv1d_fwd(
            x, weight, bias, residual, before, True, "silu")[:2],
        convolved, _conv_inputs(d), grad=False)  # fmt: skip


@recipe("causal_conv1d.causal_conv1d_bwd")
def _(d):
    x = {**_conv_inputs(d), "dy": d.randn(d.B, d.T, D)}

    def call(x, weight, bias, residual, before, dy):
        return conv.causal_conv1d_bwd(x, dy, None, weight, bias, residual, before, "silu")[:5]

    def want(dy, **x):
        leaves = {k: v.detach().requires_grad_() for k, v in x.items()}
        return torch.autograd.grad(convolved(**leaves)[0], list(leaves.values()), dy)

    return Case(call, want, x, grad=False)


@recipe("causal_conv1d.causal_conv1d_update")
def _(d):
    x = {"x": d.randn(d.T, D), "cache": d.randn(d.T, D, 4), "weight": d.randn(D, 4),
         "bias": d.randn(D), "residual": d.randn(d.T, D)}  # fmt: skip

    def want(x, cache, weight, bias, residual):
        y, last = convolved(x[:, None], weight, bias, residual[:, None], cache)
        return y[:, 0], last

    def call(x, cache, weight, bias, residual):
        cache = cache.clone()
        y, last = conv.causal_conv1d_update(x, cache, residual, weight, bias, "silu")
        return y, last

    return Case(call, want, x, grad=False)


@recipe("causal_conv1d.causal_conv1d_update_states")
def _(d):
    x = {"x": d.randn(d.B, d.T, D), "before": d.randn(d.B, D, 4)}
    return Case(lambda x, before: conv.causal_conv1d_update_states(x, 4, before),
                lambda x, before: torch.cat([before.transpose(1, 2), x], 1)[:, -4:].transpose(1, 2),
                x, grad=False)  # fmt: skip


@recipe("causal_conv1d.ShortConvolution")
def _(d):
    m = conv.ShortConvolution(D, 4, bias=True)
    x = {"x": d.randn(d.B, d.T, D), **parameters(d, m)}
    x["bias"] = d.randn(D)
    return Case(lambda **a: through(m)(**a)[0],
                lambda x, weight, bias: convolved(x, weight[:, 0], bias)[0], x)  # fmt: skip


@recipe("token_shift.token_shift")
def _(d):
    return Case(shift.token_shift, token_shift_ref, {"x": d.randn(d.B, d.T, D)})


@recipe("token_shift.TokenShift")
def _(d):
    return Case(lambda x: shift.TokenShift.apply(x)[0], token_shift_ref,
                {"x": d.randn(d.B, d.T, D)})  # fmt: skip


@recipe("token_shift.token_shift_fwd")
def _(d):
    return Case(lambda x: shift.token_shift_fwd(x)[0], token_shift_ref,
                {"x": d.randn(d.B, d.T, D)}, grad=False)  # fmt: skip


@recipe("token_shift.token_shift_bwd")
def _(d):
    def want(dy):
        x = torch.zeros_like(dy, requires_grad=True)
        return torch.autograd.grad(token_shift_ref(x), x, dy)[0]

    return Case(lambda dy: shift.token_shift_bwd(dy, d.B, d.T)[0], want,
                {"dy": d.randn(d.B, d.T, D)}, grad=False)  # fmt: skip


@recipe("grpo.grpo_loss_with_old_logps")
def _(d):
    d.B = 4

    def logps():
        return d.wide(d.B, d.T, 8).log_softmax(-1)[..., 0].to(d.dtype)

    old, mask = logps(), torch.ones(d.B, d.T, dtype=torch.bool)
    x = {"logps": logps(), "ref": logps(), "rewards": d.wide(d.B)}

    def want(logps, ref, rewards):
        a = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        kl = torch.exp(ref - logps) - (ref - logps) - 1
        w = torch.exp(logps - old.double())
        best = torch.minimum(a[:, None] * w, a[:, None] * w.clamp(0.8, 1.2))
        return -(best - 0.2 * kl).mean()

    return Case(lambda logps, ref, rewards: grpo_loss_with_old_logps(
                    logps, ref, old, mask, d.T, rewards), want, x)  # fmt: skip
