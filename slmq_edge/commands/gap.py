"""slmq-edge gap: what was lost between one model and another, on the same questions?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmq_edge.commands.formats import Force, Json, Output


def gap(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="Held against: an eval.json of slmq-edge eval.")
    ],
    others: Annotated[
        list[Path], typer.Argument(metavar="OTHER...", help="One or more eval.json files.")
    ],
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="LIMIT",
            help="gap=0.5%, flips=2%, kl=0.01, token-kl=0.01 or token-flips=2%: exit code 1 above "
            "it; may be repeated.",
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
    """Compare evaluations question by question: the deployment gap.

    Every difference has a 95 % interval of a paired bootstrap over the questions. Flips are
    answers that changed from right to wrong or back, KL how far the choices' probabilities
    moved. Files that were asked other questions are refused.

    --fail-on looks at each task's first metric, as measured: gap is what the other loses (points of
    an accuracy, relative rise of a perplexity), flips and kl are as in the table. token-kl and
    token-flips are of next tokens, which are there where OTHER was evaluated with --against and
    the artifact of BASE.

    \b
    Examples:
      slmq-edge gap fp32-eval.json simulated-eval.json ort-eval.json
      slmq-edge gap simulated-eval.json ort-eval.json --fail-on gap=0.5% --fail-on flips=1%
      slmq-edge gap fp32-eval.json ort-eval.json --format md -o gap.md
      slmq-edge gap simulated-eval.json ort-eval.json --fail-on token-kl=0.001
    """
    from slmq_edge.commands.formats import chosen_format, deliver, refuse_input
    from slmq_edge.files import check_output, existing
    from slmq_edge.reports.gap import WRITERS, require_within
    from slmq_edge.tracks.accuracy.gap import compare, parse
    from slmq_edge.tracks.accuracy.results import load

    write = WRITERS[chosen_format(format, as_json, WRITERS)]
    limits = [parse(text) for text in fail_on or ()]
    for path in (base, *others):
        existing(path, "evaluation")
    if output is not None:
        refuse_input(output, (base, *others), "evaluations")
        check_output(output, force)

    reference = load(base)
    gaps = [compare(reference, load(path)) for path in others]
    text = write(gaps)
    deliver(text, output, force)
    require_within(gaps, limits)
