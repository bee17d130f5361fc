"""What the figures rest on: gaps, what ran, where it was measured, and what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from slmq_edge.reports.accuracy import interval_text, label
from slmq_edge.reports.compare import golden_text
from slmq_edge.reports.format import bytes_text, share_text
from slmq_edge.reports.made import changes_text
from slmq_edge.reports.study.layout import (
    BAD,
    DOUBTFUL,
    GOOD,
    NOTHING,
    Cell,
    Fold,
    Line,
    Section,
    Table,
    line,
    tidied,
)
from slmq_edge.results import Run
from slmq_edge.study.accuracy import Step, Tokens
from slmq_edge.study.document import Document
from slmq_edge.study.subjects import Subject, lowering
from slmq_edge.tracks.accuracy import gap
from slmq_edge.tracks.accuracy.results import MEAN, Evaluation

GAPS = ("artifact", "against", "task", "difference", "flips", "KL", "n")
TOKENS = ("artifact", "against", "text", "KL a token", "another token", "positions", "windows")
RAN = (
    "artifact", "asked", "in integers", "weights", "activations", "bits stored", "KV cache",
    "lm_head", "golden KL",
)  # fmt: skip
PARTS = ("part", "KL", "of weights", "of inputs")
# Parts of an analysis that are shown, and fields of an environment that say most.
SHOWN = 8
OF_MACHINE = (
    "cpu_model", "machine", "cores", "memory_total_bytes", "gpu", "driver", "cuda", "power_mode",
    "governor", "l4t", "os", "kernel", "python", "numpy", "onnxruntime", "tensorrt", "torch",
    "triton", "load_average",
)  # fmt: skip


def gaps(found: Document) -> Section:
    """A table for each model: first what the artifact adds to its simulation, then the whole."""
    tables, tokens = [], found.accuracy.tokens
    for model in found.models:
        steps = [step for step in found.accuracy.steps if step.other.model == model]
        ordered = sorted(steps, key=lambda step: step.kind != "deployment")
        lines = [_gap(step, row) for step in ordered for row in step.gap.rows if row.headline]
        if lines:
            tables.append(tidied(Table(model, GAPS, tuple(lines), 3)))
        told = tuple(map(_tokens, (one for one in tokens if one.subject.model == model)))
        if told:
            tables.append(tidied(Table(f"{model}: next tokens", TOKENS, told, 3)))
    lead = (
        "The same questions, answered by two, compared one by one. Differences: points of an "
        "accuracy, percent of a perplexity, with 95 % intervals; flips: answers that became wrong "
        "+ right; KL: of the choices' probabilities, in nats. Against its simulation is what "
        "deploying cost; against full precision is the whole."
    )
    of_tokens = (
        "Next tokens: KL over the whole vocabulary, in nats a token; another token: share of "
        "positions at which the most likely one differs; intervals over windows of the text."
    )
    leads = (*((lead,) if found.accuracy.steps else ()), *((of_tokens,) if tokens else ()))
    return Section("gap", "Deployment gap", leads, tables=tuple(tables))


def _gap(step: Step, row: gap.Row) -> Line:
    against = f"{step.base.name} ({step.base.runtime})"
    unit = "" if row.kind == MEAN else " %"
    tone = DOUBTFUL if not row.is_shown else BAD if row.loss > 0 else GOOD
    flips = "" if row.lost is None else f"{100 * row.lost:.1f} + {100 * (row.won or 0):.1f} %"
    return line(
        Cell(step.other.name, step.other.runtime),
        Cell(against, "its simulation" if step.kind == "deployment" else "full precision"),
        Cell(row.task, row.metric),
        Cell(
            f"{100 * row.difference:+.2f}{unit}",
            f"[{100 * row.low:+.2f}, {100 * row.high:+.2f}]",
            tone,
        ),
        flips,
        NOTHING if row.kl is None else f"{row.kl:.1e}",
        str(row.n),
    )


def _tokens(one: Tokens) -> Line:
    row = one.row
    return line(
        Cell(one.subject.name, one.subject.runtime),
        label(one.against),
        row.task,
        Cell(f"{row.kl:.1e}", interval_text(row.kl_interval, ".1e")),
        Cell(f"{100 * row.flips:.2f} %", interval_text(row.flips_interval, ".2f", 100)),
        str(row.positions),
        str(row.windows),
    )


def ran(found: Document) -> Section:
    """The lowering of every artifact: what was asked, and what runs."""
    tables = []
    for model in found.models:
        mine = [one for one in found.subjects if one.model == model and lowering(one)]
        lines = tuple(_lowered(one) for one in mine)
        notes = [
            f"{one.name}: {told}"
            for one in mine
            if (told := changes_text(lowering(one))) is not None
        ]
        if lines:
            tables.append(tidied(Table(model, RAN, lines, 1, tuple(notes))))
    lead = (
        "What the exporter wrote and what a device multiplies: in integers is the share of the "
        "weights' multiply-adds; golden KL is how far the artifact's next tokens are from its "
        "simulation's, as it was checked before it was timed."
    )
    return Section("ran", "What ran", (lead,) if tables else (), tables=tuple(tables))


def _lowered(one: Subject) -> Line:
    of = lowering(one)
    bits = of.get("weight_storage_bits") or {}
    stored = ", ".join(f"{part} {count}" for part, count in bits.items())
    share = of.get("int8_gemm_share")
    return line(
        Cell(one.name, f"{one.runtime} {(one.digest or '')[:8]}".strip()),
        one.asked or NOTHING,
        share_text(share) if isinstance(share, int | float) else NOTHING,
        str(of.get("weights") or NOTHING),
        str(of.get("activation_mode") or NOTHING),
        stored or NOTHING,
        str(of.get("kv_cache") or NOTHING),
        str(of.get("lm_head") or NOTHING),
        _golden(one, of),
    )


def _golden(one: Subject, of: Mapping[str, Any]) -> str:
    found = [filed.value.golden.get("mean_kl") for filed in one.runs]
    found.append((of.get("verified") or {}).get("mean_kl"))
    told = next((value for value in found if isinstance(value, int | float)), None)
    return NOTHING if told is None else f"{told:.1e}"


def sensitivity(found: Document) -> Section:
    """The worst parts of every analysis."""
    tables = tuple(_analysis(filed.value, filed.path) for filed in found.study.analyses)
    lead = "Mean KL from the float model in nats a token, with one part rounded and all else float."
    leads = (lead,) if tables else ()
    return Section("sensitivity", "Where the loss comes from", leads, tables=tables)


def _analysis(of: Mapping[str, Any], path: str) -> Table:
    ranked = parts(of)
    lines = tuple(line(name, *map(_kl_text, kls)) for name, *kls in ranked[:SHOWN])
    whole = of.get("whole")
    told = [f"from {path}; the {len(lines)} worst of {len(ranked)} parts"]
    if isinstance(whole, Mapping) and (kl := _kl(whole, "both")) is not None:
        told.append(f"all rounded: KL {_kl_text(kl)}")
    return tidied(Table(analysis_title(of), PARTS, lines, 1, tuple(told)))


def analysis_title(of: Mapping[str, Any]) -> str:
    return f"{of.get('model')}, {of.get('scheme')} by {of.get('method')}"


Part = tuple[str, float | None, float | None, float | None]


def parts(of: Mapping[str, Any]) -> list[Part]:
    """Name, and KL of all of it, of its weights and of its inputs rounded; the worst first."""
    listed = of.get("parts")
    found = [
        (
            str(part.get("name", "")).removeprefix("model.layers."),
            _kl(part, "both"),
            _kl(part, "weights"),
            _kl(part, "activations"),
        )
        for part in (listed if isinstance(listed, list) else ())
        if isinstance(part, Mapping)
    ]
    return sorted(found, key=lambda part: -(part[1] or 0.0))


def _kl(part: Mapping[str, Any], kind: str) -> float | None:
    damage = part.get("damage")
    one = damage.get(kind) if isinstance(damage, Mapping) else None
    value = one.get("kl") if isinstance(one, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _kl_text(kl: float | None) -> str:
    return NOTHING if kl is None else f"{kl:.1e}"


def measured(found: Document) -> Section:
    """Every run and evaluation: its doubts, its environment; what is everywhere alike, once."""
    runs = [_run(one, filed.path, filed.value) for one in found.subjects for filed in one.runs]
    scores = [
        _evaluation(one, filed.path, filed.value)
        for one in found.subjects
        for filed in one.evaluations
    ]
    folds = (*_apart("runs", runs), *_apart("evaluations", scores))
    return Section("runs", "Caveats and environment of each run", folds=folds)


def _apart(what: str, folds: Sequence[Fold]) -> Iterator[Fold]:
    """What all have in common as the first of them, and of each what is its own."""
    several = len(folds) > 1
    first = folds[0].pairs if several else ()
    alike = [pair for pair in first if all(pair in fold.pairs for fold in folds)]
    if alike:
        yield Fold(f"All {len(folds)} {what}", tuple(alike))
    for fold in folds:
        own = tuple(pair for pair in fold.pairs if pair not in alike)
        yield dataclasses.replace(fold, pairs=own)


def _run(one: Subject, path: str, run: Run) -> Fold:
    work = run.workload
    pairs = [
        ("file", path),
        ("device", f"{run.device.name} ({run.device.kind})"),
        ("measured", run.created if run.origin == "measured" else f"{run.origin}, {run.created}"),
        ("bundle", run.artifact.bundle_sha256),
        (
            "workload",
            f"prompt {work.prompt_tokens}, {work.new_tokens} new tokens, {work.repetitions} "
            f"repetitions behind {work.warmups} warm-ups, {work.threads} threads",
        ),
        ("golden check", golden_text(run)),
        *_environment(run.environment),
    ]
    warnings = tuple(caveat.advice for caveat in run.caveats)
    title = f"{one.model} {one.name} on {run.device.name}"
    return Fold(title, tuple(pairs), warnings)


def _evaluation(one: Subject, path: str, scored: Evaluation) -> Fold:
    versions = scored.identity.get("versions")
    pairs = [
        ("file", path),
        ("scored", scored.created),
        ("runtime", one.runtime),
        ("versions", _plain({**scored.environment, **(versions or {})})),
        ("read", f"{scored.sequences} sequences, {scored.tokens} tokens"),
        *_environment(scored.ran.get("environment") or {}),
    ]
    short = [task.name for task in scored.tasks if len(task.questions) < task.available]
    cut = [task.name for task in scored.tasks if task.cut]
    warnings = [f"not all questions of {', '.join(short)}"] if short else []
    warnings += [f"texts longer than the context lost their start: {', '.join(cut)}"] if cut else []
    return Fold(f"Scores of {one.model} {one.name} ({one.runtime})", tuple(pairs), tuple(warnings))


def _environment(of: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in OF_MACHINE:
        value = of.get(name)
        if value is not None:
            text = bytes_text(value) if name.endswith("_bytes") else _plain(value)
            yield name.removesuffix("_bytes").replace("_", " "), text


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return str(value)


def plans(found: Document) -> Section:
    """What benches were asked for."""
    folds = [
        Fold(f"The plan in {filed.path}", text=filed.value["plan"])
        for filed in found.study.benches
        if isinstance(filed.value.get("plan"), str)
    ]
    return Section("plan", "The plan", folds=tuple(folds))


def missing(found: Document) -> Section:
    """Cells of a bench that have no result, and documents that cannot be read."""
    lines = tuple(
        line(
            filed.value.id,
            filed.value.kind,
            Cell(filed.value.state, tone=BAD if filed.value.state == "failed" else DOUBTFUL),
            _error(filed.value.state, filed.value.error, filed.value.device),
        )
        for filed in found.study.cells
    )
    headings = ("cell", "kind", "state", "what it said")
    table = (tidied(Table("", headings, lines, 4)),) if lines else ()
    items = tuple(f"{one.path} cannot be read: {one.reason}" for one in found.study.unread)
    return Section("missing", "Not done", tables=table, items=items)


def _error(state: str, error: str | None, device: str | None) -> str:
    if error is not None:
        return error
    return f"for {device}" if state == "waiting" and device else NOTHING


def sections(of: Iterable[Section]) -> tuple[Section, ...]:
    """Those that say something."""
    return tuple(
        one for one in of if one.verdicts or one.tables or one.folds or one.items or one.leads
    )
