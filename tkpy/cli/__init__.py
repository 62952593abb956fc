"""The command ``tkpy``: list, show, export, check, inspect, timeline, cost, tune and demo."""

from tkpy.cli.app import app
from tkpy.cli.check import check
from tkpy.cli.demo import demo
from tkpy.cli.export import export
from tkpy.cli.inspect import inspect
from tkpy.cli.listing import list_kernels
from tkpy.cli.show import show
from tkpy.cli.timeline import cost, timeline
from tkpy.cli.tune import tune

__all__ = ["app"]

app.command("list")(list_kernels)
for command in (show, export, check, inspect, timeline, cost, tune, demo):
    app.command()(command)
