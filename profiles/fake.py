"""A machine that does as it is told, with its own clock: for tests, ours and yours."""

from __future__ import annotations

from typing import Any, Mapping, Sequence


class Fake:
    """Returns the given readings in turn, the last one for ever."""

    def __init__(
        self,
        readings: Sequence[Mapping[str, int | None]] = ({},),
        energies: Sequence[float | None] = (None,),
    ) -> None:
        self._readings = list(readings)
        self._energies = list(energies)
        self.resets = 0

    def reset_peak(self) -> None:
        self.resets += 1

    def memory(self) -> Mapping[str, int | None]:
        return self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]

    def energy(self) -> float | None:
        return self._energies.pop(0) if len(self._energies) > 1 else self._energies[0]

    def facts(self) -> Mapping[str, Any]:
        return {"kind": "fake", "reasons": {"energy": "a fake has none"}}


class FakeClock:
    """A clock in seconds that moves only when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
