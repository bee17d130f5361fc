"""A diagnosis as text: what works here, what does not, and what to do about it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slmq_edge.diagnosis import Finding, targets
from slmq_edge.errors import SlmqError

MARKS = {"ok": " ", "absent": "-", "doubtful": "!", "missing": "X"}
LEGEND = "- not here   ! look at it   X in the way"


def render(document: Mapping[str, Any], found: Sequence[Finding]) -> str:
    """Sections of a line for each finding, a fix in the line below it; ends in a newline."""
    parts = [_title(document)]
    for part, some in itertools.groupby(found, key=lambda one: one.part):
        parts.append("\n".join([part, *_lines(list(some))]))
    return "\n\n".join([*parts, f"{LEGEND}\n{_verdict(document)}"]) + "\n"


def to_json(document: Mapping[str, Any], found: Sequence[Finding]) -> str:
    return json.dumps(_told(document, found), indent=2) + "\n"


def several_json(
    looked: Iterable[tuple[str, Mapping[str, Any] | None, Sequence[Finding], SlmqError | None]],
) -> str:
    """Machines of an inventory -> a list of their documents, each with its ``name`` and ``error``.

    A machine that could not be looked at has no more than these two.
    """
    listed = [
        {
            "name": name,
            "error": None if problem is None else str(problem),
            **({} if document is None else _told(document, found)),
        }
        for name, document, found, problem in looked
    ]
    return json.dumps(listed, indent=2) + "\n"


def _told(document: Mapping[str, Any], found: Sequence[Finding]) -> dict[str, Any]:
    listed = [dataclasses.asdict(one) for one in found]
    return {**document, "findings": listed, "targets": targets(document)}


def _verdict(document: Mapping[str, Any]) -> str:
    names = ", ".join(targets(document)) or "none"
    return f"bundles that this machine can measure, by --target: {names}"


def _title(document: Mapping[str, Any]) -> str:
    seen = document["machine"]
    what = seen.get("model") or seen.get("cpu_model") or "an unknown machine"
    known = (what, seen["machine"], seen.get("os"))
    described = ", ".join(str(one) for one in known if one)
    return f"slmq-edge {document['version']} on {seen.get('hostname')}: {described}"


def _lines(some: Sequence[Finding]) -> list[str]:
    width = max(len(one.name) for one in some)
    lines = []
    for one in some:
        lines.append(f"{MARKS[one.state]} {one.name:<{width}}  {one.text}")
        if one.fix:
            lines.append(f"  {'':<{width}}    {one.fix}")
    return lines
