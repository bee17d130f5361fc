"""A run on a device, followed from here: its journal comes in pieces, and nothing comes twice.

The device answers a question late rather than often: it waits until the run has ended or some
seconds have passed. A question costs it the start of a Python, which a measurement would notice.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from slmq_edge.errors import Damaged, SlmqError
from slmq_edge.remote.agent import Agent
from slmq_edge.runner import journal

Progress = Callable[[Mapping[str, Any]], None]

RUNNING = "running"
# Seconds that the device may wait with each answer: it is checking at first, and then measures.
WAITS: tuple[float, ...] = (2.0, 5.0)
LONGEST_WAIT = 10.0


class Copy:
    """The journal of a run that is elsewhere, as far as it is here; ours alone while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    @property
    def size(self) -> int:
        """Bytes, of whole lines."""
        return self._size

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def counted(self) -> int:
        """Repetitions of the last try, or scores of sequences; see `journal.taken`."""
        return self._counted

    @property
    def taken(self) -> int:
        """All that were taken, of whichever try."""
        return self._taken

    def append(self, text: str) -> list[dict[str, Any]]:
        """Keep the next whole lines; return their events.

        Raises:
            Damaged: a line is no event of ours.
        """
        lines = text.encode("utf-8", "surrogateescape").splitlines(keepends=True)
        events = [self._event(line) for line in lines]
        self._stream.write(b"".join(lines))
        self._stream.flush()
        self._count(lines, events)
        return events

    def begin_anew(self) -> None:
        """Put what is here aside, as ``*.old``: it is of another run."""
        aside = self.path.with_name(self.path.name + ".old")
        os.replace(self.path, aside)
        self.close()
        self._open()

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Copy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        self._stream: IO[bytes] = self.path.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            events = journal.read(self.path)
        except BlockingIOError as error:
            self._stream.close()
            raise SlmqError(f"{self.path} is in use: another run writes to it") from error
        except BaseException:
            self._stream.close()
            raise
        lines = self.path.read_bytes().splitlines(keepends=True)[: len(events)]
        self._digest, self._size = hashlib.sha256(), 0
        self._counted = self._taken = 0
        self._count(lines, events)
        self._stream.truncate(self._size)

    def _event(self, line: bytes) -> dict[str, Any]:
        event = journal.parse_event(line) if line.endswith(b"\n") else None
        if event is None:
            raise Damaged(f"what the device sends is no event of a journal: {line[:80]!r}")
        return event

    def _count(self, lines: list[bytes], events: list[dict[str, Any]]) -> None:
        for line in lines:
            self._digest.update(line)
            self._size += len(line)
        for event in events:
            taken = journal.taken(event)
            self._taken += taken
            self._counted = 0 if event["event"] == "again" else self._counted + taken


def waits() -> Iterator[float]:
    return itertools.chain(WAITS, itertools.repeat(LONGEST_WAIT))


def follow(
    agent: Agent, run: str, copy: Copy, progress: Progress, first: bool = True
) -> dict[str, Any]:
    """Bring a run's journal home as it grows; return its last state, when it runs no more.

    Args:
        agent: whom to ask there.
        run: its id.
        copy: what is here already; only what is new is passed on.
        progress: told of every event that comes, of the runner's notes, and of ``kept``: done,
            how many repetitions or scores were here before.
        first: whether nothing has been told of this run yet.

    Raises:
        LinkLost: the link stayed away; the run does not mind. Damaged: what came is not what is
            there.
    """
    heard, waiting = 0, waits()
    wait, told = 0.0, 0
    while True:
        asked = {"offset": copy.size, "sha256": copy.sha256, "heard": heard, "wait_seconds": wait}
        answer = agent.ask("poll", id=run, **asked)
        if answer["offset"] != copy.size:
            said = f"the journal here is of another run: it is put aside as {copy.path.name}.old"
            progress(note(said, -told))
            copy.begin_anew()
        elif first and copy.counted:
            told = copy.counted
            progress({"event": "kept", "done": told})
        first = False
        for event in copy.append(answer["journal"]):
            progress(event)
        for said in answer["notes"]:
            progress(note(said["text"]))
        heard = answer["heard"]
        whole = copy.size == answer["size"]
        if whole and copy.sha256 != answer["sha256"]:
            raise Damaged(f"{copy.path} is not what the device has: delete it, and try again")
        if whole and answer["state"] != RUNNING:
            return answer
        wait = next(waiting) if whole else 0.0


def note(text: str, done: int = 0) -> dict[str, Any]:
    """What is told beside the events. done: what was taken before; < 0: so many are no more."""
    return {"event": "note", "text": text, "done": done}
