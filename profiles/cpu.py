"""A Linux process on its CPU: memory from /proc, energy from RAPL; no privilege needed for memory.

getrusage is never asked: its peak is inherited over fork and exec, so a small child of a
large parent reports the parent's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Mapping

FIELDS = {  # what we call it -> the line of /proc/self/status
    "cpu_peak_rss": "VmHWM",  # anonymous and file pages, at most since the last reset
    "cpu_rss_anon": "RssAnon",
    "cpu_rss_file": "RssFile",  # mapped files: the kernel can take these pages back
}
RESET_PEAK = "5"  # proc(5): resets the high-water mark to the present resident size

POWERCAP = "sys/class/powercap"
# Packages alone: their subzones (intel-rapl:0:1) are parts of them, psys has them as its part.
PACKAGE = re.compile(r"intel-rapl:\d+")


class Cpu:
    def __init__(self, root: str = "/") -> None:
        self._status = Path(root) / "proc/self/status"
        self._clear_refs = Path(root) / "proc/self/clear_refs"
        self._powercap = Path(root) / POWERCAP
        self._reasons: dict[str, str] = {}
        self._counters: dict[Path, int] = {}
        self._microjoules = 0

    def reset_peak(self) -> None:
        """Without a reset the peak is that of another phase: from then on it is None."""
        try:
            self._clear_refs.write_text(RESET_PEAK)
        except OSError as error:
            self._reasons["cpu_peak_rss"] = f"no reset of the peak: {error.strerror}"

    def memory(self) -> dict[str, int | None]:
        try:
            status = self._status.read_text()
        except OSError as error:
            reason = f"no /proc/self/status: {error.strerror}"
            self._reasons.update(dict.fromkeys(FIELDS, reason))
            return dict.fromkeys(FIELDS)
        found: dict[str, int | None] = {}
        for kind, field in FIELDS.items():
            line = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
            if line is None:
                self._reasons.setdefault(kind, f"/proc/self/status has no {field}")
            known = line is not None and kind not in self._reasons
            found[kind] = int(line.group(1)) * 1024 if line is not None and known else None
        return found

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

    def _since_last(self, package: Path) -> int:
        now = int((package / "energy_uj").read_text())
        took = now - self._counters.setdefault(package, now)
        self._counters[package] = now
        return took if took >= 0 else took + int((package / "max_energy_range_uj").read_text())

    def facts(self) -> Mapping[str, Any]:
        return {"kind": "cpu", "reasons": dict(self._reasons)}


def _is_package(path: Path) -> bool:
    if PACKAGE.fullmatch(path.name) is None:
        return False
    return (path / "name").read_text().startswith("package")
