"""Where a bundle runs: here in a child process, on a board the same runner over ssh.

`slmq_edge.remote.run.Remote` is the other machine.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from slmq_edge import devices, errors
from slmq_edge.errors import SlmqError
from slmq_edge.profiles import Board
from slmq_edge.remote.transport import started
from slmq_edge.results import Device
from slmq_edge.runner import environment, journal, on_torch, runtimes, work
from slmq_edge.runner.look import look
from slmq_edge.runner.work import Work

GPU = "cuda"  # the adapter of one that has no sheet
JETSON = "jetson"  # the adapter that has rails to choose among
LAST_WORDS = 3  # lines of a dead child's stderr that are worth repeating

Progress = Callable[[Mapping[str, Any]], None]


class Machine(Protocol):
    """Where a job runs."""

    @property
    def seen(self) -> Mapping[str, Any]:
        """What it says of itself; see `runner.look.look`."""

    def cores(self) -> int:
        """Cores that a process may use: the default of ``--threads``."""

    def device(self, place: runtimes.Place) -> tuple[Device, Board]:
        """What this machine is, and what its profile must be told.

        Raises:
            SlmqError: it cannot run this bundle; nothing has been sent or started.
        """

    def run(self, work: Work, progress: Progress) -> None:
        """Return when ``work.journal``, a file here, holds all events of the finished job.

        Raises:
            SlmqError: the job was refused or ended; what it had taken is kept.
        """

    def forget(self) -> None:
        """What it was for is written: whatever the machine kept of its jobs may go."""


def of_facts(facts: devices.Facts, gpu: str | None) -> tuple[Device, Board]:
    """A machine, or the GPU of it that runs; on a Jetson the two are one.

    gpu: what it calls itself, where a bundle runs on one; without a sheet it keeps that name.
    """
    found = facts if gpu is None or facts.kind == JETSON else devices.of_gpu(gpu)
    if found is None:
        return Device(str(gpu), GPU, {}), Board(str(gpu))
    return Device(found.name, found.kind, found.as_json()), devices.board(found)


class Local:
    """This machine, in a child process. root: where its /proc and /sys are."""

    def __init__(self, root: str = "/") -> None:
        self._root = root

    @functools.cached_property
    def seen(self) -> Mapping[str, Any]:
        """See `Machine`; asked once."""
        return look(self._root)

    def cores(self) -> int:
        return environment.cores()

    def device(self, place: runtimes.Place) -> tuple[Device, Board]:
        gpu = runtimes.of(place).check(place).get("gpu")
        device, board = of_facts(devices.detect(self.seen), gpu)
        return device, board._replace(root=self._root)

    def run(self, work: Work, progress: Progress) -> None:
        _run_child(work, progress)

    def forget(self) -> None:
        pass


def _run_child(task: Work, progress: Progress) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        job_file, errors_file = Path(scratch) / "job.json", Path(scratch) / "stderr"
        job, variables = _on_its_gpu(task)
        work.write(job, job_file)
        command = [sys.executable, "-m", "slmq_edge.runner", str(job_file)]
        refusal: dict[str, str] = {}
        with (
            errors_file.open("wb") as stderr,
            started(command, stdout=subprocess.PIPE, stderr=stderr, env=variables) as child,
        ):
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    refusal = _follow(line, progress) or refusal
            except BaseException:
                progress({"event": "note", "text": _kept(task), "done": 0})
                raise
        if child.returncode != 0:
            words = errors_file.read_text(encoding="utf-8", errors="replace")
            _fail(child.returncode, refusal, words, task, child.pid)


def _on_its_gpu(task: Work) -> tuple[Work, dict[str, str]]:
    """A job for cuda:N, as one of a process that sees this GPU alone; and that one's variables."""
    only = on_torch.visible(task.torch_device)
    return (task.on(on_torch.CUDA) if only else task), {**os.environ, **only}


def _kept(task: Work) -> str:
    """What an interrupted run leaves here, and what to do with it."""
    events = journal.read(task.journal) if task.journal.exists() else []
    count = sum(journal.taken(event) for event in events)
    if not count:
        return f"no {task.unit} were taken yet"
    return f"{count} {task.unit} are kept in {task.journal}: the same command goes on"


def _follow(line: bytes, progress: Progress) -> dict[str, str] | None:
    """Pass an event on; return the child's refusal if the line is one."""
    event = journal.parse_event(line)
    if event is not None:
        progress(event)
        return None
    try:
        document = json.loads(line)
    except ValueError:
        return None  # a library wrote to stdout
    if isinstance(document, dict) and document.get("event") == "note":
        progress(document)
        return None
    is_refusal = isinstance(document, dict) and set(document) == {"error", "text"}
    return document if is_refusal else None


def _fail(code: int, refusal: Mapping[str, str], words: str, task: Work, pid: int) -> None:
    """Raise what ended the child: its own refusal, a signal, or our bug."""
    log = task.journal
    events = journal.read(log) if log.exists() else []
    kept = sum(journal.taken(event) for event in events)
    if refusal:
        begins = [event["pid"] for event in events if event["event"] == "begin"]
        if begins == [pid] and not kept:
            log.unlink()  # ours alone, and nothing was taken
        raise errors.as_raised(refusal["error"], refusal["text"])
    last = " | ".join(words.strip().splitlines()[-LAST_WORDS:]) or "it said nothing"
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise SlmqError(
            f"the runner was ended by {name}{hint}: {last}; {kept} {task.unit} are kept in "
            f"{log}: the same command resumes"
        )
    raise RuntimeError(f"the runner failed with exit code {code}:\n{words}")
