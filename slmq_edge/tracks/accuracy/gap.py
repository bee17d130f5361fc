"""The deployment gap: the same questions, answered by two models, compared question by question.

    difference = other - base               accuracies
    difference = other / base - 1           perplexities, bits per byte
    flips      = share of questions that one answers rightly and the other wrongly
    KL         = mean over questions of sum_c p_base(c) log(p_base(c) / p_other(c))

p(c) is the softmax of the log-probabilities of a question's choices. Intervals are percentiles of a
paired bootstrap: questions are drawn with replacement, the same for both, so that what both find
hard does not count as noise (Efron and Tibshirani 1993, chapter 13). Flips are those of
arXiv 2407.09141: an accuracy can stay while the answers change.

Where the other was evaluated against the base, the same of next tokens (`next_tokens`): KL is then
the mean over all positions, flips are those whose most likely token differs, and windows are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmq_edge.errors import SlmqError
from slmq_edge.limits import Limit
from slmq_edge.limits import parse as parse_limit
from slmq_edge.metrics import Scores, slmq_perf
from slmq_edge.tracks.accuracy.results import (
    MEAN,
    Evaluation,
    Metric,
    NextTokens,
    Question,
    TaskResult,
    columns,
    combine,
    is_same_artifact,
)

DRAWS = 10_000
SEED = 0
COVERED = 0.95
_CELLS = 4_000_000  # drawn questions that are held at a time
# Fields of `metrics.Scores` -> tasks.
SCORED = {
    "mmlu": "mmlu",
    "arc_easy": "arc_easy",
    "arc_challenge": "arc_challenge",
    "piqa": "piqa",
    "hellaswag": "hellaswag",
    "wikitext2_perplexity": "wikitext2_windows",
}


@dataclass(frozen=True)
class Row:
    """One metric of one task.

    headline: whether it is the task's first, which limits (`Limit`) are of. difference, low, high:
    see above, with a 95 % interval. lost, won: shares of the questions that only the base, or only
    the other answers rightly; ``None`` of a text. kl: in nats; ``None`` of a text.
    """

    task: str
    metric: str
    kind: str
    headline: bool
    paper: bool
    n: int
    limit: int | None
    base: float
    other: float
    difference: float
    low: float
    high: float
    lost: float | None
    won: float | None
    kl: float | None

    @property
    def loss(self) -> float:
        """How much worse the other is: the difference, with the sign of harm."""
        return -self.difference if self.kind == MEAN else self.difference

    @property
    def is_shown(self) -> bool:
        """Whether the questions suffice to tell the two apart: one alone never does."""
        return self.n > 1 and not self.low <= 0 <= self.high

    @property
    def flips(self) -> float | None:
        return None if self.lost is None or self.won is None else self.lost + self.won


@dataclass(frozen=True)
class TokenRow:
    """Next tokens of one text. kl: in nats a token; flips: share of positions; with 95 % intervals.

    The intervals are ``None`` of a single window.
    """

    task: str
    windows: int
    positions: int
    kl: float
    kl_interval: tuple[float, float] | None
    flips: float
    flips_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Gap:
    """Two evaluations side by side.

    perf: SLMQ_perf of the paper, where both have all its tasks. golden_kl: mean KL of next tokens,
    in nats, of the other against its own simulation, where it is a bundle that ran. notes: what
    else differs. tokens: where the other was evaluated against the base.
    """

    base: Mapping[str, Any]
    other: Mapping[str, Any]
    rows: tuple[Row, ...]
    perf: float | None
    golden_kl: float | None
    notes: tuple[str, ...]
    tokens: tuple[TokenRow, ...] = ()


def _loss(row: Row) -> float:
    return row.loss


def _flips(row: Row) -> float | None:
    return row.flips


def _kl(row: Row) -> float | None:
    return row.kl


def _token_kl(row: TokenRow) -> float:
    return row.kl


def _token_flips(row: TokenRow) -> float:
    return row.flips


LIMITS = {"gap": _loss, "flips": _flips, "kl": _kl}
TOKEN_LIMITS = {"token-kl": _token_kl, "token-flips": _token_flips}


def compare(base: Evaluation, other: Evaluation, draws: int = DRAWS) -> Gap:
    """Compare what both were asked.

    Raises:
        SlmqError: they share no task, or were asked other questions of one.
    """
    names = [task.name for task in base.tasks if other.task(task.name) is not None]
    if not names:
        raise SlmqError(
            f"no task in common: {', '.join(task.name for task in base.tasks)} against "
            f"{', '.join(task.name for task in other.tasks)}"
        )
    pairs = [_pair(base, other, name) for name in names]
    rows = tuple(row for pair in pairs for row in _rows(*pair, draws))
    return Gap(
        base=base.identity,
        other=other.identity,
        rows=rows,
        perf=_perf(rows),
        golden_kl=_golden_kl(other),
        notes=(*_notes(base, other, pairs), *_strangers(base, other)),
        tokens=tuple(
            of_tokens(one, draws)
            for one in other.next_tokens
            if is_same_artifact(base.identity, one.base)
        ),
    )


def parse(text: str) -> Limit:
    """A limit like ``gap=0.5%``, ``flips=0.02`` or ``kl=0.01``.

    Raises:
        UsageError: it is none.
    """
    return parse_limit(text, (*LIMITS, *TOKEN_LIMITS), "gap=0.5%")


def exceeded(
    gaps: Sequence[Gap], limits: Iterable[Limit]
) -> list[tuple[int, Row | TokenRow, Limit]]:
    """Every headline, or text, that exceeds a limit, as measured: index of its gap, row, limit.

    Raises:
        SlmqError: a limit of which no row has the quantity: nothing would ever exceed it. Of next
            tokens, every gap must have them.
    """
    found = []
    for limit in limits:
        values = list(_values(gaps, limit))
        if all(value is None for _, _, value in values):
            raise SlmqError(f"--fail-on {limit.text}: texts have no {limit.what}, questions do")
        found += [
            (index, row, limit)
            for index, row, value in values
            if value is not None and value > limit.value
        ]
    return found


def _values(
    gaps: Sequence[Gap], limit: Limit
) -> Iterator[tuple[int, Row | TokenRow, float | None]]:
    """What a limit is of: index of its gap, row, value."""
    for index, gap in enumerate(gaps):
        if limit.what in LIMITS:
            for row in gap.rows:
                if row.headline:
                    yield index, row, LIMITS[limit.what](row)
            continue
        if not gap.tokens:
            raise SlmqError(
                f"--fail-on {limit.text}: no next tokens were compared: evaluate the other with "
                "--against and the base"
            )
        for text in gap.tokens:
            yield index, text, TOKEN_LIMITS[limit.what](text)


def _pair(base: Evaluation, other: Evaluation, name: str) -> tuple[TaskResult, TaskResult]:
    before, after = base.task(name), other.task(name)
    assert before is not None, "chosen so"
    assert after is not None, "chosen so"
    if before.asked_sha256 != after.asked_sha256:
        told = [
            f"{len(one.questions)} of {one.source.name}, limit {one.metrics[0].limit or 'none'}"
            for one in (before, after)
        ]
        raise SlmqError(f"{name}: not the same questions ({told[0]} against {told[1]})")
    return before, after


def _rows(before: TaskResult, after: TaskResult, draws: int) -> Iterator[Row]:
    kl = _choices_kl(before.questions, after.questions)
    shared = {metric.name for metric in after.metrics}
    for place, metric in enumerate(before.metrics):
        if metric.name not in shared:
            continue
        low, high = _interval(metric, before.questions, after.questions, draws)
        lost, won = _flipped(metric, before.questions, after.questions)
        base, other = metric.value, after.metric(metric.name).value
        yield Row(
            task=before.name,
            metric=metric.name,
            kind=metric.kind,
            headline=place == 0,
            paper=metric.paper,
            n=metric.n,
            limit=metric.limit,
            base=base,
            other=other,
            difference=float(_difference(metric.kind, np.array(base), np.array(other))),
            low=low,
            high=high,
            lost=lost,
            won=won,
            kl=kl,
        )


def of_tokens(one: NextTokens, draws: int = DRAWS) -> TokenRow:
    """Next tokens of one text, with their intervals."""
    positions = np.array([window.positions for window in one.windows], np.float64)
    kl = np.array([window.kl for window in one.windows])
    changed = np.array([window.changed for window in one.windows], np.float64)
    return TokenRow(
        task=one.task,
        windows=len(one.windows),
        positions=one.positions,
        kl=one.kl,
        kl_interval=_of_windows(kl, positions, draws),
        flips=one.changed,
        flips_interval=_of_windows(changed, positions, draws),
    )


def _of_windows(
    above: NDArray[np.float64], below: NDArray[np.float64], draws: int
) -> tuple[float, float] | None:
    """The interval of a ratio of sums over windows; ``None`` of one window."""
    count = len(above)
    if count < 2:
        return None
    drawn = np.random.default_rng(SEED).integers(count, size=(draws, count))
    return _percentiles(above[drawn].sum(1) / below[drawn].sum(1))


def _strangers(base: Evaluation, other: Evaluation) -> Iterator[str]:
    """Next tokens that were held against something else."""
    for one in other.next_tokens:
        if not is_same_artifact(base.identity, one.base):
            yield f"next tokens of {one.task} were compared with another artifact than the base"


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    tail = 100 * (1 - COVERED) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _difference(
    kind: str, base: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    return other - base if kind == MEAN else other / base - 1


def _interval(
    metric: Metric, before: Sequence[Question], after: Sequence[Question], draws: int
) -> tuple[float, float]:
    """The interval of the difference; the same draws for every metric of as many questions."""
    sides = [columns(metric, questions) for questions in (before, after)]
    count = len(before)
    generator = np.random.default_rng(SEED)
    found: list[NDArray[np.float64]] = []
    left = draws
    while left:
        lot = min(left, max(1, _CELLS // count))
        drawn = generator.integers(count, size=(lot, count))
        values = [
            combine(metric.kind, above[drawn].sum(1), below[drawn].sum(1)) for above, below in sides
        ]
        found.append(_difference(metric.kind, *values))
        left -= lot
    return _percentiles(np.concatenate(found))


def _flipped(
    metric: Metric, before: Sequence[Question], after: Sequence[Question]
) -> tuple[float | None, float | None]:
    if metric.kind != MEAN:
        return None, None
    change = columns(metric, after)[0] - columns(metric, before)[0]
    return float((change < 0).mean()), float((change > 0).mean())


def _choices_kl(before: Sequence[Question], after: Sequence[Question]) -> float | None:
    if len(before[0].logprobs) < 2:
        return None
    found = []
    for base, other in zip(before, after, strict=True):
        p, q = (_log_softmax(np.array(one.logprobs)) for one in (base, other))
        found.append(float((np.exp(p) * (p - q)).sum()))
    return float(np.mean(found))


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max()
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return found


def _perf(rows: Sequence[Row]) -> float | None:
    """SLMQ_perf of the other against the base; ``None`` without all tasks, or with a score of 0."""
    of_paper = {row.task: row for row in rows if row.paper}
    found = {field: of_paper.get(task) for field, task in SCORED.items()}
    both: list[dict[str, float]] = [{}, {}]
    for field, row in found.items():
        if row is None or min(row.base, row.other) <= 0:
            return None
        both[0][field], both[1][field] = row.other, row.base
    return slmq_perf(Scores(**both[0]), Scores(**both[1]))


def _golden_kl(one: Evaluation) -> float | None:
    """What the runner found when it checked its golden prompts, before it scored."""
    report = one.ran.get("report")
    found = report.get("mean_kl") if isinstance(report, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def _notes(
    base: Evaluation, other: Evaluation, pairs: Sequence[tuple[TaskResult, TaskResult]]
) -> Iterator[str]:
    for role, mine, theirs in (("base", base, other), ("other", other, base)):
        alone = [task.name for task in mine.tasks if theirs.task(task.name) is None]
        if alone:
            yield f"only the {role} has {', '.join(alone)}: not compared"
    names = [_model(one) for one in (base, other)]
    if names[0] != names[1]:
        yield f"not the same model: {names[0]} against {names[1]}"
    for package in sorted(base.environment.keys() & other.environment.keys()):
        versions = [one.environment[package] for one in (base, other)]
        if versions[0] != versions[1]:
            yield f"{package} differs: {versions[0]} against {versions[1]}"
    limited = [one for one, _ in pairs if len(one.questions) < one.available]
    if limited:
        told = ", ".join(
            f"{len(one.questions)} of {one.available} of {one.name}" for one in limited
        )
        yield f"not all questions: {told}"
    cut = {before.name: max(before.cut, after.cut) for before, after in pairs}
    if any(cut.values()):
        told = ", ".join(f"{count} of {name}" for name, count in cut.items() if count)
        yield f"longer than the context, and read without their start: {told}"


def _model(one: Evaluation) -> str:
    model = one.identity.get("model")
    return str(model.get("name") if isinstance(model, Mapping) else model)
