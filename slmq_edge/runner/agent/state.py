"""The state of a run on the device: one small JSON file, always whole, and whether it still holds.

===========================  ===============================================================
none                         nobody has started it
running                      its supervisor lives
done                         nothing is missing in its journal
failed                       a refusal, or our bug: ``refusal`` or ``text`` says which
killed                       SIGKILL, and no trace of the kernel having wanted memory
oom_killed                   the kernel ended it for want of memory
oom_error                    an allocation failed
device_oom_fragmented        a Jetson had no stretch of free memory that was long enough
deadline                     it took longer than it was given
stopped                      somebody asked for it
lost                         its supervisor is gone: a reboot, a power cut, a kill
===========================  ===============================================================

All but ``running`` may be started again: what the journal holds is never taken twice.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, Mapping

from slmq_edge.errors import SlmqError

STATE, JOB, JOURNAL, ECHO, WORDS, STOP = (
    "state.json",
    "job.json",
    "journal.jsonl",
    "stdout",
    "log",
    "stop",  # there while somebody wants the run to end
)
LOCK = "device.lock"
RUNNING, DONE, LOST = "running", "done", "lost"
BOOT_ID = "proc/sys/kernel/random/boot_id"

State = Dict[str, Any]


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the state: whoever reads sees the old one or the new one, after a power cut too."""
    try:
        descriptor, name = tempfile.mkstemp(dir=str(folder), prefix=f".{STATE}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, folder / STATE)
    except OSError as error:
        raise SlmqError(f"cannot write {folder / STATE}: {error.strerror}") from error


def read(folder: Path, root: str = "/") -> State:
    """Return the state as it is now; ``running`` is believed only where its process lives."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"state": "none"}
    if not isinstance(state, dict):
        return {"state": "none"}
    if state.get("state") != RUNNING:
        return state
    if state.get("boot_id") != boot_id(root):
        return {**state, "state": LOST, "text": "the device has been started anew since"}
    if not alive(state.get("pid"), state.get("pid_ticks"), root):
        return {**state, "state": LOST, "text": "its processes are gone, and nothing says why"}
    return state


def boot_id(root: str = "/") -> str | None:
    """Return what names this start of the system; another one means that there was a reboot."""
    try:
        return (Path(root) / BOOT_ID).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def ticks(pid: int, root: str = "/") -> int | None:
    """Return when a process was started, in clock ticks since boot; None where there is none.

    With its number this names a process: numbers are used again. A zombie is none.
    """
    try:
        # The first thread's, which is the process's: an emulator makes up a process's own.
        of_thread = Path(root) / "proc" / str(pid) / "task" / str(pid) / "stat"
        stat = of_thread.read_text(encoding="utf-8")
        fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def alive(pid: object, started: object, root: str = "/") -> bool:
    return type(pid) is int and started is not None and ticks(pid, root) == started
