"""How a runner ended, told from what is left: its exit code, the kernel's counters, its last words.

A kill for want of memory leaves no word of the process itself. The kernel counts it, though: in the
control group (``memory.oom_control`` of version 1, ``memory.events`` of version 2), since Linux
4.13 for the whole machine in ``/proc/vmstat``, and it writes a line to its log. SIGKILL with none
of these is only a kill.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple

from slmq_edge.runner.agent import state

LAST_WORDS = 3  # lines worth repeating
FRAGMENTED = re.compile(r"NvMap\w*.*\berror 12\b")
OUT_OF_MEMORY = re.compile(
    r"MemoryError|bad_alloc|out of memory|cudaErrorMemoryAllocation|"
    r"Failed to allocate memory|Cannot allocate memory",
    re.IGNORECASE,
)
# Where the count of kills stands: file below the root, by controller of /proc/self/cgroup.
COUNTERS = {
    "memory": ("sys/fs/cgroup/memory{}/memory.oom_control",),
    "": ("sys/fs/cgroup{}/memory.events", "sys/fs/cgroup/unified{}/memory.events"),
}
COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
ADVICE = {
    "oom_killed": "the kernel ended it for want of memory: close what else runs there, or take a "
    "smaller model, fewer bits or a shorter text",
    "oom_error": "it was given no more memory: close what else runs there, or take a smaller "
    "model, fewer bits or a shorter text",
    "device_oom_fragmented": "NvMap error 12: the board had no stretch of free memory that was "
    "long enough, though there may be enough in all; a reboot of the board and the same command "
    "help (L4T 36.4.7 is known for it, 36.5.2 is not)",
}


class Evidence(NamedTuple):
    """code: as of subprocess, -9 for SIGKILL. words: the end of what it wrote. refusal: its own."""

    code: int
    kernel_killed: bool = False
    words: str = ""
    refusal: Mapping[str, str] | None = None


def classify(found: Evidence) -> tuple[str, str]:
    """Return the state of `state` that an end amounts to, and a line of text about it."""
    if found.code == 0:
        return state.DONE, ""
    words = found.words + (found.refusal["text"] if found.refusal else "")
    kill = found.code in (-signal.SIGKILL, 128 + signal.SIGKILL)
    if FRAGMENTED.search(words):
        name = "device_oom_fragmented"
    elif kill and found.kernel_killed:
        name = "oom_killed"
    elif OUT_OF_MEMORY.search(words):
        name = "oom_error"
    elif found.refusal is not None:
        return "failed", found.refusal["text"]
    else:
        return _unexplained(found, kill)
    return name, ADVICE[name]


def _unexplained(found: Evidence, kill: bool) -> tuple[str, str]:
    last = " | ".join(found.words.strip().splitlines()[-LAST_WORDS:]) or "it said nothing"
    if kill:
        return "killed", "it was ended by SIGKILL (out of memory?)"
    if found.code in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        # Nobody of ours sends these to it alone: the system is going down.
        return state.LOST, f"it was ended by {signal.Signals(-found.code).name} from outside"
    if found.code < 0:
        return "failed", f"it was ended by {_signal(-found.code)}: {last}"
    return "failed", f"it ended with exit code {found.code}: {last}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def kills(root: str = "/") -> Mapping[str, int]:
    """Return how often the kernel has killed for want of memory, by the file that says so."""
    found = {}
    for path in [*_group_files(Path(root)), Path(root) / "proc/vmstat"]:
        try:
            count = COUNT.search(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if count is not None:
            found[str(path)] = int(count.group(1))
    return found


def rose(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    """Whether the kernel has killed in between, by any counter that could be read both times."""
    return any(count > before.get(path, count) for path, count in after.items())


def _group_files(root: Path) -> Iterator[Path]:
    """The counters of this process's control groups."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):  # version 2 has one line, which names none
            for pattern in COUNTERS.get(controller, ()):
                yield root / pattern.format(group.rstrip("/"))
