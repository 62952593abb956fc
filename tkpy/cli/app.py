"""The typer application and how it fails: a message, never a traceback, for what we refuse."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

import tkpy
from codegen.aot import ToolMissing, UnknownTarget
from tkpy.ahead import SettingError
from tkpy.errors import TkError


class NotFound(TkError):
    """A name on the command line that names nothing; exit status 2, as for any usage error."""


class Refusing(TyperGroup):
    """Commands that answer what is refused with a message and an exit status."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (TkError, UnknownTarget, ToolMissing) as e:
            complain(str(e))
            raise typer.Exit(2 if isinstance(e, NotFound | SettingError) else 1) from None


class _Extended(Refusing):
    """With the commands of packages, which are looked for where ours do not answer."""

    def list_commands(self, ctx):
        from tkpy.cli.find import commands

        return list(dict.fromkeys([*super().list_commands(ctx), *commands()]))

    def get_command(self, ctx, cmd_name):
        from tkpy.cli.find import commands

        own = super().get_command(ctx, cmd_name)
        return own if own is not None else commands().get(cmd_name)


def complain(message: str, word: str = "error") -> None:
    """Print ``message`` on standard error, lines unbroken so that a place can be clicked."""
    colour = "yellow" if word == "warning" else "red"
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"[bold {colour}]{word}:[/] {escape(message)}"
    )


app = typer.Typer(
    cls=_Extended,
    name="tkpy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tkpy {tkpy.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    """Kernels written in tiles: look at what they become, check them, read what was obtained.

    KERNEL is the name of a registered kernel (see **tkpy list**) or one in a file of your own:
    **path/to/file.py:kernel**.
    """
