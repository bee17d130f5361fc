"""Usage: python -m tests.supervised ORDER, a supervisor of any Python program, and its stand-ins.

ORDER is JSON: the fields of `supervise.Order`, and ``program``, the text of the runner.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slmq_edge.runner import resume
from slmq_edge.runner.agent import state, supervise

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 30.0
# Says that it is there, then does nothing for long.
SLEEPS = "import time\nopen('there', 'w').close()\ntime.sleep(60)\n"


def main(order: str) -> int:
    fields = json.loads(order)
    folder = Path(fields.pop("folder"))
    (folder / "program.py").write_text(fields.pop("program"))
    return supervise.supervise(supervise.Order(folder, **fields, runner=("program.py",)))


def begin(
    folder: Path, program: str, *, enter: Callable[[], object] | None = None, **fields: Any
) -> subprocess.Popen[bytes]:
    """Start a supervisor of ``program`` in a process of its own. enter: done in it, first."""
    fields = {"deadline_seconds": 60.0, "grace_seconds": 0.5, **fields}
    order = json.dumps({"folder": str(folder), "program": program, **fields})
    held = [] if fields.get("lock") is None else [fields["lock"]]
    command = [sys.executable, "-m", "tests.supervised", order]
    return subprocess.Popen(command, cwd=ROOT, preexec_fn=enter, pass_fds=held)


def ended(folder: Path, program: str, **fields: Any) -> state.State:
    """Supervise ``program`` to its end, and return the state that is left."""
    with begin(folder, program, **fields) as supervisor:
        supervisor.wait(PATIENCE_SECONDS)
    return state.read(folder)


def until(true: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait for something to become true, and return it."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = true()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def gone(pids: Sequence[int]) -> bool:
    return all(state.ticks(pid) is None for pid in pids)


def attempt(events: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the repetitions that count, in the order in which they were taken."""
    return [e["index"] for e in resume.attempt(events) if e["event"] == "repetition"]


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    sys.exit(main(sys.argv[1]))
