"""Rails as jetson-stats tells them, for boards whose sheet asks for it: a client of its service.

jetson-stats is AGPL: it is imported where it is installed, and nothing of it is in here. Its
documented interface: ``jtop(interval=)`` as a context, `ok` which waits for the next reading, and
`power` with ``rail`` and ``tot``, in milliwatts. Its ``avg`` is no mean over a window and is left
alone, as is the sum that it calls total where no rail measures the input. Nothing here has met a
board or the real package.
"""

from __future__ import annotations

import importlib
from typing import Any

from slmq_edge.profiles.follower import Follower

INTERVAL_SECONDS = 0.1


class Jtop(Follower["dict[str, float | None]"]):
    name = "jtop"

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        super().__init__(interval_seconds)
        self._interval_seconds = interval_seconds
        self.names: tuple[str, ...] = ()

    @property
    def reasons(self) -> dict[str, str]:
        return dict.fromkeys(self.names, self.reason) if self.reason else {}

    def watts(self) -> dict[str, float | None]:
        found = self.latest()
        return dict.fromkeys(self.names) if found is None else found

    def _follow(self) -> str:
        try:
            module: Any = importlib.import_module("jtop")
        except ImportError:
            return "jtop is not installed: sudo pip3 install jetson-stats, then reboot"
        with module.jtop(interval=self._interval_seconds) as connection:
            while not self._closing.is_set() and connection.ok():
                found = _rails(connection.power)
                self.names = tuple(found)
                self._keep(found)
        return "jtop's service ended the connection"


def _rails(power: Any) -> dict[str, float | None]:
    """Return watts by rail; the total, too, where it has a rail's name."""
    found = {str(name): _watts(rail) for name, rail in power["rail"].items()}
    total = power.get("tot", {})
    if isinstance(total.get("name"), str):
        found.setdefault(total["name"], _watts(total))
    return found


def _watts(rail: Any) -> float | None:
    milliwatts = rail.get("power")
    return milliwatts / 1000 if isinstance(milliwatts, (int, float)) else None
