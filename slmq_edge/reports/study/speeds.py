"""Table 3 of the paper, of this study: a table for each device and model. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from slmq_edge import quantities
from slmq_edge.compare import compare
from slmq_edge.quantities import DEVICE, ON_GPU, TORCH_PEAK
from slmq_edge.reports.format import bytes_text, count_text, seconds_text
from slmq_edge.reports.study import printed
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
    tidied,
)
from slmq_edge.reports.study.printed import SOURCE
from slmq_edge.reports.study.words import rate, score_cell, times, times_cell
from slmq_edge.study import paper
from slmq_edge.study.document import Document
from slmq_edge.study.inference import Place, Row
from slmq_edge.study.paper import Printed

TIMED = (
    "artifact", "SLMQ_infer", "decode tok/s", f"decode {TIMES}", "prefill tok/s",
    f"prefill {TIMES}", "forward pass tok/s", "first token", "peak memory", f"less {TIMES}",
    "weights", f"smaller {TIMES}", "MACs a token", "tokens/J",
)  # fmt: skip
CONVENTION = (
    "artifact", "GPU mem. MB", '"size": parameters', '"MACs", 128 tokens', "SLMQ_infer",
)  # fmt: skip


def timed(found: Document) -> Section:
    """A table for each device and model; one by the paper's convention where it has the model."""
    tables = []
    rows = found.inference.rows
    for place in dict.fromkeys(row.place for row in rows):
        for model in found.models:
            mine = [row for row in rows if row.place == place and row.subject.model == model]
            if mine:
                tables.append(_timed(f"{model} on {place.title}", mine))
                if model in found.papers:
                    tables.append(_by_convention(found.papers[model], place, mine))
    lead = (
        f"Batch 1; medians of all repetitions; {TIMES}: times better than the baseline of the same "
        "device and runtime, with 95 % intervals over repetitions, and runs where there are "
        "several. SLMQ_infer: 100 times the root mean square of the ratios of memory, decoding "
        "speed and size, from measured tokens/s and real bytes; size is held against a float16 "
        "checkpoint, so that a float32 baseline itself is below 100."
    )
    leads = (lead, *((SOURCE,) if found.papers else ())) if tables else ()
    return Section("inference", "Inference (the paper's Table 3)", leads, tables=tuple(tables))


def _timed(caption: str, rows: Sequence[Row]) -> Table:
    asked = dict.fromkeys(
        f"prompt {work.prompt_tokens} tokens, {work.new_tokens} new ones, {work.threads} threads"
        for work in (row.run.workload for row in rows)
    )
    notes = [*asked]
    notes += dict.fromkeys(
        f"baseline: {row.baseline}, stored as {row.precision}" for row in rows if row.baseline
    )
    notes += [
        f"{row.subject.name}: {row.reason}"
        for row in rows
        if row.reason is not None and not row.is_baseline
    ]
    lines = tuple(map(_speeds, rows))
    return tidied(Table(caption, TIMED, lines, 1, tuple(notes)))


def _speeds(row: Row) -> Line:
    counts, repeated = row.run.artifact.counts, len(row.side.runs)
    macs = counts.linear_macs_per_token + counts.head_macs_per_token
    joules = row.tokens_per_joule
    return line(
        Cell(row.subject.name, f"{repeated} runs" if repeated > 1 else ""),
        score_cell(row),
        rate(row.decode),
        times_cell(row, row.faster),
        rate(row.prefill),
        times_cell(row, row.prompt),
        NOTHING if row.forward is None else rate(row.forward),
        seconds_text(row.first_token),
        memory_cell(row.memory),
        times_cell(row, row.less),
        bytes_text(row.size),
        times(row.smaller),
        count_text(macs) if macs else NOTHING,
        NOTHING if joules is None else rate(joules),
        kind=BASELINE if row.is_baseline else PLAIN,
    )


def memory_cell(found: tuple[str, float] | None) -> Cell:
    """Bytes, and of which kind: unlike kinds say nothing beside each other."""
    return Cell(NOTHING) if found is None else Cell(bytes_text(found[1]), found[0])


def _by_convention(model: str, place: Place, rows: Sequence[Row]) -> Table:
    """What the paper's columns really hold, ours and theirs."""
    left = list(paper.printed(3, model))
    lines = []
    for row in rows:
        lines.append(_convention(row))
        same = printed.matching(left, row.subject.method, row.subject.scheme)
        lines += map(_printed, same)
        left = [one for one in left if one not in same]
    lines += map(_printed, left)
    note = (
        "the paper's MB of model size are millions of parameters, and its MACs of quantized "
        "models are the lm_head's alone: no measurement of speed"
    )
    caption = f"{model} by the paper's convention, beside {place.title}"
    return Table(caption, CONVENTION, tuple(lines), 1, (note,))


def _convention(row: Row) -> Line:
    counts, value = row.run.artifact.counts, None
    if row.comparison is not None:
        value = compare(row.comparison.baseline, row.side, "paper").score.value
    macs = quantities.paper_macs(row.run)
    kind, memory = row.memory or ("", 0.0)
    # What the paper's is; unlike kinds never meet.
    on_gpu = kind == DEVICE or ON_GPU in kind or TORCH_PEAK in kind
    return line(
        Cell(row.subject.name, "ours"),
        Cell(f"{memory / 2**20:.1f}", kind) if on_gpu else NOTHING,
        f"{counts.parameters / 1e6:.2f} M" if counts.parameters else NOTHING,
        f"{macs / 1e9:.3f} G" if macs else NOTHING,
        NOTHING if value is None else f"{value:.1f}",
    )


def _printed(one: Printed) -> Line:
    return line(
        printed.name_cell(one),
        one.cells.get("memory") or NOTHING,
        printed.unit(one.cells.get("size"), "M"),
        printed.unit(one.cells.get("macs"), "G"),
        printed.score_cell(one),
        kind=PAPER,
    )
