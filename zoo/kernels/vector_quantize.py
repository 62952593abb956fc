"""The nearest code of every vector, and gradients past the choice of it."""

from __future__ import annotations

from typing import Literal

import torch

import tkpy as tk

TINY = 1e-4  # lengths below which a direction is noise: such vectors are not rotated
HUGE = 1e30  # terms of what rounding decides
MODES = ("rotation", "rotation_tangent", "reflection", "ste")

Mode = Literal["rotation", "rotation_tangent", "reflection", "ste"]
Metric = Literal["euclidean", "cosine"]


# What registers hold of exact products of whole vectors.
EXACT = {t: {"rows": 32, "cols": 32} for t in ("f32", "bf16", "f16")}


@tk.function
def vectors(x, h, i, rows, metric, tiny):
    """A tile of vectors in fp32, of length 1 if only their directions are to be compared."""
    e = tk.load(x, (h, i, 0), (rows, "D"), dtype=tk.f32)
    if metric == "cosine":
        e = e / tk.maximum(tk.sqrt(tk.row_sum(e * e)), tiny)
    return e


@tk.function
def nearest(e, codes, h, rows, cols, metric):
    """The row of ``codes`` nearest to every row of ``e``: the largest e.c - |c|^2 / 2, or e.c."""
    best, at = tk.neg_infty(rows), tk.zeros(rows, dtype=tk.i32)
    for j in tk.range(tk.cdiv("K", cols)):
        c = tk.load(codes, (h, j, 0), (cols, "D"))
        score = tk.mm_ABt(e, c)
        if metric == "euclidean":
            score = score - tk.row_vec(tk.row_sum(c * c)) * 0.5
        top = tk.row_max(score)
        better = top > best  # of equals the first stays
        at = tk.where(better, tk.row_argmax(score) + j * cols, at)
        best = tk.where(better, top, best)
    return at


@tk.kernel(where=["K >= 1", "D >= 1", "tiny > 0"], num_warps=8, gpu=EXACT)
def nearest_code(
    x: tk.Global["H M D"],
    codes: tk.Global["H K D", tk.f32],
    index: tk.Out["H M", tk.i64],
    tiny: tk.f32 = TINY,
    *,
    metric: Metric = "euclidean",
    rows: int = 128,
    cols: int = 128,
):
    """index[h, m] = the row of codes[h] that is nearest to x[h, m], the lowest of equally near.

    x: [H, M, D], f32, bf16 or f16; codes: [H, K, D], f32; index: [H, M], i64. "euclidean" is the
    least distance, "cosine" the largest product with x / max(|x|, ``tiny``); codes are taken as
    they are, of length 1 by agreement. Scores are fp32 tiles of ``rows`` x ``cols``, none of which
    is stored. Where no score is a number the index is 0. Van den Oord, Vinyals, Kavukcuoglu,
    "Neural Discrete Representation Learning" (arXiv 1711.00937, equation 1).
    """
    h, i = tk.grid("H", tk.cdiv("M", rows))
    e = vectors(x, h, i, rows, metric, tiny)
    tk.store(index, nearest(e, codes, h, rows, cols, metric), (h, i))


@tk.kernel(where=["K >= 1", "D >= 1", "tiny > 0", "tiny <= 0.5"], num_warps=8, gpu=EXACT)
def vector_quantize(
    x: tk.Global["H M D"],
    codes: tk.Global["H K D", tk.f32],
    q: tk.Out["H M D"],
    index: tk.Out["H M", tk.i64],
    commitment: tk.Out["H M", tk.f32],
    error: tk.Out["H M", tk.f32] | None = None,
    fallback: tk.Out["H M", tk.i32] | None = None,
    mask: tk.Global["M", tk.bool_] | None = None,
    tiny: tk.f32 = TINY,
    *,
    mode: Mode = "rotation",
    metric: Metric = "euclidean",
    rows: int = 128,
    cols: int = 128,
):
    """q = the code nearest to e, with a gradient to e as if q were a function of it.

    x, q: [H, M, D], f32, bf16 or f16; codes: [H, K, D], f32; index: [H, M], i64, as of
    ``nearest_code``; e is x, or x / max(|x|, ``tiny``) for the metric "cosine". commitment and
    error: [H, M], f32, both |e - q|^2; the gradient of ``commitment`` goes to x alone, that of
    ``error`` to the codes alone, none to the codes from q. mask: [M], bool; where it is false, q is
    0, index -1, and everything else 0, gradients too. fallback: [H, M], i32, 1 where |e| or |q| is
    below ``tiny`` (at most a half: unit vectors are none of these), so that the gradient is that
    of "ste" whatever the mode.

    ``mode``, the Jacobian of q with respect to e that the backward takes, a constant:
    "ste", 1; "rotation", |q| / |e| R, where R turns e onto q in their plane (Fifty et al.,
    "Restructuring Vector Quantization with the Rotation Trick", arXiv 2410.06424, section 4.2);
    "rotation_tangent", that times 1 - e e^T / |e|^2, the radial part taken away; "reflection",
    |q| / |e| times the reflection that exchanges the directions of e and q.
    """
    h, i = tk.grid("H", tk.cdiv("M", rows))
    e = vectors(x, h, i, rows, metric, tiny)
    at = nearest(e, codes, h, rows, cols, metric)
    if mask is not None:
        at = tk.where(tk.load(mask, i, rows), at, -1)
    c = tk.gather_rows(codes, at, (h, None, 0), "D")  # zeros for row -1
    distance = tk.where(at >= 0, tk.row_sum((e - c) ** 2), 0.0)
    tk.store(q, c, (h, i, 0))
    tk.store(index, at, (h, i))
    tk.store(commitment, distance, (h, i))
    if error is not None:
        tk.store(error, distance, (h, i))
    if fallback is not None:
        least = tk.minimum(tk.row_sum(e * e), tk.row_sum(c * c))
        short = (least < tiny * tiny) & (at >= 0)
        tk.store(fallback, tk.where(short, 1, tk.zeros(rows, dtype=tk.i32)), (h, i))


@tk.kernel(where=["D >= 1", "tiny > 0", "tiny <= 0.5"], num_warps=4)
def vector_quantize_gradient(
    x: tk.Global["H M D"],
    q: tk.Global["H M D"],
    index: tk.Global["H M", tk.i64],
    grad: tk.Out["H M D"],
    from_q: tk.Global["H M D"] | None = None,
    from_commitment: tk.Global["H M", tk.f32] | None = None,
    tiny: tk.f32 = TINY,
    *,
    mode: Mode = "rotation",
    metric: Metric = "euclidean",
    rows: int = 64,
):
    """The gradient to x of ``vector_quantize`` whose outputs q and index are given.

    x, q, grad: [H, M, D]; index: [H, M]; from_q: [H, M, D] and from_commitment: [H, M] are the
    gradients to those outputs, none for 0. A vector takes five products of its length and one
    combination, some 14 D operations: with c = e.q / |e||q|, g the gradient to q and hats for
    directions, the rotation's is

        |q| / |e| (g - (ê + q̂) (ê.g + q̂.g) / (1 + c) + 2 ê (q̂.g)).

    Where q points away from e, the rotation is not unique and that of R = 1 - 2 ê ê^T is given.
    """
    h, i = tk.grid("H", tk.cdiv("M", rows))
    e = tk.load(x, (h, i, 0), (rows, "D"), dtype=tk.f32)
    long = tk.maximum(tk.sqrt(tk.row_sum(e * e)), tiny)
    if metric == "cosine":
        e = e / long
    c = tk.load(q, (h, i, 0), (rows, "D"), dtype=tk.f32)
    used = tk.load(index, (h, i), rows) >= 0
    out = tk.zeros(rows, "D")
    if from_q is not None:
        g = tk.load(from_q, (h, i, 0), (rows, "D"), dtype=tk.f32)
        out = g if mode == "ste" else turned(e, c, g, tiny, mode)
    if from_commitment is not None:
        out += (e - c) * tk.col_vec(tk.load(from_commitment, (h, i), rows) * 2.0)
    if metric == "cosine":
        # The length of x does not count, unless it was too short to be divided by.
        radial = tk.where(long > tiny, tk.row_sum(e * out), 0.0)
        out = (out - e * radial) / long
    tk.store(grad, tk.where(tk.col_vec(used), out, 0.0), (h, i, 0))


@tk.function
def turned(e, q, g, tiny, mode):
    """The transpose of the mode's Jacobian times ``g``, row by row."""
    ee, qq = tk.row_sum(e * e), tk.row_sum(q * q)
    usable = (ee >= tiny * tiny) & (qq >= tiny * tiny)
    to_e, to_q = tk.rsqrt(tk.maximum(ee, tiny * tiny)), tk.rsqrt(tk.maximum(qq, tiny * tiny))
    eg, qg = tk.row_sum(e * g) * to_e, tk.row_sum(q * g) * to_q
    c = tk.row_sum(e * q) * to_e * to_q
    sign = -1.0 if mode == "reflection" else 1.0
    whole = 1.0 + c * sign
    # Near 0 the sum 1 + c has lost what |ê + q̂|^2 / 2 still has.
    if tk.min(whole) < 0.0625:
        whole = tk.row_sum((e * to_e + q * (to_q * sign)) ** 2) * 0.5
    share = tk.where(whole > 1e-9, (eg + qg * sign) / whole, 0.0)
    along_e, along_q = share, share * sign
    if mode == "rotation":
        along_e = along_e - qg * 2.0
    elif mode == "rotation_tangent":
        along_e = along_e - qg
    scale = tk.sqrt(qq) * to_e
    out = (g - e * (along_e * to_e) - q * (along_q * to_q)) * scale
    return tk.where(tk.col_vec(usable), out, g)


@vector_quantize_gradient.attach_backward(keeps=(), through=())
def _none(arguments, outputs, cotangents, needs):
    """Gradients have none of their own here: rotations and codes count as constants in them."""
    return {n: None for n in needs}


@vector_quantize.attach_backward(keeps=["q", "index"], through=["q", "commitment", "error"])
def _gradients(arguments, outputs, cotangents, needs):
    x, index, codes = arguments["x"], outputs["index"], arguments["codes"]
    same = {n: arguments[n] for n in ("tiny", "metric")}
    out = {}
    if "x" in needs:
        given = {
            f"from_{n}": g.contiguous()
            for n in ("q", "commitment")
            if (g := cotangents[n]) is not None
        }
        out["x"] = vector_quantize_gradient(
            x, outputs["q"], index, mode=arguments["mode"], **given, **same
        )
    if "codes" in needs:
        out["codes"] = None
        if cotangents["error"] is not None:
            from zoo.kernels.codebook import code_sums, owners

            order, starts = owners(index, codes.shape[1])
            weights = cotangents["error"].gather(1, order)
            sums, total = code_sums(x, order, starts, weights=weights, total=True, **same)
            out["codes"] = (codes * total[..., None] - sums) * 2
    return out


def rotated(e: torch.Tensor, q: torch.Tensor, mode: str, tiny: float = TINY) -> torch.Tensor:
    """q [..., D] with the gradient that ``mode`` gives e [..., D], by the definition in PyTorch."""
    if mode == "ste":
        return e + (q - e).detach()
    q, fixed = q.detach(), e.detach()
    norm = lambda v: v.norm(dim=-1, keepdim=True)  # noqa: E731
    usable = (norm(fixed) >= tiny) & (norm(q) >= tiny)
    one = torch.ones_like(norm(q))
    e_hat, q_hat = (v / torch.where(usable, norm(v), one) for v in (fixed, q))
    scale = norm(q) / torch.where(usable, norm(fixed), one)
    moving = e
    if mode == "rotation_tangent":
        moving = e - e_hat * (e_hat * (e - fixed)).sum(-1, keepdim=True)
    mid = e_hat - q_hat if mode == "reflection" else e_hat + q_hat
    far = norm(mid) > (2 * 1e-9) ** 0.5
    mid = torch.where(far, mid / torch.where(far, norm(mid), one), 0)
    turned = moving - 2 * mid * (mid * moving).sum(-1, keepdim=True)
    if mode != "reflection":
        turned = turned + 2 * q_hat * (e_hat * moving).sum(-1, keepdim=True)
    return torch.where(usable, q + scale * (turned - turned.detach()), e + (q - fixed))


def _scores(x, codes, metric, tiny):
    """Vectors, scores against every code, and how far rounding can move one."""
    e = x if metric == "euclidean" else torch.nn.functional.normalize(x, dim=-1, eps=tiny)
    score, size = e @ codes.mT, e.abs() @ codes.abs().mT
    if metric == "euclidean":
        half = codes.square().sum(-1)[:, None] / 2
        score, size = score - half, size + half
    return e, score, size.amax(-1) * (4 + x.shape[-1] / 4) * torch.finfo(torch.float32).eps


def _undecided(x, codes, metric, tiny):
    """Whether rounding may choose another code than exact numbers would."""
    _, score, moved = _scores(x, codes, metric, tiny)
    first = score.amax(-1, keepdim=True)
    return (score >= first - 2 * moved[..., None]).sum(-1) > 1


def _nearest(x, codes, tiny=TINY, metric="euclidean"):
    return _scores(x, codes, metric, tiny)[1].argmax(-1)


def _unclear(x, codes, tiny=TINY, metric="euclidean"):
    return torch.where(_undecided(x, codes, metric, tiny), torch.inf, 0.0)


SIZES = {"H": (1, 2), "M": (1, 150), "K": (1, 150), "D": (1, 40)}
nearest_code.reference(_nearest, terms=_unclear, special=False, sizes=SIZES)


def _quantized_terms(x, codes, mask=None, tiny=TINY, mode="rotation", metric="euclidean"):
    unclear = _undecided(x, codes, metric, tiny)
    e, score, moved = _scores(x, codes, metric, tiny)
    c = codes.gather(1, score.argmax(-1)[..., None].expand(e.shape))
    distance = (e.abs() + c.abs()).square().sum(-1)
    near = 4 * moved / torch.finfo(torch.float32).eps if metric == "euclidean" else HUGE
    distance = distance + torch.where(unclear, near, 0)  # cosine: codes of unlike lengths
    short = torch.minimum(e.norm(dim=-1), c.norm(dim=-1))
    close = unclear | ((short - tiny).abs() < 1e-5 * tiny)
    any_of = torch.where(unclear, torch.inf, 0.0)
    q = torch.where(unclear[..., None], HUGE, c.abs())
    return q, any_of, distance, distance, torch.where(close, torch.inf, 0.0)


@vector_quantize.reference(
    terms=_quantized_terms, special=False, sizes=SIZES, roundings=0,
    kinds=("normal", "big", "tiny", "mixed"),  # of integers two codes may be as near
)  # fmt: skip
def _quantized(x, codes, mask=None, tiny=TINY, mode="rotation", metric="euclidean"):
    e, score, _ = _scores(x, codes, metric, tiny)
    index = score.argmax(-1)
    c = codes.gather(1, index[..., None].expand(e.shape))
    used = torch.ones_like(index, dtype=torch.bool) if mask is None else mask.expand(index.shape)
    short = torch.minimum(e.norm(dim=-1), c.norm(dim=-1)) < tiny
    q = torch.where(used[..., None], rotated(e, c, mode, tiny), 0)
    commitment = torch.where(used, (e - c.detach()).square().sum(-1), 0)
    error = torch.where(used, (e.detach() - c).square().sum(-1), 0)
    return q, torch.where(used, index, -1), commitment, error, (short & used).int()


def _turned_terms(
    x, q, index, from_q=None, from_commitment=None, tiny=TINY, mode="rotation", metric="euclidean"
):
    long = x.norm(dim=-1, keepdim=True).clamp(min=tiny)
    e = x if metric == "euclidean" else x / long
    size = torch.zeros_like(x)
    if from_q is not None:
        a, b = (v.norm(dim=-1, keepdim=True) for v in (e, q))
        usable = (a >= tiny * (1 - 1e-5)) & (b >= tiny * (1 - 1e-5))
        one = torch.ones_like(a)
        a, b = torch.where(usable, a, one), torch.where(usable, b, one)
        cosine = (e * q).sum(-1, keepdim=True) / (a * b)
        cosine = -cosine if mode == "reflection" else cosine
        # The sum of the two directions is as badly known as it is short.
        worse = 1 + 1 / (1 + cosine).clamp(min=1e-9).sqrt()
        worse = torch.where(1 + cosine < 2e-9, HUGE, worse)
        size = from_q.norm(dim=-1, keepdim=True) * torch.maximum(b / a, one) * worse
        edge = ((a - tiny).abs() < 1e-5 * tiny) | ((b - tiny).abs() < 1e-5 * tiny)
        size = 8 * torch.where(edge, HUGE, size).expand(x.shape)
        if mode == "ste":
            size = from_q.abs()
    if from_commitment is not None:
        size = size + 2 * (e.abs() + q.abs()) * from_commitment.abs()[..., None]
    if metric == "cosine":
        size = (size + e.abs() * (e.abs() * size).sum(-1, keepdim=True)) / long
    return torch.where((index >= 0)[..., None], size, 0)


@vector_quantize_gradient.reference(
    terms=_turned_terms, special=False, roundings=0, c=16,
    sizes={"H": (1, 2), "M": (1, 100), "D": (1, 40)},
)  # fmt: skip
def _turned(
    x, q, index, from_q=None, from_commitment=None, tiny=TINY, mode="rotation", metric="euclidean"
):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        e = x if metric == "euclidean" else torch.nn.functional.normalize(x, dim=-1, eps=tiny)
        value = (x * 0).sum()
        if from_q is not None:
            value = value + (rotated(e, q, mode, tiny) * from_q.detach())[index >= 0].sum()
        if from_commitment is not None:
            distance = (e - q).square().sum(-1)
            value = value + (distance * from_commitment.detach())[index >= 0].sum()
        return torch.autograd.grad(value, x)[0]
