"""Elements of SVG as text. All words are escaped; what XML cannot hold becomes U+FFFD."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

from slmq_edge.reports.plots.style import BOLD, STYLE, TEXT

# Units; on a phone of 360 px, of which a page leaves 300 or more, type of 13 units has 11 px.
WIDTH, MARGIN = 352, 8
# The widest that a plot is shown, in px for each unit: above, it would be all type.
LARGEST = 1.25
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def words_of(text: str) -> str:
    """Text as it may stand between tags, or in an attribute."""
    return escape(_UNPRINTABLE.sub("\ufffd", text))


def number(value: float) -> str:
    """A coordinate, to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words whose baseline starts, ends or has its middle there, as classes of ``kind`` say."""
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text{of_kind} x="{number(x)}" y="{number(y)}">{words_of(words)}</text>'


def box(x: float, y: float, wide: float, high: float, kind: str, more: str = "") -> str:
    return (
        f'<rect class="{kind}" x="{number(x)}" y="{number(y)}" width="{number(max(0.0, wide))}" '
        f'height="{number(max(0.0, high))}"{more}/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return (
        f'<line class="{kind}" x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" '
        f'y2="{number(y2)}"/>'
    )


def path(points: Iterable[tuple[float, float]], kind: str, closed: bool = False) -> str:
    """Straight from point to point."""
    steps = " L".join(f"{number(x)} {number(y)}" for x, y in points)
    return f'<path class="{kind}" d="M{steps}{" Z" if closed else ""}"/>'


def mark(title: str, *drawn: str) -> str:
    """What stands for data, and the figures that it stands for."""
    return f'<g class="plot-mark"><title>{words_of(title)}</title>{"".join(drawn)}</g>'


def drawing(
    name: str, wide: float, high: float, drawn: Iterable[str], narrowest: float | None = None
) -> str:
    """One ``<svg>`` that takes the width of what it stands in.

    narrowest: in px, of a drawing that would not be legible below and has to be scrolled.
    """
    least = "" if narrowest is None else f"min-width: {number(narrowest)}px; "
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" class="plot" '
            f'viewBox="0 0 {number(wide)} {number(high)}" width="{number(wide)}" '
            f'height="{number(high)}" style="{least}width: 100%; '
            f'max-width: {number(LARGEST * wide)}px; height: auto" role="img" '
            f'aria-label="{words_of(name)}">',
            f"<title>{words_of(name)}</title>",
            *drawn,
            "</svg>",
            "",
        ]
    )


def as_file(svg: str) -> str:
    """A drawing with its own style and paper: a file that a browser opens."""
    head, rest = svg.split(">", 1)  # no attribute holds one: they are escaped
    paper = '<rect class="plot-paper" width="100%" height="100%"/>'
    return f"{head}>\n<style>{STYLE}</style>\n{paper}{rest}"


def width_of(words: str, size: float = TEXT) -> float:
    """About how wide words are; rather too much."""
    wide = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.61 for c in words)
    return wide * size


def wrapped(words: str, width: float, size: float = TEXT) -> list[str]:
    """Lines no wider than ``width``, broken at blanks; a word too long for a line is cut short."""
    lines: list[str] = []
    for word in words.split():
        fitting = shortened(word, width, size)
        longer = f"{lines[-1]} {fitting}" if lines else ""
        if lines and width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(fitting)
    return lines


def shortened(words: str, width: float, size: float = TEXT) -> str:
    """Words, or as many of their letters as there is room for."""
    if width_of(words, size) <= width:
        return words
    kept = words
    while kept and width_of(kept + "…", size) > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def titled(title: str, wide: float, size: float, drawn: list[str]) -> float:
    """Draw a title at the top; where what follows may begin."""
    y = float(MARGIN)
    for words in wrapped(title, wide - 2 * MARGIN, BOLD * size):
        y += size + 3
        drawn.append(text(MARGIN, y, words, "plot-title"))
    return y + 6


def figures(value: float) -> str:
    """Up to four digits: 99.32, 0.00123, 1.2e+06."""
    return f"{value:.4g}"


_CORNERS: tuple[Sequence[float], ...] = (
    (),  # a circle
    (45, 135, 225, 315),
    (90, 210, 330),
    (0, 90, 180, 270),
    (30, 150, 270),
    (18, 90, 162, 234, 306),
    (0, 60, 120, 180, 240, 300),
    (45, 80, 135, 170, 225, 260, 315, 350),
)


def shape(place: int, x: float, y: float, kind: str, size: float = 5.5) -> str:
    """The marker of the series at a place: as many shapes as there are colours."""
    corners = _CORNERS[place % len(_CORNERS)]
    if not corners:
        return (
            f'<circle class="plot-shape {kind}" cx="{number(x)}" cy="{number(y)}" '
            f'r="{number(size)}"/>'
        )
    far = size * (1.25 if len(corners) <= 4 else 1.15)
    short = size * 0.5
    radii = [short if len(corners) == 8 and at % 2 else far for at in range(len(corners))]
    points = [
        (x + radius * math.cos(math.radians(angle)), y - radius * math.sin(math.radians(angle)))
        for radius, angle in zip(radii, corners, strict=True)
    ]
    return path(points, f"plot-shape {kind}", closed=True)
