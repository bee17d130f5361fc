"""What a machine may be given to do: to measure (`job.Job`) or to score (`scoring.Job`).

Its document is job.json, in which ``task`` says which of the two it is: without it, to measure.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Mapping, Protocol, TypeVar

from slmq_edge.errors import Damaged
from slmq_edge.profiles import Board

Made = TypeVar("Made", bound="Work")
TASK, MEASURE, SCORE = "task", "measure", "score"


class Work(Protocol):
    @property
    def bundle(self) -> Path: ...

    @property
    def journal(self) -> Path: ...

    @property
    def torch_device(self) -> str | None:
        """Of a bundle for torch, see `runtimes.Place`."""

    def on(self, torch_device: str) -> Work:
        """The same, on that device."""

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


def parse(path: Path, make: Callable[[dict[str, Any]], Made]) -> Made:
    """Read a job file; ``make`` is given its fields, those that all jobs have as what they are.

    Raises:
        Damaged: it is none, or a field is missing or misspelt.
    """
    fields = read(path)
    try:
        fields.pop(TASK, None)
        fields["bundle"], fields["journal"] = Path(fields["bundle"]), Path(fields["journal"])
        fields["engines"] = Path(fields["engines"]) if fields.get("engines") else None
        fields["board"] = Board.of(fields.get("board", {}))
        return make(fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{path} is not a job: {error}") from error


def described(work: Any) -> dict[str, Any]:
    """The fields of a job as JSON, those that all jobs have; `parse` reads them.

    Without ``torch_device`` where none is asked for, as before there was one: it decides run-ids.
    """
    fields = work._asdict()
    if fields["torch_device"] is None:
        del fields["torch_device"]
    return {
        **fields,
        "bundle": str(work.bundle),
        "journal": str(work.journal),
        "engines": None if work.engines is None else str(work.engines),
        "board": work.board._asdict(),
    }
