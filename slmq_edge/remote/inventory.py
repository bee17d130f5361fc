"""Several boards: a TOML file that names them, and the same work on all of them side by side.

[[board]]
name = "orin"                        # a part of the names of files
device = "ssh://me@orin.local"
python = "python3.10"                # and home, config: see `target.Target`
"""

from __future__ import annotations

import dataclasses
import re
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq_edge.errors import NotFound, SlmqError, UsageError, did_you_mean
from slmq_edge.files import existing
from slmq_edge.remote import target
from slmq_edge.remote.follow import Progress, note
from slmq_edge.remote.target import Target
from slmq_edge.results import Run

SUFFIX = ".toml"
BOARD = "board"
REQUIRED, OPTIONAL = ("name", "device"), ("python", "home", "config")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

GOES_ON = "what was started there goes on by itself: the same command follows it, --stop ends it"
ENDED = "what ran here is ended, and what it has measured is kept: the same command goes on"

Work = Callable[[Target, Progress], Run]


@dataclass(frozen=True)
class Outcome:
    """What became of one board: a run, or why there is none."""

    name: str
    run: Run | None
    error: SlmqError | None = None


def targets(device: str) -> tuple[Target, ...]:
    """Return the machines that ``--device`` names: one, or those of an inventory.

    Raises:
        UsageError: it names none, or the inventory is not one; NotFound: there is no such file.
    """
    if is_inventory(device):
        return read(Path(device))
    if "://" not in device and device != target.LOCAL and Path(device).is_file():
        raise UsageError(f"{device} is a file: one that names boards ends with {SUFFIX}")
    return (target.parse(device),)


def is_inventory(device: str) -> bool:
    """Whether ``--device`` names a file of boards, even of one, and not a machine."""
    return "://" not in device and device.endswith(SUFFIX)


def read(path: Path) -> tuple[Target, ...]:
    """Read an inventory; paths in it are relative to it.

    Raises:
        NotFound: there is no such file.
        UsageError: it is not TOML, a key is unknown or missing, or two boards are the same.
    """
    existing(path, "inventory")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no inventory: {error}") from error
    _check_keys(str(path), document, (BOARD,), (BOARD,))
    tables = document[BOARD]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path}: boards are written as [[{BOARD}]]")
    boards = tuple(_board(path, number, table) for number, table in enumerate(tables, start=1))
    if not boards:
        raise UsageError(f"{path} names no board")
    for field, what in (("name", "name"), ("place", "device and home")):
        seen: dict[object, Target] = {}
        for board in boards:
            value = board.name if field == "name" else (board.host, board.port, board.home)
            if value in seen:
                raise UsageError(
                    f"{path}: {board.name} and {seen[value].name} have the same {what}"
                )
            seen[value] = board
    return boards


def side_by_side(
    boards: Sequence[Target], work: Work, show: Callable[[str, Mapping[str, Any]], None]
) -> list[Outcome]:
    """Do the same work on all boards at once; one that fails does not end the others.

    Args:
        boards: with different names.
        work: done in a thread for each.
        show: told of the events of each, by its name; from any thread.

    Returns:
        What became of each, in the order given. After Ctrl-C the threads are left where they are:
        what they follow goes on by itself.
    """
    found: dict[str, Outcome | BaseException] = {}

    def one(board: Target) -> None:
        try:
            run = work(board, lambda event: show(board.name, event))
            found[board.name] = Outcome(board.name, run)
        except SlmqError as error:
            found[board.name] = Outcome(board.name, None, error)
            show(board.name, {"event": "failed", "text": str(error)})
        except BaseException as error:
            found[board.name] = error

    threads = [threading.Thread(target=one, args=(board,), daemon=True) for board in boards]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        for board in boards:
            if board.name not in found:
                said = ENDED if board.transport == target.LOCAL else GOES_ON
                show(board.name, note(f"{board.name}: {said}"))
        raise
    outcomes = [found[board.name] for board in boards]
    for outcome in outcomes:
        if isinstance(outcome, BaseException):  # our bug, told when all the others are at home
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Outcome)]


def _board(path: Path, number: int, table: Mapping[str, Any]) -> Target:
    where = f"{path}: board {number}"
    _check_keys(where, table, REQUIRED, (*REQUIRED, *OPTIONAL))
    for key, value in table.items():
        if not isinstance(value, str):
            raise UsageError(f"{where}: {key} is text, in quotes")
    name = table["name"]
    if not NAME.fullmatch(name):
        raise UsageError(f"{where}: {name!r} is no name: letters, digits, and -._ between them")
    try:
        made = target.parse(table["device"])
        others = {key: table[key] for key in ("python", "home") if key in table}
        if "config" in table:
            config = path.parent / Path(table["config"]).expanduser()
            others["config"] = existing(config, "ssh_config")
        return dataclasses.replace(made, name=name, **others)
    except NotFound as error:
        raise NotFound(f"{where}: {error}") from error
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _check_keys(
    where: str, table: Mapping[str, Any], required: Sequence[str], known: Sequence[str]
) -> None:
    for key in table:
        if key not in known:
            raise UsageError(
                f"{where}: unknown key {key!r}{did_you_mean(key, known)}; known: {', '.join(known)}"
            )
    for key in required:
        if key not in table:
            raise UsageError(f"{where}: {key} is missing")
