"""Which format of a report a command line asks for, and where it goes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from slmq_edge.errors import UsageError, unknown


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
