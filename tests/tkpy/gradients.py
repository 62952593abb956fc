"""What the tests of derivatives share: a backward without rounding, and the reference's own.

``exact`` runs the derived programs in the evaluator of tile IR: fp64 throughout, on live elements
only. What it gives differs from autograd of an fp64 reference by rounding of the last digits, so
that a wrong term, however small, shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from codegen.evaluate import evaluate
from codegen.expr import sym, text
from tkpy.errors import NeedStatic
from tkpy.execution import launcher
from tkpy.lower import Differentiated


@dataclass
class Derived:
    """One backward, and the call that it was derived for."""

    kernel: object
    call: object
    wrt: tuple[str, ...]
    made: Differentiated

    @property
    def programs(self):
        return [self.made.forward, *self.made.pieces]

    def outputs(self) -> list[str]:
        """The outputs that take cotangents."""
        return self.kernel.backward.outputs(self.call)


def derive(
    kernel, arguments, wrt=None, given=None, deterministic=True, poison=False, joint=False,
    segments=None,
) -> Derived:  # fmt: skip
    """The backward of the variant that ``arguments`` call, for ``wrt`` or all that can have one."""
    call = kernel.binder.bind((), dict(arguments))
    call = kernel.backward._with_own(call)
    wrt = tuple(sorted(kernel.backward.inputs(call) if wrt is None else wrt))
    given = tuple(kernel.backward.outputs(call) if given is None else given)
    while True:
        key = kernel.backward._key(call)
        try:
            made = kernel.backward.derive(key, wrt, given, deterministic, poison, joint, segments)
            return Derived(kernel, call, wrt, made)
        except NeedStatic as need:
            kernel._widen(key, need)


def _array(x) -> np.ndarray:
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return (x.double() if x.is_floating_point() else x).numpy(force=True).copy()


def _shape(p, sizes) -> tuple[int, ...]:
    made = {"min": min, "max": max}
    return tuple(int(eval(text(d), dict(made), dict(sizes))) for d in p.dims)


def exact(derived: Derived, cotangents) -> dict[str, np.ndarray]:
    """Gradients in fp64; memory that nothing has been written to is NaN."""
    call, gradients = derived.call, derived.made.derivation.gradients
    known = {sym(n): v for n, v in call.sizes.items()}
    arrays = {n: _array(t) for n, t in call.tensors.items()}
    zeroed = {f"d_{n}" for n, g in gradients.items() if g.zeroed}
    for k, program in enumerate(derived.programs):
        for p in program.fn.params:
            if p.role == "scalar" or p.name in arrays:
                continue
            if p.name.startswith("d_") and p.name[2:] in cotangents:
                arrays[p.name] = _array(cotangents[p.name[2:]])
                continue
            assert p.role != "in", f"nothing has made {p.name}"
            start = 0.0 if k == 0 or p.name in zeroed or p.zeroed else np.nan
            arrays[p.name] = np.full(_shape(p, call.sizes), start)
        mine = {p.name: arrays[p.name] for p in program.fn.params if p.role != "scalar"}
        evaluate(program.fn, mine, call.scalars, known)
    out = {}
    for n in derived.wrt:
        if n not in gradients:
            out[n] = np.zeros(_array(call.tensors[n]).shape)
            continue
        out[n] = arrays[f"d_{n}"].sum(tuple(range(gradients[n].parts)))
    return out


def autograd(meaning, inputs: dict, wrt, cotangents, names) -> dict[str, np.ndarray]:
    """Gradients of ``meaning``, a function of the inputs in order, in fp64 by torch."""
    wide = {}
    for n, x in inputs.items():
        if isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex()):
            x = x.to(torch.complex128 if x.is_complex() else torch.float64)
            x = x.detach().clone().requires_grad_(n in wrt)
        wide[n] = x
    outs = meaning(*wide.values())
    outs = outs if isinstance(outs, tuple) else (outs,)
    pairs = [
        (o, cotangents[n].to(o.dtype))
        for n, o in zip(names, outs, strict=True)
        if n in cotangents and o.requires_grad
    ]
    grads = (
        torch.autograd.grad(
            [o for o, _ in pairs], [wide[n] for n in wrt], [c for _, c in pairs], allow_unused=True
        )
        if pairs
        else [None] * len(wrt)
    )
    return {
        n: _array(wide[n]) * 0 if g is None else _array(g) for n, g in zip(wrt, grads, strict=True)
    }


def native(kernel, arguments, wrt, cotangents, deterministic=True) -> dict[str, torch.Tensor]:
    """Gradients as a caller gets them."""
    outs, saved = kernel.backward.forward(arguments, wrt, deterministic)
    call = kernel.binder.bind((), dict(arguments))
    cts = [cotangents.get(p.name) for p in call.wanted]
    return kernel.backward.gradients(arguments, outs, saved, cts, wrt, deterministic)


def run(derived: Derived, cotangents, blank=0.0) -> dict[str, torch.Tensor]:
    """Gradients of ``derived``'s own programs, compiled: those with poison in dead elements, say."""
    call, gradients = derived.call, derived.made.derivation.gradients
    derived.kernel._allocate(call)
    values = dict(call.tensors)
    zeroed = {f"d_{n}" for n, g in gradients.items() if g.zeroed}
    for n, g in cotangents.items():
        values[f"d_{n}"] = g.to(values[n].dtype).contiguous()
    for program in derived.programs:
        for p in program.fn.params:
            if p.role == "scalar" or p.name in values:
                continue
            shape = _shape(p, call.sizes)
            dtype = getattr(torch, "float32" if p.pair else p.dtype.triton.replace("int1", "bool"))
            start = 0.0 if p.name in zeroed or p.zeroed else blank
            values[p.name] = torch.full(shape, start, dtype=dtype)
            if p.pair:
                values[p.name] = torch.view_as_complex(values[p.name])
        launch = launcher(program.source, program.fn.name, torch.device("cpu"))
        tensors = [values[p.name] for p in program.fn.params if p.role != "scalar"]
        launch(*tensors, *[call.scalars[p.name] for p in program.fn.params if p.role == "scalar"])
    out = {}
    for n in derived.wrt:
        like = call.tensors[n]
        g = gradients.get(n)
        out[n] = (
            torch.zeros_like(like)
            if g is None
            else values[f"d_{n}"].sum(tuple(range(g.parts))).to(like.dtype)
            if g.parts
            else values[f"d_{n}"].to(like.dtype)
        )
    return out
