"""How far a ratio of medians can be trusted: a bootstrap over repetitions, and over runs.

    ratio = median(candidate) / median(baseline)     where more is better, else its reciprocal

A sample is one or several runs of the same artifact on the same machine, each with its repetitions.
Of several runs the median of their medians counts. A draw takes as many runs with replacement, and
of each as many repetitions (Efron and Tibshirani 1993, chapters 8 and 13; runs first, as Kalibera
and Jones 2013 have it for benchmarks). Intervals are percentiles of the logarithms.

The assumption: repetitions are drawn as if they were independent. Those of one process share its
memory layout, its clocks and the state of the machine, so the interval of one run tells how well
that run knows its own median, not what another start would give. Measure the artifact again and
give both runs: then the spread between runs is in the interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Better = Literal["lower", "higher"]
Verdict = Literal["better", "worse", "same", "inconclusive"]
Sample = Sequence[Sequence[float]]
Draws = NDArray[np.float64]

DRAWS = 10_000
SEED = 0
COVERED = 0.95
# Where all noise is within runs, the intervals of ratios cover 95 % of the time from 5 repetitions
# a side on, and 90 % with 3 (simulated: normal and skewed noise, `tests/test_intervals.py`).
FEWEST = 5


class Interval(NamedTuple):
    """A figure and what holds it with 95 %; the ends are None where nothing was repeated."""

    value: float
    low: float | None
    high: float | None


def interval(baseline: Sequence[float], candidate: Sequence[float], better: Better) -> Interval:
    """Times better than the baseline, of the repetitions of one run each.

    Raises:
        ValueError: a side is empty, or not positive.
    """
    return ratio((baseline,), (candidate,), better)


def ratio(baseline: Sample, candidate: Sample, better: Better) -> Interval:
    """Times better than the baseline.

    Raises:
        ValueError: a side is empty, or not positive.
    """
    before, after = middle(baseline), middle(candidate)
    value = after / before if better == "higher" else before / after
    drawn = log_ratios(baseline, candidate, better)
    return Interval(value, None, None) if drawn is None else Interval(value, *ends(drawn, True))


def log_ratios(baseline: Sample, candidate: Sample, better: Better) -> Draws | None:
    """Draws of log(ratio), [`DRAWS`]; None where a side is a single reading.

    Every stream of random numbers serves each side once, so that swapping the sides turns every
    draw over. Two quantities of the same runs are drawn from the same runs.
    """
    if not (is_repeated(baseline) and is_repeated(candidate)):
        return None
    half = DRAWS // 2
    parts = [
        np.log(medians(candidate, (one,), half)) - np.log(medians(baseline, (other,), half))
        for one, other in ((0, 1), (1, 0))
    ]
    drawn: Draws = np.concatenate(parts)
    return drawn if better == "higher" else -drawn


def medians(sample: Sample, stream: Sequence[int], draws: int = DRAWS) -> Draws:
    """Medians of drawn samples, [draws]; ``stream``: whose random numbers these are."""
    generator = np.random.default_rng((SEED, *stream))
    runs = [np.asarray(values, np.float64) for values in sample]
    # Chosen before anything depends on how many repetitions there are.
    chosen = generator.integers(len(runs), size=(draws, len(runs)))
    found = np.empty(chosen.shape)
    for slot in range(len(runs)):
        for index, values in enumerate(runs):
            here = chosen[:, slot] == index
            drawn = generator.integers(len(values), size=(int(here.sum()), len(values)))
            found[here, slot] = np.median(values[drawn], axis=1)
    drawn_medians: Draws = np.median(found, axis=1)
    return drawn_medians


def ends(drawn: Draws, logarithms: bool = False) -> tuple[float, float]:
    """The ends of the interval that holds `COVERED` of the draws."""
    tail = 100 * (1 - COVERED) / 2
    low, high = (float(end) for end in np.percentile(drawn, [tail, 100 - tail]))
    return (math.exp(low), math.exp(high)) if logarithms else (low, high)


def middle(sample: Sample) -> float:
    """The median of the runs' medians.

    Raises:
        ValueError: empty, or not positive.
    """
    if not sample or not all(sample) or min(map(min, sample)) <= 0:
        raise ValueError(f"a sample of positive values is needed, not {sample}")
    return float(statistics.median(statistics.median(values) for values in sample))


def is_repeated(sample: Sample) -> bool:
    return count(sample) > 1


def count(sample: Sample) -> int:
    return sum(map(len, sample))


def verdict(found: Interval, against: float = 1.0) -> Verdict | None:
    """What may be said of a figure of which more is better; None without an interval."""
    if found.low is None or found.high is None:
        return None
    if found.low > against:
        return "better"
    return "worse" if found.high < against else "inconclusive"
