"""Track 2 of a study: memory, speed, energy and size of what was timed, beside its baseline.

Which runs are of one place, which is its baseline, and what may be compared, `across` decides: the
same as `slmq-edge compare` has it. Runs that have nothing to be held against are here all the same,
with their figures and the reason.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from slmq_edge import across, energy, quantities
from slmq_edge.across import Across, Matrix
from slmq_edge.compare import Comparison, implausible
from slmq_edge.compare import Row as Compared
from slmq_edge.errors import SlmqError
from slmq_edge.intervals import Interval
from slmq_edge.quantities import MEMORY, SPEED
from slmq_edge.rankings import PREFILL
from slmq_edge.results import Run
from slmq_edge.sides import Side, float16_bytes, grouped, is_float, key, precision, work
from slmq_edge.study.collect import Filed
from slmq_edge.study.subjects import Subject

BASELINE = "the baseline: the others are held against it"
ASKED_ANOTHER = "another baseline was asked for"
ALONE = "no float run of this model, workload, runtime and device to hold it against"


@dataclass(frozen=True)
class Place:
    """A device with a runtime, as it was set. work: what was asked, where a study asks several."""

    name: str
    kind: str
    chip: str | None
    work: str = ""

    @property
    def title(self) -> str:
        known = self.chip and self.chip.lower() not in self.name.lower()
        name = f"{self.name}, {self.chip}" if known else self.name
        return f"{name}, {self.work}" if self.work else name


@dataclass(frozen=True)
class Row:
    """An artifact in its place. paths: of its runs, which count as one.

    baseline: how its place's baseline is called, and in what precision that is. comparison: with
    it; ``None`` of the baseline itself, and with the ``reason`` why there is none. own: SLMQ_infer
    of a baseline.
    """

    subject: Subject
    place: Place
    paths: tuple[str, ...]
    side: Side
    baseline: str | None = None
    precision: str | None = None
    comparison: Comparison | None = None
    is_baseline: bool = False
    own: float | None = None
    reason: str | None = None

    @property
    def run(self) -> Run:
        return self.side.run

    @property
    def decode(self) -> float:
        """Tokens/s, as of all rates: the median run's median."""
        return self._median(lambda run: run.decode_rate.median)

    @property
    def prefill(self) -> float:
        return self._median(lambda run: run.prefill_rate.median)

    @property
    def forward(self) -> float | None:
        """Tokens/s of the paper's passes; None where not every run has some."""
        rates = [run.forward_rate for run in self.side.runs]
        told = [rate.median for rate in rates if rate is not None]
        return statistics.median(told) if len(told) == len(rates) else None

    @property
    def first_token(self) -> float:
        """In seconds."""
        return self._median(lambda run: run.series["prefill_seconds"].median)

    @property
    def size(self) -> int:
        """Bytes of the graph with its weights, which the size ratio is of."""
        return self.run.artifact.weights_bytes

    @property
    def smaller(self) -> float | None:
        """A float16 checkpoint, 2 bytes a parameter, over the size."""
        count = float16_bytes(self.run)
        return count / self.size if min(count, self.size) > 0 else None

    @property
    def memory(self) -> tuple[str, float] | None:
        """The peak that is scored: its kind, and bytes."""
        peak, told = quantities.peak(*self._sides())
        if told is None or peak.candidate is None:
            return None
        kind = peak.name.removeprefix("peak memory (").removesuffix(")")
        return kind, statistics.median(value for values in peak.candidate for value in values)

    @property
    def tokens_per_joule(self) -> float | None:
        """Of decoding, gross."""
        found = [energy.of(run.power or {}, "decode") for run in self.side.runs]
        told = [one.tokens_per_joule for one in found if isinstance(one, energy.Energy)]
        return statistics.median(told) if told else None

    @property
    def less(self) -> Compared | None:
        """Memory, against the baseline's of the same kind."""
        return self._compared(MEMORY)

    @property
    def faster(self) -> Compared | None:
        return self._compared(SPEED)

    @property
    def prompt(self) -> Compared | None:
        return self._compared(PREFILL)

    @property
    def score(self) -> Interval | None:
        """SLMQ_infer; a baseline's has no interval."""
        if self.own is not None:
            return Interval(self.own, None, None)
        score = None if self.comparison is None else self.comparison.score
        if score is None or score.value is None:
            return None
        return Interval(score.value, score.low, score.high)

    @property
    def is_implausible(self) -> bool:
        return any(implausible(run) for run in self.side.runs)

    @property
    def is_unsteady(self) -> bool:
        """Whether the repetitions of a run drifted."""
        return any(
            caveat.code == "inconclusive" for run in self.side.runs for caveat in run.caveats
        )

    def _median(self, get: Callable[[Run], float]) -> float:
        return statistics.median(map(get, self.side.runs))

    def _sides(self) -> tuple[Side, Side]:
        return (self.comparison.baseline if self.comparison else self.side), self.side

    def _compared(self, name: str) -> Compared | None:
        found = None if self.comparison is None else self.comparison.row(name)
        return None if found is None or found.ratio is None else found


@dataclass(frozen=True)
class Inference:
    """rows: place by place, models together, as subjects come. matrices: of models on all places.

    mixed: whether places whose baselines differ in precision are set beside each other.
    """

    rows: tuple[Row, ...]
    matrices: tuple[Matrix, ...]
    mixed: bool


def inference(
    found: Sequence[Subject], baseline: str | None = None, mixed: bool = False
) -> Inference:
    """Hold everything that was timed against the baseline of its place.

    baseline: scheme of the baselines, of method none; ``None``: the one that `across` prefers.
    """
    filed = [one for subject in found for one in subject.runs]
    barred = [one for one in filed if baseline and is_float(one.value) and _is_not(one, baseline)]
    try:
        told = across.across([one.value for one in filed if one not in barred], mixed=True)
    except SlmqError:
        told = Across((), ())
    several = len({key(work(one.value)) for one in filed}) > 1
    rows = [row for matrix in told.matrices for row in _of_matrix(matrix, found, several)]
    known = {path for row in rows for path in row.paths}
    left = [one for one in filed if one.path not in known]
    rows += _left(left, found, {one.path for one in barred}, several)
    places = list(dict.fromkeys(row.place for row in rows))
    order = {subject: place for place, subject in enumerate(found)}
    rows.sort(key=lambda row: (places.index(row.place), order[row.subject]))
    return Inference(tuple(rows), told.matrices, mixed)


def _is_not(one: Filed[Run], scheme: str) -> bool:
    return one.value.artifact.scheme_ran != scheme


def _of_matrix(matrix: Matrix, found: Sequence[Subject], several: bool) -> Iterator[Row]:
    for place in matrix.places:
        here = _place(place.name, place.side.run, several)
        base = _row(place.side, here, found)
        yield dataclasses.replace(
            base,
            baseline=place.baseline,
            precision=place.precision,
            is_baseline=True,
            own=place.reference,
            reason=BASELINE,
        )
        for cell in place.cells:
            yield dataclasses.replace(
                _row(cell.comparison.candidate, here, found),
                baseline=place.baseline,
                precision=place.precision,
                comparison=cell.comparison,
                reason=cell.comparison.score.reason,
            )


def _left(
    filed: Iterable[Filed[Run]], found: Sequence[Subject], barred: set[str], several: bool
) -> Iterator[Row]:
    sides = grouped(one.value for one in filed)
    names = across.place_names([side.run for side in sides])
    for side, name in zip(sides, names, strict=True):
        run = side.run
        row = _row(side, _place(name, run, several), found)
        wrong = implausible(run)
        reason = f"implausible: {wrong[0]}" if wrong else ALONE
        if barred & {*row.paths}:
            reason = ASKED_ANOTHER
        yield dataclasses.replace(row, precision=precision(run), reason=reason)


def _row(side: Side, place: Place, found: Sequence[Subject]) -> Row:
    """The row of a side, whose runs are found again among the subjects' by identity."""
    mine = [
        (subject, one) for subject in found for one in subject.runs if _is_in(one.value, side.runs)
    ]
    return Row(mine[0][0], place, tuple(one.path for _, one in mine), side)


def _is_in(run: Run, runs: Iterable[Run]) -> bool:
    return any(run is one for one in runs)


def asked(run: Run) -> str:
    """What a run was of: its prompt, its new tokens, and its protocol where it has one."""
    protocol = work(run).get("protocol")
    told = f"prompt {run.workload.prompt_tokens}, {run.workload.new_tokens} new tokens"
    return f"{told}, protocol {protocol}" if protocol else told


def _place(name: str, run: Run, several: bool) -> Place:
    told = asked(run) if several else ""
    gpu = run.environment.get("gpu")
    chip = gpu.get("name") if isinstance(gpu, Mapping) else gpu
    chip = chip if run.device.kind == "cuda" and chip else run.environment.get("cpu_model") or chip
    return Place(name, run.device.kind, None if chip is None else str(chip), told)
