"""Track 1 of a study: what every subject scored, and how much of full precision it kept.

    kept = 100 sqrt(mean over tasks of ratio^2)
    ratio = other / reference of an accuracy, reference / other of a perplexity

Over the paper's six tasks that is SLMQ_perf; over fewer it has no such name. Its interval is the 95
percentiles of a paired bootstrap: in every draw both answer the same questions of each task.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmq_edge.errors import SlmqError
from slmq_edge.study.collect import Filed
from slmq_edge.study.subjects import SIMULATED, TRANSFORMERS, Subject
from slmq_edge.tracks.accuracy import gap
from slmq_edge.tracks.accuracy.gap import COVERED, SCORED, SEED, Gap, TokenRow
from slmq_edge.tracks.accuracy.results import (
    MEAN,
    Evaluation,
    Metric,
    TaskResult,
    columns,
    combine,
)

DRAWS = 2000


@dataclass(frozen=True)
class Kept:
    """Of the reference's quality, with its interval; ``None`` where too few were asked for one.

    tasks: that it is over. is_perf: whether these are the paper's six, and it is SLMQ_perf.
    """

    value: float
    low: float | None
    high: float | None
    tasks: tuple[str, ...]
    is_perf: bool


@dataclass(frozen=True)
class Row:
    """What one evaluation scored.

    place: its path. task -> the metric of the paper's tables, or the task's first. reference: whose
    quality is kept; ``None`` of a reference itself. guessed: tasks on which the reference itself is
    not shown to be better than guessing, so that what is kept there says little. reason: why
    nothing is known of ``kept``.
    """

    subject: Subject
    place: str
    evaluation: Evaluation
    metrics: dict[str, Metric]
    reference: Subject | None
    kept: Kept | None
    guessed: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Step:
    """Two evaluations side by side.

    kind: ``loss`` against full precision, ``deployment`` against the simulation of the same method
    and scheme.
    """

    kind: str
    base: Subject
    other: Subject
    gap: Gap


@dataclass(frozen=True)
class Tokens:
    """Next tokens of a subject on one text. against: identity of what they were held against."""

    subject: Subject
    against: Mapping[str, Any]
    row: TokenRow


@dataclass(frozen=True)
class Accuracy:
    """tasks: all that were asked, the paper's first."""

    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    steps: tuple[Step, ...]
    tokens: tuple[Tokens, ...] = ()

    def of(self, subject: Subject) -> Row | None:
        """The row of a subject; of several, the one that keeps something, then the first."""
        mine = [row for row in self.rows if row.subject == subject]
        return next((row for row in mine if row.kept), mine[0] if mine else None)


def accuracy(found: Sequence[Subject], baseline: str | None = None) -> Accuracy:
    """Rows and gaps. baseline: scheme of the references; ``None``: any float."""
    asked = {
        task.name for one in found for scored in one.evaluations for task in scored.value.tasks
    }
    order = [*SCORED.values()]
    tasks = sorted(asked, key=lambda name: (order.index(name) if name in order else 99, name))
    rows = [
        _row(one, scored, references(found, one.model, baseline))
        for one in found
        for scored in one.evaluations
    ]
    tokens = [
        Tokens(one, told.base, gap.of_tokens(told, DRAWS))
        for one in found
        for scored in one.evaluations
        for told in scored.value.next_tokens
    ]
    return Accuracy(tuple(tasks), tuple(rows), tuple(_steps(found, baseline)), tuple(tokens))


def references(found: Sequence[Subject], model: str, baseline: str | None) -> list[Subject]:
    """Full precision of this model, where it was scored: the model itself before what was made."""
    mine = [
        one
        for one in found
        if one.model == model
        and one.is_float
        and one.evaluations
        and baseline in (None, one.scheme)
    ]
    return sorted(mine, key=lambda one: {TRANSFORMERS: 0, SIMULATED: 1}.get(one.runtime, 2))


def headline(task: TaskResult) -> Metric:
    """The paper's metric; of tasks that the paper does not have, the first."""
    return next((metric for metric in task.metrics if metric.paper), task.metrics[0])


def kept(base: Evaluation, other: Evaluation, draws: int = DRAWS) -> Kept | str:
    """How much of ``base`` the other keeps, over what both were asked; or why that is unknown."""
    shared = [
        (before, after)
        for before in base.tasks
        if (after := other.task(before.name)) is not None
        and before.asked_sha256 == after.asked_sha256
        and headline(before).name == headline(after).name
    ]
    scored = [pair for pair in shared if pair[0].name in SCORED.values()] or shared
    if not scored:
        return "it was not asked what full precision was"
    names = tuple(before.name for before, _ in scored)
    ratios = []
    for before, after in scored:
        values = headline(before).value, headline(after).value
        if min(values) <= 0:
            return f"a score of 0 on {before.name} has no ratio"
        ratios.append(
            values[1] / values[0] if headline(before).kind == MEAN else values[0] / values[1]
        )
    drawn = [_drawn(*pair, draws, stream) for stream, pair in enumerate(scored)]
    with np.errstate(invalid="ignore"):
        together = 100 * np.sqrt(np.mean(np.square(drawn), axis=0))
        tail = 100 * (1 - COVERED) / 2
        low, high = (float(edge) for edge in np.percentile(together, [tail, 100 - tail]))
    repeated = min(len(before.questions) for before, _ in scored) > 1  # one alone shows no noise
    known = repeated and math.isfinite(low) and math.isfinite(high)
    value = 100 * math.sqrt(math.fsum(ratio**2 for ratio in ratios) / len(ratios))
    is_perf = {*names} == {*SCORED.values()}
    return Kept(value, low if known else None, high if known else None, names, is_perf)


def _row(one: Subject, scored: Filed[Evaluation], known: Sequence[Subject]) -> Row:
    metrics = {task.name: headline(task) for task in scored.value.tasks}
    if one in known[:1]:
        return Row(one, scored.path, scored.value, metrics, None, None, guessed(scored.value))
    reason = "full precision was not scored"
    for reference in known:
        if reference == one:
            continue
        for base in reference.evaluations:
            found = kept(base.value, scored.value)
            if isinstance(found, Kept):
                at_chance = tuple(name for name in guessed(base.value) if name in found.tasks)
                return Row(one, scored.path, scored.value, metrics, reference, found, at_chance)
            reason = found
    return Row(one, scored.path, scored.value, metrics, None, None, reason=reason)


def guessed(scored: Evaluation) -> tuple[str, ...]:
    """Tasks of which the score is not above that of guessing, by two standard errors."""
    found = []
    for task in scored.tasks:
        metric = headline(task)
        if metric.kind == MEAN and task.questions[0].target is not None:
            chance = sum(1 / len(question.logprobs) for question in task.questions) / metric.n
            if metric.value - 2 * (metric.stderr or 0.0) <= chance:
                found.append(task.name)
    return tuple(found)


def _drawn(before: TaskResult, after: TaskResult, draws: int, stream: int) -> NDArray[np.float64]:
    """Ratios of so many draws, float64 [draws]; infinite where the reference had nothing right.

    Questions that both answer alike are drawn together, by how many they are: the same
    distribution, and of thousands of questions a handful of kinds. stream: whose random numbers
    these are: the questions of two tasks are drawn independently.
    """
    metric = headline(before)
    sides = [column for task in (before, after) for column in columns(metric, task.questions)]
    kinds, counts = np.unique(np.stack(sides, axis=1), axis=0, return_counts=True)
    generator = np.random.default_rng((SEED, stream))
    drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=draws)
    sums = drawn @ kinds
    base = combine(metric.kind, sums[:, 0], sums[:, 1])
    other = combine(metric.kind, sums[:, 2], sums[:, 3])
    if metric.kind != MEAN:
        base, other = other, base
    return np.where(base > 0, other / np.where(base > 0, base, 1.0), np.inf)


def _steps(found: Sequence[Subject], baseline: str | None) -> list[Step]:
    """Every artifact against its simulation, where that was scored; all against full precision."""
    steps = []
    for one in found:
        if not one.evaluations:
            continue
        simulated = [other for other in found if _is_simulation(other, one)]
        known = references(found, one.model, baseline)
        full = [] if one in known[:1] else [other for other in known if other != one]
        if full:
            steps += _step("loss", full[0], one)
        if one.is_artifact and len(simulated) == 1:  # of several, nobody knows which it is
            steps += _step("deployment", simulated[0], one)
    return steps


def _is_simulation(other: Subject, one: Subject) -> bool:
    """Whether ``other`` may be what ``one`` was made of; where both have a manifest, is."""
    if other.runtime != SIMULATED or not other.evaluations:
        return False
    if (other.model, other.method) != (one.model, one.method):
        return False
    made = [each.manifest.value.document for each in (other, one) if each.manifest]
    if len(made) == 2 and made[0].get("cost") != made[1].get("cost"):
        return False  # an export keeps what its checkpoint took, to the last digit
    return other.scheme in (one.asked or one.scheme, one.scheme)


def _step(kind: str, base: Subject, other: Subject) -> list[Step]:
    try:
        before, after = (_headlines(one.evaluations[0].value) for one in (base, other))
        return [Step(kind, base, other, gap.compare(before, after, DRAWS))]
    except SlmqError:
        return []  # other questions: the table of accuracies says what each was asked


def _headlines(one: Evaluation) -> Evaluation:
    """The metrics that are shown, and no others to draw for."""
    tasks = tuple(dataclasses.replace(task, metrics=(headline(task),)) for task in one.tasks)
    return dataclasses.replace(one, tasks=tasks)
