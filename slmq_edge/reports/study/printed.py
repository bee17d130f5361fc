"""What the paper prints, as cells: marked as its own wherever they stand beside ours."""

from __future__ import annotations

from collections.abc import Iterable

from slmq_edge.reports.study.layout import NOTHING, Cell
from slmq_edge.sides import FLOAT_SCHEMES
from slmq_edge.study import paper
from slmq_edge.study.paper import Printed

SOURCE = (
    f'Lines marked "paper" are what {paper.TITLE}, prints, of its own FP16 baseline on its own '
    f"hardware; {NOTHING} is a cell that our sources do not quote."
)


def matching(rows: Iterable[Printed], method: str, scheme: str) -> list[Printed]:
    """Rows of this method and scheme; the paper's full precision for any float of ours."""
    return [
        row
        for row in rows
        if row.method == method
        and (row.scheme == scheme or (method == "none" and scheme in FLOAT_SCHEMES))
    ]


def name_cell(one: Printed) -> Cell:
    return Cell(f"{one.method} {one.scheme}", "paper")


def score_cell(one: Printed) -> Cell:
    """As printed; where the table's own cells make another, that too."""
    if one.score is None:
        return Cell(NOTHING)
    other = one.recomputed not in (None, one.score)
    return Cell(one.score, f"recomputed {one.recomputed}" if other else "")


def unit(cell: str | None, name: str) -> str:
    return NOTHING if cell is None else f"{cell} {name}"
