"""A Linux process on its CPU: memory from /proc, no privilege needed.

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


class Cpu:
    def __init__(self, root: str = "/") -> None:
        self._status = Path(root) / "proc/self/status"
        self._clear_refs = Path(root) / "proc/self/clear_refs"
        self._reasons: dict[str, str] = {}

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

    def facts(self) -> Mapping[str, Any]:
        return {"kind": "cpu", "reasons": dict(self._reasons)}
