"""Study -> Document: all that any report shows, computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from slmq_edge.errors import Damaged, NotFound
from slmq_edge.study import paper
from slmq_edge.study.accuracy import Accuracy, accuracy
from slmq_edge.study.answer import WITHIN, Answer, answers
from slmq_edge.study.collect import Filed, Manifest, Study
from slmq_edge.study.inference import Inference, inference
from slmq_edge.study.subjects import Subject, subjects
from slmq_edge.tracks import cost
from slmq_edge.tracks.cost import Row as CostRow
from slmq_edge.tracks.cost import Table


@dataclass(frozen=True)
class Document:
    """What a report is of.

    title: of its front. within: points of 100 that a choice may lose. cost: every quantizing once;
    prepared: the engines that were built. costs: place of a manifest -> what its quantizing cost,
    where that is known. papers: model of the study -> the paper's name of it. newest: when the last
    of it was measured; ``None``: nothing was.
    """

    title: str
    within: float
    study: Study
    subjects: tuple[Subject, ...]
    answers: tuple[Answer, ...]
    accuracy: Accuracy
    inference: Inference
    cost: Table
    costs: Mapping[str, CostRow]
    papers: Mapping[str, str]
    newest: str | None

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.model for one in self.subjects))


def document(
    study: Study,
    title: str | None = None,
    baseline: str | None = None,
    within: float = WITHIN,
    mixed: bool = False,
) -> Document:
    """Compute everything.

    Args:
        study: what was collected.
        title: of the front; ``None``: the bench's, or one that names the models.
        baseline: scheme of method none that all is held against; ``None``: any float one.
        within: points of 100 of full precision's quality that a choice may lose.
        mixed: whether devices whose baselines differ in precision are set beside each other.

    Raises:
        NotFound: ``baseline`` is none that was measured.
    """
    found = subjects(study)
    _require(baseline, found)
    scored = accuracy(found, baseline)
    timed = inference(found, baseline, mixed)
    models = tuple(dict.fromkeys(one.model for one in found))
    papers = {model: known for model in models if (known := paper.model_of(model))}
    paid, costs = _costs(study)
    dates = [filed.value.created for filed in study.runs]
    dates += [filed.value.created for filed in study.evaluations]
    return Document(
        title=title or _title(study, models),
        within=within,
        study=study,
        subjects=found,
        answers=answers(found, scored, timed.rows, within),
        accuracy=scored,
        inference=timed,
        cost=paid,
        costs=costs,
        papers=papers,
        newest=max(dates, default=None),
    )


def _title(study: Study, models: tuple[str, ...]) -> str:
    """That of the bench, where it is one."""
    titles = [filed.value.get("title") for filed in study.benches]
    if len(titles) == 1 and isinstance(titles[0], str) and titles[0]:
        return titles[0]
    return f"Which method for which device: {', '.join(models) or 'nothing measured'}"


def _require(baseline: str | None, found: tuple[Subject, ...]) -> None:
    known = sorted({one.scheme for one in found if one.is_float and (one.runs or one.evaluations)})
    if baseline is not None and baseline not in known:
        told = ", ".join(known) or "none"
        raise NotFound(f"no baseline of scheme {baseline} was measured; float schemes here: {told}")


def _costs(study: Study) -> tuple[Table, Mapping[str, CostRow]]:
    """Track 3 of checkpoints and bundles: a row for each quantizing, and whose that is.

    What was exported keeps the cost of its checkpoint, so that several have one row.
    """
    rows: dict[object, CostRow] = {}
    keys: dict[str, object] = {}
    for made in study.manifests:
        try:
            row = _cost(made)
        except Damaged:
            continue  # of an older release, which did not tell
        if row.method != "none":
            key = (row.group, row.method, row.scheme, row.seconds, row.memory_bytes)
            rows.setdefault(key, row)
            keys[made.path] = key
    table = cost.scored([*rows.values()])
    scored = {row.place: row for row in table.rows}
    told = {place: scored[rows[key].place] for place, key in keys.items()}
    engines = tuple(filed.value for filed in study.engines)
    return dataclasses.replace(table, prepared=engines), told


def _cost(made: Filed[Manifest]) -> CostRow:
    return dataclasses.replace(cost.read(made.value.folder), place=made.path)
