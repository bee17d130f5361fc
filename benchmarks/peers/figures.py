"""From samples to figures: medians, their range over rounds, and ratios to a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rate:
    """Tokens per second: the median of all samples, and of each round's medians the range.

    by_round: round -> median, which pairs two contestants that ran in the same round.
    """

    median: float
    lowest: float
    highest: float
    by_round: Mapping[int, float]


@dataclass(frozen=True)
class Ratio:
    """Times as fast as the reference: of medians; and over the rounds that both ran in, range."""

    median: float
    lowest: float
    highest: float


def rate(row: Row, part: str, threads: int, depth: int, count: int) -> Rate | None:
    """The speed of one part of a row's samples; ``None`` where it has none.

    Args:
        row: with ``samples``.
        part: ``whole``, ``appended`` or ``decode``.
        threads: whose samples.
        depth: whose samples.
        count: tokens that the part takes.
    """
    seconds: dict[int, list[float]] = {}
    for sample in row.get("samples", ()):
        value = sample[f"{part}_seconds"]
        if (sample["threads"], sample["depth"]) == (threads, depth) and value is not None:
            seconds.setdefault(sample["round"], []).append(value)
    if not seconds:
        return None
    by_round = {index: count / median(values) for index, values in seconds.items()}
    everything = [value for values in seconds.values() for value in values]
    found = by_round.values()
    return Rate(count / median(everything), min(found), max(found), by_round)


def ratio(candidate: Rate | None, reference: Rate | None) -> Ratio | None:
    """How many times faster than the reference; ``None`` where there is nothing to divide."""
    if candidate is None or reference is None:
        return None
    both = sorted(candidate.by_round.keys() & reference.by_round.keys())
    pairs = [candidate.by_round[index] / reference.by_round[index] for index in both]
    middle = candidate.median / reference.median
    return Ratio(middle, min([*pairs, middle]), max([*pairs, middle]))


def shares(rows: Sequence[Row]) -> list[float]:
    """Of every repetition with one thread: the share of its time that it had a CPU.

    Well below 1, something else ran on the machine, and the figures are not to be trusted.
    """
    return sorted(
        sample["cpu_seconds"] / (sample["whole_seconds"] + sample["decode_seconds"])
        for row in rows
        for sample in row.get("samples", ())
        if sample["threads"] == 1
    )


def distances(rows: Sequence[Row]) -> dict[str, float]:
    """How far each one's logits after the prompt are from the first float row's, by label.

    Root mean square of the difference over that of the logits. Float contestants run the same
    weights: were one to compute something else, its speed would say nothing. (Greedy tokens would
    not tell: random weights repeat one token for ever, whatever attention does.)
    """
    said = {row["label"]: row["memory"]["logits"] for row in rows if "memory" in row}
    floats = [row["label"] for row in rows if row["bits"] == 32 and row["label"] in said]
    if not floats:
        return {}
    base = said[floats[0]]
    size = math.hypot(*base)
    return {
        label: math.hypot(*(one - other for one, other in zip(values, base, strict=True))) / size
        for label, values in said.items()
    }
