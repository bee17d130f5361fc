"""In what two runs differ besides their figures: what a reader must know before the ratios."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slmq_edge.results import Run
from slmq_edge.runner.environment import OF_RUNTIME
from slmq_edge.runner.forward import LOGITS

# Environment: what says nothing about a difference, and by how much loads always differ.
NOT_COMPARED = (
    "profile",
    "frequency_hz",
    "load_average_end",
    "engine",
    "session",
    "board",
    LOGITS,  # where they differ, passes have no ratio
)
LOAD_TOLERANCE = 0.5  # runnable tasks, mean of one minute


def notes(baseline: Run, candidate: Run) -> Iterator[str]:
    """What a reader must know before the ratios; the gravest first."""
    first, second = baseline.artifact, candidate.artifact
    if first.model != second.model:
        yield f"different models: {first.model} against {second.model}"
    for role, run in (("baseline", baseline), ("candidate", candidate)):
        if run.origin != "measured":
            yield f"the {role} is {run.origin}, not measured"
    if both := across(baseline, candidate):
        yield f"different devices, {both}: memory and speed ratios mix artifact and machine"
    yield from _read(baseline, candidate)
    if first.bundle_sha256 == second.bundle_sha256:
        yield "both runs are of the same bundle"
    if first.scheme_ran == "fp32" and second.scheme_ran != "fp32":
        yield "the baseline stores float32: against float16 its bytes would be about half"
    for name in ("threads", "repetitions", "warmups"):
        values = [getattr(run.workload, name) for run in (baseline, candidate)]
        on_gpu = any(run.environment.get("tensorrt") for run in (baseline, candidate))
        if values[0] != values[1] and not (on_gpu and name == "threads"):
            yield f"{name}: {values[0]} against {values[1]}"
    for role, run in (("baseline", baseline), ("candidate", candidate)):
        if any(caveat.code == "inconclusive" for caveat in run.caveats):
            yield f"the {role} is inconclusive: its repetitions were not steady"
    yield from _environment_notes(baseline, candidate)


def _read(baseline: Run, candidate: Run) -> Iterator[str]:
    """Other protocols, and other texts."""
    both = (baseline.workload, candidate.workload)
    protocols = [work.protocol or "none" for work in both]
    if protocols[0] != protocols[1]:
        yield (
            f"protocol: {' against '.join(protocols)}; its forward passes are compared where both "
            "have them, prefill and decode are timed alike in both"
        )
    texts = ["golden prompts" if work.text is None else work.text.source for work in both]
    if both[0].text != both[1].text:
        same_name = " (another text of that name)" if texts[0] == texts[1] else ""
        yield f"text that is read: {' against '.join(texts)}{same_name}"


def _environment_notes(baseline: Run, candidate: Run) -> Iterator[str]:
    for name in sorted({*baseline.environment, *candidate.environment} - {*NOT_COMPARED}):
        before, after = baseline.environment.get(name), candidate.environment.get(name)
        if before == after or (name == "load_average" and _near(before, after)):
            continue
        if name in OF_RUNTIME and None in (before, after):  # the runtimes differ, which is said
            continue
        yield f"{name}: {_plain(before)} against {_plain(after)}"


def _near(before: Any, after: Any) -> bool:
    numbers = isinstance(before, int | float) and isinstance(after, int | float)
    return numbers and abs(before - after) <= LOAD_TOLERANCE


def _plain(value: Any) -> str:
    if value is None:
        return "unknown"
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def across(baseline: Run, candidate: Run) -> str | None:
    """Both devices, where they are not the same."""
    before, after = baseline.device, candidate.device
    if (before.name, before.kind) == (after.name, after.kind):
        return None
    return f"{before.name} ({before.kind}) against {after.name} ({after.kind})"
