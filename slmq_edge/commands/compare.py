"""slmq-edge compare: how many times better is one run than another, and may one say so?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq_edge.commands.formats import Force, Json, Output

if TYPE_CHECKING:
    from slmq_edge.compare import Comparison, Convention
    from slmq_edge.limits import Limit
    from slmq_edge.results import Run


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN...", help="Of any devices; without --baseline."),
    ] = None,
    baselines: Annotated[
        list[Path] | None,
        typer.Option(
            "-b", "--baseline", metavar="RUN", help="Held against: a run.json; may be repeated."
        ),
    ] = None,
    candidates: Annotated[
        list[Path] | None,
        typer.Option("-c", "--candidate", metavar="RUN", help="A run.json; may be repeated."),
    ] = None,
    convention: Annotated[
        str,
        typer.Option(metavar="NAME", help="measured, or paper: its MACs and parameters, no speed."),
    ] = "measured",
    mixed_baselines: Annotated[
        bool,
        typer.Option(
            "--mixed-baselines", help="Devices side by side whose baselines differ in precision."
        ),
    ] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="LIMIT",
            help="decode=5%, memory=5%, size=1%, ...: exit code 1 beyond it; may be repeated.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help="terminal, md, csv or json. Default: terminal."
        ),
    ] = None,
    as_json: Json = False,
    output: Output = None,
    force: Force = False,
) -> None:
    """Compare runs of slmq-edge profile: size, memory, speed, and the SLMQ_infer score.

    With -b and -c: each candidate against the baseline. Every ratio is "times better than the
    baseline", above 1 for the better candidate; what was repeated has a 95 % interval of a
    bootstrap and a verdict, which may be "inconclusive". Several runs of one artifact on one
    machine count as one, with the spread between them. Runs of different workloads are refused.
    Whatever else differs (model, device, threads, versions) is printed above the numbers.

    With runs alone: all methods on all devices, each against the full precision of its own
    device and runtime, and whether the ranking of methods on one device holds on another.

    The score's size is the model in float16 over the artifact's weights, whatever the baseline
    stores. Memory of one kind is never compared with memory of another.

    --fail-on takes decode, prefill, energy (loss of a rate), ttft, load, memory, size (growth)
    and score (below the baseline's own). It fails where the whole interval is beyond the limit;
    one that holds the limit is told on stderr. What has no interval is taken as it was read.

    --convention paper computes the score as Table 3 of the SLMQuant paper does: its
    multiply-adds of a quantized model count the lm_head alone, and its size is the number
    of parameters. It is there to check the paper's figures and is not a measurement of speed.

    \b
    Examples:
      slmq-edge compare -b fp32-run.json -c w8a8-run.json -c w4a8-run.json
      slmq-edge compare -b main-run.json -c branch-run.json --fail-on decode=5% --fail-on size=1%
      slmq-edge compare -b a1.json -b a2.json -c b1.json -c b2.json
      slmq-edge compare gpu/*-run.json orin/*-run.json --mixed-baselines --format md
      slmq-edge compare -b fp32-run.json -c w8a8-run.json --json | jq .rows
    """
    from slmq_edge.commands.formats import chosen_format, deliver, refuse_input
    from slmq_edge.compare import require_convention
    from slmq_edge.errors import UsageError
    from slmq_edge.files import check_output, existing
    from slmq_edge.regressions import limit
    from slmq_edge.reports import compare as pairs
    from slmq_edge.results import load

    chosen = chosen_format(format, as_json, pairs.WRITERS)
    known = require_convention(convention)
    limits = [limit(text) for text in fail_on or ()]
    _require_one_way(runs, baselines, candidates)
    if runs and known == "paper":
        raise UsageError("--convention paper is of two sides: give them by -b and -c")
    if mixed_baselines and not runs:
        raise UsageError("--mixed-baselines is for runs of several devices, without -b and -c")
    paths = [*(runs or ()), *(baselines or ()), *(candidates or ())]
    for path in paths:
        existing(path, "run")
    if output is not None:
        refuse_input(output, paths, "runs")
        check_output(output, force)

    loaded = [load(path) for path in paths]
    aside: tuple[str, ...] = ()
    if runs:
        text, compared, aside = _of_many(loaded, mixed_baselines, chosen)
    else:
        count = len(baselines or ())
        text, compared = _of_pairs(loaded[:count], loaded[count:], known, chosen)
    deliver(text, output, force)
    _require_within(compared, limits, aside)


def _require_one_way(
    runs: list[Path] | None, baselines: list[Path] | None, candidates: list[Path] | None
) -> None:
    from slmq_edge.errors import UsageError

    if runs and (baselines or candidates):
        raise UsageError(f"{runs[0]} has no -b or -c before it: give all runs one, or none")
    if not runs and not (baselines and candidates):
        raise UsageError("give a baseline by -b and candidates by -c, or runs of several devices")


def _of_pairs(
    baselines: list[Run], candidates: list[Run], convention: Convention, format: str
) -> tuple[str, list[Comparison]]:
    from slmq_edge.compare import compare as compare_sides
    from slmq_edge.reports.compare import render
    from slmq_edge.sides import grouped, side

    reference = side(*baselines)
    compared = [compare_sides(reference, one, convention) for one in grouped(candidates)]
    return render(compared, format), compared


def _of_many(
    runs: list[Run], mixed: bool, format: str
) -> tuple[str, list[Comparison], tuple[str, ...]]:
    """The report, what it compares, and what it could not."""
    from slmq_edge.across import across
    from slmq_edge.reports.across import WRITERS

    found = across(runs, mixed)
    compared = [cell.comparison for matrix in found.matrices for cell in matrix.cells()]
    return WRITERS[format](found), compared, found.aside


def _require_within(
    compared: list[Comparison], limits: list[Limit], aside: tuple[str, ...]
) -> None:
    """Say on stderr what cannot be told, and raise SlmqError with what is beyond a limit.

    What was not compared would pass any limit unseen: it is refused.
    """
    from slmq_edge.errors import SlmqError
    from slmq_edge.regressions import check
    from slmq_edge.reports.regressions import told

    checks = check(compared, limits)
    for one in checks:
        if one.finding == "inconclusive":
            typer.echo(f"inconclusive: {told(one)}", err=True)
    beyond = [told(one) for one in checks if one.finding == "beyond"]
    if beyond:
        asked = ", ".join(limit.text for limit in limits)
        raise SlmqError(f"beyond --fail-on {asked}: {'; '.join(beyond)}")
    if limits and aside:
        raise SlmqError(f"--fail-on cannot be told of what was not compared: {'; '.join(aside)}")
