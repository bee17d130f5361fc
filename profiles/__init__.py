"""How a device is measured: one adapter per kind. Python 3.8, standard library only.

Adding a kind is a file and a line in `PROFILES`. What a machine does not tell is None, never 0, and
`facts` says why.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Protocol

from slmq_edge.errors import NotFound, unknown
from slmq_edge.profiles.board import STATE, Board, Mode
from slmq_edge.profiles.cpu import Cpu
from slmq_edge.profiles.cuda import Cuda
from slmq_edge.profiles.fake import Fake
from slmq_edge.profiles.jetson import Jetson
from slmq_edge.profiles.raspberrypi import RaspberryPi


class Profile(Protocol):
    """What a measurement needs from a machine; nothing more. Nobody's call may raise."""

    def reset_peak(self) -> None:
        """Begin a phase: from here on, peaks are counted anew."""

    def memory(self) -> Mapping[str, int | None]:
        """Return bytes of this process by kind, now. A kind with ``peak`` is a high-water mark."""

    def system(self) -> Mapping[str, float | None]:
        """Return what the whole machine is up to: ``*_bytes``, ``load_average``, counts."""

    def power(self) -> Mapping[str, float | None]:
        """Return watts by rail, now; empty where there is no sensor. Takes a millisecond or so.

        The very mapping that was returned before: nothing new has come since.
        """

    def rest(self) -> None:
        """End what `power` runs beside the measurement, until it is called again."""

    def energy(self) -> float | None:
        """Return joules since the first call, where a counter tells; `facts` says what of."""

    def clocks(self) -> Mapping[str, float | None]:
        """Return hertz by domain, now."""

    def temperatures(self) -> Mapping[str, float | None]:
        """Return degrees Celsius by zone, now."""

    def throttling(self) -> Mapping[str, int | None]:
        """Return, by cause, events since boot, or 0 and 1 where the name ends with `STATE`."""

    def mode(self) -> Mode | None:
        """Return the power mode that the machine is in."""

    def facts(self) -> Mapping[str, Any]:
        """Return what a reader of these figures must know. JSON.

        ``kind`` of adapter; ``reasons``: why, for every None; ``total_rails``: those of `power`
        that add up to the device here, empty where none do; ``energy_of``: what `energy` and they
        measure, where that is not all of the machine; and what an adapter has to add.
        """

    def close(self) -> None:
        """End what was started for these readings, and nothing else."""


__all__ = ["PROFILES", "STATE", "Board", "Mode", "Profile", "load"]

PROFILES: dict[str, Callable[[Board], Profile]] = {
    "cpu": Cpu.of,
    "cuda": Cuda.of,
    "fake": Fake.of,
    "jetson": Jetson.of,
    "raspberrypi": RaspberryPi.of,
}


def load(kind: str, board: Board = Board()) -> Profile:  # noqa: B008  a Board is immutable
    if kind not in PROFILES:
        raise NotFound(unknown("kind of machine", kind, tuple(PROFILES)))
    return PROFILES[kind](board)
