"""Which format of a report a command line asks for."""

from __future__ import annotations

from collections.abc import Iterable

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
