"""What a bench leaves on disk, and what is known of it by looking.

    OUT/bench.json                                   the plan as it was, and its cells
    OUT/cells/ID/{command.txt, log.txt, status.json}
    OUT/{checkpoints, bundles, runs, evals, analyses, distributions}/...

status.json is written before a cell starts and when it has ended, whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slmq_edge import __version__
from slmq_edge.bench.cells import Cell, identities, is_whole
from slmq_edge.errors import Damaged, NotFound, SlmqError, Unsupported
from slmq_edge.files import check_output, write_text_atomically
from slmq_edge.results import decode

FILE, FORMAT, VERSION = "bench.json", "slmq-edge-bench", 1
CELLS, LOCK = "cells", ".lock"
FOLDERS = ("checkpoints", "bundles", "runs", "evals", "analyses", "distributions")
UNFINISHED = ".unfinished"  # what quantize goes on from
WAITING, RUNNING, DONE, FAILED, SKIPPED = STATES = (
    "waiting", "running", "done", "failed", "skipped",
)  # fmt: skip


@dataclass(frozen=True)
class Status:
    """What became of a cell. identity: see `cells.identities`. seconds: of the last attempt.

    error: why it failed, waits or was skipped, in a line. attempts: how often it was started.
    """

    state: str
    identity: str
    started: str | None = None
    seconds: float | None = None
    exit_code: int | None = None
    error: str | None = None
    attempts: int = 0


@dataclass(frozen=True)
class Bench:
    """bench.json. estimates: seconds by cell, before anything was measured."""

    title: str
    plan: str
    created: str
    cells: tuple[Cell, ...]
    estimates: Mapping[str, float]

    @property
    def identities(self) -> dict[str, str]:
        return identities(self.cells)


@dataclass(frozen=True)
class Found:
    """Cells by what is on disk. changed: what lies in their place is another command's."""

    done: frozenset[str]
    failed: Mapping[str, str]
    changed: tuple[str, ...]
    attempts: Mapping[str, int]


def save(out: Path, bench: Bench) -> None:
    """Write bench.json."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "title": bench.title,
        "plan": bench.plan,
        "plan_sha256": hashlib.sha256(bench.plan.encode()).hexdigest(),
        "slmq_edge": __version__,
        "created": bench.created,
        "cells": [
            {**cell.as_json(), "estimated_seconds": bench.estimates.get(cell.id)}
            for cell in bench.cells
        ],
    }
    write_text_atomically(out / FILE, json.dumps(document, indent=1) + "\n", force=True)


def load(out: Path) -> Bench:
    """Read bench.json.

    Raises:
        NotFound: there is none. Damaged: it is not whole. Unsupported: of another version.
    """
    path = out / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFound(f"{out} is no bench: it holds no {FILE} (slmq-edge bench run)") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Unsupported(f"{path} is no {FORMAT}")
    if document.get("version") != VERSION:
        raise Unsupported(f"{path} has version {document.get('version')!r}, not {VERSION}")
    try:
        listed = document["cells"]
        cells = tuple(Cell.from_json(one, str(path)) for one in listed)
        estimates = {
            cell.id: float(one["estimated_seconds"])
            for cell, one in zip(cells, listed, strict=True)
            if one.get("estimated_seconds") is not None
        }
        texts = {key: str(document[key]) for key in ("title", "plan", "created")}
        bench = Bench(**texts, cells=cells, estimates=estimates)
        _ = bench.identities
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{path} is damaged: {error!r}") from error
    return bench


def check(out: Path) -> Bench | None:
    """The bench that is there already; ``None``: it may be made anew.

    Raises:
        SlmqError: the folder is not ours, or cannot be written.
    """
    if (out / FILE).is_file():
        return load(out)
    if out.exists() and not out.is_dir():
        raise SlmqError(f"{out} is a file: -o names a folder")
    if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
        raise SlmqError(f"{out} is no bench, and not empty: give -o another folder")
    if not out.exists():
        check_output(out, force=False, folder=True)
    return None


@contextlib.contextmanager
def locked(out: Path) -> Iterator[str]:
    """Have the bench for us alone; yields what its processes are marked by.

    Raises:
        SlmqError: another process works in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            raise SlmqError(
                f"{out} is being worked in by process {handle.read().strip() or '?'}: wait for it, "
                "or end it (Ctrl-C) and resume"
            ) from error
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        about = os.fstat(handle.fileno())
        yield f"{about.st_dev}:{about.st_ino}"


def status(out: Path, cell: Cell) -> Status | None:
    """What is written of a cell; ``None`` where nothing is, or nothing that can be read."""
    try:
        text = (out / CELLS / cell.id / "status.json").read_text(encoding="utf-8")
        found: Status = decode(Status, json.loads(text), cell.id)
    except (OSError, ValueError, Damaged):
        return None
    return found if found.state in STATES else None


def put(out: Path, cell: Cell, now: Status) -> None:
    """Write what became of a cell."""
    text = json.dumps(dataclasses.asdict(now), indent=1) + "\n"
    write_text_atomically(out / CELLS / cell.id / "status.json", text, force=True)


def look(out: Path, bench: Bench) -> Found:
    """Find out what is done, by the files and by what is written of them."""
    done, failed, changed, attempts = set(), {}, [], {}
    ours = bench.identities
    for cell in bench.cells:
        was = status(out, cell)
        attempts[cell.id] = 0 if was is None else was.attempts
        is_same = was is not None and was.identity == ours[cell.id]
        # A cell that was killed behind its last write is done, though nobody wrote that down.
        if is_same and was is not None and was.state in (DONE, RUNNING, WAITING):
            if all(is_whole(out, output) for output in cell.outputs):
                done.add(cell.id)
        elif is_same and was is not None and was.state == FAILED:
            failed[cell.id] = was.error or "it failed"
        elif not is_same and any((out / output).exists() for output in cell.outputs):
            changed.append(cell.id)
    return Found(frozenset(done), failed, tuple(changed), attempts)


def clear(out: Path, cell: Cell, identity: str) -> None:
    """Take away what is in the place of a cell's outputs, and is not its result.

    What an interrupted verb would go on from is kept, unless it was another command's.
    """
    was = status(out, cell)
    is_other = was is None or was.identity != identity
    for output in cell.outputs:
        path = out / output
        _remove(path)
        if is_other:
            _remove(path.with_name(f".{path.name}{UNFINISHED}"))
            _remove(path.with_name(f"{path.stem}.journal"))
            _remove(path.with_name(f"{path.stem}.journal.jsonl"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def tidy(out: Path) -> None:
    """Remove what killed processes have left half written; nobody else may be at work here."""
    for name in FOLDERS:
        for path in (out / name).glob(".*"):
            if not path.name.endswith(UNFINISHED):
                _remove(path)


def command_line(out: Path, cell: Cell) -> str:
    """What to paste into a shell to do what a cell does."""
    words = [sys.executable, "-m", "slmq_edge", *cell.command]
    return f"cd {shlex.quote(str(out.absolute()))} && {shlex.join(words)}"


def describe(out: Path, cell: Cell) -> None:
    """Write command.txt."""
    text = command_line(out, cell) + "\n"
    write_text_atomically(out / CELLS / cell.id / "command.txt", text, force=True)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def last_words(log: Path, start: int) -> str:
    """Of a log from byte ``start`` on, its last error, or its last line."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(start, log.stat().st_size - (1 << 16)))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    return (errors or said or [""])[-1].removeprefix("error: ")[:500]


def states_of(out: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """What is written of each cell, by id."""
    return {cell.id: status(out, cell) for cell in cells}
