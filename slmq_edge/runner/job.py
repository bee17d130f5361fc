"""A job: what to measure and where the journal is; and the two processes that do it.

The check (files, integers, golden prompts) and the measurement never share an address space:
the check computes the logits of all positions, and what ONNX Runtime's arena and malloc keep
of that would be counted as memory of the measurement. So the checking process, when it is
done, replaces itself by the measuring one (execve: the same process id, memory from zero),
which begins only where the journal says that this bundle has passed. POSIX systems only.

The journal is also what a job that was interrupted goes on from: both processes take from it what
is missing still, and a journal of another bundle, workload or machine is put aside.

Loading is timed from a warm page cache: the check has just read every file.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, NoReturn

import slmq_edge
from slmq_edge.errors import SlmqError
from slmq_edge.profiles import Board, Profile
from slmq_edge.profiles import load as load_profile
from slmq_edge.runner import (
    around,
    checks,
    environment,
    forward,
    golden,
    journal,
    manifest,
    measure,
    resume,
    runtimes,
    windows,
    work,
)
from slmq_edge.runner.runtimes import Place

AGAIN_COOL_SECONDS = 20.0  # the longest wait before each repetition of a second attempt
Echo = Callable[[str], object]
DOING = {
    "begin": "probing integers",
    "probe": "checking golden prompts",
    "golden": "loading",
    "placed": "loading",
    "load": "warming up",
    "warmup": "measuring",
    "repetition": "measuring",
    "again": "measuring",
    "forward_warmup": "warming up",
    "forward": "measuring",
    "power": "measuring power",
}


class Job(NamedTuple):
    """What to measure, and how.

    engines: where those for TensorRT are; None: in the bundle's folder. board: what the profile
    must be told. power_seconds: the least length of a window of energy; 0: none are taken.
    cool_down_seconds: the longest wait before a repetition. again: whether repetitions that are
    not steady are taken once more. torch_device: of a bundle for torch, see `runtimes.Place`.
    """

    bundle: Path
    journal: Path
    workload: measure.Workload
    profile: str
    allow_inexact: bool
    engines: Path | None = None
    board: Board = Board()
    power_seconds: float = 2.0
    cool_down_seconds: float = 0.0
    again: bool = True
    torch_device: str | None = None

    def place(self) -> Place:
        """The bundle, read, and how it is to run."""
        bundle = manifest.read_bundle(self.bundle)
        return Place(self.bundle, bundle, self.workload.threads, self.engines, self.torch_device)

    def on(self, torch_device: str) -> Job:
        """See `work.Work`."""
        return self._replace(torch_device=torch_device)

    @property
    def unit(self) -> str:
        """See `work.Work`."""
        one_kind = self.workload.protocol is None
        return "repetitions" if one_kind else "repetitions and forward passes"

    @property
    def doing(self) -> Mapping[str, str]:
        """See `work.Work`."""
        return DOING

    def files(self) -> Mapping[str, Path]:
        """A bundle is all that it needs."""
        return {}

    def document(self) -> dict[str, Any]:
        """See `work.Work`. Without ``task``, as before there were others: it decides run-ids."""
        return {**work.described(self), "workload": self.workload.document()}


def read(path: Path) -> Job:
    """Read a job file; a missing or misspelt field is refused."""

    def made(fields: dict[str, Any]) -> Job:
        return Job(**{**fields, "workload": measure.Workload.read(fields["workload"])})

    return work.parse(path, made)


def check(job: Job, echo: Echo) -> bool:
    """Check files, runtime, integers and golden prompts; every result is an event.

    Returns whether anything is to be measured still: where not, nothing is checked either.

    Raises:
        SlmqError: something is not as promised, or a graph for a GPU leaves products to the CPU;
            nothing has been timed.
    """
    place = job.place()
    bundle = place.bundle
    measure.check_workload(job.workload, bundle)
    here, root = runtimes.of(place).check(place), job.board.root
    began = environment.capture(root, of_runtime=here, power_mode=_mode(job))
    todo = _prepare(job, began, echo)
    if todo.nothing:
        return False
    manifest.verify(job.bundle, bundle.get("files", {}))
    with journal.Journal(job.journal, echo) as log:
        asked = job.workload.asked()
        log.append(checks.begin(job.bundle, asked, job.allow_inexact, began, job.board))
        checks.passed(
            place,
            job.allow_inexact,
            log,
            lambda session: _check_room(job, session),
        )
        steps = runtimes.of(place).placed(place, require_check(job))
        if steps is not None:
            log.append({"event": "placed", "steps": dict(steps)})
    return True


def _check_room(job: Job, session: runtimes.Session) -> None:
    measure.check_positions(job.workload, session.most_positions)
    forward.check(job.workload.protocol, session.together)


def _mode(job: Job) -> str | None:
    profile = load_profile(job.profile, job.board)
    try:
        mode = profile.mode()
        return None if mode is None else str(mode)
    finally:
        profile.close()


def _prepare(job: Job, here: dict[str, Any], echo: Echo) -> resume.Todo:
    """What is to take; a journal of something else is put aside, and it is said."""
    wanted, asked = job.workload.repetitions, job.workload.asked()
    there = job.journal.exists()
    events, anew = checks.continued(
        job.journal, job.bundle, asked, job.allow_inexact, environment.identity(here)
    )
    todo = resume.todo(events, wanted, job.power_seconds, job.workload.protocol)
    if there:
        every = wanted + forward.of(job.workload.protocol).passes
        done = every - len(todo.repetitions) - len(todo.passes)
        text = anew or f"resuming: {done} of {every} {job.unit} are there already"
        echo(checks.note(text, done))
    return todo


def replace_process(job_file: Path) -> NoReturn:
    """Become the measuring process. The package is found where it was, folder or zip."""
    home = str(Path(slmq_edge.__file__).parent.parent)
    paths = [home] + [p for p in [os.environ.get("PYTHONPATH")] if p]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "slmq_edge.runner", "--measure", str(job_file)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, variables)


def measure_job(job: Job, echo: Echo) -> None:
    """Load the graph and take what is missing: windows of energy, repetitions.

    Raises:
        SlmqError: the journal does not say that this bundle has passed its check.
    """
    graph = require_check(job)
    place = job.place()
    prompt = measure.prompt_of(job.workload, golden.golden_file(job.bundle, place.bundle))
    profile = load_profile(job.profile, job.board)
    try:
        with journal.Journal(job.journal, echo) as log:
            asked = job.workload
            events = journal.read(job.journal)
            todo = resume.todo(events, asked.repetitions, job.power_seconds, asked.protocol)
            metered = bool(todo.windows) and windows.has_meter(profile)
            if metered and "idle" in todo.windows:
                window = windows.idle(profile, job.power_seconds)
                log.append({"event": "power", **window._asdict()})
            load = runtimes.of(place).prepare(place, graph)
            session, begun = _load(load, profile, log)

            def emit(event: dict[str, Any]) -> None:
                log.append({**event, **_device(session)})

            _repeat(job, session, prompt, profile, todo, begun, emit)
            if asked.protocol is not None and todo.passes:
                forward.take(
                    session, prompt, asked.protocol, emit, profile, todo.passes, session.together
                )
            if metered:
                seconds, left = job.power_seconds, todo.windows
                if left and not todo.repetitions:  # what windows repeat has not run here yet
                    session.first(prompt.reshape(1, -1), asked.new_tokens)
                for window in windows.of_work(session, prompt, asked, profile, seconds, left):
                    log.append({"event": "power", **window._asdict()})
            log.append(
                {
                    "event": "end",
                    "load_average": environment.load_average(job.board.root),
                    "session": dict(session.facts()),
                    "profile": dict(profile.facts()),
                }
            )
    finally:
        profile.close()


def _load(
    load: Callable[[], runtimes.Session], profile: Profile, log: journal.Journal
) -> tuple[runtimes.Session, dict[str, Any]]:
    """Load the graph, timed, as an event; and what the machine was like before."""
    begun = around.snapshot(profile)
    memory = {"start": dict(profile.memory())}
    profile.reset_peak()
    started = time.perf_counter()
    session = load()
    seconds = time.perf_counter() - started
    memory["load"] = dict(profile.memory())
    log.append(
        {
            "event": "load",
            "seconds": seconds,
            "memory": memory,
            "kv_bytes_per_token": session.kv_bytes_per_token,
            "profile": dict(profile.facts()),
            "session": dict(session.facts()),
            "state": begun,
            **_device(session),
        }
    )
    return session, begun


def _repeat(
    job: Job,
    session: runtimes.Session,
    prompt: Any,
    profile: Profile,
    todo: resume.Todo,
    begun: dict[str, Any],
    emit: measure.Emit,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Take the missing repetitions; and all of them once more where they were not steady."""

    def take(missing: tuple[int, ...], cool: float) -> None:
        before = begun["temperatures_celsius"]
        measure.measure(
            session,
            prompt,
            job.workload,
            emit,
            profile,
            clock,
            missing=missing,
            cool_down=lambda: around.cool_down(profile, before, cool),
        )

    patient = max(job.cool_down_seconds, AGAIN_COOL_SECONDS)
    if todo.repetitions:
        take(todo.repetitions, patient if todo.again else job.cool_down_seconds)
    changes = resume.drifts(journal.read(job.journal))
    if todo.again or not changes or not job.again:
        return
    emit({"event": "again", "drift": changes})
    take(tuple(range(job.workload.repetitions)), patient)


def _device(session: runtimes.Session) -> dict[str, Any]:
    """What a session has taken on a device of its own, as a field of an event."""
    found = session.device_memory()
    return {} if found is None else {"device_memory": dict(found)}


def require_check(job: Job) -> str:
    """No speed without a check: in the journal, ``golden`` must follow the last ``begin``.

    Returns which graph has passed it.
    """
    events: list[dict[str, Any]] = journal.read(job.journal)
    begins = [index for index, event in enumerate(events) if event["event"] == "begin"]
    digest = manifest.sha256(job.bundle / manifest.BUNDLE_FILE)
    passed = (
        bool(begins)
        and events[begins[-1]]["bundle_sha256"] == digest
        and any(event["event"] == "golden" for event in events[begins[-1] :])
    )
    if not passed:
        raise SlmqError(f"{job.bundle} has not passed its golden check: nothing is measured")
    probed = [event["result"] for event in events[begins[-1] :] if event["event"] == "probe"]
    return str((probed[-1] or {}).get("graph", manifest.GRAPH)) if probed else manifest.GRAPH
