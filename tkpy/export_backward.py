"""A kernel with its derived backward as a file that needs only triton and torch.

o, *more = attention(q, k, v)                  # the outputs, then what the backward reads
d_q, d_k, d_v = attention_backward(q, k, v, kept=(o, *more), gradients=(d_o,))
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from codegen.aot import CPU
from codegen.expr import text
from codegen.host import launcher
from codegen.ir import Param
from codegen.writer import filled
from tkpy.ahead import Setting, backward_for, backward_of
from tkpy.errors import TkError
from tkpy.export import MARK, RESERVED, HostFunction, shape_text, specialised
from tkpy.signature import TORCH_NAMES

if TYPE_CHECKING:
    from tkpy.kernel import Kernel
    from tkpy.lower import Differentiated, Lowered, VariantKey


def export_backward(kernel: Kernel, setting: Setting | None = None, target: str = CPU) -> str:
    """The text of a standalone module with the forward that saves and the derived backward.

    The variant is that of ``setting``, with gradients of every input and from every output of
    floats. ``target``: "cpu", or a GPU, where each gradient has programs of its own.

    Raises:
        CompileError: if the kernel has no derivative.
        TkError: as ``tkpy.ahead.call_of`` does.
    """
    if {kernel.name, f"{kernel.name}_backward"} & RESERVED:
        raise TkError(f"a kernel called {kernel.name} cannot be exported: rename it")
    device = "cpu" if target == CPU else "cuda"
    key, wrt, given = backward_of(kernel, setting or Setting(), device, target)
    key = replace(key, aligned=False)
    made = backward_for(kernel, setting or Setting(), device, target, aligned=False)
    place = f"{Path(kernel.fn.__code__.co_filename).name}:{kernel.fn.__code__.co_firstlineno}"
    parts = [
        f'"""{kernel.name} and its gradients: Triton kernels and the functions that launch them.'
        f"\n\n{MARK} from {place}. Needs only triton and torch.\n"
        '"""\n\n'
        "import torch\nimport triton\nimport triton.language as tl\n"
    ]
    for k, lowered in enumerate((made.forward, *made.pieces)):
        parts += [_apart(specialised(lowered), lowered, k), _launcher(kernel, lowered, k)]
    parts += [_Forward(kernel, key, made).text(), _Gradients(kernel, key, made, wrt, given).text()]
    return "\n\n".join(p.rstrip("\n") + "\n" for p in parts)


def _apart(source: str, lowered: Lowered, k: int) -> str:
    """What a kernel calls, such as the operator of a scan, has one name a program."""
    called = set(re.findall(r"^def (\w+)\(", source, re.M)) - {lowered.emitted.name}
    if not called:
        return source
    names = "|".join(sorted(called, key=len, reverse=True))
    return re.sub(rf"\b({names})\b", rf"\1_of_{k}", source)


def _launcher(kernel: Kernel, lowered: Lowered, k: int) -> str:
    made = launcher(lowered.fn, lowered.emitted, kernel.num_warps, kernel.num_stages)
    return made.replace("def launch(", f"def _launch_{k}(", 1)


class _Forward(HostFunction):
    """The host function of the forward: it returns what it saves after the outputs."""

    def __init__(self, kernel: Kernel, key: VariantKey, made: Differentiated):
        super().__init__(kernel, key, made.forward)
        self.saved = made.derivation.saved

    def _allocations(self) -> list[str]:
        return [*super()._allocations(), *(_allocated(p, self._device()) for p in self.saved)]

    def _launch(self) -> list[str]:
        results = [p.name for p in self.outputs] + [p.name for p in self.saved]
        return [*_call(0, self.lowered), f"return {', '.join(results)}"]


class _Gradients(HostFunction):
    """The host function of the backward."""

    def __init__(self, kernel: Kernel, key, made: Differentiated, wrt, given):
        super().__init__(kernel, key, made.forward)
        self.made, self.wrt, self.given = made, wrt, given
        self.order = [p.name for p in self.inputs if p.name in wrt]

    @property
    def name(self) -> str:
        return f"{self.kernel.name}_backward"

    def _parameters(self) -> list[str]:
        outs = {p.name for p in self.signature.outputs}
        plain = [p for p in super()._parameters() if p.split("=")[0] not in outs]
        marked = [] if "*" in plain else ["*"]
        return [*plain, *marked, "kept", "gradients"]

    def _docstring(self) -> list[str]:
        return [
            f'"""The gradients of {", ".join(self.order)}.',
            "",
            f"kept: what {self.kernel.name} returned. gradients: those with respect to "
            f"{', '.join(self.given)},",
            "each of the shape of that output.",
            '"""',
        ]

    def _absences(self) -> list[str]:
        outs = {p.name for p in self.signature.outputs}
        return [line for line in super()._absences() if line.split()[1] not in outs]

    def _allocations(self) -> list[str]:
        kept = [*(p.name for p in self.outputs), *(p.name for p in self.made.derivation.saved)]
        lines = []
        for what, names in (("kept", kept), ("gradients", [f"d_{n}" for n in self.given])):
            lines += [
                f"{what} = ({what},) if isinstance({what}, torch.Tensor) else {what}",
                f"{', '.join(names)}{',' if len(names) == 1 else ''} = {what}",
            ]
        lines += [f"assert {p.name}.shape == {shape_text(p)}, {p.name}.shape" for p in self.outputs]
        for n in self.given:
            lines += [
                f"assert d_{n}.shape == {n}.shape, d_{n}.shape",
                f"d_{n} = d_{n}.to({n}.dtype).resolve_conj().contiguous()",
            ]
        have = {*kept, *(f"d_{n}" for n in self.given), *(p.name for p in self.inputs)}
        gradients = self.made.derivation.gradients
        zeroed = {f"d_{n}" for n, g in gradients.items() if g.zeroed}
        for lowered in self.made.pieces:
            for p in lowered.fn.params:
                if p.role != "scalar" and p.name not in have:
                    have.add(p.name)
                    lines.append(_allocated(p, self._device(), p.name in zeroed or p.zeroed))
        return lines

    def _launch(self) -> list[str]:
        lines = [x for k, p in enumerate(self.made.pieces) for x in _call(k + 1, p)]
        gradients, results = self.made.derivation.gradients, []
        for n in self.order:
            if n not in gradients:
                results.append(f"torch.zeros_like({n})")
                continue
            parts = gradients[n].parts
            summed = f".sum({tuple(range(parts))})" if parts else ""
            results.append(f"d_{n}{summed}.to({n}.dtype)")
        return [*lines, f"return {', '.join(results)}"]


def _call(k: int, lowered: Lowered) -> list[str]:
    tensors = [p.name for p in lowered.fn.params if p.role != "scalar"]
    scalars = [p.name for p in lowered.fn.params if p.role == "scalar"]
    return filled(f"_launch_{k}(", [*tensors, *scalars], ")").splitlines()


def _allocated(p: Param, device: str, zeroed: bool = False) -> str:
    dims, dtype = p.dims, TORCH_NAMES[p.dtype.name]
    if p.pair:
        dims, dtype = dims[:-1], "complex64"
    shape = f"({', '.join(map(text, dims))}{',' if len(dims) == 1 else ''})"
    make = "zeros" if zeroed else "empty"
    return f"{p.name} = torch.{make}({shape}, dtype=torch.{dtype}, device={device})"


__all__ = ["export_backward"]
