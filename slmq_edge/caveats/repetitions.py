"""Doubts about the repetitions: too few, too unlike each other, not of one piece."""

from __future__ import annotations

import statistics

from slmq_edge.caveats.evidence import Caveat, Evidence
from slmq_edge.runner import stability

SLOW_FIRST = 1.2  # times the median of the others
UNSTABLE = 0.10  # interquartile range over median
FEWEST_REPETITIONS = 5
TIMED = ("prefill_seconds", "decode_seconds")
PASSES = "forward_seconds"  # of a protocol; not every run has one
UNSTEADY = "unsteady_"  # before the name of a series that was taken again


def _timed(seen: Evidence) -> tuple[str, ...]:
    return (*TIMED, PASSES) if PASSES in seen.series else TIMED


def slow_first_repetition(seen: Evidence) -> Caveat | None:
    for name in _timed(seen):
        values = seen.series[name].values
        if len(values) < 3:
            continue
        first, usual = values[0], statistics.median(values[1:])
        if first == max(values) and first > SLOW_FIRST * usual:
            return Caveat(
                "slow-first-repetition",
                f"the first repetition took {first / usual:.1f} times as long as the others "
                f"({name}): add warm-ups",
                {"series": name, "first_seconds": first, "median_of_others_seconds": usual},
            )
    return None


def unstable_repetitions(seen: Evidence) -> Caveat | None:
    for name in _timed(seen):
        series = seen.series[name]
        share = series.spread / series.median
        if share > UNSTABLE:
            return Caveat(
                "unstable-repetitions",
                f"the middle half of {name} spreads over {share:.0%} of its median: close "
                "other programs, fix the clock, repeat more often",
                {"series": name, "spread_over_median": share},
            )
    return None


def inconclusive(seen: Evidence) -> Caveat | None:
    """The last repetitions are not like the first, even after all were taken anew."""
    found = {name: stability.drift(seen.series[name].values) for name in _timed(seen)}
    changes = {name: change for name, change in found.items() if change is not None}
    if not changes:
        return None
    name, change = max(changes.items(), key=lambda pair: abs(pair[1]))
    tries = "two tries" if UNSTEADY + name in seen.series else "one try"
    return Caveat(
        "inconclusive",
        f"the last repetitions took {1 + change:.2f} times as long as the first ({name}, {tries}): "
        "let the machine come to rest, close other programs, and measure again with more "
        "repetitions or --cool-down",
        {"drift": changes},
    )


def measured_again(seen: Evidence) -> Caveat | None:
    aside = {name: seen.series.get(UNSTEADY + name) for name in TIMED}
    known = {name: series for name, series in aside.items() if series is not None}
    if not known:
        return None
    medians = {name: series.median for name, series in known.items()}
    return Caveat(
        "measured-again",
        "the first repetitions were not steady from beginning to end and were put aside: these are "
        "of a second try, after a pause",
        {"put_aside_median_seconds": medians},
    )


def few_repetitions(seen: Evidence) -> Caveat | None:
    count = len(seen.series["decode_seconds"].values)
    if count >= FEWEST_REPETITIONS:
        return None
    return Caveat(
        "few-repetitions",
        f"{count} repetitions say little about the spread: take at least {FEWEST_REPETITIONS} (-r)",
        {"repetitions": count},
    )


def resumed(seen: Evidence) -> Caveat | None:
    processes = len(seen.series["load_seconds"].values)
    if processes == 1:
        return None
    return Caveat(
        "resumed",
        f"this was measured by {processes} processes, one after the other",
        {"processes": processes},
    )
