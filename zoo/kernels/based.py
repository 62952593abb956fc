"""BASED's linear attention: softmax's exponential to second order, a state of fixed size.

With s = q . k / sqrt(F), key k weighs 1 + s + s^2 / 2 for query q. What any later query needs to
know of the keys and values so far, in fp32, is therefore

    t0 = number of keys    t1 = sum k [F]          t2 = sum k k^T [F, F]
    s0 = sum v [V]         s1 = sum k v^T [F, V]   s2 = sum (k x k) v^T [F, F, V]

the first row for the sum of the weights, the second for that of the weighted values.
"""

import torch

import tkpy as tk
from zoo.kernels.chunked import begin, end


@tk.function
def powers(x, scale, whole):
    """Features of first and second order. Not ``whole``: of x_i x_j and x_j x_i one is enough."""
    if whole:
        return x, tk.row_outer(x, x * scale)
    return tk.concat(x, x * x * scale), tk.row_pairs(x)


@tk.function
def attend(q, k, v, t0, t1, t2, s0, s1, s2, whole):
    """The state after some consecutive positions, less t0; and their y, given the state before.

    s1 and s2 belong to the features of ``powers``. Within the chunk s is formed first, then
    1 + s + s^2 / 2: the powers of q and k themselves cancel where s is near -1. Products of 16-bit
    inputs fit tf32 better than they fit 16 bits.
    """
    scale, precision = tk.static("F") ** -0.5, "ieee" if v.dtype == tk.f32 else "tf32"
    s = tk.mma_ABt(q, k) * scale
    a = tk.make_causal(1 + s + s * s / 2)
    q, k, v = tk.cast(q, tk.f32) * scale, tk.cast(k, tk.f32), tk.cast(v, tk.f32)
    (q1, q2), (k1, k2) = powers(q, 0.5, whole), powers(k, 1, whole)
    top = tk.mma_AB(q2, s2, precision=precision)
    top = tk.mma_AB(q1, s1, tk.mma_AB(a, v, top, precision=precision), precision=precision) + s0
    bottom = tk.row_sum(a) + t0 + tk.row_sum(q * (tk.mma_AB(q, t2, precision=precision) / 2 + t1))
    t1, t2 = tk.col_sum(k, t1), tk.mma_AtB(k, k, t2, precision=precision)
    s0, s1 = tk.col_sum(v, s0), tk.mma_AtB(k1, v, s1, precision=precision)
    s2 = tk.mma_AtB(k2, v, s2, precision=precision)
    return t1, t2, s0, s1, s2, top / bottom


# A GPU multiplies faster than it gathers.
ALL, LOW = {"whole": True}, {"whole": True, "chunk": 16, "cols": 32}
GPU = {"gpu": dict.fromkeys(("f32", "bf16", "f16"), ALL), "gpu_backward": {"bf16": LOW, "f16": LOW}}


@tk.lcsf(where=["1 <= F <= 32"], stages=2, consumer_warps=8, persistent=False, autocast=True, **GPU)
def based(
    q: tk.Global["B H N F"],
    k: tk.Global["B H N F"],
    v: tk.Global["B H N V"],
    y: tk.Out["B H N V"],
    t0: tk.Global["B H", tk.f32] | None = None,
    t1: tk.Global["B H F", tk.f32] | None = None,
    t2: tk.Global["B H F F", tk.f32] | None = None,
    s0: tk.Global["B H V", tk.f32] | None = None,
    s1: tk.Global["B H F V", tk.f32] | None = None,
    s2: tk.Global["B H F F V", tk.f32] | None = None,
    new_t0: tk.Out["B H", tk.f32] | None = None,
    new_t1: tk.Out["B H F", tk.f32] | None = None,
    new_t2: tk.Out["B H F F", tk.f32] | None = None,
    new_s0: tk.Out["B H V", tk.f32] | None = None,
    new_s1: tk.Out["B H F V", tk.f32] | None = None,
    new_s2: tk.Out["B H F F V", tk.f32] | None = None,
    *,
    chunk: int | None = None,
    cols: int | None = None,
    whole: bool = False,
):
    """y[i] = sum over j <= i of a(i, j) v[j], divided by the sum of a(i, j) = 1 + s + s^2 / 2.

    q, k: [B, H, N, F]; v, y: [B, H, N, V], one dtype of f32, bf16, f16; s = q[i] . k[j] / sqrt(F).
    t0 .. s2: the state to go on from (zero where one is not given); new_t0=True .. new_s2=True
    ask for the state after. The sequence is worked off in chunks: the
    quadratic form within one, the state for all that came before, one division in fp32. A program
    does ``cols`` columns of v in chunks of ``chunk`` rows; both are 32 unless given, or 16 where
    F > 16. Where no s1 and s2 come or go, and not ``whole``, of k_i k_j and k_j k_i one is kept,
    which takes half the multiply-adds. Arora et al., "Simple linear attention language models
    balance the recall-throughput tradeoff" (arXiv 2402.18668, section 4).
    """
    f, side = tk.static("F"), 32 if tk.static("F") <= 16 else 16
    rows, width = chunk or side, cols or side
    b, h, c = tk.tasks("B", "H", tk.cdiv("V", width))
    n0 = 0.0 if t0 is None else tk.load(t0, (b, h))
    every = whole or not (s1 is None and s2 is None and new_s1 is None and new_s2 is None)
    one, two = "F" if every else -(-f // 16) * 32, -(-max(1, f // 2 * f) // 16) * 16

    def setup():
        n1, n2 = begin(t1, (b, h, 0), "F"), begin(t2, (b, h, 0, 0), "F", "F")
        m0, m1 = begin(s0, (b, h, c), width), begin(s1, (b, h, 0, c), one, width)
        return n1, n2, m0, m1, begin(s2, (b, h, 0, 0, c), ("F", "F") if every else two, width)

    def load(i):
        qt, kt = tk.load(q, (b, h, i, 0), (rows, "F")), tk.load(k, (b, h, i, 0), (rows, "F"))
        return qt, kt, tk.load(v, (b, h, i, c), (rows, width))

    def compute(i, n1, n2, m0, m1, m2, qt, kt, vt):
        return attend(qt, kt, vt, n0 + i * rows, n1, n2, m0, m1, m2, every)

    def store(i, yt):
        tk.store(y, yt, (b, h, i, c))

    def finish(n1, n2, m0, m1, m2):
        end(new_t0, n0 + tk.dim("N"), (b, h))
        end(new_t1, n1, (b, h, 0))
        end(new_t2, n2, (b, h, 0, 0))
        end(new_s0, m0, (b, h, c))
        end(new_s1, m1, (b, h, 0, c))
        end(new_s2, m2, (b, h, 0, 0, c))

    tk.run(tk.cdiv("N", rows), setup, load, compute, store, finish)


@tk.kernel(where=["1 <= F", "F <= 32"], num_warps=8, autocast=True)
def based_decode(
    q: tk.Global["B H F"],
    k: tk.Global["B H F"],
    v: tk.Global["B H V"],
    y: tk.Out["B H V"],
    t0: tk.InOut["B H", tk.f32],
    t1: tk.InOut["B H F", tk.f32],
    t2: tk.InOut["B H F F", tk.f32],
    s0: tk.InOut["B H V", tk.f32],
    s1: tk.InOut["B H F V", tk.f32],
    s2: tk.InOut["B H F F V", tk.f32],
):
    """One position of ``based``: its y, and the state brought up to date in place.

    q, k: [B, H, F]; v, y: [B, H, V], one dtype of f32, bf16, f16; the state in f32.
    """
    b, h = tk.grid("B", "H")
    row = (b, tk.at(h), 0)  # a tile of which one row lives
    qt, kt = tk.load(q, row, (16, "F"), until=h + 1), tk.load(k, row, (16, "F"), until=h + 1)
    vt, n0 = tk.load(v, row, (16, "V"), until=h + 1), tk.load(t0, (b, h))
    n1, n2 = tk.load(t1, (b, h, 0), "F"), tk.load(t2, (b, h, 0, 0), ("F", "F"))
    m0, m1 = tk.load(s0, (b, h, 0), "V"), tk.load(s1, (b, h, 0, 0), ("F", "V"))
    m2 = tk.load(s2, (b, h, 0, 0, 0), (("F", "F"), "V"))
    n1, n2, m0, m1, m2, yt = attend(qt, kt, vt, n0, n1, n2, m0, m1, m2, True)
    tk.store(y, yt, row)
    tk.store(t0, n0 + 1.0, (b, h))
    tk.store(t1, n1, (b, h, 0))
    tk.store(t2, n2, (b, h, 0, 0))
    tk.store(s0, m0, (b, h, 0))
    tk.store(s1, m1, (b, h, 0, 0))
    tk.store(s2, m2, (b, h, 0, 0, 0))


def _based(q, k, v, past, terms):
    """(y, state after), or with ``terms`` the sums of absolute values that they are made of."""
    n, f = q.shape[-2:]
    shapes = [(), (f,), (f, f), v.shape[-1:], (f, v.shape[-1]), (f, f, v.shape[-1])]
    zeros = [q.new_zeros((*q.shape[:2], *s)) for s in shapes]
    past = [z if p is None else p for p, z in zip(past, zeros, strict=True)]
    t0, t1, t2, s0, s1, s2 = past
    kk = torch.einsum("bhni,bhnj->bhnij", k, k)
    after = (
        t0 + n,
        t1 + k.sum(2),
        t2 + kk.sum(2),
        s0 + v.sum(2),
        s1 + k.mT @ v,
        s2 + torch.einsum("bhnij,bhnv->bhijv", kk, v),
    )
    q = q * f**-0.5
    s = q @ k.mT
    a = (1 + s + s * s / 2).tril()
    top = a @ v + s0[:, :, None] + q @ s1
    top = top + torch.einsum("bhni,bhnj,bhijv->bhnv", q, q, s2) / 2
    bottom = a.sum(-1) + t0[..., None] + torch.einsum("bhni,bhi->bhn", q, t1)
    bottom = (bottom + torch.einsum("bhni,bhnj,bhij->bhn", q, q, t2) / 2)[..., None]
    return (top, bottom, *after) if terms else (top / bottom, *after)


def _based_terms(q, k, v, t0=None, t1=None, t2=None, s0=None, s1=None, s2=None):
    past = (t0, t1, t2, s0, s1, s2)
    top, bottom, *_ = _based(q, k, v, past, True)
    past = [None if x is None else x.abs() for x in past]
    most, weight, *after = _based(q.abs(), k.abs(), v.abs(), past, True)
    y = top / bottom
    return (most + y.abs() * weight) / bottom.abs(), *after


@based.reference(
    terms=_based_terms,
    special=False,  # the state's products turn one infinity into inf - inf
    sizes={"B": (1, 2), "H": (1, 3), "N": (1, 150), "F": (1, 32), "V": (1, 80)},
)
def _based_reference(q, k, v, t0=None, t1=None, t2=None, s0=None, s1=None, s2=None):
    return _based(q, k, v, (t0, t1, t2, s0, s1, s2), False)


def _one(fn, q, k, v, *state):
    y, *after = fn(*(x[:, :, None] for x in (q, k, v)), *state)
    return y[:, :, 0], *after


def _based_decode_terms(q, k, v, t0, t1, t2, s0, s1, s2):
    return _one(_based_terms, q, k, v, t0, t1, t2, s0, s1, s2)


@based_decode.reference(
    terms=_based_decode_terms,
    special=False,
    sizes={"B": (1, 2), "H": (1, 20), "F": (1, 32), "V": (1, 80)},
)
def _based_decode_reference(q, k, v, t0, t1, t2, s0, s1, s2):
    return _one(_based_reference, q, k, v, t0, t1, t2, s0, s1, s2)
