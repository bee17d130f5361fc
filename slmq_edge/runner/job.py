"""A job: what to measure and where the journal is; and the two processes that do it.

The check (files, integers, golden prompts) and the measurement never share an address space:
the check computes the logits of all positions, and what ONNX Runtime's arena and malloc keep
of that would be counted as memory of the measurement. So the checking process, when it is
done, replaces itself by the measuring one (execve: the same process id, memory from zero),
which begins only where the journal says that this bundle has passed. POSIX systems only.

Loading is timed from a warm page cache: the check has just read every file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable, NamedTuple, NoReturn

import slmq_edge
from slmq_edge.errors import Damaged, SlmqError
from slmq_edge.profiles import load as load_profile
from slmq_edge.runner import environment, golden, journal, manifest, measure, probe, runtimes
from slmq_edge.runner.runtimes import Place

Echo = Callable[[str], object]


class Job(NamedTuple):
    """engines: where those for TensorRT are; None: in the bundle's folder."""

    bundle: Path
    journal: Path
    workload: measure.Workload
    missing: tuple[int, ...]  # indices of the repetitions to take
    profile: str
    allow_inexact: bool
    engines: Path | None = None

    def place(self) -> Place:
        """The bundle, read, and how it is to run."""
        bundle = manifest.read_bundle(self.bundle)
        return Place(self.bundle, bundle, self.workload.threads, self.engines)


def write(job: Job, path: Path) -> None:
    document = {
        **job._asdict(),
        "bundle": str(job.bundle),
        "journal": str(job.journal),
        "workload": job.workload._asdict(),
        "engines": None if job.engines is None else str(job.engines),
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def read(path: Path) -> Job:
    """Read a job file; a missing or misspelt field is refused."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["workload"] = measure.Workload(**fields["workload"])
        fields["bundle"], fields["journal"] = Path(fields["bundle"]), Path(fields["journal"])
        fields["missing"] = tuple(fields["missing"])
        fields["engines"] = Path(fields["engines"]) if fields.get("engines") else None
        return Job(**fields)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{path} is not a job: {error}") from error


def check(job: Job, echo: Echo) -> None:
    """Check files, runtime, integers and golden prompts; every result is an event.

    Raises:
        SlmqError: something is not as promised; nothing has been timed.
    """
    place = job.place()
    bundle, runtime = place.bundle, runtimes.of(place)
    began = environment.capture(of_runtime=runtime.check(place))
    manifest.verify(job.bundle, bundle.get("files", {}))
    measure.check_workload(job.workload, bundle)
    with journal.Journal(job.journal, echo) as log:
        log.append(
            {
                "event": "begin",
                "bundle_sha256": manifest.sha256(job.bundle / manifest.BUNDLE_FILE),
                "workload": job.workload._asdict(),
                "allow_inexact": job.allow_inexact,
                "environment": began,
                "at": time.time(),
                "pid": os.getpid(),
            }
        )
        exactness = runtime.probe(place)
        log.append({"event": "probe", "result": exactness and exactness._asdict()})
        probe.refuse_inexact(exactness, job.allow_inexact)
        session = runtime.prepare(place, probe.graph_to_run(exactness))()
        measure.check_positions(job.workload, session.most_positions)
        arrays = golden.load(golden.golden_file(job.bundle, bundle))
        report = golden.check(session, arrays, golden.limits(bundle))
        log.append({"event": "golden", "report": report._asdict()})


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
    """Load the graph and take the repetitions that are missing.

    Raises:
        SlmqError: the journal does not say that this bundle has passed its check.
    """
    graph = require_check(job)
    place = job.place()
    golden_file = golden.golden_file(job.bundle, place.bundle)
    prompt = golden.prompt_tokens(golden_file, job.workload.prompt_tokens)
    profile = load_profile(job.profile)
    load = runtimes.of(place).prepare(place, graph)
    with journal.Journal(job.journal, echo) as log:
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
                **_device(session),
            }
        )

        def emit(event: dict[str, Any]) -> None:
            log.append({**event, **_device(session)})

        measure.measure(session, prompt, job.workload, emit, profile, missing=job.missing)
        log.append(
            {
                "event": "end",
                "load_average": environment.load_average(),
                "session": dict(session.facts()),
            }
        )


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
