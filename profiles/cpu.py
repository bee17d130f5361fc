"""A Linux process on its CPU: energy from RAPL, which root alone may read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

from slmq_edge.profiles.linux import Linux

if TYPE_CHECKING:
    from slmq_edge.profiles.board import Board

POWERCAP = "sys/class/powercap"
# Packages alone: their subzones (intel-rapl:0:1) are parts of them, psys has them as its part.
PACKAGE = re.compile(r"intel-rapl:\d+")


class Cpu(Linux):
    kind = "cpu"

    def __init__(self, root: str = "/") -> None:
        super().__init__(root)
        self._powercap = self._root / POWERCAP
        self._counters: dict[Path, int] = {}
        self._microjoules = 0

    @classmethod
    def of(cls, board: Board) -> Cpu:
        return cls(board.root)

    def energy(self) -> float | None:
        """Joules that all processor packages took since the first call: the machine's, not ours.

        A counter runs over (max_energy_range_uj) within minutes under load, and one overrun is
        seen from one call to the next: call more often than that. None, for good, from the first
        counter that cannot be read.
        """
        if "energy" in self._reasons:
            return None
        try:
            packages = sorted(path for path in self._powercap.glob("*") if _is_package(path))
            for package in packages:
                self._microjoules += self._since_last(package)
        except PermissionError:
            self._reasons["energy"] = "the RAPL counters are readable by root alone"
        except (OSError, ValueError) as error:
            self._reasons["energy"] = f"a RAPL counter cannot be read: {error}"
        else:
            if packages:
                return self._microjoules / 1e6
            self._reasons["energy"] = "no RAPL counter in /sys/class/powercap"
        return None

    def facts(self) -> Mapping[str, Any]:
        return {**super().facts(), "energy_of": "the processor packages"}

    def _since_last(self, package: Path) -> int:
        now = int((package / "energy_uj").read_text())
        took = now - self._counters.setdefault(package, now)
        self._counters[package] = now
        return took if took >= 0 else took + int((package / "max_energy_range_uj").read_text())


def _is_package(path: Path) -> bool:
    if PACKAGE.fullmatch(path.name) is None:
        return False
    return (path / "name").read_text().startswith("package")
