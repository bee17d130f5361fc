"""Track 3: what quantizing cost, of several checkpoints or bundles, and how the methods compare.

    SLMQ_quant = 100 sqrt(mean(max memory / memory, max time / time)^2)

The maxima run over the checkpoints of one model (METHODS 5.1), quantized on one device and measured
by one kind of memory: what differs in these is another group, and scores of two groups say nothing
about each other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmq_edge.cost import went_on
from slmq_edge.errors import Damaged
from slmq_edge.files import existing, manifest_of
from slmq_edge.metrics import Cost, slmq_quant
from slmq_edge.tracks import preparing
from slmq_edge.tracks.preparing import Prepared


@dataclass(frozen=True)
class Group:
    """What must be equal for costs to be compared. memory: the kind of its peak."""

    model: str
    revision: str | None
    device: str
    device_name: str | None
    memory: str


@dataclass(frozen=True)
class Row:
    """What one checkpoint cost. score: SLMQ_quant within its group; ``None`` and a reason why not.

    memory_bytes: the peak of the group's kind; peaks: of every kind that was measured, of which
    those on a GPU stand beside each other. energy_joules: of what energy_of says.
    """

    place: str
    method: str
    scheme: str
    group: Group
    memory_bytes: int | None
    seconds: float
    stages: Mapping[str, float]
    energy_joules: float | None
    calibration_tokens: int | None
    threads: int | None
    score: float | None = None
    reason: str | None = None
    peaks: Mapping[str, int | None] = field(default_factory=dict)
    energy_of: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows, group by group, and what must be said above the numbers.

    prepared: what was paid on targets, which is no row's concern.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    prepared: tuple[Prepared, ...] = ()


def table(paths: Sequence[Path]) -> Table:
    """The costs of checkpoints and bundles, scored; and of runs and engines, which are not.

    A bundle's engines, where it holds some, are among these.

    Raises:
        NotFound, Damaged, Unsupported: a path is none of these, or not whole.
    """
    folders = [path for path in paths if not path.is_file()]
    found = scored([read(folder) for folder in folders])
    prepared = [one for path in paths for one in _prepared(path)]
    return dataclasses.replace(found, prepared=tuple(prepared))


def _prepared(path: Path) -> list[Prepared]:
    return [preparing.read(path)] if path.is_file() else preparing.engines(path)


def read(folder: Path) -> Row:
    """The cost of one checkpoint or bundle, without a score.

    Raises:
        NotFound, Damaged, Unsupported: it is neither, or its manifest is not whole.
    """
    existing(folder, "checkpoint")
    kind, file, document = manifest_of(folder)
    if kind == "checkpoint":
        source, scheme = document.get("source"), (document.get("scheme") or {}).get("name")
    else:
        source, scheme = document.get("model"), document.get("scheme_requested")
    try:
        return _row(
            folder.name or str(folder), document["method"], scheme, source, document["cost"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder / file} does not say what it cost: {error}") from error


def _row(place: str, method: str, scheme: Any, source: Any, cost: Mapping[str, Any]) -> Row:
    device = str(cost["device"])
    kind = "cpu_peak_rss" if device == "cpu" else "torch_peak_allocated"
    group = Group(
        model=str(source["name"]),
        revision=source.get("revision"),
        device=device.split(":")[0],
        device_name=cost.get("device_name"),
        memory=kind,
    )
    memory, seconds = cost["memory"].get(kind), float(cost["seconds"])
    if not math.isfinite(seconds):
        raise ValueError(f"seconds are {seconds}")
    behind, parts = cost.get("resumed_behind_block"), cost.get("resumed_with") or ()
    reason = None
    if behind or parts:
        what = went_on(behind or 0, map(str, parts))
        reason = f"it went on {what} of an interrupted run: its time is not all of it"
    elif memory is None or not memory > 0:
        reason = f"its {kind} was not measured"
    elif not seconds > 0:
        reason = "its time was not measured"
    return Row(
        place=place,
        method=str(method),
        scheme=str(scheme),
        group=group,
        memory_bytes=memory,
        seconds=seconds,
        stages=dict(cost.get("stages", {})),
        energy_joules=cost.get("energy_joules"),
        calibration_tokens=cost.get("calibration_tokens"),
        threads=cost.get("threads"),
        reason=reason,
        peaks=dict(cost["memory"]),
        energy_of=cost.get("energy_of"),
    )


def scored(rows: Sequence[Row]) -> Table:
    """The rows group by group, each with its score against the dearest of its group."""
    groups: dict[Group, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    found: list[Row] = []
    for group in groups.values():
        costs = {
            str(index): Cost(row.memory_bytes, row.seconds)
            for index, row in enumerate(group)
            if row.reason is None and row.memory_bytes is not None
        }
        scores = slmq_quant(costs) if costs else {}
        found += [
            dataclasses.replace(row, score=scores.get(str(index)))
            for index, row in enumerate(group)
        ]
    return Table(tuple(found), tuple(_notes(groups, found)))


def _notes(groups: Mapping[Group, Sequence[Row]], rows: Iterable[Row]) -> list[str]:
    notes = []
    by_model: dict[str, list[Group]] = {}
    for group in groups:
        by_model.setdefault(group.model, []).append(group)
    for model, several in by_model.items():
        if len(several) > 1:
            kinds = "; ".join(described(group) for group in several)
            notes.append(f"{model} was quantized in ways that are not compared: {kinds}")
    for group, members in groups.items():
        for what, values in _conditions(members).items():
            if len(values) > 1:
                listed = ", ".join(map(str, values))
                notes.append(f"{group.model} on {described(group)}: {what} differ ({listed})")
    notes += [f"{row.place} has no score: {row.reason}" for row in rows if row.reason]
    return notes


def _conditions(members: Sequence[Row]) -> dict[str, list[Any]]:
    """What makes costs of one group unlike, each value once."""
    found: dict[str, set[Any]] = {
        "threads": {row.threads for row in members},
        "calibration tokens": {row.calibration_tokens for row in members},
        "schemes": {row.scheme for row in members},
    }
    return {
        what: sorted(values, key=lambda value: -1 if value is None else value)
        for what, values in found.items()
    }


def described(group: Group) -> str:
    name = group.device_name or "unknown"
    revision = f", revision {group.revision[:12]}" if group.revision else ""
    return f"{group.device} ({name}), {group.memory}{revision}"
