"""slmq-edge distributions: how weights and inputs are distributed, before and after a method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmq_edge.commands import options
from slmq_edge.commands.formats import Output
from slmq_edge.models import DEFAULT_MODEL

if TYPE_CHECKING:
    from slmq_edge.analysis.distributions import Distributions

# What a file is written as that is called so.
SUFFIXES = {".json": "json", ".csv": "csv", ".md": "md", ".svg": "svg"}


@options.of_making
def distributions(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub id, local folder, demo-llama or demo-qwen2; or a JSON file that this verb "
            f"has written, to show it again. Default: the recipe's, or {DEFAULT_MODEL}."
        ),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Windows of 128 tokens that inputs are taken on, of text that nothing is "
            "calibrated on. Default: 16.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw it too: one SVG file, light or dark."),
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="Draw this other model, measured before, at its side."
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="terminal, md, csv, json or svg. Default: what the name of --output ends in, "
            "or terminal.",
        ),
    ] = None,
    output: Output = None,
    force: options.Force = False,
    **words: Any,
) -> None:
    """Show how far weights and inputs of linears stand out, before and after a method.

    The largest value, its ratio to the median, kurtosis, quantiles and a histogram, of every
    linear's weights and of what it reads: of the model as it was released, and as the method has
    prepared it, before anything is rounded. Inputs are those on windows held out of the
    calibration text. --method none measures the released model alone.

    The drawing is Figure 3 of the SLMQuant paper; --beside puts a second model into it.

    \b
    Examples:
      slmq-edge distributions demo-llama --method spinquant --preset fast
      slmq-edge distributions demo-qwen2 --method smoothquant -o qwen2.json --plot qwen2.svg
      slmq-edge distributions qwen2.json --beside llama.json --format svg -o figure3.svg
    """
    from slmq_edge.commands.formats import deliver
    from slmq_edge.errors import UsageError
    from slmq_edge.files import check_output
    from slmq_edge.reports.distributions import WRITERS
    from slmq_edge.reports.plots import as_file
    from slmq_edge.reports.plots import distributions as draw

    format = _format(format, output, tuple(WRITERS))
    if plot is not None and plot.suffix != ".svg":
        raise UsageError(f"--plot writes SVG: call the file {plot.with_suffix('.svg').name}")
    if output is not None and plot is not None and output.resolve() == plot.resolve():
        raise UsageError(f"--output and --plot are both {output}: choose two files")
    if beside is not None and plot is None and format != "svg":
        raise UsageError("--beside is for drawings: give --plot FILE.svg, or --format svg")
    for path in (output, plot):
        if path is not None:
            check_output(path, force)
    other = None if beside is None else _stored(beside)
    found = _found(model, held_out, words)
    text = WRITERS[format](found) if format != "svg" else as_file(draw(found, other))
    deliver(text, output, force)
    if plot is not None:
        deliver(as_file(draw(found, other)), plot, force)


def _format(name: str | None, output: Path | None, known: tuple[str, ...]) -> str:
    from slmq_edge.errors import UsageError, unknown

    if name is None:
        return "terminal" if output is None else SUFFIXES.get(output.suffix, "terminal")
    if name not in known:
        raise UsageError(unknown("format", name, known))
    return name


def _stored(path: Path) -> Distributions:
    from slmq_edge.analysis.distributions import load
    from slmq_edge.files import existing

    return load(existing(path, "distributions"))


def _found(model: str | None, held_out: int | None, words: Mapping[str, Any]) -> Distributions:
    """As measured now; or as measured before, where ``model`` is a file.

    Raises:
        UsageError: a file, and words on how to measure.
    """
    from slmq_edge.commands import making
    from slmq_edge.commands.progress import bar
    from slmq_edge.errors import UsageError

    if model is not None and model.endswith(".json"):
        given = {**words, "held_out": held_out}
        said = [name for name, value in given.items() if value not in (None, False)]
        if said:
            spoken = ", ".join(f"--{name.replace('_', '-')}" for name in said)
            raise UsageError(f"{model} is measured already: leave out {spoken}")
        return _stored(Path(model))
    recipe = options.recipe(model, words, method="none")
    request = making.request_of(recipe, words)

    from slmq_edge.analysis.observing import observe

    with bar("reading the model") as progress:
        return observe(str(recipe.model), request, held_out, progress, making.note)
