"""Kendall's tau-b against a count by hand and scipy's, and when a ranking is said to transfer."""

from __future__ import annotations

import importlib.util
import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge.intervals import DRAWS
from slmq_edge.transfer import EXACT, Ranking, chance, kendall_tau, transfer

pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=7)
METHODS = "abcdef"


def by_hand(a: list[float], b: list[float]) -> float | None:
    score = tied_a = tied_b = total = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        total += 1
        tied_a += a[i] == a[j]
        tied_b += b[i] == b[j]
        if a[i] != a[j] and b[i] != b[j]:
            score += 1 if (a[i] < a[j]) == (b[i] < b[j]) else -1
    below = math.sqrt((total - tied_a) * (total - tied_b))
    return score / below if below else None


@given(pairs)
def test_tau_is_what_counting_gives(listed: list[tuple[int, int]]) -> None:
    a, b = ([float(pair[side]) for pair in listed] for side in (0, 1))
    found = kendall_tau(a, b)
    assert found == pytest.approx(by_hand(a, b))
    assert kendall_tau(b, a) == pytest.approx(found)
    reverse = kendall_tau(a, [-x for x in b])
    assert reverse == pytest.approx(None if found is None else -found)


@pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="scipy comes with lm-eval")
@given(pairs)
@settings(deadline=None)
def test_tau_and_chance_are_scipys(listed: list[tuple[int, int]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scipy.stats import kendalltau  # type: ignore[import-untyped,unused-ignore]

        a, b = ([float(pair[side]) for pair in listed] for side in (0, 1))
        theirs = kendalltau(a, b)
        ours = kendall_tau(a, b)
    if ours is None:
        assert math.isnan(theirs.statistic)
        return
    assert ours == pytest.approx(theirs.statistic)
    if len(set(a)) == len(a) and len(set(b)) == len(b):
        assert chance(a, b) == pytest.approx(theirs.pvalue)  # without ties, theirs is exact too


def test_few_methods_agree_by_chance() -> None:
    for count, p in ((3, 1 / 3), (4, 1 / 12), (5, 1 / 60)):
        order = list(map(float, range(count)))
        assert chance(order, order) == pytest.approx(p)
    many = list(map(float, range(EXACT + 2)))
    assert 0 < chance(many, many) < 0.001


def ranking(place: str, values: list[float], noise: float | None, steady: bool = True) -> Ranking:
    named = dict(zip(METHODS, values, strict=False))
    if noise is None:
        return Ranking(place, named, None)
    generator = np.random.default_rng(len(place))
    draws = {name: value + noise * generator.normal(size=DRAWS) for name, value in named.items()}
    return Ranking(place, named, draws, steady)


ORDER = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_the_same_order_transfers_and_the_reverse_is_called_so() -> None:
    same = transfer("decode_rate", ranking("gpu", ORDER, 0.01), ranking("edge", ORDER, 0.01))
    assert (same.tau, same.said) == (1.0, "transfers")
    assert same.orders[0] == same.orders[1] == tuple("fedcba")
    turned = transfer(
        "decode_rate", ranking("gpu", ORDER, 0.01), ranking("edge", ORDER[::-1], 0.01)
    )
    assert (turned.tau, turned.said) == (-1.0, "reversed")


def test_noise_too_few_methods_or_drift_make_it_inconclusive() -> None:
    noisy = transfer("decode_rate", ranking("gpu", ORDER, 0.01), ranking("edge", ORDER, 20.0))
    assert noisy.tau == 1.0
    assert noisy.low is not None
    assert noisy.low < 0 < (noisy.high or 0)
    assert noisy.said == "inconclusive"
    short = transfer("decode_rate", ranking("gpu", ORDER[:4], 0.01), ranking("e", ORDER[:4], 0.01))
    assert (short.tau, short.low, short.said) == (1.0, 1.0, "inconclusive")
    drift = transfer("decode_rate", ranking("gpu", ORDER, 0.01), ranking("e", ORDER, 0.01, False))
    assert (drift.tau, drift.said) == (1.0, "inconclusive")


def test_without_repetitions_there_is_a_tau_and_no_verdict() -> None:
    found = transfer("peak_memory", ranking("gpu", ORDER, None), ranking("edge", ORDER, 0.1))
    assert (found.tau, found.low, found.high, found.said) == (1.0, None, None, None)
    assert found.p == pytest.approx(2 / 720)


def test_no_ranking_no_tau() -> None:
    two = transfer("decode_rate", ranking("gpu", ORDER[:2], 0.1), ranking("edge", ORDER, 0.1))
    assert two.tau is None
    assert "2 methods on both" in str(two.reason)
    equal = transfer("decode_rate", ranking("gpu", [1.0] * 6, None), ranking("edge", ORDER, 0.1))
    assert equal.tau is None
    assert "all methods are equal" in str(equal.reason)
