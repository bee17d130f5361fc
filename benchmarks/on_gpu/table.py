"""Rows of results.json as Markdown, for README: losses stand where gains do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slmq_edge.reports.format import bytes_text

NOTHING = "-"
SPEEDS = (
    "", "weights", "x", "memory", "x", "prompt, tok/s", "x", "decode, tok/s", "x",
    "128-token pass, tok/s", "x", "tok/J", "SLMQ_infer",
)  # fmt: skip
COSTS = ("", "minutes", "paper", "peak memory, MiB", "paper", "SLMQ_quant", "paper")
TABLE3 = (
    "", "memory, MiB", "paper, MB", "parameters, M", 'paper, "MB"', "MACs of 128, G", "paper",
    "SLMQ_infer, the paper's way", "paper", "as measured",
)  # fmt: skip


def markdown(document: Mapping[str, Any]) -> str:
    """What was measured, the paper's tables beside it, what differs, and what was not done."""
    parts = [_head(document), _speeds(document.get("rows", ()))]
    is_toy = document["same"].get("toy")  # whose figures stand beside nobody's
    beside = {} if is_toy else document.get("beside_the_paper") or {}
    parts += [_table3(beside.get("table3", ())), _table4(beside.get("table4", ()))]
    parts.append("\n".join(f"* {line}." for line in beside.get("differs", ())))
    parts.append(_undone(document["steps"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(document: Mapping[str, Any]) -> str:
    call = document["calls"][-1] if document["calls"] else {}
    machine = call.get("machine") or {}
    gpu, torch = (machine.get("gpu") or {}).get("gpu") or {}, machine.get("torch") or {}
    mode = ((machine.get("gpu") or {}).get("mode") or {}).get("name")
    named = gpu.get("name") or "no GPU"
    told = [f"driver {gpu['driver']}" if gpu.get("driver") else "", mode or ""]
    told.append(f"torch {torch['version']}" if torch.get("version") else "")
    toy = "a TOY, whose figures mean nothing; " if document["same"].get("toy") else ""
    return f"{toy}{named}, {', '.join(part for part in told if part)}; {call.get('started', '')}"


def _speeds(rows: Iterable[Mapping[str, Any]]) -> str:
    return _table(SPEEDS, [_speed(row) for row in rows])


def _speed(row: Mapping[str, Any]) -> list[str]:
    better = row["times_better"]
    score = row["slmq_infer"]
    name = f"{row['model']} {row['method']} {row['scheme']}"
    return [
        f"{name} (baseline)" if row["is_baseline"] else name,
        bytes_text(row["weights_bytes"]),
        _times(better.get("size")),
        f"{bytes_text(row['memory_bytes'])} ({row['memory_kind']})"
        if row["memory_bytes"]
        else NOTHING,
        _times(better.get("memory")),
        _number(row["prefill_tokens_per_second"]),
        _times(better.get("prefill")),
        _number(row["decode_tokens_per_second"]),
        _times(better.get("decode")),
        _number(row["forward_tokens_per_second"]),
        _times(better.get("forward")),
        _number(row["decode_tokens_per_joule"]),
        NOTHING if score is None else f"{score['value']:.1f}",
    ]


def _times(found: Mapping[str, Any] | None) -> str:
    """Above 1 better, and its interval where it has one."""
    if found is None:
        return NOTHING
    text = f"{found['ratio']:.2f}"
    if found["low"] is None:
        return text
    return f"{text} [{found['low']:.2f}, {found['high']:.2f}]"


def _table3(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        ours, theirs = row["ours"] or {}, row["paper"]
        lines.append(
            [
                f"{row['model']} {row['method']} {row['scheme']}",
                _number(ours.get("memory_mib")),
                theirs.get("memory") or NOTHING,
                _number(ours.get("parameters_millions"), 2),
                theirs.get("size") or NOTHING,
                _number(ours.get("macs_giga"), 2),
                theirs.get("macs") or NOTHING,
                _number(ours.get("slmq_infer_paper"), 1),
                theirs.get("slmq_infer") or NOTHING,
                _number(ours.get("slmq_infer_measured"), 1),
            ]
        )
    return _table(TABLE3, lines)


def _table4(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        ours, theirs = row["ours"] or {}, row["paper"]
        lines.append(
            [
                f"{row['model']} {row['method']} {row['scheme']}",
                _number(ours.get("minutes"), 2),
                theirs.get("time") or NOTHING,
                _number(ours.get("memory_mib")),
                theirs.get("memory") or NOTHING,
                _number(ours.get("slmq_quant"), 1),
                theirs.get("slmq_quant") or NOTHING,
            ]
        )
    return _table(COSTS, lines)


def _undone(steps: Mapping[str, Mapping[str, Any]]) -> str:
    left = [
        f"* {name}: {entry['state']}: {entry.get('error')}"
        for name, entry in steps.items()
        if entry.get("state") != "done"
    ]
    return "\n".join(["Not done:", "", *left]) if left else ""


def _number(value: float | None, decimals: int = 0) -> str:
    if value is None:
        return NOTHING
    return f"{value:.{max(decimals, 0 if value >= 100 else 1)}f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
