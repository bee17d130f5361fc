"""Groups of values as bars that lie, each with its name beside it, so that a phone shows them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from slmq_edge.reports.plots.axes import SMALLEST, Axis, drawable, steps, tick_text
from slmq_edge.reports.plots.style import BOLD, SMALL, TEXT, TITLE, series_class
from slmq_edge.reports.plots.svg import (
    MARGIN,
    WIDTH,
    box,
    drawing,
    figures,
    line,
    mark,
    shortened,
    text,
    titled,
    width_of,
)

# Name, value, and the ends of its interval.
Bar = tuple[str, float, float | None, float | None]
Group = tuple[str, Sequence[Bar]]
ROW, GAP = 22.0, 12.0
# The most that names of bars may take of the width.
NAMES = 135.0


def bars(groups: Sequence[Group], *, title: str, unit: str, baseline: float | None = None) -> str:
    """One ``<svg>``. unit: of all values. baseline: a value that all are read against, as a line.

    Bars of one name have one colour in every group; a value that is not finite has no bar.
    """
    drawn: list[str] = []
    y = titled(title, WIDTH, TITLE, drawn)
    listed = [bar for _, inside in groups for bar in inside]
    if not listed:
        drawn.append(text(WIDTH / 2, y + 2 * ROW, "no figures", "plot-soft plot-middle"))
        return drawing(title, WIDTH, y + 4 * ROW, drawn)
    names = {name: place for place, name in enumerate(dict.fromkeys(bar[0] for bar in listed))}
    left = MARGIN + min(NAMES, max(width_of(name, SMALL) for name in names)) + 8
    axis = _axis(listed, baseline, left)
    top, behind, inside_rows = y, len(drawn), 0
    for heading, inside in groups:
        if heading:
            y += TEXT + 4
            drawn.append(
                text(MARGIN, y, shortened(heading, WIDTH - 2 * MARGIN, BOLD * TEXT), "plot-head")
            )
            y += 6
        for bar in inside:
            _bar(bar, series_class(names[bar[0]]), y, left, axis, drawn)
            y += ROW
            inside_rows += 1
        y += GAP
    drawn[behind:behind] = _behind(axis, top, y, baseline)
    drawn.append(text(WIDTH - MARGIN, y + 2 * ROW - 6, unit, "plot-soft plot-end"))
    return drawing(title, WIDTH, y + 2 * ROW + 4, drawn)


def _axis(listed: Sequence[Bar], baseline: float | None, left: float) -> Axis:
    """From 0, or below it, to the largest; at the right there is room for a value's figures."""
    ends = [0.0, *(end for bar in listed for end in _extent(bar))]
    if drawable(baseline):
        ends.append(baseline)
    low, high = min(ends), max(ends)
    if high - low < SMALLEST:
        high = low + 1.0
    figures_wide = max(width_of(figures(bar[1]), SMALL) for bar in listed) + 8
    start = left + (figures_wide if low < 0 else 0.0)
    return Axis(low, high, start, WIDTH - MARGIN - figures_wide)


def _extent(bar: Bar) -> Iterator[float]:
    for end in bar[1:]:
        if drawable(end):
            yield end


def _behind(axis: Axis, top: float, bottom: float, baseline: float | None) -> list[str]:
    """Lines of round numbers, the numbers below, and the baseline."""
    drawn: list[str] = []
    free = -math.inf
    for value in steps(axis.low, axis.high, 5):
        x, words = axis.place(value), tick_text(value)
        half = width_of(words, SMALL) / 2
        drawn.append(line(x, top, x, bottom, "plot-line"))
        if x - half > free:
            drawn.append(text(x, bottom + 16, words, "plot-soft plot-middle"))
            free = x + half + 6
    if drawable(baseline):
        x = axis.place(baseline)
        told = line(x, top, x, bottom, "plot-rule")
        drawn.append(f"<g><title>baseline: {figures(baseline)}</title>{told}</g>")
    return drawn


def _bar(bar: Bar, kind: str, y: float, left: float, axis: Axis, drawn: list[str]) -> None:
    name, value, low, high = bar
    middle = y + ROW / 2
    said = shortened(name, left - MARGIN - 8, SMALL)
    drawn.append(text(left - 8, middle + 4.5, said, "plot-soft plot-end"))
    if not drawable(value):
        drawn.append(text(axis.place(0) + 4, middle + 4.5, "no figure", "plot-soft"))
        return
    zero, end = axis.place(0.0), axis.place(value)
    # A value of 0 keeps a mark that can be seen.
    start, wide = min(zero, end), max(1.0, abs(end - zero))
    marks, far = [box(start, y + 4, wide, ROW - 8, f"plot-bar {kind}")], end
    interval = ""
    if drawable(low) and drawable(high):
        ends = axis.place(low), axis.place(high)
        marks.append(line(ends[0], middle, ends[1], middle, "plot-error"))
        marks += [line(at, middle - 4, at, middle + 4, "plot-error") for at in ends]
        interval = f" [{figures(low)}, {figures(high)}]"
        far = ends[1] if value >= 0 else ends[0]
    drawn.append(mark(f"{name}: {figures(value)}{interval}", *marks))
    if value >= 0:
        drawn.append(text(max(far, zero) + 5, middle + 4.5, figures(value), "plot-soft"))
    else:
        drawn.append(text(far - 5, middle + 4.5, figures(value), "plot-soft plot-end"))
