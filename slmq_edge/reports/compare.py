"""A comparison as text: terminal, Markdown, CSV, JSON. Only what varies gets a column.

A new format is a function from `Comparison` to text, ending in a newline, and a line in
`WRITERS`. All say which convention the numbers follow, and all carry every doubt.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from slmq_edge.compare import Comparison, Row, Score, Value
from slmq_edge.intervals import COVERED, FEWEST
from slmq_edge.reports.format import (
    UNKNOWN,
    bytes_text,
    count_text,
    rate_text,
    scheme_text,
    seconds_text,
    share_text,
)
from slmq_edge.reports.tables import WIDTH, bullets, escaped, filled, folded, piped
from slmq_edge.results import Run
from slmq_edge.runner.manifest import TORCH, TRT
from slmq_edge.sides import Side

__all__ = ["WIDTH", "WRITERS", "markdown", "render", "terminal", "title", "to_json"]

FORMAT = "slmq-edge-comparison"
VERSION = 2

CONVENTION_LABELS = {
    "measured": "measured tokens/s and bytes",
    "paper": "the paper's convention (parameters as size, MACs as speed): "
    "not a measurement of speed",
}
INTERVAL = f"{100 * COVERED:.0f} %"
COLUMNS = (  # of comma-separated values
    "candidate", "baseline", "convention", "key", "unit", "baseline_median", "candidate_median",
    "ratio", "low", "high", "verdict", "remarks",
)  # fmt: skip
HEADINGS = ("quantity", "baseline", "candidate", "times better", INTERVAL, "verdict")
NO_INTERVAL = "no interval"
EXPLANATION = (
    f"{INTERVAL}: of 10,000 draws with replacement of each run's repetitions, and of runs where "
    "there are several. Repetitions of one run know nothing of what another start of the machine "
    "or the process would give. inconclusive: the interval holds 1, there are fewer than "
    f"{FEWEST} readings, or a run says that its repetitions drifted."
)
TEXTS: dict[str, Callable[[float], str]] = {
    "B": bytes_text,
    "s": seconds_text,
    "tokens/s": rate_text,
    "tokens/J": functools.partial(rate_text, unit="tok/J"),
    "parameters": count_text,
    "MAC": count_text,
}


def terminal(comparison: Comparison) -> str:
    """Comparison -> plain text for 95 columns."""
    footnotes = _footnotes(comparison)
    varying, equal = _what_ran(comparison)
    parts = [filled(title(comparison))]
    parts += ["\n".join(filled(note, "! ") for note in comparison.notes)]
    if varying:
        parts.append(folded([("what ran", "baseline", "candidate"), *varying], texts=3))
    if equal:
        listed = "; ".join(f"{name} {text}" for name, text in equal)
        parts.append(filled(listed, "both: "))
    parts.append(folded([HEADINGS, *_cells(comparison, footnotes)], texts=1))
    parts.append("\n".join(filled(line) for line in _score_lines(comparison)))
    parts.append("\n".join(filled(text, f"[{n}] ") for text, n in footnotes.items()))
    parts.append("\n".join(filled(line, "! ") for line in _caveats(comparison)))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(comparison: Comparison) -> str:
    """Comparison -> a section of GitHub's Markdown."""
    footnotes = _footnotes(comparison)
    varying, equal = _what_ran(comparison)
    parts = [f"### {escaped(title(comparison))}"]
    parts.append(bullets(f"**{note}**" for note in map(escaped, comparison.notes)))
    if varying:
        parts.append(piped([("what ran", "baseline", "candidate"), *varying], texts=3))
    if equal:
        listed = "; ".join(f"{name} {text}" for name, text in equal)
        parts.append(filled(escaped(f"Both: {listed}.")))
    cells = [HEADINGS, *_cells(comparison, footnotes)]
    parts.append(piped(cells, texts=1))
    first, *others = map(escaped, _score_lines(comparison))
    parts += [f"**{first}**", "\n".join(map(filled, others))]
    parts.append("\n".join(f"{n}. {escaped(text)}" for text, n in footnotes.items()))
    parts.append(bullets(map(escaped, _caveats(comparison))))
    return "\n\n".join(part for part in parts if part) + "\n"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Comparison -> numbers in SI units at full precision, for `json.dumps`."""
    sides = {"baseline": comparison.baseline, "candidate": comparison.candidate}
    return {
        "format": FORMAT,
        "version": VERSION,
        "convention": comparison.convention,
        "convention_label": CONVENTION_LABELS[comparison.convention],
        **{role: _side_json(side) for role, side in sides.items()},
        "rows": [dataclasses.asdict(row) for row in comparison.rows],
        "slmq_infer": dataclasses.asdict(comparison.score),
        "notes": list(comparison.notes),
        "refusals": list(comparison.refusals),
    }


def json_line(comparison: Comparison) -> str:
    """One comparison, one line: several make JSON Lines, which jq reads as it is."""
    return json.dumps(to_json(comparison), allow_nan=False) + "\n"


def comma_separated(comparison: Comparison) -> str:
    """One line a row, numbers in SI units at full precision; the score's is the last.

    Behind the score: the convention's label, what differs, and all doubts.
    """
    names = [short_name(one.run) for one in (comparison.candidate, comparison.baseline)]
    score = comparison.score
    lines = [
        (row.key, row.unit, *(one and one.median for one in (row.baseline, row.candidate)),
         row.ratio, row.low, row.high, row.verdict, "; ".join(_remarks(row)))
        for row in comparison.rows
    ]  # fmt: skip
    remarks = [
        CONVENTION_LABELS[comparison.convention],
        *([score.reason] if score.reason else []),
        *comparison.notes,
        *_caveats(comparison),
    ]
    lines.append(
        ("slmq_infer", "", score.reference, score.value, None, score.low, score.high,
         score.verdict, "; ".join(remarks))
    )  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([(*names, comparison.convention, *line) for line in lines])
    return out.getvalue()


WRITERS: dict[str, Callable[[Comparison], str]] = {
    "terminal": terminal,
    "md": markdown,
    "csv": comma_separated,
    "json": json_line,
}


def render(comparisons: Sequence[Comparison], format: str) -> str:
    """All comparisons in one text; ``format`` is a key of `WRITERS`."""
    between = "" if format in ("csv", "json") else "\n"
    head = f"{','.join(COLUMNS)}\n" if format == "csv" else ""
    return head + between.join(WRITERS[format](comparison) for comparison in comparisons)


def title(comparison: Comparison) -> str:
    runs = comparison.candidate.run, comparison.baseline.run
    names = [short_name(run) for run in runs]
    if names[0] == names[1]:
        sides = [_grids(run) for run in runs]
        differs = [part for part in sides[0] if sides[0][part] != sides[1][part]]
        told = [", ".join(f"{part} {side[part]}" for part in differs) for side in sides]
        names = [
            f"{name} ({text})" if text else name for name, text in zip(names, told, strict=True)
        ]
    label = CONVENTION_LABELS[comparison.convention]
    return f"{names[0]} against {names[1]}: {label}"


def what_ran(run: Run) -> dict[str, str]:
    """What one side was, by its true names."""
    ran, device = run.artifact, run.device
    asked = "" if ran.scheme_requested == ran.scheme_ran else f"{ran.scheme_requested} -> "
    return {
        "model": ran.model,
        "method": ran.method,
        "scheme": f"{asked}{scheme_text(ran.scheme_ran, ran.weight_storage_bits)}",
        "work in INT8": share_text(ran.int8_gemm_share),
        "bits stored": ", ".join(f"{part} {b}" for part, b in ran.weight_storage_bits.items()),
        **_grids(run),
        "lm_head": ran.lm_head,
        "runtime": _runtime(run),
        "device": f"{device.name} ({device.kind})",
        "numbers are": run.origin,
        "golden check": golden_text(run),
        "bundle": ran.bundle_sha256[:12] or UNKNOWN,
        "prompt": f"{run.workload.prompt_tokens} tokens",
        "new tokens": str(run.workload.new_tokens),
        "batch": "1",
    }


def _grids(run: Run) -> dict[str, str]:
    """What was rounded to which grid, as far as the run says."""
    return {
        "weights": run.artifact.weights or UNKNOWN,
        "activations": run.artifact.activation_mode,
        "KV cache": run.artifact.kv_cache or UNKNOWN,
    }


def short_name(run: Run) -> str:
    return f"{run.artifact.model} {run.artifact.method} {run.artifact.scheme_ran}"


def _runtime(run: Run) -> str:
    kind = str(run.artifact.runtime.get("kind", UNKNOWN))
    packages = {TRT: "tensorrt", TORCH: TORCH, "ort": "onnxruntime", "ort-cuda": "onnxruntime"}
    version = run.environment.get(packages.get(kind, ""))
    where = "" if kind != TORCH else " on a GPU" if run.environment.get("gpu") else " on a CPU"
    return f"{kind} {version}{where}" if version else kind


def golden_text(run: Run) -> str:
    """A run is only written where the golden check has passed; a published figure has none."""
    if not run.golden:
        return "not checked"
    kl = run.golden.get("mean_kl")
    return f"passed, mean KL {kl:.1e}" if isinstance(kl, int | float) else "passed"


def _what_ran(
    comparison: Comparison,
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """The facts that differ, and those that both sides share."""
    before, after = what_ran(comparison.baseline.run), what_ran(comparison.candidate.run)
    varying = [(k, v, after[k]) for k, v in before.items() if v != after[k]]
    return varying, [(k, v) for k, v in before.items() if v == after[k] != UNKNOWN]


def _footnotes(comparison: Comparison) -> dict[str, int]:
    """Text -> number, in the order in which the rows need them."""
    texts = [text for row in comparison.rows for text in _remarks(row)]
    return {text: number for number, text in enumerate(dict.fromkeys(texts), start=1)}


def _remarks(row: Row) -> list[str]:
    across = f"across devices: {row.across}" if row.across else None
    return [text for text in (row.reason, across, row.note) if text]


def _cells(comparison: Comparison, footnotes: dict[str, int]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = []
    for row in comparison.rows:
        marks = "".join(f" [{footnotes[text]}]" for text in _remarks(row))
        scored = " *" if row.key in comparison.score.parts else ""
        before, after = (_value(value, row.unit) for value in (row.baseline, row.candidate))
        ratio = UNKNOWN if row.ratio is None else f"{row.ratio:.2f}"
        cells.append(
            (
                row.quantity + scored,
                before,
                after,
                ratio + marks,
                range_text(row.low, row.high, 2),
                "" if row.ratio is None else row.verdict or NO_INTERVAL,
            )
        )
    return cells


def _value(value: Value | None, unit: str) -> str:
    return UNKNOWN if value is None else TEXTS[unit](value.median)


def range_text(low: float | None, high: float | None, decimals: int) -> str:
    """An interval; nothing where there is none."""
    return "" if low is None or high is None else f"{low:.{decimals}f} to {high:.{decimals}f}"


def score_text(score: Score) -> str:
    """SLMQ_infer, its interval and what may be said of it."""
    if score.value is None:
        return f"{UNKNOWN}: {score.reason}"
    text = f"{score.value:.1f}"
    if score.low is not None:
        text += f" ({INTERVAL}: {range_text(score.low, score.high, 1)})"
    if score.reference is None:
        return text
    said = f": {score.verdict}" if score.verdict else ""
    return f"{text} against the baseline's own {score.reference:.1f}{said}"


def _score_lines(comparison: Comparison) -> list[str]:
    score = comparison.score
    label = " (the paper's convention)" if comparison.convention == "paper" else ""
    lines = [f"SLMQ_infer{label} {score_text(score)}"]
    memory = f"; its memory is the {score.memory}" if score.memory else ""
    lines.append(
        f"* enters SLMQ_infer: 100 times the root mean square of the three ratios{memory}."
    )
    if score.across:
        lines.append(f"The score is across devices: {score.across}.")
    if any(row.low is not None for row in comparison.rows):
        lines.append(EXPLANATION)
    return [*lines, *_runs_lines(comparison)]


def _runs_lines(comparison: Comparison) -> list[str]:
    """Of a side that was measured more than once: what its runs differ by."""
    lines = []
    for role in ("baseline", "candidate"):
        side: Side = getattr(comparison, role)
        if len(side.runs) < 2:
            continue
        spreads = [
            f"{row.quantity} {share_text(value.between / value.median)} (within one "
            f"{share_text(value.spread / value.median)})"
            for row in comparison.rows
            if (value := getattr(row, role)) is not None
            and row.unit == "tokens/s"
            and None not in (value.between, value.spread)
        ]
        lines.append(
            f"{role}: {len(side.runs)} runs; between their medians {', '.join(spreads)}."
            if spreads
            else f"{role}: {len(side.runs)} runs."
        )
    return lines


def _caveats(comparison: Comparison) -> list[str]:
    """Both sides' doubts; one that both have is said once."""
    found: dict[str, list[str]] = {}
    for role, side in (("baseline", comparison.baseline), ("candidate", comparison.candidate)):
        for caveat in (caveat for run in side.runs for caveat in run.caveats):
            roles = found.setdefault(caveat.advice, [])
            roles += [role] if role not in roles else []
    return [f"{' and '.join(roles)}: {advice}" for advice, roles in found.items()]


def _side_json(side: Side) -> dict[str, Any]:
    """What the runs are of; and of each, when it was taken and what is to be doubted."""
    record = dataclasses.asdict(side.run)
    kept = ("artifact", "device", "workload", "golden", "origin")
    runs = [
        {"created": run.created, "caveats": [dataclasses.asdict(one) for one in run.caveats]}
        for run in side.runs
    ]
    return {**{name: record[name] for name in kept}, "runs": runs}
