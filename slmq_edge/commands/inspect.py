"""slmq-edge inspect: what is inside a bundle or a checkpoint?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmq_edge.commands.formats import Force, Output


def inspect(
    folder: Annotated[
        Path, typer.Argument(help="Written by slmq-edge export or quantize.", metavar="FOLDER")
    ],
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="terminal, md or json.")
    ] = "terminal",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Hash every file, or trust them.")
    ] = True,
    run: Annotated[
        bool, typer.Option("--run", help="Of a bundle: run it, and list the operators that ran.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="With --run. Default: one for every core we may use.")
    ] = None,
    output: Output = None,
    force: Force = False,
) -> None:
    """Say what is inside a bundle or a checkpoint: model, licence, scheme, sizes, checks.

    Of a bundle also linear by linear what was asked and what is executed. With --run the graph runs
    once under onnxruntime's own record of operators, so that what multiplies integers is seen and
    not believed; the record slows it down, so for speed use slmq-edge profile.

    The exit code is 1 where a file is not what the manifest says.

    \b
    Examples:
      slmq-edge inspect smollm-w8a8/
      slmq-edge inspect smollm-w8a8/ --run
      slmq-edge inspect smollm-spin/ --no-verify --format json | jq .bytes
    """
    from slmq_edge.commands.formats import deliver
    from slmq_edge.errors import Damaged, UsageError, unknown
    from slmq_edge.files import check_output
    from slmq_edge.inspection import inspect as look
    from slmq_edge.reports.inspect import WRITERS
    from slmq_edge.runner import environment

    if format not in WRITERS:
        raise UsageError(unknown("format", format, tuple(WRITERS)))
    if threads is not None and not run:
        raise UsageError("--threads is of --run: nothing else computes")
    if output is not None:
        check_output(output, force)
    found = look(folder, verify, (threads or environment.cores()) if run else None)
    text = WRITERS[format](found)
    deliver(text, output, force)
    if found.problem is not None:
        raise Damaged(found.problem)
