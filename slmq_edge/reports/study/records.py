"""A study for machines: CSV, a line for every run; JSON, all that was computed. Pure.

Figures are in SI units at full precision, shares and ratios as such.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping

from slmq_edge.compare import Row as Compared
from slmq_edge.study.accuracy import Row as Scored
from slmq_edge.study.accuracy import Step, Tokens
from slmq_edge.study.answer import Answer, verdict
from slmq_edge.study.document import Document
from slmq_edge.study.inference import Row as Timed
from slmq_edge.study.subjects import Subject

FORMAT, VERSION = "slmq-edge-study", 1


def comma_separated(found: Document) -> str:
    """One line a run, with the accuracy of its artifact; one for what was only scored or made."""
    rows = [*_lines(found)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _lines(found: Document) -> Iterator[dict[str, object]]:
    for one in found.subjects:
        timed = [row for row in found.inference.rows if row.subject == one]
        scored = found.accuracy.of(one)
        cost = found.costs.get(one.manifest.path) if one.manifest else None
        made = {
            "quantizing_seconds": cost.seconds if cost else None,
            "quantizing_memory_bytes": cost.memory_bytes if cost else None,
            "slmq_quant": cost.score if cost else None,
        }
        for row in timed or (None,):
            yield {**_subject(one), **_timed(row), **_scored(scored, found), **made}


def _subject(one: Subject) -> dict[str, object]:
    return {
        "model": one.model,
        "method": one.method,
        "scheme": one.scheme,
        "asked": one.asked or one.scheme,
        "runtime": one.runtime,
        "apart": one.apart,
        "digest": one.digest,
    }


def _timed(row: Timed | None) -> dict[str, object]:
    if row is None:
        return {}
    work = row.run.workload
    return {
        "device": row.place.name,
        "device_kind": row.place.kind,
        "chip": row.place.chip,
        "runs": " ".join(row.paths),
        "baseline": row.baseline,
        "baseline_precision": row.precision if row.baseline else None,
        "prompt_tokens": work.prompt_tokens,
        "new_tokens": work.new_tokens,
        "threads": work.threads,
        "prefill_tokens_per_second": row.prefill,
        "decode_tokens_per_second": row.decode,
        "forward_tokens_per_second": row.forward,
        **_ratio("prefill", row.prompt),
        **_ratio("decode", row.faster),
        "memory_kind": row.memory[0] if row.memory else None,
        "memory_bytes": row.memory[1] if row.memory else None,
        **_ratio("memory", row.less),
        "bundle_bytes": row.run.artifact.bundle_bytes,
        "weights_bytes": row.size,
        "size_ratio": row.smaller,
        "tokens_per_joule": row.tokens_per_joule,
        "slmq_infer": row.score.value if row.score else None,
        "slmq_infer_low": row.score.low if row.score else None,
        "slmq_infer_high": row.score.high if row.score else None,
        "caveats": " ".join(caveat.code for caveat in row.run.caveats),
        "reason": row.reason,
    }


def _ratio(name: str, found: Compared | None) -> dict[str, object]:
    return {
        f"{name}_ratio": found.ratio if found else None,
        f"{name}_ratio_low": found.low if found else None,
        f"{name}_ratio_high": found.high if found else None,
        f"{name}_verdict": found.verdict if found else None,
    }


def _scored(row: Scored | None, found: Document) -> dict[str, object]:
    if row is None:
        return {}
    kept = row.kept
    return {
        "evaluation": row.place,
        "reference": row.reference.name if row.reference else None,
        "kept": kept.value if kept else None,
        "kept_low": kept.low if kept else None,
        "kept_high": kept.high if kept else None,
        "kept_of": " ".join(kept.tasks) if kept else None,
        "is_slmq_perf": kept.is_perf if kept else None,
        "verdict": verdict(kept, found.within) if kept else None,
        **{f"{task} {metric.name}": metric.value for task, metric in row.metrics.items()},
    }


def to_json(found: Document) -> str:
    """All that was computed, and what could not be read."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "title": found.title,
        "within": found.within,
        "newest": found.newest,
        "answers": [_answer(one) for one in found.answers],
        "artifacts": [*_lines(found)],
        "gaps": [_step(step) for step in found.accuracy.steps],
        "next_tokens": [_tokens(one) for one in found.accuracy.tokens],
        "costs": dataclasses.asdict(found.cost),
        "papers": dict(found.papers),
        "unfinished": [dataclasses.asdict(filed.value) for filed in found.study.cells],
        "unread": [dataclasses.asdict(one) for one in found.study.unread],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _answer(one: Answer) -> Mapping[str, object]:
    return {
        "model": one.model,
        "device": dataclasses.asdict(one.place) if one.place else None,
        "picks": [
            {
                "what": pick.what,
                "artifact": _subject(pick.candidate.subject),
                "is_clear": pick.is_clear,
                "doubts": list(pick.doubts),
            }
            for pick in one.picks
        ],
        "verdicts": [
            {"artifact": _subject(candidate.subject), "verdict": candidate.verdict}
            for candidate in one.candidates
        ],
    }


def _tokens(one: Tokens) -> Mapping[str, object]:
    return {
        "artifact": _subject(one.subject),
        "against": dict(one.against),
        **dataclasses.asdict(one.row),
    }


def _step(step: Step) -> Mapping[str, object]:
    return {
        "kind": step.kind,
        "base": _subject(step.base),
        "other": _subject(step.other),
        "slmq_perf": step.gap.perf,
        "rows": [dataclasses.asdict(row) for row in step.gap.rows],
    }
