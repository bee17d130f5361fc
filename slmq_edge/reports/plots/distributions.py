"""Weights and inputs of linears, a row for each block, before a method and after it.

Rows are histograms of |x|: across its powers of ten, up the logarithm of how many values there are,
since outliers are few. A stroke at the end of each is its largest value, which sets a scale.
Panels of one quantity have one axis in both models, so that they can be read side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmq_edge.analysis.distributions import PER_OCTAVE
from slmq_edge.reports.plots.axes import Axis, decades, tick_text
from slmq_edge.reports.plots.style import BOLD, SMALL, TEXT, TITLE
from slmq_edge.reports.plots.svg import (
    MARGIN,
    WIDTH,
    box,
    drawing,
    figures,
    line,
    mark,
    path,
    shortened,
    text,
    titled,
    width_of,
)

if TYPE_CHECKING:
    from slmq_edge.analysis.distributions import Change, Distributions, Linear, Spread

# In px: two models side by side are scrolled where there is less.
NARROWEST = 600
LEFT, LINE, GAP = 34.0, 18.0, 20.0
# Rows are as high as that leaves all blocks of a panel this much room, within bounds.
PANEL, LOW, HIGH = 240.0, 9.0, 26.0
# Of its row, what the highest curve takes.
CREST = 0.9
# Below this share of the median there is nothing to see.
SMALLEST_SHARE = 1 / 64
# Figures that differ by less have not been changed: preparing is exact but for float32.
SAME = 0.01
AFTER, BEFORE = "plot-s1", "plot-s2"
WHAT = ("inputs", "weights")


@dataclass(frozen=True)
class Panel:
    """One quantity of one kind of linear: a change for each block of each model, or none."""

    kind: str
    what: str
    rows: tuple[tuple[Change, ...], ...]

    @property
    def spreads(self) -> list[Spread]:
        return [
            spread
            for model in self.rows
            for change in model
            for spread in (change.before, change.after)
            if spread is not None and spread.absmax > 0
        ]


def telling(document: Distributions) -> tuple[str, ...]:
    """Two kinds of linears, of those that read one input the first.

    That whose input stands out most before the method, by max |x| over median |x| in any block;
    and of the others that on which the method has most effect by this measure, or, where nothing
    was prepared, that whose input stands out most.
    """
    worst: dict[str, float] = {}
    effect: dict[str, float] = {}
    for linear in document.linears:
        if linear.reads != linear.name:
            continue
        before = _ratio(linear.inputs.before)
        after = before if linear.inputs.after is None else _ratio(linear.inputs.after)
        kind = linear.kind
        worst[kind] = max(worst.get(kind, 0.0), before)
        effect[kind] = max(effect.get(kind, 0.0), abs(math.log(before / after)))
    first = sorted(worst, key=lambda kind: -worst[kind])[:1]
    rest = [kind for kind in worst if kind not in first]
    by = effect if document.is_prepared else worst
    return (*first, *sorted(rest, key=lambda kind: -by[kind])[:1])


def _ratio(spread: Spread) -> float:
    return spread.absmax_over_median or 1.0


def distributions(
    document: Distributions,
    beside: Distributions | None = None,
    *,
    kinds: Sequence[str] | None = None,
    title: str | None = None,
) -> str:
    """One ``<svg>``: a column for each of one or two models, panels of their linears below.

    kinds: linears by their names within a block, such as ``mlp.down_proj``; ``None``: the two of
    the first model that tell most.
    """
    models = [document] if beside is None else [document, beside]
    kinds = telling(document) if kinds is None else kinds
    wide = WIDTH * len(models)
    name = title or "Weights and inputs, block by block"
    drawn: list[str] = []
    y = titled(name, wide, TITLE, drawn)
    y = _legend(any(one.is_prepared for one in models), y + LINE, drawn)
    for column, one in enumerate(models):
        told = f"{one.model}: {method_text(one)}"
        fitting = shortened(told, WIDTH - 2 * MARGIN, BOLD * TEXT)
        drawn.append(text(WIDTH * column + MARGIN, y + LINE + 8, fitting, "plot-head"))
    y += LINE + 8 + GAP
    for panel in (_panel(models, kind, what) for kind in kinds for what in WHAT):
        if panel.spreads:
            y = _draw(panel, y, drawn)
    return drawing(name, wide, y, drawn, NARROWEST if beside is not None else None)


def method_text(document: Distributions) -> str:
    """Of what, in a heading: the method and its scheme."""
    if not document.is_prepared:
        return "as released"
    return f"{document.method}, {document.scheme}"


def _panel(models: Sequence[Distributions], kind: str, what: str) -> Panel:
    def changes(one: Distributions) -> tuple[Change, ...]:
        found: list[Linear] = [linear for linear in one.linears if linear.kind == kind]
        return tuple(linear.inputs if what == "inputs" else linear.weights for linear in found)

    return Panel(kind, what, tuple(changes(one) for one in models))


def _legend(is_prepared: bool, y: float, drawn: list[str]) -> float:
    """What the colours are, and what is drawn."""
    x = float(MARGIN)
    entries = [("before", BEFORE), ("after", AFTER)] if is_prepared else [("as released", BEFORE)]
    for words, kind in entries:
        drawn.append(box(x, y - 11, 12, 12, f"plot-ridge {kind}"))
        drawn.append(text(x + 18, y, words, "plot-soft"))
        x += 18 + width_of(words, SMALL) + 14
    drawn.append(line(x + 4, y - 11, x + 4, y + 1, "plot-end-of"))
    drawn.append(text(x + 12, y, "largest value", "plot-soft"))
    y += LINE
    drawn.append(text(MARGIN, y, "across: |x|; up: log of the count", "plot-soft"))
    return y


def _draw(panel: Panel, y: float, drawn: list[str]) -> float:
    """A panel, of every model, and its axis below; where the next begins."""
    spreads = panel.spreads
    medians = [spread.quantiles["0.5"] for spread in spreads if spread.quantiles["0.5"] > 0]
    high = max(spread.absmax for spread in spreads) * 1.3
    low = min([*medians, high / 4]) * SMALLEST_SHARE
    blocks = max(len(rows) for rows in panel.rows)
    step = max(LOW, min(HIGH, PANEL / max(1, blocks)))
    bottom = y + LINE + step * blocks
    for column, rows in enumerate(panel.rows):
        left = WIDTH * column
        axis = Axis(low, high, left + LEFT, left + WIDTH - MARGIN, log=True)
        same = ", unchanged" if rows and all(map(_is_same, rows)) else ""
        drawn.append(text(left + MARGIN, y, f"{panel.what} of {panel.kind}{same}", "plot-soft"))
        for tick in decades(low, high):
            at = axis.place(tick)
            drawn.append(line(at, y + 6, at, bottom, "plot-line"))
            words = tick_text(tick)
            if at + width_of(words, SMALL) / 2 <= left + WIDTH:
                drawn.append(text(at, bottom + LINE - 2, words, "plot-soft plot-middle"))
        every = math.ceil((SMALL + 1) / step)
        for block, change in enumerate(rows):
            floor = y + LINE + step * (block + 1)
            if block % every == 0:
                drawn.append(text(left + LEFT - 6, floor, str(block), "plot-soft plot-end"))
            where = f"block {block}, {panel.what} of {panel.kind}"
            drawn.append(mark(_told(where, change), *_ridges(change, axis, floor, step)))
    return bottom + LINE + GAP + 4


def _is_same(change: Change) -> bool:
    before, after = change.before, change.after
    if after is None:
        return False
    shares = [(before.absmax, after.absmax)]
    shares += [(value, after.quantiles[share]) for share, value in before.quantiles.items()]
    return all(math.isclose(one, other, rel_tol=SAME) for one, other in shares)


def _ridges(change: Change, axis: Axis, floor: float, step: float) -> list[str]:
    """Both histograms of a row, that of after in front."""
    drawn = []
    for spread, kind in ((change.before, BEFORE), (change.after, AFTER)):
        if spread is None or spread.absmax == 0:
            continue
        outline = _outline(spread, axis, floor, step * CREST)
        if len(outline) > 1:
            drawn.append(path(outline, f"plot-ridge {kind}", closed=True))
        at = axis.place(max(spread.absmax, axis.low))
        drawn.append(line(at, floor, at, floor - step * CREST, f"plot-end-of {kind}"))
    return drawn


def _outline(spread: Spread, axis: Axis, floor: float, high: float) -> list[tuple[float, float]]:
    """From the floor over the logarithms of the counts, and back to the floor."""
    most = math.log1p(max(spread.counts, default=0)) or 1.0
    points: list[tuple[float, float]] = []
    for place, count in enumerate(spread.counts, spread.first):
        middle = 2.0 ** ((place + 0.5) / PER_OCTAVE)
        if axis.low <= middle <= axis.high:
            at = axis.place(min(middle, spread.absmax))
            points.append((at, floor - high * math.log1p(count) / most))
    if not points:
        return []
    return [(points[0][0], floor), *points, (points[-1][0], floor)]


def _told(where: str, change: Change) -> str:
    before, after = change.before, change.after
    if after is None:
        return f"{where}: {_figures(before)}"
    return f"{where}: before {_figures(before)}; after {_figures(after)}"


def _figures(spread: Spread) -> str:
    kurtosis = "" if spread.kurtosis is None else f", kurtosis {figures(spread.kurtosis)}"
    median, tail = spread.quantiles["0.5"], spread.quantiles["0.9999"]
    return (
        f"largest {figures(spread.absmax)}, 99.99 % below {figures(tail)}, "
        f"half below {figures(median)}{kurtosis}"
    )
