"""Distributions before and after a method: terminal, Markdown, CSV, JSON, SVG. Pure."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from slmq_edge.analysis.distributions import to_json
from slmq_edge.reports.analyze import short
from slmq_edge.reports.plots import as_file
from slmq_edge.reports.plots import distributions as plot
from slmq_edge.reports.tables import aligned

if TYPE_CHECKING:
    from slmq_edge.analysis.distributions import Change, Distributions, Linear, Spread

# Linears that the terminal and Markdown show, of a model that has more.
SHOWN = 12
Rows = Sequence[Sequence[str]]
HEADINGS = ("linear", "largest", "max/median", "kurtosis")


def terminal(found: Distributions) -> str:
    """What stands out, before -> after: inputs, then weights."""
    parts = ["\n".join([_title(found), *_lines(found)])]
    parts += [
        f"{title}\n{textwrap.indent(aligned(rows, 1), '  ')}" for title, rows in _tables(found)
    ]
    return "\n\n".join(parts) + "\n"


def markdown(found: Distributions) -> str:
    """The same, in tables of Markdown."""
    parts = [f"### {_cell(_title(found))}", "\n".join(f"{_cell(one)}  " for one in _lines(found))]
    for title, (head, *rows) in _tables(found):
        ruled = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        lines = [f"| {' | '.join(map(_cell, row))} |" for row in ruled]
        parts.append("\n".join([f"{title}\n", *lines]))
    return "\n\n".join(parts) + "\n"


def to_csv(found: Distributions) -> str:
    """A row for each linear's weights and for its input, before and after."""
    rows = [
        flat(linear, what, when, spread)
        for linear in found.linears
        for what, change in (("weights", linear.weights), ("inputs", linear.inputs))
        for when, spread in (("before", change.before), ("after", change.after))
        if spread is not None
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def flat(linear: Linear, what: str, when: str, spread: Spread) -> dict[str, Any]:
    """One level of names: ``quantile_0.99`` of |x|, ``channel_absmax_0.5``, ..."""
    return {
        "linear": linear.name,
        "kind": linear.kind,
        "layer": linear.layer,
        "reads": linear.reads,
        "what": what,
        "when": when,
        "count": spread.count,
        "min": spread.min,
        "max": spread.max,
        "mean": spread.mean,
        "absmax": spread.absmax,
        "absmax_over_median": spread.absmax_over_median,
        "kurtosis": spread.kurtosis,
        **{f"quantile_{share}": value for share, value in spread.quantiles.items()},
        **{f"channel_absmax_{share}": value for share, value in spread.channels.items()},
    }


def to_svg(found: Distributions) -> str:
    """Figure 3 of the SLMQuant paper, of one model, as a file."""
    return as_file(plot(found))


WRITERS: dict[str, Callable[[Distributions], str]] = {
    "terminal": terminal,
    "md": markdown,
    "csv": to_csv,
    "json": to_json,
    "svg": to_svg,
}


def _title(found: Distributions) -> str:
    if not found.is_prepared:
        return f"{found.model} as released"
    return f"{found.model}, before -> after {found.method} ({found.scheme})"


def _lines(found: Distributions) -> list[str]:
    """What it was measured on; what the columns mean."""
    return [
        f"inputs: {found.windows} windows of {found.length} tokens held out of {found.text}",
        "max/median: of |x|, what one scale has to span; kurtosis: 3 of a normal distribution",
        *found.notes,
    ]


def _tables(found: Distributions) -> list[tuple[str, Rows]]:
    """Of inputs, each once, and of weights: those first that stand out most before."""
    inputs = [(linear, linear.inputs) for linear in found.linears if linear.reads == linear.name]
    weights = [(linear, linear.weights) for linear in found.linears]
    return [_table("Inputs", inputs, found), _table("Weights", weights, found)]


def _table(
    what: str, changes: Sequence[tuple[Linear, Change]], found: Distributions
) -> tuple[str, Rows]:
    ranked = sorted(changes, key=lambda pair: -(pair[1].before.absmax_over_median or math.inf))
    shown = ranked[:SHOWN]
    most = "worst first" if len(shown) == len(ranked) else f"the {SHOWN} worst of {len(ranked)}"
    rows = [
        (_readers(linear, found) if what == "Inputs" else short(linear.name), *_figures(change))
        for linear, change in shown
    ]
    return f"{what}, by max/median ({most})", [HEADINGS, *rows]


def _readers(linear: Linear, found: Distributions) -> str:
    """``0.self_attn.q_proj +2``: and how many linears more that read the same."""
    more = sum(other.reads == linear.name for other in found.linears) - 1
    return f"{short(linear.name)} +{more}" if more else short(linear.name)


def _figures(change: Change) -> tuple[str, ...]:
    def both(figure: Callable[[Spread], float | None]) -> str:
        spreads: Iterable[Spread] = (s for s in (change.before, change.after) if s is not None)
        return " -> ".join("-" if figure(s) is None else f"{figure(s):.3g}" for s in spreads)

    return (
        both(lambda spread: spread.absmax),
        both(lambda spread: spread.absmax_over_median),
        both(lambda spread: spread.kurtosis),
    )


def _cell(words: str) -> str:
    """Words that end no cell and start no tag."""
    return words.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
