"""Layer normalisation and root-mean-square normalisation, each with a fused residual."""

import tkpy as tk

ROWS = 16


@tk.function
def stream(x, residual, i, j, width):
    """A tile of x + residual in fp32."""
    h = tk.load(x, (i, j), (ROWS, width), dtype=tk.f32)
    return h if residual is None else h + tk.load(residual, (i, j), (ROWS, width), dtype=tk.f32)


@tk.function
def normalise(x, weight, bias, residual, y, total, eps, cols, centred):
    i = tk.tasks(tk.cdiv("M", ROWS))
    width = min(cols, tk.cdiv("D", 16) * 16)
    mean, power = 0.0, tk.zeros(ROWS)
    if centred:
        mean = tk.zeros(ROWS)
        for j in tk.range(tk.cdiv("D", width)):
            mean += tk.row_sum(stream(x, residual, i, j, width)) / tk.static("D")
    for j in tk.range(tk.cdiv("D", width)):
        power += tk.row_sum((stream(x, residual, i, j, width) - mean) ** 2) / tk.static("D")

    def load(j):
        return stream(x, residual, i, j, width)

    def compute(j, h):
        yt = (h - mean) * tk.rsqrt(power + eps) * tk.load(weight, j, width, dtype=tk.f32)
        return (yt if bias is None else yt + tk.load(bias, j, width, dtype=tk.f32)), h

    def store(j, yt, h):
        tk.store(y, yt, (i, j))
        if total is not None:
            tk.store(total, h, (i, j))

    tk.run(tk.cdiv("D", width), None, load, compute, store)


@tk.lcsf(where=["eps > 0"], stages=3, consumer_warps=8, persistent=False)
def layernorm(
    x: tk.Global["M D"],
    weight: tk.Global["D", "W"],
    y: tk.Out["M D"],
    bias: tk.Global["D", "W"] | None = None,
    residual: tk.Global["M D", "R"] | None = None,
    total: tk.Out["M D", "R"] | None = None,
    eps: tk.f32 = 1e-5,
    *,
    cols: int = 1024,
):
    """total = x + residual; y = (total - mean) / sqrt(variance + eps) * weight + bias.

    x, y: [M, D]; weight, bias: [D]; residual, total: [M, D]; each pair of one dtype of f32, bf16,
    f16, the three pairs independent of each other. ``total=True`` asks for the new residual
    stream. Statistics are over a row, the biased variance, two passes in fp32, from the sum
    before it is rounded. Rows of more than ``cols`` elements are read in tiles. Ba, Kiros,
    Hinton, "Layer Normalization" (arXiv 1607.06450, equation 3).
    """
    normalise(x, weight, bias, residual, y, total, eps, cols, True)


@tk.lcsf(where=["eps > 0"], stages=3, consumer_warps=8, persistent=False)
def rmsnorm(
    x: tk.Global["M D"],
    weight: tk.Global["D", "W"],
    y: tk.Out["M D"],
    residual: tk.Global["M D", "R"] | None = None,
    total: tk.Out["M D", "R"] | None = None,
    eps: tk.f32 = 1e-5,
    *,
    cols: int = 1024,
):
    """total = x + residual; y = total / sqrt(mean of total ** 2 + eps) * weight.

    Shapes and dtypes as for ``layernorm``. Zhang, Sennrich, "Root Mean Square Layer
    Normalization" (arXiv 1910.07467, equation 4).
    """
    normalise(x, weight, None, residual, y, total, eps, cols, False)


def _norm(x, weight, bias, residual, eps, centred):
    h = x if residual is None else x + residual
    centre = h - h.mean(-1, keepdim=True) if centred else h
    scale = (centre.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = centre * scale * weight
    return (y if bias is None else y + bias), h, centre, scale


def _terms(x, weight, bias, residual, eps, centred):
    _, _, centre, scale = _norm(x, weight, bias, residual, eps, centred)
    size = x.abs() if residual is None else x.abs() + residual.abs()
    # An error d of an element, of its mean or of the root moves y by d * scale (1 + y).
    moved = (centre.abs() + size + size.mean(-1, keepdim=True)) * scale
    y = moved * (1 + size.amax(-1, keepdim=True) * scale) * weight.abs()
    return (y if bias is None else y + bias.abs()), size


def _layernorm_terms(x, weight, bias=None, residual=None, eps=1e-5):
    return _terms(x, weight, bias, residual, eps, True)


@layernorm.reference(
    terms=_layernorm_terms,
    roundings=0,
    constants={"cols": (1024, 64)},
    sizes={"M": (1, 40), "D": (1, 300)},
)
def _layernorm_reference(x, weight, bias=None, residual=None, eps=1e-5):
    return _norm(x, weight, bias, residual, eps, True)[:2]


def _rmsnorm_terms(x, weight, residual=None, eps=1e-5):
    return _terms(x, weight, None, residual, eps, False)


@rmsnorm.reference(
    terms=_rmsnorm_terms,
    roundings=0,
    constants={"cols": (1024, 64)},
    sizes={"M": (1, 40), "D": (1, 300)},
)
def _rmsnorm_reference(x, weight, residual=None, eps=1e-5):
    return _norm(x, weight, None, residual, eps, False)[:2]
