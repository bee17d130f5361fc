"""Two runs side by side: the candidate as so many times better than the baseline.

    ratio = baseline / candidate     where less is better (bytes, seconds)
    ratio = candidate / baseline     where more is better (tokens per second)
    error = ratio sqrt((spread_b / median_b)^2 + (spread_c / median_c)^2)

So every ratio reads the same way: above 1 the candidate is better. Spreads are interquartile
ranges (`results.Series`); a quantity that was read once has none, and then no error is given.

    SLMQ_infer = 100 sqrt((memory ratio^2 + speed ratio^2 + size ratio^2) / 3)

Conventions: ``measured`` takes decode tokens per second and bytes on disk. ``paper`` takes
what Table 3 of arXiv 2511.13023 really holds, multiply-adds and parameters (METHODS 5.1,
5.2); its MACs of a quantized model are the lm_head's alone: it is no measurement of speed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from slmq_edge import bounds, differences, energy, metrics
from slmq_edge.caveats import IMPLAUSIBLE
from slmq_edge.errors import SlmqError, UsageError, unknown
from slmq_edge.results import Run, Series
from slmq_edge.runner import forward

Convention = Literal["measured", "paper"]
Better = Literal["lower", "higher"]

CONVENTIONS: tuple[Convention, ...] = ("measured", "paper")
PHASES = ("start", "load", "prefill", "decode")
SCORED_PHASES = ("prefill", "decode")
PEAK = "peak"  # a kind with this in its name is a high-water mark, any other a snapshot
ON_GPU = "gpu_"  # a kind with this in its name is of a GPU's memory
PREFERRED = ("gpu", "torch", "system")  # which peak is scored when a machine has several
UNLIKE = "unlike kinds are never compared"
DEVICE = "device memory"  # scored where both runs have some: the model is there
FLOAT_SCHEMES = ("fp32", "fp16", "bf16")
RATES = ("tokens/s", "tokens/J")  # more is better; of all else, less


@dataclass(frozen=True)
class Value:
    """A median in its row's unit, and the spread around it; None for a single reading."""

    median: float
    spread: float | None = None


@dataclass(frozen=True)
class Row:
    """One quantity of both runs.

    key: stable, for machines. unit: ``B``, ``s``, one of `RATES`, ``parameters`` or ``MAC``.
    ratio, error: times better than the baseline; None with the ``reason`` why there is none.
    across: both devices' names where the ratio mixes the artifact with the machine.
    """

    key: str
    quantity: str
    unit: str
    better: Better
    baseline: Value | None
    candidate: Value | None
    ratio: float | None
    error: float | None
    reason: str | None = None
    across: str | None = None


@dataclass(frozen=True)
class Score:
    """SLMQ_infer, the keys of the rows in it, and which memory that is.

    error counts the spread of the rows that have one; None where none has.
    """

    value: float | None
    error: float | None
    parts: tuple[str, ...]
    memory: str | None
    reason: str | None = None
    across: str | None = None


@dataclass(frozen=True)
class Comparison:
    """``refusals`` lists what was not compared, and why; ``notes`` what else differs."""

    convention: Convention
    baseline: Run
    candidate: Run
    rows: tuple[Row, ...]
    score: Score
    notes: tuple[str, ...]
    refusals: tuple[str, ...]

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)


def compare(baseline: Run, candidate: Run, convention: Convention = "measured") -> Comparison:
    """Compare ``candidate`` with ``baseline``.

    Raises:
        SlmqError: another workload, or a figure beyond what its device can do.
        UsageError: no such convention.
    """
    convention = require_convention(convention)
    _require_comparable(baseline, candidate)
    kind, phases = scored_memory(baseline, candidate)
    peak = _peak_row(baseline, candidate, kind, phases)
    if convention == "paper":
        rows = [*_paper_rows(baseline, candidate), peak]
        parts = ("parameters", "macs", peak.key)
    else:
        rows = [*_measured_rows(baseline, candidate), peak]
        parts = ("bundle_bytes", "decode_rate", peak.key)
    over = f" over {' and '.join(phases)}" if phases else ", all parts that both tell of"
    memory = f"largest {kind}{over}" if kind else None
    return Comparison(
        convention=convention,
        baseline=baseline,
        candidate=candidate,
        rows=tuple(rows),
        score=_score([row for key in parts for row in rows if row.key == key], memory),
        notes=tuple(differences.notes(baseline, candidate)),
        refusals=tuple(f"{row.quantity}: {row.reason}" for row in rows if row.reason),
    )


def require_convention(name: str) -> Convention:
    """Return the convention of this name, or raise UsageError."""
    for convention in CONVENTIONS:
        if name == convention:
            return convention
    raise UsageError(unknown("convention", name, CONVENTIONS))


def ratio_of(baseline: Value, candidate: Value, better: Better) -> tuple[float, float | None]:
    """Times better than the baseline, and its error in quadrature; medians are positive."""
    above, below = (baseline, candidate) if better == "lower" else (candidate, baseline)
    ratio = above.median / below.median
    if above.spread is None or below.spread is None:
        return ratio, None
    relative = math.hypot(above.spread / above.median, below.spread / below.median)
    return ratio, ratio * relative


def scored_memory(baseline: Run, candidate: Run) -> tuple[str | None, tuple[str, ...]]:
    """Which memory enters SLMQ_infer: a peak of one kind, over phases that both runs have.

    The kind is None where the runs share no peak; `DEVICE`, of no phase, where both have such.
    """
    if baseline.device_memory is not None and candidate.device_memory is not None:
        return DEVICE, ()
    if _elsewhere(baseline, candidate):
        return None, ()
    # On a GPU the process's own peak is not the model's; what NVML tells is read now and then.
    counts = ON_GPU if _on_gpu(baseline) else PEAK
    shared: dict[str, tuple[str, ...]] = {}
    for phase in SCORED_PHASES:
        for kind in _known(baseline, phase) & _known(candidate, phase):
            if counts in kind:
                shared[kind] = (*shared.get(kind, ()), phase)
    if not shared:
        return None, ()
    # A peak that covers more phases first, then the accelerator's, then the alphabet.
    best = min(shared, key=lambda kind: (-len(shared[kind]), _preference(kind), kind))
    return best, shared[best]


def is_quantized(run: Run) -> bool:
    """Whether the paper's profiler would not have seen the linears of this run."""
    return run.artifact.scheme_ran not in FLOAT_SCHEMES


def _require_comparable(baseline: Run, candidate: Run) -> None:
    for role, run in (("baseline", baseline), ("candidate", candidate)):
        # What run.json says, and what its figures say, whoever wrote them down.
        said = [caveat.advice for caveat in run.caveats if caveat.code == IMPLAUSIBLE]
        for line in [*said, *bounds.implausible(run)]:
            raise SlmqError(f"nothing is compared with an implausible {role}: {line}")
    first, second = baseline.workload, candidate.workload
    work = [(run.prompt_tokens, run.new_tokens) for run in (first, second)]
    if work[0] != work[1]:
        raise SlmqError(
            f"not the same workload: the baseline has {first.prompt_tokens} prompt tokens and "
            f"{first.new_tokens} new ones, the candidate {second.prompt_tokens} and "
            f"{second.new_tokens}; profile both with the same -p and -n"
        )


def _measured_rows(baseline: Run, candidate: Run) -> Iterator[Row]:
    tokens, steps = baseline.workload.prompt_tokens, baseline.workload.new_tokens
    across = differences.across(baseline, candidate)

    def row(key: str, quantity: str, unit: str, get: Callable[[Run], Value]) -> Row:
        label = None if unit == "B" else across
        return _row(key, quantity, unit, get(baseline), get(candidate), label)

    yield row("bundle_bytes", "size on disk", "B", lambda r: Value(r.artifact.bundle_bytes))
    yield row("weights_bytes", "weights", "B", lambda r: Value(r.artifact.weights_bytes))
    yield row("load_seconds", "load", "s", lambda r: _timed(r.series["load_seconds"]))
    prefill, decode = f"prefill, {tokens} tokens", f"decode, {steps} tokens"
    yield row("prefill_rate", prefill, "tokens/s", lambda r: _timed(r.prefill_rate))
    first = "time to first token"
    yield row("ttft_seconds", first, "s", lambda r: _timed(r.series["prefill_seconds"]))
    yield row("decode_rate", decode, "tokens/s", lambda r: _timed(r.decode_rate))
    yield from _forward_rows(baseline, candidate)
    yield from _energy_rows(baseline, candidate)
    yield from _memory_rows(baseline, candidate)
    yield from _device_rows(baseline, candidate)


def _forward_rows(baseline: Run, candidate: Run) -> Iterator[Row]:
    """Whole forward passes of a protocol, where either run has some."""
    both = (baseline, candidate)
    rates = [run.forward_rate for run in both]
    if rates == [None, None]:
        return
    tokens, label = baseline.workload.prompt_tokens, differences.across(baseline, candidate)
    before, after = (None if rate is None else _timed(rate) for rate in rates)
    quantity = f"forward pass, {tokens} tokens"
    row = _row("forward_rate", quantity, "tokens/s", before, after, label)
    logits = [str(run.environment.get(forward.LOGITS)) for run in both]
    unlike = f"logits of {' against '.join(logits)} positions: unlike passes are not compared"
    yield _without_ratio(row, unlike if logits[0] != logits[1] else None)


def _energy_rows(baseline: Run, candidate: Run) -> Iterator[Row]:
    """Tokens per joule, gross, where either run has them; never of one rail against another's."""
    both = (baseline, candidate)
    for phase in energy.WORK:
        sides = [energy.of(run.power or {}, phase) for run in both]
        told = [one for one in sides if isinstance(one, energy.Energy)]
        if not told:
            continue
        before, after = (
            Value(one.tokens_per_joule) if isinstance(one, energy.Energy) else None for one in sides
        )
        key, label = f"energy.{phase}", differences.across(baseline, candidate)
        row = _row(key, f"{phase}, tokens per joule", "tokens/J", before, after, label)
        sources = [
            energy.subject(run.environment, one.source)
            for run, one in zip(both, sides, strict=True)
            if isinstance(one, energy.Energy)
        ]
        unlike = len(set(sources)) > 1
        yield _without_ratio(row, f"{' against '.join(sources)}: {UNLIKE}" if unlike else None)


def _memory_rows(baseline: Run, candidate: Run) -> Iterator[Row]:
    """One row per phase and kind that either run could read; never one kind with another."""
    found = {*baseline.memory, *candidate.memory}
    phases = [*(phase for phase in PHASES if phase in found), *sorted(found - {*PHASES})]
    for phase in phases:
        for kind in sorted(_known(baseline, phase) | _known(candidate, phase)):
            row = _row(
                f"memory.{phase}.{kind}",
                f"{phase}: {kind}",
                "B",
                _memory(baseline, phase, kind),
                _memory(candidate, phase, kind),
                differences.across(baseline, candidate),
            )
            yield _without_ratio(row, _elsewhere(baseline, candidate))


def _device_rows(baseline: Run, candidate: Run) -> Iterator[Row]:
    """One row per part of what lies on a device, and one of all."""
    sides = [run.device_memory or {} for run in (baseline, candidate)]
    for part in dict.fromkeys([*sides[0], *sides[1]]):
        before, after = (Value(of[part]) if part in of else None for of in sides)
        key, across = f"device_memory.{part}", differences.across(baseline, candidate)
        yield _row(key, f"device: {part}", "B", before, after, across)


def _elsewhere(baseline: Run, candidate: Run) -> str | None:
    """Why the process's memory of the two is not of one kind; None where it is."""
    there = [_on_gpu(run) for run in (baseline, candidate)]
    if there[0] == there[1]:
        return None
    side = "baseline" if there[0] else "candidate"
    return f"the {side} has its model in a device's memory, not in the process's: {UNLIKE}"


def _on_gpu(run: Run) -> bool:
    """Whether the model lies in a device's memory and not in the process's."""
    return run.device_memory is not None or run.device.kind == "cuda"


def _without_ratio(row: Row, reason: str | None) -> Row:
    if reason is None or row.ratio is None:
        return row
    return dataclasses.replace(row, ratio=None, error=None, reason=reason, across=None)


def _peak_row(baseline: Run, candidate: Run, kind: str | None, phases: Sequence[str]) -> Row:
    """The memory that enters the score: ``kind``'s largest value over ``phases``."""
    key = "peak_memory"
    across = differences.across(baseline, candidate)
    if kind == DEVICE:
        sides = [run.device_memory or {} for run in (baseline, candidate)]
        both = sides[0].keys() & sides[1].keys()  # a board that shares its memory tells no rest
        before, after = (Value(sum(of[part] for part in both)) for of in sides)
        return _row(key, DEVICE, "B", before, after, across)
    if reason := _elsewhere(baseline, candidate):
        return Row(key, "peak memory", "B", "lower", None, None, None, None, reason)
    if kind is None:
        has = [
            ", ".join(sorted({k for p in SCORED_PHASES for k in _known(run, p) if PEAK in k}))
            or "none"
            for run in (baseline, candidate)
        ]
        reason = (
            "no kind of peak that both runs have in the same phase, prefill or decode "
            f"(baseline: {has[0]}; candidate: {has[1]})"
        )
        return Row(key, "peak memory", "B", "lower", None, None, None, None, reason)
    before, after = (
        Value(max(run.memory[phase][kind] or 0 for phase in phases))
        for run in (baseline, candidate)
    )
    return _row(key, f"peak memory ({kind})", "B", before, after, across)


def _paper_rows(baseline: Run, candidate: Run) -> Iterator[Row]:
    """What stands in for size and speed in the paper's Table 3 (METHODS 5.2)."""
    before, after = (Value(run.artifact.counts.parameters) for run in (baseline, candidate))
    yield _row("parameters", "parameters, as size", "parameters", before, after)
    before, after = (Value(_paper_macs(run)) for run in (baseline, candidate))
    yield _row("macs", f"MACs of {metrics.PAPER_TOKENS} tokens, as speed", "MAC", before, after)


def _paper_macs(run: Run) -> int:
    counts = run.artifact.counts
    if counts.linear_macs_per_token <= 0 or counts.head_macs_per_token <= 0:
        return 0  # not counted, as in a published figure: the row then has no ratio
    macs = metrics.Macs(counts.linear_macs_per_token, counts.head_macs_per_token)
    return metrics.paper_macs(macs, quantized=is_quantized(run))


def _row(
    key: str,
    quantity: str,
    unit: str,
    baseline: Value | None,
    candidate: Value | None,
    across: str | None = None,
) -> Row:
    better: Better = "higher" if unit in RATES else "lower"
    ratio, error, reason = None, None, None
    if baseline is None or candidate is None:
        side = "baseline" if baseline is None else "candidate"
        reason = f"the {side} does not have it, and {UNLIKE}"
    elif baseline.median <= 0 or candidate.median <= 0:
        side = "baseline" if baseline.median <= 0 else "candidate"
        reason = f"the {side} has 0"
    else:
        ratio, error = ratio_of(baseline, candidate, better)
    label = across if ratio is not None else None
    return Row(key, quantity, unit, better, baseline, candidate, ratio, error, reason, label)


def _score(rows: Sequence[Row], memory: str | None) -> Score:
    """SLMQ_infer of size, speed and memory, in this order.

    With s = 100 sqrt(sum r^2 / 3): error = 100^2 / (3 s) sqrt(sum (r dr)^2).
    """
    parts = tuple(row.key for row in rows)
    across = next((row.across for row in rows if row.across), None)
    ratios = [row.ratio for row in rows if row.ratio is not None]
    if len(ratios) < len(rows):
        missing = ", ".join(row.quantity for row in rows if row.ratio is None)
        return Score(None, None, parts, memory, f"no ratio of: {missing}", across)
    size, speed, peak = ratios
    value = metrics.slmq_infer(peak, speed, size)
    known = [
        row.ratio * row.error for row in rows if row.ratio is not None and row.error is not None
    ]
    error = 100**2 / (3 * value) * math.hypot(*known) if known else None
    return Score(value, error, parts, memory, None, across)


def _timed(series: Series) -> Value:
    return Value(series.median, series.spread if len(series.values) > 1 else None)


def _known(run: Run, phase: str) -> set[str]:
    """The kinds of memory that ``run`` could read in ``phase``."""
    return {kind for kind, count in run.memory.get(phase, {}).items() if count is not None}


def _memory(run: Run, phase: str, kind: str) -> Value | None:
    count = run.memory.get(phase, {}).get(kind)
    return None if count is None else Value(count)


def _preference(kind: str) -> int:
    return next((i for i, word in enumerate(PREFERRED) if word in kind), len(PREFERRED))
