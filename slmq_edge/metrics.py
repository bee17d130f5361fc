"""The three scores of SLMQuant (arXiv 2511.13023), one per track, as pure functions.

Every score is one hundred times the root mean square of ratios, each written so that more is
better and 1 means "as good as the reference". Nothing is clipped: a model that beats its
reference scores above 100.

    SLMQ_perf  = 100 sqrt(mean(acc_c / acc_fp over five tasks, ppl_fp / ppl_c)^2)      track 1
    SLMQ_infer = 100 sqrt(mean(memory_fp / memory_c, tps_c / tps_fp, size_fp / size_c)^2)   2
    SLMQ_quant = 100 sqrt(mean(max memory / memory, max time / time)^2)                     3

c is the quantized model, fp the full precision one, and mean(...)^2 the mean of the squares.
The maxima of track 3 run over the methods applied to the same model (Table 4 was made so;
maxima over both models together give other numbers), so a SLMQ_quant is only comparable
within one set of methods.

The paper's own numbers need one more convention. Its formula for track 2 has tokens per
second, but its Table 3 has multiply-adds (MACs), and those of the quantized models are the
language model head alone, because the profiler did not see the quantized linears.
``paper_macs`` and ``paper_infer`` reproduce that, for comparison with the printed table; it
is not a speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

PAPER_TOKENS = 128
"""The prompt length at which the MACs of Table 3 were counted (found by recomputing them)."""


@dataclass(frozen=True)
class Scores:
    """Quality of one model: columns of Tables 1 and 2.

    Accuracies may be fractions or percentages, as long as both models use the same.
    """

    mmlu: float
    arc_easy: float
    arc_challenge: float
    piqa: float
    hellaswag: float
    wikitext2_perplexity: float

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True)
class Cost:
    """What it took to quantize a model once: columns of Table 4."""

    peak_memory_bytes: float
    seconds: float

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True)
class Macs:
    """Multiply-adds per token of the linears in the decoder blocks, and of the head.

    Attention products, norms and rotary embeddings are not counted, as in Table 3.
    """

    linears: int
    head: int

    def __post_init__(self) -> None:
        _check_fields(self)


def slmq_perf(quantized: Scores, full: Scores) -> float:
    """SLMQ_perf, track 1: how much of the quality survives.

    Accuracies count as quantized / full, perplexity inverted as full / quantized; Tables 1
    and 2 are reproduced by this and by none of: plain or geometric mean, accuracy only,
    perplexity not inverted, ratios clipped at 1.
    """
    better = [
        _ratio(getattr(quantized, task.name), getattr(full, task.name))
        for task in fields(Scores)
        if task.name != "wikitext2_perplexity"
    ]
    return _score([*better, _ratio(full.wikitext2_perplexity, quantized.wikitext2_perplexity)])


def slmq_infer(memory_ratio: float, speed_ratio: float, size_ratio: float) -> float:
    """SLMQ_infer, track 2: how much better the quantized model runs.

    Args:
        memory_ratio: peak memory, full / quantized.
        speed_ratio: tokens per second, quantized / full.
        size_ratio: stored bytes, full / quantized.
    """
    return _score(
        (
            _positive("memory_ratio", memory_ratio),
            _positive("speed_ratio", speed_ratio),
            _positive("size_ratio", size_ratio),
        )
    )


def slmq_quant(costs: Mapping[str, Cost]) -> dict[str, float]:
    """SLMQ_quant, track 3: how cheap each method was, against the dearest on the same model.

    The dearest in both memory and time scores exactly 100; nothing scores less.

    Args:
        costs: method -> cost, every method applied to ONE model on one machine.
    """
    if not costs:
        raise ValueError("SLMQ_quant needs the cost of at least one method")
    memory = max(cost.peak_memory_bytes for cost in costs.values())
    seconds = max(cost.seconds for cost in costs.values())
    return {
        method: _score((_ratio(memory, cost.peak_memory_bytes), _ratio(seconds, cost.seconds)))
        for method, cost in costs.items()
    }


def decoder_macs(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocabulary: int,
) -> Macs:
    """MACs per token of a gated decoder (Llama, Qwen2, Qwen3): one per weight of every linear.

    linears = layers (2 h n_q d + 2 h n_kv d + 3 h f)        q and o, k and v, gate up down
    head    = h V
    """
    attention = 2 * hidden * (heads + kv_heads) * head_dim
    return Macs(layers * (attention + 3 * hidden * intermediate), hidden * vocabulary)


def paper_macs(macs: Macs, *, quantized: bool, tokens: int = PAPER_TOKENS) -> int:
    """The MACs column of Table 3: linears and head in full precision, head alone quantized."""
    if tokens <= 0:
        raise ValueError(f"tokens must be positive, not {tokens}")
    return tokens * (macs.head if quantized else macs.linears + macs.head)


def paper_infer(memory_ratio: float, macs: Macs, size_ratio: float) -> float:
    """SLMQ_infer as Table 3 has it: MACs full / quantized where the formula has tokens/s.

    The speed ratio is then (linears + head) / head, the same for every method: 4.75 for
    SmolLM-135M and 3.63 for Qwen2.5-0.5B (as printed: 4.73 and 3.62 to 3.63). The paper's
    "model size" of a full model is its parameters in millions, which fake quantization
    leaves alone: SmoothQuant's size_ratio is 1.
    """
    speed_ratio = _ratio(paper_macs(macs, quantized=False), paper_macs(macs, quantized=True))
    return slmq_infer(memory_ratio, speed_ratio, size_ratio)


def _score(ratios: Iterable[float]) -> float:
    # fsum rounds once, so a ratio that grows can never lower the score by an ulp.
    squares = [ratio * ratio for ratio in ratios]
    return 100 * math.sqrt(math.fsum(squares) / len(squares))


def _ratio(above: float, below: float) -> float:
    ratio = above / below
    # Legal operands can still leave the range of a float: 1e300 / 1e-300.
    return _positive(f"the ratio {above:g} / {below:g}", ratio)


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, not {value}")
    return value


def _check_fields(record: Scores | Cost | Macs) -> None:
    for field in fields(record):
        _positive(f"{type(record).__name__}.{field.name}", getattr(record, field.name))
