"""Multiply-adds as text: terminal, Markdown, CSV, JSON; by our count or the paper's. Pure."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import textwrap
from collections.abc import Callable, Sequence

from slmq_edge.macs import PARTS, Counted, Paper, Part, paper
from slmq_edge.reports.format import count_text, share_text

FORMAT, VERSION = "slmq-edge-macs", 1
OURS, PAPER = "ours", "paper"
HEADINGS = ("part", "precision", "multiply-adds", "share")
PAPER_HEADINGS = ("the paper's column", "multiply-adds", "counts")
NAMES: dict[Part, str] = {
    "linear": "linears of the blocks",
    "head": "lm_head",
    "rotation": "rotations",
    "attention": "attention, QK^T and PV",
}
EXPLANATION = (
    "The paper tabulates this in place of tokens/s. Its profiler did not see the linears of a "
    "quantized model, so that the head alone is left of it: the ratio of the two is the same for "
    "every method and scheme, and is no speed. Attention is in neither."
)
LARGE = 1e9
WIDTH = 95  # columns of a terminal
COLUMNS = ("model", "source", "tokens", "past", "part", "scheme", "integer", "weight_bits", "macs")

Table = Sequence[Sequence[str]]


def macs_text(macs: float, total: float) -> str:
    """In units of 10^9, as the paper has them, 17.213 G; where all are fewer, of 10^6."""
    return f"{macs / 1e9:.3f} G" if total >= LARGE else f"{macs / 1e6:.3f} M"


def terminal(counted: Counted, convention: str = OURS) -> str:
    """Columns two blanks apart, numbers to the right."""
    rows = _table(counted, convention)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:>{width}}" if index in _numbers(convention) else f"{cell:<{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    notes = [textwrap.fill(note, WIDTH) for note in _notes(counted, convention)]
    return "\n".join([_title(counted), "", *lines, "", *notes]) + "\n"


def markdown(counted: Counted, convention: str = OURS) -> str:
    """GitHub's Markdown."""
    head, *rows = [
        "| " + " | ".join(map(_escaped, row)) + " |" for row in _table(counted, convention)
    ]
    columns = range(len(_table(counted, convention)[0]))
    ruler = "|".join("---:" if index in _numbers(convention) else "---" for index in columns)
    notes = [f"- {_escaped(note)}" for note in _notes(counted, convention)]
    title = f"### {_escaped(_title(counted))}"
    return "\n".join([title, "", head, f"|{ruler}|", *rows, "", *notes]) + "\n"


def comma_separated(counted: Counted, convention: str = OURS) -> str:
    """A line a part and precision; of the paper's convention, its two figures."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    about = (counted.model, counted.source, counted.tokens, counted.past)
    if convention == PAPER:
        writer.writerow(("model", "tokens", "column", "macs"))
        for column, macs in dataclasses.asdict(paper(counted)).items():
            writer.writerow((counted.model, counted.tokens, column, macs))
        return out.getvalue()
    writer.writerow(COLUMNS)
    for one in counted.groups:
        bits = "" if one.weight_bits is None else one.weight_bits
        writer.writerow((*about, one.part, one.scheme, int(one.integer), bits, one.macs))
    return out.getvalue()


def to_json(counted: Counted, convention: str = OURS) -> str:
    """Both conventions, and every product."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "convention": convention,
        **dataclasses.asdict(counted),
        "total": counted.total,
        "by_part": {part: counted.of(part) for part in PARTS},
        "by_weight_bits": {
            FLOATS if bits is None else str(bits): macs for bits, macs in counted.by_bits().items()
        },
        "integer": counted.integer,
        "paper": dataclasses.asdict(paper(counted)),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


FLOATS = "float"
WRITERS: dict[str, Callable[[Counted, str], str]] = {
    "terminal": terminal,
    "md": markdown,
    "csv": comma_separated,
    "json": to_json,
}


def _title(counted: Counted) -> str:
    behind = f" behind {counted.past}" if counted.past else ""
    tokens = f"{counted.tokens} token{'s' if counted.tokens > 1 else ''}{behind}"
    return f"{counted.model} ({counted.source}): one forward pass of {tokens}"


def _table(counted: Counted, convention: str) -> Table:
    if convention == PAPER:
        return _paper_table(counted, paper(counted))
    total = counted.total
    rows = [
        (NAMES[one.part], one.scheme, macs_text(one.macs, total), share_text(one.macs / total))
        for one in counted.groups
    ]
    return [HEADINGS, *rows, ("all", "", macs_text(total, total), share_text(1.0))]


def _paper_table(counted: Counted, column: Paper) -> Table:
    ours = ("", " <- this one") if counted.quantized else (" <- this one", "")
    return [
        PAPER_HEADINGS,
        ("full precision", macs_text(column.full, column.full), f"linears and head{ours[0]}"),
        ("quantized", macs_text(column.quantized, column.full), f"the head alone{ours[1]}"),
        ("ratio, as its speed", f"{column.full / column.quantized:.3f}", ""),
        (
            "by our count",
            macs_text(counted.total, column.full),
            "linears, head, rotations, attention",
        ),
    ]


def _numbers(convention: str) -> tuple[int, ...]:
    """Columns of numbers."""
    return (1,) if convention == PAPER else (2, 3)


def _notes(counted: Counted, convention: str) -> list[str]:
    if convention == PAPER:
        return [EXPLANATION]
    total = counted.total
    bits = [
        f"{'floats' if width is None else f'{width}-bit weights'} {share_text(macs / total)}"
        for width, macs in counted.by_bits().items()
    ]
    share = share_text(counted.masked / counted.of("attention"))
    return [
        f"integers by integers: {share_text(counted.integer / total)}; by {', '.join(bits)}",
        f"parameters: {count_text(counted.parameters)}",
        f"attention as it is computed: the causal mask drops {share} of it",
    ]


def _escaped(text: str) -> str:
    for character in "\\|*_`<^":
        text = text.replace(character, f"\\{character}")
    return text
