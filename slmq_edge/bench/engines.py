"""What starts cells and sees them end. ``local`` is the default; ``ray`` an optional extra."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from slmq_edge.bench import child, present, schedule
from slmq_edge.bench.cells import Cell
from slmq_edge.errors import MissingExtra, UsageError, unknown

LOCAL, RAY = ENGINES = ("local", "ray")
ABSENT_SECONDS = 300.0


class Work(Protocol):
    """A cell that was started. began: time.monotonic(). log_start: bytes of its log before it."""

    @property
    def cell(self) -> Cell: ...
    @property
    def began(self) -> float: ...
    @property
    def started(self) -> str: ...
    @property
    def log(self) -> Path: ...
    @property
    def log_start(self) -> int: ...


class Engine(Protocol):
    """Starts cells in one bench's folder."""

    def missing(self, cell: Cell) -> str | None:
        """Why a cell has to wait for another day; ``None``: it need not."""

    def may_start(self, cell: Cell, running: Sequence[Cell], jobs: int) -> bool:
        """Whether it may be started beside these."""

    def start(self, cell: Cell, at: str) -> Work:
        """Start a cell."""

    def wait(self, running: Sequence[Work], seconds: float) -> None:
        """Return when one has ended, or after so many seconds."""

    def ended(self, work: Work) -> int | None:
        """The exit code, 128 + n behind signal n; ``None`` while it runs."""

    def seconds(self, work: Work) -> float:
        """What it took, once it has ended."""

    def interrupt(self, running: Sequence[Work]) -> None:
        """End them as Ctrl-C would, then by force."""


class Here:
    """This machine, and the boards that it reaches."""

    def __init__(self, out: Path, mark: str) -> None:
        self._out, self._mark = out, mark
        self._absent: dict[str, tuple[float, str]] = {}

    def missing(self, cell: Cell) -> str | None:
        """A board that did not answer is let be for a while: nothing starts while one is asked."""
        if not cell.is_remote:
            return present.missing(self._out, cell)
        asked, why = self._absent.get(cell.address, (0.0, ""))
        if why and time.monotonic() - asked < ABSENT_SECONDS:
            return why
        found = present.missing(self._out, cell)
        if found is not None:
            self._absent[cell.address] = time.monotonic(), found
        return found

    def may_start(self, cell: Cell, running: Sequence[Cell], jobs: int) -> bool:
        return schedule.may_start(cell, running, jobs)

    def start(self, cell: Cell, at: str) -> Work:
        return child.start(self._out, cell, self._mark, at)

    def wait(self, running: Sequence[Work], seconds: float) -> None:
        child.wait(_children(running), seconds)

    def ended(self, work: Work) -> int | None:
        (one,) = _children([work])
        return child.ended_by(one)

    def seconds(self, work: Work) -> float:
        return time.monotonic() - work.began

    def interrupt(self, running: Sequence[Work]) -> None:
        child.interrupt(_children(running))


def _children(running: Sequence[Work]) -> list[child.Child]:
    return [one for one in running if isinstance(one, child.Child)]


def check(name: str) -> None:
    """Refuse an engine that is not there.

    Raises:
        UsageError: no such engine. MissingExtra: it is not installed.
    """
    if name not in ENGINES:
        raise UsageError(unknown("engine", name, ENGINES))
    if name == RAY and importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", "ray")


@contextlib.contextmanager
def opened(name: str, out: Path, mark: str, cells: Sequence[Cell], jobs: int) -> Iterator[Engine]:
    """An engine, ready; it is closed with the block."""
    if name == LOCAL:
        yield Here(out, mark)
        return
    from slmq_edge.bench.on_ray import cluster

    with cluster(out, mark, cells, jobs) as engine:
        yield engine
