"""Colours and type of all plots, light and dark.

The eight colours of series stay apart for those who see red and green alike (their order is that of
Okabe and Ito's palette, their lightness is ours), and each has a contrast of 4.5 to its paper. No
plot tells by colour alone: series have shapes, bars have names.
"""

from __future__ import annotations

# Of type, in units of a drawing.
TEXT, SMALL, TITLE = 14, 13, 16
# How much wider bold type is.
BOLD = 1.12
SERIES = 8
LIGHT = {
    "paper": "#ffffff", "ink": "#1c2330", "soft": "#5b6675", "line": "#d7dce3",
    "s1": "#0b62a8", "s2": "#b8400a", "s3": "#00775b", "s4": "#9b3f86",
    "s5": "#876000", "s6": "#0f7797", "s7": "#5d6470", "s8": "#5546b5",
}  # fmt: skip
DARK = {
    "paper": "#14181f", "ink": "#e6eaf0", "soft": "#9aa6b5", "line": "#333b47",
    "s1": "#6db3f2", "s2": "#ff8f5c", "s3": "#3ecfa5", "s4": "#e48ccf",
    "s5": "#e6b63c", "s6": "#7fdcf5", "s7": "#b3bdca", "s8": "#ab9fff",
}  # fmt: skip


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
.plot text {{ font: {TEXT}px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 3px;
  stroke-linejoin: round; }}
.plot .plot-title {{ font-size: {TITLE}px; font-weight: 600; }}
.plot .plot-head {{ font-weight: 600; }}
.plot .plot-soft {{ fill: var(--soft); font-size: {SMALL}px; }}
.plot .plot-end {{ text-anchor: end; }}
.plot .plot-middle {{ text-anchor: middle; }}
.plot .plot-on {{ fill: var(--paper); stroke: none; }}
.plot .plot-dark {{ fill: {DARK["paper"]}; stroke: none; }}
.plot-paper {{ fill: var(--paper); }}
.plot-line {{ stroke: var(--line); stroke-width: 1; }}
.plot-rule {{ stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 4 3; fill: none; }}
.plot-front {{ stroke: var(--soft); stroke-width: 2; fill: none; opacity: 0.7; }}
.plot-error {{ stroke: var(--ink); stroke-width: 1.5; opacity: 0.6; }}
.plot-leader {{ stroke: var(--soft); stroke-width: 1; }}
.plot-cell {{ stroke: var(--line); stroke-width: 1; }}
.plot-end-of {{ stroke: var(--soft); stroke-width: 2.5; }}
"""
    + "\n".join(
        f".plot-s{number} {{ fill: var(--s{number}); stroke: var(--s{number}); }}"
        for number in range(1, SERIES + 1)
    )
    + """
.plot-bar, .plot-cell { stroke-width: 0; }
.plot-cell { stroke: var(--line); stroke-width: 1; }
.plot-shape { stroke-width: 2; stroke-linejoin: round; }
.plot-ridge { fill-opacity: 0.3; stroke-width: 1.2; stroke-linejoin: round; }
.plot-hollow { fill: var(--paper); }
"""
)


def series_class(place: int) -> str:
    """The colour of the series at a place, 0 is the first; after the eighth they come again."""
    return f"plot-s{place % SERIES + 1}"
