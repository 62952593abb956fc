"""``python -m bench NAME``: measurements that anyone can repeat from a checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def cpu(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    only: Annotated[str, typer.Option(help="Only work whose name contains this.")] = "",
    threads: Annotated[int, typer.Option(help="Threads for both sides.")] = 2,
    interpreter: Annotated[bool, typer.Option(help="Time Triton's interpreter too.")] = True,
) -> None:
    """The zoo on the CPU backend against its rivals: milliseconds, ratio, share of a limit."""
    from bench.cpu import run

    rows = run(only, threads, interpreter)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


@app.command(name="train-ops")
def train_ops(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    only: Annotated[str, typer.Option(help="Only work whose name contains this.")] = "",
    threads: Annotated[int, typer.Option(help="Threads for both sides.")] = 2,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, a process a row.")] = True,
) -> None:
    """Forward and derived backward through autograd beside PyTorch: milliseconds and megabytes."""
    from bench.train_ops import run

    rows = run(only, threads, memory)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


@app.command(name="based-step")
def based_step(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    length: Annotated[int, typer.Option(help="Tokens of a row.")] = 1024,
    batch: Annotated[int, typer.Option(help="Rows.")] = 2,
    threads: Annotated[int, typer.Option(help="Threads for both sides.")] = 2,
    compiled: Annotated[bool, typer.Option(help="torch.compile is a rival too.")] = True,
) -> None:
    """A training step of BASED beside its reference: quadratic, chunked, eager, compiled."""
    from bench.based_step import run

    rows = run(length, batch, threads, compiled)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


@app.command()
def vq(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    only: Annotated[str, typer.Option(help="Only work whose name contains this.")] = "",
    threads: Annotated[int, typer.Option(help="Threads for both sides.")] = 2,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, a process a row.")] = True,
) -> None:
    """Vector quantisation beside the package vector-quantize-pytorch: milliseconds, megabytes."""
    from bench.vq import run

    rows = run(only, threads, memory)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


@app.command()
def table(json_file: Annotated[Path, typer.Argument(help="What --json wrote.")]) -> None:
    """Rows of a measurement as a Markdown table."""
    from bench.table import markdown

    print(markdown(json.loads(json_file.read_text())))


@app.command()
def launch(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """What it costs to launch, to import and to compile, in milliseconds."""
    from bench.launch import run

    rows = run()
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1))


@app.command()
def lines() -> None:
    """Code lines of the zoo's kernels, forward only, beside flash-linear-attention's."""
    from bench.lines import main

    main()


@app.command()
def peers(
    only: Annotated[str, typer.Option(help="Only ops whose name contains one of these.")] = "",
    lengths: Annotated[str, typer.Option(help="Sequence lengths.")] = "1,63,64,200",
    dtypes: Annotated[str, typer.Option(help="Data types.")] = "fp32,bf16",
    workers: Annotated[int, typer.Option(help="Ops at a time.")] = 2,
    limit: Annotated[float, typer.Option(help="Seconds for a row.")] = 300,
    save: Annotated[bool, typer.Option(help="Write the rows into bench/peers.*")] = False,
    tune: Annotated[bool, typer.Option(help="Autotuners try all configurations.")] = False,
) -> None:
    """Other people's kernels (flash-linear-attention, Liger-Kernel) against references."""
    from bench.peers.table import run

    run(only, [int(n) for n in lengths.split(",")], dtypes.split(","), workers, limit, save, tune)


@app.command()
def interpreter(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    length: Annotated[int, typer.Option(help="Tokens.")] = 2048,
) -> None:
    """Ops of flash-linear-attention here against Triton's interpreter."""
    from bench.peers.interpreter import against_interpreter

    rows = against_interpreter(length)
    for r in rows:
        print(f"{r['work']:28}{r['ours_ms']:10.1f}{r['rival_ms']:12.1f}  {r['rival']:12}"
              f"{r['ratio']:8.0f}")  # fmt: skip
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1))


@app.command()
def timeline(
    device: Annotated[str, typer.Option(help="h100, h200, b200, a100 or mi300x.")] = "h100",
) -> None:
    """Simulated pipelines beside ThunderKittens' published figures: no GPU is needed."""
    from bench.timeline import run

    run(device)


@app.command("gpu-static")
def gpu_static(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    only: Annotated[str, typer.Option(help="Only work whose name contains this.")] = "",
    target: Annotated[str, typer.Option(help="Only this target.")] = "",
) -> None:
    """Ours and the same by hand, as GPUs would run them: registers, spills, length of the loop."""
    from bench.static import as_json, run

    rows = as_json(run(only, target))
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


@app.command()
def predict(
    only: Annotated[str, typer.Option(help="Only work whose name has this.")] = "",
    rounds: Annotated[int, typer.Option(help="Ratios are medians of so many.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows here.", dir_okay=False)
    ] = None,
) -> None:
    """Time on this CPU as the cost model predicts it, beside the clock."""
    from bench.predict import run

    rows = run(only, rounds)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


app()
