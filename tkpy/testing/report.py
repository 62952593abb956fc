"""A failing example as a few lines of Python that reproduce it standing alone."""

from __future__ import annotations

import importlib.util
import math

import torch

from tkpy.kernel import Kernel
from tkpy.testing.domains import Range
from tkpy.testing.plan import Example, Plan, Recipe

_WRITTEN_OUT = 16  # tensors up to this many elements are written out


def describe(plan: Plan, example: Example) -> str:
    """``B=1 H=2, T bf16, causal=True, q transposed``: an example on one line."""
    setting = example.setting
    parts = [" ".join(f"{n}={v}" for n, v in example.sizes.items())]
    parts += [f"{n} {d}" for n, d in setting.variables]
    parts += [f"{n}={v!r}" for n, v in setting.constants]
    parts += [f"{n}={v!r}" for n, v in example.scalars.items() if n not in example.sizes]
    for n, r in example.recipes.items():
        words = [r.kind] + ([r.layout] if r.layout != "contiguous" else [])
        parts.append(f"{n} {' '.join(words)}")
    return ", ".join(p for p in parts if p)


def import_line(kernel: Kernel) -> list[str]:
    """How a fresh interpreter gets at the kernel."""
    module, file = kernel.fn.__module__, kernel.fn.__code__.co_filename
    try:
        spec = importlib.util.find_spec(module) if module != "__main__" else None
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is not None and spec.origin == file:
        return [f"from {module} import {kernel.name}"]
    return ["import runpy", f'{kernel.name} = runpy.run_path({file!r})["{kernel.name}"]']


def reproduction(
    plan: Plan,
    example: Example,
    tail: list[str],
    how: str = "{name}",
    outputs: list[str] | None = None,
) -> str:
    """The program: imports, tensors, the call, and ``tail`` (what to look at).

    how: what is called, with the kernel's name filled in. outputs: lines that make outputs
    which are passed in; their names are the text before " = ".
    """
    kernel, made = plan.kernel, plan.inputs(example)
    lines, helpers = [], set()
    for name, (t, range_) in made.items():
        if t is not None:
            text, used = _tensor_text(t, example.recipes.get(name, Recipe()), range_)
            lines.append(f"{name} = {text}")
            helpers |= used
    lines += outputs or []
    passed = {line.split(" = ")[0] for line in outputs or []}
    args = [f"{n}={n}" for n, (t, _) in made.items() if t is not None]
    defaults = {p.name: p.default for p in plan.signature.parameters}
    for name, value in {**example.scalars, **dict(example.setting.constants)}.items():
        if value != defaults[name] or type(value) is not type(defaults[name]):
            args.append(f"{name}={_number_text(value)}")
    results = []
    for p in plan.signature.outputs:
        if p.spec.optional and p.name not in example.setting.present:
            continue
        results.append(p.name)
        if p.name in passed:
            args.append(f"{p.name}={p.name}")
        elif p.spec.optional:
            args.append(f"{p.name}=True")
    called = how.format(name=kernel.name)
    helpers |= {w for w in ("poisoned",) if w in called}
    helpers |= {w for w in ("laid_out",) for line in outputs or [] if w in line}
    target = f"{', '.join(results)} = " if results else ""
    head = ["from math import inf, nan"] if _odd(lines + args) else []
    head += ["import torch", *import_line(kernel)]
    if helpers:
        head.append(f"from tkpy.testing import {', '.join(sorted(helpers))}")
    return "\n".join([*head, *lines, f"{target}{called}({', '.join(args)})", *tail])


def _odd(lines: list[str]) -> bool:
    import re

    return any(re.search(r"(?<![\w.])(inf|nan)(?!\w)", line) for line in lines)


def _tensor_text(t: torch.Tensor, recipe: Recipe, range_: Range) -> tuple[str, set[str]]:
    relative = any(isinstance(b, torch.Tensor) for b in (range_.low, range_.high))
    if t.numel() <= _WRITTEN_OUT or relative:
        values = _shortest(t.contiguous().tolist(), t.dtype)
        shape = "" if t.numel() else f".reshape({tuple(t.shape)})"
        text = f"torch.tensor({_number_text(values)}, dtype={t.dtype}){shape}"
        if recipe.layout == "contiguous":
            return text, set()
        return f'laid_out({text}, "{recipe.layout}")', {"laid_out"}
    more = [f"seed={recipe.seed}"]
    if recipe.layout != "contiguous":
        more.append(f'layout="{recipe.layout}"')
    more += [f"{k}={_number_text(v)}" for k, v in range_.keywords().items()]
    shape = ", ".join(map(str, t.shape))
    shape = f"({shape},)" if t.dim() == 1 else f"({shape})"
    return f'tensor("{recipe.kind}", {shape}, {t.dtype}, {", ".join(more)})', {"tensor"}


def _shortest(value, dtype: torch.dtype):
    """The same numbers, with no more digits than ``dtype`` needs."""
    if isinstance(value, list):
        return [_shortest(v, dtype) for v in value]
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    for digits in range(1, 17):
        short = float(f"{value:.{digits}g}")
        if torch.tensor(short, dtype=dtype).item() == value:
            return short
    return value


def _number_text(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_number_text, value)) + "]"
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(value))
    return repr(value)
