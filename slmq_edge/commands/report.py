"""slmq-edge report: tables of what was made and measured, for papers and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmq_edge.commands.formats import Force, Json, Output

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
    output: Output = None,
    force: Force = False,
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
    from slmq_edge.commands.formats import deliver
    from slmq_edge.errors import UsageError, unknown
    from slmq_edge.files import check_output
    from slmq_edge.reports.cost import WRITERS
    from slmq_edge.tracks.cost import table

    if format not in WRITERS:
        raise UsageError(unknown("format", format, tuple(WRITERS)))
    if output is not None:
        check_output(output, force)
    text = WRITERS[format](table(paths))
    deliver(text, output, force)


@app.command("study")
def study(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Folders of results, or single documents."),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help="terminal, md, csv, json or html. Default: terminal."
        ),
    ] = None,
    as_json: Json = False,
    output: Output = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME", help="Of what all is held against. Default: the float one there is."
        ),
    ] = None,
    within: Annotated[
        float,
        typer.Option(min=0, metavar="PERCENT", help="Of quality that a choice may lose."),
    ] = 1.0,
    mixed: Annotated[
        bool,
        typer.Option(
            "--mixed-baselines",
            help="Set devices side by side whose baselines differ in precision; labelled.",
        ),
    ] = False,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the report.")] = None,
    force: Force = False,
) -> None:
    """Which method for which device: a report on a whole folder of results.

    Runs, evaluations, bundles, checkpoints, analyses and benches are found by what they say they
    are, wherever they lie below the folders. A run and an evaluation stand in one row where both
    are of one bundle: the artifact that is timed is the artifact whose accuracy is known.

    The answer comes first: for every device and model the fastest and the smallest of what keeps
    full precision's quality to within --within percent, and what keeps most; "inconclusive" where
    95 % intervals do not tell. Then the paper's Tables 1 to 4, with its figures beside ours where
    the model is one of its two, deployment gaps, what ran, and every run's caveats. html is one
    file that fetches nothing.

    \b
    Examples:
      slmq-edge report study results/
      slmq-edge report study results/ --format html -o report.html
      slmq-edge report study gpu/ orin/ --baseline fp16 --within 0.5 --format md
    """
    from slmq_edge.commands.formats import chosen_format, deliver
    from slmq_edge.errors import UsageError
    from slmq_edge.files import check_output
    from slmq_edge.reports.study import WRITERS
    from slmq_edge.study.collect import collect
    from slmq_edge.study.document import document

    write = WRITERS[chosen_format(format, as_json, WRITERS)]
    if within >= 100:
        raise UsageError(f"--within {within}: give percent of full precision's quality, like 1")
    if output is not None:
        _refuse_result(output, results)
        check_output(output, force)
    text = write(document(collect(results), title, baseline, within, mixed))
    deliver(text, output, force)


def _refuse_result(output: Path, results: list[Path]) -> None:
    """Nothing measured is lost: --force must not turn a result into a report on itself."""
    from slmq_edge.errors import UsageError
    from slmq_edge.study.collect import is_result

    if output.resolve() in [path.resolve() for path in results] or is_result(output):
        raise UsageError(f"{output} is a result itself: write the report elsewhere")
