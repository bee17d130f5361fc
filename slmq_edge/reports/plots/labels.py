"""Labels of points: each beside its point where there is room, and in a numbered key where not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slmq_edge.reports.plots.style import SMALL
from slmq_edge.reports.plots.svg import width_of

# From a point to its label, and half the height of a marker.
GAP, REACH = 9.0, 7.0
HIGH = SMALL + 1.0
# How far a number may stand off, and in how many directions.
RINGS, TURNS = (17.0, 28.0, 42.0, 58.0), 16


@dataclass(frozen=True)
class Rect:
    left: float
    top: float
    wide: float
    high: float

    def meets(self, other: Rect) -> float:
        """The area that both cover."""
        x = min(self.left + self.wide, other.left + other.wide) - max(self.left, other.left)
        y = min(self.top + self.high, other.top + other.high) - max(self.top, other.top)
        return max(0.0, x) * max(0.0, y)

    def holds(self, other: Rect) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.left + other.wide <= self.left + self.wide
            and other.top + other.high <= self.top + self.high
        )


@dataclass(frozen=True)
class Placed:
    """A label, or its number in the key, of the point at a place; rect: where it is."""

    place: int
    words: str
    rect: Rect
    is_number: bool

    @property
    def start(self) -> tuple[float, float]:
        """Of its baseline."""
        return self.rect.left, self.rect.top + HIGH - 3

    def leader(self, x: float, y: float) -> tuple[float, float, float, float] | None:
        """The line from its point at x, y to a label that stands off; ``None`` beside the point."""
        middle = self.rect.left + self.rect.wide / 2, self.rect.top + HIGH / 2
        far = math.dist((x, y), middle)
        if not self.is_number or far < RINGS[1]:
            return None
        near, end = REACH / far, 1 - REACH / far
        across, down = middle[0] - x, middle[1] - y
        return x + near * across, y + near * down, x + end * across, y + end * down


def put(
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    inside: Rect,
    order: Iterable[int],
    taken: Sequence[Rect] = (),
) -> list[Placed]:
    """Where labels go, so that none lies on another, on a point, or outside.

    order: who is asked first. A label that fits nowhere gives way to a number, counted from 1 in
    ``order``, which may stand off, with a line to its point; of places that all cover something,
    that is taken which covers least. taken: where none may lie.
    """
    markers = [Rect(x - REACH, y - REACH, 2 * REACH, 2 * REACH) for x, y in points]
    used = [*markers, *taken]
    placed: list[Placed] = []
    left_over: list[int] = []
    for place in order:
        words = labels[place]
        free = [
            rect
            for rect in _beside(*points[place], width_of(words, SMALL))
            if inside.holds(rect) and not any(rect.meets(other) for other in used)
        ]
        if not free:
            left_over.append(place)
            continue
        used.append(free[0])
        placed.append(Placed(place, words, free[0], False))
    for count, place in enumerate(left_over, 1):
        rects = [
            rect for rect in _off(*points[place], width_of(str(count), SMALL)) if inside.holds(rect)
        ]
        best = min(rects, key=lambda rect: sum(rect.meets(other) for other in used))
        used.append(best)
        placed.append(Placed(place, str(count), best, True))
    return placed


def _beside(x: float, y: float, wide: float) -> list[Rect]:
    """Places beside a point, the best first."""
    right, left, middle = x + GAP, x - GAP - wide, x - wide / 2
    level, above, below = y - HIGH / 2, y - GAP - HIGH, y + GAP
    tops = (level, level - HIGH * 0.7, level + HIGH * 0.7)
    sides = [(side, top) for top in tops for side in (right, left)]
    ends = [(middle, above), (middle, below)]
    corners = [(side, top) for top in (above, below) for side in (x - 4, x + 4 - wide)]
    return [Rect(a, b, wide, HIGH) for a, b in (*sides[:2], *ends, *sides[2:], *corners)]


def _off(x: float, y: float, wide: float) -> list[Rect]:
    """Places for a number, the nearest first, all round its point."""
    return [
        Rect(
            x + radius * math.cos(turn * math.tau / TURNS) - wide / 2,
            y - radius * math.sin(turn * math.tau / TURNS) - HIGH / 2,
            wide,
            HIGH,
        )
        for radius in RINGS
        for turn in range(TURNS)
    ]
