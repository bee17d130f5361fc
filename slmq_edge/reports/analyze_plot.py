"""A sensitivity analysis as one SVG. Pure.

Above, the damage of every part alone, a column for each block; below it, that of whole blocks; at
the bottom, what the parts of a kind come to. A title on each mark has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from slmq_edge.reports.analyze import (
    KINDS,
    by_kind,
    change_text,
    heading,
    kl_text,
    share_of_sum,
    short,
)
from slmq_edge.reports.format import share_text
from slmq_edge.reports.plots.axes import steps
from slmq_edge.reports.plots.svg import box, drawing, line, mark, text

if TYPE_CHECKING:
    from slmq_edge.analysis.damage import Damage
    from slmq_edge.analysis.parts import Part
    from slmq_edge.analysis.sensitivity import Analysis

WIDTH, MARGIN, LABELS = 960, 24, 150
# In px; below, its small type would be none.
NARROWEST = 820
INSIDE = WIDTH - MARGIN - LABELS
ROW, GAP, BARS = 26, 46, 170
# Shades span so many powers of ten below the worst part.
DECADES = 3
FAINTEST = 0.06
# Cells as wide as this have their figure in them.
WRITABLE = 64
# Colours: of all of a part, of its weights, of its inputs.
COLOURS = {"both": "plot-s2", "weights": "plot-s1", "activations": "plot-s5"}
CELL = f"plot-cell {COLOURS['both']}"


def svg(found: Analysis) -> str:
    """The whole drawing, for a page or for ``plots.as_file``; narrow screens scroll it."""
    drawn: list[str] = []
    y = _heading(found, drawn)
    y = _grid(found, drawn, y + GAP)
    y = _blocks(found, drawn, y + GAP)
    height = _kinds(found, drawn, y + GAP) + MARGIN
    name = f"Sensitivity of {found.model} to {found.scheme} by {found.method}"
    return drawing(name, WIDTH, height, drawn, narrowest=NARROWEST)


def _heading(found: Analysis, drawn: list[str]) -> float:
    y = MARGIN + 14.0
    title = f"{found.model}: where {found.scheme} by {found.method} hurts"
    drawn.append(text(MARGIN, y, title, "plot-title"))
    for words in heading(found):
        y += 20
        drawn.append(text(MARGIN, y, words, "plot-soft"))
    return y


def _grid(found: Analysis, drawn: list[str], y: float) -> float:
    """A cell for each part of each block, the darker the worse, on a scale of powers of ten."""
    placed = [part for part in found.parts if part.layer is not None]
    kinds = [kind for kind in by_kind(found) if any(part.kind == kind for part in placed)]
    worst = max((part.kl for part in placed), default=0.0)
    drawn.append(text(MARGIN, y, "Each part rounded alone, by block", "plot-head"))
    _shades(drawn, y, worst)
    y += 12
    wide = INSIDE / max(1, len(found.blocks))
    for row, kind in enumerate(kinds):
        middle = y + ROW * (row + 0.5) + 4
        drawn.append(text(LABELS - 10, middle, kind, "plot-end"))
    for part in placed:
        left, top = LABELS + wide * (part.layer or 0), y + ROW * kinds.index(part.kind)
        shade = _shade(part.kl, worst)
        cell = box(left, top, wide, ROW, CELL, f' fill-opacity="{shade:.3f}"')
        if wide >= WRITABLE:
            ink = "plot-on" if shade > 0.75 else "plot-dark" if shade > 0.45 else ""
            cell += text(
                left + wide / 2, top + ROW / 2 + 4, kl_text(part.kl), f"plot-middle {ink}".strip()
            )
        drawn.append(mark(_figures(short(part.name), part.damage), cell))
    y += ROW * len(kinds)
    _numbers(drawn, found.blocks, y, wide)
    return y + 18


def _shade(kl: float, worst: float) -> float:
    """1 for the worst, ``FAINTEST`` for a thousandth of it and all below."""
    if kl <= 0 or worst <= 0:
        return FAINTEST
    return max(FAINTEST, min(1.0, 1 + math.log10(kl / worst) / DECADES))


def _shades(drawn: list[str], y: float, worst: float) -> None:
    """What the shades mean, at the right of a line of text."""
    steps = [worst / 10**power for power in range(DECADES, -1, -1)]
    wide = 74
    left = WIDTH - MARGIN - wide * len(steps)
    for place, kl in enumerate(steps):
        x = left + wide * place
        shade = f' fill-opacity="{_shade(kl, worst):.3f}"'
        drawn.append(box(x, y - 11, 14, 14, CELL, shade))
        drawn.append(text(x + 19, y, kl_text(kl), "plot-soft"))


def _blocks(found: Analysis, drawn: list[str], y: float) -> float:
    """Bars for each block: all of it rounded, its weights alone, its inputs alone."""
    damages: list[Mapping[Any, Damage]] = [block.damage for block in found.blocks]
    kinds = [kind for kind in KINDS if any(kind in damage for damage in damages)]
    top = max((one.kl for damage in damages for one in damage.values()), default=0.0) or 1.0
    drawn.append(text(MARGIN, y, "All of a block rounded", "plot-head"))
    for place, kind in enumerate(kinds):
        x = WIDTH - MARGIN - 110 * (len(kinds) - place)
        words = {"both": "all", "weights": "weights", "activations": "inputs"}[kind]
        drawn.append(box(x, y - 11, 14, 14, COLOURS[kind]))
        drawn.append(text(x + 19, y, words, "plot-soft"))
    y += 16
    for step in steps(0.0, top, 8):
        height = y + BARS * (1 - step / top)
        drawn.append(line(LABELS, height, WIDTH - MARGIN, height, "plot-line"))
        drawn.append(
            text(LABELS - 10, height + 4, kl_text(step) if step else "0", "plot-soft plot-end")
        )
    wide = INSIDE / max(1, len(damages))
    bar = min(22.0, 0.8 * wide / max(1, len(kinds)))
    for place, (block, damage) in enumerate(zip(found.blocks, damages, strict=True)):
        start = LABELS + wide * (place + 0.5) - bar * len(kinds) / 2
        for number, kind in enumerate(kinds):
            if kind not in damage:
                continue
            high = BARS * damage[kind].kl / top
            cell = box(
                start + bar * number, y + BARS - high, bar - 1, high, f"plot-bar {COLOURS[kind]}"
            )
            drawn.append(mark(_figures(f"block {block.layer}", damage), cell))
    _numbers(drawn, found.blocks, y + BARS, wide)
    return y + BARS + 18


def _kinds(found: Analysis, drawn: list[str], y: float) -> float:
    """A bar for each kind of part: its single damages summed over all blocks."""
    totals = by_kind(found)
    top = max(totals.values(), default=0.0) or 1.0
    drawn.append(text(MARGIN, y, "Where it comes from: single damages summed", "plot-head"))
    y += 12
    room = INSIDE - 150
    for row, (kind, kl) in enumerate(totals.items()):
        height = y + ROW * row
        said = f"{kl_text(kl)}, {share_text(share_of_sum(found, kl))}"
        drawn.append(text(LABELS - 10, height + 17, kind, "plot-end"))
        cell = box(LABELS, height + 4, room * kl / top, ROW - 8, f"plot-bar {COLOURS['both']}")
        drawn.append(mark(f"{kind}: {said}", cell))
        drawn.append(text(LABELS + room * kl / top + 8, height + 17, said, "plot-soft"))
    return y + ROW * len(totals)


def _numbers(drawn: list[str], blocks: Iterable[Part], y: float, wide: float) -> None:
    """Numbers of blocks below their columns, as many as there is room for."""
    listed = list(blocks)
    drawn.append(text(LABELS - 10, y + 15, "block", "plot-soft plot-end"))
    every = max(1, math.ceil(24 / wide))
    for place, block in enumerate(listed):
        if place % every == 0:
            at = LABELS + wide * (place + 0.5)
            drawn.append(text(at, y + 15, str(block.layer), "plot-soft plot-middle"))


def _figures(name: str, damage: Mapping[Any, Damage]) -> str:
    told = [f"{KINDS[kind]} {kl_text(one.kl)}" for kind, one in damage.items()]
    return f"{name}: {', '.join(told)} nats; perplexity {change_text(damage['both'])}"
