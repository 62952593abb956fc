"""``tkpy train``, ``tkpy eval`` and ``tkpy generate``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from tkpy.cli.app import NotFound, Refusing, complain
from tkpy.errors import TkError
from zoo.training import runs
from zoo.training.config import ConfigError
from zoo.training.curve import Curve
from zoo.training.log import Report
from zoo.training.processes import Processes
from zoo.training.registry import find, systems
from zoo.training.show import Bar, Lines, means, table
from zoo.training.system import Request

app = typer.Typer(
    cls=Refusing, name="python -m zoo.training", no_args_is_help=True, add_completion=False
)

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="E.g. train.lr=3e-3; repeatable."),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write one JSON object; - is stdout.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one.")]
Reference = Annotated[
    bool, typer.Option("--reference", help="The model in plain PyTorch, without our kernels.")
]
Folder = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of a run, or of one of its checkpoints.")
]


@app.command()
def train(
    name: Annotated[
        str | None, typer.Argument(metavar="SYSTEM", help="Without it, the systems there are.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A size by name; the first if absent.")] = None,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder; runs/SYSTEM/PRESET.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, if it holds one.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Train with so many seeds, in turn.")] = 1,
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="Stop each run after so much time.")
    ] = None,
    as_json: Json = None,
    reference: Reference = False,
    device: Device = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Draw the loss as it falls, in place of a bar.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Events into DIR/tensorboard, too.")
    ] = False,
) -> None:
    """Train a system of the zoo, show how good it became, and keep it in a folder.

    A run that was stopped, by ctrl-C or in any other way, goes on with `--resume` as if it had not
    been. Under `torchrun` the processes share each batch.
    """
    if name is None:
        _systems()
        return
    system = find(name)
    preset_name = preset or next(iter(system.presets))
    _usage(system.preset, preset_name)
    if resume and out is None:
        raise NotFound("--resume goes on with the run in --out DIR\n  fix: give --out")
    processes = _usage(Processes.joined, device)
    try:
        console = Console(highlight=False, quiet=not processes.first, stderr=_alone(as_json))
        folder = out or runs.new_folder(name, preset_name, processes)
        first = system.preset(preset_name).train.seed
        results: list[runs.Result] = []
        for k in range(seeds):
            report: Report
            label = f"{name} {preset_name}" + (f", seed {first + k}" if seeds > 1 else "")
            if curve:
                report = Curve(console, label, seconds)
            else:
                report = Bar(console, label) if console.is_terminal else Lines(console, label)
            result = _usage(
                runs.train,
                name,
                preset_name,
                settings=settings or (),
                out=folder / f"seed-{first + k}" if seeds > 1 else folder,
                resume=resume,
                reference=reference,
                seed=first + k if seeds > 1 else None,
                seconds=seconds,
                processes=processes,
                report=report,
                events=tensorboard,
            )
            results.append(result)
            if result.signal is not None:
                complain(
                    f"stopped after step {result.step} of {result.steps}; it is saved\n"
                    f"  go on: --out {folder} --resume",
                    "warning",
                )
                raise typer.Exit(128 + result.signal)
            console.print(
                f"{label}: {result.step} steps in {result.seconds:.1f} s, "
                f"loss {result.loss:.4g}, in {result.out}",
                soft_wrap=True,
            )
        _show(console, results)
        if processes.first:
            _write(as_json, _summary(results))
    finally:
        processes.leave()


@app.command("eval")
def evaluate(
    path: Folder,
    settings: Settings = None,
    as_json: Json = None,
    reference: Reference = False,
    device: Device = None,
) -> None:
    """Evaluate a trained model, as its system does after training."""
    place = _usage(Processes.joined, device).device
    loaded = runs.load(path, reference or None, place)
    rows = _usage(loaded.evaluate, settings or ())
    console = Console(highlight=False, stderr=_alone(as_json))
    run = loaded.run
    console.print(f"{run.system} {run.preset_name}, step {run.step}, of {loaded.folder}")
    console.print(table(rows) if rows else f"{run.system} evaluates nothing")
    facts = {"system": run.system, "preset": run.preset_name, "step": run.step, "rows": rows}
    _write(as_json, facts)


@app.command()
def generate(
    path: Folder,
    prompt: Annotated[str, typer.Argument(help="What it goes on from; - reads stdin.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="The most tokens to add.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="How many, of one prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Of the likeliest k only.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of the likeliest, p in all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    reference: Reference = False,
    device: Device = None,
) -> None:
    """Let a trained model write, on standard output, as it goes."""
    loaded = runs.load(path, reference or None, _usage(Processes.joined, device).device)
    text = sys.stdin.read() if prompt == "-" else prompt
    request = Request(text, tokens, samples, temperature, top_k, top_p, seed)
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for piece in loaded.system.generate(loaded.model, loaded.run.preset, request):
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")


# --- what they share ------------------------------------------------------------------------------


def _usage(call, *arguments, **keywords):
    """``call``; a configuration that cannot be is a mistake in the command, exit status 2."""
    try:
        return call(*arguments, **keywords)
    except ConfigError as e:
        raise NotFound(str(e)) from None


def _alone(as_json: Path | None) -> bool:
    return str(as_json) == "-"


def _write(as_json: Path | None, value: object) -> None:
    if as_json is None:
        return
    if _alone(as_json):
        print(json.dumps(value))
        return
    try:
        as_json.write_text(json.dumps(value, indent=2) + "\n")
    except OSError as e:
        raise TkError(f"{as_json} cannot be written: {e.strerror or e}") from None


def _show(console: Console, results: list[runs.Result]) -> None:
    if len(results) == 1:
        rows = results[0].rows
    else:
        rows = [{"seed": r.seed} | row for r in results for row in r.rows]
        rows += [{"seed": "mean"} | row for row in means([r.rows for r in results])]
    if rows:
        console.print(table(rows))


def _summary(results: list[runs.Result]) -> dict[str, object]:
    same = {k: v for k, v in vars(results[0]).items() if k in ("system", "preset", "reference")}
    return same | {
        "runs": [{k: v for k, v in vars(r).items() if k not in same} for r in results],
        "mean": means([r.rows for r in results]),
    }


def _systems() -> None:
    """A table of the systems and their presets."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("system", "preset", "steps", "what it is"):
        out.add_column(column)
    for name in systems():
        try:
            system = find(name)
        except NotFound as e:
            out.add_row(name, "", "", str(e))
            continue
        for preset_name, preset in system.presets.items():
            out.add_row(name, preset_name, str(preset.train.steps), preset.about)
            name = ""
    Console(highlight=False).print(out)
