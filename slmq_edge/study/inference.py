"""Track 2 of a study: memory, speed, energy and size of every run, beside its device's baseline.

    SLMQ_infer = 100 sqrt((memory ratio^2 + speed ratio^2 + size ratio^2) / 3)

Memory and speed are held against the baseline of the same device, model and workload, in the same
kind of memory; size against 2 bytes a parameter, which is what a float16 checkpoint takes on every
device. So scores of two devices rest on like terms, though raw memory of theirs never meets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slmq_edge import bounds, compare, energy, metrics
from slmq_edge.caveats import IMPLAUSIBLE
from slmq_edge.errors import SlmqError
from slmq_edge.results import Run
from slmq_edge.study.collect import Filed
from slmq_edge.study.ratios import Interval, interval
from slmq_edge.study.subjects import Subject

# Of several float runs of one device, which is the baseline: what the paper's is, first.
PREFERRED = ("fp16", "bf16", "fp32")
CHECKPOINT_BYTES = 2  # a parameter


@dataclass(frozen=True)
class Place:
    """A device, as far as runs tell it from another. chip: its GPU, or its CPU's model."""

    name: str
    kind: str
    chip: str | None

    @property
    def title(self) -> str:
        known = self.chip and self.chip.lower() not in self.name.lower()
        return f"{self.name} ({self.chip})" if known else self.name


@dataclass(frozen=True)
class Row:
    """One run. rates in tokens/s, memory and size in bytes.

    memory_kind: of ``memory``, which the ratio is of too. tokens_per_joule: of decoding, gross.
    smaller: size ratio. less, faster, prompt: ratios to the baseline, of memory, decoding, prefill.
    score: SLMQ_infer, its interval from that of the speed. reason: why there is none.
    """

    subject: Subject
    place: Place
    path: str
    run: Run
    baseline: Subject | None
    prefill: float
    decode: float
    memory_kind: str | None
    memory: float | None
    size: int
    tokens_per_joule: float | None
    smaller: float | None
    less: float | None
    faster: Interval | None
    prompt: Interval | None
    score: Interval | None
    reason: str | None = None

    @property
    def is_baseline(self) -> bool:
        return self.baseline is not None and self.reason == BASELINE


BASELINE = "the baseline: the others are held against it"
ITSELF = Interval(1.0, 1.0, 1.0)


def inference(found: Sequence[Subject], baseline: str | None = None) -> tuple[Row, ...]:
    """A row for every run: device by device, models together, as subjects come.

    baseline: scheme of the baselines, of method none; ``None``: the preferred one of each device.
    """
    every = [(one, filed) for one in found for filed in one.runs]
    places = list(dict.fromkeys(place_of(filed.value) for _, filed in every))
    rows = []
    for place in places:
        here = [(one, filed) for one, filed in every if place_of(filed.value) == place]
        for model in dict.fromkeys(one.model for one, _ in here):
            mine = [(one, filed) for one, filed in here if one.model == model]
            rows += [_row(*pair, place, _baseline(pair[1].value, mine, baseline)) for pair in mine]
    return tuple(rows)


def place_of(run: Run) -> Place:
    """The device of a run; of its board's name alone, two machines would be one."""
    gpu = run.environment.get("gpu")
    chip = gpu.get("name") if isinstance(gpu, Mapping) else gpu
    if run.device.kind != "cuda" or not chip:
        chip = run.environment.get("cpu_model") or chip
    return Place(run.device.name, run.device.kind, None if chip is None else str(chip))


Member = tuple[Subject, Filed[Run]]


def _baseline(run: Run, mine: Sequence[Member], scheme: str | None) -> Member | None:
    """The float run of the same workload and runtime that this one is held against."""
    floats = [
        (one, filed)
        for one, filed in mine
        if one.is_float
        and scheme in (None, one.scheme)
        and _work(filed.value) == _work(run)
        and _is_sound(filed.value)
    ]
    same = str(run.artifact.runtime.get("kind"))
    return min(
        floats,
        key=lambda pair: (pair[0].runtime != same, PREFERRED.index(pair[0].scheme), pair[1].path),
        default=None,
    )


def _work(run: Run) -> tuple[int, int]:
    return run.workload.prompt_tokens, run.workload.new_tokens


def _is_sound(run: Run) -> bool:
    return not implausible(run)


def implausible(run: Run) -> str | None:
    """What of a run is beyond what its device can do; ``None``: nothing."""
    said = [caveat.advice for caveat in run.caveats if caveat.code == IMPLAUSIBLE]
    return next(iter([*said, *bounds.implausible(run)]), None)


def _row(one: Subject, filed: Filed[Run], place: Place, base: Member | None) -> Row:
    run = filed.value
    kind, memory = _memory(run)
    used = energy.of(run.power or {}, "decode")
    count = run.artifact.counts.parameters
    row = Row(
        subject=one,
        place=place,
        path=filed.path,
        run=run,
        baseline=base[0] if base else None,
        prefill=run.prefill_rate.median,
        decode=run.decode_rate.median,
        memory_kind=kind,
        memory=memory,
        size=run.artifact.bundle_bytes,
        tokens_per_joule=used.tokens_per_joule if isinstance(used, energy.Energy) else None,
        smaller=CHECKPOINT_BYTES * count / run.artifact.bundle_bytes if count > 0 else None,
        less=None,
        faster=None,
        prompt=None,
        score=None,
        reason="no float run of this model, workload and device to hold it against",
    )
    if (wrong := implausible(run)) is not None:
        return dataclasses.replace(row, reason=f"implausible: {wrong}")
    return row if base is None else _against(row, base)


def _against(row: Row, base: Member) -> Row:
    """The row with its ratios; of the baseline itself, all are 1."""
    other = base[1].value
    try:
        memory = compare.compare(other, row.run).row("peak_memory")
    except SlmqError as error:
        return dataclasses.replace(row, reason=str(error))
    rates = [
        interval(before.values, after.values, "higher")
        for before, after in (
            (other.decode_rate, row.run.decode_rate),
            (other.prefill_rate, row.run.prefill_rate),
        )
    ]
    own = base[1].path == row.path
    found = dataclasses.replace(
        row,
        less=memory.ratio,
        memory=memory.candidate.median if memory.candidate else row.memory,
        faster=ITSELF if own else rates[0],
        prompt=ITSELF if own else rates[1],
        reason=BASELINE if own else None,
    )
    return dataclasses.replace(found, score=_score(found), reason=found.reason or memory.reason)


def _score(row: Row) -> Interval | None:
    """SLMQ_infer, and what it would be at either end of the speed's interval."""
    if row.less is None or row.smaller is None or row.faster is None:
        return None
    less, smaller = row.less, row.smaller
    value, low, high = (
        None if faster is None else metrics.slmq_infer(less, faster, smaller)
        for faster in row.faster
    )
    assert value is not None, "a ratio has a value"
    return Interval(value, low, high)


def _memory(run: Run) -> tuple[str | None, float | None]:
    """The kind of peak that a run is scored by, and how much, as against itself."""
    kind, phases = compare.scored_memory(run, run)
    if kind is None:
        return None, None
    if kind == compare.DEVICE:
        return kind, float(sum((run.device_memory or {}).values()))
    return kind, float(max(run.memory[phase][kind] or 0 for phase in phases))
