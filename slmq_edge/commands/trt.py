"""slmq-edge trt: what a machine can say of TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmq_edge.commands.formats import Force, Output

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="TensorRT on this machine.")


@app.callback()
def _several() -> None:
    """TensorRT on this machine."""


@app.command("report")
def report(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Bundles whose engines to tell of.")
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option("--run", metavar="FILE", help="A run.json of slmq-edge profile; repeatable."),
    ] = None,
    engines: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where engines are kept. Default: BUNDLE/engines."),
    ] = None,
    output: Output = None,
    force: Force = False,
) -> None:
    """Print as JSON what is here, what was built, what became INT8, and how fast it was.

    To be pasted into an issue: we have no Jetson, you do. It says what is missing where something
    is, so that a machine without TensorRT can be reported too; and it holds no name of a host, a
    user or a file.

    \b
    Examples:
      slmq-edge trt report
      slmq-edge trt report smollm-trt --run smollm-trt-run.json -o report.json
    """
    import json

    from slmq_edge.commands.formats import deliver
    from slmq_edge.files import check_output, existing_bundle
    from slmq_edge.runner.trt import report as reports

    if output is not None:
        check_output(output, force)
    for folder in bundles or ():
        existing_bundle(folder)
    text = json.dumps(reports.report(bundles or (), engines, run or ()), indent=1) + "\n"
    deliver(text, output, force)
