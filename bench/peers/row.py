"""One row: one op, one length, one dtype; forward and all gradients against a reference.

Error model. The reference runs in float64 on the same (rounded) inputs, then on inputs whose
elements are moved by a random relative amount of at most eps of their dtype. What that does to a
result, ``noise``, is how well the result is determined at all; rounding inside of the op is of
this order. A result may be off by

    C * (noise + eps * scale) + own * scale

where ``noise`` and ``scale`` are maxima over the tensor of |moved - ref| and |ref|, and eps is that
of the row's dtype. A gradient a hundred times smaller than the largest is what is left of terms
that cancel (a gate's or a normalised key's at T = 1): its scale is that of the largest gradient.
``own`` is for ops that approximate by design, and 0 for all but those whose recipe says why.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bench.peers.double import doubles

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
C = 16.0
MOVES = 2


@dataclass
class Case:
    """How to call an op and what it must give; both take the inputs by name.

    ``call`` and ``want`` give a tensor or a tuple of tensors (None stands for no tensor).
    """

    call: Callable
    want: Callable
    inputs: dict[str, torch.Tensor]
    grad: bool = True  # compare gradients of every floating-point input
    fixed: tuple[str, ...] = ()  # inputs without a gradient
    own: float = 0.0  # error of the op's own method, relative to the scale (iterations cut off)
    note: str = ""


@dataclass
class Draw:
    """Random inputs of one row. Tensors are (batch, time, head, feature), as in FLA."""

    T: int
    dtype: torch.dtype
    B: int = 2
    H: int = 2
    K: int = 32
    V: int = 32
    seed: int = 0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed + 1000 * self.T)

    def wide(self, *shape) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def randn(self, *shape, scale: float = 1.0) -> torch.Tensor:
        return (self.wide(*shape) * scale).to(self.dtype)

    def unit(self, *shape) -> torch.Tensor:
        """Vectors of length one."""
        return torch.nn.functional.normalize(self.wide(*shape), dim=-1).to(self.dtype)

    def gate(self, *shape, wide: bool = True, shift: float = 2.0) -> torch.Tensor:
        """Logarithms of decays, in float32 unless told."""
        g = torch.nn.functional.logsigmoid(self.wide(*shape) + shift)
        return g if wide else g.to(self.dtype)

    def part(self, *shape, wide: bool = False) -> torch.Tensor:
        """Numbers between 0 and 1."""
        g = self.wide(*shape).sigmoid()
        return g if wide else g.to(self.dtype)

    def labels(self, classes: int, *shape) -> torch.Tensor:
        return torch.randint(classes, shape, generator=self.generator)

    def qkv(self, heads: int | None = None) -> dict[str, torch.Tensor]:
        h = heads or self.H
        return {"q": self.randn(self.B, self.T, self.H, self.K),
                "k": self.randn(self.B, self.T, h, self.K),
                "v": self.randn(self.B, self.T, h, self.V)}  # fmt: skip


def ordered(op: Callable) -> Callable:
    """An op that takes its inputs by place only (an autograd function's ``apply``)."""
    return lambda **inputs: op(*inputs.values())


def _tuple(out) -> list[torch.Tensor | None]:
    flat: list = []
    for x in out if isinstance(out, (tuple, list)) else [out]:
        flat += _tuple(x) if isinstance(x, (tuple, list)) else [x]
    return [x if isinstance(x, torch.Tensor) else None for x in flat]


def _leaf(x: torch.Tensor, needs: bool) -> torch.Tensor:
    return x.detach().clone().requires_grad_(needs and x.is_floating_point())


def _evaluate(f, inputs: dict, weights: list, case: Case):
    """(outputs, gradients by name) of sum(weight * output)."""
    leaves = {k: _leaf(x, case.grad and k not in case.fixed) for k, x in inputs.items()}
    # An op may write into what it is given: it gets copies, as from a layer before it.
    out = _tuple(f(**{k: x.clone() if x.requires_grad else x for k, x in leaves.items()}))
    if not weights:
        weights += [None if x is None or not x.is_floating_point()
                    else torch.randn(x.shape).to(x.dtype) for x in out]  # fmt: skip
    if not case.grad:
        return out, {}
    pairs = [(x, w.to(x.dtype)) for x, w in zip(out, weights, strict=False)
             if x is not None and w is not None and x.requires_grad]  # fmt: skip
    names = [k for k, x in leaves.items() if x.requires_grad]
    if pairs and names:
        # Copies: a backward may write into the gradient that it is given.
        torch.autograd.backward([x for x, _ in pairs], [w.clone() for _, w in pairs])
    out = [None if x is None else x.detach() for x in out]
    return out, {k: leaves[k].grad for k in names}


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def _moved(x: torch.Tensor) -> torch.Tensor:
    if not x.is_floating_point():
        return x
    step = torch.rand(x.shape, dtype=torch.float64) * 2 - 1
    return x.double() * (1 + EPS.get(x.dtype, EPS[torch.float32]) * step)


def _largest(x: torch.Tensor | None) -> float:
    return float(x.abs().max()) if x is not None and x.numel() else 0.0


def _compare(label: str, got, want, moved: list, eps: float, floor: float, own: float):
    """(error / bound, what is wrong or nothing) of one tensor."""
    if want is None and got is None:
        return 0.0, ""
    if got is None or want is None:
        size = _largest(want if got is None else got)
        return (0.0, "") if size == 0 else (1e9, f"{label}: {'nothing' if got is None else 'some'}"
                                            f" where the reference has the opposite")  # fmt: skip
    if got.shape != want.shape:
        return 1e9, f"{label}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    if not want.is_floating_point():
        bad = int((got != want).sum())
        return (1e9, f"{label}: {bad} of {want.numel()} integers differ") if bad else (0.0, "")
    if not want.numel():
        return 0.0, ""
    noise = max((_largest(m - want) for m in moved if m is not None), default=0.0)
    scale = _largest(want)
    scale = scale if scale >= floor / 100 else floor
    bound = C * (noise + eps * scale) + own * scale
    error = (got.double() - want).abs()
    same = torch.isfinite(want) | (got.double() == want)
    error = torch.where(same & torch.isfinite(want), error, torch.where(same, 0.0, torch.inf))
    worst = float(error.nan_to_num(torch.inf).max())
    ratio = worst / bound if bound else (0.0 if worst == 0 else 1e9)
    if ratio <= 1:
        return ratio, ""
    at = int(error.nan_to_num(torch.inf).argmax())
    spot = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), error.shape))
    return ratio, (f"{label}{list(spot)}: {float(got.flatten()[at]):.6g}, not "
                   f"{float(want.flatten()[at]):.6g} (bound {bound:.2g}, "
                   f"{int((error > bound).sum())} of {want.numel()} outside)")  # fmt: skip


def check(case: Case, dtype: torch.dtype) -> tuple[float, list[str], int]:
    """(largest error / bound, what is wrong, kernel launches)."""
    from codegen.cpu import launch

    torch.manual_seed(1)
    weights: list = []
    with launch.watch() as seen:
        got, got_grads = _evaluate(case.call, case.inputs, weights, case)
    wide = {k: _double(x) for k, x in case.inputs.items()}
    with doubles():
        want, want_grads = _evaluate(case.want, wide, weights, case)
        moved = [_evaluate(case.want, {k: _moved(x) for k, x in case.inputs.items()},
                           [None if w is None else _moved(w) for w in weights], case)
                 for _ in range(MOVES)]  # fmt: skip
    launches = len(seen)
    eps = EPS[dtype]
    worst, wrong = 0.0, []
    if len(got) != len(want):
        wrong.append(f"{len(got)} outputs, not {len(want)}")
    for i, (g, w) in enumerate(zip(got, want, strict=False)):
        ratio, text = _compare(f"out{i}", g, w, [m[0][i] for m in moved], eps, 0.0, case.own)
        worst, wrong = max(worst, ratio), wrong + ([text] if text else [])
    floor = max(map(_largest, want_grads.values()), default=0.0)
    for k, w in want_grads.items():
        ratio, text = _compare(f"d{k}", got_grads.get(k), w, [m[1][k] for m in moved], eps, floor,
                               case.own)  # fmt: skip
        worst, wrong = max(worst, ratio), wrong + ([text] if text else [])
    return worst, wrong, launches


def _raised_by_package(error: Exception) -> str:
    """Where a package itself says no (a check that is a ``raise`` or an ``assert`` of its own)."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    owner = next(
        (p for p in ("fla", "liger_kernel") if f"/site-packages/{p}/" in last.filename), ""
    )
    if not owner or not (last.line or "").startswith(("raise ", "assert ", "assert(")):
        return ""
    return f"{last.filename.split('/site-packages/')[1]}:{last.lineno}: "


def run(recipe: Callable, length: int, dtype_name: str) -> dict:
    """Run one row; gives its status, reason, and largest error relative to the bound."""
    from codegen.cpu.ttir import Unsupported

    dtype = DTYPES[dtype_name]
    start = time.perf_counter()
    row: dict = {"status": "works", "reason": "", "ratio": None, "launches": 0}
    try:
        case = recipe(Draw(length, dtype))
        row["ratio"], wrong, row["launches"] = check(case, dtype)
        row["note"] = case.note
        if not row["launches"]:
            row["status"], row["reason"] = "no kernel", "launches no Triton kernel"
        elif wrong:
            row["status"], row["reason"] = "wrong", "; ".join(wrong)
    except Unsupported as error:
        row["status"], row["reason"] = "refused", str(error)
    except Exception as error:
        place = _raised_by_package(error)
        row["status"] = "refused" if place else "failed"
        line = traceback.extract_tb(error.__traceback__)[-1].line or ""
        row["reason"] = f"{place}{type(error).__name__}: {str(error) or line}"
        row["trace"] = traceback.format_exc()[-3000:]
    row["seconds"] = round(time.perf_counter() - start, 2)
    return row
