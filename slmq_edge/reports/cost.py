"""Track 3 as text: Table 4 of the SLMQuant paper, of one's own checkpoints. Pure."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable

from slmq_edge.reports.format import UNKNOWN, bytes_text, seconds_text
from slmq_edge.tracks.cost import Row, Table, described

FORMAT, VERSION = "slmq-edge-cost", 1
HEADINGS = ("checkpoint", "method", "model", "scheme", "peak memory", "time", "SLMQ_quant")
COLUMNS: dict[str, Callable[[Row], object]] = {
    "method": lambda row: row.method,
    "model": lambda row: row.group.model,
    "scheme": lambda row: row.scheme,
    "device": lambda row: row.group.device,
    "device_name": lambda row: row.group.device_name,
    "memory_kind": lambda row: row.group.memory,
    "memory_bytes": lambda row: row.memory_bytes,
    "seconds": lambda row: row.seconds,
    "energy_joules": lambda row: row.energy_joules,
    "calibration_tokens": lambda row: row.calibration_tokens,
    "slmq_quant": lambda row: row.score,
    "reason": lambda row: row.reason,
    "checkpoint": lambda row: row.place,
}
EXPLANATION = (
    "SLMQ_quant: 100 times the root mean square of (most memory / memory) and (most time / time), "
    "the most of all rows with a score of the same model, device and kind of memory."
)


def terminal(table: Table) -> str:
    """Columns two blanks apart, numbers to the right."""
    rows = [HEADINGS, *map(_cells, table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:>{width}}" if index > 3 else f"{cell:<{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    notes = [f"! {note}" for note in table.notes]
    return "\n".join([*lines, "", *_measured(table), EXPLANATION, *notes]) + "\n"


def markdown(table: Table) -> str:
    """GitHub's Markdown."""
    rows = ["| " + " | ".join(map(_escaped, row)) + " |" for row in map(_cells, table.rows)]
    head = [
        "| " + " | ".join(HEADINGS).replace("_", "\\_") + " |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    lines = [f"- {_escaped(line)}" for line in (*_measured(table), EXPLANATION, *table.notes)]
    return "\n".join([*head, *rows, "", *lines]) + "\n"


def comma_separated(table: Table) -> str:
    """One line a row, in SI units at full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([column(row) for column in COLUMNS.values()] for row in table.rows)
    return out.getvalue()


def to_json(table: Table) -> str:
    """All of it, stages too."""
    document = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(table)}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


WRITERS: dict[str, Callable[[Table], str]] = {
    "terminal": terminal,
    "md": markdown,
    "csv": comma_separated,
    "json": to_json,
}


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.place,
        row.method,
        row.group.model,
        row.scheme,
        bytes_text(row.memory_bytes),
        seconds_text(row.seconds),
        UNKNOWN if row.score is None else f"{row.score:.1f}",
    )


def _measured(table: Table) -> list[str]:
    groups = list(dict.fromkeys(row.group for row in table.rows))
    return [f"{group.model}: quantized on {described(group)}" for group in groups]


def _escaped(text: str) -> str:
    for character in "\\|*_`<":
        text = text.replace(character, f"\\{character}")
    return text
