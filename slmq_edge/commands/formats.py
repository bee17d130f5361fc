"""Which format of a report a command line asks for, and where it goes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from slmq_edge.errors import UsageError, unknown

Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="Write to this file, not to stdout."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output.")]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]


def chosen_format(name: str | None, as_json: bool, known: Iterable[str]) -> str:
    """``--json`` is short for ``--format json``; neither: terminal.

    Raises:
        UsageError: an unknown format, or both.
    """
    if as_json and name not in (None, "json"):
        raise UsageError(f"--json and --format {name} contradict each other")
    chosen = "json" if as_json else name or "terminal"
    if chosen not in known:
        raise UsageError(unknown("format", chosen, tuple(known)))
    return chosen


def refuse_input(output: Path, inputs: Iterable[Path], what: str) -> None:
    """Nothing measured is lost: --force must not turn an input into a report on itself.

    Raises:
        UsageError: the output is one of ``inputs``, which are called ``what``.
    """
    if output.resolve() in [path.resolve() for path in inputs]:
        raise UsageError(f"{output} is one of the {what}: write the comparison elsewhere")


def deliver(text: str, output: Path | None, force: bool) -> None:
    """Print a report, or write it to the file of ``--output`` and say so.

    Raises:
        SlmqError: the file is there, and ``force`` is off.
    """
    from slmq_edge.files import write_text_atomically

    if output is None:
        typer.echo(text, nl=False)
        return
    write_text_atomically(output, text, force)
    typer.echo(f"written: {output}", err=True)
