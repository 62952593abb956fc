"""Recurrences in a few lines of torch: what linear attention of every kind must give.

Tensors are (batch, time, head, feature). They are computed in the dtype that they come in.
"""

from __future__ import annotations

import torch


def gated(q, k, v, gk=None, gv=None, h0=None, scale=None, u=None):
    """S_t = exp(gk) S_{t-1} exp(gv) + k v; o = q S_t, or q (S_{t-1} + u k v) with ``u``.

    -> (outputs, last state (batch, head, k, v)).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = q.new_zeros(q.shape[0], q.shape[2], k.shape[-1], v.shape[-1])
    state = state if h0 is None else state + h0
    out = []
    for t in range(q.shape[1]):
        write = k[:, t, :, :, None] * v[:, t, :, None, :]
        read = state + u[None, :, :, None] * write if u is not None else None
        if gk is not None:
            state = state * gk[:, t, :, :, None].exp()
        if gv is not None:
            state = state * gv[:, t, :, None, :].exp()
        state = state + write
        read = state if read is None else read
        out.append(((q[:, t] * scale)[..., None] * read).sum(-2))
    return torch.stack(out, 1), state


def low_rank(q, k, v, a, b, gk=None, h0=None, scale=None):
    """S_t = exp(gk) S_{t-1} + b (a S_{t-1}) + k v; o = q S_t -> (outputs, last state)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = q.new_zeros(q.shape[0], q.shape[2], k.shape[-1], v.shape[-1])
    state = state if h0 is None else state + h0
    out = []
    for t in range(q.shape[1]):
        seen = (a[:, t, :, :, None] * state).sum(-2)
        if gk is not None:
            state = state * gk[:, t, :, :, None].exp()
        state = state + b[:, t, :, :, None] * seen[:, :, None, :]
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(((q[:, t] * scale)[..., None] * state).sum(-2))
    return torch.stack(out, 1), state


def delta(q, k, v, beta, g=None, gk=None, gv=None, h0=None, scale=None, erase=None):
    """S_t = D S_{t-1} + k (beta (v - erase D S_{t-1})), D the decays -> (outputs, last state).

    ``erase`` is the key that reads what is to be replaced: ``k`` itself, unless given.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    erase = k if erase is None else erase
    state = q.new_zeros(q.shape[0], q.shape[2], k.shape[-1], v.shape[-1])
    state = state if h0 is None else state + h0
    out = []
    for t in range(q.shape[1]):
        if g is not None:
            state = state * g[:, t, :, None, None].exp()
        if gk is not None:
            state = state * gk[:, t, :, :, None].exp()
        if gv is not None:
            state = state * gv[:, t, :, None, :].exp()
        old = (erase[:, t, :, :, None] * state).sum(-2)
        step = beta[:, t] if beta.dim() == v.dim() else beta[:, t, :, None]
        state = state + k[:, t, :, :, None] * ((v[:, t] - old) * step)[:, :, None, :]
        out.append(((q[:, t] * scale)[..., None] * state).sum(-2))
    return torch.stack(out, 1), state


def causal(scores):
    """Scores (..., rows, columns) with the future at minus infinity."""
    n, m = scores.shape[-2:]
    keep = torch.ones(n, m, dtype=torch.bool).tril()
    return scores.masked_fill(~keep, float("-inf"))
