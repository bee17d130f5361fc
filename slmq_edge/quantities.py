"""What of two sides may be set beside each other: sizes, times, joules, memory of one kind.

Memory enters SLMQ_infer as the largest peak of a kind that both sides have; unlike kinds are never
compared. Size enters it as the model's float16 checkpoint over the artifact's weights, whatever
the baseline stores: so a score says the same thing on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from slmq_edge import differences, energy, metrics
from slmq_edge.intervals import Better, Sample
from slmq_edge.results import Run
from slmq_edge.runner.forward import LOGITS
from slmq_edge.sides import Side, float16_bytes, is_quantized

PHASES = ("start", "load", "prefill", "decode")
SCORED_PHASES = ("prefill", "decode")
PEAK = "peak"  # a kind with this in its name is a high-water mark, any other a snapshot
ON_GPU = "gpu_"  # a kind with this in its name is of a GPU's memory
PREFERRED = ("gpu", "torch", "system")  # which peak is scored when a machine has several
REST = "rest"  # of a device's memory, which not every device tells
UNLIKE = "unlike kinds are never compared"
UNLIKE_PARTS = "two runtimes that tell of other parts of a device's memory"
TORCH_PEAK = "torch_peak_allocated"  # of tensors on a GPU: what the paper prints
DEVICE = "device memory"  # scored where both sides have some: the model is there
RATES = ("tokens/s", "tokens/J")  # more is better; of all else, less
SIZE, SPEED, MEMORY = "float16_bytes", "decode_rate", "peak_memory"  # SLMQ_infer, in this order
OF_FLOAT16 = "held against the candidate's model in float16, 2 bytes a parameter"


@dataclass(frozen=True)
class Quantity:
    """One quantity of both sides; None where a side does not have it.

    key: stable, for machines. unit: ``B``, ``s``, one of `RATES`, ``parameters`` or ``MAC``.
    exact: counted, not read off a running machine. across: both devices' names, where the machine
    counts. reason: why there is no ratio. note: what a reader must know of it.
    """

    key: str
    name: str
    unit: str
    baseline: Sample | None
    candidate: Sample | None
    exact: bool = False
    across: str | None = None
    reason: str | None = None
    note: str | None = None

    @property
    def better(self) -> Better:
        return "higher" if self.unit in RATES else "lower"


def measured(baseline: Side, candidate: Side) -> Iterator[Quantity]:
    """Sizes, times, joules and memory, but for the peak that is scored."""
    work, across = baseline.run.workload, differences.across(baseline.run, candidate.run)

    def of(key: str, name: str, unit: str, get: Callable[[Run], Sequence[float]]) -> Quantity:
        exact = unit == "B"
        sides = baseline.sample(get), candidate.sample(get)
        return Quantity(key, name, unit, *sides, exact, None if exact else across)

    yield of("bundle_bytes", "size on disk", "B", lambda run: [run.artifact.bundle_bytes])
    yield of("weights_bytes", "weights", "B", lambda run: [run.artifact.weights_bytes])
    yield _of_float16(candidate)
    yield of("load_seconds", "load", "s", lambda run: run.series["load_seconds"].values)
    prefill, decode = f"prefill, {work.prompt_tokens} tokens", f"decode, {work.new_tokens} tokens"
    yield of("prefill_rate", prefill, "tokens/s", lambda run: run.prefill_rate.values)
    first = "time to first token"
    yield of("ttft_seconds", first, "s", lambda run: run.series["prefill_seconds"].values)
    yield of(SPEED, decode, "tokens/s", lambda run: run.decode_rate.values)
    yield from _forward(baseline, candidate)
    yield from _joules(baseline, candidate)
    yield from _memory(baseline, candidate)
    yield from _device_memory(baseline, candidate)


def papers(baseline: Side, candidate: Side) -> Iterator[Quantity]:
    """What stands in for size and speed in the paper's Table 3 (METHODS 5.2)."""
    sides = baseline, candidate
    before, after = (one.sample(lambda run: [run.artifact.counts.parameters]) for one in sides)
    yield Quantity("parameters", "parameters, as size", "parameters", before, after, True)
    before, after = (one.sample(lambda run: [paper_macs(run)]) for one in sides)
    name = f"MACs of {metrics.PAPER_TOKENS} tokens, as speed"
    yield Quantity("macs", name, "MAC", before, after, True)


def peak(baseline: Side, candidate: Side) -> tuple[Quantity, str | None]:
    """The memory that enters the score, and in words which that is."""
    kind, phases = scored_memory(baseline, candidate)
    across = differences.across(baseline.run, candidate.run)
    sides = baseline, candidate
    if kind == DEVICE:
        # A board that shares its memory tells no rest.
        found = [set(run.device_memory or {}) for one in sides for run in one.runs]
        parts = set.intersection(*found)
        if set.union(*found) - parts - {REST}:
            # They call what they hold by other names: what both tell is not the whole.
            unlike = f"{UNLIKE_PARTS}: {UNLIKE}"
            return Quantity(MEMORY, DEVICE, "B", None, None, reason=unlike), None
        before, after = (one.sample(lambda run: [_parts_bytes(run, parts)]) for one in sides)
        told = f"largest {DEVICE}, all parts that both tell of"
        return Quantity(MEMORY, DEVICE, "B", before, after, across=across), told
    if kind is None:
        reason = _elsewhere(baseline, candidate) or _no_peak(baseline, candidate)
        return Quantity(MEMORY, "peak memory", "B", None, None, reason=reason), None
    before, after = (one.sample(lambda run: [_largest(run, kind, phases)]) for one in sides)
    told = f"largest {kind} over {' and '.join(phases)}"
    return Quantity(MEMORY, f"peak memory ({kind})", "B", before, after, across=across), told


def scored_memory(baseline: Side, candidate: Side) -> tuple[str | None, tuple[str, ...]]:
    """Which memory enters SLMQ_infer: a peak of one kind, over phases that all runs have.

    The kind is None where they share no peak; `TORCH_PEAK` where torch computed on a GPU in both;
    `DEVICE`, of no phase, where all have such.
    """
    in_torch = tuple(
        phase
        for phase in SCORED_PHASES
        if all(TORCH_PEAK in _known(side, phase) for side in (baseline, candidate))
    )
    if in_torch:
        return TORCH_PEAK, in_torch
    if all(run.device_memory is not None for run in (*baseline.runs, *candidate.runs)):
        return DEVICE, ()
    if _elsewhere(baseline, candidate):
        return None, ()
    # On a GPU the process's own peak is not the model's; what NVML tells is read now and then.
    counts = ON_GPU if _on_gpu(baseline.run) else PEAK
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


def _of_float16(candidate: Side) -> Quantity:
    """The candidate's model as a float16 checkpoint, against what the candidate weighs."""
    before = candidate.sample(lambda run: [float16_bytes(run)])
    after = candidate.sample(lambda run: [run.artifact.weights_bytes])
    return Quantity(SIZE, "weights, of float16's", "B", before, after, True, note=OF_FLOAT16)


def _forward(baseline: Side, candidate: Side) -> Iterator[Quantity]:
    """Whole forward passes of a protocol, where either side has some; of like passes alone."""
    sides = baseline, candidate
    before, after = (_passes(one) for one in sides)
    if before is None and after is None:
        return
    logits = {str(run.environment.get(LOGITS)) for one in sides for run in one.runs}
    unlike = f"logits of {' against '.join(sorted(logits))} positions: {UNLIKE}"
    reason = unlike if None not in (before, after) and len(logits) > 1 else None
    if None not in (before, after) and len({_stays_in_torch(one) for one in sides}) > 1:
        reason = f"torch's end before logits are handed to the host, others' behind it: {UNLIKE}"
    name = f"forward pass, {baseline.run.workload.prompt_tokens} tokens"
    across = differences.across(baseline.run, candidate.run)
    yield Quantity("forward_rate", name, "tokens/s", before, after, across=across, reason=reason)


def _stays_in_torch(one: Side) -> bool:
    """Whether passes end where the logits were computed; see `runner.forward`."""
    return any(run.environment.get("torch") is not None for run in one.runs)


def _passes(one: Side) -> Sample | None:
    rates = [run.forward_rate for run in one.runs]
    told = tuple(rate.values for rate in rates if rate is not None)
    return told if len(told) == len(rates) else None


def _joules(baseline: Side, candidate: Side) -> Iterator[Quantity]:
    """Tokens per joule, gross, where either side has them; never of one rail against another's."""
    across = differences.across(baseline.run, candidate.run)
    for phase in energy.WORK:
        before, after = (_energies(one, phase) for one in (baseline, candidate))
        if before is None and after is None:
            continue
        reason = None
        if before is not None and after is not None:
            sources = list(dict.fromkeys(source for source, _ in (*before, *after)))
            reason = f"{' against '.join(sources)}: {UNLIKE}" if len(sources) > 1 else None
        first, second = (
            None if found is None else tuple((rate,) for _, rate in found)
            for found in (before, after)
        )
        key, name = f"energy.{phase}", f"{phase}, tokens per joule"
        yield Quantity(key, name, "tokens/J", first, second, across=across, reason=reason)


def _energies(one: Side, phase: str) -> list[tuple[str, float]] | None:
    """What was read, and tokens per joule, of every run; None where one does not tell."""
    found = [energy.of(run.power or {}, phase) for run in one.runs]
    told = [
        (energy.subject(run.environment, each.source), each.tokens_per_joule)
        for run, each in zip(one.runs, found, strict=True)
        if isinstance(each, energy.Energy)
    ]
    return told if len(told) == len(one.runs) else None


def _memory(baseline: Side, candidate: Side) -> Iterator[Quantity]:
    """One for each phase and kind that either side could read; never one kind with another."""
    sides = baseline, candidate
    found = {phase for one in sides for phase in one.run.memory}
    phases = [*(phase for phase in PHASES if phase in found), *sorted(found - {*PHASES})]
    across, elsewhere = differences.across(baseline.run, candidate.run), _elsewhere(*sides)
    for phase in phases:
        for kind in sorted(_known(baseline, phase) | _known(candidate, phase)):
            before, after = (_of_kind(one, phase, kind) for one in sides)
            reason = None if before is None or after is None else elsewhere
            key, name = f"memory.{phase}.{kind}", f"{phase}: {kind}"
            yield Quantity(key, name, "B", before, after, across=across, reason=reason)


def _device_memory(baseline: Side, candidate: Side) -> Iterator[Quantity]:
    """One for each part of what lies on a device."""
    sides = baseline, candidate
    across = differences.across(baseline.run, candidate.run)
    for part in dict.fromkeys(part for one in sides for part in one.run.device_memory or {}):
        before, after = (_of_part(one, part) for one in sides)
        key, name = f"device_memory.{part}", f"device: {part}"
        yield Quantity(key, name, "B", before, after, across=across)


def _of_kind(one: Side, phase: str, kind: str) -> Sample | None:
    if kind not in _known(one, phase):
        return None
    return one.sample(lambda run: [run.memory[phase][kind] or 0])


def _of_part(one: Side, part: str) -> Sample | None:
    if any(part not in (run.device_memory or {}) for run in one.runs):
        return None
    return one.sample(lambda run: [_parts_bytes(run, {part})])


def _elsewhere(baseline: Side, candidate: Side) -> str | None:
    """Why the process's memory of the two is not of one kind; None where it is."""
    there = [_on_gpu(one.run) for one in (baseline, candidate)]
    if there[0] == there[1]:
        return None
    role = "baseline" if there[0] else "candidate"
    return f"the {role} has its model in a device's memory, not in the process's: {UNLIKE}"


def _no_peak(baseline: Side, candidate: Side) -> str:
    has = [
        ", ".join(sorted({k for p in SCORED_PHASES for k in _known(one, p) if PEAK in k})) or "none"
        for one in (baseline, candidate)
    ]
    return (
        "no kind of peak that both runs have in the same phase, prefill or decode "
        f"(baseline: {has[0]}; candidate: {has[1]})"
    )


def _on_gpu(run: Run) -> bool:
    """Whether the model lies in a device's memory and not in the process's."""
    return run.device_memory is not None or run.device.kind == "cuda"


def _known(one: Side, phase: str) -> set[str]:
    """The kinds of memory that all runs of a side could read in ``phase``."""
    return set.intersection(
        *(
            {kind for kind, count in run.memory.get(phase, {}).items() if count is not None}
            for run in one.runs
        )
    )


def _largest(run: Run, kind: str, phases: Sequence[str]) -> int:
    return max(run.memory[phase][kind] or 0 for phase in phases)


def _parts_bytes(run: Run, parts: set[str]) -> int:
    return sum((run.device_memory or {})[part] for part in parts)


def paper_macs(run: Run) -> int:
    """MACs as the paper's Table 3 has them; 0 where nobody counted."""
    counts = run.artifact.counts
    if counts.linear_macs_per_token <= 0 or counts.head_macs_per_token <= 0:
        return 0  # not counted, as in a published figure: the row then has no ratio
    macs = metrics.Macs(counts.linear_macs_per_token, counts.head_macs_per_token)
    return metrics.paper_macs(macs, quantized=is_quantized(run))


def _preference(kind: str) -> int:
    return next((i for i, word in enumerate(PREFERRED) if word in kind), len(PREFERRED))
