"""The supervisor: the process on the device that outlives the link and sees a run to its end.

It starts the runner in a process group of its own, ends it at the deadline or when asked to, and
writes down how it ended. The runner dies with its supervisor, and not the other way round: where
memory runs out, the kernel is told to take the runner first.

The lock of the device is a descriptor that supervisor and runner inherit: it is free again when the
last of them is gone, however they went.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import slmq_edge
from slmq_edge.runner.agent import outcome, state

GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL
WORDS_BYTES = 1 << 16  # of the end of the log that are looked at
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
RUNNER = ("-m", "slmq_edge.runner", state.JOB)
PR_SET_PDEATHSIG = 1
FIRST_TO_GO = "800"  # of oom_score_adj's 1000; raising it needs no privilege


class Order(NamedTuple):
    """What to supervise. lock: the descriptor that holds the device; None: nothing is held."""

    folder: Path
    deadline_seconds: float
    lock: int | None = None
    grace_seconds: float = GRACE_SECONDS
    runner: Sequence[str] = RUNNER


def main(arguments: Sequence[str]) -> int:
    """Supervise: a run's folder, the deadline in seconds, the number of the lock's descriptor."""
    folder, deadline, lock = arguments
    return supervise(Order(Path(folder), float(deadline), int(lock)))


def supervise(order: Order) -> int:
    """See one runner through. Returns the exit code: 0 where the run is done."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they are waited for, not handled
    folder = order.folder
    kills = outcome.kills()
    heard, said = _size(folder / state.ECHO), _size(folder / state.WORDS)
    began = {
        "state": state.RUNNING,
        "pid": os.getpid(),
        "pid_ticks": state.ticks(os.getpid()),
        "boot_id": state.boot_id(),
        "started": time.time(),
        "deadline_seconds": order.deadline_seconds,
    }
    child = _start(order)
    state.write(folder, {**began, "runner": child.pid})
    how = _wait(child, order.deadline_seconds)
    if how != "ended":
        _end(child, order.grace_seconds)
    _kill_group(child.pid)  # what the runner has left behind
    found = outcome.Evidence(
        child.returncode,
        outcome.rose(kills, outcome.kills()),
        _tail(folder / state.WORDS, said),
        _refusal(_tail(folder / state.ECHO, heard)),
    )
    name, text = _ending(how, order, found)
    ended = {
        **began,
        "state": name,
        "text": text,
        "ended": time.time(),
        "exit_code": child.returncode,
        "refusal": found.refusal,
        "words": "" if name == state.DONE else found.words,
        **_progress(folder / state.JOURNAL),
    }
    state.write(folder, ended)
    return 0 if name == state.DONE else 1


def _start(order: Order) -> subprocess.Popen[bytes]:
    supervisor = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
            stream.write(FIRST_TO_GO)
        if os.getppid() != supervisor:  # it died before the kernel was told
            os._exit(1)

    with open(order.folder / state.ECHO, "ab") as echo, open(
        order.folder / state.WORDS, "ab"
    ) as words:
        return subprocess.Popen(
            [sys.executable, *order.runner],
            stdin=subprocess.DEVNULL,
            stdout=echo,
            stderr=words,
            cwd=str(order.folder),
            env=variables(),
            pass_fds=[] if order.lock is None else [order.lock],
            start_new_session=True,
            preexec_fn=prepare,
        )


def variables() -> dict[str, str]:
    """The environment of our processes there: the package is found where it is, folder or zip."""
    home = str(Path(slmq_edge.__file__).parent.parent)
    paths = [home] + [path for path in [os.environ.get("PYTHONPATH")] if path]
    return {
        "OMP_WAIT_POLICY": "PASSIVE",  # as the command line sets it where it runs
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
    }


def _wait(child: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for the first of: the runner has ended, the deadline, somebody wants an end."""
    until = time.monotonic() + seconds
    while child.poll() is None:
        left = until - time.monotonic()
        if left <= 0:
            return "deadline"
        came = signal.sigtimedwait(SIGNALS, left)
        if came is not None and came.si_signo != signal.SIGCHLD:
            return "asked"
    return "ended"


def _end(child: subprocess.Popen[bytes], grace_seconds: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        _kill_group(child.pid)
        child.wait()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _ending(how: str, order: Order, found: outcome.Evidence) -> tuple[str, str]:
    if how == "ended" or found.code == 0:
        return outcome.classify(found)
    if how == "deadline":
        return "deadline", f"it was ended after {order.deadline_seconds:g} s, its deadline"
    if (order.folder / state.STOP).exists():
        return "stopped", "it was stopped on request"
    return state.LOST, "its supervisor was ended from outside: is the system going down?"


def _refusal(echo: str) -> Mapping[str, str] | None:
    """The runner's own last word about an error, if it had one."""
    for line in reversed(echo.splitlines()):
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict) and set(document) == {"error", "text"}:
            return {key: str(value) for key, value in document.items()}
    return None


def _progress(journal: Path) -> dict[str, Any]:
    """kept: finished repetitions, passes or scored sequences. after: the journal's last event."""
    kept: set[object] = set()
    passes: set[object] = set()
    last = None
    for event in _events(journal):
        last = event.get("event")
        if last == "again":  # those before it do not count
            kept.clear()
        elif last == "repetition":
            kept.add(event.get("index"))
        elif last == "forward":
            passes.add(event.get("index"))
        elif last == "scores":
            kept.update(range(event["first"], event["first"] + len(event["logprobs"])))
    return {"kept": len(kept) + len(passes), "after": last}


def _events(journal: Path) -> list[dict[str, Any]]:
    try:
        lines = journal.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line.decode("utf-8")))
    return [event for event in found if isinstance(event, dict)]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path, start: int) -> str:
    """The end of a file, from byte ``start`` on and at most `WORDS_BYTES`."""
    with path.open("rb") as stream:
        stream.seek(max(start, _size(path) - WORDS_BYTES))
        return stream.read().decode("utf-8", "replace")
