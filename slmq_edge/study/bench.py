"""bench.json -> the cells of it that are not done, and what they said.

A bench writes ``cells/ID/status.json`` beside it for every cell: its state, and of one that failed
the last line of its error. What is missing or torn is a cell that never began.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = "slmq-edge-bench"
DONE, WAITING = "done", "waiting"


@dataclass(frozen=True)
class Cell:
    """A cell that has no result. kind: what it does; error: of one that failed, its last line."""

    id: str
    kind: str
    state: str
    error: str | None
    device: str | None


def unfinished(document: Mapping[str, Any], folder: Path) -> Iterator[Cell]:
    """Cells of ``document``, whose folder this is, that are not done; in its order."""
    cells = document.get("cells")
    for cell in cells if isinstance(cells, list) else ():
        if not isinstance(cell, Mapping) or not isinstance(cell.get("id"), str):
            continue
        status = _status(folder / "cells" / cell["id"] / "status.json")
        state = str(status.get("state", WAITING))
        if state != DONE:
            device = cell.get("device")
            error = status.get("error")
            yield Cell(
                id=cell["id"],
                kind=str(cell.get("kind", "")),
                state=state,
                error=None if error is None else str(error),
                device=None if device is None else str(device),
            )


def _status(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
