"""Tables and paragraphs as plain text and as GitHub's Markdown."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 95  # columns of a terminal
CELL = 32  # of these, for one cell at most

Table = Sequence[Sequence[str]]


def aligned(rows: Table, texts: int) -> str:
    """Columns two blanks apart; the first ``texts`` to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{text:<{width}}" if place < texts else f"{text:>{width}}"
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def folded(rows: Table, texts: int, cell: int = CELL) -> str:
    """The same, where a cell longer than ``cell``, or of the others `CELL`, takes several lines."""
    lines: list[list[str]] = []
    for row in rows:
        parts = [
            textwrap.wrap(text, cell if place < texts else CELL) or [""]
            for place, text in enumerate(row)
        ]
        lines += map(list, itertools.zip_longest(*parts, fillvalue=""))
    return aligned(lines, texts)


def filled(text: str, start: str = "") -> str:
    """A paragraph of at most `WIDTH` columns; what follows the first line is indented."""
    indent = " " * len(start)
    return textwrap.fill(
        text, WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
    )


def piped(rows: Table, texts: int) -> str:
    """GitHub's Markdown; the first ``texts`` columns to the left."""
    head, *body = ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    ruler = ["---" if place < texts else "---:" for place in range(len(rows[0]))]
    return "\n".join([head, f"|{'|'.join(ruler)}|", *body])


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def escaped(text: str) -> str:
    """Keep a name from ending a cell, starting an emphasis, or being taken for a tag."""
    for character in "\\|*_`<":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
