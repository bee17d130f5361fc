"""Two sides of runs: the candidate as so many times better than the baseline, and how surely.

    ratio = baseline / candidate     where less is better (bytes, seconds)
    ratio = candidate / baseline     where more is better (tokens per second)

So every ratio reads the same way: above 1 the candidate is better. Repeated quantities have a 95 %
interval (`intervals`), and a verdict; what was read once has neither, and what was counted needs
none.

    SLMQ_infer = 100 sqrt((memory ratio^2 + speed ratio^2 + size ratio^2) / 3)

Conventions: ``measured`` takes decode tokens per second, and as size the bytes of the model's
float16 checkpoint over those of the artifact's weights, whatever the baseline stores: a baseline in
float16 scores about 100 itself, one in float32 about 87 (`Score.reference`). ``paper`` takes what
Table 3 of arXiv 2511.13023 really holds, multiply-adds and parameters (METHODS 5.1, 5.2); its MACs
of a quantized model are the lm_head's alone: it is no measurement of speed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from slmq_edge import bounds, differences, intervals, metrics, quantities
from slmq_edge.caveats import IMPLAUSIBLE
from slmq_edge.errors import SlmqError, UsageError, unknown
from slmq_edge.intervals import FEWEST, Better, Draws, Interval, Sample, Verdict
from slmq_edge.quantities import DEVICE, MEMORY, SIZE, SPEED, UNLIKE, Quantity
from slmq_edge.results import Run, Series
from slmq_edge.sides import Side, float16_bytes

__all__ = ["CONVENTIONS", "DEVICE", "Comparison", "Convention", "Row", "Score", "Value", "compare"]

Convention = Literal["measured", "paper"]

CONVENTIONS: tuple[Convention, ...] = ("measured", "paper")
TIMED = ("prefill_rate", "ttft_seconds", SPEED, "forward_rate")  # whose repetitions may drift
SCORED: dict[Convention, tuple[str, str, str]] = {
    "measured": (SIZE, SPEED, MEMORY),
    "paper": ("parameters", "macs", MEMORY),
}


@dataclass(frozen=True)
class Value:
    """A median in its row's unit.

    spread: interquartile range within a run, the median run's; None for single readings. between:
    from the lowest median of a run to the highest; None for one run.
    """

    median: float
    spread: float | None = None
    between: float | None = None


@dataclass(frozen=True)
class Row:
    """One quantity of both sides; see `quantities.Quantity`.

    ratio: times better than the baseline; None with the ``reason`` why there is none. low, high:
    of its 95 % interval; None where it has none. verdict: None of what was read once;
    ``inconclusive`` also where values are few, or a run says that its repetitions drifted.
    """

    key: str
    quantity: str
    unit: str
    better: Better
    baseline: Value | None
    candidate: Value | None
    ratio: float | None
    low: float | None
    high: float | None
    verdict: Verdict | None
    exact: bool
    reason: str | None = None
    across: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Score:
    """SLMQ_infer, the keys of the rows in it, and which memory that is.

    reference: what the baseline itself scores, which the verdict is against. low, high: of what was
    repeated, drawn together; None where nothing was.
    """

    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict | None
    reference: float | None
    parts: tuple[str, ...]
    memory: str | None
    reason: str | None = None
    across: str | None = None


@dataclass(frozen=True)
class Comparison:
    """``refusals`` lists what was not compared, and why; ``notes`` what else differs."""

    convention: Convention
    baseline: Side
    candidate: Side
    rows: tuple[Row, ...]
    score: Score
    notes: tuple[str, ...]
    refusals: tuple[str, ...]

    @property
    def is_steady(self) -> bool:
        """Whether no run says of itself that its repetitions drifted."""
        return self.baseline.is_steady and self.candidate.is_steady

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)


def compare(
    baseline: Run | Side, candidate: Run | Side, convention: Convention = "measured"
) -> Comparison:
    """Compare ``candidate`` with ``baseline``; each a run, or several of one artifact.

    Raises:
        SlmqError: another workload, or a figure beyond what its device can do.
        UsageError: no such convention.
    """
    convention = require_convention(convention)
    before, after = (Side((one,)) if isinstance(one, Run) else one for one in (baseline, candidate))
    _require_comparable(before, after)
    peak, memory = quantities.peak(before, after)
    listed = quantities.papers if convention == "paper" else quantities.measured
    found = [*listed(before, after), peak]
    steady = before.is_steady and after.is_steady
    rows = tuple(_row(one, steady) for one in found)
    by_key = {one.key: (one, row) for one, row in zip(found, rows, strict=True)}
    return Comparison(
        convention=convention,
        baseline=before,
        candidate=after,
        rows=rows,
        score=_score(
            [by_key[key] for key in SCORED[convention]],
            memory,
            reference_of(before, convention),
            steady,
        ),
        notes=tuple(differences.notes(before.run, after.run)),
        refusals=tuple(f"{row.quantity}: {row.reason}" for row in rows if row.reason),
    )


def require_convention(name: str) -> Convention:
    """Return the convention of this name, or raise UsageError."""
    for convention in CONVENTIONS:
        if name == convention:
            return convention
    raise UsageError(unknown("convention", name, CONVENTIONS))


def implausible(run: Run) -> list[str]:
    """What is beyond the device: as run.json says, and as its figures say, whoever wrote them."""
    said = [caveat.advice for caveat in run.caveats if caveat.code == IMPLAUSIBLE]
    return [*said, *bounds.implausible(run)]


def _require_comparable(baseline: Side, candidate: Side) -> None:
    for role, side in (("baseline", baseline), ("candidate", candidate)):
        for line in (line for run in side.runs for line in implausible(run)):
            raise SlmqError(f"nothing is compared with an implausible {role}: {line}")
    first, second = baseline.run.workload, candidate.run.workload
    if (first.prompt_tokens, first.new_tokens) != (second.prompt_tokens, second.new_tokens):
        raise SlmqError(
            f"not the same workload: the baseline has {first.prompt_tokens} prompt tokens and "
            f"{first.new_tokens} new ones, the candidate {second.prompt_tokens} and "
            f"{second.new_tokens}; profile both with the same -p and -n"
        )


def _row(of: Quantity, steady: bool) -> Row:
    before, after = (None if one is None else _value(one) for one in (of.baseline, of.candidate))
    found, reason = None, of.reason or _refused(before, after)
    if reason is None and of.baseline is not None and of.candidate is not None:
        found = _counted(of) if of.exact else intervals.ratio(of.baseline, of.candidate, of.better)
    return Row(
        key=of.key,
        quantity=of.name,
        unit=of.unit,
        better=of.better,
        baseline=before,
        candidate=after,
        ratio=None if found is None else found.value,
        low=None if found is None else found.low,
        high=None if found is None else found.high,
        verdict=None if found is None else _verdict(of, found, steady),
        exact=of.exact,
        reason=reason,
        across=None if found is None else of.across,
        note=of.note,
    )


def _refused(before: Value | None, after: Value | None) -> str | None:
    """Why these two make no ratio."""
    for role, value in (("baseline", before), ("candidate", after)):
        if value is None:
            return f"the {role} does not have it, and {UNLIKE}"
    for role, value in (("baseline", before), ("candidate", after)):
        if value is not None and value.median <= 0:
            return f"the {role} has 0"
    return None


def _value(sample: Sample) -> Value:
    """Of what may be 0, which makes no ratio."""
    medians = [statistics.median(values) for values in sample]
    spread = statistics.median(Series("", tuple(values)).spread for values in sample)
    return Value(
        statistics.median(medians),
        spread if any(len(values) > 1 for values in sample) else None,
        max(medians) - min(medians) if len(medians) > 1 else None,
    )


def _counted(of: Quantity) -> Interval:
    """What was counted is as it is."""
    assert of.baseline is not None, "refused otherwise"
    assert of.candidate is not None, "refused otherwise"
    before, after = intervals.middle(of.baseline), intervals.middle(of.candidate)
    return Interval(before / after if of.better == "lower" else after / before, None, None)


def _verdict(of: Quantity, found: Interval, steady: bool) -> Verdict | None:
    if of.exact:
        return "same" if found.value == 1 else "better" if found.value > 1 else "worse"
    said = intervals.verdict(found)
    return "inconclusive" if said is not None and _is_doubtful(of, steady) else said


def _is_doubtful(of: Quantity, steady: bool) -> bool:
    """Whether an interval says nothing: of too few values, or of repetitions that drifted."""
    sides = [one for one in (of.baseline, of.candidate) if one is not None]
    return min(map(intervals.count, sides)) < FEWEST or (of.key in TIMED and not steady)


def _score(
    parts: Sequence[tuple[Quantity, Row]],
    memory: str | None,
    reference: float | None,
    steady: bool,
) -> Score:
    """SLMQ_infer of size, speed and memory, in this order."""
    rows = [row for _, row in parts]
    keys = tuple(row.key for row in rows)
    across = next((row.across for row in rows if row.across), None)
    missing = ", ".join(row.quantity for row in rows if row.ratio is None)
    if missing:
        return Score(None, None, None, None, None, keys, memory, f"no ratio of: {missing}", across)
    size, speed, peak = (row.ratio or 0 for row in rows)
    value = metrics.slmq_infer(peak, speed, size)
    drawn = scores([(row.ratio or 0, _draws(of)) for of, row in parts])
    if drawn is None:
        return Score(value, None, None, None, reference, keys, memory, None, across)
    found = Interval(value, *intervals.ends(drawn))
    said = None if reference is None else intervals.verdict(found, reference)
    repeated = [of for of, row in parts if row.low is not None]
    if said is not None and any(_is_doubtful(of, steady) for of in repeated):
        said = "inconclusive"
    return Score(value, found.low, found.high, said, reference, keys, memory, None, across)


def reference_of(baseline: Side, convention: Convention = "measured") -> float | None:
    """What the baseline scores against itself: 100, but for the size of one that is not float16.

    None where nobody counted its parameters or bytes.
    """
    if convention == "paper":
        return 100.0
    run = baseline.run
    if min(float16_bytes(run), run.artifact.weights_bytes) <= 0:
        return None
    return metrics.slmq_infer(1.0, 1.0, float16_bytes(run) / run.artifact.weights_bytes)


def scores(parts: Sequence[tuple[float, Draws | None]]) -> Draws | None:
    """Draws of SLMQ_infer, of ratios and the draws of their logarithms; None without any."""
    if all(drawn is None for _, drawn in parts):
        return None
    squares = [ratio**2 if drawn is None else np.exp(2 * drawn) for ratio, drawn in parts]
    found: Draws = 100 * np.sqrt(sum(squares) / len(squares))
    return found


def _draws(of: Quantity) -> Draws | None:
    if of.exact or of.baseline is None or of.candidate is None:
        return None
    return intervals.log_ratios(of.baseline, of.candidate, of.better)
