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
) -> None:
    """Triton kernels on the CPU backend against torch: milliseconds, ratio, share of a limit."""
    from bench.cpu import run

    rows = run(only, threads)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1))


@app.command()
def lines() -> None:
    """Code lines of the zoo's kernels, forward only, beside flash-linear-attention's."""
    from bench.lines import main

    main()


app()
