"""What sections are made of: text that is rounded already, before anything says how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PLAIN, BASELINE, PAPER = "", "baseline", "paper"
GOOD, DOUBTFUL, BAD = "good", "doubtful", "bad"


@dataclass(frozen=True)
class Cell:
    """text: the figure. below: its interval or its condition. tone: one of the above, or none."""

    text: str
    below: str = ""
    tone: str = ""

    @property
    def flat(self) -> str:
        """In one line."""
        return " ".join(part for part in (self.text, self.below) if part)


@dataclass(frozen=True)
class Line:
    """A row of a table. kind: whether it is the baseline, or what the paper prints."""

    cells: tuple[Cell, ...]
    kind: str = PLAIN


@dataclass(frozen=True)
class Table:
    """texts: so many columns at the left are words; all others are figures."""

    caption: str
    headings: tuple[str, ...]
    lines: tuple[Line, ...]
    texts: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fold:
    """What is shown when it is asked for: names and values, warnings, a text line by line."""

    title: str
    pairs: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Choice:
    """A choice in figures: what it is best in, who, and by how much."""

    what: str
    name: str
    figure: str
    below: str
    is_clear: bool


@dataclass(frozen=True)
class Verdict:
    """An answer for one device and model, in figures and in sentences.

    doubts: what each is of, and why. is_clear: whether nothing of it is in doubt.
    """

    title: str
    choices: tuple[Choice, ...]
    sentences: tuple[str, ...]
    doubts: tuple[str, ...]
    is_clear: bool


@dataclass(frozen=True)
class Section:
    """anchor: unique, of letters and dashes."""

    anchor: str
    title: str
    leads: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    tables: tuple[Table, ...] = ()
    folds: tuple[Fold, ...] = ()
    items: tuple[str, ...] = ()


def line(*cells: Cell | str, kind: str = PLAIN) -> Line:
    return Line(tuple(one if isinstance(one, Cell) else Cell(one) for one in cells), kind)


def tidied(table: Table) -> Table:
    """The table without columns that say nothing, and what a whole column says once, above it."""
    return _lifted(_without_empty_columns(table))


def _lifted(table: Table) -> Table:
    if len(table.lines) < 2:
        return table
    headings, columns = [], []
    for heading, column in zip(
        table.headings, zip(*(row.cells for row in table.lines), strict=True), strict=True
    ):
        told = {cell.below for cell in column if cell.text != NOTHING}
        common = told.pop() if len(told) == 1 else ""
        if common.startswith(OF_FIGURES):
            common = ""
        headings.append(f"{heading} ({common})" if common else heading)
        columns.append(
            [Cell(cell.text, "" if common else cell.below, cell.tone) for cell in column]
        )
    lines = [
        Line(cells, row.kind)
        for cells, row in zip(zip(*columns, strict=True), table.lines, strict=True)
    ]
    return Table(table.caption, tuple(headings), tuple(lines), table.texts, table.notes)


def _without_empty_columns(table: Table) -> Table:
    keep = [
        place
        for place in range(len(table.headings))
        if any(row.cells[place].flat not in ("", NOTHING) for row in table.lines)
    ]
    return Table(
        table.caption,
        tuple(table.headings[place] for place in keep),
        tuple(Line(tuple(row.cells[place] for place in keep), row.kind) for row in table.lines),
        sum(place < table.texts for place in keep),
        table.notes,
    )


TIMES = "\N{MULTIPLICATION SIGN}"
NOTHING = "\N{EN DASH}"
OF_FIGURES = (
    "[",
    "\N{PLUS-MINUS SIGN}",
)  # how intervals and errors begin: each is its figure's own


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
