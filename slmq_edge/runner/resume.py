"""What a journal already holds of a job, and whether it is of this job at all."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

from slmq_edge.runner import environment, forward, stability
from slmq_edge.runner.windows import PHASES

Events = Sequence[Mapping[str, Any]]
MAY_DIFFER = ("repetitions",)  # of a workload


class Todo(NamedTuple):
    """Indices of the repetitions and names of the windows that are still to take.

    again: whether the repetitions are already those of a second attempt. passes: indices of those
    of a protocol.
    """

    repetitions: tuple[int, ...]
    windows: tuple[str, ...]
    again: bool
    passes: tuple[int, ...] = ()

    @property
    def nothing(self) -> bool:
        return not self.repetitions and not self.windows and not self.passes


def attempt(events: Events) -> Events:
    """The events since the repetitions were last begun anew; all of them where they were not."""
    marks = [index for index, event in enumerate(events) if event["event"] == "again"]
    return events[marks[-1] + 1 :] if marks else events


def repetitions(events: Events) -> dict[int, Mapping[str, Any]]:
    """Those that count, by index."""
    return {e["index"]: e for e in attempt(events) if e["event"] == "repetition"}


def drifts(events: Events) -> dict[str, float]:
    """By how much the repetitions that count grew or fell, series by series, where they did."""
    counted = [event for _, event in sorted(repetitions(events).items())]
    found = {
        name: stability.drift([event[name] for event in counted])
        for name in ("prefill_seconds", "decode_seconds")
    }
    return {name: change for name, change in found.items() if change is not None}


def todo(events: Events, wanted: int, power_seconds: float, protocol: str | None = None) -> Todo:
    """What is missing of ``wanted`` repetitions, of a protocol, and of windows of power if asked.

    A process that came to its end has taken all windows that its machine has sensors for.
    """
    done = repetitions(events)
    missing = tuple(index for index in range(wanted) if index not in done)
    ended = any(event["event"] == "end" for event in events)
    had = {event["phase"] for event in events if event["event"] == "power"}
    windows = () if ended or not power_seconds else tuple(p for p in PHASES if p not in had)
    again = any(event["event"] == "again" for event in events)
    return Todo(missing, windows, again, forward.missing(events, protocol))


def other(
    events: Events,
    digest: str,
    workload: Mapping[str, Any],
    allow_inexact: bool,
    here: Mapping[str, Any],
) -> str | None:
    """Say how the interrupted run differs from the one asked for; None where it does not.

    Args:
        events: of its journal.
        digest: SHA-256 of the bundle's manifest.
        workload: asked for; more or fewer repetitions than then may be.
        allow_inexact: asked for.
        here: `environment.identity` of this machine, or as much of it as matters.
    """
    begins = [event for event in events if event["event"] == "begin"]
    if not begins:
        return "the interrupted run had not begun"
    for begin in begins:
        if begin["bundle_sha256"] != digest:
            return "the interrupted run was of another bundle"
        free = {name: workload[name] for name in MAY_DIFFER if name in workload}
        taken = {**begin["workload"], **free}
        if taken != dict(workload) or begin["allow_inexact"] != allow_inexact:
            return "the interrupted run had another workload"
        there = environment.identity(begin["environment"])
        changed = [name for name in here if here[name] != there[name]]
        if changed:
            return f"the environment has changed ({', '.join(changed)})"
    return None
