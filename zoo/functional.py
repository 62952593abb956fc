"""The zoo's kernels with the conventions of FlashAttention and flash-linear-attention.

q, k and v come first, as [B, T, H, D]; ``scale=None`` means D ** -0.5. What a sequence leaves
behind is asked for with ``output_final_state=True``, given back as ``initial_state``, and fp32.
``cu_seqlens`` [S + 1] says that the one row of a batch of one holds S sequences, sequence s from
``cu_seqlens[s]`` to ``cu_seqlens[s + 1]``; states then have S rows. A function with a state returns
(output, state), the state None unless it was asked for. Dtypes are f32, bf16 and f16.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from tkpy import CallError
from zoo.kernels.attention import attention as _attention
from zoo.kernels.based import based as _based
from zoo.kernels.cross_entropy import cross_entropy as _cross_entropy
from zoo.kernels.linear_cross_entropy import linear_cross_entropy as _linear_cross_entropy
from zoo.kernels.norm import layernorm as _layernorm
from zoo.kernels.norm import rmsnorm as _rmsnorm
from zoo.kernels.rotary import rotary as _rotary
from zoo.kernels.short_conv import short_conv as _short_conv
from zoo.kernels.swiglu import swiglu as _swiglu
from zoo.kernels.taylor_quadratic import taylor_block as _taylor_block
from zoo.kernels.taylor_quadratic import taylor_quadratic as _taylor_quadratic

State = tuple[Tensor, ...]
_STATE = ("t0", "t1", "t2", "s0", "s1", "s2")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v, of q [B, T, H, D] and k, v [B, S, G, D]; H is a multiple of G.

    ``causal`` aligns the last query with the last key; ``window`` implies it and leaves the last
    ``window`` keys of each query, its own included.

    Returns: [B, T, H, D]; 0 for a query that sees no key.
    Raises: CallError for shapes or dtypes that do not fit, and ``cu_seqlens`` that are none.
    """
    bounds = _bounds("attention", cu_seqlens, q, k, v)
    if bounds is not None:
        return _joined(
            attention(*(x[:, a:b] for x in (q, k, v)), scale, causal, window) for a, b in bounds
        )
    heads = (x.transpose(1, 2) for x in (q, k, v))
    return _attention(*heads, scale=scale, window=window, causal=causal).transpose(1, 2)


def taylor_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State | None]:
    """BASED's attention: key j weighs 1 + s + s^2 / 2 for query i >= j, s = scale q_i . k_j.

    q, k: [B, T, H, F], F at most 32; v: [B, T, H, V]. Arora et al. (arXiv 2402.18668). Where no
    state is given or asked for, sequences of up to 4 F^2 positions are done without one.

    Returns: [B, T, H, V]; and the state, six tensors [B, H, ...] (``zoo.kernels.based``): powers
        of the keys, which do not depend on ``scale``.
    Raises: CallError for shapes or dtypes that do not fit, and ``cu_seqlens`` that are none.
    """
    bounds = _bounds("taylor_linear_attention", cu_seqlens, q, k, v)
    if bounds is not None:
        return _each(
            lambda a, b, state: taylor_linear_attention(
                *(x[:, a:b] for x in (q, k, v)), scale, state, output_final_state
            ),
            bounds,
            initial_state,
        )
    if scale is not None:
        q = q * (scale * q.shape[-1] ** 0.5)
    if initial_state is None and not output_final_state and q.shape[1] <= 4 * q.shape[-1] ** 2:
        kernel = _taylor_block if q.shape[1] <= 64 else _taylor_quadratic
        return kernel(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2), None
    if initial_state is not None and len(initial_state) != len(_STATE):
        raise CallError(
            f"taylor_linear_attention: the initial state has {len(initial_state)} tensors, not "
            f"{len(_STATE)}\n  fix: give what output_final_state=True returned"
        )
    past = dict(zip(_STATE, initial_state, strict=True)) if initial_state is not None else {}
    wanted = {f"new_{n}": True for n in _STATE} if output_final_state else {}
    got = _based(*(x.transpose(1, 2) for x in (q, k, v)), **past, **wanted)
    y, state = (got[0], tuple(got[1:])) if output_final_state else (got, None)
    return y.transpose(1, 2), state


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    gate: Tensor | None = None,
    skip: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Causal convolution of each channel of x [B, T, D] with weight [D, W], W from 2 to 4.

    ``activation``: None or "silu". What comes of it is multiplied by ``gate`` [B, T, D], then
    ``skip`` adds x. The state, [B, W - 1, D], holds the last inputs.

    Returns: [B, T, D]; and the state.
    Raises: CallError for shapes, dtypes or an activation that do not fit, and ``cu_seqlens`` that
        are none.
    """
    if activation not in (None, "silu"):
        raise CallError(f"short_conv: activation={activation!r} is neither None nor 'silu'")
    gates = () if gate is None else (gate,)
    bounds = _bounds("short_conv", cu_seqlens, x, *gates)
    if bounds is not None:
        return _each(
            lambda a, b, state: short_conv(
                x[:, a:b],
                weight,
                bias,
                activation,
                state,
                output_final_state,
                None,
                None if gate is None else gate[:, a:b],
                skip,
            ),
            bounds,
            initial_state,
        )
    got = _short_conv(
        x,
        weight,
        bias=bias,
        state=None if initial_state is None else initial_state.to(x.dtype),
        gate=gate,
        activation=activation or "none",
        skip=skip,
        **({"new_state": True} if output_final_state else {}),
    )
    return (got[0], got[1].float()) if output_final_state else (got, None)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, offset: int = 0) -> Tensor:
    """Turns the halves of x [B, T, H, D] by the angles of positions ``offset`` and on.

    cos, sin: [at least offset + T, R], R at most D / 2; what is beyond 2 R is copied.

    Returns: [B, T, H, D].
    Raises: CallError for shapes or dtypes that do not fit.
    """
    end = offset + x.shape[1]
    if offset < 0 or end > cos.shape[0]:
        raise CallError(
            f"rotary: positions {offset} to {end} of angles for {cos.shape[0]}\n"
            "  fix: tables of cos and sin for every position"
        )
    return _rotary(x.transpose(1, 2), cos[offset:end], sin[offset:end]).transpose(1, 2)


def swiglu(x: Tensor) -> Tensor:
    """value silu(gate) for (value, gate) = the halves of x [..., 2 H]; [..., H]."""
    if x.shape[-1] % 2:
        raise CallError(f"swiglu: the last axis of x, {list(x.shape)}, has no halves")
    return _swiglu(x.reshape(-1, 2, x.shape[-1] // 2)).view(*x.shape[:-1], -1)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float | None = None,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """x / sqrt(mean of x^2 + eps) weight over the last axes of x, those of ``weight``.

    As ``torch.nn.functional.rms_norm``, with statistics in fp32, whose epsilon ``eps=None`` is;
    without a weight over the last.
    With a ``residual`` of x's shape: the norm of x + residual, and that sum in its dtype.
    """
    weight = x.new_ones(x.shape[-1]) if weight is None else weight
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    rows = _rows("rms_norm", x, weight)
    past = _stream("rms_norm", x, rows, residual)
    return _shaped(_rmsnorm(rows, weight.reshape(-1), eps=eps, **past), x.shape)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) weight + bias over the last axes, those of ``weight``.

    As ``torch.nn.functional.layer_norm``, with statistics in fp32; without a weight over the last.
    With a ``residual`` of x's shape: the norm of x + residual, and that sum in its dtype.
    """
    weight = x.new_ones(x.shape[-1]) if weight is None else weight
    rows = _rows("layer_norm", x, weight)
    bias = None if bias is None else bias.reshape(-1)
    past = _stream("layer_norm", x, rows, residual)
    return _shaped(_layernorm(rows, weight.reshape(-1), bias=bias, eps=eps, **past), x.shape)


def cross_entropy(
    logits: Tensor, target: Tensor, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """``torch.nn.functional.cross_entropy`` of logits [..., V] and class numbers [...]; fp32."""
    target, ignore_index = _ignoring(target, ignore_index)
    rows = logits.reshape(-1, logits.shape[-1])
    loss = _cross_entropy(rows, target.reshape(-1), ignore=ignore_index)
    return _reduced(loss, target, ignore_index, reduction)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of the logits x weight^T + bias, which are never written to memory.

    x: [..., D]; weight: [V, D]; bias: [V]; target: [...], int64. ``softcap`` and ``z_loss`` as in
    ``zoo.kernels.linear_cross_entropy``, the others as in ``torch.nn.functional.cross_entropy``.

    Returns: fp32, [...] for the reduction "none", else a scalar.
    """
    target, ignore_index = _ignoring(target, ignore_index)
    loss = _linear_cross_entropy(
        x.reshape(-1, x.shape[-1]),
        weight,
        target.reshape(-1),
        bias=bias,
        softcap=softcap,
        smoothing=label_smoothing or None,
        z_loss=z_loss,
        ignore=ignore_index,
    )
    return _reduced(loss, target, ignore_index, reduction)


def _ignoring(target: Tensor, ignore: int) -> tuple[Tensor, int]:
    """The same with a number to ignore that is no class, as the kernels want it."""
    return (target, ignore) if ignore < 0 else (target.masked_fill(target == ignore, -100), -100)


def _reduced(loss: Tensor, target: Tensor, ignore: int, how: str) -> Tensor:
    if how == "none":
        return loss.view(target.shape)
    if how not in ("sum", "mean"):
        raise CallError(f"reduction={how!r} is none of 'none', 'sum', 'mean'")
    return loss.sum() if how == "sum" else loss.sum() / (target != ignore).sum()


def _rows(name: str, x: Tensor, weight: Tensor) -> Tensor:
    n = weight.dim()
    if not n or x.shape[-n:] != weight.shape:
        raise CallError(
            f"{name}: the last axes of x, {list(x.shape)}, are not those of weight, "
            f"{list(weight.shape)}"
        )
    return x.reshape(-1, weight.numel())


def _stream(name: str, x: Tensor, rows: Tensor, residual: Tensor | None) -> dict:
    """What a norm's kernel is told of the residual stream."""
    if residual is None:
        return {}
    if residual.shape != x.shape:
        raise CallError(
            f"{name}: the residual, {list(residual.shape)}, has not the shape of x, {list(x.shape)}"
        )
    return {"residual": residual.reshape(rows.shape), "total": True}


def _shaped(out, shape):
    return tuple(t.view(shape) for t in out) if isinstance(out, tuple) else out.view(shape)


def _bounds(name: str, cu_seqlens: Tensor | None, *packed: Tensor) -> list | None:
    """(first, last + 1) of each packed sequence; None where there is one a row."""
    if cu_seqlens is None:
        return None
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.is_floating_point():
        kind = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise CallError(
            f"{name}: cu_seqlens is a tensor of integers, not {kind}\n"
            "  fix: torch.tensor([0, ...], dtype=torch.int32)"
        )
    cuts, length = cu_seqlens.tolist(), packed[0].shape[1]
    if any(x.shape[0] != 1 or x.shape[1] != length for x in packed):
        shapes = ", ".join(str(list(x.shape)) for x in packed)
        raise CallError(
            f"{name}: with cu_seqlens sequences are packed into one row of equal lengths, not "
            f"{shapes}\n  fix: x.reshape(1, -1, *x.shape[2:])"
        )
    if len(cuts) < 2 or cuts[0] != 0 or cuts[-1] != length or cuts != sorted(cuts):
        raise CallError(f"{name}: cu_seqlens must rise from 0 to {length}, not {cuts}")
    return list(itertools.pairwise(cuts))


def _joined(parts) -> Tensor:
    return torch.cat(list(parts), 1)


def _each(call: Callable, bounds: list, initial):
    """``call(a, b, state)`` of each packed sequence: outputs side by side, states as rows."""
    alone = isinstance(initial, Tensor)
    given = (initial,) if alone else initial
    if given is not None and any(len(t) != len(bounds) for t in given):
        raise CallError(
            f"the initial state has {len(given[0])} rows, and there are {len(bounds)} sequences"
        )
    outputs, states = [], []
    for s, (a, b) in enumerate(bounds):
        state = None if given is None else tuple(t[s : s + 1] for t in given)
        y, after = call(a, b, state[0] if alone else state)
        outputs.append(y)
        states.append(after)
    if states[0] is None:
        return _joined(outputs), None
    if isinstance(states[0], Tensor):
        return _joined(outputs), torch.cat(states)
    return _joined(outputs), tuple(torch.cat(t) for t in zip(*states, strict=True))
