"""A process on Linux: its memory, and what every machine's kernel tells of clocks and heat.

getrusage is never asked: its peak is inherited over fork and exec, so a small child of a
large parent reports the parent's. Nothing here needs a privilege.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

if TYPE_CHECKING:
    from slmq_edge.profiles.board import Mode

FIELDS = {  # what we call it -> the line of /proc/self/status
    "cpu_peak_rss": "VmHWM",  # anonymous and file pages, at most since the last reset
    "cpu_rss_anon": "RssAnon",
    "cpu_rss_file": "RssFile",  # mapped files: the kernel can take these pages back
}
STATE_LINES = {  # of the machine's state -> why it is not told
    "memory_available_bytes": "/proc/meminfo has no MemAvailable",
    "swap_used_bytes": "/proc/meminfo has no SwapTotal and SwapFree",
    "load_average": "no number in /proc/loadavg",
}
RESET_PEAK = "5"  # proc(5): resets the high-water mark to the present resident size
MACHINE = "sys/devices/system/cpu"
THERMAL = "sys/class/thermal"


class Linux:
    """What all adapters share; one that knows its machine better overrides."""

    kind = "linux"

    def __init__(self, root: str = "/") -> None:
        self._root = Path(root)
        self._status = self._root / "proc/self/status"
        self._clear_refs = self._root / "proc/self/clear_refs"
        self._reasons: dict[str, str] = {}

    def reset_peak(self) -> None:
        """Without a reset the peak is that of another phase: from then on it is None."""
        try:
            self._clear_refs.write_text(RESET_PEAK)
        except OSError as error:
            self._reasons["cpu_peak_rss"] = f"no reset of the peak: {error.strerror}"

    def memory(self) -> dict[str, int | None]:
        try:
            status = self._status.read_text(encoding="utf-8", errors="replace")  # a name's bytes
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

    def system(self) -> dict[str, float | None]:
        """memory_available_bytes, swap_used_bytes, load_average."""
        free, total = self._meminfo("SwapFree"), self._meminfo("SwapTotal")
        found = {
            "memory_available_bytes": self._meminfo("MemAvailable"),
            "swap_used_bytes": None if free is None or total is None else total - free,
            "load_average": self._number("proc/loadavg"),
        }
        for name, value in found.items():
            if value is None:
                self._reasons.setdefault(name, STATE_LINES[name])
        return found

    def power(self) -> Mapping[str, float | None]:
        return {}

    def rest(self) -> None:
        pass

    def energy(self) -> float | None:
        self._reasons.setdefault("energy", "this kind of machine has no counter of energy")
        return None

    def clocks(self) -> Mapping[str, float | None]:
        """cpu: the fastest core's, as cpufreq tells; per core it says little about one thread."""
        files = sorted(self._root.glob(f"{MACHINE}/cpu[0-9]*/cpufreq/scaling_cur_freq"))
        known = [value for value in map(self._number, files) if value]
        if not known:
            self._reasons.setdefault("clock", "no cpufreq in /sys")
            return {"cpu": None}
        return {"cpu": max(known) * 1000}

    def temperatures(self) -> Mapping[str, float | None]:
        """By the type of the zone. -256 degrees, or less, means that the sensor is off."""
        found: dict[str, float | None] = {}
        for zone in sorted(self._root.glob(f"{THERMAL}/thermal_zone[0-9]*")):
            name, value = self._text(zone / "type"), self._number(zone / "temp")
            if name is not None:
                celsius = None if value is None or value <= -255_000 else value / 1000
                name = name if name not in found else f"{name}-{zone.name[12:]}"
                found[name] = celsius
                if celsius is None:
                    self._reasons.setdefault(name, "this sensor is off, or tells no number")
        return found

    def throttling(self) -> Mapping[str, int | None]:
        """cpu_core, cpu_package: heat events, on x86."""
        found: dict[str, int | None] = {}
        for cause in ("core", "package"):
            pattern = f"{MACHINE}/cpu[0-9]*/thermal_throttle/{cause}_throttle_count"
            counts = [self._number(file) for file in self._root.glob(pattern)]
            known = [int(count) for count in counts if count is not None]
            if known:
                found[f"cpu_{cause}"] = max(known)  # a package's count stands under all its cores
        return found

    def mode(self) -> Mode | None:
        return None

    def facts(self) -> Mapping[str, Any]:
        return {"kind": self.kind, "reasons": dict(self._reasons), "total_rails": []}

    def close(self) -> None:
        pass

    def _text(self, path: Any) -> str | None:
        """A file's text below the root, stripped; None where it has none."""
        try:
            text = (self._root / path).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):  # ValueError: a driver that answers with nothing readable
            return None
        return text.strip("\0\n\t ") or None

    def _number(self, path: Any) -> float | None:
        """The first number of a file; None where there is none."""
        text = self._text(path)
        try:
            return float(text.split()[0]) if text else None
        except ValueError:
            return None

    def _meminfo(self, field: str) -> int | None:
        text = self._text("proc/meminfo") or ""
        line = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
        return int(line.group(1)) * 1024 if line else None
