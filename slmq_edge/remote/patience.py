"""How long a lost link is put up with: tries further and further apart, until a limit."""

from __future__ import annotations

import time
from collections.abc import Callable

from slmq_edge.remote.transport import LinkLost

FIRST_SECONDS, MOST_SECONDS = 0.5, 10.0


class Patience:
    """Counts the time since the link was last known to be there."""

    def __init__(
        self,
        limit_seconds: float,
        note: Callable[[str], None] = lambda text: None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._note, self._sleep, self._clock = limit_seconds, note, sleep, clock
        self.reset()

    def reset(self) -> None:
        """The link is there."""
        self._since: float | None = None
        self._pause = FIRST_SECONDS

    def again(self, error: LinkLost) -> None:
        """Wait before the next try.

        Raises:
            LinkLost: ``error``, when the limit has passed since the first of these.
        """
        now = self._clock()
        if self._since is None:
            self._since = now
        left = self._limit - (now - self._since)
        if left <= 0:
            raise error
        pause = min(self._pause, left)
        self._note(f"{error}; trying again in {pause:.1f} s")
        self._sleep(pause)
        self._pause = min(2 * self._pause, MOST_SECONDS)
