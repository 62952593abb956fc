"""``tkpy show``: one kernel at one stage on its way to a machine."""

from __future__ import annotations

import enum
import functools
import inspect
from typing import Annotated

import typer

from codegen.aot import Compiled
from codegen.ir import Function
from codegen.text import print_function
from tkpy.ahead import Setting, compile_lowered, lower_for
from tkpy.cli.app import NotFound
from tkpy.cli.find import find
from tkpy.cli.options import Constants, Dims, Dtype, DtypeName, KernelName, Target, setting
from tkpy.cli.output import print_code
from tkpy.kernel import Kernel
from tkpy.lower import Lowered


class Stage(enum.StrEnum):
    """The stages, in order. Those from ttir on need Triton to compile for a target."""

    source = "source"
    tile = "tile"
    triton = "triton"
    ttir = "ttir"
    ttgir = "ttgir"
    llir = "llir"
    ptx = "ptx"
    sass = "sass"
    amdgcn = "amdgcn"


_LANGUAGES = {
    Stage.source: "python",
    Stage.tile: "text",
    Stage.triton: "python",
    Stage.llir: "llvm",
    Stage.ptx: "ptx",
}
_NVIDIA_ONLY, _AMD_ONLY = {Stage.ptx, Stage.sass}, {Stage.amdgcn}


def show(
    kernel: KernelName,
    stage: Annotated[Stage, typer.Option(help="What to print.")] = Stage.triton,
    target: Annotated[
        Target | None,
        typer.Option(help="The GPU, for ttir and later.", show_default="sm_90; amdgcn: gfx942"),
    ] = None,
    dtype: DtypeName = Dtype.bf16,
    dim: Dims = None,
    constant: Constants = None,
    after: Annotated[
        str | None,
        typer.Option("--pass", metavar="NAME", help="Tile IR as this pass leaves it."),
    ] = None,
) -> None:
    """Print a kernel as its author wrote it, as tile IR, as Triton, or as a GPU's assembly.

    The variant shown is the one that a launch with contiguous, aligned tensors would use. Named
    dimensions that are tile sides have 64 elements unless --dim says otherwise.
    """
    found = find(kernel)
    if target is None:
        target = Target.gfx942 if stage in _AMD_ONLY else Target.sm_90
    amd = target is Target.gfx942
    if (stage in _NVIDIA_ONLY and amd) or (stage in _AMD_ONLY and not amd):
        other = "ttir, ttgir, llir, amdgcn" if amd else "ttir, ttgir, llir, ptx, sass"
        raise NotFound(f"{target} has no stage {stage}; it has {other}")
    if after is not None and stage is not Stage.tile:
        raise NotFound("--pass is of tile IR: give --stage tile too")
    chosen = setting(found.kernel, dtype, dim, constant)
    stages = Stages(found.kernel, chosen, str(target))
    print_code(stages.after(after) if after else stages.text(stage), language(stage))


def language(stage: Stage) -> str:
    """The name by which the highlighter knows the language of a stage."""
    return _LANGUAGES.get(stage, "text")


class Stages:
    """The texts of one variant of a kernel; lowered and compiled once, when first asked for."""

    def __init__(self, kernel: Kernel, setting: Setting, target: str):
        self.kernel, self.setting, self.target = kernel, setting, target

    @functools.cached_property
    def lowered(self) -> Lowered:
        return lower_for(self.kernel, self.setting)

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
        return self.compiled.sass if stage is Stage.sass else self.compiled.asm[str(stage)]

    def after(self, wanted: str) -> str:
        """Tile IR as the pass ``wanted`` leaves it; one that runs again is called name-2."""
        texts: dict[str, str] = {}

        def watch(name: str, fn: Function) -> None:
            times = sum(known == name or known.startswith(f"{name}-") for known in texts)
            texts[f"{name}-{times + 1}" if times else name] = print_function(fn)

        lower_for(self.kernel, self.setting, watch=watch)
        if wanted not in texts:
            raise NotFound(f"no pass {wanted!r}\n  there is {', '.join(texts)}")
        return texts[wanted]
