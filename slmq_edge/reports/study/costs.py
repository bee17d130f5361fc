"""Table 4 of the paper, of this study: a table for each model; and what preparing took. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from slmq_edge.reports.format import bytes_text, seconds_text
from slmq_edge.reports.study.layout import (
    NOTHING,
    PAPER,
    Cell,
    Line,
    Section,
    Table,
    line,
    tidied,
)
from slmq_edge.reports.study.printed import name_cell, score_cell, unit
from slmq_edge.study import paper
from slmq_edge.study.document import Document
from slmq_edge.study.inference import Place
from slmq_edge.study.inference import Row as Timed
from slmq_edge.study.paper import Printed
from slmq_edge.tracks import preparing
from slmq_edge.tracks.cost import Group, Row, described
from slmq_edge.tracks.preparing import Prepared

COSTS = ("artifact", "peak memory", "time", "energy", "SLMQ_quant")
PREPARED = ("artifact", "model", "loads in", "peak memory while loading")
BUILT = ("engine", "artifact", "model", "on", "by", "built in", "peak memory")
LEAD = (
    "SLMQ_quant: 100 times the root mean square of (most memory / memory) and (most time / time), "
    "the most of all artifacts of a model that were made on one device, so that scores of two "
    "studies say nothing about each other."
)
ON_DEVICE = (
    "Below: what each device pays before the first token: it builds an engine, once, where it runs "
    "TensorRT, and every process makes a session. No energy is measured there. Peak memory is the "
    "process's; what lies on a GPU is not in it."
)


def costs(found: Document) -> Section:
    """What quantizing cost where it was done, and what preparing takes where it runs."""
    rows = found.cost.rows
    made: list[Table] = []
    for model in dict.fromkeys(row.group.model for row in rows):
        groups = dict.fromkeys(row.group for row in rows if row.group.model == model)
        made += (_made(group, [row for row in rows if row.group == group]) for group in groups)
        if known := paper.model_of(model):
            lines = tuple(map(_printed, paper.printed(4, known)))
            made.append(tidied(Table(f"{known}, as the paper prints it", COSTS, lines, 1)))
    timed = found.inference.rows
    prepared = [
        _prepared(place, [row for row in timed if row.place == place])
        for place in dict.fromkeys(row.place for row in timed)
    ]
    if found.cost.prepared:
        lines = tuple(map(_built, found.cost.prepared))
        prepared.append(tidied(Table("Engines that were built", BUILT, lines, 5)))
    leads = (*((LEAD,) if made else ()), *((ON_DEVICE,) if prepared else ()))
    title = "Cost of quantizing (the paper's Table 4)"
    return Section("cost", title, leads, tables=(*made, *prepared), items=found.cost.notes)


def _made(group: Group, rows: Sequence[Row]) -> Table:
    """One model, device and kind of memory: what is scored together."""
    return tidied(Table(f"{group.model}: {described(group)}", COSTS, tuple(map(_cost, rows)), 1))


def _cost(row: Row) -> Line:
    return line(
        Cell(f"{row.method} {row.scheme}", row.place),
        bytes_text(row.memory_bytes),
        seconds_text(row.seconds),
        NOTHING if row.energy_joules is None else f"{row.energy_joules:.0f} J",
        NOTHING if row.score is None else f"{row.score:.1f}",
    )


def _printed(one: Printed) -> Line:
    return line(
        name_cell(one),
        unit(one.cells.get("memory"), "MB"),
        unit(one.cells.get("time"), "min"),
        NOTHING,
        score_cell(one),
        kind=PAPER,
    )


def _prepared(place: Place, rows: Sequence[Timed]) -> Table:
    lines = tuple(
        line(
            row.subject.name,
            row.subject.model,
            *_session(preparing.of_run(row.run, row.paths[0])),
        )
        for row in rows
    )
    return tidied(Table(f"Preparing on {place.title}", PREPARED, lines, 2))


def _session(one: Prepared) -> tuple[Cell | str, Cell]:
    return seconds_text(one.seconds), _peak(one)


def _built(one: Prepared) -> Line:
    """An engine that lies beside no bundle does not say of which artifact it is."""
    return line(
        one.place,
        f"{one.method} {one.scheme}" if one.method else one.scheme,
        one.model or NOTHING,
        one.device,
        one.runtime,
        seconds_text(one.seconds),
        _peak(one),
    )


def _peak(one: Prepared) -> Cell:
    return Cell(NOTHING if one.memory is None else bytes_text(one.memory_bytes), one.memory or "")
