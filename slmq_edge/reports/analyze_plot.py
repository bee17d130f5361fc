"""A sensitivity analysis as one SVG: needs nothing else, and is read in light and in dark. Pure.

Above, the damage of every part alone, a column for each block; below it, that of whole blocks; at
the bottom, what the parts of a kind come to. A title on each mark has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
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

if TYPE_CHECKING:
    from slmq_edge.analysis.damage import Damage
    from slmq_edge.analysis.parts import Part
    from slmq_edge.analysis.sensitivity import Analysis

WIDTH, MARGIN, LABELS = 960, 24, 150
INSIDE = WIDTH - MARGIN - LABELS
ROW, GAP, BARS = 26, 46, 170
# Shades span so many powers of ten below the worst part.
DECADES = 3
FAINTEST = 0.06
# Cells as wide as this have their figure in them.
WRITABLE = 64
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2330; --soft: #5b6675;
  --line: #d7dce3; --both: #b3261e; --weights: #2f6fb3; --activations: #b07a10; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181f; --ink: #e6eaf0; --soft: #9aa6b5;
  --line: #333b47; --both: #ff8a7a; --weights: #7db4ee; --activations: #e8b54a; } }
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink); }
.title { font-size: 17px; font-weight: 600; } .head { font-weight: 600; }
.soft { fill: var(--soft); font-size: 12px; } .end { text-anchor: end; }
.middle { text-anchor: middle; } .on { fill: var(--paper); }
.mid { fill: #14181f; } .paper { fill: var(--paper); }
.line { stroke: var(--line); stroke-width: 1; } .cell { stroke: var(--line); stroke-width: 1; }
.both { fill: var(--both); } .weights { fill: var(--weights); }
.activations { fill: var(--activations); }
"""


def svg(found: Analysis) -> str:
    """The whole drawing, as a file that a browser opens and that a page can embed."""
    drawn: list[str] = []
    y = _heading(found, drawn)
    y = _grid(found, drawn, y + GAP)
    y = _blocks(found, drawn, y + GAP)
    height = _kinds(found, drawn, y + GAP) + MARGIN
    name = escape(f"Sensitivity of {found.model} to {found.scheme} by {found.method}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_n(height)}" '
            f'width="{WIDTH}" height="{_n(height)}" style="max-width: 100%; height: auto" '
            f'role="img" aria-label="{name}">',
            f"<title>{name}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{_n(height)}"/>',
            *drawn,
            "</svg>",
            "",
        ]
    )


def _heading(found: Analysis, drawn: list[str]) -> float:
    y = MARGIN + 14.0
    title = f"{found.model}: where {found.scheme} by {found.method} hurts"
    drawn.append(_text(MARGIN, y, title, "title"))
    for line in heading(found):
        y += 20
        drawn.append(_text(MARGIN, y, line, "soft"))
    return y


def _grid(found: Analysis, drawn: list[str], y: float) -> float:
    """A cell for each part of each block, the darker the worse, on a scale of powers of ten."""
    placed = [part for part in found.parts if part.layer is not None]
    kinds = [kind for kind in by_kind(found) if any(part.kind == kind for part in placed)]
    worst = max((part.kl for part in placed), default=0.0)
    drawn.append(_text(MARGIN, y, "Each part rounded alone, by block", "head"))
    _shades(drawn, y, worst)
    y += 12
    wide = INSIDE / max(1, len(found.blocks))
    for row, kind in enumerate(kinds):
        middle = y + ROW * (row + 0.5) + 4
        drawn.append(_text(LABELS - 10, middle, kind, "end"))
    for part in placed:
        left, top = LABELS + wide * (part.layer or 0), y + ROW * kinds.index(part.kind)
        shade = _shade(part.kl, worst)
        box = _box(left, top, wide, ROW, "cell both", f' fill-opacity="{shade:.3f}"')
        if wide >= WRITABLE:
            ink = "on" if shade > 0.75 else "mid" if shade > 0.45 else ""
            box += _text(
                left + wide / 2, top + ROW / 2 + 4, kl_text(part.kl), f"middle {ink}".strip()
            )
        drawn.append(_told(box, _figures(short(part.name), part.damage)))
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
        drawn.append(_box(x, y - 11, 14, 14, "cell both", shade))
        drawn.append(_text(x + 19, y, kl_text(kl), "soft"))


def _blocks(found: Analysis, drawn: list[str], y: float) -> float:
    """Bars for each block: all of it rounded, its weights alone, its inputs alone."""
    damages: list[Mapping[Any, Damage]] = [block.damage for block in found.blocks]
    kinds = [kind for kind in KINDS if any(kind in damage for damage in damages)]
    top = max((one.kl for damage in damages for one in damage.values()), default=0.0) or 1.0
    drawn.append(_text(MARGIN, y, "All of a block rounded", "head"))
    for place, kind in enumerate(kinds):
        x = WIDTH - MARGIN - 110 * (len(kinds) - place)
        words = {"both": "all", "weights": "weights", "activations": "inputs"}[kind]
        drawn.append(_box(x, y - 11, 14, 14, kind))
        drawn.append(_text(x + 19, y, words, "soft"))
    y += 16
    for step in _steps(top):
        height = y + BARS * (1 - step / top)
        drawn.append(
            f'<line class="line" x1="{LABELS}" x2="{WIDTH - MARGIN}" y1="{_n(height)}" '
            f'y2="{_n(height)}"/>'
        )
        drawn.append(_text(LABELS - 10, height + 4, kl_text(step) if step else "0", "soft end"))
    wide = INSIDE / max(1, len(damages))
    bar = min(22.0, 0.8 * wide / max(1, len(kinds)))
    for place, (block, damage) in enumerate(zip(found.blocks, damages, strict=True)):
        start = LABELS + wide * (place + 0.5) - bar * len(kinds) / 2
        for number, kind in enumerate(kinds):
            if kind not in damage:
                continue
            high = BARS * damage[kind].kl / top
            box = _box(start + bar * number, y + BARS - high, bar - 1, high, kind)
            drawn.append(_told(box, _figures(f"block {block.layer}", damage)))
    _numbers(drawn, found.blocks, y + BARS, wide)
    return y + BARS + 18


def _kinds(found: Analysis, drawn: list[str], y: float) -> float:
    """A bar for each kind of part: its single damages summed over all blocks."""
    totals = by_kind(found)
    top = max(totals.values(), default=0.0) or 1.0
    drawn.append(_text(MARGIN, y, "Where it comes from: single damages summed", "head"))
    y += 12
    room = INSIDE - 150
    for row, (kind, kl) in enumerate(totals.items()):
        height = y + ROW * row
        said = f"{kl_text(kl)}, {share_text(share_of_sum(found, kl))}"
        drawn.append(_text(LABELS - 10, height + 17, kind, "end"))
        box = _box(LABELS, height + 4, room * kl / top, ROW - 8, "both")
        drawn.append(_told(box, f"{kind}: {said}"))
        drawn.append(_text(LABELS + room * kl / top + 8, height + 17, said, "soft"))
    return y + ROW * len(totals)


def _steps(top: float) -> Sequence[float]:
    """Round numbers from 0 to ``top``: eight at most."""
    unit = 10.0 ** math.floor(math.log10(top))
    step = next(
        unit * share for share in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if top / (unit * share) <= 7
    )
    return [step * count for count in range(int(top / step * (1 + 1e-9)) + 1)]


def _numbers(drawn: list[str], blocks: Iterable[Part], y: float, wide: float) -> None:
    """Numbers of blocks below their columns, as many as there is room for."""
    listed = list(blocks)
    drawn.append(_text(LABELS - 10, y + 15, "block", "soft end"))
    every = max(1, math.ceil(24 / wide))
    for place, block in enumerate(listed):
        if place % every == 0:
            at = LABELS + wide * (place + 0.5)
            drawn.append(_text(at, y + 15, str(block.layer), "soft middle"))


def _figures(name: str, damage: Mapping[Any, Damage]) -> str:
    told = [f"{KINDS[kind]} {kl_text(one.kl)}" for kind, one in damage.items()]
    return f"{name}: {', '.join(told)} nats; perplexity {change_text(damage['both'])}"


def _told(mark: str, title: str) -> str:
    return f"<g><title>{escape(title)}</title>{mark}</g>"


def _box(x: float, y: float, wide: float, high: float, kind: str, more: str = "") -> str:
    return (
        f'<rect class="{kind}" x="{_n(x)}" y="{_n(y)}" width="{_n(max(0.0, wide))}" '
        f'height="{_n(max(0.0, high))}"{more}/>'
    )


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}">{escape(words)}</text>'


def _n(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
