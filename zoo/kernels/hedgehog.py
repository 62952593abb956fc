"""Hedgehog / LoLCATs: softmax attention over a window, linear attention over all before it."""

import math
from typing import Literal

import torch

import tkpy as tk
from zoo.kernels.chunked import begin, end, operand

LOWEST = torch.finfo(torch.float32).min


@tk.function
def features(x, w, like):
    """The feature map's halves: softmax(x w) and softmax(-x w), each along the features."""
    u = tk.mm_AB(x, w)
    up, down = tk.exp(u - tk.row_max(u)), tk.exp(tk.row_min(u) - u)
    return operand(up / tk.row_sum(up), like), operand(down / tk.row_sum(down), like)


@tk.function
def known(kt, w, like, key):
    """The features of keys ``key``, ...: none of those before the first, whose row reads as 0."""
    up, down = features(kt, w, like)
    return tk.upper_fill(up, 0, row=key), tk.upper_fill(down, 0, row=key)


@tk.function
def remember(up, down, v, s_up, s_down, z_up, z_down):
    """The state, in halves like the features, with the keys and values of one more tile."""
    precision = "tf32" if v.dtype == tk.f16 else "ieee"
    v = operand(v, v)
    s_up = tk.mma_AtB(up, v, s_up, precision=precision)
    s_down = tk.mma_AtB(down, v, s_down, precision=precision)
    z_up = tk.col_sum(tk.cast(up, tk.f32), z_up)
    return s_up, s_down, z_up, tk.col_sum(tk.cast(down, tk.f32), z_down)


@tk.function
def recall(up, down, v, s_up, s_down, z_up, z_down):
    """What the state gives the queries with these features: weighted values, sum of weights."""
    precision = "tf32" if v.dtype == tk.f16 else "ieee"
    top = tk.mm_AB(up, operand(s_up, v), precision=precision)
    top = tk.mma_AB(down, operand(s_down, v), top, precision=precision)
    up, down = tk.cast(up, tk.f32), tk.cast(down, tk.f32)
    return top, tk.row_sum(up * z_up) + tk.row_sum(down * z_down)


@tk.function
def near(qt, k, v, coord, first, start, window, to_bits, cols, width):
    """Softmax's numerator and denominator over keys ``start`` to the query's own position.

    Both are relative to the largest score of the row. ``window`` leaves the last of the keys.
    """
    (b, g, c), rows = coord, qt.shape[0]
    top, total, acc = tk.full(rows, LOWEST), tk.zeros(rows), tk.zeros(rows, width)
    for j in tk.range(tk.cdiv(first + rows - start, cols)):
        key = start + j * cols
        kt = tk.load(k, (b, g, tk.at(key), 0), (cols, "D"))
        vt = tk.load(v, (b, g, tk.at(key), c), (cols, width))
        s = tk.causal(tk.mma_ABt(qt, kt) * to_bits, first, key)
        if window is not None:
            s = tk.triu(s, 1 - window, first, key, fill=-math.inf)
        new_top = tk.row_max(s, top)
        p, decay = tk.exp2(s - new_top), tk.exp2(top - new_top)
        acc = acc * decay + tk.cast(p, v.dtype) @ vt
        top, total = new_top, total * decay + tk.row_sum(p)
    return acc, total


@tk.lcsf(
    where=["G >= 1", "H % G == 0", "N <= M", "window >= 1", "alpha >= 0", "beta > 0"],
    stages=2,
    persistent=False,
    autocast=True,
    gpu={
        "bf16": {"rows": 32, "cols": 32},
        "f16": {"rows": 32, "cols": 32, "width": 32},
        "f32": {"rows": 16, "cols": 16, "width": 16},
    },
    gpu_backward={t: {"rows": 16, "cols": 16, "width": 32} for t in ("bf16", "f16")},
)
def hedgehog(
    q: tk.Global["B H N D"],
    k: tk.Global["B G M D"],
    v: tk.Global["B G M V"],
    wq: tk.Global["H D E"],
    wk: tk.Global["H D E"],
    alpha: tk.Global["H", tk.f32],
    beta: tk.Global["H", tk.f32],
    o: tk.Out["B H N V"],
    state: tk.Global["B H 2*E V", tk.f32] | None = None,
    norm: tk.Global["B H 2*E", tk.f32] | None = None,
    new_state: tk.Out["B H 2*E V", tk.f32] | None = None,
    new_norm: tk.Out["B H 2*E", tk.f32] | None = None,
    scale: tk.f32 | None = None,
    *,
    window: int = 64,
    style: Literal["terrace", "sliding"] = "terrace",
    rows: int = 64,
    cols: int = 64,
    width: int = 64,
):
    """o[i] = sum over j of w(i, j) v[j] / sum over j of w(i, j), with for keys j of i's window

        w(i, j) = beta exp(s(i, j) - c[i]),  s = scale q[i] . k[j],  c[i] the window's largest s,

    and w(i, j) = alpha phi(q[i] wq) . phi(k[j] wk) for keys before it, phi(u) = [softmax(u),
    softmax(-u)]. c is part of the definition: the linear weights are not relative to it.

    q, o: [B, H, N, ...]; k, v: [B, G, M, ...], query head h reads head h // (H / G); wq, wk:
    [H, D, E]; one dtype of f32, bf16, f16. alpha, beta: [H], f32, the learned mixing factors
    (LoLCATs: 1 and sigmoid(g)). ``scale`` is D ** -0.5 unless given. The last query is aligned
    with the last key, N <= M, and no query sees a later key.

    ``style``: "sliding", the window is the last ``window`` keys, the query's own included;
    "terrace", keys come in blocks of ``window``, counted from k[0], and the window is the query's
    own block up to the query and the whole block before (ThunderKittens' kernel, window = 64).

    state: [B, H, 2 E, V], sum of phi(k[j]) v[j]^T over keys before k[0], which no window reaches;
    norm: [B, H, 2 E], sum of phi(k[j]); zeros if not given. ``new_state=True`` and
    ``new_norm=True`` ask for those with which to go on, over the keys that no later query's window
    reaches: all but the last ``window`` ("sliding"), or all but those from block M // window - 1 on
    ("terrace"). The rest of k and v goes in front of the next call's.

    A program does ``width`` columns of v, tiles of ``rows`` queries by ``cols`` keys. Zhang et
    al., "The Hedgehog & the Porcupine" (arXiv 2402.04347), "LoLCATs" (arXiv 2410.10254,
    section 3.2).
    """
    side = min(width, tk.cdiv("V", 16) * 16)
    b, h, c = tk.tasks("B", "H", tk.cdiv("V", side))
    g, past = h // tk.dim("H // G"), tk.dim("M - N")  # the position of the first query
    to_bits = (tk.static("D") ** -0.5 if scale is None else scale) * math.log2(math.e)
    blocks = style == "terrace"
    tall = min(rows, (window + 15) // 16 * 16) if blocks else rows
    tiles = (window + tall - 1) // tall if blocks else 1  # of a block
    read, write = tk.load(wq, (h, 0, 0), ("D", "E")), tk.load(wk, (h, 0, 0), ("D", "E"))
    far, close = tk.load(alpha, h), tk.load(beta, h)
    # What no later query sees in its window is remembered, and nothing after it.
    end_of_past = (tk.dim("M") // window - 1) * window if blocks else tk.dim("M") - window

    def setup():
        s1 = begin(state, (b, h, 0, c), "E", side)
        s2 = begin(state, (b, h, tk.at("E"), c), "E", side)
        z1, z2 = begin(norm, (b, h, 0), "E"), begin(norm, (b, h, tk.at("E")), "E")
        if not blocks:
            before = max(past - window, 0)
            for j in tk.range(tk.cdiv(before, tall)):
                kt = tk.load(k, (b, g, j, 0), (tall, "D"), until=before)
                vt = tk.load(v, (b, g, j, c), (tall, side), until=before)
                s1, s2, z1, z2 = remember(*features(kt, write, v), vt, s1, s2, z1, z2)
        # Where a block has several tiles, what it adds waits until the last of them.
        return (s1, s2, z1, z2) * (1 if tiles == 1 else 2)

    def place(i):
        """The first query of tile ``i``, and the first key of its window."""
        if not blocks:
            return past + i * tall, max(past + i * tall + 1 - window, 0)
        return i // tiles * window + i % tiles * tall, max((i // tiles - 1) * window, 0)

    def load(i):
        first, _ = place(i)
        stop, last = None, end_of_past
        if blocks and window % tall:  # a block ends within its last tile
            stop = (i // tiles + 1) * window - past
            last = min(stop + past - window, last)
        qt = tk.load(q, (b, h, tk.at(first - past), 0), (tall, "D"), until=stop)
        kt = tk.load(k, (b, g, tk.at(first - window), 0), (tall, "D"), until=last)
        return qt, kt, tk.load(v, (b, g, tk.at(first - window), c), (tall, side), until=last)

    def compute(i, *given):
        (*kept, qt, kt, vt), (first, start) = given, place(i)
        last = None if blocks else window
        acc, total = near(qt, k, v, (b, g, c), first, start, last, to_bits, cols, side)
        up, down = features(qt, read, v)
        more, weight = recall(up, down, v, *kept[:4])
        k_up, k_down = known(kt, write, v, first - window)
        if not blocks:  # the keys leave the window one by one: row r sees those up to row r
            precision = "tf32" if v.dtype == tk.f16 else "ieee"
            a = tk.mm_ABt(up, k_up, precision=precision)
            a = tk.make_causal(tk.mma_ABt(down, k_down, a, precision=precision))
            more = tk.mma_AB(operand(a, v), operand(vt, v), more, precision=precision)
            weight += tk.row_sum(a)
        out = (acc * close + more * far) / (total * close + weight * far)
        after = remember(k_up, k_down, vt, *kept[-4:])
        if tiles == 1:
            return *after, out
        done = i % tiles == tiles - 1
        return *[tk.where(done, x, y) for x, y in zip(after, kept[:4], strict=True)], *after, out

    def store(i, out):
        first, _ = place(i)
        stop = (i // tiles + 1) * window - past if blocks and window % tall else None
        tk.store(o, out, (b, h, tk.at(first - past), c), until=stop)

    def finish(s1, s2, z1, z2, *_):
        end(new_state, s1, (b, h, 0, c))
        end(new_state, s2, (b, h, tk.at("E"), c))
        end(new_norm, z1, (b, h, 0))
        end(new_norm, z2, (b, h, tk.at("E")))

    count = tk.cdiv("M", window) * tiles if blocks else tk.cdiv("N", tall)
    tk.run(count, setup, load, compute, store, finish)


def _phi(x, w, terms):
    """[softmax(x w), softmax(-x w)], or with ``terms`` that plus what errors of x w make of it."""
    u, size = x @ w, x.abs() @ w.abs()
    phi = torch.cat([u.softmax(-1), (-u).softmax(-1)], -1)
    if not terms:
        return phi
    size = torch.cat([size, size], -1)
    return phi * (1 + size + size.amax(-1, keepdim=True))


def _masks(n, m, window, style, device):
    """Which keys are in a query's window, and which before it; which the state after holds."""
    i = torch.arange(m - n, m, device=device)[:, None]
    j = torch.arange(m, device=device)
    if style == "terrace":
        before = j // window <= i // window - 2
        done = j < (m // window - 1) * window
    else:
        before, done = j <= i - window, j < m - window
    return (j <= i) & ~before, before, done


def _hybrid(q, k, v, wq, wk, alpha, beta, state, norm, scale, window, style, terms):
    """The outputs, or with ``terms`` the sums of absolute values that they are made of."""
    h, n, m = q.shape[1], q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(h // k.shape[1], 1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    near, before, done = _masks(n, m, window, style, q.device)
    s = (q @ k.mT * scale).masked_fill(~near, -math.inf)
    p = torch.exp(s - s.amax(-1, keepdim=True)) * beta[:, None, None]
    fq, fk = _phi(q, wq, False), _phi(k, wk, False)
    a = p + (fq @ fk.mT * before) * alpha[:, None, None]
    top, bottom = a @ v, a.sum(-1, keepdim=True)
    if terms:
        size = (q.abs() @ k.abs().mT * abs(scale)).masked_fill(~near, 0)
        tq, tk_ = _phi(q, wq, True), _phi(k, wk, True)
        moved = p * (1 + size + size.amax(-1, keepdim=True))
        moved = moved + (tq @ fk.mT + fq @ tk_.mT) * before * alpha[:, None, None]
        tops, bottoms, fk = moved @ v.abs(), moved.sum(-1, keepdim=True), tk_
    else:
        tops, bottoms, tq = top, bottom, fq
    kept = fk * done[:, None]
    v = v.abs() if terms else v
    after, count = kept.mT @ v, kept.sum(2)
    far = alpha[:, None, None]
    if state is not None:
        top = top + fq @ state * far
        tops = tops + tq @ (state.abs() if terms else state) * far
        after = after + (state.abs() if terms else state)
    if norm is not None:
        bottom = bottom + (fq * norm[:, :, None]).sum(-1, keepdim=True) * far
        bottoms = bottoms + (tq * norm[:, :, None].abs()).sum(-1, keepdim=True) * far
        count = count + (norm.abs() if terms else norm)
    if terms:
        return (tops + (top / bottom).abs() * bottoms) / bottom.abs(), after, count
    return top / bottom, after, count


def _terms(q, k, v, wq, wk, alpha, beta, state=None, norm=None, scale=None, window=64,
           style="terrace"):  # fmt: skip
    return _hybrid(q, k, v, wq, wk, alpha, beta, state, norm, scale, window, style, True)


@hedgehog.reference(
    terms=_terms,
    special=False,  # infinite scores have no largest to subtract
    # The answer depends on a row's largest score, and at a tie (all are 0 where q is) has no one
    # derivative: torch.amax shares it among all keys, the kernel first among tiles, then in them.
    kinds=("normal", "big", "tiny", "mixed"),
    c=16,
    constants={"window": (64, 5, 40), "style": ("terrace", "sliding")},
    sizes={"B": (1, 2), "G": (1, 2), "H": (1, 4), "N": (1, 150), "M": (1, 200), "D": (1, 64),
           "E": (1, 40), "V": (1, 48)},
)  # fmt: skip
def _reference(q, k, v, wq, wk, alpha, beta, state=None, norm=None, scale=None, window=64,
               style="terrace"):  # fmt: skip
    return _hybrid(q, k, v, wq, wk, alpha, beta, state, norm, scale, window, style, False)
