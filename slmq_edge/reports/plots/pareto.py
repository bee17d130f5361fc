"""Points, and the front of those that no other beats in both figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slmq_edge.reports.plots.axes import SMALLEST, Axis, around, drawable, tick_text
from slmq_edge.reports.plots.labels import Placed, Rect, put
from slmq_edge.reports.plots.style import SMALL, TITLE, series_class
from slmq_edge.reports.plots.svg import (
    MARGIN,
    WIDTH,
    drawing,
    figures,
    line,
    mark,
    path,
    shape,
    shortened,
    text,
    titled,
    width_of,
    wrapped,
)

HIGH, LEFT, ROW = 240.0, 50.0, 18.0
INSIDE = WIDTH - LEFT - MARGIN
# Before the name of a series, for its shape; and between what stands side by side.
MARKED, BETWEEN = 17.0, 12.0
Place = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """What is measured of one thing.

    low, high: the interval of y. series: what has a colour and a shape in common. note: why the
    point is to be doubted: it is drawn hollow, and is in no front.
    """

    x: float
    y: float
    label: str
    series: str
    low: float | None = None
    high: float | None = None
    note: str = ""


def front(points: Sequence[Point], smaller_x: bool = True, higher_y: bool = True) -> list[Point]:
    """Those that no other is as good as in both figures and better than in one; by x.

    Points with a note are left out, and of equal points the first stands for all.
    """

    def cost(point: Point) -> tuple[float, float]:
        return (point.x if smaller_x else -point.x), (-point.y if higher_y else point.y)

    found: list[Point] = []
    for point in sorted((one for one in points if not one.note), key=cost):
        if not found or cost(point)[1] < cost(found[-1])[1]:
            found.append(point)
    return sorted(found, key=lambda point: point.x)


def pareto(
    points: Sequence[Point],
    *,
    title: str,
    x: str,
    y: str,
    x_log: bool = False,
    smaller_is_better_x: bool = True,
    higher_is_better_y: bool = True,
) -> str:
    """A scatter with its front as a line: one ``<svg>``. x, y: what is measured, and the unit.

    Points without a place are counted below it: a figure is no finite number, or, where ``x_log``,
    not above 0.
    """
    shown = [point for point in points if _has_place(point, x_log)]
    drawn: list[str] = []
    top = titled(title, WIDTH, TITLE, drawn) + ROW
    drawn.append(text(MARGIN, top - 5, f"{y} {'↑' if higher_is_better_y else '↓'}", "plot-soft"))
    bottom = top + (HIGH if shown else 3 * ROW)
    said = f"← {x}" if smaller_is_better_x else f"{x} →"
    if shown:
        across = around((point.x for point in shown), LEFT, WIDTH - MARGIN, x_log, 0.1)
        up = around((v for point in shown for v in _extent(point)), bottom, top, False, 0.1)
        _grid(across, up, drawn)
        best = front(shown, smaller_is_better_x, higher_is_better_y)
        stairs = _front(best, across, up, smaller_is_better_x)
        if len(best) > 1:
            drawn.append(path(stairs, "plot-front"))
        placed = _points(shown, best, stairs, across, up, drawn)
    else:
        placed = []
        drawn.append(line(LEFT, bottom, WIDTH - MARGIN, bottom, "plot-line"))
        drawn.append(
            text((LEFT + WIDTH) / 2, top + 1.7 * ROW, "no figures", "plot-soft plot-middle")
        )
    drawn.append(text(WIDTH - MARGIN, bottom + 2 * ROW, said, "plot-soft plot-end"))
    y_end = _legend(shown, bottom + 3.2 * ROW, drawn)
    y_end = _key(shown, placed, y_end, drawn)
    y_end = _notes(shown, len(points) - len(shown), y_end, drawn)
    return drawing(title, WIDTH, y_end, drawn)


def _has_place(point: Point, x_log: bool) -> bool:
    known = drawable(point.x) and drawable(point.y)
    return known and not (x_log and point.x < SMALLEST)


def _extent(point: Point) -> Iterator[float]:
    yield point.y
    for end in (point.low, point.high):
        if drawable(end):
            yield end


def _grid(across: Axis, up: Axis, drawn: list[str]) -> None:
    for value in up.ticks:
        y = up.place(value)
        drawn.append(line(LEFT, y, WIDTH - MARGIN, y, "plot-line"))
        drawn.append(text(LEFT - 6, y + 4.5, tick_text(value), "plot-soft plot-end"))
    free = -math.inf
    for value in across.ticks:
        x, words = across.place(value), tick_text(value)
        half = width_of(words, SMALL) / 2
        drawn.append(line(x, up.start, x, up.end, "plot-line"))
        if x - half > free and x + half <= WIDTH:
            drawn.append(text(x, up.start + ROW - 2, words, "plot-soft plot-middle"))
            free = x + half + 6


def _front(best: Sequence[Point], across: Axis, up: Axis, smaller_x: bool) -> list[Place]:
    """A staircase: what a point reaches holds for all that costs more, up to the next point."""
    corners: list[Place] = []
    for point in best if smaller_x else reversed(best):
        here = across.place(point.x), up.place(point.y)
        if corners:
            corners.append((here[0], corners[-1][1]))
        corners.append(here)
    return corners


def _series(points: Sequence[Point]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(p.series for p in points))}


def _points(
    shown: Sequence[Point],
    best: Sequence[Point],
    stairs: Sequence[Place],
    across: Axis,
    up: Axis,
    drawn: list[str],
) -> list[Placed]:
    """Intervals, markers over them, then labels, which keep off both and off the stairs."""
    series = _series(shown)
    places = [(across.place(point.x), up.place(point.y)) for point in shown]
    lines = [_around(*ends) for ends in itertools.pairwise(stairs)]
    for point, (x, y) in zip(shown, places, strict=True):
        drawn.append(mark(_figures(point), *_error(point, x, up), _marker(point, series, x, y)))
        ends = [up.place(value) for value in _extent(point)]
        lines.append(_around((x, min(ends)), (x, max(ends))))
    inside = Rect(LEFT, up.end, INSIDE, HIGH)
    order = sorted(range(len(shown)), key=lambda place: shown[place] not in best)
    placed = put(places, [point.label for point in shown], inside, order, lines)
    for label in placed:
        leader = label.leader(*places[label.place])
        if leader is not None:
            drawn.append(line(*leader, "plot-leader"))
        kind = "plot-soft plot-number" if label.is_number else "plot-soft plot-label"
        drawn.append(text(*label.start, label.words, kind))
    return placed


def _around(one: Place, other: Place) -> Rect:
    """What a line takes."""
    left, right = sorted((one[0], other[0]))
    top, bottom = sorted((one[1], other[1]))
    return Rect(left - 1, top - 1, right - left + 2, bottom - top + 2)


def _error(point: Point, x: float, up: Axis) -> list[str]:
    """The interval of y with its ends."""
    if not (drawable(point.low) and drawable(point.high)):
        return []
    low, high = up.place(point.low), up.place(point.high)
    ends = [line(x - 4, at, x + 4, at, "plot-error") for at in (low, high)]
    return [line(x, low, x, high, "plot-error"), *ends]


def _marker(point: Point, series: dict[str, int], x: float, y: float) -> str:
    place = series[point.series]
    hollow = " plot-hollow" if point.note else ""
    return shape(place, x, y, f"{series_class(place)}{hollow}")


def _figures(point: Point) -> str:
    name = ", ".join(dict.fromkeys(word for word in (point.label, point.series) if word))
    interval = ""
    if drawable(point.low) and drawable(point.high):
        interval = f" [{figures(point.low)}, {figures(point.high)}]"
    note = f"; {point.note}" if point.note else ""
    return f"{name}: x {figures(point.x)}, y {figures(point.y)}{interval}{note}"


def _legend(shown: Sequence[Point], y: float, drawn: list[str]) -> float:
    """Shapes and names of series."""
    series = {name: place for name, place in _series(shown).items() if name}
    y, starts = _in_rows(list(series), y, MARKED, drawn)
    for place, (x, baseline) in zip(series.values(), starts, strict=True):
        drawn.append(shape(place, x + 6, baseline - 5, series_class(place)))
    return y


def _key(shown: Sequence[Point], placed: Sequence[Placed], y: float, drawn: list[str]) -> float:
    """What the numbers beside points stand for."""
    numbered = [f"{label.words} {shown[label.place].label}" for label in placed if label.is_number]
    return _in_rows(numbered, y, 0.0, drawn)[0]


def _in_rows(
    items: Sequence[str], y: float, before: float, drawn: list[str]
) -> tuple[float, list[Place]]:
    """Draw words side by side while there is room; where the next row is, and where each starts.

    before: what is left free for something in front of the words.
    """
    starts: list[Place] = []
    x = float(MARGIN)
    for item in items:
        words = shortened(item, WIDTH - 2 * MARGIN - before, SMALL)
        wide = before + width_of(words, SMALL)
        if x > MARGIN and x + wide > WIDTH - MARGIN:
            x, y = float(MARGIN), y + ROW
        starts.append((x, y))
        drawn.append(text(x + before, y, words, "plot-soft"))
        x += wide + BETWEEN
    return (y + ROW if items else y), starts


def _notes(shown: Sequence[Point], without: int, y: float, drawn: list[str]) -> float:
    """Why points are hollow, and how many have no place."""
    notes = list(dict.fromkeys(point.note for point in shown if point.note))
    told = [f"hollow: {'; '.join(notes)}"] if notes else []
    if without:
        told.append(f"{without} without a figure to draw")
    for words in told:
        for fitting in wrapped(words, WIDTH - 2 * MARGIN, SMALL):
            drawn.append(text(MARGIN, y, fitting, "plot-soft"))
            y += ROW
    return y
