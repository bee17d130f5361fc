"""The inference track: run a bundle on this machine in a child process, and lose nothing.

The child is the device's runner. Its journal lies next to the output until run.json is
written, so that a run that was killed is taken up again where it stopped.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slmq_edge import devices, errors
from slmq_edge.errors import SlmqError
from slmq_edge.files import check_output, existing_bundle
from slmq_edge.results import Device, Run, artifact_of, assemble, save
from slmq_edge.runner import environment, job, journal, manifest, measure, runtimes
from slmq_edge.runner.measure import Workload

KIND, GPU = "cpu", "cuda"
LAST_WORDS = 3  # lines of a dead child's stderr that are worth repeating

Progress = Callable[[Mapping[str, Any]], None]


def profile(
    bundle: Path,
    workload: Workload,
    output: Path,
    progress: Progress,
    *,
    allow_inexact: bool = False,
    force: bool = False,
    runtime: str | None = None,
    engines: Path | None = None,
) -> Run:
    """Check and measure a bundle, and write ``output`` (run.json).

    Args:
        bundle: the folder that was exported.
        workload: how many tokens, repetitions, threads.
        output: where run.json goes; the journal is ``<stem>.journal.jsonl`` beside it.
        progress: told of every event of the journal, and of our own ``note``: text, done.
        allow_inexact: measure even where integers are not exact.
        force: overwrite ``output``.
        runtime: what the bundle must be for, a key of `runtimes.FAMILIES`; None: whatever it is.
        engines: where engines for TensorRT are; None: in the bundle's folder.

    Raises:
        SlmqError: the request, the bundle, its check or the child failed; one line says how.
    """
    check_output(output, force)
    document = existing_bundle(bundle)
    if runtime is not None:
        runtimes.require(bundle, document, runtime)
    measure.check_workload(workload, document)
    artifact_of(document, "", 0)  # what run.json would lack at the end is refused now
    engines = None if engines is None else engines.absolute()
    place = runtimes.Place(bundle, document, workload.threads, engines)
    here = runtimes.of(place).check(place)
    output.parent.mkdir(parents=True, exist_ok=True)

    device = _device(here.get("gpu"))
    log = output.with_name(f"{output.stem}.journal.jsonl")
    missing = _missing(log, bundle, workload, allow_inexact, progress, here)
    if missing:
        paths = bundle.absolute(), log.absolute()
        work = job.Job(*paths, workload, missing, KIND, allow_inexact, engines)
        _run_child(work, progress)
    run = assemble(journal.read(log), device, document, workload.repetitions)
    save(run, output, force)
    log.unlink()
    return run


def _device(gpu: str | None = None) -> Device:
    """This machine, or its GPU where that is what runs: by name, where no sheet is of it."""
    if gpu is None:
        facts = devices.detect()
        return Device(facts.name, KIND, facts.as_json())
    found = devices.of_gpu(gpu)
    return Device(gpu, GPU, {}) if found is None else Device(found.name, GPU, found.as_json())


def _missing(
    log: Path,
    bundle: Path,
    workload: Workload,
    allow_inexact: bool,
    progress: Progress,
    of_runtime: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Return the repetitions still to take; a journal of something else is removed."""
    everything = tuple(range(workload.repetitions))
    if not log.exists():
        return everything
    with journal.Journal(log):  # nobody else's
        events = journal.read(log)
        here = environment.identity(environment.capture(of_runtime=of_runtime))
        reason = _other(events, bundle, workload, allow_inexact, here)
        if reason:
            progress({"event": "note", "text": f"starting anew: {reason}", "done": 0})
            log.unlink()
            return everything
    done = {event["index"] for event in events if event["event"] == "repetition"}
    done &= set(everything)  # more or fewer may be wanted now than were then
    missing = tuple(index for index in everything if index not in done)
    text = f"resuming: {len(done)} of {len(everything)} repetitions are there already"
    progress({"event": "note", "text": text, "done": len(done)})
    return missing


def _other(
    events: list[dict[str, Any]],
    bundle: Path,
    workload: Workload,
    allow_inexact: bool,
    here: Mapping[str, Any],
) -> str | None:
    """Say how the interrupted run differs from the one asked for; None where it does not."""
    begins = [event for event in events if event["event"] == "begin"]
    if not begins:
        return "the interrupted run had not begun"
    digest = manifest.sha256(bundle / manifest.BUNDLE_FILE)
    for begin in begins:
        if begin["bundle_sha256"] != digest:
            return "the interrupted run was of another bundle"
        taken = {**begin["workload"], "repetitions": workload.repetitions}
        if taken != workload._asdict() or begin["allow_inexact"] != allow_inexact:
            return "the interrupted run had another workload"
        there = environment.identity(begin["environment"])
        changed = [name for name in here if here[name] != there[name]]
        if changed:
            return f"the environment has changed ({', '.join(changed)})"
    return None


def _run_child(work: job.Job, progress: Progress) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        job_file, errors_file = Path(scratch) / "job.json", Path(scratch) / "stderr"
        job.write(work, job_file)
        command = [sys.executable, "-m", "slmq_edge.runner", str(job_file)]
        refusal: dict[str, str] = {}
        with (
            errors_file.open("wb") as stderr,
            # Its own session: Ctrl-C reaches us alone, and we end the child.
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
            ) as child,
        ):
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    refusal = _follow(line, progress) or refusal
            except BaseException:
                child.kill()
                progress({"event": "note", "text": f"kept in {work.journal}", "done": 0})
                raise
        if child.returncode != 0:
            words = errors_file.read_text(encoding="utf-8", errors="replace")
            _fail(child.returncode, refusal, words, work.journal, child.pid)


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
        raise _as_raised(refusal)
    last = " | ".join(words.strip().splitlines()[-LAST_WORDS:]) or "it said nothing"
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise SlmqError(
            f"the runner was ended by {name}{hint}: {last}; {kept} repetitions are kept in "
            f"{log}: the same command resumes"
        )
    raise RuntimeError(f"the runner failed with exit code {code}:\n{words}")


def _as_raised(refusal: Mapping[str, str]) -> SlmqError:
    """Return the child's error as the class it had there."""
    kind = getattr(errors, refusal["error"], SlmqError)
    if not (isinstance(kind, type) and issubclass(kind, SlmqError)):
        kind = SlmqError
    return kind.__new__(kind, refusal["text"])  # MissingExtra's __init__ would word it again
