"""A source of readings that comes in its own time: a thread follows it and keeps the latest."""

from __future__ import annotations

import threading
import time
from typing import Callable, Generic, TypeVar

FIRST_SECONDS = 5.0  # to wait for the first reading
STALE_INTERVALS = 10

T = TypeVar("T")


class Follower(Generic[T]):
    """Starts `_follow` in a thread, which calls `_keep` for each reading and returns why it ended.

    `latest` is None, with a reason, before the first, after the end, and where none came for long.
    """

    name = "follower"

    def __init__(
        self, interval_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.reason: str | None = f"{self.name} was not started"
        self._stale_seconds = max(1.0, STALE_INTERVALS * interval_seconds)
        self._clock = clock
        self._latest: tuple[float, T] | None = None
        self._thread: threading.Thread | None = None
        self._ended: str | None = None
        self._closing = threading.Event()
        self._first = threading.Event()

    def start(self, seconds: float = FIRST_SECONDS) -> bool:
        """Return whether a first reading came within this time. Starting twice starts once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
        self._first.wait(seconds)
        return self.latest() is not None

    def latest(self) -> T | None:
        if self._ended is not None or self._thread is None:
            self.reason = self._ended or self.reason
            return None
        if self._latest is None:
            self.reason = f"{self.name} told nothing yet"
            return None
        stamp, reading = self._latest
        silent = self._clock() - stamp
        if silent > self._stale_seconds:
            self.reason = f"{self.name} has told nothing for {silent:.1f} s"
            return None
        self.reason = None
        return reading

    def close(self) -> None:
        self._closing.set()
        self._stop()
        if self._thread is not None:
            self._thread.join(FIRST_SECONDS)

    def _run(self) -> None:
        try:
            ended = self._follow()
        except Exception as error:  # a reading that fails must never end what it is taken for
            ended = f"{self.name}: {type(error).__name__}: {error}"
        self._ended = f"{self.name} was ended" if self._closing.is_set() else ended
        self._first.set()

    def _keep(self, reading: T) -> None:
        self._latest = (self._clock(), reading)
        self._first.set()

    def _follow(self) -> str:
        raise NotImplementedError

    def _stop(self) -> None:
        """Make `_follow` return."""
