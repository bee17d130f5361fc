"""Many runs as text: methods on devices, each against its own device's full precision. Pure.

Memory appears as a ratio alone, with its kind: bytes of one kind are never beside another's.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from slmq_edge.across import Across, Cell, Matrix, Place
from slmq_edge.compare import Row
from slmq_edge.quantities import MEMORY, SPEED
from slmq_edge.rankings import PREFILL, SCORE
from slmq_edge.reports.compare import INTERVAL, range_text
from slmq_edge.reports.format import UNKNOWN
from slmq_edge.reports.tables import bullets, escaped, filled, folded, piped
from slmq_edge.transfer import Transfer

FORMAT, VERSION = "slmq-edge-across", 1
FOLD = 12  # columns of a terminal for one cell
UNSURE = " ~"
NAMES = {SPEED: "decode", PREFILL: "prefill", MEMORY: "memory", SCORE: "SLMQ_infer"}
PLACES = ("device", "baseline", "stored as", "its own score", "memory that counts")
HEADINGS = (
    "method", "device", "against", "size", "memory", "prefill", "decode", "SLMQ_infer", INTERVAL,
)  # fmt: skip
TRANSFERS = ("ranking by", "on", "and on", "of", "tau", INTERVAL, "p", "")
EXPLANATION = (
    "Times better than the full precision of the same device and runtime (above 1 is better), but "
    "size: the model in float16, 2 bytes a parameter, over the artifact's weights. SLMQ_infer: 100 "
    "times the root mean square of size, memory and decode. "
    f"{UNSURE.strip()}: the {INTERVAL} interval of the bootstrap holds what the baseline has, "
    "there are fewer than 5 readings, or a run says that its repetitions drifted. Repetitions of "
    "one run know nothing of what another start would give."
)
OF_TAU = (
    "of: methods on both. tau: Kendall's tau-b of two rankings, 1 the same and -1 reversed, with "
    "an interval over the repetitions; p: the share of all orders that agree or disagree as much "
    "by chance. It is said to transfer where the interval holds no 0 and p is at most 0.05, which "
    "takes 5 methods."
)


def terminal(found: Across) -> str:
    """Plain text for 95 columns."""
    parts: list[str] = []
    for matrix in found.matrices:
        parts.append(filled(title(matrix)))
        parts += [filled(matrix.mixed, "! ")] if matrix.mixed else []
        parts.append(folded([PLACES, *map(_place, matrix.places)], texts=5, cell=28))
        parts.append(folded([HEADINGS, *_rows(matrix)], texts=3, cell=FOLD))
        if matrix.transfers:
            table = [TRANSFERS, *map(_transfer, matrix.transfers)]
            parts.append(folded(table, texts=3, cell=FOLD))
        notes = [filled(note, "! ") for note in _notes(matrix)]
        parts += ["\n".join(notes)] if notes else []
    parts += ["\n".join(filled(f"not compared: {line}", "! ") for line in found.aside)]
    parts += [filled(text) for text in _explanations(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(found: Across) -> str:
    """A section of GitHub's Markdown for each model and workload."""
    parts: list[str] = []
    for matrix in found.matrices:
        parts.append(f"### {escaped(title(matrix))}")
        parts += [f"**{escaped(matrix.mixed)}**"] if matrix.mixed else []
        parts.append(piped([PLACES, *map(_place, matrix.places)], texts=5))
        parts.append(piped([HEADINGS, *_rows(matrix)], texts=3))
        if matrix.transfers:
            parts.append(piped([TRANSFERS, *map(_transfer, matrix.transfers)], texts=3))
        parts.append(bullets(map(escaped, _notes(matrix))))
    parts.append(bullets(escaped(f"not compared: {line}") for line in found.aside))
    parts += [escaped(text) for text in _explanations(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_json(found: Across) -> str:
    """Numbers at full precision, one document."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "matrices": [_matrix_json(matrix) for matrix in found.matrices],
        "aside": list(found.aside),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def comma_separated(found: Across) -> str:
    """One line an artifact and place, numbers at full precision."""
    lines = [
        {"model": matrix.model, **matrix.work, **_flat(cell), "mixed": matrix.mixed or ""}
        for matrix in found.matrices
        for cell in matrix.cells()
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*lines[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


WRITERS: dict[str, Callable[[Across], str]] = {
    "terminal": terminal,
    "md": markdown,
    "csv": comma_separated,
    "json": to_json,
}


def title(matrix: Matrix) -> str:
    work = matrix.work
    protocol = f", protocol {work['protocol']}" if work["protocol"] else ""
    return (
        f"{matrix.model}: {work['prompt_tokens']} prompt tokens, {work['new_tokens']} new{protocol}"
    )


def _place(place: Place) -> tuple[str, ...]:
    own = UNKNOWN if place.reference is None else f"{place.reference:.1f}"
    return place.name, place.baseline, place.precision, own, " or ".join(place.memory)


def _rows(matrix: Matrix) -> Iterator[tuple[str, ...]]:
    last = None
    for cell in matrix.cells():
        score = cell.comparison.score
        value = UNKNOWN if score.value is None else f"{score.value:.1f}{_unsure(score.verdict)}"
        yield (
            cell.method if cell.method != last else "",
            cell.place,
            cell.precision,
            *map(_ratio, (cell.size, cell.memory, cell.prefill, cell.decode)),
            value,
            range_text(score.low, score.high, 1),
        )
        last = cell.method


def _ratio(row: Row) -> str:
    return UNKNOWN if row.ratio is None else f"{row.ratio:.2f}{_unsure(row.verdict)}"


def _unsure(verdict: str | None) -> str:
    return UNSURE if verdict == "inconclusive" else ""


def _transfer(found: Transfer) -> tuple[str, ...]:
    return (
        NAMES[found.by],
        *found.places,
        str(len(found.orders[0])),
        UNKNOWN if found.tau is None else f"{found.tau:+.2f}",
        range_text(found.low, found.high, 2),
        "" if found.p is None else f"{found.p:.2g}",
        found.said or (UNKNOWN if found.reason else "no interval"),
    )


def _notes(matrix: Matrix) -> Iterator[str]:
    """What has no score, what was measured more than once, what differs, what is doubted."""
    for cell in matrix.cells():
        if cell.comparison.score.reason:
            for row in (cell.memory, cell.decode, cell.size):
                if row.reason:
                    yield f"{cell.method} on {cell.place}: {row.reason}"
    for place in matrix.places:
        sides = [(place.baseline, place.side)]
        sides += [(cell.method, cell.comparison.candidate) for cell in place.cells]
        several = [f"{name} {len(side.runs)}" for name, side in sides if len(side.runs) > 1]
        if several:
            yield f"runs on {place.name}, the spread between them counted: {', '.join(several)}"
    for one in matrix.transfers:
        if one.reason:
            yield f"ranking by {NAMES[one.by]} on {' and '.join(one.places)}: {one.reason}"
    yield from matrix.differences
    yield from _doubts(matrix)


def _doubts(matrix: Matrix) -> Iterator[str]:
    """One line a kind of doubt, with the words of the first; the runs themselves have all."""
    for code in dict.fromkeys(doubt.code for doubt in matrix.doubts):
        found = [doubt for doubt in matrix.doubts if doubt.code == code]
        who = []
        for place in matrix.places:
            of = dict.fromkeys(doubt.method for doubt in found if doubt.place == place.name)
            is_all = len(of) == len(place.cells) + 1
            who += [f"{'all' if is_all else ', '.join(of)} on {place.name}"] if of else []
        like = "" if len({doubt.advice for doubt in found}) == 1 else "for one, "
        yield f"{'; '.join(who)}: {like}{found[0].advice}"


def _explanations(found: Across) -> Iterator[str]:
    yield EXPLANATION
    if any(matrix.transfers for matrix in found.matrices):
        yield OF_TAU


def _matrix_json(matrix: Matrix) -> dict[str, Any]:
    kept = ("name", "device", "kind", "runtime", "baseline", "precision", "reference", "memory")
    return {
        "model": matrix.model,
        "work": dict(matrix.work),
        "mixed": matrix.mixed,
        "places": [{name: getattr(place, name) for name in kept} for place in matrix.places],
        "rows": [_cell_json(cell) for cell in matrix.cells()],
        "transfers": [dataclasses.asdict(one) for one in matrix.transfers],
        "differences": list(matrix.differences),
        "doubts": [dataclasses.asdict(doubt) for doubt in matrix.doubts],
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    """Ratios alone: what was read stays in run.json, where its kind and machine are."""
    rows = {name: getattr(cell, name) for name in ("size", "memory", "prefill", "decode")}
    kept = ("ratio", "low", "high", "verdict", "reason")
    side = cell.comparison.candidate
    return {
        "method": cell.method,
        "place": cell.place,
        "precision": cell.precision,
        "runs": len(side.runs),
        "bundle_sha256": side.run.artifact.bundle_sha256,
        **{of: {name: getattr(row, name) for name in kept} for of, row in rows.items()},
        "slmq_infer": dataclasses.asdict(cell.comparison.score),
    }


def _flat(cell: Cell) -> dict[str, Any]:
    """`_cell_json` without its depth."""
    found: dict[str, Any] = {}
    for name, value in _cell_json(cell).items():
        if isinstance(value, dict):
            kept = {
                key: value[key]
                for key in ("ratio", "value", "low", "high", "verdict")
                if key in value
            }
            found |= {f"{name}_{key}": one for key, one in kept.items()}
        else:
            found[name] = value
    return found | {"memory_kind": cell.comparison.score.memory}
