"""``tkpy show``: one kernel at one stage on its way to a machine."""

from __future__ import annotations

import enum
import functools
import inspect
from typing import Annotated

import typer

from codegen.aot import CPU, Compiled
from codegen.ir import Function
from codegen.text import print_function
from tkpy.ahead import Setting, backward_for, compile_lowered, lower_for
from tkpy.cli.app import NotFound
from tkpy.cli.find import find
from tkpy.cli.options import AnyTarget, Constants, Dims, Dtype, DtypeName, KernelName, setting
from tkpy.cli.output import print_code
from tkpy.kernel import Kernel
from tkpy.lower import Lowered


class Stage(enum.StrEnum):
    """The stages, in order: those of GPUs, then the CPU's. From ttir on Triton compiles."""

    source = "source"
    tile = "tile"
    triton = "triton"
    ttir = "ttir"
    ttgir = "ttgir"
    llir = "llir"
    ptx = "ptx"
    sass = "sass"
    amdgcn = "amdgcn"
    llvm = "llvm"
    asm = "asm"


_LANGUAGES = {
    Stage.source: "python",
    Stage.tile: "text",
    Stage.triton: "python",
    Stage.llir: "llvm",
    Stage.llvm: "llvm",
    Stage.ptx: "ptx",
    Stage.asm: "gas",
}
_BEFORE = (Stage.source, Stage.tile, Stage.triton)  # of every target
_NVIDIA = (Stage.ttir, Stage.ttgir, Stage.llir, Stage.ptx, Stage.sass)
_AMD = (Stage.ttir, Stage.ttgir, Stage.llir, Stage.amdgcn)
_CPU = (Stage.ttir, Stage.llvm, Stage.asm)
_LATER = {AnyTarget.gfx942: _AMD, AnyTarget.cpu: _CPU}
_DEFAULTS = {
    Stage.amdgcn: AnyTarget.gfx942,
    Stage.llvm: AnyTarget.cpu,
    Stage.asm: AnyTarget.cpu,
}


def show(
    kernel: KernelName,
    stage: Annotated[Stage, typer.Option(help="What to print.")] = Stage.triton,
    target: Annotated[
        AnyTarget | None,
        typer.Option(
            help="The GPU, or cpu: this processor.",
            show_default="sm_90; amdgcn: gfx942; llvm, asm: cpu",
        ),
    ] = None,
    dtype: DtypeName = Dtype.bf16,
    dim: Dims = None,
    constant: Constants = None,
    after: Annotated[
        str | None,
        typer.Option("--pass", metavar="NAME", help="Tile IR as this pass leaves it."),
    ] = None,
    backward: Annotated[
        bool, typer.Option("--backward", help="The programs of its derived backward instead.")
    ] = False,
) -> None:
    """Print a kernel as its author wrote it, as tile IR, as Triton, or as assembly.

    The variant shown is the one that a launch with contiguous, aligned tensors would use. Named
    dimensions that are tile sides have 64 elements unless --dim says otherwise.
    """
    found = find(kernel)
    if target is None:
        target = _DEFAULTS.get(stage, AnyTarget.sm_90)
    later = _LATER.get(target, _NVIDIA)
    if stage not in (*_BEFORE, *later):
        raise NotFound(f"{target} has no stage {stage}; it has {', '.join(later)}")
    if after is not None and stage is not Stage.tile:
        raise NotFound("--pass is of tile IR: give --stage tile too")
    chosen = setting(found.kernel, dtype, dim, constant)
    if backward:
        if after is not None or stage is Stage.source:
            raise NotFound("a derived backward has no source of its own, and no --pass is shown")
        for text in backward_texts(found.kernel, chosen, str(target), stage):
            print_code(text, language(stage))
        return
    stages = Stages(found.kernel, chosen, str(target))
    print_code(stages.after(after) if after else stages.text(stage), language(stage))


def language(stage: Stage) -> str:
    """The name by which the highlighter knows the language of a stage."""
    return _LANGUAGES.get(stage, "text")


def backward_texts(kernel: Kernel, chosen: Setting, target: str, stage: Stage) -> list[str]:
    """The programs of a backward at one stage, the forward that saves for them first."""
    device = "cpu" if target == CPU else "cuda"
    made = backward_for(kernel, chosen, device, target)
    out = []
    for lowered in (made.forward, *made.pieces):
        stages = Stages(kernel, chosen, target)
        stages.lowered = lowered
        out.append(stages.text(stage))
    return out


class Stages:
    """The texts of one variant of a kernel; lowered and compiled once, when first asked for."""

    def __init__(self, kernel: Kernel, setting: Setting, target: str):
        self.kernel, self.setting, self.target = kernel, setting, target
        self.device = "cpu" if target == CPU else "cuda"

    @functools.cached_property
    def lowered(self) -> Lowered:
        return lower_for(self.kernel, self.setting, self.device, self.target)

    @functools.cached_property
    def compiled(self) -> Compiled:
        return compile_lowered(self.kernel, self.lowered, self.target)

    def text(self, stage: Stage) -> str:
        """The text of one stage. Raises TkError as ``tkpy.ahead.compile_for`` does."""
        if stage is Stage.source:
            return inspect.getsource(self.kernel.fn)
        if stage is Stage.tile:
            return print_function(self.lowered.fn)
        if stage is Stage.triton:
            return self.lowered.source
        if stage is Stage.sass:
            return self.compiled.sass
        return self.compiled.asm["llir" if stage is Stage.llvm else str(stage)]

    def after(self, wanted: str) -> str:
        """Tile IR as the pass ``wanted`` leaves it; one that runs again is called name-2."""
        texts: dict[str, str] = {}

        def watch(name: str, fn: Function) -> None:
            times = sum(known == name or known.startswith(f"{name}-") for known in texts)
            texts[f"{name}-{times + 1}" if times else name] = print_function(fn)

        lower_for(self.kernel, self.setting, self.device, self.target, watch=watch)
        if wanted not in texts:
            raise NotFound(f"no pass {wanted!r}\n  there is {', '.join(texts)}")
        return texts[wanted]
