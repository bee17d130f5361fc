"""What a model scored, as text: every metric with its questions and its limit. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator

from slmq_edge.reports.accuracy import label, limit_text, value_text
from slmq_edge.reports.format import rate_text, seconds_text
from slmq_edge.reports.tables import aligned, escaped, piped
from slmq_edge.tracks.accuracy.results import MEAN, Evaluation, Metric, TaskResult, to_json

HEADINGS = ("task", "metric", "value", "stderr", "questions", "limit")
COLUMNS: dict[str, Callable[[TaskResult, Metric], object]] = {
    "task": lambda task, metric: task.name,
    "metric": lambda task, metric: metric.name,
    "value": lambda task, metric: metric.value,
    "stderr": lambda task, metric: metric.stderr,
    "questions": lambda task, metric: metric.n,
    "limit": lambda task, metric: metric.limit,
    "available": lambda task, metric: task.available,
    "cut": lambda task, metric: task.cut,
    "paper": lambda task, metric: metric.paper,
    "source": lambda task, metric: task.source.name,
}


def terminal(evaluation: Evaluation) -> str:
    """A table, and below it what must be said of it."""
    rows = aligned([HEADINGS, *_cells(evaluation)], texts=2)
    said = "\n".join(_said(evaluation))
    return f"{label(evaluation.identity)}\n\n{rows}\n\n{said}\n"


def markdown(evaluation: Evaluation) -> str:
    """A section of GitHub's Markdown."""
    rows = piped([HEADINGS, *_cells(evaluation)], texts=2)
    said = "\n".join(f"- {escaped(line)}" for line in _said(evaluation))
    return f"### {escaped(label(evaluation.identity))}\n\n{rows}\n\n{said}\n"


def comma_separated(evaluation: Evaluation) -> str:
    """One line a metric, at full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("what", *COLUMNS))
    for task in evaluation.tasks:
        for metric in task.metrics:
            cells = (column(task, metric) for column in COLUMNS.values())
            writer.writerow((label(evaluation.identity), *cells))
    return out.getvalue()


WRITERS: dict[str, Callable[[Evaluation], str]] = {
    "terminal": terminal,
    "md": markdown,
    "csv": comma_separated,
    "json": to_json,
}


def _cells(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    for task in evaluation.tasks:
        for metric in task.metrics:
            name = f"{metric.name} *" if metric.paper else metric.name
            percent = metric.kind == MEAN and metric.stderr is not None
            stderr = f"± {100 * metric.stderr:.2f}" if percent and metric.stderr is not None else ""
            yield (
                task.name,
                name,
                value_text(metric.kind, metric.value),
                stderr,
                str(metric.n),
                limit_text(metric.limit),
            )


def _said(evaluation: Evaluation) -> Iterator[str]:
    if any(metric.paper for task in evaluation.tasks for metric in task.metrics):
        yield "* the metric of the SLMQuant paper's Tables 1 and 2"
    for task in evaluation.tasks:
        if task.metrics[0].n < task.available:
            yield f"! {task.name}: {task.metrics[0].n} of {task.available} questions"
        if task.cut:
            yield f"! {task.name}: {task.cut} longer than the context, read without their start"
    sources = dict.fromkeys(f"{task.source.origin} {task.source.name}" for task in evaluation.tasks)
    yield f"questions: {', '.join(sources)}; lm-eval {evaluation.environment.get('lm_eval', 'n/a')}"
    for one in evaluation.next_tokens:
        yield (
            f"next tokens of {one.task} against {label(one.base)}: KL {one.kl:.3g} nats, another "
            f"most likely one at {100 * one.changed:.2f} % of {one.positions}"
        )
    before = evaluation.tokens_before
    read = evaluation.tokens - before
    rate = read / evaluation.seconds if evaluation.seconds > 0 and read > 0 else None
    of_them = f" ({before} of them before an interruption)" if before else ""
    yield (
        f"scored {evaluation.sequences} sequences, {evaluation.tokens} tokens{of_them}, in "
        f"{seconds_text(evaluation.seconds)} ({rate_text(rate)})"
    )
