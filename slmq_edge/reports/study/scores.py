"""Tables 1 and 2 of the paper, of this study: a table for each model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from slmq_edge.reports.accuracy import value_text
from slmq_edge.reports.study.layout import (
    BASELINE,
    NOTHING,
    PAPER,
    PLAIN,
    Cell,
    Line,
    Section,
    Table,
    line,
    listed,
    tidied,
)
from slmq_edge.reports.study.printed import SOURCE, matching, name_cell, score_cell
from slmq_edge.reports.study.words import kept_cell, kept_name
from slmq_edge.study import accuracy, paper
from slmq_edge.study.answer import verdict
from slmq_edge.study.document import Document
from slmq_edge.study.paper import Printed
from slmq_edge.tracks.accuracy.gap import SCORED
from slmq_edge.tracks.accuracy.results import MEAN, Metric


def scores(found: Document) -> Section:
    """Tables 1 and 2: a table for each model."""
    tables = tuple(
        _scored(found, model, [row for row in found.accuracy.rows if row.subject.model == model])
        for model in found.models
        if any(row.subject.model == model for row in found.accuracy.rows)
    )
    lead = (
        "Zero-shot. The paper's six tasks are lm-eval's own, by the paper's metrics: acc_norm of "
        "ARC, PIQA and HellaSwag, MMLU in cloze form, perplexity over windows. SLMQ_perf: 100 "
        "times the root mean square of the six ratios to full precision; over fewer tasks it is "
        "called what is kept. Intervals: 95 %, questions drawn in pairs."
    )
    leads = () if not tables else (lead, *((SOURCE,) if found.papers else ()))
    return Section("accuracy", "Accuracy (the paper's Tables 1 and 2)", leads, tables=tables)


def _scored(found: Document, model: str, rows: Sequence[accuracy.Row]) -> Table:
    tasks = [task for task in found.accuracy.tasks if any(task in row.metrics for row in rows)]
    known = (
        paper.printed(_table_of(found, model), found.papers[model]) if model in found.papers else ()
    )
    lines = []
    left = list(known)
    for row in rows:
        lines.append(_scores(row, tasks, found.within))
        same = matching(left, row.subject.method, row.subject.scheme)
        lines += [_printed(one, tasks) for one in same]
        left = [one for one in left if one not in same]
    lines += [_printed(one, tasks) for one in left]
    perf = all(row.kept.is_perf for row in rows if row.kept)
    kept_heading = "SLMQ_perf" if perf else "kept"
    asked = (f"{task} {_metric_name(task, rows)}" for task in tasks)
    headings = ("artifact", kept_heading, *asked)
    return tidied(Table(model, headings, tuple(lines), 1, tuple(_score_notes(rows, tasks))))


def _table_of(found: Document, model: str) -> int:
    return 1 if found.papers[model].startswith("SmolLM") else 2


def _metric_name(task: str, rows: Iterable[accuracy.Row]) -> str:
    return next(row.metrics[task].name for row in rows if task in row.metrics)


def _scores(row: accuracy.Row, tasks: Sequence[str], within: float) -> Line:
    cells = [_score(row.metrics[task]) if task in row.metrics else Cell(NOTHING) for task in tasks]
    if row.kept is not None:
        kept = kept_cell(row.kept, verdict(row.kept, within))
        if not row.kept.is_perf:
            kept = Cell(kept.text, f"{kept.below} {kept_name(row.kept)}".strip(), kept.tone)
    else:
        kept = Cell(NOTHING, "full precision" if row.reason is None else row.reason)
    kind = BASELINE if row.reference is None and row.reason is None else PLAIN
    return line(Cell(row.subject.name, row.subject.runtime), kept, *cells, kind=kind)


def _score(metric: Metric) -> Cell:
    error = "" if metric.stderr is None else f"± {_points(metric, metric.stderr)}"
    return Cell(value_text(metric.kind, metric.value), error)


def _points(metric: Metric, value: float) -> str:
    return f"{100 * value:.2f}" if metric.kind == MEAN else f"{value:.3f}"


def _printed(one: Printed, tasks: Sequence[str]) -> Line:
    fields = {task: field for field, task in SCORED.items()}
    cells = [one.cells.get(fields.get(task, "")) for task in tasks]
    told = [
        Cell(NOTHING if cell is None else cell if task == "wikitext2_windows" else f"{cell} %")
        for task, cell in zip(tasks, cells, strict=True)
    ]
    return line(name_cell(one), score_cell(one), *told, kind=PAPER)


def _score_notes(rows: Sequence[accuracy.Row], tasks: Sequence[str]) -> Iterator[str]:
    limited = {
        task.name: (len(task.questions), task.available)
        for row in rows
        for task in row.evaluation.tasks
        if len(task.questions) < task.available
    }
    if limited:
        told = ", ".join(f"{n} of {all} of {name}" for name, (n, all) in limited.items())
        yield f"not all questions were asked: {told}"
    asked = {task.name: task.source.name for row in rows for task in row.evaluation.tasks}
    yield "questions: " + "; ".join(f"{name}: {asked[name]}" for name in tasks if name in asked)
    guessed = [name for name in tasks if any(name in row.guessed for row in rows)]
    if guessed:
        yield (
            "full precision itself is not shown to do better than guess on "
            f"{listed(guessed)}: what is kept of that says little"
        )
    references = {row.reference.runtime for row in rows if row.reference}
    if references:
        yield f"held against full precision as {listed(sorted(references))} computed it"
