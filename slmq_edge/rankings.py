"""How the methods of one place rank: by a rate, by memory, by SLMQ_infer; with draws of each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slmq_edge import intervals, quantities
from slmq_edge.compare import Comparison, reference_of, scores
from slmq_edge.intervals import DRAWS, Draws, Sample
from slmq_edge.quantities import MEMORY, SIZE, SPEED
from slmq_edge.results import Run
from slmq_edge.sides import Side
from slmq_edge.transfer import Ranking

PREFILL = "prefill_rate"
SCORE = "slmq_infer"
RANKED = (SPEED, PREFILL, MEMORY, SCORE)


def ranking(
    by: str, place: str, baseline: str, comparisons: Mapping[str, Comparison], stream: int
) -> Ranking:
    """Rank a place's methods and its baseline by one of `RANKED`.

    Args:
        by: what counts.
        place: how the place is called.
        baseline: how its baseline is called.
        comparisons: by method, all with this baseline.
        stream: whose random numbers it draws with: another for every place.
    """
    if by == SCORE:
        return _by_score(place, baseline, comparisons, stream)
    samples = _samples(by, baseline, comparisons)
    drawn = _drawn(samples, stream)
    sign = -1 if by == MEMORY else 1  # of bytes, fewer are better
    values = {method: sign * intervals.middle(sample) for method, sample in samples.items()}
    signed = drawn and {name: sign * one for name, one in drawn.items()}
    return Ranking(place, values, signed, by == MEMORY or _is_steady(comparisons))


def _by_score(
    place: str, baseline: str, comparisons: Mapping[str, Comparison], stream: int
) -> Ranking:
    known = {name: one for name, one in comparisons.items() if one.score.value is not None}
    speed, memory = (_samples(by, baseline, known) for by in (SPEED, MEMORY))
    if not known or not memory:
        return Ranking(place, {}, None)
    own = reference_of(next(iter(known.values())).baseline) or 0.0
    values = {baseline: own, **{name: one.score.value or 0.0 for name, one in known.items()}}
    rates, peaks = _drawn(speed, stream), _drawn(memory, stream)
    if rates is None and peaks is None:
        return Ranking(place, values, None)
    draws = {baseline: np.full(DRAWS, own)}
    for name, one in known.items():
        size, fast, small = (one.row(key).ratio or 0.0 for key in (SIZE, SPEED, MEMORY))
        of_rates = None if rates is None else np.log(rates[name] / rates[baseline])
        of_peaks = None if peaks is None else np.log(peaks[baseline] / peaks[name])
        found = scores([(size, None), (fast, of_rates), (small, of_peaks)])
        assert found is not None, "one of the two was drawn"
        draws[name] = found
    return Ranking(place, values, draws, _is_steady(known))


def _samples(by: str, baseline: str, comparisons: Mapping[str, Comparison]) -> dict[str, Sample]:
    """By method; those without a ratio are left out, all of them where memory is of two kinds."""
    found: dict[str, Sample] = {}
    kinds: set[str | None] = set()
    for name, one in comparisons.items():
        if one.row(by).ratio is None:
            continue
        kinds.add(one.score.memory if by == MEMORY else None)
        before, after = _of(by, one.baseline, one.candidate)
        found |= {name: after} if baseline in found else {baseline: before, name: after}
    return found if len(kinds) < 2 else {}


def _of(by: str, baseline: Side, candidate: Side) -> tuple[Sample, Sample]:
    if by == MEMORY:
        peak, _ = quantities.peak(baseline, candidate)
        assert peak.baseline is not None, "it has a ratio"
        assert peak.candidate is not None, "it has a ratio"
        return peak.baseline, peak.candidate

    def get(run: Run) -> tuple[float, ...]:
        return (run.decode_rate if by == SPEED else run.prefill_rate).values

    return baseline.sample(get), candidate.sample(get)


def _is_steady(comparisons: Mapping[str, Comparison]) -> bool:
    return all(one.is_steady for one in comparisons.values())


def _drawn(samples: Mapping[str, Sample], stream: int) -> dict[str, Draws] | None:
    """Medians by method, each with random numbers of its own; None where nothing was repeated."""
    if not any(map(intervals.is_repeated, samples.values())):
        return None
    return {
        name: intervals.medians(sample, (stream, place))
        for place, (name, sample) in enumerate(samples.items())
    }
