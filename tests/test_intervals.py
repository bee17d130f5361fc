"""Intervals of ratios: what they must not depend on, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge import intervals
from slmq_edge.intervals import DRAWS, Better, Interval, interval, ratio, verdict

values = st.lists(st.floats(min_value=0.01, max_value=100.0), min_size=2, max_size=9)
senses = st.sampled_from(["lower", "higher"])
few = settings(max_examples=25, deadline=None)


@given(values, values, senses)
@few
def test_swapping_the_sides_gives_the_reciprocal(
    first: list[float], second: list[float], better: Better
) -> None:
    there, here = interval(first, second, better), interval(second, first, better)
    assert there.low is not None
    assert there.high is not None
    assert there.value * here.value == pytest.approx(1.0, rel=1e-12)
    assert there.low * (here.high or 0) == pytest.approx(1.0, rel=1e-9)
    assert there.high * (here.low or 0) == pytest.approx(1.0, rel=1e-9)


@given(values, values, st.floats(min_value=1e-3, max_value=1e3))
@few
def test_the_unit_does_not_matter_and_a_factor_is_a_factor(
    first: list[float], second: list[float], factor: float
) -> None:
    usual = interval(first, second, "higher")
    alike = interval([factor * x for x in first], [factor * x for x in second], "higher")
    more = interval(first, [factor * x for x in second], "higher")
    assert alike == pytest.approx(usual, rel=1e-9)
    assert more == pytest.approx([factor * (x or 0) for x in usual], rel=1e-9)


@given(values, senses)
@few
def test_identical_samples_are_inconclusive(sample: list[float], better: Better) -> None:
    found = interval(sample, sample, better)
    assert found.value == 1.0
    assert verdict(found) == "inconclusive"


@given(values, values, senses)
@few
def test_the_interval_lies_within_what_was_read(
    first: list[float], second: list[float], better: Better
) -> None:
    found = interval(first, second, better)
    extremes = [x / y if better == "lower" else y / x for x in first for y in second]
    assert found.low is not None
    assert found.high is not None
    assert min(extremes) * (1 - 1e-9) <= found.low <= found.high <= max(extremes) * (1 + 1e-9)


def test_a_single_reading_has_no_interval() -> None:
    assert interval([2.0], [1.0, 1.0, 1.0], "lower") == Interval(2.0, None, None)
    assert verdict(interval([2.0], [1.0], "lower")) is None


@pytest.mark.parametrize("sample", [[], [1.0, 0.0], [1.0, -1.0]])
def test_only_positive_values_have_a_ratio(sample: list[float]) -> None:
    with pytest.raises(ValueError, match="positive values"):
        interval([1.0], sample, "lower")


def test_a_verdict_follows_from_the_ends() -> None:
    assert verdict(Interval(1.2, 1.1, 1.3)) == "better"
    assert verdict(Interval(0.8, 0.7, 0.9)) == "worse"
    assert verdict(Interval(1.2, 0.9, 1.3)) == "inconclusive"
    assert verdict(Interval(1.2, 1.1, 1.3), against=1.2) == "inconclusive"


def test_runs_count_by_their_medians_and_are_drawn_first() -> None:
    fast, slow = [1.0, 1.01, 1.02] * 3, [2.0, 2.01, 2.02] * 3
    usual = [1.0] * 9
    found = ratio([usual], [fast, slow], "higher")
    assert found.value == pytest.approx((1.01 + 2.01) / 2)
    assert found.low == pytest.approx(1.01, rel=0.01)  # twice the fast one, in a quarter of draws
    assert found.high == pytest.approx(2.01, rel=0.01)
    pooled = interval(usual, fast + slow, "higher")
    assert pooled.low is not None
    assert pooled.high is not None


def test_two_quantities_of_the_same_runs_are_drawn_from_the_same_runs() -> None:
    times = [[1.0] * 5, [2.0] * 5, [3.0] * 5]
    memory = [[10.0], [20.0], [30.0]]  # read once a run
    drawn = [intervals.medians(sample, (3,)) for sample in (times, memory)]
    assert np.array_equal(10 * drawn[0], drawn[1])
    assert len(set(drawn[0])) > 2
    other = intervals.medians(times, (4,))
    assert not np.array_equal(other, drawn[0])
    assert len(other) == DRAWS


def _covered(repetitions: int, runs: int, between: float) -> float:
    """How often the interval of two equal sides holds 1; noise within a run is 1 %."""
    generator = np.random.default_rng(0)

    def sample() -> list[list[float]]:
        levels = between * generator.normal(size=(runs, 1))
        noise = 0.01 * generator.normal(size=(runs, repetitions))
        return [list(map(float, row)) for row in np.exp(levels + noise)]

    found = [ratio(sample(), sample(), "lower") for _ in range(200)]
    return float(np.mean([verdict(one) == "inconclusive" for one in found]))


@pytest.mark.parametrize("repetitions", [5, 10])
def test_95_percent_are_95_percent(repetitions: int) -> None:
    assert _covered(repetitions, 1, 0.0) >= 0.93


def test_one_run_knows_nothing_of_another_and_several_do() -> None:
    assert _covered(8, 1, 0.03) < 0.5
    assert _covered(8, 5, 0.03) > 0.88


def test_an_interval_narrows_with_repetitions() -> None:
    generator = np.random.default_rng(1)
    widths = []
    for count in (5, 20, 80):
        first, second = np.exp(0.05 * generator.normal(size=(2, count)))
        found = interval(list(first), list(second), "lower")
        widths.append(math.log((found.high or 0) / (found.low or 1)))
    assert widths[0] > widths[1] > widths[2]
