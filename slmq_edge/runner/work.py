"""What a machine may be given to do: to measure (`job.Job`) or to score (`scoring.Job`).

Its document is job.json, in which ``task`` says which of the two it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Protocol

from slmq_edge.errors import Damaged

TASK, MEASURE, SCORE = "task", "measure", "score"


class Work(Protocol):
    @property
    def bundle(self) -> Path: ...

    @property
    def journal(self) -> Path: ...

    @property
    def unit(self) -> str:
        """What the journal collects, in the plural; `journal.taken` counts it."""

    @property
    def doing(self) -> Mapping[str, str]:
        """What is being done behind the last event of a journal."""

    def files(self) -> Mapping[str, Path]:
        """Fields of the document that name files besides the bundle's, which the machine needs."""

    def document(self) -> dict[str, Any]:
        """JSON."""


def write(work: Work, path: Path) -> None:
    path.write_text(json.dumps(work.document()), encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Read the document of a job file.

    Raises:
        Damaged: there is none, or it is not a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} is not a job: {error}") from error
    if not isinstance(document, dict):
        raise Damaged(f"{path} is not a job: no JSON object")
    return document
