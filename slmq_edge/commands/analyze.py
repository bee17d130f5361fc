"""slmq-edge analyze: which part of a model does rounding hurt?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slmq_edge.commands import options
from slmq_edge.commands.formats import Output
from slmq_edge.models import DEFAULT_MODEL


@options.of_making
def analyze(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub id, local folder, demo-llama or demo-qwen2. "
            f"Default: the recipe's, or {DEFAULT_MODEL}."
        ),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Windows of 128 tokens to measure on, of text that nothing is calibrated on. "
            "Default: 16.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw it too: one SVG file, light or dark."),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="terminal, csv or json.")
    ] = "terminal",
    output: Output = None,
    force: options.Force = False,
    **words: Any,
) -> None:
    """Round a model part by part: what each linear and each block costs, and why.

    Each linear alone is rounded as quantize would (its weights, its input, and both), while
    all else stays in float: the mean KL divergence from the float model, in nats a token, and
    the change of the perplexity, on windows held out of the calibration text. Then whole
    blocks, and the model; and beside each linear how far its weights and inputs stand out.

    Where 8-bit weights would help most says the column "by weights", the order of the weights'
    damage: with --method none, --protect N of quantize and export keeps 8 bits in the first N.
    Other methods choose likewise, on the model as they have prepared it.

    It costs some 15 L passes over the held-out text, for a model of L blocks: seconds for the
    demo models, 70 CPU minutes for SmolLM-135M. --held-out 8 halves it.

    \b
    Examples:
      slmq-edge analyze demo-llama --scheme w4a8
      slmq-edge analyze HuggingFaceTB/SmolLM-135M --scheme w4a8-g32 --calib pile.jsonl
      slmq-edge analyze demo-qwen2 --scheme w8a8 --method smoothquant --plot smooth.svg
      slmq-edge analyze demo-llama --scheme w4a8 --format csv -o damage.csv
    """
    from slmq_edge.commands import making
    from slmq_edge.commands.formats import deliver
    from slmq_edge.commands.progress import bar
    from slmq_edge.errors import UsageError, unknown
    from slmq_edge.files import check_output
    from slmq_edge.reports import analyze as reports
    from slmq_edge.reports.analyze_plot import svg
    from slmq_edge.reports.plots import as_file

    if format not in reports.WRITERS:
        raise UsageError(unknown("format", format, tuple(reports.WRITERS)))
    if plot is not None and plot.suffix != ".svg":
        raise UsageError(f"--plot writes SVG: call the file {plot.with_suffix('.svg').name}")
    if output is not None and plot is not None and output.resolve() == plot.resolve():
        raise UsageError(f"--output and --plot are both {output}: choose two files")
    for path in (output, plot):
        if path is not None:
            check_output(path, force)
    recipe = options.recipe(model, words, method="none")
    request = making.request_of(recipe, words)

    from slmq_edge.analysis.sensitivity import analyze as measure

    with bar("reading the model") as progress:
        found = measure(str(recipe.model), request, held_out, progress, making.note)
    text = reports.WRITERS[format](found)
    deliver(text, output, force)
    if plot is not None:
        deliver(as_file(svg(found)), plot, force)
