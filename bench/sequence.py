"""Work on sequences and on fused products for ``python -m bench cpu``, beside plain PyTorch.

The rivals of the linear-time kernels are themselves linear in the length: the chunked form that one
would write in PyTorch, chunks of 64, batched products within them, and a loop over their states.
"""

from __future__ import annotations

import torch

from bench.work import Work, _near
from zoo.kernels.flux import flux_gelu
from zoo.kernels.hedgehog import hedgehog
from zoo.kernels.linear_attention import linear_attention
from zoo.kernels.linear_cross_entropy import linear_cross_entropy
from zoo.kernels.mamba2 import mamba2

F = torch.nn.functional
C = 64


def _chunked(q, k, v, log_decay):
    """sum over j <= i of exp(log_decay[j + 1] + ... + log_decay[i]) (q[i] . k[j]) v[j].

    q, k: [B, H or 1, N, F]; v: [B, H, N, V]; log_decay: [B, H, N]; N a multiple of 64.
    """
    q, k, v, a = (x.unflatten(2, (-1, C)) for x in (q, k, v, log_decay))
    run = a.cumsum(-1)
    within = (run[..., :, None] - run[..., None, :]).masked_fill_(
        ~torch.ones(C, C, dtype=torch.bool).tril(), -torch.inf
    )
    y = (q @ k.mT * within.exp_()) @ v
    new = (k * (run[..., -1:] - run).exp()[..., None]).mT @ v
    whole, state = run[..., -1].exp()[..., None, None], torch.zeros_like(new[:, :, 0])
    states = []
    for i in range(v.shape[2]):
        states.append(state)
        state = state * whole[:, :, i] + new[:, :, i]
    y = y + (q * run.exp()[..., None]) @ torch.stack(states, 2)
    return y.flatten(2, 3)


def linear(n: int) -> Work:
    """Four heads of 64 x 64."""
    q, k, v = (torch.randn(1, 4, n, 64) for _ in "qkv")
    slope, y = torch.tensor([1.0, 0.25, 0.06, 0.015]), torch.empty_like(v)
    log_decay = -slope[:, None].expand(1, 4, n)

    def rival():
        return _chunked(q, k, v, log_decay)

    # flops: two products within a chunk (all of it), two with the state.
    return Work(lambda: linear_attention(q, k, v, slope, y=y), {"torch": rival},
                lambda: _near(y, rival(), "fp32", 256), flops=8 * 4 * n * C * 64)  # fmt: skip


def ssd(n: int) -> Work:
    """Eight heads of 64 that share b and c of 64."""
    x, a = torch.randn(1, 8, n, 64), -torch.rand(1, 8, n) / 4
    b, c = torch.randn(1, 1, n, 64), torch.randn(1, 1, n, 64)
    y = torch.empty_like(x)

    def rival():
        return _chunked(c, b, x, a)

    return Work(lambda: mamba2(x, a, b, c, y=y), {"torch": rival},
                lambda: _near(y, rival(), "fp32", 256), flops=8 * 8 * n * C * 64)  # fmt: skip


def hybrid(n: int) -> Work:
    """Four heads of 64, 32 features of either sign, the terrace of LoLCATs with blocks of 64."""
    q, k, v = (torch.randn(1, 4, n, 64) for _ in "qkv")
    wq, wk = torch.randn(4, 64, 32) / 8, torch.randn(4, 64, 32) / 8
    alpha, beta, o = torch.ones(4), torch.full((4,), 0.1), torch.empty_like(v)
    mask = torch.ones(C, 2 * C, dtype=torch.bool).tril(C)

    def phi(x, w):
        u = x @ w
        return torch.cat([u.softmax(-1), (-u).softmax(-1)], -1).unflatten(2, (-1, C))

    def rival():
        fq, fk = phi(q, wq), phi(k, wk)
        qs, ks, vs = (x.unflatten(2, (-1, C)) for x in (q, k, v))
        pairs = [torch.cat([F.pad(x, (0, 0, 0, 0, 1, -1)), x], 3) for x in (ks, vs)]
        s = (qs @ pairs[0].mT / 8).masked_fill_(~mask, -torch.inf)
        s[:, :, 0, :, :C] = -torch.inf
        p = (s - s.amax(-1, keepdim=True)).exp_() * beta[:, None, None, None]
        state = F.pad((fk.mT @ vs).cumsum(2), (0, 0, 0, 0, 2, -2))
        norm = F.pad(fk.sum(3).cumsum(2), (0, 0, 2, -2))[..., None]
        top, bottom = p @ pairs[1] + fq @ state, p.sum(-1, keepdim=True) + fq @ norm
        return (top / bottom).flatten(2, 3)

    # flops: the maps, two blocks of the window, the state's two products.
    flops = 2 * 4 * n * (2 * 64 * 32 + 2 * 128 * 64 + 2 * 64 * 64)
    return Work(lambda: hedgehog(q, k, v, wq, wk, alpha, beta, o=o), {"torch": rival},
                lambda: _near(o, rival(), "fp32", 64), flops=flops)  # fmt: skip


def projected(m: int, d: int, v: int) -> Work:
    """Logits of ``d`` features for ``v`` classes, which only PyTorch stores."""
    x, w = torch.randn(m, d), torch.randn(v, d) / d**0.5
    target, loss = torch.randint(0, v, (m,)), torch.empty(m)

    def rival():
        return F.cross_entropy(F.linear(x, w), target, reduction="none")

    def ours():
        return linear_cross_entropy(x, w, target, loss=loss, rows=256, cols=512, depth=256)

    return Work(ours, {"torch": rival}, lambda: _near(loss, rival(), "fp32", 64),
                flops=2 * m * d * v, slow=True)  # fmt: skip


def gelu(m: int, k: int, n: int) -> Work:
    """A linear layer with bias and the tanh form of gelu."""
    x, w, b, y = torch.randn(m, k), torch.randn(n, k), torch.randn(n), torch.empty(m, n)

    def rival():
        return F.gelu(F.linear(x, w, b), approximate="tanh")

    return Work(lambda: flux_gelu(x, w, b, y=y, rows=256, cols=512, depth=256), {"torch": rival},
                lambda: _near(y, rival(), "fp32", k**0.5), flops=2 * m * k * n)  # fmt: skip
