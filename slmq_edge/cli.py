"""slmq-edge: the verbs, and what happens to their errors."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  a checkout can be run by any Python
    sys.exit("slmq-edge needs Python 3.11 or later (only its runner works on 3.8)")

import errno
import os

import typer

from slmq_edge import __version__
from slmq_edge.commands.analyze import analyze
from slmq_edge.commands.build import build
from slmq_edge.commands.compare import compare
from slmq_edge.commands.devices import app as devices
from slmq_edge.commands.distributions import distributions
from slmq_edge.commands.doctor import doctor
from slmq_edge.commands.estimate import estimate
from slmq_edge.commands.eval import evaluate
from slmq_edge.commands.export import export
from slmq_edge.commands.gap import gap
from slmq_edge.commands.generate import generate
from slmq_edge.commands.inspect import inspect
from slmq_edge.commands.lint import lint
from slmq_edge.commands.macs import macs
from slmq_edge.commands.profile import profile
from slmq_edge.commands.quantize import quantize_command
from slmq_edge.commands.report import app as report
from slmq_edge.commands.reproduce import reproduce
from slmq_edge.commands.trt import app as trt
from slmq_edge.errors import SlmqError

app = typer.Typer(
    name="slmq-edge",
    help="Quantize small language models, put them on edge devices, and measure what ran.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("quantize")(quantize_command)
app.command("export")(export)
app.command("analyze")(analyze)
app.command("distributions")(distributions)
app.command("build")(build)
app.command("generate")(generate)
app.command("inspect")(inspect)
app.command("lint")(lint)
app.command("macs")(macs)
app.command("estimate")(estimate)
app.command("profile")(profile)
app.command("compare")(compare)
app.command("eval")(evaluate)
app.command("gap")(gap)
app.command("reproduce")(reproduce)
app.command("doctor")(doctor)
app.add_typer(report, name="report")
app.add_typer(trt, name="trt")
app.add_typer(devices, name="devices")


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. A SlmqError is one line on stderr; anything else is our bug."""
    # Waiting OpenMP threads sleep. Spinning ones starve each other where cores are shared: on a
    # small model and a busy 2-core machine, 0.3 s became 28 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except SlmqError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit("error: the disk is full")
