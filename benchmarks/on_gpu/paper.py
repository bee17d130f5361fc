"""Our rows beside the paper's: Table 3 (memory, size, MACs) and Table 4 (what quantizing cost).

The paper's cells are those of ``slmquant_tables.json``; a cell that our sources do not quote is
None, and nothing is solved for. What differs is said in words, of the figures that are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.on_gpu.figures import largest
from slmq_edge.compare import compare
from slmq_edge.errors import SlmqError
from slmq_edge.quantities import TORCH_PEAK, paper_macs
from slmq_edge.results import Run
from slmq_edge.study import paper
from slmq_edge.study.document import Document
from slmq_edge.study.inference import Row
from slmq_edge.tracks import cost

ALL = ("smoothquant", "omniquant", "spinquant")
MIB = 1 << 20
SCHEME_OF_FLOAT = "fp16"  # as the paper names its own full precision
PAPERS_GPU = "A800"
ALWAYS = (
    "weights are random here, on which neither speed nor the cost of quantizing depends: no "
    "accuracy is measured",
    "Table 3's memory is of float16 simulation of rounding; ours holds int8 or packed int4 and "
    "multiplies integers",
    'Table 3\'s size is called MB and is millions of parameters (METHODS 5.2): "parameters" here; '
    "our bytes are counted on disk",
    "Table 3's MACs of quantized models are the lm_head's alone, because its profiler did not see "
    'the quantized linears (METHODS 5.2): "macs" follows that convention here, and is no speed',
    "SLMQ_infer is given twice: by the paper's convention (MACs and parameters), and as measured "
    "(tokens/s, bytes); only the first may be set beside the printed one",
    "calibration text is WikiText-2's validation and test part, because nothing else is carried "
    "along: as many tokens as the released codes take, of another part",
    "the paper's memory is told without its kind; ours is torch's peak of what it allocated, "
    "where a GPU was at work",
)


def beside(found: Document, machine: Mapping[str, Any]) -> dict[str, Any]:
    """``table3``, ``table4``: rows with ``paper`` and ``ours``; ``differs``: sentences."""
    models = found.papers.items()
    return {
        "paper": paper.TITLE,
        "table3": [row for model, known in models for row in _table3(found, model, known)],
        "table4": [row for model, known in models for row in _table4(found, model, known)],
        "differs": differs(machine),
    }


def differs(machine: Mapping[str, Any]) -> list[str]:
    """What keeps the two from being one experiment."""
    name = ((machine.get("gpu") or {}).get("gpu") or {}).get("name")
    if name is None:
        first = (
            f"the paper's GPU is an {PAPERS_GPU}; here none was seen, and nothing of it is GPU's"
        )
    elif PAPERS_GPU in name:
        first = f"the GPU is {name}, as the paper's is an {PAPERS_GPU}"
    else:
        first = f"the paper's GPU is an {PAPERS_GPU}, this one {name}"
    return [first, *ALWAYS]


def _table3(found: Document, model: str, known: str) -> Iterator[dict[str, Any]]:
    ours = {_key(row): row for row in found.inference.rows if row.subject.model == model}
    base = next((row for row in ours.values() if row.is_baseline), None)
    for one in paper.printed(3, known):
        row = ours.get((one.method, one.scheme))
        yield {
            "model": known,
            "method": one.method,
            "scheme": one.scheme,
            "paper": {**one.cells, "slmq_infer": one.score, "recomputed": one.recomputed},
            "ours": None if row is None else _infer(row, base),
        }


def _key(row: Row) -> tuple[str, str]:
    scheme = SCHEME_OF_FLOAT if row.subject.is_float else row.subject.scheme
    return row.subject.method, scheme


def _infer(row: Row, base: Row | None) -> dict[str, Any]:
    run, peak = row.run, largest(row.run, TORCH_PEAK)
    macs = paper_macs(run)
    return {
        "device": run.device.name,
        "memory_mib": None if peak is None else peak / MIB,
        "parameters_millions": run.artifact.counts.parameters / 1e6,
        "weights_mb": row.size / 1e6,
        "macs_giga": macs / 1e9 if macs else None,
        "decode_tokens_per_second": row.decode,
        "forward_tokens_per_second": row.forward,
        "slmq_infer_measured": None if row.score is None else row.score.value,
        "slmq_infer_paper": _by_the_papers(run, base),
    }


def _by_the_papers(run: Run, base: Row | None) -> float | None:
    if base is None:
        return None
    try:
        return compare(base.run, run, "paper").score.value
    except SlmqError:
        return None  # an implausible figure, say: its own row tells


def _table4(found: Document, model: str, known: str) -> Iterator[dict[str, Any]]:
    """SLMQ_quant is among the three methods at W8A8, as the table has it, once all are there."""
    rows = [row for row in found.cost.rows if row.group.model == model and row.scheme == "w8a8"]
    told = [row for row in rows if row.method in ALL and row.reason is None]
    scores = {row.method: row.score for row in cost.scored(told).rows} if len(told) == 3 else {}
    for one in paper.printed(4, known):
        row = next((row for row in rows if row.method == one.method), None)
        yield {
            "model": known,
            "method": one.method,
            "scheme": one.scheme,
            "paper": {**one.cells, "slmq_quant": one.score, "recomputed": one.recomputed},
            "ours": None if row is None else {**_cost(row), "slmq_quant": scores.get(row.method)},
        }


def _cost(row: cost.Row) -> dict[str, Any]:
    return {
        "device": row.group.device_name,
        "memory_kind": row.group.memory,
        "memory_mib": None if row.memory_bytes is None else row.memory_bytes / MIB,
        "minutes": row.seconds / 60,
        "reason": row.reason,
    }
