"""eval.json: what a model scored, question by question, and what scored it.

Metrics are lm-eval's own values. Every question keeps its log-probabilities, so that files can be
compared question by question (`gap`) without the models.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmq_edge.errors import Damaged
from slmq_edge.files import write_text_atomically
from slmq_edge.results import read_as
from slmq_edge.tracks.accuracy.questions import Source

FORMAT, VERSION = "slmq-edge-eval", 1
MEAN, PERPLEXITY, BITS = "mean", "perplexity", "bits"
KINDS = (MEAN, PERPLEXITY, BITS)


@dataclass(frozen=True)
class Metric:
    """One row of a table.

    kind: how questions become the value: ``mean`` of their values, ``perplexity``
    exp(-sum log p / sum of their weights), ``bits`` -sum log p / (sum of weights ln 2).
    stderr: lm-eval's; ``None`` where it has none. n: questions. limit: as asked, of each part of
    the task; ``None``: all were scored. paper: whether the paper's tables have this metric.
    """

    name: str
    kind: str
    value: float
    stderr: float | None
    n: int
    limit: int | None
    paper: bool

    @property
    def higher_is_better(self) -> bool:
        return self.kind == MEAN


@dataclass(frozen=True)
class Question:
    """What was answered to one question, or of one text.

    logprobs: of every choice, natural; of a text, one. greedy: whether each is what the model
    would have written itself. target: the right choice; ``None`` of a text. values: by metric, the
    question's own (0 or 1), or the weight that its log-probability is divided by (words, bytes,
    tokens).
    """

    id: str
    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    target: int | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class TaskResult:
    """A task. stock: lm-eval's names and versions of it, or whose convention it is.

    available: questions that there are. cut: of how many the text was longer than the context, and
    lost its start. asked_sha256: of all texts in their order: equal where the same was asked.
    """

    name: str
    stock: Mapping[str, str]
    source: Source
    available: int
    cut: int
    asked_sha256: str
    metrics: tuple[Metric, ...]
    questions: tuple[Question, ...]

    def metric(self, name: str) -> Metric:
        return next(metric for metric in self.metrics if metric.name == name)


@dataclass(frozen=True)
class Window:
    """kl: summed over positions, in nats; changed: of how many the most likely token differs."""

    positions: int
    kl: float
    changed: int


@dataclass(frozen=True)
class NextTokens:
    """How far next tokens lie from those of ``base`` (its identity) on a task's text.

    asked_sha256: as the task's. See `slmq_edge.tracks.accuracy.next_tokens`.
    """

    task: str
    base: Mapping[str, Any]
    asked_sha256: str
    windows: tuple[Window, ...]

    @property
    def positions(self) -> int:
        return sum(window.positions for window in self.windows)

    @property
    def kl(self) -> float:
        """KL(base || this one), the mean over positions, in nats."""
        return sum(window.kl for window in self.windows) / self.positions

    @property
    def changed(self) -> float:
        """Share of positions where the most likely token differs."""
        return sum(window.changed for window in self.windows) / self.positions


@dataclass(frozen=True)
class Evaluation:
    """What one model scored, on one runtime.

    identity: what scored (`sequences.Scorer.identity`). ran: what the runner said of itself, where
    it was one (`bundled.Bundled.ran`). environment: versions of what made the questions into
    tokens. seconds: of scoring, without what a run before had done. sequences: that are different.
    tokens: that were read. next_tokens: of texts, where another model was given to hold them
    against. tokens_before: of the tokens, those that an interrupted run had read, in a time that is
    not in ``seconds``.
    """

    created: str
    identity: Mapping[str, Any]
    ran: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: float
    sequences: int
    tokens: int
    tasks: tuple[TaskResult, ...]
    next_tokens: tuple[NextTokens, ...] = ()
    tokens_before: int = 0

    def task(self, name: str) -> TaskResult | None:
        return next((task for task in self.tasks if task.name == name), None)


def is_same_artifact(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of one bundle, one checkpoint, or one model of one dtype."""
    for digest in ("bundle_sha256", "checkpoint_sha256", "files"):
        if digest in one or digest in other:
            same = one.get(digest) == other.get(digest)
            return same and one.get("dtype") == other.get("dtype")
    return False


def columns(
    metric: Metric, questions: Sequence[Question]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numerators and denominators, float64 [n], whose sums' ratio makes the metric (`combine`)."""
    values = np.array([question.values[metric.name] for question in questions], np.float64)
    if metric.kind == MEAN:
        return values, np.ones(len(values))
    return np.array([question.logprobs[0] for question in questions], np.float64), values


def combine(
    kind: str, above: NDArray[np.float64], below: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Metric of sums, float64 [...] each."""
    mean = above / below
    if kind == MEAN:
        return mean
    return np.exp(-mean) if kind == PERPLEXITY else -mean / math.log(2)


def to_json(evaluation: Evaluation) -> str:
    document = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(evaluation)}
    return json.dumps(document, allow_nan=False) + "\n"


def save(evaluation: Evaluation, path: Path, force: bool = False) -> None:
    """Write eval.json: the whole of it, or nothing."""
    write_text_atomically(path, to_json(evaluation), force)


def load(path: Path) -> Evaluation:
    """Read an eval.json.

    Raises:
        NotFound: there is no such file.
        Damaged: it is truncated, not JSON, or a field is not what it should be.
        Unsupported: another format, or a version that this release does not know.
    """
    found: Evaluation = read_as(Evaluation, path, FORMAT, VERSION)
    for task in found.tasks:
        _check(task, f"{path}: task {task.name}")
    for one in found.next_tokens:
        if not one.windows or min(window.positions for window in one.windows) < 1:
            raise Damaged(f"{path}: next tokens of {one.task} have no positions")
    return found


def _check(task: TaskResult, where: str) -> None:
    if not task.metrics or not task.questions:
        raise Damaged(f"{where} has no metrics or no questions")
    for metric in task.metrics:
        if metric.kind not in KINDS:
            raise Damaged(f"{where}: {metric.name} is of kind {metric.kind!r}")
        if metric.n != len(task.questions):
            raise Damaged(f"{where}: {metric.name} is of {metric.n} questions, not of all")
        for question in task.questions:
            if metric.name not in question.values or not question.logprobs:
                raise Damaged(f"{where}: question {question.id} lacks {metric.name}")
