"""What became of several boards that were measured side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slmq_edge.reports.format import rate_text
from slmq_edge.results import to_json as run_to_json

if TYPE_CHECKING:
    from slmq_edge.remote.inventory import Outcome

FORMAT, VERSION = "slmq-edge-boards", 1


def render(outcomes: Sequence[Outcome], outputs: Mapping[str, Path]) -> str:
    """A line for each board that was measured, and below it what is to be known of its figures."""
    width = max(len(one.name) for one in outcomes)
    lines = []
    for one in outcomes:
        if one.run is None:
            continue
        prefill, decode = (
            rate_text(series.median) for series in (one.run.prefill_rate, one.run.decode_rate)
        )
        said = f"prefill {prefill}, decode {decode}; {outputs[one.name]}"
        lines.append(f"{one.name:<{width}}  {said}")
        lines += [f"{'':<{width}}  ! {caveat.advice}" for caveat in one.run.caveats]
    return "".join(line + "\n" for line in lines)


def to_json(outcomes: Sequence[Outcome], outputs: Mapping[str, Path]) -> str:
    """One document: runs and failures by the board's name."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "runs": {one.name: json.loads(run_to_json(one.run)) for one in outcomes if one.run},
        "failed": {one.name: failure(one) for one in outcomes if one.run is None},
        "files": {one.name: str(outputs[one.name]) for one in outcomes if one.run},
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def failure(outcome: Outcome) -> str:
    """Why there is no run of a board, its name once."""
    return f"{outcome.name}: {str(outcome.error).removeprefix(f'{outcome.name}: ')}"
