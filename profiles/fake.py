"""A machine that does as it is told, with its own clock: for tests, ours and yours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Sequence

if TYPE_CHECKING:
    from slmq_edge.profiles.board import Board, Mode

# What a fake can be told to return, and what it returns untold.
READINGS: dict[str, Any] = {
    "memory": {},
    "system": {},
    "power": {},
    "energy": None,
    "clocks": {},
    "temperatures": {},
    "throttling": {},
    "mode": None,
}


class Fake:
    """Returns the readings given by name in turn, the last one of each for ever.

    Example:
        ``Fake(power=[{"VDD_IN": 4.0}, {"VDD_IN": 9.0}], total_rails=["VDD_IN"])``
    """

    def __init__(self, total_rails: Sequence[str] = (), **readings: Sequence[Any]) -> None:
        unknown = set(readings) - set(READINGS)
        if unknown:
            raise TypeError(f"a fake has no {sorted(unknown)[0]}; it has {', '.join(READINGS)}")
        self._told: dict[str, list[Any]] = {
            name: list(readings.get(name, [untold])) for name, untold in READINGS.items()
        }
        self._total_rails = list(total_rails)
        self.resets = self.rests = 0
        self.closed = False

    @classmethod
    def of(cls, board: Board) -> Fake:
        return cls()

    def reset_peak(self) -> None:
        self.resets += 1

    def memory(self) -> Mapping[str, int | None]:
        return dict(self._next("memory"))

    def system(self) -> Mapping[str, float | None]:
        return dict(self._next("system"))

    def power(self) -> Mapping[str, float | None]:
        return dict(self._next("power"))

    def rest(self) -> None:
        self.rests += 1

    def energy(self) -> float | None:
        found: float | None = self._next("energy")
        return found

    def clocks(self) -> Mapping[str, float | None]:
        return dict(self._next("clocks"))

    def temperatures(self) -> Mapping[str, float | None]:
        return dict(self._next("temperatures"))

    def throttling(self) -> Mapping[str, int | None]:
        return dict(self._next("throttling"))

    def mode(self) -> Mode | None:
        found: Mode | None = self._next("mode")
        return found

    def facts(self) -> Mapping[str, Any]:
        reasons = {"energy": "a fake has none"} if self._told["energy"] == [None] else {}
        return {"kind": "fake", "reasons": reasons, "total_rails": self._total_rails}

    def close(self) -> None:
        self.closed = True

    def _next(self, name: str) -> Any:
        told = self._told[name]
        return told.pop(0) if len(told) > 1 else told[0]


class FakeClock:
    """A clock in seconds that moves only when told; `sleep` tells it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds

    sleep = advance
