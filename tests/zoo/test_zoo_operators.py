"""Every kernel of the zoo is an operator that torch.library.opcheck finds nothing wrong with."""

import pytest
import torch
from torch.library import opcheck

import zoo
from tkpy.ahead import choose_sizes
from tkpy.operator import schema
from tkpy.signature import REQUIRED, TORCH_NAMES

SMALL = {"F": 8, "D": 16, "N": 20, "M": 20, "B": 2, "H": 2, "G": 1, "V": 24, "K": 24, "E": 8}
SMALL |= {"P": 4, "Q": 4, "S": 4, "R": 4, "L": 3, "W": 4}


def sample(kernel, whole):
    """Arguments of the kernel's operator; ``whole``: with all that is optional."""
    signature = kernel.signature
    constants = {p.name: p.default for p in signature.constants}
    sizes = choose_sizes(
        signature, {d.name: SMALL.get(d.name, 8) for d in signature.dims}, constants
    )
    values = {}
    for p in signature.inputs:
        if whole or not p.spec.optional:
            spec = p.spec.settled(constants)
            subs = {s: sizes[s.name] for d in spec.dims for s in d.free_symbols}
            name = "float32" if isinstance(spec.dtype, str) else TORCH_NAMES[spec.dtype.name]
            values[p.name] = draw(p.name, [int(d.subs(subs)) for d in spec.dims], name, signature)
    form = schema.functional(signature)
    for slot in form.slots:
        asked = slot.parameter is None and whole  # an optional output
        default = None if slot.default is REQUIRED else slot.default
        values.setdefault(slot.name, True if asked else default)
    return form.ordered(values)


def draw(name, shape, dtype, signature):
    dtype = getattr(torch, dtype)
    if not (dtype.is_floating_point or dtype.is_complex):
        made = torch.randint(0, 4, shape).to(dtype)
        ordered = any(c.source == f"sorted({name})" for c in signature.conditions)
        return made.sort().values if ordered else made
    t = torch.randn(shape, dtype=dtype)
    bounds = [c.source for c in signature.conditions if name in c.names]
    sign = -1 if any("<= 0" in b for b in bounds) else 1
    return sign * (t.abs() + 0.1) if bounds else t


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", zoo.kernels())
def test_forward(name, whole):
    kernel = zoo.kernels()[name]
    place, named = sample(kernel, whole)
    opcheck(kernel.op, tuple(place), named)


#: Neither integers nor sums over rows that other integers choose have a derivative.
NONE = {"nearest_code", "code_sums"}
#: What changes tensors in place has no backward either.
GRADIENTS = [n for n, k in zoo.kernels().items() if not k.operator.changed and n not in NONE]


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    kernel = zoo.kernels()[name]
    place, named = sample(kernel, True)
    inexact = lambda t: isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex())  # noqa: E731
    opcheck(kernel.op, tuple(t.requires_grad_() if inexact(t) else t for t in place), named)
