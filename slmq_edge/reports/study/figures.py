"""Document -> plots, by the section that they stand in. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from slmq_edge.analysis.distributions import Distributions
from slmq_edge.reports.plots import Point, bars, pareto
from slmq_edge.reports.plots import distributions as plots_of_distributions
from slmq_edge.reports.study.evidence import analysis_title, parts
from slmq_edge.reports.study.front import title_of
from slmq_edge.reports.study.layout import TIMES, listed
from slmq_edge.study.answer import Candidate
from slmq_edge.study.document import Document
from slmq_edge.study.inference import Row

WORST = 12  # parts of an analysis that are drawn
KEPT = "quality kept, full precision = 100"


@dataclass(frozen=True)
class Plot:
    """An ``<svg>``, and what is said below it."""

    svg: str
    caption: str
    is_wide: bool = False


@dataclass(frozen=True)
class Axis:
    """What quality is drawn against. of: ``None`` where a run does not have it."""

    title: str
    label: str
    of: Callable[[Row], float | None]
    smaller_is_better: bool


SIZE = Axis("Quality against size", "weights, MB", lambda row: row.size / 1e6, True)
AXES = (
    Axis("Quality against speed", "decode, tokens/s", lambda row: row.decode, False),
    Axis(
        "Quality against energy",
        "tokens per joule, decoding",
        lambda row: row.tokens_per_joule,
        False,
    ),
)


def trade_offs(found: Document) -> tuple[Plot, ...]:
    """Pareto fronts of every device and model, where at least two things have both figures."""
    plots: list[Plot] = []
    for model in dict.fromkeys(answer.model for answer in found.answers):
        mine = [answer for answer in found.answers if answer.model == model]
        # An artifact has one size, on however many devices it was timed.
        apart = {one.subject: one for answer in reversed(mine) for one in answer.candidates[::-1]}
        plots += _front([*apart.values()][::-1], SIZE, model)
        for answer in mine:
            for axis in AXES:
                plots += _front(answer.candidates, axis, title_of(answer))
    return tuple(plots)


def _front(candidates: Sequence[Candidate], axis: Axis, caption: str) -> Iterator[Plot]:
    points = [point for one in candidates if (point := _point(one, axis)) is not None]
    if len(points) > 1:
        svg = pareto(
            points,
            title=axis.title,
            x=axis.label,
            y=KEPT,
            smaller_is_better_x=axis.smaller_is_better,
        )
        yield Plot(svg, caption)


def _point(one: Candidate, axis: Axis) -> Point | None:
    row, kept = one.row, one.kept
    x = axis.of(row) if row is not None else None
    if row is None or x is None or (kept is None and not one.subject.is_float):
        return None
    return Point(
        x=x,
        y=kept.value if kept else 100.0,
        label=one.subject.name,
        series=one.subject.method,
        low=kept.low if kept else None,
        high=kept.high if kept else None,
        note="its repetitions were not steady" if row.is_unsteady and axis != SIZE else "",
    )


def overview(found: Document) -> tuple[Plot, ...]:
    """Figure 4: the three scores of every method, a plot for each device and model."""
    costs = {place: row.score for place, row in found.costs.items()}
    plots = []
    for answer in found.answers:
        groups = [
            (one.subject.name, scores)
            for one in answer.candidates
            if not one.subject.is_float and (scores := _scores(one, costs))
        ]
        if groups:
            svg = bars(groups, title="The three scores", unit="score", baseline=100.0)
            plots.append(Plot(svg, title_of(answer)))
    return tuple(plots)


Bar = tuple[str, float, float | None, float | None]


def _scores(one: Candidate, costs: Mapping[str, float | None]) -> list[Bar]:
    found: list[Bar] = []
    if one.kept is not None:
        name = "SLMQ_perf" if one.kept.is_perf else "kept"
        found.append((name, one.kept.value, one.kept.low, one.kept.high))
    if one.row is not None and one.row.score is not None:
        found.append(("SLMQ_infer", *one.row.score))
    made = one.subject.manifest
    cost = costs.get(made.path) if made else None
    if cost is not None:
        found.append(("SLMQ_quant", cost, None, None))
    return found


def distributions(found: Document) -> tuple[Plot, ...]:
    """Figure 3: for every method and scheme, models two by two."""
    by_method: dict[tuple[str, str], list[Distributions]] = {}
    for filed in found.study.distributions:
        one = filed.value
        by_method.setdefault((one.method, one.scheme), []).append(one)
    plots = []
    for (method, scheme), several in by_method.items():
        for start in range(0, len(several), 2):
            pair = several[start : start + 2]
            svg = plots_of_distributions(*pair)
            models = listed([one.model for one in pair])
            plots.append(Plot(svg, f"{method} {scheme}: {models}", is_wide=True))
    return tuple(plots)


def sensitivity(found: Document) -> tuple[Plot, ...]:
    """The parts of every analysis that cost most, each rounded alone."""
    plots = []
    for filed in found.study.analyses:
        worst = [
            (name, 1e3 * kl, None, None) for name, kl, _, _ in parts(filed.value)[:WORST] if kl
        ]
        if worst:
            svg = bars([("", worst)], title="The worst parts", unit="KL, 0.001 nats a token")
            plots.append(Plot(svg, analysis_title(filed.value)))
    return tuple(plots)


def speeds(found: Document) -> tuple[Plot, ...]:
    """How many times as fast as its device's baseline each artifact decodes, model by model."""
    plots = []
    for model in found.models:
        groups = []
        for place in dict.fromkeys(row.place for row in found.inference.rows):
            mine = [
                (row.subject.name, row.faster.ratio or 0.0, row.faster.low, row.faster.high)
                for row in found.inference.rows
                if row.place == place and row.subject.model == model and row.faster is not None
            ]
            if mine:
                groups.append((place.name, mine))
        if groups:
            unit = f"{TIMES} the baseline of the same device"
            plots.append(Plot(bars(groups, title="Decoding", unit=unit, baseline=1.0), model))
    return tuple(plots)
