"""Figures as text, as all formats of the study have them."""

from __future__ import annotations

from slmq_edge.compare import Row as Compared
from slmq_edge.reports.format import rate_text
from slmq_edge.reports.study.layout import BAD, DOUBTFUL, GOOD, NOTHING, TIMES, Cell
from slmq_edge.study.accuracy import Kept
from slmq_edge.study.answer import KEEPS, LOSES, UNCLEAR
from slmq_edge.study.inference import Row

TONES = {KEEPS: GOOD, LOSES: BAD, UNCLEAR: DOUBTFUL}
OF_RATIOS = {"better": GOOD, "worse": BAD, "inconclusive": DOUBTFUL}


def rate(per_second: float) -> str:
    return rate_text(per_second, "").strip()


def times(ratio: float | None) -> str:
    """As many times as 1."""
    return NOTHING if ratio is None else f"{ratio:.2f}{TIMES}"


def times_cell(row: Row, found: Compared | None) -> Cell:
    """A ratio and its interval; its tone is what may be said of it. Of a baseline it is 1."""
    if found is None:
        return Cell(times(1.0) if row.is_baseline else NOTHING)
    tone = "" if found.exact else OF_RATIOS.get(found.verdict or "", "")
    return Cell(times(found.ratio), span(found.low, found.high, 2), tone)


def span(low: float | None, high: float | None, digits: int) -> str:
    """[1.02, 1.66]; nothing where there is no interval."""
    if low is None or high is None:
        return ""
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def kept_cell(found: Kept | None, said: str = "") -> Cell:
    if found is None:
        return Cell(NOTHING)
    return Cell(f"{found.value:.1f}", span(found.low, found.high, 1), TONES.get(said, ""))


def score_cell(row: Row) -> Cell:
    """SLMQ_infer; a baseline's has no interval."""
    if row.score is None:
        return Cell(NOTHING)
    return Cell(f"{row.score.value:.1f}", span(row.score.low, row.score.high, 0))


def kept_name(found: Kept) -> str:
    """SLMQ_perf, or over how many tasks it is where it is not."""
    count = len(found.tasks)
    return "SLMQ_perf" if found.is_perf else f"kept over {count} task{'s' if count > 1 else ''}"


def points(value: float) -> str:
    """A margin: 1 %."""
    return f"{value:g} %"
