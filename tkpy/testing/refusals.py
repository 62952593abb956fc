"""Calls that the signature excludes must be refused, each with a CallError that says why.

One valid call is taken and spoilt in one way at a time: wrong rank, dtype, device, size, keyword,
a missing argument, a constant that is no choice, and for every precondition an input that breaks
it and, where that is possible, no other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from codegen.ir import DType
from tkpy.call import holds
from tkpy.errors import CallError
from tkpy.signature import REQUIRED, TensorSpec
from tkpy.testing.domains import Domain, resolve, satisfied
from tkpy.testing.plan import Example, Infeasible, Plan, Setting
from tkpy.testing.report import import_line
from tkpy.testing.run import Failed
from tkpy.testing.sizes import Constraint, Solver


@dataclass
class Spoilt:
    """Arguments that must be refused; ``word`` must occur in the refusal."""

    what: str
    args: dict[str, object]
    word: str = ""


def check_refusals(plan: Plan) -> Failed | None:
    """The first call that is accepted, or refused for another reason, as a failure."""
    try:
        setting = plan.full(random.Random(0))
        example = _example(plan, setting)
        args = plan.arguments(example)
        plan.kernel.binder.bind((), args)
    except Infeasible:
        return None  # not all optional arguments go together
    except CallError as e:
        return Failed(f"{plan.kernel.name}: a valid call is refused: {e}")
    for spoilt in (*_structure(plan, args, setting), *_conditions(plan, example, args)):
        failed = _refused(plan, spoilt)
        if failed is not None:
            return failed
    return None


def _refused(plan: Plan, spoilt: Spoilt) -> Failed | None:
    try:
        plan.kernel.binder.bind((), spoilt.args)
    except CallError as e:
        if spoilt.word in str(e):
            return None
        said = f"is refused for another reason: {e}"
    except Exception as e:
        said = f"raises {type(e).__name__} instead of CallError: {e}"
    else:
        said = "is not refused"
    lines = ["import torch", *import_line(plan.kernel)]
    shown = ", ".join(f"{n}={_text(v)}" for n, v in spoilt.args.items())
    program = "\n".join(f"    {line}" for line in [*lines, f"{plan.kernel.name}({shown})"])
    return Failed(
        f"{plan.kernel.name}: a call with {spoilt.what} {said}\n  reproduce:\n\n{program}\n"
    )


def _text(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if value.device.type == "cpu" and not value.is_floating_point() and value.numel() <= 64:
        return f"torch.tensor({value.tolist()}, dtype={value.dtype})"
    device = "" if value.device.type == "cpu" else f', device="{value.device}"'
    return f"torch.zeros({tuple(value.shape)}, dtype={value.dtype}{device})"


# --------------------------------------------------------------------------------------------
# A valid call


def _example(plan: Plan, setting: Setting) -> Example:
    """Sizes of two or more where that is allowed, so that one more or less is noticed."""

    def pick(options, weights=None):
        return next((v for v in options if isinstance(v, int) and 2 <= v <= 8), options[0])

    sizes = plan.draw_sizes(setting, pick)
    scalars = plan.draw_scalars(setting, sizes, lambda options, weights=None: options[0])
    return Example(setting, sizes, scalars, {})


# --------------------------------------------------------------------------------------------
# Structure


def _structure(plan: Plan, args: dict[str, object], setting: Setting) -> Iterator[Spoilt]:
    given = [p for p in plan.signature.inputs if isinstance(args[p.name], torch.Tensor)]
    for p in given:
        t = args[p.name]
        yield Spoilt(f"one dimension too many in {p.name}", {**args, p.name: t[None]}, p.name)
        yield Spoilt(f"a list for {p.name}", {**args, p.name: [1.0]}, p.name)
        for dtype in _wrong_dtypes(plan, p, setting):
            assert isinstance(t, torch.Tensor)
            other = (t.real if t.is_complex() else t).to(dtype)
            yield Spoilt(f"{dtype} for {p.name}", {**args, p.name: other}, p.name)
        yield Spoilt(f"{p.name} on another device", {**args, p.name: t.to("meta")})
        for axis in _shared(plan, p, given, setting):
            longer = torch.cat([t, t.narrow(axis, 0, 1)], axis) if t.shape[axis] else None
            if longer is not None:
                what = f"{p.name} longer than others along axis {axis}"
                yield Spoilt(what, {**args, p.name: longer})
        if not p.spec.optional:
            rest = {n: v for n, v in args.items() if n != p.name}
            yield Spoilt(f"{p.name} missing", rest, p.name)
    name = plan.signature.parameters[-1].name
    typo = f"{name}{name[-1]}"
    yield Spoilt(f"the keyword {typo}", {**args, typo: args.get(name)}, typo)
    for p in plan.signature.scalars:
        yield Spoilt(f"text for {p.name}", {**args, p.name: "1"}, p.name)
        if p.default is REQUIRED and not p.spec.optional:
            yield Spoilt(
                f"{p.name} missing", {n: v for n, v in args.items() if n != p.name}, p.name
            )
    for p in plan.signature.constants:
        wrong: object = "no such choice" if p.spec.type is not str or p.spec.choices else 1
        yield Spoilt(f"{p.name}={wrong!r}", {**args, p.name: wrong}, p.name)


def _wrong_dtypes(plan: Plan, p, setting: Setting) -> list[torch.dtype]:
    out = [torch.float64, torch.int64 if plan.dtype_of(p.spec, setting).inexact else torch.float32]
    if isinstance(p.spec.dtype, DType):
        return [d for d in out if str(d).removeprefix("torch.") != p.spec.dtype.triton]
    same = [o for o in plan.signature.inputs if o.spec.dtype == p.spec.dtype]
    if any(o is not p and plan.given(setting, o) for o in same):
        now = plan.dtype_of(p.spec, setting).name
        out.append(torch.bfloat16 if now != "bf16" else torch.float16)
    return out


def _shared(plan: Plan, p, given: list, setting: Setting) -> list[int]:
    """Axes whose length another tensor tells too."""
    constants = dict(setting.constants)
    dims = {o.name: o.spec.settled(constants).dims for o in given}
    out = []
    for axis, d in enumerate(dims[p.name]):
        others = [
            o for n, all_ in dims.items() for k, o in enumerate(all_) if (n, k) != (p.name, axis)
        ]
        if d.is_Integer or (d.is_Symbol and d in others):
            out.append(axis)
    return out


# --------------------------------------------------------------------------------------------
# Preconditions


def _conditions(plan: Plan, example: Example, args: dict[str, object]) -> Iterator[Spoilt]:
    signature = plan.signature
    tensors = {p.name for p in signature.tensors}
    for c in signature.conditions:
        known = {**example.sizes, **{n: v for n, v in args.items() if v is not None}}
        if not c.names <= known.keys():
            continue
        word = f"precondition {c.source!r}"
        if c.names & tensors:
            for name, value in _values(plan, example, c.names & tensors, args):
                if not holds(c, {**known, name: value}):
                    spoilt = {**args, name: value}
                    alone = _others_hold(plan, c, {**known, name: value})
                    yield Spoilt(f"{name} against {c.source!r}", spoilt, word if alone else "")
                    if alone:
                        break
            continue
        found = _sizes_against(plan, example, c) or _scalar_against(plan, example, c, known)
        if found is not None:
            try:
                spoilt = plan.arguments(found)
            except Exception:
                continue  # nothing can be made of those sizes
            alone = _others_hold(plan, c, {**spoilt, **found.sizes, **found.scalars})
            what = " ".join(f"{n}={v}" for n, v in {**found.sizes, **found.scalars}.items())
            yield Spoilt(f"{what} against {c.source!r}", spoilt, word if alone else "")


def _others_hold(plan: Plan, c, known: dict[str, object]) -> bool:
    others = replace(
        plan.signature, conditions=[o for o in plan.signature.conditions if o is not c]
    )
    return satisfied(others, {n: v for n, v in known.items() if v is not None})


def _sizes_against(plan: Plan, example: Example, c) -> Example | None:
    """``example`` with sizes and integer scalars that break ``c`` and, if possible, only ``c``."""
    base = plan.solver(example.setting)
    if not c.names & set(base.names):
        return None
    fixed = dict(example.setting.constants)
    if not c.names <= {*base.names, *fixed}:
        return None
    broken = Constraint(c.names, lambda known: not holds(c, dict(known)))
    others = [o for o in base.constraints if o.tree is not c.tree or o.tree is None]
    for constraints in ([*others, broken], [broken]):
        solver = Solver(base.names, constraints, base.pools)
        known: dict[str, object] = dict(fixed)
        for name in solver.order():
            # Close to the valid call: its own value first.
            options = solver.options(name, known)
            if not options:
                break
            own = example.sizes[name]
            known[name] = own if own in options else options[0]
        else:
            sizes = {n: known[n] for n in base.names}
            scalars = {n: sizes.get(n, v) for n, v in example.scalars.items()}
            return replace(example, sizes=sizes, scalars=scalars)  # type: ignore[arg-type]
    return None


def _scalar_against(plan: Plan, example: Example, c, known) -> Example | None:
    for name in c.names & {p.name for p in plan.signature.scalars}:
        for value in (-1.0, 0.0, 1.0, 2.0, -1e6, 1e6):
            if isinstance(known[name], float) and not holds(c, {**known, name: value}):
                return replace(example, scalars={**example.scalars, name: value})
    return None


def _values(plan: Plan, example: Example, names, args) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors near the valid ones that may break a condition on them."""
    known = {**dict(example.setting.constants), **example.sizes}
    for name in sorted(names):
        t = args[name]
        spec = plan.signature.parameter(name).spec
        assert isinstance(spec, TensorSpec)
        if not t.numel():
            continue
        r = resolve(plan.domains.get(name, Domain()), known, plan.dtype_of(spec, example.setting))
        bounds = [b for b in (r.low, r.high) if isinstance(b, int | float)]
        limits = [v for b in bounds for v in (b - 1, b + 1)] or [-1, 1]
        for value in limits:
            for position in (t.numel() // 2, 0, -1):
                new = t.clone().contiguous()
                new.view(-1)[position] = value
                yield name, new
        yield name, t.flip(-1).contiguous()
        yield name, t.sort(-1, descending=True).values
        yield name, torch.full_like(t, t.reshape(-1)[0].item()).contiguous()
        for shift in (1, -1):
            yield name, t + shift
