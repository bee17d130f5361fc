"""How a device is measured: one adapter per kind. Python 3.8, standard library only.

Adding a kind is a file and a line in `PROFILES`.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Protocol

from slmq_edge.errors import NotFound, unknown
from slmq_edge.profiles.cpu import Cpu
from slmq_edge.profiles.fake import Fake


class Profile(Protocol):
    """What a measurement needs from a machine; nothing more."""

    def reset_peak(self) -> None:
        """Begin a phase: from here on, peaks are counted anew."""

    def memory(self) -> Mapping[str, int | None]:
        """Return bytes by kind, now. None where this machine does not say."""

    def energy(self) -> float | None:
        """Return joules since the first call. None where this machine does not say."""

    def facts(self) -> Mapping[str, Any]:
        """Return the kind of adapter, and a reason for every None."""


PROFILES: dict[str, Callable[[], Profile]] = {"cpu": Cpu, "fake": Fake}


def load(kind: str) -> Profile:
    if kind not in PROFILES:
        raise NotFound(unknown("kind of machine", kind, tuple(PROFILES)))
    return PROFILES[kind]()
