"""Doubt is data: what makes a measurement less than certain travels with it.

A new doubt is a function from `Evidence` to a `Caveat` or None, and a line in `CHECKS`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmq_edge.results import Series

SLOW_FIRST = 1.2  # times the median of the others
UNSTABLE = 0.10  # interquartile range over median
BUSY = 0.5  # other tasks per core at the start
FEWEST_REPETITIONS = 5
CLEAR_SHARE = 0.5  # of golden positions
TIMED = ("prefill_seconds", "decode_seconds")


@dataclass(frozen=True)
class Caveat:
    """One doubt: a stable ``code``, the numbers behind it, and what to do about it."""

    code: str
    advice: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """The parts of a run that doubts are drawn from."""

    series: Mapping[str, Series]
    environment: Mapping[str, Any]
    workload: Mapping[str, Any]
    golden: Mapping[str, Any]
    probe: Mapping[str, Any] | None


def slow_first_repetition(seen: Evidence) -> Caveat | None:
    for name in TIMED:
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
    for name in TIMED:
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


def background_load(seen: Evidence) -> Caveat | None:
    load, cores = seen.environment.get("load_average"), seen.environment.get("cores")
    if load is None or not cores or load <= BUSY * cores:
        return None
    return Caveat(
        "background-load",
        f"{load:.1f} tasks were running on {cores} cores before we began (mean of the last "
        "minute): wait until the machine is quiet",
        {"load_average": load, "cores": cores},
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


def fewer_cores_than_threads(seen: Evidence) -> Caveat | None:
    threads, cores = seen.workload["threads"], seen.environment.get("cores")
    if not cores or threads <= cores or seen.environment.get("tensorrt"):  # which has none of ours
        return None
    return Caveat(
        "fewer-cores-than-threads",
        f"{threads} threads shared {cores} cores: ask for {cores} (--threads)",
        {"threads": threads, "cores": cores},
    )


def governor_saves_power(seen: Evidence) -> Caveat | None:
    governor = seen.environment.get("governor")
    if governor in (None, "performance"):
        return None
    return Caveat(
        "governor",
        f"the frequency governor is '{governor}': set 'performance' for steady clocks",
        {"governor": governor},
    )


def golden_mostly_unclear(seen: Evidence) -> Caveat | None:
    compared = seen.golden.get("positions_compared", 0)
    below = seen.golden.get("positions_below_margin", 0)
    if below <= (1 - CLEAR_SHARE) * compared:
        return None
    return Caveat(
        "golden-mostly-unclear",
        f"at {below} of {compared} golden positions the simulation's choice is within its own "
        "noise, so the choice of token was hardly checked: use golden prompts the model knows",
        {"positions_compared": compared, "positions_below_margin": below},
    )


def inexact_integers(seen: Evidence) -> Caveat | None:
    if seen.probe is None or seen.probe.get("exact"):
        return None
    return Caveat(
        "inexact-integers",
        f"{seen.probe.get('operator')} is not exact on this CPU (off by up to "
        f"{seen.probe.get('largest_error')}): its speed is that of wrong numbers",
        {"largest_error": seen.probe.get("largest_error")},
    )


def products_left_floats(seen: Evidence) -> Caveat | None:
    said = seen.environment.get("session") or {}
    missing, asked = said.get("int8_missing"), said.get("int8_asked")
    if not missing:
        return None
    return Caveat(
        "int8-missing",
        f"{len(missing)} of the {asked} products that were to be int8 are not, in this engine: "
        "slmq-edge build says which, and why",
        {"missing": len(missing), "asked": asked},
    )


def steps_not_replayed(seen: Evidence) -> Caveat | None:
    fact = (seen.environment.get("session") or {}).get("cuda_graph")
    if fact is None or not fact.startswith("not used"):
        return None
    return Caveat(
        "no-cuda-graph",
        f"decoding launched its kernels one by one, which takes longer (CUDA graph {fact})",
        {"cuda_graph": fact},
    )


def resumed(seen: Evidence) -> Caveat | None:
    processes = len(seen.series["load_seconds"].values)
    if processes == 1:
        return None
    return Caveat(
        "resumed",
        f"the repetitions were taken by {processes} processes, one after the other",
        {"processes": processes},
    )


CHECKS: tuple[Callable[[Evidence], Caveat | None], ...] = (
    inexact_integers,
    products_left_floats,
    steps_not_replayed,
    background_load,
    fewer_cores_than_threads,
    governor_saves_power,
    few_repetitions,
    slow_first_repetition,
    unstable_repetitions,
    golden_mostly_unclear,
    resumed,
)


def doubts(seen: Evidence) -> tuple[Caveat, ...]:
    return tuple(caveat for check in CHECKS if (caveat := check(seen)) is not None)
