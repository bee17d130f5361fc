"""The deployment gap as text. Pure."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence

from slmq_edge.errors import SlmqError
from slmq_edge.limits import Limit
from slmq_edge.reports.accuracy import interval_text, label, limit_text, value_text
from slmq_edge.reports.tables import WIDTH, aligned, escaped, piped
from slmq_edge.tracks.accuracy.gap import COVERED, Gap, Row, TokenRow, exceeded
from slmq_edge.tracks.accuracy.results import MEAN

FORMAT, VERSION = "slmq-edge-gap", 1
HEADINGS = (
    "task", "metric", "base", "other", "difference", f"{100 * COVERED:.0f} %", "flips %", "KL",
    "n", "limit",
)  # fmt: skip
TOKEN_HEADINGS = (
    "next tokens of", "KL", f"{100 * COVERED:.0f} %", "flips %", f"{100 * COVERED:.0f} %",
    "tokens", "windows",
)  # fmt: skip
EXPLANATION = (
    "Differences: points of an accuracy, percent of a perplexity, with a 95 % interval; ~ where it "
    "holds 0: these questions do not tell the two apart. Flips: answers that became wrong + right. "
    "KL: of the choices' probabilities, in nats. n: questions; limit: of each part, as asked."
)
OF_TOKENS = (
    " Next tokens: KL over the whole vocabulary, in nats a token; flips: where the most likely one "
    "differs; intervals over windows."
)


def terminal(gaps: Sequence[Gap]) -> str:
    """A table for each, and below it what must be said of it."""
    parts = []
    for gap in gaps:
        notes = [f"! {note}" for note in gap.notes]
        lines = [*_scores(gap), *notes]
        parts += [title(gap), aligned([HEADINGS, *map(_cells, gap.rows)], texts=2)]
        if gap.tokens:
            parts.append(aligned([TOKEN_HEADINGS, *map(_token_cells, gap.tokens)], texts=1))
        parts += ["\n".join(lines)] if lines else []
    return "\n\n".join([*parts, textwrap.fill(explanation(gaps), WIDTH)]) + "\n"


def markdown(gaps: Sequence[Gap]) -> str:
    """A section of GitHub's Markdown for each."""
    parts = []
    for gap in gaps:
        lines = [f"- {escaped(line)}" for line in (*_scores(gap), *gap.notes)]
        table = piped([HEADINGS, *map(_cells, gap.rows)], texts=2)
        parts += [f"### {escaped(title(gap))}", table]
        if gap.tokens:
            parts.append(piped([TOKEN_HEADINGS, *map(_token_cells, gap.tokens)], texts=1))
        parts += ["\n".join(lines)] if lines else []
    return "\n\n".join([*parts, escaped(explanation(gaps))]) + "\n"


def explanation(gaps: Sequence[Gap]) -> str:
    """What the columns of these tables are."""
    return EXPLANATION + (OF_TOKENS if any(gap.tokens for gap in gaps) else "")


def comma_separated(gaps: Sequence[Gap]) -> str:
    """One line a metric, fractions at full precision."""
    fields = [field.name for field in dataclasses.fields(Row)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("of", "against", *fields, "slmq_perf"))
    for gap in gaps:
        for row in gap.rows:
            cells = (getattr(row, name) for name in fields)
            writer.writerow((label(gap.other), label(gap.base), *cells, gap.perf))
        for metric, text in ((name, text) for text in gap.tokens for name in ("kl", "flips")):
            found = _token_fields(text, metric)
            texts = (found.get(name) for name in fields)
            writer.writerow((label(gap.other), label(gap.base), *texts, gap.perf))
    return out.getvalue()


def _token_fields(row: TokenRow, metric: str) -> dict[str, object]:
    """Next tokens as a line of the same columns."""
    value = getattr(row, metric)
    low, high = getattr(row, f"{metric}_interval") or (None, None)
    return {
        "task": row.task,
        "metric": f"token_{metric}",
        "kind": "next tokens",
        "n": row.windows,
        "other": value,
        "difference": value,
        "low": low,
        "high": high,
    }


def to_json(gaps: Sequence[Gap]) -> str:
    document = {
        "format": FORMAT,
        "version": VERSION,
        "gaps": [dataclasses.asdict(gap) for gap in gaps],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


WRITERS: dict[str, Callable[[Sequence[Gap]], str]] = {
    "terminal": terminal,
    "md": markdown,
    "csv": comma_separated,
    "json": to_json,
}


def require_within(gaps: Sequence[Gap], limits: Sequence[Limit]) -> None:
    """Raise SlmqError, and say what, where a gap exceeds a limit."""
    found = [
        f"{label(gaps[index].other)}: {row.task} {row.metric} loses {_loss_text(row)}"
        if isinstance(row, Row) and limit.what == "gap"
        else f"{label(gaps[index].other)}: {row.task} has {limit.what} above {limit.text}"
        for index, row, limit in exceeded(gaps, limits)
    ]
    if found:
        asked = ", ".join(limit.text for limit in limits)
        raise SlmqError(f"beyond --fail-on {asked}: {'; '.join(found)}")


def title(gap: Gap) -> str:
    return f"{label(gap.other)} against {label(gap.base)}"


def _loss_text(row: Row) -> str:
    return f"{100 * row.loss:.2f} {'points' if row.kind == MEAN else '%'}"


def _cells(row: Row) -> tuple[str, ...]:
    unit = "" if row.kind == MEAN else " %"
    flips = "" if row.lost is None else f"{100 * row.lost:.1f} + {100 * (row.won or 0):.1f}"
    return (
        row.task,
        f"{row.metric} *" if row.paper else row.metric,
        value_text(row.kind, row.base),
        value_text(row.kind, row.other),
        f"{100 * row.difference:+.2f}{unit}{'' if row.is_shown else ' ~'}",
        f"[{100 * row.low:+.2f}, {100 * row.high:+.2f}]",
        flips,
        "" if row.kl is None else f"{row.kl:.2g}",
        str(row.n),
        limit_text(row.limit),
    )


def _token_cells(row: TokenRow) -> tuple[str, ...]:
    return (
        row.task,
        f"{row.kl:.3g}",
        interval_text(row.kl_interval, ".3g"),
        f"{100 * row.flips:.2f}",
        interval_text(row.flips_interval, ".2f", 100),
        str(row.positions),
        str(row.windows),
    )


def _scores(gap: Gap) -> Iterator[str]:
    if gap.perf is not None:
        yield f"SLMQ_perf {gap.perf:.2f}: 100 is as good as the base, over the metrics marked *"
    if gap.golden_kl is not None:
        found = f"mean KL {gap.golden_kl:.1e}"
        yield f"next tokens of golden prompts, against its own simulation: {found}"
