"""What comes before anything is measured or scored: a journal to go on from, integers, prompts."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from slmq_edge.profiles import Board
from slmq_edge.runner import golden, journal, manifest, probe, resume, runtimes
from slmq_edge.runner.runtimes import Place, Session

Events = Sequence[Mapping[str, Any]]


def continued(
    path: Path,
    bundle: Path,
    workload: Mapping[str, Any],
    allow_inexact: bool,
    here: Mapping[str, Any],
) -> tuple[Events, str]:
    """Return the events of a journal that may be gone on from, or none and why not.

    One of something else is put aside, as ``*.old``. See `resume.other` for the arguments.

    Raises:
        SlmqError: another process writes to it. Damaged: it cannot be read.
    """
    if not path.exists():
        return [], ""
    with journal.Journal(path):  # nobody else's
        events = journal.read(path)
        digest = manifest.sha256(bundle / manifest.BUNDLE_FILE)
        reason = resume.other(events, digest, workload, allow_inexact, here)
        if not reason:
            return events, ""
        aside = path.with_name(path.name + ".old")
        os.replace(path, aside)
    return [], f"starting anew: {reason}; its journal is kept in {aside.name}"


def note(text: str, done: int) -> str:
    """A line for whoever listens, which is no event of the journal. done: what is there already."""
    return json.dumps({"event": "note", "text": text, "done": done})


def begin(
    bundle: Path,
    workload: Mapping[str, Any],
    allow_inexact: bool,
    began: Mapping[str, Any],
    board: Board,
) -> dict[str, Any]:
    """The event with which every process begins. began: `environment.capture` of it."""
    return {
        "event": "begin",
        "bundle_sha256": manifest.sha256(bundle / manifest.BUNDLE_FILE),
        "workload": dict(workload),
        "allow_inexact": allow_inexact,
        "environment": dict(began),
        "at": time.time(),
        "pid": os.getpid(),
        "board": board._asdict(),
    }


def passed(
    place: Place,
    allow_inexact: bool,
    log: journal.Journal,
    fits: Callable[[Session], object] = lambda session: None,
) -> Session:
    """Probe the integers, load the graph and check its golden prompts; the results are events.

    Args:
        place: a bundle whose files are verified.
        allow_inexact: whether integers may be wrong.
        log: of the work that this is for.
        fits: raises where the session cannot do that.

    Raises:
        SlmqError: something is not as promised.
    """
    runtime = runtimes.of(place)
    exactness = runtime.probe(place)
    log.append({"event": "probe", "result": exactness and exactness._asdict()})
    probe.refuse_inexact(exactness, allow_inexact)
    session = runtime.prepare(place, probe.graph_to_run(exactness))()
    fits(session)
    arrays = golden.load(golden.golden_file(place.folder, place.bundle))
    report = golden.check(session, arrays, golden.limits(place.bundle))
    log.append({"event": "golden", "report": report._asdict()})
    return session
