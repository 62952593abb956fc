"""The command ``tkpy``: list, show, export, check, inspect, timeline, cost and demo."""

from tkpy.cli.app import app
from tkpy.cli.check import check
from tkpy.cli.demo import demo
from tkpy.cli.export import export
from tkpy.cli.inspect import inspect
from tkpy.cli.listing import list_kernels
from tkpy.cli.show import show
from tkpy.cli.timeline import cost, timeline

__all__ = ["app"]

app.command("list")(list_kernels)
for command in (show, export, check, inspect, timeline, cost, demo):
    app.command()(command)
