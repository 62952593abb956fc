"""``tkpy demo``: one kernel on its way to a GPU, then a model on a text."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import tkpy
from codegen.inspect import inspect
from tkpy.ahead import Setting
from tkpy.cli.app import NotFound
from tkpy.cli.check import print_results, run_checks
from tkpy.cli.find import Found, load_package, packages, registered
from tkpy.cli.inspect import facts
from tkpy.cli.output import console, print_code
from tkpy.cli.show import Stage, Stages, language
from tkpy.errors import TkError

_EXAMPLES = 6
_MOST_TEXT = 1 << 20  # bytes; no machine gets through more in the time given


@dataclass(frozen=True)
class Part:
    """How much of a stage is shown: ``lines`` of them around the first that ``heart`` matches."""

    title: str
    lines: int
    heart: str | None = None


PARTS = {
    Stage.source: Part("as its author wrote it", 70),
    Stage.tile: Part("as tile IR", 10, r"%\S+ = mma\("),
    Stage.triton: Part("as Triton", 36, r"for \w+ in"),
    Stage.ttir: Part("as Triton's IR", 7, r"tt\.dot|tt\.reduce"),
    Stage.ptx: Part("as PTX", 7, r"wgmma\.mma_async"),
}


def demo(
    text_file: Annotated[
        Path | None,
        typer.Argument(metavar="TEXT-FILE", help="What the model reads; the README if absent."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1.0, help="Time for the models to read and to learn, in seconds.")
    ] = 25.0,
) -> None:
    """Show what tkpy does: a kernel at every stage, checked, compiled, and a model made of tiles.

    A small stack of BASED blocks over bytes, with random weights, reads as much of the text as
    the time allows, at once and then byte by byte, and both must agree. Another learns to recall.
    """
    text = read_text(text_file)
    out = console()
    found = pick(registered())
    stages = Stages(found.kernel, Setting(constants=_constants(found)), "sm_90")
    for stage, part in PARTS.items():
        out.rule(f"{found.name}, {part.title}", align="left")
        _show(out, found.name, stages, stage)
    out.rule(f"{found.name}, on {_EXAMPLES} inputs that nobody chose", align="left")
    try:
        checked = run_checks([found], _EXAMPLES, seed=0)
    except TkError as e:  # the test extra is not installed
        out.print(str(e), markup=False)
        checked = []
    if checked:
        print_results(checked, out)
    out.rule(f"{found.name}, compiled for Hopper (sm_90) and read back", align="left")
    out.print(facts(inspect(stages.compiled)))
    for entry in packages():
        run = getattr(load_package(entry), "demo", None)
        if run is not None:
            out.rule(f"a model of {entry.value}", align="left")
            run(out, text, seconds)
    if not all(c.result.ok for c in checked):
        raise typer.Exit(1)


def pick(known: dict[str, Found]) -> Found:
    """The kernel to show: attention, which has a matrix product and a loop, if it is there."""
    if not known:
        raise NotFound("no package registers kernels with tkpy: there is nothing to show")
    return known.get("attention") or known.get("softmax") or next(iter(known.values()))


def _constants(found: Found) -> dict[str, object]:
    names = {p.name for p in found.kernel.signature.constants}
    return {"causal": True} if "causal" in names else {}


def _show(out: Console, name: str, stages: Stages, stage: Stage) -> None:
    text = stages.text(stage).rstrip("\n")
    shown = excerpt(text, PARTS[stage].lines, PARTS[stage].heart)
    print_code(shown, language(stage), out)
    left = len(text.splitlines()) - len(shown.splitlines())
    if left > 0:
        options = "".join(f" --set {n}={v!s}".lower() for n, v in stages.setting.constants.items())
        command = f"tkpy show {name} --stage {stage}{options}"
        out.print(f"[dim]{left} more lines: {command}[/]", soft_wrap=True)


def excerpt(text: str, count: int, heart: str | None = None) -> str:
    """``count`` lines: around the first that matches ``heart``, else from the start."""
    lines = text.splitlines()
    first = 0
    if heart is not None:
        at = next((k for k, line in enumerate(lines) if re.search(heart, line)), 0)
        first = max(0, min(at - count // 2, len(lines) - count))
    return "\n".join(lines[first : first + count])


# --- the text -------------------------------------------------------------------------------------


def read_text(path: Path | None) -> bytes:
    """The bytes of a file, or of the project's README; raises NotFound if there are none."""
    if path is None:
        text = _readme()
        name = "the README"
    else:
        name = str(path)
        try:
            with path.open("rb") as file:
                text = file.read(_MOST_TEXT)
        except OSError as e:
            raise NotFound(f"{path} cannot be read: {e.strerror or e}") from None
    if not text:
        raise NotFound(f"{name} is empty: give a file with at least one byte")
    return text


def _readme() -> bytes:
    """From the checkout, else from the installed distribution, which carries it as metadata."""
    try:
        return (Path(tkpy.__file__).parent.parent / "README.md").read_bytes()
    except OSError:
        pass
    try:
        payload = importlib.metadata.metadata("tkpy").get_payload()  # type: ignore[attr-defined]
    except importlib.metadata.PackageNotFoundError:
        return b""
    return str(payload or "").encode()
