"""Track 3 as text: Table 4 of the SLMQuant paper, of one's own checkpoints. Pure.

What preparing on a target took is a table of its own below it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable

from slmq_edge.reports.format import UNKNOWN, bytes_text, seconds_text
from slmq_edge.reports.tables import aligned, escaped, piped
from slmq_edge.sampled import BOARD, PROCESS, SECONDS
from slmq_edge.tracks.cost import Row, Table, described
from slmq_edge.tracks.preparing import Prepared

FORMAT, VERSION = "slmq-edge-cost", 1
NOT_MEASURED = "not measured"
QUANTIZING = "quantizing"  # in the CSV's last column, where `preparing` has its words
PREPARING = "Preparing on the target"
PREPARED_HEADINGS = (
    "file",
    "what",
    "method",
    "model",
    "scheme",
    "device",
    "runtime",
    "peak memory",
    "time",
    "energy",
)
PREPARED_NOTE = (
    "Preparing is paid on each device that runs a bundle, and is not scored against quantizing. "
    "Time of a session: the median of its loads, files in the page cache. Peak memory: the "
    "process's, in phase load or while it built; what lies on a GPU is not in it."
)
HEADINGS = ("checkpoint", "method", "model", "scheme", "peak memory", "time", "SLMQ_quant")
# Peaks that stand beside the one that is scored, where a row has them: kind -> heading, column.
BESIDE = {
    "torch_peak_reserved": ("torch reserved", "torch_reserved_bytes"),
    PROCESS: ("process (NVML)", "gpu_process_bytes"),
    BOARD: ("board (NVML)", "gpu_board_bytes"),
}
SAMPLED_NOTE = (
    "Peak memory on a GPU: torch's tensors. Beside it what torch reserved for them, and what NVML "
    f"told of this process and of the whole board, asked every {SECONDS} s: what came and went in "
    "between is not in it."
)
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
    "work": lambda row: QUANTIZING,
    "energy_of": lambda row: row.energy_of,
    **{
        column: lambda row, kind=kind: row.peaks.get(kind)  # type: ignore[misc]
        for kind, (_, column) in BESIDE.items()
    },
}
PREPARED_COLUMNS: dict[str, Callable[[Prepared], object]] = {
    "method": lambda one: one.method,
    "model": lambda one: one.model,
    "scheme": lambda one: one.scheme,
    "device_name": lambda one: one.device,
    "memory_kind": lambda one: one.memory,
    "memory_bytes": lambda one: one.memory_bytes,
    "seconds": lambda one: one.seconds,
    "energy_joules": lambda one: one.energy_joules,
    "reason": lambda one: "not scored: paid on the target",
    "checkpoint": lambda one: one.place,
    "work": lambda one: one.what,
}
EXPLANATION = (
    "SLMQ_quant: 100 times the root mean square of (most memory / memory) and (most time / time), "
    "the most of all rows with a score of the same model, device and kind of memory."
)


def terminal(table: Table) -> str:
    """Columns two blanks apart, numbers to the right."""
    notes = [f"! {note}" for note in table.notes]
    lines = aligned(_rows(table), texts=4)
    parts = [[lines, "", *_measured(table), EXPLANATION, *notes]] if table.rows else []
    if table.prepared:
        below = aligned([PREPARED_HEADINGS, *map(_prepared_cells, table.prepared)], texts=7)
        parts.append([PREPARING, below, "", PREPARED_NOTE])
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def markdown(table: Table) -> str:
    """GitHub's Markdown."""
    lines = [f"- {escaped(line)}" for line in (*_measured(table), EXPLANATION, *table.notes)]
    rows = piped(_rows(table), texts=4)
    parts = [[rows, "", *lines]] if table.rows else []
    if table.prepared:
        below = piped([PREPARED_HEADINGS, *map(_prepared_cells, table.prepared)], texts=7)
        parts.append([f"**{PREPARING}**", "", below, "", f"- {escaped(PREPARED_NOTE)}"])
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def comma_separated(table: Table) -> str:
    """One line a row, in SI units at full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([column(row) for column in COLUMNS.values()] for row in table.rows)
    for one in table.prepared:
        known = {name: column(one) for name, column in PREPARED_COLUMNS.items()}
        writer.writerow([known.get(name) for name in COLUMNS])
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


def _beside(table: Table) -> list[str]:
    """Kinds of ``BESIDE`` that a row has."""
    return [kind for kind in BESIDE if any(kind in row.peaks for row in table.rows)]


def _rows(table: Table) -> list[tuple[str, ...]]:
    kinds, at = _beside(table), HEADINGS.index("peak memory") + 1
    headings = (*HEADINGS[:at], *(BESIDE[kind][0] for kind in kinds), *HEADINGS[at:])
    return [headings, *(_cells(row, kinds) for row in table.rows)]


def _cells(row: Row, beside: list[str]) -> tuple[str, ...]:
    return (
        row.place,
        row.method,
        row.group.model,
        row.scheme,
        bytes_text(row.memory_bytes),
        *(bytes_text(row.peaks.get(kind)) for kind in beside),
        seconds_text(row.seconds),
        UNKNOWN if row.score is None else f"{row.score:.1f}",
    )


def _prepared_cells(one: Prepared) -> tuple[str, ...]:
    times = "" if one.times == 1 else f" (of {one.times})"
    return (
        one.place,
        one.what,
        one.method or UNKNOWN,
        one.model or UNKNOWN,
        one.scheme,
        one.device,
        one.runtime,
        bytes_text(one.memory_bytes),
        f"{seconds_text(one.seconds)}{times}",
        NOT_MEASURED if one.energy_joules is None else f"{one.energy_joules:.0f} J",
    )


def _measured(table: Table) -> list[str]:
    groups = list(dict.fromkeys(row.group for row in table.rows))
    lines = [f"{group.model}: quantized on {described(group)}" for group in groups]
    return [*lines, SAMPLED_NOTE] if _beside(table) else lines
