"""Table 4 of the paper, of this study: a table for each model. Pure."""

from __future__ import annotations

from slmq_edge.reports.format import bytes_text, seconds_text
from slmq_edge.reports.study.layout import (
    NOTHING,
    PAPER,
    Cell,
    Section,
    Table,
    line,
    tidied,
)
from slmq_edge.reports.study.printed import name_cell, score_cell, unit
from slmq_edge.study import paper
from slmq_edge.study.document import Document

COSTS = ("artifact", "made on", "peak memory", "time", "energy", "SLMQ_quant")


def costs(found: Document) -> Section:
    """Table 4: a table for each model."""
    tables = []
    for model in dict.fromkeys(row.group.model for row in found.cost.rows):
        lines = [
            line(
                Cell(f"{row.method} {row.scheme}", row.place),
                Cell(row.group.device_name or row.group.device, row.group.device),
                Cell(bytes_text(row.memory_bytes), row.group.memory),
                seconds_text(row.seconds),
                NOTHING if row.energy_joules is None else f"{row.energy_joules:.0f} J",
                NOTHING if row.score is None else f"{row.score:.1f}",
            )
            for row in found.cost.rows
            if row.group.model == model
        ]
        known = paper.model_of(model)
        for one in paper.printed(4, known) if known else ():
            time = one.cells.get("time")
            memory = one.cells.get("memory")
            lines.append(
                line(
                    name_cell(one),
                    "the paper's GPU",
                    unit(memory, "MB"),
                    unit(time, "min"),
                    NOTHING,
                    score_cell(one),
                    kind=PAPER,
                )
            )
        tables.append(tidied(Table(model, COSTS, tuple(lines), 1)))
    lead = (
        "SLMQ_quant: 100 times the root mean square of (most memory / memory) and (most time / "
        "time), the most of all artifacts of a model that were made on one device, so that scores "
        "of two studies say nothing about each other."
    )
    items = found.cost.notes
    leads = (lead,) if tables else ()
    return Section(
        "cost", "Cost of quantizing (the paper's Table 4)", leads, tables=tuple(tables), items=items
    )
