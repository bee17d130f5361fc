"""Questions and texts in local files, as rows of the datasets that lm-eval's tasks read.

    FOLDER/arc_easy/test.jsonl        a question a line: id, question, choices, answer (0-based)
    FOLDER/wikitext2/wiki.test.raw    WikiText-2 as it was published

A folder may hold small fixed subsets beside the whole: ``test.slice200.jsonl``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.errors import Damaged, NotFound, UsageError
from slmq_edge.files import existing
from slmq_edge.runner.manifest import sha256

Row = Mapping[str, Any]
# A page of WikiText begins with a heading of the first level; one of the second has two signs.
_TITLE = re.compile(r"\s*= [^=].* =\s*")


@dataclass(frozen=True)
class Folder:
    """Where local questions lie. slices: whether their small fixed subsets are read."""

    path: Path
    slices: bool = False

    def file(self, task: str, stem: str, suffix: str) -> Path:
        """The file of a task: ``stem`` and whatever follows it before ``suffix``.

        Raises:
            NotFound: there is none; names the nearest folder, or what would have been read.
            UsageError: there are several.
        """
        existing(self.path, "folder of questions")
        place = existing(self.path / task, "questions of " + task)
        exact = place / f"{stem}{suffix}"
        if not self.slices and exact.is_file():
            return exact
        found = [
            file
            for file in sorted(place.glob(f"{stem}*{suffix}"))
            if (".slice" in file.name) == self.slices
        ]
        kind = "slice" if self.slices else "file"
        if not found:
            wanted = f"{stem}.slice*{suffix}" if self.slices else exact.name
            raise NotFound(f"{place} holds no {kind} of {task}: {wanted} is read")
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise UsageError(f"{place} holds several {kind}s of {task} ({names}): keep one there")
        return found[0]


@dataclass(frozen=True)
class Source:
    """Where questions came from. name: of the file or the hub's dataset; sha256: of the file."""

    origin: str
    name: str
    sha256: str | None = None


def source_of(file: Path) -> Source:
    return Source("local", file.name, sha256(file))


def questions(file: Path) -> list[dict[str, Any]]:
    """Rows with ``id`` (text), ``question``, ``choices``, ``answer``, and what else they hold.

    Raises:
        Damaged: a row that is no question; says which and why.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{file}, line {number}: not JSON ({error})") from error
        problem = _problem(row)
        if problem:
            raise Damaged(f"{file}, line {number}: {problem}")
        rows.append({**row, "id": str(row.get("id", number - 1))})
    if not rows:
        raise Damaged(f"{file} holds no questions")
    return rows


def _problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return "not a JSON object"
    if not isinstance(row.get("question"), str):
        return "no 'question'"
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or len(choices) < 2:
        return "fewer than two 'choices'"
    if not all(isinstance(choice, str) and choice for choice in choices):
        return "a choice that is no text"
    if type(answer) is not int or not 0 <= answer < len(choices):
        return f"'answer' is {answer!r}, not the index of a choice"
    return None


def pages(file: Path) -> list[dict[str, Any]]:
    """WikiText's documents, each ``{"page": text}``: cut where a title stands."""
    found: list[list[str]] = [[]]
    for line in _text(file).split("\n"):
        if _TITLE.fullmatch(line):
            found.append([])
        found[-1].append(line)
    whole = ["\n".join(lines) for lines in found]
    rows = [{"page": page} for page in whole if page.strip()]
    if not rows:
        raise Damaged(f"{file} holds no text")
    return rows


def lines(file: Path) -> list[str]:
    """WikiText's lines as the hub has them: each with its end of line, a blank one empty."""
    whole = _text(file).split("\n")
    rows = [f"{line}\n" if line.strip() else "" for line in whole[:-1]]
    return rows + ([whole[-1]] if whole[-1].strip() else [])


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"{file} is not UTF-8 text: {error.reason}") from error
