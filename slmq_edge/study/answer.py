"""Which method for which device: the best by speed, size and accuracy, or that it is not known.

Only what keeps the quality of full precision, to within a margin, is chosen for speed and size. A
choice is *clear* where intervals say so: the margin lies outside the interval of what is kept, and
the interval of the speed against every other that might be chosen lies above 1. A speed of one run
is never clear: its repetitions say nothing of what another start of the machine gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slmq_edge.compare import compare
from slmq_edge.quantities import SPEED
from slmq_edge.study.accuracy import Accuracy, Kept, kept
from slmq_edge.study.inference import Place, Row
from slmq_edge.study.subjects import Subject

ONE_RUN = "another start of the machine might order them otherwise: measure each in several runs"
WITHIN = 1.0  # points of 100 that may be lost
KEEPS, LOSES, UNCLEAR, UNKNOWN = "keeps", "loses", "unclear", "unknown"
FASTEST, SMALLEST, TRUEST = "fastest", "smallest", "most accurate"


@dataclass(frozen=True)
class Candidate:
    """What could be chosen. row: its run there; ``None`` where nothing was timed.

    kept: of full precision, which keeps 100 of itself; verdict: whether that is within the margin.
    guessed: see `accuracy.Row`.
    """

    subject: Subject
    row: Row | None
    kept: Kept | None
    verdict: str
    guessed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pick:
    """A choice. doubts: why it is not clear; none where it is."""

    what: str
    candidate: Candidate
    doubts: tuple[str, ...]

    @property
    def is_clear(self) -> bool:
        return not self.doubts


@dataclass(frozen=True)
class Answer:
    """Of one model on one device; ``place`` is ``None`` where nothing was timed.

    within: the margin, in points of 100. candidates: all, in the order of the study.
    """

    place: Place | None
    model: str
    within: float
    candidates: tuple[Candidate, ...]
    picks: tuple[Pick, ...]

    def pick(self, what: str) -> Pick | None:
        return next((pick for pick in self.picks if pick.what == what), None)


def answers(
    found: Sequence[Subject],
    scored: Accuracy,
    rows: Sequence[Row],
    within: float = WITHIN,
) -> tuple[Answer, ...]:
    """One for every device and model that was timed, then models that were only scored."""
    given = []
    for place in dict.fromkeys(row.place for row in rows):
        here = [row for row in rows if row.place == place]
        for model in dict.fromkeys(row.subject.model for row in here):
            mine = [row for row in here if row.subject.model == model]
            given.append(_answer(place, model, _timed(mine, scored, within), scored, within))
    timed = {answer.model for answer in given}
    for model in dict.fromkeys(row.subject.model for row in scored.rows):
        if model not in timed:
            asked = [one for one in found if one.model == model and one.evaluations]
            only = [_candidate(one, None, scored, within) for one in asked]
            given.append(_answer(None, model, only, scored, within))
    return tuple(given)


def verdict(found: Kept | None, within: float) -> str:
    """Whether it keeps the reference's quality to within so many points."""
    if found is None:
        return UNKNOWN
    if found.low is None or found.high is None:
        return UNCLEAR
    if found.low >= 100 - within:
        return KEEPS
    return LOSES if found.high < 100 - within else UNCLEAR


def _timed(rows: Sequence[Row], scored: Accuracy, within: float) -> list[Candidate]:
    return [_candidate(row.subject, row, scored, within) for row in rows]


def _candidate(one: Subject, row: Row | None, scored: Accuracy, within: float) -> Candidate:
    line = scored.of(one)
    if one.is_float and (line is None or line.kept is None):
        return Candidate(one, row, None, KEEPS)
    found = line.kept if line else None
    said = KEEPS if one.is_float else verdict(found, within)
    return Candidate(one, row, found, said, line.guessed if line and found else ())


def _answer(
    place: Place | None,
    model: str,
    found: Sequence[Candidate],
    scored: Accuracy,
    within: float,
) -> Answer:
    picks = [*_fastest(found), *_smallest(found), *_truest(found, scored)]
    return Answer(place, model, within, tuple(found), tuple(picks))


def _eligible(found: Sequence[Candidate]) -> list[Candidate]:
    """What does not lose more than the margin, as far as is known; all where nothing is known."""
    sound = [one for one in found if one.row is not None and not one.row.is_implausible]
    known = [one for one in sound if one.verdict in (KEEPS, UNCLEAR)]
    quantized = [one for one in known if not one.subject.is_float]
    unknown = [one for one in sound if one.verdict == UNKNOWN]
    return known if quantized or not unknown else [*known, *unknown]


def _fastest(found: Sequence[Candidate]) -> Iterator[Pick]:
    eligible = _eligible(found)
    if len(eligible) < 2:
        return
    best = max(eligible, key=lambda one: one.row.decode if one.row else 0.0)
    rivals = []
    for other in eligible:
        if other is best or other.row is None or best.row is None:
            continue
        if compare(other.row.side, best.row.side).row(SPEED).verdict != "better":
            rivals.append(other.subject.name)
    doubts = [f"the repetitions do not tell it from {_listed(rivals)}"] if rivals else []
    if any(one.row is not None and len(one.row.side.runs) < 2 for one in eligible):
        doubts.append(ONE_RUN)
    yield Pick(FASTEST, best, (*_doubts(best), *doubts))


def _smallest(found: Sequence[Candidate]) -> Iterator[Pick]:
    eligible = _eligible(found)
    if len(eligible) < 2:
        return
    best = min(eligible, key=lambda one: one.row.size if one.row else 0)
    yield Pick(SMALLEST, best, tuple(_doubts(best)))


def _doubts(one: Candidate) -> list[str]:
    if one.verdict == UNKNOWN:
        return ["its accuracy is not known"]
    unclear = ["the questions do not tell whether it stays within the margin"]
    return [*(unclear if one.verdict == UNCLEAR else ()), *_at_chance(one)]


def _at_chance(one: Candidate) -> list[str]:
    if not one.guessed or one.subject.is_float:
        return []
    return [f"full precision itself is not shown to do better than guess on {_listed(one.guessed)}"]


def _truest(found: Sequence[Candidate], scored: Accuracy) -> Iterator[Pick]:
    """Of what is quantized."""
    known = [one for one in found if one.kept is not None and not one.subject.is_float]
    if not known:
        return
    best = max(known, key=lambda one: one.kept.value if one.kept else 0.0)
    mine = scored.of(best.subject)
    rivals = []
    for other in known:
        theirs = scored.of(other.subject)
        if other.subject == best.subject or mine is None or theirs is None:
            continue
        # Of what the other keeps of the best: drawn in pairs, so that hard questions are no noise.
        found_kept = kept(mine.evaluation, theirs.evaluation)
        if isinstance(found_kept, str) or found_kept.high is None or found_kept.high >= 100:
            rivals.append(other.subject.name)
    doubts = [f"the questions do not tell it from {_listed(rivals)}"] if rivals else []
    yield Pick(TRUEST, best, (*doubts, *_at_chance(best)))


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return " and ".join([", ".join(unique[:-1]), unique[-1]] if len(unique) > 1 else unique)
