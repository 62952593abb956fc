"""``tkpy show``: one kernel at one stage on its way to a machine."""

from __future__ import annotations

import enum
import inspect
from typing import Annotated

import typer

from codegen.text import print_function
from tkpy.ahead import Setting, compile_for, lower_for
from tkpy.cli.app import NotFound
from tkpy.cli.find import find
from tkpy.cli.options import Constants, Dims, Dtype, DtypeName, KernelName, Target, setting
from tkpy.cli.output import print_code
from tkpy.kernel import Kernel


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
    print_code(stage_text(found.kernel, stage, str(target), chosen, after), language(stage))


def language(stage: Stage) -> str:
    """The name by which the highlighter knows the language of a stage."""
    return _LANGUAGES.get(stage, "text")


def stage_text(
    kernel: Kernel, stage: Stage, target: str, chosen: Setting, after: str | None = None
) -> str:
    """The text of one stage; ``after`` names a pass for tile IR."""
    if stage is Stage.source:
        return inspect.getsource(kernel.fn)
    if stage is Stage.tile:
        return tile_text(kernel, chosen, after)
    if stage is Stage.triton:
        return lower_for(kernel, chosen).source
    compiled = compile_for(kernel, target, chosen)
    return compiled.sass if stage is Stage.sass else compiled.asm[str(stage)]


def tile_text(kernel: Kernel, chosen: Setting, after: str | None = None) -> str:
    """Tile IR after the last pass, or after the pass called ``after``; raises NotFound."""
    if after is None:
        return print_function(lower_for(kernel, chosen).fn)
    texts: dict[str, str] = {}

    def watch(name: str, fn) -> None:
        # A pass that runs again is called name-2.
        again = 2
        first = name
        while name in texts:
            name, again = f"{first}-{again}", again + 1
        texts[name] = print_function(fn)

    lower_for(kernel, chosen, watch=watch)
    if after not in texts:
        raise NotFound(f"no pass {after!r}\n  there is {', '.join(texts)}")
    return texts[after]
