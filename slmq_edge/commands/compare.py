"""slmq-edge compare: how many times better is one run than another, and may one say so?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    baseline: Annotated[
        Path,
        typer.Option("-b", "--baseline", metavar="RUN", help="Held against: a run.json."),
    ],
    candidates: Annotated[
        list[Path],
        typer.Option("-c", "--candidate", metavar="RUN", help="A run.json; may be repeated."),
    ],
    convention: Annotated[
        str,
        typer.Option(metavar="NAME", help="measured, or paper: its MACs and parameters, no speed."),
    ] = "measured",
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help="terminal, markdown or json. Default: terminal."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write to this file, not to stdout."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Compare runs of slmq-edge profile: size, memory, speed, and the SLMQ_infer score.

    Every ratio is "times better than the baseline", above 1 for the better candidate, with
    an error from the spread of the repetitions. Runs of different workloads are refused.
    Memory of one kind is never compared with memory of another. Whatever else differs (model,
    device, threads, versions) is printed above the numbers.

    --convention paper computes the score as Table 3 of the SLMQuant paper does: its
    multiply-adds of a quantized model count the lm_head alone, and its size is the number
    of parameters. It is there to check the paper's figures and is not a measurement of speed.

    \b
    Examples:
      slmq-edge compare -b fp32-run.json -c w8a8-run.json -c w4a8-run.json
      slmq-edge compare -b fp32-run.json -c w8a8-run.json --format markdown
      slmq-edge compare -b fp32-run.json -c w8a8-run.json --json | jq .rows
    """
    from slmq_edge.commands.formats import chosen_format
    from slmq_edge.compare import compare as compare_runs
    from slmq_edge.compare import require_convention
    from slmq_edge.files import check_output, existing, write_text_atomically
    from slmq_edge.reports.compare import WRITERS, render
    from slmq_edge.results import load

    chosen = chosen_format(format, as_json, WRITERS)
    known = require_convention(convention)
    for path in (baseline, *candidates):
        existing(path, "run")
    if output is not None:
        _refuse_input(output, [baseline, *candidates])
        check_output(output, force)

    reference = load(baseline)
    compared = [compare_runs(reference, load(path), known) for path in candidates]
    text = render(compared, chosen)
    if output is None:
        typer.echo(text, nl=False)
        return
    write_text_atomically(output, text, force)
    typer.echo(f"written: {output}", err=True)


def _refuse_input(output: Path, runs: list[Path]) -> None:
    """Nothing measured is lost: --force must not turn a run into a report on itself."""
    from slmq_edge.errors import UsageError

    if output.resolve() in [path.resolve() for path in runs]:
        raise UsageError(f"{output} is one of the runs: write the comparison elsewhere")
