"""Tables 1 to 4 of the paper, of this study; what the paper prints beside them, where it can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from slmq_edge import metrics
from slmq_edge.compare import compare, is_quantized
from slmq_edge.errors import SlmqError
from slmq_edge.reports.accuracy import value_text
from slmq_edge.reports.format import bytes_text, count_text, seconds_text
from slmq_edge.reports.study.layout import (
    BASELINE,
    NOTHING,
    PAPER,
    PLAIN,
    TIMES,
    Cell,
    Line,
    Section,
    Table,
    line,
    listed,
    tidied,
)
from slmq_edge.reports.study.words import kept_cell, kept_name, rate, score_cell, times, times_cell
from slmq_edge.study import accuracy, inference, paper
from slmq_edge.study.answer import verdict
from slmq_edge.study.document import Document
from slmq_edge.study.paper import Printed
from slmq_edge.tracks.accuracy.gap import SCORED
from slmq_edge.tracks.accuracy.results import MEAN, Metric

SOURCE = (
    f'Lines marked "paper" are what {paper.TITLE}, prints, of its own FP16 baseline on its own '
    "hardware; {NOTHING} is a cell that our sources do not quote."
)
TIMED = (
    "artifact", "decode tok/s", f"decode {TIMES}", "prefill tok/s", f"prefill {TIMES}",
    "first token", "peak memory", f"less {TIMES}", "size", f"smaller {TIMES}", "MACs a token",
    "tokens/J", "SLMQ_infer",
)  # fmt: skip
CONVENTION = (
    "artifact", "GPU mem. MB", "\"size\": parameters", "\"MACs\", 128 tokens", "SLMQ_infer",
)  # fmt: skip
COSTS = ("artifact", "made on", "peak memory", "time", "energy", "SLMQ_quant")


def scores(found: Document) -> Section:
    """Tables 1 and 2: a table for each model."""
    tables = tuple(
        _scored(found, model, [row for row in found.accuracy.rows if row.subject.model == model])
        for model in found.models
        if any(row.subject.model == model for row in found.accuracy.rows)
    )
    lead = (
        "Zero-shot, by lm-eval's own tasks and the paper's metrics: acc_norm of ARC, PIQA and "
        "HellaSwag, MMLU in cloze form, perplexity over windows of the context. SLMQ_perf: 100 "
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
        same = [one for one in left if _same(one, row.subject.method, row.subject.scheme)]
        lines += [_printed_scores(one, tasks) for one in same]
        left = [one for one in left if one not in same]
    lines += [_printed_scores(one, tasks) for one in left]
    perf = all(row.kept.is_perf for row in rows if row.kept)
    kept_heading = "SLMQ_perf" if perf else "kept"
    asked = (f"{task} {_metric_name(task, rows)}" for task in tasks)
    headings = ("artifact", kept_heading, *asked)
    return tidied(Table(model, headings, tuple(lines), 1, tuple(_score_notes(rows, tasks))))


def _table_of(found: Document, model: str) -> int:
    return 1 if found.papers[model].startswith("SmolLM") else 2


def _same(one: Printed, method: str, scheme: str) -> bool:
    if one.method == "none":
        return method == "none" and scheme in inference.PREFERRED
    return (one.method, one.scheme) == (method, scheme)


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


def _printed_scores(one: Printed, tasks: Sequence[str]) -> Line:
    fields = {task: field for field, task in SCORED.items()}
    cells = [one.cells.get(fields.get(task, "")) for task in tasks]
    told = [
        Cell(NOTHING if cell is None else cell if task == "wikitext2_windows" else f"{cell} %")
        for task, cell in zip(tasks, cells, strict=True)
    ]
    return line(_printed_name(one), _printed_score(one), *told, kind=PAPER)


def _printed_name(one: Printed) -> Cell:
    return Cell(f"{one.method} {one.scheme}", "paper")


def _printed_score(one: Printed) -> Cell:
    if one.score is None:
        return Cell(NOTHING)
    other = one.recomputed not in (None, one.score)
    return Cell(one.score, f"recomputed {one.recomputed}" if other else "")


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


def timed(found: Document) -> Section:
    """Table 3: a table for each device and model, and the paper's convention where it has one."""
    tables = []
    for place in dict.fromkeys(row.place for row in found.inference):
        for model in found.models:
            rows = [
                row for row in found.inference if row.place == place and row.subject.model == model
            ]
            if rows:
                tables.append(_timed(f"{model} on {place.title}", rows))
                if model in found.papers:
                    tables.append(_by_convention(found.papers[model], place, rows))
    lead = (
        f"Batch 1; medians of all repetitions; {TIMES} against the baseline of the same device, "
        "95 % intervals of a bootstrap over repetitions. SLMQ_infer: 100 times the root mean square of "
        "the ratios of memory, decoding speed and size, with measured tokens/s and real bytes; its "
        "interval is that of the speed. The baseline's is not 100: size counts against a float16 "
        "checkpoint."
    )
    leads = (lead, *((SOURCE,) if found.papers else ())) if tables else ()
    return Section("inference", "Inference (the paper's Table 3)", leads, tables=tuple(tables))


def _timed(caption: str, rows: Sequence[inference.Row]) -> Table:
    works = dict.fromkeys(
        (row.run.workload.prompt_tokens, row.run.workload.new_tokens, row.run.workload.threads)
        for row in rows
    )
    several = len(works) > 1
    lines = tuple(_speeds(row, several) for row in rows)
    notes = [
        f"prompt {prompt} tokens, {new} new ones, {threads} threads"
        for prompt, new, threads in works
    ]
    notes += [
        f"{row.subject.name}: {row.reason}"
        for row in rows
        if row.reason is not None and not row.is_baseline
    ]
    baselines = dict.fromkeys(
        f"{row.baseline.name} ({row.baseline.runtime})" for row in rows if row.baseline
    )
    notes += [f"baseline: {listed(list(baselines))}"] if baselines else []
    return tidied(Table(caption, TIMED, lines, 1, tuple(notes)))


def _speeds(row: inference.Row, several: bool) -> Line:
    work, counts = row.run.workload, row.run.artifact.counts
    where = f"{work.prompt_tokens}+{work.new_tokens}, {work.threads} threads" if several else ""
    return line(
        Cell(row.subject.name, where or row.subject.runtime),
        rate(row.decode),
        times_cell(row.faster),
        rate(row.prefill),
        times_cell(row.prompt),
        seconds_text(row.run.series["prefill_seconds"].median),
        Cell(bytes_text(row.memory), row.memory_kind or "") if row.memory is not None else NOTHING,
        times(row.less),
        bytes_text(row.size),
        times(row.smaller),
        count_text(counts.linear_macs_per_token + counts.head_macs_per_token),
        NOTHING if row.tokens_per_joule is None else rate(row.tokens_per_joule),
        score_cell(row),
        kind=BASELINE if row.is_baseline else PLAIN,
    )


def _by_convention(model: str, place: inference.Place, rows: Sequence[inference.Row]) -> Table:
    """What the paper's columns really hold, ours and theirs."""
    left = list(paper.printed(3, model))
    lines = []
    for row in rows:
        lines.append(_convention(row, rows))
        same = [one for one in left if _same(one, row.subject.method, row.subject.scheme)]
        lines += [_printed_convention(one) for one in same]
        left = [one for one in left if one not in same]
    lines += [_printed_convention(one) for one in left]
    note = (
        "the paper's MB of model size are millions of parameters, and its MACs of quantized "
        "models are the lm_head's alone: no measurement of speed"
    )
    caption = f"{model} by the paper's convention, beside {place.title}"
    return Table(caption, CONVENTION, tuple(lines), 1, (note,))


def _convention(row: inference.Row, rows: Sequence[inference.Row]) -> Line:
    counts = row.run.artifact.counts
    base = next((one for one in rows if one.is_baseline and one.subject == row.baseline), None)
    score = NOTHING
    if base is not None and base is not row:
        try:
            value = compare(base.run, row.run, "paper").score.value
            score = NOTHING if value is None else f"{value:.1f}"
        except SlmqError:
            pass
    macs = metrics.Macs(counts.linear_macs_per_token, counts.head_macs_per_token)
    return line(
        Cell(row.subject.name, "ours"),
        Cell(NOTHING if row.memory is None else f"{row.memory / 2**20:.1f}", row.memory_kind or ""),
        f"{counts.parameters / 1e6:.2f} M",
        f"{metrics.paper_macs(macs, quantized=is_quantized(row.run)) / 1e9:.3f} G",
        score,
    )


def _printed_convention(one: Printed) -> Line:
    cells: Mapping[str, str | None] = one.cells
    return line(
        _printed_name(one),
        cells.get("memory") or NOTHING,
        _unit(cells.get("size"), "M"),
        _unit(cells.get("macs"), "G"),
        _printed_score(one),
        kind=PAPER,
    )


def _unit(cell: str | None, unit: str) -> str:
    return NOTHING if cell is None else f"{cell} {unit}"


def costs(found: Document) -> Section:
    """Table 4: a table for each model."""
    tables = []
    for model in dict.fromkeys(row.group.model for row in found.cost.rows):
        lines = [
            line(
                Cell(f"{row.method} {row.scheme}", row.place),
                Cell(row.group.device_name or row.group.device, row.group.device),
                Cell(bytes_text(row.memory_bytes), row.group.memory),
                seconds_text(row.seconds),
                NOTHING if row.energy_joules is None else f"{row.energy_joules:.0f} J",
                NOTHING if row.score is None else f"{row.score:.1f}",
            )
            for row in found.cost.rows
            if row.group.model == model
        ]
        known = paper.model_of(model)
        for one in paper.printed(4, known) if known else ():
            time = one.cells.get("time")
            memory = one.cells.get("memory")
            lines.append(
                line(
                    _printed_name(one),
                    "the paper's GPU",
                    _unit(memory, "MB"),
                    _unit(time, "min"),
                    NOTHING,
                    _printed_score(one),
                    kind=PAPER,
                )
            )
        tables.append(tidied(Table(model, COSTS, tuple(lines), 1)))
    lead = (
        "SLMQ_quant: 100 times the root mean square of (most memory / memory) and (most time / "
        "time), the most of all artifacts of a model that were made on one device, so that scores "
        "of two studies say nothing about each other."
    )
    items = found.cost.notes
    leads = (lead,) if tables else ()
    return Section(
        "cost", "Cost of quantizing (the paper's Table 4)", leads, tables=tuple(tables), items=items
    )
