"""Document -> sections, in the order in which they are read."""

from __future__ import annotations

from slmq_edge.reports.study import costs, devices, evidence, front, scores, speeds
from slmq_edge.reports.study.layout import Section
from slmq_edge.study.document import Document


def contents(found: Document) -> tuple[Section, ...]:
    """Everything that has something to say; the answer first."""
    return evidence.sections(
        (
            front.answer(found),
            front.glance(found),
            scores.scores(found),
            speeds.timed(found),
            devices.devices(found),
            costs.costs(found),
            evidence.gaps(found),
            evidence.sensitivity(found),
            evidence.ran(found),
            evidence.missing(found),
            evidence.measured(found),
            evidence.plans(found),
        )
    )


def subtitle(found: Document) -> str:
    """What there is: 7 artifacts of 2 models on 1 device; measured until a date."""
    places = {(row.run.device.name, row.place.chip) for row in found.inference.rows}
    parts = [
        _count(sum(one.is_artifact for one in found.subjects), "artifact"),
        _count(len(found.models), "model"),
        _count(len(places), "device"),
        _count(len(found.study.runs), "run"),
        _count(len(found.study.evaluations), "evaluation"),
    ]
    date = f"; the last of {found.newest[:10]}" if found.newest else ""
    return f"{', '.join(parts)}{date}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
