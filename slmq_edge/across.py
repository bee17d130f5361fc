"""Many runs: every method on every device, each against the full precision of its own device.

A place is a device with a runtime, as it was set. Its baseline ran there in full precision, through
the same runtime: so memory is of one kind, and speed of one machine. Size is the model's float16
checkpoint over the artifact's weights everywhere. What remains unlike between places is the
baseline's precision: it stands in every row, and where it differs the places are set beside each
other only on demand (``mixed``), and labelled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmq_edge import differences
from slmq_edge.compare import Comparison, Row, compare, implausible, reference_of
from slmq_edge.errors import SlmqError
from slmq_edge.labels import distinct
from slmq_edge.quantities import MEMORY, SIZE, SPEED
from slmq_edge.rankings import PREFILL, RANKED, ranking
from slmq_edge.results import Run
from slmq_edge.runner.environment import IDENTITY
from slmq_edge.sides import Side, grouped, is_float, key, precision, work
from slmq_edge.transfer import Transfer, transfer

PREFERRED = ("float16", "bfloat16", "float32")  # of baselines; sizes are held against the first


@dataclass(frozen=True)
class Cell:
    """One artifact in its place, against the place's baseline. method: with its scheme."""

    method: str
    place: str
    precision: str
    comparison: Comparison

    @property
    def size(self) -> Row:
        return self.comparison.row(SIZE)

    @property
    def memory(self) -> Row:
        return self.comparison.row(MEMORY)

    @property
    def prefill(self) -> Row:
        return self.comparison.row(PREFILL)

    @property
    def decode(self) -> Row:
        return self.comparison.row(SPEED)


@dataclass(frozen=True)
class Place:
    """baseline: how it is called; reference: what it scores itself, for the size that it has."""

    name: str
    device: str
    kind: str
    runtime: str
    baseline: str
    precision: str
    reference: float | None
    memory: tuple[str, ...]
    side: Side
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Doubt:
    """A caveat of a run, and whose."""

    code: str
    advice: str
    method: str
    place: str


@dataclass(frozen=True)
class Matrix:
    """One model and one workload on all places.

    methods: every row's name, in the order of the first run. mixed: the label of places whose
    baselines differ in precision. differences: of environments.
    """

    model: str
    work: Mapping[str, Any]
    methods: tuple[str, ...]
    places: tuple[Place, ...]
    transfers: tuple[Transfer, ...]
    mixed: str | None
    differences: tuple[str, ...]
    doubts: tuple[Doubt, ...]

    def cells(self) -> list[Cell]:
        """By method, then by place: a GPU's row stands beside those of the edge."""
        listed = [cell for place in self.places for cell in place.cells]
        return sorted(listed, key=lambda cell: self.methods.index(cell.method))


@dataclass(frozen=True)
class Across:
    """aside: what could not be compared, and why."""

    matrices: tuple[Matrix, ...]
    aside: tuple[str, ...]


def across(runs: Iterable[Run], mixed: bool = False) -> Across:
    """Compare all runs, each with the baseline of its own place.

    Several runs of one artifact in one place count as one, with the spread between them.

    Args:
        runs: of any models, workloads, devices and methods.
        mixed: whether places may be set beside each other whose baselines differ in precision.

    Raises:
        SlmqError: no place has a baseline and something to compare with it, or, unless ``mixed``,
            the baselines of one model differ in precision.
    """
    aside: list[str] = []
    usable = []
    for run in runs:
        found = implausible(run)
        aside += [f"{_called(run)}: implausible: {line}" for line in found[:1]]
        usable += [] if found else [run]
    by_work: dict[str, list[Side]] = {}
    for side in grouped(usable):
        by_work.setdefault(key([side.run.artifact.model, work(side.run)]), []).append(side)
    matrices = [_matrix(sides, aside) for sides in by_work.values()]
    kept = tuple(matrix for matrix in matrices if matrix is not None)
    if not kept:
        raise SlmqError(
            "nothing can be compared: on no device is there a run in full precision (method none, "
            "scheme fp32) beside another of the same model, runtime and workload"
        )
    for matrix in kept:
        if matrix.mixed and not mixed:
            raise SlmqError(
                f"{matrix.model}: {matrix.mixed}; measure the same precision everywhere, or say "
                "--mixed-baselines"
            )
    return Across(kept, tuple(aside))


def _matrix(sides: Sequence[Side], aside: list[str]) -> Matrix | None:
    """All sides are of one model and workload."""
    by_place: dict[str, list[Side]] = {}
    for side in sides:
        by_place.setdefault(key(_place(side.run)), []).append(side)
    names = place_names([members[0].run for members in by_place.values()])
    chosen = _baselines([*by_place.values()])
    kept: list[tuple[str, Side, list[Side]]] = []
    for name, baseline, members in zip(names, chosen, by_place.values(), strict=True):
        told = ", ".join(_method(side.run) for side in members)
        where = f"{members[0].run.artifact.model} on {name}"
        if baseline is None:
            aside.append(f"{where}: no run in full precision to hold {told} against")
        elif len(members) == 1:
            aside.append(f"{where}: nothing but {told}")
        else:
            kept.append((name, baseline, members))
    if not kept:
        return None
    methods = _methods([members for _, _, members in kept])
    places = tuple(
        _filled(name, baseline, dict(zip(of, members, strict=True)))
        for (name, baseline, members), of in zip(kept, methods, strict=True)
    )
    named = {
        name: [(label, run) for label, side in zip(of, members, strict=True) for run in side.runs]
        for (name, _, members), of in zip(kept, methods, strict=True)
    }
    first = sides[0].run
    return Matrix(
        model=first.artifact.model,
        work=work(first),
        methods=tuple(dict.fromkeys(label for of in methods for label in of)),
        places=places,
        transfers=tuple(_transfers(places)),
        mixed=_mixed(places),
        differences=tuple(differences.among(named)),
        doubts=_doubts(named),
    )


def _place(run: Run) -> dict[str, Any]:
    """All that must be equal for two artifacts to be compared as on one machine."""
    told = run.environment
    return {
        "runtime": _runtime(run),
        "origin": run.origin,
        "power mode": told.get("power_mode"),
        "threads": None if told.get("gpu") else run.workload.threads,
        "gpu": told.get("gpu"),
        "cpu": told.get("cpu_model"),
        "cores": told.get("cores"),
        "device": [run.device.name, run.device.kind],
    }


def place_names(runs: Sequence[Run]) -> list[str]:
    """How the place of every run is called: alike where it is one, and told apart where not."""
    keys = [key(_place(run)) for run in runs]
    places = dict(zip(keys, runs, strict=True))
    names = distinct([*map(_place_name, places.values())], [*map(_place, places.values())])
    called = dict(zip(places, names, strict=True))
    return [called[one] for one in keys]


def _place_name(run: Run) -> str:
    origin = "" if run.origin == "measured" else f", {run.origin}"
    return f"{run.device.name} ({_runtime(run)}{origin})"


def _runtime(run: Run) -> str:
    return str(run.artifact.runtime.get("kind", "unknown"))


def _method(run: Run) -> str:
    return f"{run.artifact.method} {run.artifact.scheme_ran}"


def _called(run: Run) -> str:
    return f"{run.artifact.model} {_method(run)} on {_place_name(run)}"


def _methods(places: Sequence[Sequence[Side]]) -> list[list[str]]:
    """How every side is called: alike in all places, and distinct in its own."""
    runs = [(place, side.run) for place, members in enumerate(places) for side in members]
    names = distinct(
        [_method(run) for _, run in runs],
        [_made(run) for _, run in runs],
        [place for place, _ in runs],
    )
    found = iter(names)
    return [[next(found) for _ in members] for members in places]


def _made(run: Run) -> dict[str, Any]:
    """What tells two artifacts of one method and scheme apart, what says most first."""
    artifact = run.artifact
    return {
        "weights": artifact.weights,
        "activations": artifact.activation_mode,
        "KV cache": artifact.kv_cache,
        "lm_head": artifact.lm_head,
        "embedding bits": artifact.weight_storage_bits.get("embedding"),
        "bundle": artifact.bundle_sha256[:8],
        **{name: run.environment.get(name) for name in IDENTITY},
    }


def _baselines(places: Sequence[Sequence[Side]]) -> list[Side | None]:
    """The baseline of each place: of a precision that all have, where there is one."""
    full = [[side for side in members if is_float(side.run)] for members in places]
    has = [{precision(side.run) for side in members} for members in full if members]
    common = set.intersection(*has) if has else set()
    found: list[Side | None] = []
    for members in full:
        eligible = [side for side in members if precision(side.run) in common] or members
        found.append(min(eligible, key=_rank, default=None))
    return found


def _rank(side: Side) -> tuple[int, int, str]:
    """The preferred precision, then most runs, then the oldest."""
    words = precision(side.run)
    place = PREFERRED.index(words) if words in PREFERRED else len(PREFERRED)
    return place, -len(side.runs), side.run.created


def _filled(name: str, baseline: Side, members: Mapping[str, Side]) -> Place:
    label = next(label for label, side in members.items() if side is baseline)
    words = precision(baseline.run)
    cells = tuple(
        Cell(method, name, words, compare(baseline, side))
        for method, side in members.items()
        if side is not baseline
    )
    memory = dict.fromkeys(cell.comparison.score.memory or "none shared" for cell in cells)
    return Place(
        name=name,
        device=baseline.run.device.name,
        kind=baseline.run.device.kind,
        runtime=_runtime(baseline.run),
        baseline=label,
        precision=words,
        reference=reference_of(baseline),
        memory=tuple(memory),
        side=baseline,
        cells=cells,
    )


def _mixed(places: Sequence[Place]) -> str | None:
    """Words for baselines of unequal precision."""
    if len({place.precision for place in places}) < 2:
        return None
    told = ", ".join(f"{place.precision} on {place.name}" for place in places)
    return f"the baselines differ in precision ({told}), so scores and ratios of places do too"


def _doubts(named: Mapping[str, Sequence[tuple[str, Run]]]) -> tuple[Doubt, ...]:
    found = [
        Doubt(caveat.code, caveat.advice, method, place)
        for place, members in named.items()
        for method, run in members
        for caveat in run.caveats
    ]
    return tuple(dict.fromkeys(found))


def _transfers(places: Sequence[Place]) -> list[Transfer]:
    """Every quantity, and every pair of places."""
    found = []
    for by in RANKED:
        ranked = [
            ranking(
                by,
                place.name,
                place.baseline,
                {cell.method: cell.comparison for cell in place.cells},
                stream,
            )
            for stream, place in enumerate(places, start=1)
        ]
        found += [transfer(by, *pair) for pair in itertools.combinations(ranked, 2)]
    return found
