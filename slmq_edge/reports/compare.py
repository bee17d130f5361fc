"""A comparison as text: terminal, Markdown, JSON. Only what varies gets a column.

A new format is a function from `Comparison` to text, ending in a newline, and a line in
`WRITERS`. All say which convention the numbers follow, and all carry every doubt.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from slmq_edge.compare import Comparison, Row, Value
from slmq_edge.reports.format import (
    UNKNOWN,
    bytes_text,
    count_text,
    rate_text,
    scheme_text,
    seconds_text,
    share_text,
)
from slmq_edge.results import Run
from slmq_edge.runner.manifest import TRT

FORMAT = "slmq-edge-comparison"
VERSION = 1
WIDTH = 95  # columns of a terminal
CELL = 32  # of these, for one cell at most

CONVENTION_LABELS = {
    "measured": "measured tokens/s and bytes",
    "paper": "the paper's convention (parameters as size, MACs as speed): "
    "not a measurement of speed",
}
HEADINGS = ("quantity", "baseline", "candidate", "times better")
TEXTS: dict[str, Callable[[float], str]] = {
    "B": bytes_text,
    "s": seconds_text,
    "tokens/s": rate_text,
    "tokens/J": functools.partial(rate_text, unit="tok/J"),
    "parameters": count_text,
    "MAC": count_text,
}

Table = Sequence[Sequence[str]]


def terminal(comparison: Comparison) -> str:
    """Comparison -> plain text for 95 columns."""
    footnotes = _footnotes(comparison)
    varying, equal = _what_ran(comparison)
    parts = [_filled(title(comparison))]
    parts += ["\n".join(_filled(note, "! ") for note in comparison.notes)]
    if varying:
        parts.append(_aligned([("what ran", "baseline", "candidate"), *varying]))
    if equal:
        listed = "; ".join(f"{name} {text}" for name, text in equal)
        parts.append(_filled(listed, "both: "))
    parts.append(_aligned([HEADINGS, *_cells(comparison, footnotes)], right=True))
    parts.append("\n".join(_filled(line) for line in _score_lines(comparison)))
    parts.append("\n".join(_filled(text, f"[{n}] ") for text, n in footnotes.items()))
    parts.append("\n".join(_filled(line, "! ") for line in _caveats(comparison)))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(comparison: Comparison) -> str:
    """Comparison -> a section of GitHub's Markdown."""
    footnotes = _footnotes(comparison)
    varying, equal = _what_ran(comparison)
    parts = [f"### {_escaped(title(comparison))}"]
    parts.append(_bullets(f"**{note}**" for note in map(_escaped, comparison.notes)))
    if varying:
        parts.append(_piped([("what ran", "baseline", "candidate"), *varying], "---|---|---"))
    if equal:
        listed = "; ".join(f"{name} {text}" for name, text in equal)
        parts.append(_filled(_escaped(f"Both: {listed}.")))
    cells = [HEADINGS, *_cells(comparison, footnotes)]
    parts.append(_piped(cells, "---|---:|---:|---:"))
    first, *others = map(_escaped, _score_lines(comparison))
    parts += [f"**{first}**", "\n".join(map(_filled, others))]
    parts.append("\n".join(f"{n}. {_escaped(text)}" for text, n in footnotes.items()))
    parts.append(_bullets(map(_escaped, _caveats(comparison))))
    return "\n\n".join(part for part in parts if part) + "\n"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Comparison -> numbers in SI units at full precision, for `json.dumps`."""
    sides = {"baseline": comparison.baseline, "candidate": comparison.candidate}
    return {
        "format": FORMAT,
        "version": VERSION,
        "convention": comparison.convention,
        "convention_label": CONVENTION_LABELS[comparison.convention],
        **{role: _side_json(run) for role, run in sides.items()},
        "rows": [dataclasses.asdict(row) for row in comparison.rows],
        "slmq_infer": dataclasses.asdict(comparison.score),
        "notes": list(comparison.notes),
        "refusals": list(comparison.refusals),
    }


def json_line(comparison: Comparison) -> str:
    """One comparison, one line: several make JSON Lines, which jq reads as it is."""
    return json.dumps(to_json(comparison), allow_nan=False) + "\n"


WRITERS: dict[str, Callable[[Comparison], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "json": json_line,
}


def render(comparisons: Sequence[Comparison], format: str) -> str:
    """All comparisons in one text; ``format`` is a key of `WRITERS`."""
    between = "" if format == "json" else "\n"
    return between.join(WRITERS[format](comparison) for comparison in comparisons)


def title(comparison: Comparison) -> str:
    names = [_short_name(run) for run in (comparison.candidate, comparison.baseline)]
    if names[0] == names[1]:
        sides = [_grids(run) for run in (comparison.candidate, comparison.baseline)]
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
        "golden check": _golden(run),
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


def _short_name(run: Run) -> str:
    return f"{run.artifact.model} {run.artifact.method} {run.artifact.scheme_ran}"


def _runtime(run: Run) -> str:
    kind = str(run.artifact.runtime.get("kind", UNKNOWN))
    package = "tensorrt" if kind == TRT else "onnxruntime" if kind.startswith("ort") else ""
    version = run.environment.get(package)
    return f"{kind} {version}" if version else kind


def _golden(run: Run) -> str:
    """A run is only written where the golden check has passed; a published figure has none."""
    if not run.golden:
        return "not checked"
    kl = run.golden.get("mean_kl")
    return f"passed, mean KL {kl:.1e}" if isinstance(kl, int | float) else "passed"


def _what_ran(
    comparison: Comparison,
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """The facts that differ, and those that both sides share."""
    before, after = what_ran(comparison.baseline), what_ran(comparison.candidate)
    varying = [(k, v, after[k]) for k, v in before.items() if v != after[k]]
    return varying, [(k, v) for k, v in before.items() if v == after[k] != UNKNOWN]


def _footnotes(comparison: Comparison) -> dict[str, int]:
    """Text -> number, in the order in which the rows need them."""
    texts = [text for row in comparison.rows for text in _remarks(row)]
    return {text: number for number, text in enumerate(dict.fromkeys(texts), start=1)}


def _remarks(row: Row) -> list[str]:
    across = f"across devices: {row.across}" if row.across else None
    return [text for text in (row.reason, across) if text]


def _cells(comparison: Comparison, footnotes: dict[str, int]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = []
    for row in comparison.rows:
        marks = "".join(f" [{footnotes[text]}]" for text in _remarks(row))
        scored = " *" if row.key in comparison.score.parts else ""
        ratio = _plus_minus(row.ratio, row.error) + marks
        before, after = (_value(value, row.unit) for value in (row.baseline, row.candidate))
        cells.append((row.quantity + scored, before, after, ratio))
    return cells


def _value(value: Value | None, unit: str) -> str:
    if value is None:
        return UNKNOWN
    text = TEXTS[unit](value.median)
    if value.spread is None:
        return text
    return f"{text} ± {share_text(value.spread / value.median)}"


def _plus_minus(value: float | None, error: float | None, decimals: int = 2) -> str:
    if value is None:
        return UNKNOWN
    text = f"{value:.{decimals}f}"
    return text if error is None else f"{text} ± {error:.{decimals}f}"


def _score_lines(comparison: Comparison) -> list[str]:
    score = comparison.score
    number = _plus_minus(score.value, score.error, 1)
    label = " (the paper's convention)" if comparison.convention == "paper" else ""
    why = f": {score.reason}" if score.reason else ""
    lines = [f"SLMQ_infer{label} {number}{why}"]
    memory = f"; its memory is the {score.memory}" if score.memory else ""
    lines.append(
        "* enters SLMQ_infer: 100 times the root mean square of the three ratios; "
        f"the baseline has 100{memory}."
    )
    if score.across:
        lines.append(f"The score is across devices: {score.across}.")
    if any(row.error is not None for row in comparison.rows):
        lines.append("± is the interquartile range; of ratios, both sides' in quadrature.")
    return lines


def _caveats(comparison: Comparison) -> list[str]:
    """Both sides' doubts; one that both have is said once."""
    found: dict[str, list[str]] = {}
    for role, run in (("baseline", comparison.baseline), ("candidate", comparison.candidate)):
        for caveat in run.caveats:
            found.setdefault(caveat.advice, []).append(role)
    return [f"{' and '.join(roles)}: {advice}" for advice, roles in found.items()]


def _side_json(run: Run) -> dict[str, Any]:
    record = dataclasses.asdict(run)
    kept = ("created", "artifact", "device", "workload", "golden", "origin", "caveats")
    return {name: record[name] for name in kept}


def _aligned(rows: Table, right: bool = False) -> str:
    """Columns two blanks apart, numbers to the right; a long cell takes several lines."""
    lines: list[list[str]] = []
    for row in rows:
        folded = [textwrap.wrap(cell, CELL) or [""] for cell in row]
        lines += map(list, itertools.zip_longest(*folded, fillvalue=""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:>{width}}" if right and column else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _filled(text: str, start: str = "") -> str:
    indent = " " * len(start)
    return textwrap.fill(
        text, WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
    )


def _piped(rows: Table, ruler: str) -> str:
    head, *body = ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows]
    return "\n".join([head, f"|{ruler}|", *body])


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _escaped(text: str) -> str:
    """Keep a name from ending a cell or starting an emphasis."""
    for character in "\\|*`<":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
