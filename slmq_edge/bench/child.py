"""A cell's process: its own session, its own log; it ends with us, however we end.

It and all that it starts carry a mark in their environment. Where the kernel does not end what a
killed bench has started, the next one finds it by this mark, and ends it before it works.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import slmq_edge
from slmq_edge.bench.cells import PROGRAM, Cell
from slmq_edge.errors import SlmqError

MODULE, MARK = "slmq_edge", "SLMQ_EDGE_BENCH"
PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 10.0  # between Ctrl-C and SIGKILL
STRAY_SECONDS = 10.0  # for a process to be gone behind SIGKILL


@dataclass(frozen=True)
class Child:
    """A cell that runs. began: time.monotonic(). log_start: where its words begin in the log."""

    cell: Cell
    process: subprocess.Popen[bytes]
    began: float
    started: str
    log: Path
    log_start: int


def start(
    out: Path,
    cell: Cell,
    mark: str,
    at: str,
    module: str = MODULE,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Child:
    """Start a cell in ``out``; its words are added to its log behind a line of their own.

    module: what its command is of. variables: of its environment, over ours.
    """
    log = out / "cells" / cell.id / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as words:
        program = PROGRAM if module == MODULE else module
        words.write(f"--- {at}: {program} {' '.join(cell.command)}\n".encode())
        words.flush()
        log_start = words.tell()
        process = subprocess.Popen(
            # -P: a folder there by the name of a module must not stand in for it.
            [sys.executable, "-P", "-m", module, *cell.command],
            cwd=out,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env={**_variables(mark), **variables},
            start_new_session=True,
            preexec_fn=_end_with(os.getpid()),
        )
    return Child(cell, process, time.monotonic(), at, log, log_start)


def _variables(mark: str) -> dict[str, str]:
    home = str(Path(slmq_edge.__file__).absolute().parent.parent)
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), MARK: mark}


def _end_with(parent: int):  # type: ignore[no-untyped-def]  # of subprocess's own kind
    def prepare() -> None:
        # Where we run in the background Ctrl-C is ignored, and a cell must hear of it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was told
            os._exit(1)

    return prepare


def wait(children: Sequence[Child], seconds: float) -> None:
    """Return when one of them has ended, or after so many seconds."""
    with contextlib.ExitStack() as stack:
        try:
            opened = [os.pidfd_open(child.process.pid) for child in children]
        except (AttributeError, OSError):  # no Linux, an old one, or out of descriptors
            time.sleep(min(seconds, 0.1))
            return
        for descriptor in opened:
            stack.callback(os.close, descriptor)
        select.select(opened, [], [], seconds)


def ended_by(child: Child) -> int | None:
    """The exit code, 128 + n behind signal n; ``None`` while it runs."""
    code = child.process.poll()
    if code is None:
        return None
    _signal_group(child, signal.SIGKILL)  # what it has left behind
    return code if code >= 0 else 128 - code


def interrupt(children: Sequence[Child]) -> None:
    """End them as Ctrl-C would, so that each says and keeps what it has; then by force."""
    for child in children:
        _signal_group(child, signal.SIGINT)
    limit = time.monotonic() + GRACE_SECONDS
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(limit - time.monotonic(), 0.01))
        _signal_group(child, signal.SIGKILL)
        child.process.wait()


def _signal_group(child: Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)


def end_strays(mark: str) -> int:
    """End what a killed bench has left running here; returns how many processes that were.

    Raises:
        SlmqError: one that does not end.
    """
    found = _marked(mark)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    limit = time.monotonic() + STRAY_SECONDS
    while left := _marked(mark):
        if time.monotonic() > limit:
            raise SlmqError(f"process {left[0]} of an earlier bench does not end: end it by hand")
        time.sleep(0.05)
    return len(found)


def _marked(mark: str) -> list[int]:
    """Processes of ours that carry the mark; none where there is no /proc."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]
