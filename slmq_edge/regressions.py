"""What a candidate loses against its baseline, and whether that is more than was accepted.

    loss = 1 - ratio          of rates: the share of tokens per second, or per joule, that is gone
    loss = 1 / ratio - 1      of bytes and seconds: the share that came on top
    loss = 1 - score / reference      of SLMQ_infer: below what the baseline itself scores

A limit is passed for sure only when the whole 95 % interval is beyond it; an interval that holds
the limit decides nothing, nor do times of a run whose repetitions drifted. What has no interval
(counted, or read once) is taken as it was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from slmq_edge.compare import Comparison
from slmq_edge.errors import SlmqError
from slmq_edge.intervals import Better
from slmq_edge.limits import Limit, parse
from slmq_edge.quantities import MEMORY, SPEED

Finding = Literal["within", "beyond", "inconclusive"]

SCORE = "score"
ROWS = {
    "decode": SPEED,
    "prefill": "prefill_rate",
    "ttft": "ttft_seconds",
    "load": "load_seconds",
    "memory": MEMORY,
    "size": "bundle_bytes",
    "energy": "energy.decode",
}
DRIFTING = ("decode", "prefill", "ttft", SCORE)
LIMITS = (*ROWS, SCORE)


@dataclass(frozen=True)
class Check:
    """One limit and one candidate.

    better: what the quantity should be. loss, least, most: fractions; the ends None without
    interval.
    """

    comparison: Comparison
    limit: Limit
    finding: Finding
    better: Better
    loss: float
    least: float | None
    most: float | None


def limit(text: str) -> Limit:
    """Read a limit like ``decode=5%``; UsageError if it is none."""
    return parse(text, LIMITS, "decode=5%")


def check(comparisons: Sequence[Comparison], limits: Iterable[Limit]) -> list[Check]:
    """Hold every comparison to every limit.

    Raises:
        SlmqError: a comparison has no ratio of what is limited: it would pass unseen.
    """
    return [_check(comparison, one) for one in limits for comparison in comparisons]


def _check(comparison: Comparison, limit: Limit) -> Check:
    better, (ratio, low, high) = _ratio(comparison, limit)
    loss, most, least = (None if one is None else _loss(better, one) for one in (ratio, low, high))
    assert loss is not None, "a ratio that is None is refused"
    if limit.what in DRIFTING and not comparison.is_steady:
        finding: Finding = "inconclusive"
    elif least is None or most is None:
        finding = "beyond" if loss > limit.value else "within"
    elif least > limit.value:
        finding = "beyond"
    else:
        finding = "inconclusive" if most > limit.value else "within"
    return Check(comparison, limit, finding, better, loss, least, most)


def _loss(better: Better, ratio: float) -> float:
    return 1 - ratio if better == "higher" else 1 / ratio - 1


def _ratio(
    comparison: Comparison, limit: Limit
) -> tuple[Better, tuple[float, float | None, float | None]]:
    if limit.what == SCORE:
        score = comparison.score
        if score.value is None or score.reference is None:
            missing = score.reason or "nobody counted the baseline's parameters"
            raise SlmqError(
                f"--fail-on {limit.text} cannot be told of {_called(comparison)}: {missing}"
            )
        value, low, high = (
            None if one is None else one / score.reference
            for one in (score.value, score.low, score.high)
        )
        assert value is not None, "seen above"
        return "higher", (value, low, high)
    row = next((row for row in comparison.rows if row.key == ROWS[limit.what]), None)
    if row is None or row.ratio is None:
        why = "the runs do not have it" if row is None else row.reason
        raise SlmqError(f"--fail-on {limit.text} cannot be told of {_called(comparison)}: {why}")
    return row.better, (row.ratio, row.low, row.high)


def _called(comparison: Comparison) -> str:
    run = comparison.candidate.run
    return f"{run.artifact.method} {run.artifact.scheme_ran} on {run.device.name}"
