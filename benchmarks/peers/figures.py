"""From samples to figures: medians, their range over rounds, and ratios to a reference."""

from __future__ import annotations

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


def agreement(rows: Sequence[Row]) -> dict[str, int]:
    """How many tokens each float contestant chooses as the first of them does, by label.

    They run the same weights on the same prompt: were one to compute something else, its speed
    would say nothing. Near ties may part ways after many tokens.
    """
    spoken = {
        row["label"]: row["memory"]["tokens"]
        for row in rows
        if row["bits"] == 32 and "memory" in row
    }
    if not spoken:
        return {}
    first = next(iter(spoken.values()))
    return {label: _common(first, chosen) for label, chosen in spoken.items()}


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    parted = (index for index, (one, other) in pairs if one != other)
    return next(parted, min(len(left), len(right)))
