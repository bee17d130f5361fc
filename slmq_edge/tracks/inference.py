"""The inference track: run a bundle on a machine, this one or a board, and lose nothing.

Here a child process runs it, on a board the same runner over ssh (`slmq_edge.remote`). The journal
lies next to the output until run.json is written, so that a run that was killed is taken up again
where it stopped.
"""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slmq_edge import bounds, devices, errors
from slmq_edge.assembly import artifact_of, assemble
from slmq_edge.errors import SlmqError, UsageError
from slmq_edge.files import check_output, existing_bundle
from slmq_edge.profiles import Board
from slmq_edge.remote.transport import started
from slmq_edge.results import Device, Run, save
from slmq_edge.runner import job, journal, measure, runtimes
from slmq_edge.runner.look import look
from slmq_edge.runner.measure import Workload

GPU = "cuda"  # the adapter of one that has no sheet
JETSON = "jetson"  # the adapter that has rails to choose among
LAST_WORDS = 3  # lines of a dead child's stderr that are worth repeating

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Options:
    """How a bundle is measured; see `runner.job.Job` for the seconds and ``again``.

    runtime: what the bundle must be for, a key of `runtimes.FAMILIES`; None: whatever it is.
    engines: where engines for TensorRT are; None: in the bundle's folder. power_source: where
    rails are read, where that is asked for.
    """

    allow_inexact: bool = False
    runtime: str | None = None
    engines: Path | None = None
    power_seconds: float = 2.0
    cool_down_seconds: float = 0.0
    power_source: str | None = None
    again: bool = True


class Machine(Protocol):
    """Where a job runs."""

    @property
    def seen(self) -> Mapping[str, Any]:
        """What it says of itself; see `runner.look.look`."""

    def device(self, place: runtimes.Place) -> tuple[Device, Board]:
        """What this machine is, and what its profile must be told.

        Raises:
            SlmqError: it cannot run this bundle; nothing has been sent or started.
        """

    def run(self, work: job.Job, progress: Progress) -> None:
        """Return when ``work.journal``, a file here, holds all events of the finished job.

        Raises:
            SlmqError: the job was refused or ended; what it had measured is kept.
        """

    def forget(self) -> None:
        """run.json is written: whatever the machine kept of the job may go."""


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

    def device(self, place: runtimes.Place) -> tuple[Device, Board]:
        gpu = runtimes.of(place).check(place).get("gpu")
        device, board = of_facts(devices.detect(self.seen), gpu)
        return device, board._replace(root=self._root)

    def run(self, work: job.Job, progress: Progress) -> None:
        _run_child(work, progress)

    def forget(self) -> None:
        pass


def admitted(bundle: Path, workload: Workload, options: Options) -> dict[str, Any]:
    """Return the manifest of a bundle that may be measured so, by all that needs no machine.

    Raises:
        SlmqError: no bundle, one for something else, one that lacks what run.json and its bounds
            are made of at the end, or a text longer than its context.
    """
    document = existing_bundle(bundle)
    if options.runtime is not None:
        runtimes.require(bundle, document, options.runtime)
    measure.check_workload(workload, document)
    artifact_of(document, "", 0)
    bounds.card(document, workload)
    return document


def profile(
    bundle: Path,
    workload: Workload,
    output: Path,
    progress: Progress,
    options: Options = Options(),
    *,
    force: bool = False,
    machine: Machine | None = None,
) -> Run:
    """Check and measure a bundle, and write ``output`` (run.json).

    Args:
        bundle: the folder that was exported.
        workload: how many tokens, repetitions, threads.
        output: where run.json goes; the journal is ``<stem>.journal.jsonl`` beside it.
        progress: told of every event of the journal, and of our own: ``note`` (text, done), and
            before anything runs ``device`` (device, bundle, workload, seen).
        options: how.
        force: overwrite ``output``.
        machine: where it runs; None: here.

    Raises:
        SlmqError: the request, the bundle, its check or the child failed; one line says how.
    """
    check_output(output, force)
    document = admitted(bundle, workload, options)
    where = Local() if machine is None else machine
    engines = None if options.engines is None else options.engines.absolute()
    device, board = where.device(runtimes.Place(bundle, document, workload.threads, engines))
    if options.power_source is not None and device.kind != JETSON:
        raise UsageError(f"--power-source is of a Jetson, and {device.name} is none: leave it out")
    progress(
        {
            "event": "device",
            "device": device,
            "bundle": document,
            "workload": workload,
            "seen": where.seen,
        }
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_name(f"{output.stem}.journal.jsonl")
    work = job.Job(
        bundle.absolute(),
        log.absolute(),
        workload,
        device.kind,
        options.allow_inexact,
        engines,
        board._replace(power_source=options.power_source),
        options.power_seconds,
        options.cool_down_seconds,
        options.again,
    )
    where.run(work, progress)
    run = assemble(journal.read(log), device, document, workload.repetitions)
    save(run, output, force)
    log.unlink()
    where.forget()
    return run


def _run_child(work: job.Job, progress: Progress) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        job_file, errors_file = Path(scratch) / "job.json", Path(scratch) / "stderr"
        job.write(work, job_file)
        command = [sys.executable, "-m", "slmq_edge.runner", str(job_file)]
        refusal: dict[str, str] = {}
        with (
            errors_file.open("wb") as stderr,
            started(command, stdout=subprocess.PIPE, stderr=stderr) as child,
        ):
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    refusal = _follow(line, progress) or refusal
            except BaseException:
                progress({"event": "note", "text": _kept(work.journal), "done": 0})
                raise
        if child.returncode != 0:
            words = errors_file.read_text(encoding="utf-8", errors="replace")
            _fail(child.returncode, refusal, words, work.journal, child.pid)


def _kept(log: Path) -> str:
    """What an interrupted run leaves here, and what to do with it."""
    events = journal.read(log) if log.exists() else []
    count = sum(event["event"] == "repetition" for event in events)
    if not count:
        return "nothing was measured yet"
    return f"{count} repetitions are kept in {log}: the same command goes on"


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


def _fail(code: int, refusal: Mapping[str, str], words: str, log: Path, pid: int) -> None:
    """Raise what ended the child: its own refusal, a signal, or our bug."""
    events = journal.read(log) if log.exists() else []
    kept = sum(event["event"] == "repetition" for event in events)
    if refusal:
        begins = [event["pid"] for event in events if event["event"] == "begin"]
        if begins == [pid] and not kept:
            log.unlink()  # ours alone, and nothing was measured
        raise errors.as_raised(refusal["error"], refusal["text"])
    last = " | ".join(words.strip().splitlines()[-LAST_WORDS:]) or "it said nothing"
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise SlmqError(
            f"the runner was ended by {name}{hint}: {last}; {kept} repetitions are kept in "
            f"{log}: the same command resumes"
        )
    raise RuntimeError(f"the runner failed with exit code {code}:\n{words}")
