"""How to call the attentions and the small ops of ``fla.ops``."""

from __future__ import annotations

from itertools import pairwise

import fla.ops as ops
import fla.ops.utils as utils
import torch
import torch.nn.functional as F
from fla.ops.attn.naive import naive_parallel_attn
from fla.ops.attnres.naive import naive_attnres
from fla.ops.deltaformer import deltaformer_attn, naive_deltaformer_attn
from fla.ops.forgetting_attn.naive import naive_forgetting_attn
from fla.ops.log_linear_attn.naive import naive_log_linear_attn
from fla.ops.moba import parallel_moba
from fla.ops.nsa.naive import naive_nsa
from fla.ops.parallax.naive import naive_parallax
from fla.ops.path_attn.naive import naive_path_attn
from fla.ops.stickbreaking_attn.naive import naive_stickbreaking_attn
from fla.ops.utils.sinkhorn.naive import naive_sinkhorn
from fla.ops.wall_attn import build_wall_kv_cache, parallel_wall_attn_decode

from bench.peers import linear
from bench.peers.fla_ops import recipe
from bench.peers.row import Case, Draw


def grouped(d: Draw) -> dict[str, torch.Tensor]:
    """q, k, v with two query heads to a key head."""
    d.H = 4
    return {"q": d.randn(d.B, d.T, 4, d.K), "k": d.randn(d.B, d.T, 2, d.K),
            "v": d.randn(d.B, d.T, 2, d.V)}  # fmt: skip


@recipe("attn.parallel_attn")
def _(d):
    x = {**grouped(d), "g": d.gate(d.B, d.T, 4)}
    return Case(lambda q, k, v, g: ops.parallel_attn(q, k, v, g),
                lambda q, k, v, g: naive_parallel_attn(q, k, v, g=g)[0], x)  # fmt: skip


@recipe("forgetting_attn.parallel_forgetting_attn")
def _(d):
    x = {**grouped(d), "g": d.gate(d.B, d.T, 4)}
    return Case(ops.parallel_forgetting_attn, naive_forgetting_attn, x)


@recipe("stickbreaking_attn.parallel_stickbreaking_attn")
def _(d):
    x = {**d.qkv(), "q": d.randn(d.B, d.T, d.H, d.K)}
    return Case(ops.parallel_stickbreaking_attn, naive_stickbreaking_attn, x)


@recipe("parallax.parallel_parallax")
def _(d):
    x = grouped(d)
    x = {"q": x["q"], "r": d.randn(d.B, d.T, 4, d.K, scale=0.2), "k": x["k"], "v": x["v"]}
    return Case(ops.parallel_parallax, naive_parallax, x)


@recipe("path_attn.parallel_path_attn")
def _(d):
    x = {**d.qkv(), "w": F.normalize(d.wide(d.B, d.T, d.H, d.K), dim=-1),
         "beta": d.part(d.B, d.T, d.H, wide=True), "g": d.gate(d.B, d.T, d.H)}  # fmt: skip
    # From chunk to chunk its transitions are kept in fp16 (path_attn/parallel.py:63).
    return Case(lambda **a: ops.parallel_path_attn(**a)[0],
                lambda **a: naive_path_attn(**a, scale=d.K**-0.5), x, own=2.0**-10)  # fmt: skip


@recipe("wall_attn.parallel_wall_attn")
def _(d):
    x = {**d.qkv(), "g": d.gate(d.B, d.T, d.H, d.K, shift=4.0)}

    def want(q, k, v, g):
        p = g.cumsum(1)
        d_ = (p[:, :, None] - p[:, None]).clamp(max=0)
        s = torch.einsum("bihd,bjhd,bijhd->bhij", q, k, d_.exp()) * d.K**-0.5
        return torch.einsum("bhij,bjhd->bihd", linear.causal(s).softmax(-1), v)

    return Case(ops.parallel_wall_attn, want, x)


def _wall_cache(k, g, size):
    p = g.cumsum(1) * 1.4426950408889634
    r = p[:, ::size]
    per = r.repeat_interleave(size, 1)[:, : k.shape[1]]
    return p, k * torch.exp2(per - p), r


@recipe("wall_attn.build_wall_kv_cache")
def _(d):
    x = {"k": d.randn(d.B, d.T, d.H, d.K), "g": d.gate(d.B, d.T, d.H, d.K, shift=4.0)}
    return Case(
        lambda k, g: build_wall_kv_cache(k, g.cumsum(1) * 1.4426950408889634, 64),
        lambda k, g: _wall_cache(k, g, 64)[1:], x, grad=False)  # fmt: skip


@recipe("wall_attn.parallel_wall_attn_decode")
def _(d):
    x = {"q": d.randn(d.B, 1, d.H, d.K), "k": d.randn(d.B, d.T, d.H, d.K),
         "v": d.randn(d.B, d.T, d.H, d.V), "g": d.gate(d.B, d.T, d.H, d.K, shift=4.0)}  # fmt: skip

    def call(q, k, v, g):
        p = g.cumsum(1) * 1.4426950408889634
        k_tilde, r = build_wall_kv_cache(k, p, 64)
        last = p[:, -1:].contiguous()  # the op takes it to be
        return parallel_wall_attn_decode(q, v, last, k_tilde, r, None, d.K**-0.5, 64)[0]

    def want(q, k, v, g):
        p = g.cumsum(1)
        s = torch.einsum("bihd,bjhd,bjhd->bhij", q, k, (p[:, -1:] - p).exp()) * d.K**-0.5
        return torch.einsum("bhij,bjhd->bihd", s.softmax(-1), v)

    return Case(call, want, x, grad=False)


@recipe("deltaformer.deltaformer_attn")
def _(d):
    x = {**d.qkv(), "beta": d.part(d.B, d.T, d.H)}
    return Case(deltaformer_attn, naive_deltaformer_attn, x)


@recipe("moba.parallel_moba")
def _(d):
    d.B = 1
    ends = torch.tensor([0, d.T], dtype=torch.int32)
    return Case(lambda q, k, v: parallel_moba(q, k, v, ends, d.T, 32, 2),
                lambda q, k, v: v, d.qkv())  # fmt: skip


@recipe("log_linear_attn.chunk_log_linear_attn")
def _(d):
    d.K = d.V = 64
    levels = max(1, (d.T - 1).bit_length() + 1)
    x = {**d.qkv(), "g": d.gate(d.B, d.T, d.H), "l": d.part(d.B, d.T, d.H, levels)}
    return Case(lambda q, k, v, g, l: ops.chunk_log_linear_attn(q, k, v, g, l)[0],
                lambda q, k, v, g, l: naive_log_linear_attn(q, k, v, g, l), x)  # fmt: skip


@recipe("nsa.parallel_nsa")
def _(d):
    d.B, size, picks = 1, 16, 4
    blocks = -(-d.T // size)
    x = {"q": d.randn(d.B, d.T, 16, d.K), "k": d.randn(d.B, d.T, 1, d.K),
         "v": d.randn(d.B, d.T, 1, d.V), "g_slc": d.part(d.B, d.T, 16)}  # fmt: skip
    chosen = torch.full((d.B, d.T, 1, picks), blocks)
    for t in range(d.T):
        own = torch.randperm(t // size + 1, generator=d.generator)[:picks]
        chosen[0, t, 0, : len(own)] = own.sort().values
    options = {"block_indices": chosen, "block_counts": picks, "block_size": size}
    return Case(lambda **a: ops.parallel_nsa(**a, **options),
                lambda **a: naive_nsa(**a, **options), x)  # fmt: skip


@recipe("attnres.fused_attnres")
def _(d):
    x = {"query": d.randn(64), **{f"r{i}": d.randn(d.B, d.T, 64) for i in range(4)},
         "weight": d.randn(64)}  # fmt: skip
    return Case(
        lambda query, weight, **r: ops.fused_attnres(query, list(r.values()), weight, scale=0.1),
        lambda query, weight, **r: naive_attnres(query, list(r.values()), weight, scale=0.1),
        x)  # fmt: skip


# -- fla.ops.utils -----------------------------------------------------------------------------


def _sums(s, size, reverse):
    pieces = s.split(size, 1)
    return torch.cat([p.flip(1).cumsum(1).flip(1) if reverse else p.cumsum(1) for p in pieces], 1)


for _name, _shape in (("", (4,)), ("_scalar", ()), ("_vector", (4,))):

    def _global(d, name=_name, shape=_shape):
        op = getattr(utils, f"chunk_global_cumsum{name}")
        x = {"s": d.randn(d.B, d.T, d.H, *(32,) * len(shape))}
        return Case(lambda s: (op(s), op(s, reverse=True)),
                    lambda s: (_sums(s, 1 << 30, False), _sums(s, 1 << 30, True)), x,
                    grad=False)  # fmt: skip

    def _local(d, name=_name, shape=_shape):
        op = getattr(utils, f"chunk_local_cumsum{name}")
        x = {"g": d.randn(d.B, d.T, d.H, *(32,) * len(shape))}
        return Case(lambda g: (op(g, 64), op(g, 64, reverse=True)),
                    lambda g: (_sums(g, 64, False), _sums(g, 64, True)), x,
                    grad=False)  # fmt: skip

    recipe(f"utils.chunk_global_cumsum{_name}")(_global)
    recipe(f"utils.chunk_local_cumsum{_name}")(_local)


@recipe("utils.matmul")
def _(d):
    x = {"a": d.randn(d.T, 48), "b": d.randn(48, 80)}
    return Case(utils.matmul, lambda a, b: a @ b, x, grad=False)


@recipe("utils.addmm")
def _(d):
    x = {"x": d.randn(80), "a": d.randn(d.T, 48), "b": d.randn(48, 80)}
    return Case(utils.addmm, lambda x, a, b: x + a @ b, x, grad=False)


@recipe("utils.logsumexp_fwd")
def _(d):
    return Case(lambda x: utils.logsumexp_fwd(x, 0.5), lambda x: (x * 0.5).logsumexp(-1),
                {"x": d.randn(d.B, d.T, 100)}, grad=False)  # fmt: skip


@recipe("utils.softmax_fwd")
def _(d):
    return Case(utils.softmax_fwd, lambda x: x.softmax(-1), {"x": d.randn(d.B, d.T, 100)},
                grad=False)  # fmt: skip


@recipe("utils.softmax_bwd")
def _(d):
    x = {"p": d.wide(d.B, d.T, 100).softmax(-1).to(d.dtype), "dp": d.randn(d.B, d.T, 100)}
    return Case(utils.softmax_bwd, lambda p, dp: p * (dp - (p * dp).sum(-1, keepdim=True)), x,
                grad=False)  # fmt: skip


@recipe("utils.sinkhorn")
def _(d):
    return Case(utils.sinkhorn, naive_sinkhorn, {"logits": d.randn(d.B, d.T, 4, 4)})


@recipe("utils.solve_tril")
def _(d):
    a = (d.wide(d.B, d.T, d.H, 64) * 0.1).to(d.dtype)
    row = torch.arange(d.T) % 64
    a = a * (torch.arange(64)[None, :] < row[:, None]).to(a)[None, :, None]

    def want(A):
        out = []
        for piece in A.split(64, 1):
            n = piece.shape[1]
            eye = torch.eye(n, dtype=A.dtype)
            inverse = torch.linalg.inv(piece[..., :n].transpose(1, 2) + eye)
            out.append(F.pad(inverse.transpose(1, 2), (0, 64 - n)))
        return torch.cat(out, 1)

    return Case(lambda A: utils.solve_tril(A), want, {"A": a}, grad=False)


@recipe("utils.mean_pooling")
def _(d):
    def want(x):
        return torch.stack([p.mean(1) for p in x.split(32, 1)], 1)

    return Case(lambda x: utils.mean_pooling(x, 32), want, {"x": d.randn(d.B, d.T, d.H, d.K)})


def _ends(d: Draw, batch: int = 3):
    lens = torch.randint(1, d.T + 1, (batch,), generator=d.generator)
    lens[0] = d.T
    return lens, F.pad(lens.cumsum(0), (1, 0))


@recipe("utils.pack_sequence")
def _(d):
    lens, ends = _ends(d)
    return Case(lambda x: utils.pack_sequence(x, ends, "right"),
                lambda x: torch.cat([x[i, :n] for i, n in enumerate(lens)]),
                {"x": d.randn(3, d.T, 40)})  # fmt: skip


@recipe("utils.unpack_sequence")
def _(d):
    lens, ends = _ends(d)

    def want(x):
        return torch.stack([F.pad(p, (0, 0, 0, d.T - len(p))) for p in x.split(lens.tolist())])

    return Case(lambda x: utils.unpack_sequence(x, ends, "right"), want,
                {"x": d.randn(int(ends[-1]), 40)})  # fmt: skip


@recipe("utils.prepare_block_csr")
def _(d):
    blocks, picks = -(-d.T // 16), 4
    chosen = torch.stack([torch.randperm(max(blocks, picks), generator=d.generator)[:picks]
                          for _ in range(d.T * 2)]).view(1, d.T, 2, picks)  # fmt: skip

    def call(x):
        queries, offsets = utils.prepare_block_csr(chosen, picks, None, None, blocks, 16)
        return offsets, _sorted(queries, offsets)

    def want(x):
        queries, offsets = [], [0]
        for h in range(2):
            for b in range(blocks):
                mine = (chosen[0, :, h] == b).any(-1) & (torch.arange(d.T) >= b * 16)
                mine = mine.nonzero().flatten()
                queries.append(mine)
                offsets.append(offsets[-1] + len(mine))
        return torch.tensor(offsets), torch.cat(queries)

    def _sorted(queries, offsets):
        at = offsets.flatten().tolist()
        return torch.cat([queries.flatten()[a:b].sort().values
                          for a, b in pairwise(at)])  # fmt: skip

    return Case(call, want, {"x": d.randn(1)}, grad=False)


@recipe("utils.prepare_position_ids")
def _(d):
    lens, ends = _ends(d)
    return Case(lambda x: utils.prepare_position_ids(ends),
                lambda x: torch.cat([torch.arange(int(n)) for n in lens]), {"x": d.randn(1)},
                grad=False)  # fmt: skip
