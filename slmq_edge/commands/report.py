"""slmq-edge report: tables of what was made and measured, for papers and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Tables of what was made.")


@app.callback()
def _several() -> None:
    """Tables of what was made."""


@app.command("cost")
def cost(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Folders written by slmq-edge quantize or export; of what was paid on targets, "
            "files run.json of profile, or engines/*.json of build."
        ),
    ],
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="terminal, md, csv or json.")
    ] = "terminal",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write to this file, not to stdout."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """What quantizing cost: peak memory, time and SLMQ_quant, as in Table 4 of the SLMQuant paper.

    Scores compare the checkpoints of one model that were quantized on one device, by one kind
    of memory; what differs in these is said, and not compared.

    On the device that runs a bundle something else is paid: an engine is built, a session is
    loaded. That is a second table, and enters no score. A bundle brings its engines along.

    \b
    Examples:
      slmq-edge report cost smollm-smooth/ smollm-omni/ smollm-spin/
      slmq-edge report cost checkpoints/* --format md -o table4.md
      slmq-edge report cost smollm-trt/ smollm-trt-run.json
    """
    from slmq_edge.errors import UsageError, unknown
    from slmq_edge.files import check_output, write_text_atomically
    from slmq_edge.reports.cost import WRITERS
    from slmq_edge.tracks.cost import table

    if format not in WRITERS:
        raise UsageError(unknown("format", format, tuple(WRITERS)))
    if output is not None:
        check_output(output, force)
    text = WRITERS[format](table(paths))
    if output is None:
        typer.echo(text, nl=False)
        return
    write_text_atomically(output, text, force)
    typer.echo(f"written: {output}", err=True)
