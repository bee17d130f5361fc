"""results.json -> rows: what every artifact took and gave, beside full precision of its model.

What may be compared, and how surely, is decided where ``slmq-edge report study`` has it decided:
these rows are its.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.record import unpack
from benchmarks.on_gpu.steps import SMOLLM
from slmq_edge.compare import Row as Compared
from slmq_edge.quantities import TORCH_PEAK
from slmq_edge.results import Run
from slmq_edge.study import collect
from slmq_edge.study.document import Document
from slmq_edge.study.document import document as study_of
from slmq_edge.study.inference import Row
from slmq_edge.tracks.cost import Row as Cost

OF_PROCESS = "gpu_process_used"


def studied(document: Mapping[str, Any]) -> Document | None:
    """What the results are a study of; ``None`` where nothing was made yet."""
    with tempfile.TemporaryDirectory() as scratch:
        if not unpack(document, Path(scratch)):
            return None
        return study_of(collect.collect([Path(scratch)]))


def rows(found: Document) -> list[dict[str, Any]]:
    """One for every artifact that was timed, as JSON: by model, its baseline first, then W8A8."""
    told = [_row(one, found) for one in found.inference.rows]
    by = {"fp16": 0, "fp32": 0, "w8a8": 1}
    return sorted(told, key=lambda row: (row["model"] != SMOLLM, by.get(row["scheme"], 2)))


def costs(found: Document) -> list[dict[str, Any]]:
    """One for every quantization, with SLMQ_quant among those of its model. Bytes and seconds."""
    return [dict(_cost(one)) for one in found.cost.rows]


def _row(one: Row, found: Document) -> dict[str, Any]:
    run = one.run
    memory = one.memory
    manifest = one.subject.manifest
    cost = None if manifest is None else found.costs.get(manifest.path)
    return {
        "model": one.subject.model,
        "method": one.subject.method,
        "scheme": one.subject.scheme,
        "is_baseline": one.is_baseline,
        "device": run.device.name,
        "precision_of_baseline": one.precision,
        "weights_bytes": one.size,
        "bundle_bytes": run.artifact.bundle_bytes,
        "prefill_tokens_per_second": one.prefill,
        "decode_tokens_per_second": one.decode,
        "forward_tokens_per_second": one.forward,
        "decode_tokens_per_joule": one.tokens_per_joule,
        "memory_kind": None if memory is None else memory[0],
        "memory_bytes": None if memory is None else memory[1],
        "torch_peak_bytes": largest(run, TORCH_PEAK),
        "gpu_process_bytes": largest(run, OF_PROCESS),
        "times_better": dict(_ratios(one)),
        "slmq_infer": None if one.score is None else one.score._asdict(),
        "reason": one.reason,
        "quantize_seconds": None if cost is None else cost.seconds,
        "caveats": sorted({caveat.code for each in one.side.runs for caveat in each.caveats}),
        "golden_kl": run.golden.get("mean_kl"),
    }


def _ratios(one: Row) -> Iterator[tuple[str, dict[str, Any]]]:
    """Against full precision on the same device, above 1 better: losses are as they are."""
    named: dict[str, Compared | None] = {
        "memory": one.less, "prefill": one.prompt, "decode": one.faster,
    }  # fmt: skip
    if one.comparison is not None:
        passes = [row for row in one.comparison.rows if row.key == "forward_rate"]
        named["forward"] = next((row for row in passes if row.ratio is not None), None)
    for name, row in named.items():
        if row is not None:
            yield name, {key: getattr(row, key) for key in ("ratio", "low", "high", "verdict")}
    if one.smaller is not None:
        yield "size", {"ratio": one.smaller, "low": None, "high": None, "verdict": None}


def largest(run: Run, kind: str) -> int | None:
    """The largest reading of a kind of memory over prefill and decoding; ``None``: not read."""
    told = [run.memory.get(phase, {}).get(kind) for phase in ("prefill", "decode", "forward")]
    return max((count for count in told if count is not None), default=None)


def _cost(row: Cost) -> Iterator[tuple[str, Any]]:
    found = dataclasses.asdict(row)
    yield from found.pop("group").items()
    yield from found.items()
