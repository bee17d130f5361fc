"""A document of results as Markdown. Pure: nothing is measured, read or written here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.peers.contestants import CONTESTANTS, REFERENCES
from benchmarks.peers.figures import Rate, Ratio, Row, distances, rate, ratio, shares
from slmq_edge.reports.format import UNKNOWN, bytes_text, seconds_text

DASH = "-"
QUIET = 0.95  # of one thread's time on a CPU; below in a tenth of all: something ran beside


def markdown(document: Mapping[str, Any]) -> str:
    """A section per shape: speed by threads, speed by depth, size and memory; then notes."""
    plan, parts = document["plan"], [_where(document)]
    for shape in dict.fromkeys(row["shape"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["shape"] == shape]
        parts.append(f"#### {shape}")
        parts.append(_speed(rows, plan))
        deeper = [depth for depth in plan["depths"] if depth]
        parts += [_depth(rows, plan, threads) for threads in plan["threads"] if deeper]
        parts.append(_memory(rows, plan))
        parts += _distances(rows)
    parts.append(_notes(document))
    return "\n\n".join(part for part in parts if part) + "\n"


def _speed(rows: Sequence[Row], plan: Mapping[str, Any]) -> str:
    """Decode and prefill at the first depth, for every number of threads."""
    depth, counts = plan["depths"][0], _counts(plan, plan["depths"][0])
    headings = ["tokens/s (range over rounds)"]
    for threads in plan["threads"]:
        ending = f"{threads} thread" + ("s" if threads > 1 else "")
        headings += [f"decode, {ending}", "x", f"prompt of {counts['whole']}, {ending}", "x"]
    keys = [(part, t, depth) for t in plan["threads"] for part in ("decode", "whole")]
    return _table(headings, [_line(row, rows, keys, plan) for row in rows])


def _depth(rows: Sequence[Row], plan: Mapping[str, Any], threads: int) -> str:
    """Decode, whole prompt and appended part at the other depths, for one number of threads."""
    ending = f"{threads} thread" + ("s" if threads > 1 else "")
    headings, keys = [f"tokens/s, {ending}"], []
    for depth in (depth for depth in plan["depths"] if depth):
        counts = _counts(plan, depth)
        headings += [f"decode at {counts['whole']}", "x", f"prompt of {counts['whole']}", "x"]
        headings += [f"{counts['appended']} onto {depth}", "x"]
        keys += [(part, threads, depth) for part in ("decode", "whole", "appended")]
    return _table(headings, [_line(row, rows, keys, plan) for row in rows])


def _line(
    row: Row, rows: Sequence[Row], keys: Iterable[tuple[str, int, int]], plan: Mapping[str, Any]
) -> list[str]:
    """A row's rates, each followed by its ratio to the reference's."""
    cells = [row["label"]]
    if _failure(row):
        return [*cells, _failure(row)]
    reference = next((r for r in rows if r["label"] == REFERENCES[row["bits"]]), None)
    for part, threads, depth in keys:
        count = _counts(plan, depth)[part]
        found = rate(row, part, threads, depth, count)
        base = None if reference is None else rate(reference, part, threads, depth, count)
        cells += [_rate_text(found), _ratio_text(ratio(found, base))]
    return cells


def _memory(rows: Sequence[Row], plan: Mapping[str, Any]) -> str:
    headings = ["size and memory", "on disk", "load", "first prompt", "before loading"]
    headings += ["peak, loaded", "steady", "of it not in files"]
    lines = []
    for row in rows:
        if _failure(row):
            lines.append([row["label"], _failure(row)])
            continue
        found = row["memory"]
        loads = [load for load in row["loads"] if load["threads"] == plan["threads"][0]]
        line = [row["label"], bytes_text(row["bytes"])]
        line.append(_median_seconds([load["seconds"] for load in loads]))
        line.append(_median_seconds([load["warm_up"]["whole_seconds"] for load in loads]))
        line.append(bytes_text(found["imported"]["VmRSS"]))
        line.append(bytes_text(found["loaded"]["VmHWM"]))
        line.append(bytes_text(found["steady"]["VmRSS"]))
        line.append(bytes_text(found["steady"]["RssAnon"]))
        lines.append(line)
    return _table(headings, lines)


def _failure(row: Row) -> str:
    """Why a row has no figures; empty: it has."""
    if "error" in row:
        return f"did not run: {row['error']}"
    return "" if "memory" in row else "not measured yet"


def _where(document: Mapping[str, Any]) -> str:
    found, plan = document["environment"], document["plan"]
    flags = ", ".join(found["cpu_flags"] or []) or UNKNOWN
    return (
        f"{found['cpu_model']}, {found['cores']} cores ({flags}); {plan['rounds']} rounds of "
        f"{plan['repetitions']} repetitions, contestants in turn; {plan['new']} tokens decoded, "
        f"random weights, batch 1, greedy; load average at the start {found['load_average']}."
        + _quiet(document["rows"])
    )


def _quiet(rows: Sequence[Row]) -> str:
    """Whether the machine was theirs alone."""
    found = shares(rows)
    if not found:
        return ""
    told = f" With one thread they had a CPU for {100 * median(found):.0f} % of the time"
    told += f" ({100 * found[0]:.0f} % at the least)"
    busy = "; **the machine was busy: not figures to quote**"
    return f"{told}{'' if found[len(found) // 10] > QUIET else busy}."


def _distances(rows: Sequence[Row]) -> list[str]:
    """That all compute one thing, as far as their precision goes."""
    found = distances(rows)
    if len(found) < 2:
        return []
    base = next(label for label, distance in found.items() if distance == 0)
    told = ", ".join(f"{label} {100 * far:.2g} %" for label, far in found.items() if label != base)
    return [
        f"Logits after the prompt, relative distance from {base} (random weights: a check of what "
        f"is computed, no measure of quality): {told}."
    ]


def _notes(document: Mapping[str, Any]) -> str:
    """What each row is, and how the figures were taken."""
    plan, lines = document["plan"], []
    for row in {row["label"]: row for row in document["rows"]}.values():
        told = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        about = CONTESTANTS[row["contestant"]].about
        lines.append(f"- {row['label']}: {about}; {told or 'nothing installed'}.")
    lines.append(
        "- x: times as fast as "
        + ", ".join(f"{label} ({bits} bits)" for bits, label in REFERENCES.items())
        + "; of medians, and its range over rounds."
    )
    lines.append(
        f"- Decode at N: {plan['new']} tokens, one by one, with N in the cache. Prompt of N: from "
        "an empty cache, until the next token is known. N onto M: several tokens onto a cache that "
        f"is not empty; {DASH}: the runtime takes one at a time there, as our runner does."
    )
    lines.append(
        "- Load: from the page cache, imports before it. First prompt: the first repetition after "
        "loading, which pays for what loading put off. Steady: resident after 512 tokens; pages of "
        "a mapped file count as resident, and not as 'not in files'."
    )
    return "\n".join(lines)


def _counts(plan: Mapping[str, Any], depth: int) -> dict[str, int]:
    """Tokens that each timed part takes."""
    return {"decode": plan["new"], "whole": depth + plan["prompt"], "appended": plan["prompt"]}


def _rate_text(found: Rate | None) -> str:
    if found is None:
        return DASH
    return f"{_digits(found.median)} ({_digits(found.lowest)}-{_digits(found.highest)})"


def _ratio_text(found: Ratio | None) -> str:
    if found is None:
        return DASH
    return f"{found.median:.2f} ({found.lowest:.2f}-{found.highest:.2f})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}"


def _median_seconds(values: Sequence[float]) -> str:
    return seconds_text(median(values)) if values else DASH


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """GitHub's Markdown; a line that is too short is filled up."""
    rule = "|".join(["---", *["---:"] * (len(headings) - 1)])
    filled = [[*line, *[""] * (len(headings) - len(line))] for line in lines]
    texts = [" | ".join(cell.replace("|", r"\|") for cell in cells) for cells in filled]
    return "\n".join([" | ".join(headings), rule, *texts])
